//! The effect of each step, and of messages, failures, stops and retries.

use serde_json::{Value, json};

use super::{Drive, Open, answers, approve, error, ok};
use crate::human::{Ask, OnExpire, Origin, Resolution};
use crate::limits::PLAYBOOK_MOVES_MAX;
use crate::playbook::DONE_TEXT;
use crate::run::RunError;
use crate::transcript::{Body, Mark};
use crate::turn::Move;

const FAILED: &str = "playbook_failed";

#[test]
fn without_a_finish_the_run_ends_with_done() {
    let mut drive = Drive::started(json!([{"say": "hi"}]), "go");
    assert_eq!(drive.said(), "hi");
    assert_eq!(drive.path(), "1");
    assert_eq!(drive.finished(), DONE_TEXT);
}

#[test]
fn a_step_is_skipped_unless_its_if_is_exactly_true() {
    for (condition, runs) in [
        (json!("{{ true }}"), true),
        (json!(true), true),
        (json!(false), false),
        (json!("{{ 1 }}"), false),
        (json!("{{ 'true' }}"), false),
        (json!("{{ none }}"), false),
        (json!("  {{ true }}\n"), true),
    ] {
        let steps =
            json!([{"tool": "t", "if": condition, "as": "x"}, {"finish": "{{ x is none }}"}]);
        let mut drive = Drive::started(steps, "go");
        if runs {
            drive.call(ok(json!(1)));
        }
        assert_eq!(drive.finished() == "false", runs, "{condition}");
    }
}

#[test]
fn every_kind_of_step_has_its_value() {
    let steps = json!([
        {"say": "a", "as": "said"},
        {"wait": "0s", "as": "waited"},
        {"set": {"p": 1, "q": "{{ 2.5 }}"}, "as": "both"},
        {"for_each": ["x", "y"], "as": "rounds", "steps": [{"set": {"i": "{{ index }}", "v": "{{ item }}"}}]},
        {"for_each": [], "as": "none_", "steps": [{"say": "never"}]},
        {"for_each": [1], "as": "left", "if": false, "steps": [{"say": "never"}]},
        {"for_each": [1, 2], "as": "calls", "steps": [{"tool": "t", "if": "{{ item == 2 }}"}]},
        {"finish": "{{ [said, waited, both, rounds, none_, left, calls] | tojson }}"},
    ]);
    let mut drive = Drive::started(steps, "go");
    drive.said();
    let wait = drive.next();
    drive.record(wait);
    assert_eq!(drive.path(), "6[1].0");
    drive.call(ok(json!({"structured": true})));
    let expected = json!([null, null, {"p": 1, "q": 2.5}, [{"i": 0, "v": "x"}, {"i": 1, "v": "y"}], [], null, [null, {"structured": true}]]);
    assert_eq!(drive.finished(), expected.to_string());
}

#[test]
fn an_iteration_has_its_own_names() {
    let steps = json!([
        {"set": {"n": 0}},
        {"for_each": [1, 2], "steps": [
            {"set": {"n": "{{ n + item }}", "m": 1}},
            {"for_each": ["a"], "steps": [{"say": "{{ n }} {{ item }} {{ index }} {{ m }}"}]},
            {"say": "{{ item }} {{ index }}"},
        ]},
        {"finish": "{{ n }} {{ m is defined }} {{ item is defined }}"},
    ]);
    let mut drive = Drive::started(steps, "go");
    assert_eq!(drive.path(), "1[0].1[0].0");
    assert_eq!(
        [drive.said(), drive.said(), drive.said(), drive.said()],
        ["1 a 0 1", "1 0", "2 a 0 1", "2 1"]
    );
    assert_eq!(drive.finished(), "0 false false");
}

#[test]
fn one_set_sees_the_names_as_they_were() {
    let steps = json!([{"set": {"a": 1, "b": 2}}, {"set": {"a": "{{ b }}", "b": "{{ a }}"}}, {"set": {"a": 9}, "if": false}, {"finish": "{{ a }} {{ b }}"}]);
    assert_eq!(Drive::started(steps, "go").finished(), "2 1");
}

#[test]
fn requests_contain_the_rendered_texts_of_the_step() {
    let steps = json!([
        {"set": {"who": "Ada", "days": 2}},
        {"approve": {"title": "Pay {{ who }}?", "description": "{{ who }}!", "expires_in": "{{ days }}d", "on_expire": "continue"}},
        {"ask": {"title": "T", "questions": [
            {"question": "Which of {{ who }}?", "header": "{{ who }}", "options": [{"label": "{{ who }}", "description": "d {{ days }}"}], "multi_select": true, "free_text": false},
        ]}, "as": "given"},
        {"finish": "{{ given['Which of Ada?'] | tojson }}"},
    ]);
    let mut drive = Drive::started(steps, "go");
    let Move::Ask(draft) = drive.next().action else {
        panic!()
    };
    assert_eq!(
        (draft.title.as_str(), draft.description.as_deref()),
        ("Pay Ada?", Some("Ada!"))
    );
    assert_eq!(
        (draft.expires_in_ms, draft.on_expire),
        (Some(2 * 86_400_000), Some(OnExpire::Continue))
    );
    assert_eq!(
        (&draft.ask, &draft.origin, &draft.tool_call),
        (&Ask::Approval, &Origin::Model, &None)
    );
    drive.asked(approve(true));
    let Move::Ask(draft) = drive.next().action else {
        panic!()
    };
    let Ask::Question { questions } = draft.ask else {
        panic!()
    };
    assert_eq!(
        serde_json::to_value(&questions).unwrap(),
        json!([{"question": "Which of Ada?", "header": "Ada", "options": [{"label": "Ada", "description": "d 2"}], "multi_select": true, "free_text": false}])
    );
    assert_eq!((draft.expires_in_ms, draft.on_expire), (None, None));
    drive.asked(answers(json!({"Which of Ada?": "Ada"})));
    assert_eq!(drive.finished(), "[\"Ada\"]");
}

#[test]
fn a_request_without_an_answer_still_has_a_value() {
    let steps = |extra: Value| json!([{"approve": {"title": "Pay?"}, "as": "x"}, extra, {"finish": "{{ x | tojson }}"}]);
    let cases = [
        (
            Resolution::Denied {
                reason: Some("no".to_owned()),
            },
            json!({"approved": false, "reason": "no"}),
        ),
        (
            Resolution::Expired {
                on_expire: OnExpire::Deny,
            },
            json!({"approved": false, "expired": true}),
        ),
        (
            Resolution::Expired {
                on_expire: OnExpire::Continue,
            },
            json!({"approved": false, "expired": true}),
        ),
        (
            Resolution::Message {
                text: "later".to_owned(),
            },
            json!({"approved": false, "message": "later"}),
        ),
    ];
    for (resolution, expected) in cases {
        let mut drive = Drive::started(steps(json!({"set": {"y": 1}})), "go");
        drive.asked(|_| resolution);
        assert_eq!(drive.finished(), expected.to_string());
    }
    // The message that closed the request is available to the following steps.
    let mut drive = Drive::started(
        steps(json!({"say": "{{ message }} {{ messages | length }}"})),
        "go",
    );
    let decided = drive.next();
    let Some(Open::Request(request)) = drive.record(decided) else {
        panic!()
    };
    drive.user("later");
    drive.resolve(
        request.id,
        Resolution::Message {
            text: "later".to_owned(),
        },
    );
    assert_eq!(drive.said(), "later 2");
}

#[test]
fn a_failed_call_ends_the_run_unless_on_error_is_continue() {
    let mut drive = Drive::started(json!([{"tool": "read_file"}, {"say": "never"}]), "go");
    drive.call(error("not_found: no such file"));
    let expected = (
        "tool_failed".to_owned(),
        "playbook.steps[0]: read_file failed: not_found: no such file".to_owned(),
    );
    assert_eq!(drive.failed(), expected);

    let steps = json!([{"tool": "read_file", "on_error": "continue", "as": "x"}, {"finish": "{{ x.error }}"}]);
    let mut drive = Drive::started(steps, "go");
    drive.call(error("not_found"));
    assert_eq!(drive.finished(), "not_found");
}

#[test]
fn a_question_without_an_answer_fails_like_a_tool() {
    let step = json!({"ask": {"title": "T", "questions": [{"question": "Q"}]}, "as": "x"});
    let expired = |_: &_| Resolution::Expired {
        on_expire: OnExpire::Deny,
    };
    let mut drive = Drive::started(json!([step]), "go");
    drive.asked(expired);
    let (code, message) = drive.failed();
    assert_eq!(code, "tool_failed");
    assert!(
        message.starts_with("playbook.steps[0]: ask failed: expired: "),
        "{message}"
    );

    let mut continues = step;
    continues["on_error"] = json!("continue");
    let mut drive = Drive::started(json!([continues, {"finish": "{{ x.error }}"}]), "go");
    drive.asked(expired);
    assert!(drive.finished().starts_with("expired: "));
}

#[test]
fn evaluation_failures_name_the_string() {
    let cases = [
        (
            json!([{"tool": "t", "with": {"a": ["{{ nope }}"]}}]),
            "playbook.steps[0].with.a[0]: `nope` is not defined",
        ),
        (
            json!([{"set": {"a": "{{ nope }}"}}]),
            "playbook.steps[0].set.a: `nope` is not defined",
        ),
        (
            json!([{"say": "x", "if": "{{ nope }}"}]),
            "playbook.steps[0].if: `nope` is not defined",
        ),
        (
            json!([{"for_each": "{{ 'abc' }}", "steps": [{"say": "x"}]}]),
            "playbook.steps[0].for_each: must be a list, not a string",
        ),
        (
            json!([{"for_each": "{{ none }}", "steps": [{"say": "x"}]}]),
            "playbook.steps[0].for_each: must be a list, not null",
        ),
        (
            json!([{"wait": "{{ 'soon' }}"}]),
            "playbook.steps[0].wait: \"soon\" is not a duration",
        ),
        (
            json!([{"approve": {"title": "{{ '' }}"}}]),
            "playbook.steps[0].approve.title: must not be empty",
        ),
        (
            json!([{"approve": {"title": "é".repeat(201)}}]),
            "playbook.steps[0].approve.title: must be at most 200 characters",
        ),
        (
            json!([{"ask": {"title": "x", "questions": [{"question": "é".repeat(2_001)}]}}]),
            "playbook.steps[0].ask.questions[0].question: must be at most 2000 characters",
        ),
        (
            json!([{"approve": {"title": "x", "expires_in": "{{ 'x' }}"}}]),
            "playbook.steps[0].approve.expires_in: \"x\" is not a duration",
        ),
        (
            json!([{"ask": {"title": "x", "questions": [{"question": "a"}, {"question": "{{ 'a' }}"}]}}]),
            "playbook.steps[0].ask.questions[1].question: \"a\" appears twice",
        ),
    ];
    for (steps, expected) in cases {
        let mut drive = Drive::started(steps, "go");
        let (code, message) = drive.failed();
        assert_eq!(code, FAILED);
        assert!(message.starts_with(expected), "{message}");
    }
    let steps = json!([{"for_each": [[1], [2]], "steps": [{"for_each": "{{ item }}", "steps": [{"say": "{{ nope }}", "if": "{{ item == 2 }}"}]}]}]);
    let mut drive = Drive::started(steps, "go");
    assert_eq!(drive.path(), "0[1].0[0].0");
    let (_, message) = drive.failed();
    assert!(
        message.starts_with("playbook.steps[0].steps[0].steps[0].say: "),
        "{message}"
    );
    assert!(message.ends_with(" (index 1, 0)"), "{message}");
}

#[test]
fn a_message_later_than_a_decision_does_not_change_it() {
    let steps = json!([
        {"set": {"first": "{{ message }}"}},
        {"say": "A", "if": "{{ message == 'one' }}"},
        {"say": "B"},
        {"set": {"second": "{{ message }}"}},
        {"say": "{{ first }} {{ second }} {{ messages | join(',') }}"},
    ]);
    let mut drive = Drive::started(steps, "one");
    let decided = drive.next();
    assert_eq!(
        decided.mark,
        Some(Mark {
            path: "1".to_owned(),
            message: 1
        })
    );
    // The message arrives between decision and commit: the decision made with the first one is kept.
    drive.user("two");
    drive.record(decided);
    assert_eq!(drive.said(), "B");
    let decided = drive.next();
    assert_eq!(
        decided.mark,
        Some(Mark {
            path: "4".to_owned(),
            message: 2
        })
    );
    drive.record(decided);
    drive.user("three");
    let said: Vec<String> = drive
        .entries
        .iter()
        .filter_map(|e| match &e.body {
            Body::Assistant { text, .. } => Some(text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(said, ["A", "B", "one two one,two"]);
    assert_eq!(drive.finished(), DONE_TEXT);
}

#[test]
fn a_decision_that_was_not_recorded_is_made_again() {
    let steps = json!([{"set": {"m": "{{ message }}"}}, {"say": "A", "if": "{{ m == 'one' }}"}, {"say": "{{ m }}"}]);
    let mut drive = Drive::started(steps, "one");
    assert_eq!(drive.path(), "1");
    drive.user("two");
    assert_eq!(drive.path(), "2");
    assert_eq!(drive.said(), "two");
}

#[test]
fn an_older_decision_may_be_recorded_after_a_newer_one_was_made() {
    let steps = json!([{"set": {"m": "{{ message }}"}}, {"say": "{{ m }}"}, {"say": "{{ m }}"}]);
    let mut drive = Drive::started(steps, "one");
    let first = drive.next();
    drive.user("two");
    assert_ne!(drive.next(), first);
    drive.record(first);
    assert_eq!(drive.said(), "one");
}

#[test]
fn a_message_after_the_end_starts_the_steps_again() {
    let steps = json!([{"tool": "t", "as": "x", "if": "{{ message == 'one' }}"}, {"finish": "{{ message }} {{ x is none }}"}]);
    let mut drive = Drive::started(steps, "one");
    drive.call(ok(json!(1)));
    assert_eq!(drive.finished(), "one false");
    drive.user("two");
    assert_eq!(drive.path(), "1");
    assert_eq!(drive.finished(), "two true");
    drive.user("one");
    assert_eq!(drive.path(), "0");
}

#[test]
fn a_message_that_the_last_answer_missed_starts_again() {
    let mut drive = Drive::started(
        json!([{"say": "at work"}, {"finish": "{{ message }}"}]),
        "one",
    );
    drive.said();
    let finish = drive.next();
    drive.user("two");
    drive.record(finish);
    assert_eq!(drive.path(), "0");
    assert_eq!(drive.said(), "at work");
    assert_eq!(drive.finished(), "two");
}

#[test]
fn a_stop_ends_the_walk() {
    let mut drive = Drive::started(json!([{"say": "a"}, {"tool": "t"}, {"say": "b"}]), "one");
    drive.said();
    let call = drive.next();
    let Some(Open::Call(id)) = drive.record(call) else {
        panic!()
    };
    drive.user("two");
    drive.settle(&id, error("not_run: the run was stopped"));
    drive.push(Body::Interrupted { by: None });
    drive.user("three");
    assert_eq!(
        drive.next().mark,
        Some(Mark {
            path: "0".to_owned(),
            message: 7
        })
    );
    assert_eq!(drive.said(), "a");
    drive.call(ok(json!(1)));
    assert_eq!(drive.said(), "b");
}

#[test]
fn a_retry_repeats_the_failed_call() {
    let steps = json!([{"say": "a"}, {"set": {"m": "{{ message }}"}}, {"tool": "t", "with": {"m": "{{ m }}"}, "as": "x"}, {"finish": "{{ x }} {{ m }}"}]);
    let mut drive = Drive::started(steps, "one");
    drive.said();
    assert_eq!(drive.call(error("boom")), json!(["t", {"m": "one"}]));
    drive.failed();
    drive.user("two");
    drive.push(Body::Retried { by: None });
    assert_eq!(drive.path(), "2");
    assert_eq!(drive.call(error("boom")), json!(["t", {"m": "two"}]));
    drive.failed();
    drive.push(Body::Retried { by: None });
    drive.call(ok(json!("fine")));
    assert_eq!(drive.finished(), "fine two");
}

#[test]
fn a_retried_fail_step_fails_again_unless_its_if_changed() {
    let steps = json!([{"tool": "t"}, {"fail": "no: {{ message }}", "if": "{{ message != 'please' }}"}, {"say": "ok"}]);
    let mut drive = Drive::started(steps, "one");
    drive.call(ok(json!(1)));
    assert_eq!(drive.failed().1, "no: one");
    drive.push(Body::Retried { by: None });
    assert_eq!(drive.failed().1, "no: one");
    drive.user("please");
    drive.push(Body::Retried { by: None });
    assert_eq!(drive.said(), "ok");
}

#[test]
fn a_retry_after_an_engine_failure_continues() {
    let error_of_engine = || Body::Error {
        error: RunError::new("limit_exceeded", "steps"),
        mark: None,
    };
    let mut drive = Drive::started(json!([{"tool": "t", "as": "x"}, {"tool": "u"}]), "one");
    drive.call(ok(json!(1)));
    drive.push(error_of_engine());
    drive.push(Body::Retried { by: None });
    assert_eq!(drive.path(), "1");
    // A call that was open then and was closed with an error is made again.
    let call = drive.next();
    let Some(Open::Call(id)) = drive.record(call) else {
        panic!()
    };
    drive.settle(&id, error("not_run: the run failed"));
    drive.push(error_of_engine());
    drive.push(Body::Retried { by: None });
    assert_eq!(drive.path(), "1");
    drive.call(ok(json!(2)));
    assert_eq!(drive.finished(), DONE_TEXT);
}

#[test]
fn a_retry_repeats_a_request_whose_expiry_failed_the_run() {
    let step = json!({"approve": {"title": "Pay?", "expires_in": "1s", "on_expire": "fail"}, "on_error": "continue", "as": "x"});
    let mut drive = Drive::started(json!([step, {"finish": "{{ x.approved }}"}]), "one");
    drive.asked(|_| Resolution::Expired {
        on_expire: OnExpire::Fail,
    });
    drive.push(Body::Error {
        error: RunError::new("human_request_expired", "Pay?"),
        mark: None,
    });
    drive.push(Body::Retried { by: None });
    drive.asked(approve(true));
    assert_eq!(drive.finished(), "true");
}

#[test]
fn entries_of_the_engine_are_not_moves() {
    let mut drive = Drive::started(json!([{"tool": "t", "as": "x"}, {"say": "{{ x }}"}]), "one");
    let call = drive.next();
    let Some(Open::Call(id)) = drive.record(call) else {
        panic!()
    };
    // The policy asks a person before the call runs.
    let mut policy = Drive::started(json!([{"approve": {"title": "Allow t?"}}]), "x");
    let mut decided = policy.next();
    decided.mark = None;
    let Some(Open::Request(request)) = drive.record(decided) else {
        panic!()
    };
    drive.resolve(request.id, Resolution::Approved { reason: None });
    drive.settle(&id, ok(json!("v")));
    drive.push(Body::Late {
        call_id: id,
        outcome: ok(json!("late")),
    });
    drive.push(Body::Assistant {
        text: "not of the playbook".to_owned(),
        ends: false,
        mark: None,
    });
    assert_eq!(drive.said(), "v");
}

#[test]
fn the_sandbox_id_may_become_known_later() {
    let steps = json!([
        {"say": "{{ run.id }} {{ run.sandbox_id }}"},
        {"set": {"id": "{{ run.id }}"}},
        {"say": "{{ run.sandbox_id }}", "if": "{{ run.sandbox_id == 'sb' }}"},
    ]);
    let mut drive = Drive::started(steps, "one");
    assert_eq!(drive.said(), "run-1 null");
    drive.facts.sandbox_id = Some("sb".to_owned());
    assert_eq!(drive.said(), "sb");
}

#[test]
fn a_transcript_of_another_playbook_fails_the_run() {
    for path in ["5", "0[2].0", "x", "0.0", "1"] {
        let mut drive = Drive::started(
            json!([{"for_each": [1], "steps": [{"say": "a"}]}, {"set": {"a": 1}}]),
            "one",
        );
        let mark = Some(Mark {
            path: path.to_owned(),
            message: 1,
        });
        drive.push(Body::Assistant {
            text: "a".to_owned(),
            ends: false,
            mark,
        });
        let (code, message) = drive.failed();
        assert_eq!(code, FAILED);
        assert!(
            message.contains(&format!(
                "a move of step {path}, but the playbook does not lead there"
            )),
            "{message}"
        );
    }
}

#[test]
fn the_number_of_moves_per_start_is_bounded() {
    let steps = json!([{"for_each": "{{ range(6000) }}", "steps": [{"say": "a"}, {"say": "b", "if": "{{ index >= 0 }}"}]}]);
    let mut drive = Drive::started(steps, "go");
    // Without the second walk of `Drive::next`, which is fed the whole transcript each time.
    for _ in 0..PLAYBOOK_MOVES_MAX {
        let decided = drive.walk.next(&drive.facts);
        drive.record(decided);
    }
    assert_eq!(drive.path(), "0[5000].0");
    let (code, message) = drive.failed();
    assert_eq!(code, FAILED);
    assert!(
        message.starts_with(
            "playbook.steps[0].steps[0]: the playbook has made 10000 moves since its start"
        ),
        "{message}"
    );
}

#[test]
fn the_size_of_values_made_by_set_is_bounded() {
    let steps = json!([{"tool": "t", "as": "x"}, {"for_each": "{{ range(100) }}", "steps": [{"set": {"y": "{{ x }}"}}]}]);
    let mut drive = Drive::started(steps, "go");
    drive.call(ok(json!("x".repeat(1_000_000))));
    let (_, message) = drive.failed();
    assert!(
        message.starts_with(
            "playbook.steps[1].steps[0].set: the values created since the start exceed"
        ),
        "{message}"
    );
}

#[test]
fn values_are_kept_only_if_they_are_read_and_are_bounded() {
    let rounds = |name: Option<&str>| {
        let inner =
            json!({"for_each": "{{ range(1000) }}", "steps": [{"set": {"a": "{{ index }}"}}]});
        let mut outer = json!({"for_each": "{{ range(1000) }}", "steps": [inner]});
        if let Some(name) = name {
            outer["as"] = json!(name);
        }
        Drive::started(json!([outer]), "go").next().action
    };
    // The work is the same: the first runs out of fuel, the second exceeds what may be kept.
    let message = |action: Move| match action {
        Move::Fail { message, .. } => message,
        other => panic!("{other:?}"),
    };
    assert!(!message(rounds(None)).contains("kept"));
    assert!(message(rounds(Some("all"))).contains("values kept"));
}
