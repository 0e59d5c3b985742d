//! A property: whatever a provider answers, a run ends, waits for a person, or makes progress within its limits, and
//! the number of calls is bounded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use errand_core::limits::MODEL_CALLS_DEFAULT_MAX;
use errand_store::AuditScope;
use errand_testkit::providers::{Answer, Fault, UsageForm};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::models::World;
use crate::models_progress::local;

/// A model of each wire format, with two sizes of windows: one that is ample, and one that fills up quickly.
const MODELS: [&str; 6] = [
    "anthropic/claude-test",
    "openai/gpt-test",
    "gemini/gemini-test",
    "anthropic/claude-small",
    "openai/gpt-small",
    "gemini/gemini-small",
];

/// A provider's reaction to one request.
#[derive(Clone, Debug)]
enum Reply {
    Text,
    Nothing,
    Cut(bool),
    List,
    Write { bytes: usize, varies: bool },
    ReadMissing(bool),
    Unknown { text: bool },
    BadArguments,
    Ask,
    Ending(&'static str),
    Refusal,
    Fault(u8),
}

fn replies() -> impl Strategy<Value = Vec<(Reply, usize)>> {
    let ending = prop_oneof![
        Just("refusal"),
        Just("content_filter"),
        Just("SAFETY"),
        Just("tool_calls"),
        Just("tool_use"),
        Just("MALFORMED_FUNCTION_CALL"),
        Just("OTHER"),
        Just("pause_turn"),
        Just("error"),
        Just("model_context_window_exceeded"),
    ];
    let reply = prop_oneof![
        1 => Just(Reply::Text),
        2 => Just(Reply::Nothing),
        3 => any::<bool>().prop_map(Reply::Cut),
        3 => Just(Reply::List),
        4 => (prop_oneof![Just(1), Just(3_000), Just(90_000)], any::<bool>())
            .prop_map(|(bytes, varies)| Reply::Write { bytes, varies }),
        2 => any::<bool>().prop_map(Reply::ReadMissing),
        2 => any::<bool>().prop_map(|text| Reply::Unknown { text }),
        1 => Just(Reply::BadArguments),
        1 => Just(Reply::Ask),
        1 => ending.prop_map(Reply::Ending),
        1 => Just(Reply::Refusal),
        2 => (0..6_u8).prop_map(Reply::Fault),
    ];
    // Each reply has the index of the form in which usage is reported.
    prop::collection::vec((reply, 0..UsageForm::ALL.len()), 1..6)
}

fn answer(reply: &Reply, n: usize, gemini: bool) -> Answer {
    match reply {
        Reply::Text | Reply::Fault(_) => Answer::text("It is done."),
        Reply::Nothing => Answer::nothing(),
        Reply::Cut(varies) => {
            let n = if *varies { n } else { 0 };
            Answer::text(&format!("More and more, {n}. ")).cut()
        }
        Reply::List => Answer::call("list_files", json!({})),
        Reply::Write { bytes, varies } => {
            let n = if *varies { n } else { 0 };
            let content = format!("{n} {}", "x".repeat(*bytes));
            Answer::call(
                "write_file",
                json!({"path": "/workspace/a.txt", "content": content}),
            )
        }
        Reply::ReadMissing(varies) => {
            let n = if *varies { n } else { 0 };
            Answer::call("read_file", json!({"path": format!("/workspace/no/{n}")}))
        }
        Reply::Unknown { text } => {
            let text = if *text { "I make coffee." } else { "" };
            Answer::text(text).and_call("make_coffee", json!({"cup": n}))
        }
        Reply::BadArguments if !gemini => Answer::text("").and_raw_call("read_file", "{\"path\": "),
        Reply::BadArguments => Answer::call("read_file", json!({"path": 7})),
        Reply::Ask => Answer::call("request_approval", json!({"title": "May I?"})),
        Reply::Ending(word) => Answer::text("I started to say").ending(word),
        Reply::Refusal => Answer::text("I can't assist with that.").as_refusal(),
    }
}

fn fault(n: u8) -> Fault {
    match n {
        0 => Fault::Status(500),
        1 => Fault::Status(400),
        2 => Fault::Cut(2),
        3 => Fault::Short(2),
        4 => Fault::BadJson,
        _ => Fault::ErrorEvent("overloaded_error"),
    }
}

/// A run: its model, the model's repeated replies, whether people can be asked, and how often they approve.
#[derive(Clone, Debug)]
struct Case {
    model: usize,
    replies: Vec<(Reply, usize)>,
    people: bool,
    approvals: usize,
}

fn case() -> impl Strategy<Value = Case> {
    (0..MODELS.len(), replies(), any::<bool>(), 0..3_usize).prop_map(
        |(model, replies, people, approvals)| Case {
            model,
            replies,
            people,
            approvals,
        },
    )
}

/// Maximum number of calls until the run ends or waits: the counted ones, and attempts without usage, of which only a
/// limited number can follow each other.
fn most_calls(case: &Case) -> usize {
    let counted = MODEL_CALLS_DEFAULT_MAX as usize * (1 + case.approvals);
    let faults = case
        .replies
        .iter()
        .filter(|(reply, _)| matches!(reply, Reply::Fault(_)));
    let faults = faults.count();
    // Some replies in the cycle are faults; if all are, `models.attempts` ends the run.
    let others = case.replies.len() - faults;
    if others == 0 {
        return 12 * (1 + case.approvals);
    }
    counted + counted * faults / others + faults
}

async fn goes_as_promised(world: &World, case: &Case) {
    let model = MODELS[case.model];
    let data = json!({"human_in_the_loop": case.people});
    let before = world.server.asked().len();
    let most = most_calls(case);
    let run = world.run(model, data, "Do it.").await;
    let mut approvals = case.approvals;
    let mut end = Value::Null;
    // Each round ends the pause of an attempt, or answers a request.
    for _ in 0..=2 * most {
        let got = world.app.get_run(&world.team, &run).await;
        let calls = world.server.asked().len() - before;
        assert!(calls <= most, "{calls} of {most} calls: {case:?}");
        match got["run"]["status"].as_str().unwrap() {
            "running" => {
                assert_eq!(got["run"]["waiting_on"]["kind"], "retry", "{got}");
                world.app.advance(Duration::from_secs(61)).await;
            }
            "waiting" if approvals > 0 => {
                approvals -= 1;
                respond(world, &run, &got, true).await;
            }
            status => {
                end = json!(status);
                break;
            }
        }
    }
    let ends = ["completed", "failed", "waiting"];
    assert!(ends.iter().any(|of| end == *of), "{end}: {case:?}");
    assert!(case.people || end != "waiting", "{case:?}");
    // No paid usage is lost: each answer and each attempt is recorded.
    let path = format!("/v1/runs/{run}/model-calls");
    let calls = world.app.get(&world.team.key, &path).await.expect(200);
    let listed = calls["model_calls"].as_array().unwrap().len();
    assert_eq!(listed, world.server.asked().len() - before, "{case:?}");
}

async fn respond(world: &World, run: &str, got: &Value, approved: bool) {
    let request = got["pending_human_request"]["id"].as_str().unwrap();
    let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
    let body = json!({"approved": approved});
    world
        .app
        .post(&world.team.key, &path, body)
        .await
        .expect(200);
    world.app.settle().await;
}

/// The replies of each model, and the index of the next one.
type Desk = Arc<Mutex<HashMap<String, (Vec<(Reply, usize)>, usize)>>>;

fn check(cases: &[Case]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let windows =
            "[models.windows]\nclaude-small = 4000\ngpt-small = 4000\ngemini-small = 4000\n";
        let world = local(windows).await;
        let desk = Desk::default();
        let (of_answers, of_faults) = (Arc::clone(&desk), Arc::clone(&desk));
        world.server.answer_by(move |asked| {
            let mut desk = of_answers.lock().unwrap();
            let (replies, n) = desk.get_mut(&asked.model).expect("a model of the test");
            let (reply, form) = &replies[*n % replies.len()];
            let gemini = asked.model.starts_with("gemini");
            let answer = answer(reply, *n, gemini).with_usage(UsageForm::ALL[*form]);
            *n += 1;
            let bytes = asked.body.to_string().len() as u64;
            answer.with_tokens(bytes / 4, 0, 0, 50)
        });
        world.server.fail_by(move |asked| {
            let desk = of_faults.lock().unwrap();
            let (replies, n) = desk.get(&asked.model)?;
            // The answer was created in advance.
            match &replies[(*n - 1) % replies.len()] {
                (Reply::Fault(kind), _) => Some(fault(*kind)),
                _ => None,
            }
        });
        for case in cases {
            let name = MODELS[case.model].split_once('/').unwrap().1;
            {
                let mut next = desk.lock().unwrap();
                next.insert(name.to_owned(), (case.replies.clone(), 0));
            }
            goes_as_promised(&world, case).await;
        }
        let broken = world
            .app
            .store()
            .audit(AuditScope::All, world.app.now())
            .await
            .unwrap();
        assert!(broken.is_empty(), "{broken:?}");
        world.app.finish().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 12, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_provider_answers_calls_are_bounded(cases in prop::collection::vec(case(), 5)) {
        check(&cases);
    }
}
