//! Playbooks that are rejected, and the path that the error names.

use serde_json::{Value, json};

use crate::playbook::{BadPlaybook, Known, NESTING_MAX, Playbook, STEPS_MAX};

fn check(playbook: &Value, human_in_the_loop: bool) -> Result<Playbook, BadPlaybook> {
    let tool = |name: &str| match name {
        "read_file" | "write_file" => Ok(()),
        _ => Err(format!("there is no tool {name:?}")),
    };
    Playbook::parse(
        playbook,
        &Known {
            tool: &tool,
            human_in_the_loop,
        },
    )
}

fn refused(step: Value) -> String {
    check(&json!({"steps": [{"say": "hi"}, step]}), true)
        .unwrap_err()
        .to_string()
}

#[test]
fn a_playbook_consists_of_steps_only() {
    let cases = [
        (json!([]), "playbook: must be an object with steps"),
        (
            json!({}),
            "playbook.steps: is missing; must be a list of steps",
        ),
        (
            json!({"steps": []}),
            "playbook.steps: must be a list of at least one step",
        ),
        (
            json!({"steps": {"say": "hi"}}),
            "playbook.steps: must be a list of at least one step",
        ),
        (
            json!({"step": []}),
            "playbook.step: there is no such key; did you mean `steps`",
        ),
        (
            json!({"steps": ["say"]}),
            "playbook.steps[0]: must be an object with tool,",
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
            "playbook.steps[1]: has no action; add one of tool, for_each, set",
        ),
        (json!({"if": true}), "playbook.steps[1]: has no action"),
        (
            json!({"say": "a", "wait": "1s"}),
            "playbook.steps[1]: has more than one action (say, wait)",
        ),
        (
            json!({"says": "a"}),
            "playbook.steps[1].says: there is no such key; did you mean `say`",
        ),
        (
            json!({"tool": "read_file", "wiht": {}}),
            "playbook.steps[1].wiht: there is no such key; did you mean `with`",
        ),
        (
            json!({"tool": "read_fil"}),
            "playbook.steps[1].tool: there is no tool \"read_fil\"",
        ),
        (
            json!({"tool": "{{ name }}"}),
            "playbook.steps[1].tool: must be a plain name",
        ),
        (json!({"tool": 1}), "playbook.steps[1].tool: must be a name"),
        (
            json!({"tool": "read_file", "with": "x"}),
            "playbook.steps[1].with: must be an object",
        ),
        (
            json!({"tool": "read_file", "with": {"path": "{{ a b }}"}}),
            "playbook.steps[1].with.path: the template is not valid",
        ),
        (
            json!({"tool": "read_file", "with": {"a": [{"b": "{{ }}"}]}}),
            "playbook.steps[1].with.a[0].b: the template is not valid",
        ),
        (
            json!({"tool": "read_file", "with": {"path": "{% if %}"}}),
            "playbook.steps[1].with.path: the template is not valid",
        ),
        (
            json!({"say": "a", "with": {}}),
            "playbook.steps[1].with: not allowed in a step with `say`, only with tool",
        ),
        (
            json!({"say": "a", "steps": []}),
            "playbook.steps[1].steps: not allowed in a step with `say`, only with for_each",
        ),
        (
            json!({"say": "a", "on_error": "continue"}),
            "playbook.steps[1].on_error: not allowed in a step with `say`",
        ),
        (
            json!({"tool": "read_file", "on_error": "ignore"}),
            "playbook.steps[1].on_error: must be `continue`",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn texts_conditions_and_names_are_checked() {
    let cases = [
        (
            json!({"say": ""}),
            "playbook.steps[1].say: must not be empty",
        ),
        (json!({"say": 5}), "playbook.steps[1].say: must be a string"),
        (
            json!({"say": "{{ x"}),
            "playbook.steps[1].say: the template is not valid",
        ),
        (
            json!({"finish": null}),
            "playbook.steps[1].finish: must be a string",
        ),
        (
            json!({"finish": "x", "as": "y"}),
            "playbook.steps[1].as: a `finish` ends the run",
        ),
        (
            json!({"fail": " "}),
            "playbook.steps[1].fail: must not be empty",
        ),
        (
            json!({"wait": "soon"}),
            "playbook.steps[1].wait: \"soon\" is not a duration",
        ),
        (
            json!({"wait": 30}),
            "playbook.steps[1].wait: must be a string",
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
            "playbook.steps[1].if: the template is not valid",
        ),
        (
            json!({"say": "a", "if": 1}),
            "playbook.steps[1].if: must be a single",
        ),
        (
            json!({"say": "a", "as": "message"}),
            "playbook.steps[1].as: `message` has a fixed meaning",
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
            "playbook.steps[1].as: `none` is a keyword of the template language",
        ),
        (
            json!({"say": "a", "as": 1}),
            "playbook.steps[1].as: must be a name",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn set_and_for_each_are_checked() {
    let cases = [
        (
            json!({"set": {}}),
            "playbook.steps[1].set: must be an object",
        ),
        (
            json!({"set": {"item": 1}}),
            "playbook.steps[1].set.item: `item` has a fixed meaning",
        ),
        (
            json!({"set": {"a": {"b": "{{ ! }}"}}}),
            "playbook.steps[1].set.a.b: the template is not valid",
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
            "playbook.steps[1].steps: is missing",
        ),
        (
            json!({"for_each": "a,b", "steps": [{"say": "x"}]}),
            "playbook.steps[1].for_each: a text is not a list",
        ),
        (
            json!({"for_each": 5, "steps": [{"say": "x"}]}),
            "playbook.steps[1].for_each: must be a list",
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
            "playbook.steps[1].approve: must be an object with title",
        ),
        (
            json!({"approve": {}}),
            "playbook.steps[1].approve.title: is missing",
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
            "playbook.steps[1].approve.on_expire: must be `deny`",
        ),
        (
            json!({"ask": {"title": "a"}}),
            "playbook.steps[1].ask.questions: must be a list of questions",
        ),
        (
            json!({"ask": {"title": "a", "questions": []}}),
            "playbook.steps[1].ask.questions: must contain at least one question",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{}]}}),
            "playbook.steps[1].ask.questions[0].question: is missing",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{"question": "a"}, {"question": "a"}]}}),
            "playbook.steps[1].ask.questions[1].question: \"a\" appears twice",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{"question": "a", "options": [{"lable": "x"}]}]}}),
            "playbook.steps[1].ask.questions[0].options[0].lable: there is no such key; did you mean `label`",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{"question": "a", "free_text": false}]}}),
            "playbook.steps[1].ask.questions[0]: `free_text: false` requires options",
        ),
        (
            json!({"ask": {"title": "a", "questions": [{"question": "a", "multi_select": "yes"}]}}),
            "playbook.steps[1].ask.questions[0].multi_select: must be true or false",
        ),
    ];
    all_refused(&cases);
}

#[test]
fn asking_requires_people() {
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
