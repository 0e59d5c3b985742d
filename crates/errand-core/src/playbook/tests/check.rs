//! What is refused, and at which path.

use serde_json::{Value, json};

use crate::playbook::{BadPlaybook, Known, NESTING_MAX, Playbook, STEPS_MAX};

fn check(playbook: &Value, people: bool) -> Result<Playbook, BadPlaybook> {
    let tool = |name: &str| match name {
        "read_file" | "write_file" => Ok(()),
        _ => Err(format!("there is no tool {name:?}")),
    };
    Playbook::parse(
        playbook,
        &Known {
            tool: &tool,
            human_in_the_loop: people,
        },
    )
}

fn refused(step: Value) -> String {
    check(&json!({"steps": [{"say": "hi"}, step]}), true)
        .unwrap_err()
        .to_string()
}

#[test]
fn the_whole_takes_steps_alone() {
    let cases = [
        (json!([]), "playbook: it takes an object with steps"),
        (
            json!({}),
            "playbook.steps: it is missing; it takes a list of steps",
        ),
        (
            json!({"steps": []}),
            "playbook.steps: it takes a list of at least one step",
        ),
        (
            json!({"steps": {"say": "hi"}}),
            "playbook.steps: it takes a list of at least one step",
        ),
        (
            json!({"step": []}),
            "playbook.step: there is no such key; the nearest one is `steps`",
        ),
        (
            json!({"steps": ["say"]}),
            "playbook.steps[0]: it takes an object with tool,",
        ),
    ];
    for (playbook, expected) in cases {
        let message = check(&playbook, true).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

fn all_refused(cases: &[(Value, &str)]) {
    for (step, expected) in cases {
        let message = refused(step.clone());
        assert!(
            message.starts_with(expected),
            "{step}\n  {message}\n  {expected}"
        );
    }
}

#[test]
fn keys_and_tools_are_checked() {
    let cases = [
        (
            json!({}),
            "playbook.steps[1]: it has no action; it takes one of tool, for_each, set",
        ),
        (json!({"if": true}), "playbook.steps[1]: it has no action"),
        (
            json!({"say": "a", "wait": "1s"}),
            "playbook.steps[1]: it has more than one action (say, wait)",
        ),
        (
            json!({"says": "a"}),
            "playbook.steps[1].says: there is no such key; the nearest one is `say`",
        ),
        (
            json!({"tool": "read_file", "wiht": {}}),
            "playbook.steps[1].wiht: there is no such key; the nearest one is `with`",
        ),
        (
            json!({"tool": "read_fil"}),
            "playbook.steps[1].tool: there is no tool \"read_fil\"",
        ),
        (
            json!({"tool": "{{ name }}"}),
            "playbook.steps[1].tool: it takes a plain name",
        ),
        (
            json!({"tool": 1}),
            "playbook.steps[1].tool: it takes a name",
        ),
        (
            json!({"tool": "read_file", "with": "x"}),
            "playbook.steps[1].with: it takes an object",
        ),
        (
            json!({"tool": "read_file", "with": {"path": "{{ a b }}"}}),
            "playbook.steps[1].with.path: the template does not parse",
        ),
        (
            json!({"tool": "read_file", "with": {"a": [{"b": "{{ }}"}]}}),
            "playbook.steps[1].with.a[0].b: the template does not parse",
        ),
        (
            json!({"tool": "read_file", "with": {"path": "{% if %}"}}),
            "playbook.steps[1].with.path: the template does not parse",
        ),
        (
            json!({"say": "a", "with": {}}),
            "playbook.steps[1].with: a step with `say` does not take it; it goes with tool",
        ),
        (
            json!({"say": "a", "steps": []}),
            "playbook.steps[1].steps: a step with `say` does not take it; it goes with for_each",
        ),
        (
            json!({"say": "a", "on_error": "continue"}),
            "playbook.steps[1].on_error: a step with `say` does not take it",
        ),
        (
            json!({"tool": "read_file", "on_error": "ignore"}),
            "playbook.steps[1].on_error: it takes `continue`",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn texts_conditions_and_names_are_checked() {
    let cases = [
        (
            json!({"say": ""}),
            "playbook.steps[1].say: it takes a text that is not empty",
        ),
        (json!({"say": 5}), "playbook.steps[1].say: it takes a text"),
        (
            json!({"say": "{{ x"}),
            "playbook.steps[1].say: the template does not parse",
        ),
        (
            json!({"finish": null}),
            "playbook.steps[1].finish: it takes a text",
        ),
        (
            json!({"finish": "x", "as": "y"}),
            "playbook.steps[1].as: nothing follows a `finish`",
        ),
        (
            json!({"fail": " "}),
            "playbook.steps[1].fail: it takes a text that is not empty",
        ),
        (
            json!({"wait": "soon"}),
            "playbook.steps[1].wait: \"soon\" is not a duration",
        ),
        (
            json!({"wait": 30}),
            "playbook.steps[1].wait: it takes a text",
        ),
        (
            json!({"say": "a", "if": "total > 3"}),
            "playbook.steps[1].if: a text is never true",
        ),
        (
            json!({"say": "a", "if": "{{ a }} {{ b }}"}),
            "playbook.steps[1].if: a text is never true",
        ),
        (
            json!({"say": "a", "if": "{{ a b }}"}),
            "playbook.steps[1].if: the template does not parse",
        ),
        (
            json!({"say": "a", "if": 1}),
            "playbook.steps[1].if: it takes one whole",
        ),
        (
            json!({"say": "a", "as": "message"}),
            "playbook.steps[1].as: `message` has its meaning already",
        ),
        (
            json!({"say": "a", "as": "1x"}),
            "playbook.steps[1].as: \"1x\" is not a name",
        ),
        (
            json!({"say": "a", "as": "a-b"}),
            "playbook.steps[1].as: \"a-b\" is not a name",
        ),
        (
            json!({"say": "a", "as": "none"}),
            "playbook.steps[1].as: `none` is a word of the template language",
        ),
        (
            json!({"say": "a", "as": 1}),
            "playbook.steps[1].as: it takes a name",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn set_and_for_each_are_checked() {
    let cases = [
        (
            json!({"set": {}}),
            "playbook.steps[1].set: it takes an object",
        ),
        (
            json!({"set": {"item": 1}}),
            "playbook.steps[1].set.item: `item` has its meaning already",
        ),
        (
            json!({"set": {"a": {"b": "{{ ! }}"}}}),
            "playbook.steps[1].set.a.b: the template does not parse",
        ),
        (
            json!({"set": {"s": "{{ run.sandbox_id }}"}}),
            "playbook.steps[1].set.s: `run.sandbox_id` changes",
        ),
        (
            json!({"set": {"s": 1}, "if": "{{ run.sandbox_id == 1 }}"}),
            "playbook.steps[1].if: `run.sandbox_id` changes",
        ),
        (
            json!({"for_each": [1]}),
            "playbook.steps[1].steps: it is missing",
        ),
        (
            json!({"for_each": "a,b", "steps": [{"say": "x"}]}),
            "playbook.steps[1].for_each: a text is no list",
        ),
        (
            json!({"for_each": 5, "steps": [{"say": "x"}]}),
            "playbook.steps[1].for_each: it takes a list",
        ),
        (
            json!({"for_each": [1], "steps": [{"say": "x"}, {"sya": "x"}]}),
            "playbook.steps[1].steps[1].sya: there is no such key",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn requests_are_checked() {
    let cases = [
        (
            json!({"approve": "Pay?"}),
            "playbook.steps[1].approve: it takes an object with title",
        ),
        (
            json!({"approve": {}}),
            "playbook.steps[1].approve.title: it is missing",
        ),
        (
            json!({"approve": {"title": "a", "options": []}}),
            "playbook.steps[1].approve.options: there is no such key",
        ),
        (
            json!({"approve": {"title": "a", "expires_in": "1w"}}),
            "playbook.steps[1].approve.expires_in: \"1w\" is not a duration",
        ),
        (
            json!({"approve": {"title": "a", "on_expire": "approve"}}),
            "playbook.steps[1].approve.on_expire: it takes `deny`",
        ),
        (
            json!({"ask": {"title": "a"}}),
            "playbook.steps[1].ask.questions: it takes a list of questions",
        ),
        (
            json!({"ask": {"title": "a", "questions": []}}),
            "playbook.steps[1].ask.questions: it takes at least one question",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{}]}}),
            "playbook.steps[1].ask.questions[0].question: it is missing",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{"question": "a"}, {"question": "a"}]}}),
            "playbook.steps[1].ask.questions[1].question: \"a\" stands there twice",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{"question": "a", "options": [{"lable": "x"}]}]}}),
            "playbook.steps[1].ask.questions[0].options[0].lable: there is no such key; the nearest one is `label`",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{"question": "a", "free_text": false}]}}),
            "playbook.steps[1].ask.questions[0]: `free_text: false` needs options",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{"question": "a", "multi_select": "yes"}]}}),
            "playbook.steps[1].ask.questions[0].multi_select: it takes true or false",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn asking_needs_people() {
    let asks = json!({"steps": [{"for_each": [1], "steps": [{"approve": {"title": "Pay?"}}]}]});
    assert!(check(&asks, true).unwrap().asks());
    let refused = check(&asks, false).unwrap_err();
    assert_eq!(refused.path, "playbook.steps[0].steps[0]");
    let silent = json!({"steps": [{"say": "hi"}]});
    assert!(!check(&silent, false).unwrap().asks());
}

#[test]
fn depth_and_number_of_steps_are_bounded() {
    let nested = |depth: usize| {
        (0..depth).fold(
            json!({"say": "x"}),
            |step, _| json!({"for_each": [1], "steps": [step]}),
        )
    };
    assert!(check(&json!({"steps": [nested(NESTING_MAX)]}), true).is_ok());
    assert!(
        check(&json!({"steps": [nested(NESTING_MAX + 1)]}), true)
            .unwrap_err()
            .message
            .contains("16 deep")
    );

    let many = |count: usize| json!({"steps": vec![json!({"say": "x"}); count]});
    assert!(check(&many(STEPS_MAX), true).is_ok());
    assert!(
        check(&many(STEPS_MAX + 1), true)
            .unwrap_err()
            .message
            .contains("1000 steps")
    );
}
