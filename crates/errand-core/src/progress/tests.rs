use serde_json::json;

use super::*;
use crate::human::{HumanRequest, Resolution};
use crate::id::{HumanRequestId, MessageId};
use crate::ledger::OPENING;
use crate::time::Timestamp;
use crate::tool_error::{ToolError, ToolErrorCode};
use crate::transcript::{Entry, Mark};

#[derive(Default)]
struct World {
    entries: Vec<Entry>,
    ledger: Ledger,
    calls: u32,
}

impl World {
    fn add(&mut self, body: Body) {
        let position = self.entries.len() as u64 + 1;
        let entry = Entry {
            position,
            id: MessageId::from_stored(uuid::Uuid::from_u128(u128::from(position))),
            at: Timestamp::from_millis(0),
            body,
        };
        self.ledger.feed(&entry);
        self.entries.push(entry);
        // A restart counts the same.
        assert_eq!(self.ledger, Ledger::of(&self.entries));
    }

    fn user(&mut self) {
        self.add(Body::User {
            text: "Go on.".to_owned(),
            by: None,
            untrusted: false,
        });
    }

    fn answer(&mut self, answer: AnswerKind) {
        let call = ModelCall {
            answer,
            ..ModelCall::default()
        };
        self.add(Body::ModelCall { call });
    }

    fn summary(&mut self) {
        let call = ModelCall {
            purpose: Purpose::Summary,
            ..ModelCall::default()
        };
        self.add(Body::ModelCall { call });
    }

    fn text(&mut self, text: &str) {
        self.add(Body::Assistant {
            text: text.to_owned(),
            ends: false,
            mark: None,
        });
    }

    fn call(&mut self, name: &str, arguments: Value, mark: Option<Mark>) -> ToolCall {
        self.calls += 1;
        let call = ToolCall {
            id: format!("call_{}", self.calls),
            name: name.to_owned(),
            arguments: arguments.as_object().unwrap().clone(),
        };
        self.add(Body::ToolCall {
            call: call.clone(),
            mark,
        });
        call
    }

    fn came(&mut self, call: &ToolCall, outcome: Outcome) {
        self.add(Body::ToolResult {
            call_id: call.id.clone(),
            name: call.name.clone(),
            outcome,
        });
    }

    /// A turn of one call with its outcome.
    fn turn(&mut self, arguments: Value, outcome: Outcome) {
        self.answer(AnswerKind::Whole);
        let call = self.call("read_file", arguments, None);
        self.came(&call, outcome);
    }

    fn ask(&mut self, draft: RequestDraft, resolution: Resolution) {
        let number = u128::try_from(self.entries.len()).unwrap();
        let id = HumanRequestId::from_stored(uuid::Uuid::from_u128(number));
        let request = HumanRequest::new(id, draft, Timestamp::from_millis(0));
        self.add(Body::HumanRequest {
            request,
            mark: None,
        });
        self.add(Body::HumanResponse {
            request_id: id,
            resolution,
            by: None,
        });
    }

    fn deny(&mut self, call: &ToolCall) {
        let draft = RequestDraft {
            title: "Allow?".to_owned(),
            description: None,
            ask: Ask::Approval,
            origin: Origin::Policy {
                call_id: call.id.clone(),
                target: None,
            },
            tool_call: Some(call.clone()),
            expires_in_ms: None,
            on_expire: None,
            reason: None,
            quote: None,
        };
        self.ask(draft, Resolution::Denied { reason: None });
    }

    fn stuck(&self) -> Option<Stuck> {
        self.ledger.progress.stuck(true)
    }
}

fn result(text: &str) -> Outcome {
    Outcome::Result(json!(text))
}

#[test]
fn repeated_calls_are_bounded_and_new_outcomes_reset_the_count() {
    let mut world = World::default();
    world.add(Body::Opening {
        text: OPENING.to_owned(),
    });
    world.turn(json!({"path": "a"}), result("1"));
    for _ in 0..REPEATED_TURNS_MAX - 1 {
        world.turn(json!({"path": "a"}), result("1"));
        assert_eq!(world.stuck(), None);
    }
    // Another outcome of the same call is new.
    world.turn(json!({"path": "a"}), result("2"));
    // Two calls that alternate are not new, either.
    for n in 0..REPEATED_TURNS_MAX {
        assert_eq!(world.stuck(), None, "{n}");
        world.turn(
            json!({"path": "a"}),
            result(if n % 2 == 0 { "1" } else { "2" }),
        );
    }
    assert_eq!(world.stuck(), Some(Stuck::RepeatedCalls));
    world.user();
    assert_eq!(world.stuck(), None);
}

#[test]
fn a_command_that_differs_only_in_duration_repeats() {
    let mut world = World::default();
    for ms in 0..=REPEATED_TURNS_MAX {
        assert_eq!(world.stuck(), None);
        let outcome = json!({"exit_code": 0, "stdout": "waiting", "duration_ms": ms});
        world.turn(json!({"command": "state"}), Outcome::Result(outcome));
    }
    assert_eq!(world.stuck(), Some(Stuck::RepeatedCalls));
}

#[test]
fn turns_of_failing_calls_are_bounded() {
    let mut world = World::default();
    for n in 0..FAILED_TURNS_MAX {
        assert_eq!(world.stuck(), None);
        let error = format!("not_found: there is no {n}");
        world.turn(
            json!({"path": n}),
            Outcome::Error(ToolError::from_text(error)),
        );
    }
    assert_eq!(world.stuck(), Some(Stuck::FailedCalls));
    let Verdict::Ask(draft) = check(&world.ledger, false, true) else {
        panic!("it asks");
    };
    world.ask(*draft, Resolution::Approved { reason: None });
    assert_eq!(world.stuck(), None);
    let Verdict::Within = check(&world.ledger, false, false) else {
        panic!("it goes on");
    };
    // One successful call in a turn is enough.
    for n in 0..2 * FAILED_TURNS_MAX {
        world.answer(AnswerKind::Whole);
        let failing = world.call("read_file", json!({"path": n}), None);
        let working = world.call("read_file", json!({"path": "x", "offset": n}), None);
        world.came(
            &failing,
            Outcome::Error(ToolError::from_text("not_found: no")),
        );
        world.came(&working, result("yes"));
    }
    assert_eq!(world.stuck(), None);
}

#[test]
fn truncated_answers_are_bounded_and_a_repeated_one_counts_fully() {
    let mut world = World::default();
    for n in 0..CUT_ANSWERS_MAX {
        assert_eq!(world.stuck(), None);
        world.answer(AnswerKind::Cut);
        world.text(&format!("part {n}"));
    }
    assert_eq!(world.stuck(), Some(Stuck::CutAnswers));
    let Verdict::Fail(error) = check(&world.ledger, false, false) else {
        panic!("it fails");
    };
    assert_eq!(error.code, "model_answers_cut_off");
    world.add(Body::Retried { by: None });
    assert_eq!(world.stuck(), None);
    for _ in 0..2 {
        assert_eq!(world.stuck(), None);
        world.answer(AnswerKind::Cut);
        world.text("More and more. ");
    }
    assert_eq!(world.stuck(), Some(Stuck::CutAnswers));
}

#[test]
fn alternating_empty_and_truncated_answers_are_no_progress() {
    let mut world = World::default();
    for n in 0..CUT_ANSWERS_MAX {
        world.answer(AnswerKind::Empty);
        world.answer(AnswerKind::Cut);
        world.text(&n.to_string());
    }
    assert_eq!(world.stuck(), Some(Stuck::CutAnswers));
}

#[test]
fn consecutive_summaries_are_bounded() {
    let mut world = World::default();
    for _ in 0..SUMMARIES_IN_A_ROW_MAX {
        assert_eq!(world.stuck(), None);
        world.summary();
    }
    assert_eq!(world.stuck(), Some(Stuck::Summaries));
    let mut world = World::default();
    for n in 0..2 * SUMMARIES_IN_A_ROW_MAX {
        world.summary();
        world.turn(json!({"path": n}), result("x"));
    }
    assert_eq!(world.stuck(), None);
}

#[test]
fn model_calls_are_bounded_unless_the_build_limits_steps() {
    let mut world = World::default();
    for n in 0..MODEL_CALLS_DEFAULT_MAX {
        assert_eq!(world.ledger.progress.stuck(true), None, "{n}");
        let call = ModelCall::default();
        world.ledger.progress.feed(&Body::ModelCall { call });
    }
    assert_eq!(world.stuck(), Some(Stuck::ModelCalls));
    assert_eq!(world.ledger.progress.stuck(false), None);
    assert_eq!(check(&world.ledger, true, false), Verdict::Within);
    let Verdict::Fail(error) = check(&world.ledger, false, false) else {
        panic!("it fails");
    };
    assert_eq!(error.code, "limit_exceeded");
    world.ledger.refused = Some(Stuck::ModelCalls.limit().to_owned());
    assert!(matches!(
        check(&world.ledger, false, true),
        Verdict::Fail(_)
    ));
}

#[test]
fn a_denied_call_stays_denied_until_the_next_message() {
    let mut world = World::default();
    let denied = || json!({"path": "a", "n": 5, "other": null, "deep": {"x": 1, "y": 2}});
    let call = world.call("write_file", denied(), None);
    world.deny(&call);
    world.came(
        &call,
        Outcome::Error(ToolError::from_text("denied: a person refused")),
    );
    // The same call with another order of keys, another notation of the number, and without the null.
    let same = json!({"deep": {"y": 2, "x": 1}, "n": 5.0, "path": "a"});
    let again = world.call("write_file", same, None);
    assert!(world.ledger.progress.was_denied(&again));
    let other = world.call("write_file", json!({"path": "b", "n": 5}), None);
    assert!(!world.ledger.progress.was_denied(&other));
    let other = world.call("edit_file", denied(), None);
    assert!(!world.ledger.progress.was_denied(&other));
    // A retry does not lift the denial.
    world.add(Body::Retried { by: None });
    assert!(world.ledger.progress.was_denied(&again));
    for _ in 0..DENIED_REPEATS_MAX {
        assert_eq!(world.stuck(), None);
        let call = world.call("write_file", denied(), None);
        world.came(&call, Outcome::error(ToolErrorCode::Denied, DENIED_BEFORE));
    }
    assert_eq!(world.stuck(), Some(Stuck::DeniedCalls));
    world.user();
    assert_eq!(world.stuck(), None);
    assert!(!world.ledger.progress.was_denied(&again));
}

#[test]
fn calls_of_a_playbook_are_ignored() {
    let mut world = World::default();
    let mark = || {
        Some(Mark {
            path: "0".to_owned(),
            message: 0,
        })
    };
    for _ in 0..50 {
        let call = world.call("list_files", json!({}), mark());
        world.deny(&call);
        world.came(&call, Outcome::Error(ToolError::from_text("denied: no")));
    }
    let call = world.call("list_files", json!({}), mark());
    assert!(!world.ledger.progress.was_denied(&call));
    assert_eq!(world.stuck(), None);
}
