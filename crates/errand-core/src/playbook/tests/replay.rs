//! A walk that is fed entry by entry decides the same as one that is fed the whole transcript at once.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Drive, Open};
use crate::human::{OnExpire, Resolution};
use crate::playbook::{Known, Playbook};
use crate::tool_error::ToolError;
use crate::transcript::{Body, Outcome};
use crate::turn::Move;

/// Expressions, some of which fail in some places.
fn expression() -> impl Strategy<Value = String> {
    let known = [
        "a",
        "b",
        "message",
        "messages | length",
        "item",
        "index",
        "[a, b]",
        "messages",
        "run.id",
        "range(3)",
        "a == b",
        "message == 'm1'",
    ];
    (0..known.len()).prop_map(move |n| format!("{{{{ {} }}}}", known[n]))
}

fn step() -> impl Strategy<Value = Value> {
    let name = || prop::sample::select(vec!["a", "b"]);
    let on_error = any::<bool>();
    let leaf = prop_oneof![
        3 => (expression(), name(), on_error).prop_map(|(x, name, goes_on)| {
            let mut step = json!({"tool": "t", "with": {"x": x}, "as": name});
            if goes_on {
                step["on_error"] = json!("continue");
            }
            step
        }),
        2 => (expression(), name()).prop_map(|(x, name)| json!({"set": {name: x}})),
        2 => expression().prop_map(|x| json!({"say": format!("says {x}")})),
        1 => (expression(), name()).prop_map(|(x, name)| json!({"approve": {"title": format!("T {x}")}, "as": name})),
        1 => name().prop_map(|name| json!({"ask": {"title": "T", "questions": [{"question": "Q"}]}, "as": name})),
        1 => Just(json!({"wait": "1s"})),
        1 => expression().prop_map(|x| json!({"fail": format!("fails {x}")})),
        1 => expression().prop_map(|x| json!({"finish": format!("ends {x}")})),
    ];
    let nested = leaf.prop_recursive(3, 24, 4, move |inner| {
        let list = prop_oneof![
            expression().prop_map(Value::from),
            Just(json!([1, 2])),
            Just(json!(["m1"]))
        ];
        (list, prop::collection::vec(inner, 1..4), name())
            .prop_map(|(list, steps, name)| json!({"for_each": list, "steps": steps, "as": name}))
    });
    let condition = prop_oneof![4 => Just(None), 1 => expression().prop_map(Some), 2 => Just(Some("{{ message != 'm1' }}".to_owned()))];
    (nested, condition).prop_map(|(mut step, condition)| {
        if let Some(condition) = condition {
            step["if"] = json!(condition);
        }
        step
    })
}

fn playbook() -> impl Strategy<Value = Value> {
    // `a` and `b` are defined from the beginning, so that most walks get far.
    prop::collection::vec(step(), 1..7).prop_map(|mut steps| {
        steps.insert(0, json!({"set": {"a": 1, "b": "m1"}}));
        json!({ "steps": steps })
    })
}

fn outcome(chance: u8) -> Outcome {
    match chance % 5 {
        0 => Outcome::Error(ToolError::from_text("boom")),
        1 => Outcome::Result(json!([1, "two"])),
        2 => Outcome::Result(json!("m1")),
        3 => Outcome::Result(json!(1)),
        _ => Outcome::Result(json!({"k": null})),
    }
}

fn resolution(chance: u8) -> Resolution {
    match chance % 5 {
        0 => Resolution::Expired {
            on_expire: OnExpire::Deny,
        },
        1 => Resolution::Message {
            text: "m2".to_owned(),
        },
        2 => Resolution::Denied { reason: None },
        3 => Resolution::Expired {
            on_expire: OnExpire::Fail,
        },
        _ => Resolution::Approved { reason: None },
    }
}

/// One turn: a message before the decision, one after it, the outcome, and what follows.
fn turn(drive: &mut Drive, [before, between, what, after]: [u8; 4]) {
    if before % 5 == 0 {
        drive.user(&format!("m{}", before % 3));
    }
    let decided = drive.next();
    if between % 4 == 0 {
        drive.user(&format!("m{}", between % 3));
        if between % 8 == 0 {
            // The process dies before the commit, so the decision is lost.
            return;
        }
    }
    let ends = matches!(decided.action, Move::Finish { .. });
    let fails = matches!(decided.action, Move::Fail { .. });
    let mut lapsed = false;
    match drive.record(decided) {
        Some(Open::Call(id)) => drive.settle(&id, outcome(what)),
        Some(Open::Request(request)) => {
            let resolution = resolution(what);
            lapsed = resolution
                == Resolution::Expired {
                    on_expire: OnExpire::Fail,
                };
            drive.resolve(request.id, resolution);
        }
        None => {}
    }
    if after % 9 == 0 && !ends && !fails && !lapsed {
        drive.push(Body::Interrupted { by: None });
        drive.user("m0");
    } else if ends {
        drive.user(&format!("m{}", after % 3));
    } else if fails || lapsed {
        if after % 2 == 0 {
            drive.user(&format!("m{}", after % 3));
        }
        drive.push(Body::Retried { by: None });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_and_full_replay_decide_the_same(steps in playbook(), chances in prop::collection::vec(any::<[u8; 4]>(), 1..25)) {
        let known = Known { tool: &|_| Ok(()), human_in_the_loop: true };
        let mut drive = Drive::of(Playbook::parse(&steps, &known).unwrap());
        drive.user("m0");
        for chance in chances {
            // `Drive::next` asks twice, and asks a fresh walk.
            turn(&mut drive, chance);
        }
        // No walk has reached a state that its own transcript does not lead to.
        let Move::Fail { message, .. } = drive.next().action else { return Ok(()) };
        prop_assert!(!message.contains("does not lead there"), "{message}");
    }

    #[test]
    fn a_fresh_walk_repeats_every_recorded_decision(steps in playbook(), chances in prop::collection::vec(any::<[u8; 4]>(), 1..25)) {
        let known = Known { tool: &|_| Ok(()), human_in_the_loop: true };
        let mut drive = Drive::of(Playbook::parse(&steps, &known).unwrap());
        drive.user("m0");
        for [_, _, what, _] in chances {
            let decided = drive.next();
            if matches!(decided.action, Move::Finish { .. } | Move::Fail { .. }) {
                break;
            }
            // Restart at each step: only the transcript is kept.
            drive.walk = drive.fresh();
            match drive.record(decided) {
                Some(Open::Call(id)) => drive.settle(&id, outcome(what)),
                Some(Open::Request(request)) => drive.resolve(request.id, resolution(what)),
                None => {}
            }
        }
        drive.next();
    }
}
