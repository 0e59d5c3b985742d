//! No sequence of calls reaches a state or a response that the contract does not permit.

use std::time::Duration;

use errand_store::AuditScope;
use errand_testkit::{Team, TestApp};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::engine_life::assert_well_formed;

#[derive(Clone, Debug)]
enum Act {
    Message(&'static str),
    Approve,
    Deny,
    Answer,
    AnswerAnother,
    Stop,
    Retry,
    Advance(u64),
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => prop_oneof![Just(Act::Message("go")), Just(Act::Message("fail"))],
        3 => Just(Act::Approve),
        1 => Just(Act::Deny),
        3 => Just(Act::Answer),
        1 => Just(Act::AnswerAnother),
        2 => Just(Act::Stop),
        2 => Just(Act::Retry),
        2 => prop_oneof![Just(Act::Advance(30)), Just(Act::Advance(7200))],
        1 => Just(Act::Crash),
    ];
    prop::collection::vec(act, 1..14)
}

fn steps() -> Value {
    json!([
        {"fail": "as asked", "if": "{{ message == 'fail' }}"},
        {"tool": "write_file", "with": {"path": "a.txt", "content": "{{ message }}"}},
        {"approve": {"title": "May I?", "expires_in": "1h"}, "as": "ok"},
        {"wait": "1m"},
        {"ask": {"title": "Which?", "questions": [{"question": "Which?", "options": [{"label": "A"}, {"label": "B"}]}]}, "as": "which"},
        {"tool": "read_file", "with": {"path": "a.txt"}, "as": "text"},
        {"finish": "{{ text }}"}
    ])
}

/// The statuses that a settled run can have after an action, given the previous one.
fn allowed(before: &str, act: &Act, answered: u16) -> &'static [&'static str] {
    // The possible statuses of an active run once it settles: waiting for a person or a timer, or ended.
    const ON_ITS_WAY: &[&str] = &["waiting", "running", "completed", "failed"];
    const SAME_OR_ON: &[&str] = &["waiting", "running", "completed", "failed", "interrupted"];
    match (before, act) {
        ("failed", Act::Retry) => ON_ITS_WAY,
        ("failed", _) => &["failed"],
        ("completed", Act::Message(_)) | ("interrupted", Act::Message(_)) => ON_ITS_WAY,
        ("completed", _) => &["completed"],
        ("interrupted", _) => &["interrupted"],
        (_, Act::Stop) => &["interrupted"],
        ("waiting", Act::Approve | Act::Deny | Act::Answer) if answered != 200 => &["waiting"],
        ("waiting", Act::AnswerAnother | Act::Retry | Act::Crash) => &["waiting"],
        (
            "running",
            Act::Approve
            | Act::Deny
            | Act::Answer
            | Act::AnswerAnother
            | Act::Retry
            | Act::Crash
            | Act::Message(_),
        ) => &["running"],
        ("waiting" | "running", _) => ON_ITS_WAY,
        _ => SAME_OR_ON,
    }
}

async fn perform(app: &mut TestApp, team: &Team, run: &str, act: &Act, before: &Value) -> u16 {
    let path = |rest: &str| format!("/v1/runs/{run}{rest}");
    let pending = before["pending_human_request"]["id"]
        .as_str()
        .unwrap_or("01999999-0000-7000-8000-000000000000")
        .to_owned();
    let respond = |id: &str| path(&format!("/human-requests/{id}/respond"));
    let (path, body) = match act {
        Act::Message(text) => (path("/messages"), json!({"message": text})),
        Act::Approve => (respond(&pending), json!({"approved": true})),
        Act::Deny => (respond(&pending), json!({"approved": false})),
        Act::Answer => (respond(&pending), json!({"answers": {"Which?": "A"}})),
        Act::AnswerAnother => (
            respond("01999999-0000-7000-8000-000000000001"),
            json!({"approved": true}),
        ),
        Act::Stop => (path("/stop"), json!({})),
        Act::Retry => (path("/retry"), json!({})),
        Act::Advance(seconds) => {
            app.advance(Duration::from_secs(*seconds)).await;
            return 200;
        }
        Act::Crash => {
            app.crash().await;
            return 200;
        }
    };
    app.post(&team.key, &path, body).await.status
}

fn check_answer(before: &Value, act: &Act, answered: u16) {
    let status = before["run"]["status"].as_str().unwrap();
    let pending = &before["pending_human_request"]["type"];
    let expected: &[u16] = match act {
        Act::Message(_) => &[201],
        Act::Approve | Act::Deny => {
            if pending == "approval" {
                &[200]
            } else {
                &[400, 404]
            }
        }
        Act::Answer => {
            if pending == "question" {
                &[200]
            } else {
                &[400, 404]
            }
        }
        Act::AnswerAnother => &[404],
        Act::Retry => {
            if status == "failed" {
                &[200]
            } else {
                &[400]
            }
        }
        Act::Stop | Act::Advance(_) | Act::Crash => &[200],
    };
    assert!(
        expected.contains(&answered),
        "{act:?} of a run that is {status} with {pending} pending answered {answered}"
    );
}

fn check_run(got: &Value) {
    let (run, pending) = (&got["run"], &got["pending_human_request"]);
    let status = run["status"].as_str().unwrap();
    assert_eq!(status == "waiting", !pending.is_null(), "{got:#}");
    let ended = matches!(status, "completed" | "failed" | "interrupted");
    assert_eq!(ended, run["completed_at"].is_string(), "{got:#}");
    assert_eq!(
        ended,
        run["waiting_on"].is_null(),
        "a run that has not ended says what it waits for: {got:#}"
    );
    assert_eq!(status == "failed", !run["error"].is_null(), "{got:#}");
}

async fn play(acts: Vec<Act>) {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, steps()).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "begin"}))
        .await;
    app.settle().await;
    let mut transcript = app.messages(&team, &run).await;
    for act in acts {
        let before = app.get_run(&team, &run).await;
        let answered = perform(&mut app, &team, &run, &act, &before).await;
        check_answer(&before, &act, answered);
        app.settle().await;
        let after = app.get_run(&team, &run).await;
        check_run(&after);
        let (from, to) = (
            before["run"]["status"].as_str().unwrap(),
            after["run"]["status"].as_str().unwrap(),
        );
        assert!(
            allowed(from, &act, answered).contains(&to),
            "{act:?} (answered {answered}) led from {from} to {to}"
        );
        let messages = app.messages(&team, &run).await;
        assert_eq!(
            messages[..transcript.len()],
            transcript[..],
            "a transcript only grows"
        );
        if matches!(to, "completed" | "failed" | "interrupted") {
            assert_well_formed(&messages);
        }
        transcript = messages;
        let found = app.store().audit(AuditScope::All, app.now()).await.unwrap();
        assert!(found.is_empty(), "after {act:?}: {found:#?}");
    }
    app.finish().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_calls_leaves_the_contract(acts in acts()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(play(acts));
    }
}
