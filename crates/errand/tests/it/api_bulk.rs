//! Stopping and retrying many runs in one call.

use std::time::Duration;

use errand_core::role::Role;
use errand_testkit::{Gate, Team, TestApp, WebhookSink};
use http::Method;
use serde_json::{Value, json};

/// Runs that wait for a person, created one second apart.
async fn waiting(app: &TestApp, team: &Team, agent: &str, n: usize) -> Vec<String> {
    let mut runs = Vec::new();
    for _ in 0..n {
        app.clock().advance(Duration::from_secs(1));
        runs.push(app.run(team, json!({"agent_id": agent})).await);
    }
    app.settle().await;
    runs
}

async fn asking(app: &TestApp, team: &Team) -> String {
    let steps = json!([{"approve": {"title": "Pay?"}}, {"finish": "done"}]);
    app.playbook(team, steps).await
}

async fn failing(app: &TestApp, team: &Team) -> String {
    app.playbook(team, json!([{"fail": "no"}])).await
}

async fn stop(app: &TestApp, team: &Team, body: Value) -> Value {
    app.post(&team.key, "/v1/runs/stop", body).await.expect(200)
}

async fn retry(app: &TestApp, team: &Team, body: Value) -> Value {
    app.post(&team.key, "/v1/runs/retry", body)
        .await
        .expect(200)
}

#[tokio::test]
async fn all_that_have_not_ended_are_stopped_each_as_by_itself() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let sink = WebhookSink::start().await;
    let agent = asking(&app, &team).await;
    let theirs = waiting(&app, &other, &asking(&app, &other).await, 1).await;
    let hooked = json!({"agent_id": agent, "webhook_url": sink.url()});
    let mut runs = vec![app.run(&team, hooked).await];
    runs.extend(waiting(&app, &team, &agent, 2).await);
    let failed = waiting(&app, &team, &failing(&app, &team).await, 1).await;
    let before = app.get_run(&team, &failed[0]).await;
    // One run is active, and one waits for its sandbox.
    let gate = Gate::default();
    app.payment.hold_at(Some(&gate));
    let pays = json!([{"tool": "run_command", "with": {"command": "pay"}}, {"finish": "x"}]);
    let pays = json!({"version": "v2", "data": {"tools": {"run_command": "allow"}, "playbook": {"steps": pays}}});
    let pays = app.agent(&team, pays).await;
    app.clock().advance(Duration::from_secs(1));
    runs.push(app.run(&team, json!({"agent_id": pays})).await);
    gate.arrival().await;

    let dry = stop(&app, &team, json!({"all": true, "dry_run": true})).await;
    let expected = |changed: usize| json!({"matched": 4, "changed": changed, "more": false, "runs": runs.clone()});
    assert_eq!(dry, expected(0));
    assert_eq!(app.status(&team, &runs[0]).await, "waiting");
    assert_eq!(stop(&app, &team, json!({"all": true})).await, expected(4));
    for run in &runs {
        let got = app.get_run(&team, run).await;
        assert_eq!(got["run"]["status"], "interrupted");
        assert_eq!(got["pending_human_request"], Value::Null);
        let messages = app.messages(&team, run).await;
        super::engine_life::assert_well_formed(&messages);
    }
    gate.open();
    sink.until(2).await;
    let events: Vec<_> = sink
        .received()
        .iter()
        .map(|h| h.json()["event"].clone())
        .collect();
    assert_eq!(events, ["human_request", "run_interrupted"]);
    assert_eq!(app.get_run(&team, &failed[0]).await, before);
    assert_eq!(app.status(&other, &theirs[0]).await, "waiting");
    let none = json!({"matched": 0, "changed": 0, "more": false, "runs": []});
    assert_eq!(stop(&app, &team, json!({"all": true})).await, none);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn failed_runs_are_retried_and_no_others() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    app.payment.fail_with(Some("refused: no money"));
    let steps = json!([{"tool": "run_command", "with": {"command": "pay"}}, {"finish": "paid"}]);
    let config = json!({"version": "v2", "data": {"tools": {"run_command": "allow"}, "playbook": {"steps": steps}}});
    let agent = app.agent(&team, config).await;
    let failed = waiting(&app, &team, &agent, 3).await;
    let waits = waiting(&app, &team, &asking(&app, &team).await, 1).await;
    app.payment.fail_with(None);
    let done = retry(&app, &team, json!({"status": ["failed"]})).await;
    assert_eq!(
        done,
        json!({"matched": 3, "changed": 3, "more": false, "runs": failed})
    );
    app.settle().await;
    for run in &failed {
        assert_eq!(app.status(&team, run).await, "completed");
    }
    assert_eq!(app.status(&team, &waits[0]).await, "waiting");
    assert_eq!(app.payment.begun(), 6);
    app.finish().await;
}

#[tokio::test]
async fn criteria_narrow_and_the_oldest_come_first() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (one, two) = (asking(&app, &team).await, asking(&app, &team).await);
    let first = waiting(&app, &team, &one, 2).await;
    let middle = app.now();
    let second = waiting(&app, &team, &two, 2).await;
    let third = waiting(&app, &team, &one, 2).await;
    let at = |seconds: u64| middle.plus_ms(seconds * 1000).to_string();
    let dry = async |mut body: Value| {
        body["dry_run"] = json!(true);
        stop(&app, &team, body).await
    };
    let found = async |body: Value| {
        let runs = dry(body).await["runs"].clone();
        serde_json::from_value::<Vec<String>>(runs).unwrap()
    };
    assert_eq!(found(json!({"agent_id": two})).await, second);
    assert_eq!(
        found(json!({"agent_id": one})).await,
        [first.clone(), third.clone()].concat()
    );
    assert_eq!(
        found(json!({"since": at(1), "until": at(3)})).await,
        second,
        "a moment that begins belongs to it, one that ends does not"
    );
    assert_eq!(found(json!({"agent_id": one, "since": at(1)})).await, third);
    assert_eq!(
        found(json!({"status": ["pending", "running"]})).await.len(),
        0
    );
    assert_eq!(
        found(json!({"status": ["pending", "waiting"]})).await.len(),
        6
    );
    assert_eq!(found(json!({"source": "api"})).await.len(), 6);
    assert_eq!(found(json!({"source": "schedule"})).await.len(), 0);
    assert_eq!(
        found(json!({"all": true, "agent_id": two})).await,
        second,
        "all beside a criterion does not widen it"
    );
    let limited = stop(&app, &team, json!({"all": true, "limit": 3})).await;
    let oldest = [first.clone(), second[..1].to_vec()].concat();
    assert_eq!(
        limited,
        json!({"matched": 3, "changed": 3, "more": true, "runs": oldest})
    );
    let rest = stop(&app, &team, json!({"all": true, "limit": 3})).await;
    assert_eq!(rest["more"], false);
    assert_eq!(rest["changed"], 3);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn bulk_calls_without_usable_criteria_are_refused() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let run = waiting(&app, &team, &asking(&app, &team).await, 1).await;
    let before = app.get_run(&team, &run[0]).await;
    let (early, late) = ("2026-11-23T09:00:00Z", "2026-11-23T10:00:00Z");
    for (path, body, part) in [
        ("stop", json!({}), "\"all\": true"),
        ("stop", json!({"all": false}), "\"all\": true"),
        (
            "stop",
            json!({"limit": 5, "dry_run": true}),
            "\"all\": true",
        ),
        (
            "retry",
            json!({}),
            "status, agent_id, source, since or until",
        ),
        ("stop", json!({"status": []}), "status: "),
        (
            "stop",
            json!({"status": ["waiting", "failed"]}),
            "one of pending, starting, running, waiting",
        ),
        (
            "stop",
            json!({"status": ["completed"]}),
            "one of pending, starting, running, waiting",
        ),
        (
            "retry",
            json!({"status": ["interrupted"]}),
            "must be one of failed",
        ),
        ("retry", json!({"status": "failed"}), "status: "),
        ("stop", json!({"source": "mail"}), "source: "),
        ("stop", json!({"agent_id": "x"}), "agent_id: "),
        ("stop", json!({"since": "yesterday"}), "since: "),
        ("stop", json!({"since": late, "until": early}), "until: "),
        ("stop", json!({"since": late, "until": late}), "until: "),
        ("stop", json!({"all": true, "limit": 0}), "limit: "),
        (
            "stop",
            json!({"all": true, "limit": 1001}),
            "from 1 to 1000",
        ),
        ("stop", json!({"all": true, "limit": -1}), "limit: "),
        ("stop", json!({"all": "yes"}), "all: "),
        (
            "stop",
            json!({"all": true, "statuses": ["waiting"]}),
            "did you mean \"status\"?",
        ),
    ] {
        let path = format!("/v1/runs/{path}");
        let reply = app.post(&team.key, &path, body.clone()).await;
        let (code, message) = reply.error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains(part), "{body}: {message}");
    }
    assert_eq!(app.get_run(&team, &run[0]).await, before);
    app.finish().await;
}

#[tokio::test]
async fn the_words_are_no_runs_and_runs_keep_their_own_paths() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let run = waiting(&app, &team, &asking(&app, &team).await, 1).await;
    for word in ["stop", "retry"] {
        let reply = app.get(&team.key, &format!("/v1/runs/{word}")).await;
        assert_eq!(reply.header("allow"), Some("POST"));
        reply.error(405);
        for rest in ["messages", "events"] {
            let path = format!("/v1/runs/{word}/{rest}");
            let (code, message) = app.get(&team.key, &path).await.error(400);
            assert_eq!(code, "bad_request");
            assert!(message.starts_with("run_id: "), "{message}");
        }
        let path = format!("/v1/runs/{word}/stop");
        app.post(&team.key, &path, json!({})).await.error(400);
    }
    let path = format!("/v1/runs/{}/stop", run[0]);
    app.post(&team.key, &path, json!({})).await.expect(200);
    assert_eq!(app.status(&team, &run[0]).await, "interrupted");
    app.finish().await;
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_changes_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = asking(&app, &team).await;
    let runs = waiting(&app, &team, &agent, 2).await;
    let key = [("idempotency-key", "stop-them")];
    let send = async |body: Value| {
        app.json(Method::POST, &team.key, "/v1/runs/stop", body, &key)
            .await
    };
    let first = send(json!({"all": true})).await;
    assert_eq!(first.expect(200)["runs"], json!(runs));
    let later = waiting(&app, &team, &agent, 1).await;
    let again = send(json!({"all": true})).await;
    assert_eq!(again.bytes, first.bytes);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(app.status(&team, &later[0]).await, "waiting");
    send(json!({"all": true, "limit": 1})).await.error(409);
    app.finish().await;
}

#[tokio::test]
async fn a_call_counts_as_one_and_takes_the_rights_of_the_single_one() {
    let app = TestApp::with_settings(&[("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "20")]).await;
    let team = app.team("acme").await;
    let (_, member) = app.person(&team, "m@acme.example", Role::Member).await;
    let runs = waiting(&app, &team, &asking(&app, &team).await, 5).await;
    let single = app
        .post(&member, &format!("/v1/runs/{}/stop", runs[0]), json!({}))
        .await;
    let left = |reply: &errand_testkit::Reply| -> u32 {
        reply
            .header("x-ratelimit-remaining")
            .unwrap()
            .parse()
            .unwrap()
    };
    let many = app
        .post(&member, "/v1/runs/stop", json!({"all": true}))
        .await;
    assert_eq!(many.status, single.status);
    assert_eq!(many.expect(200)["changed"], 4);
    assert_eq!(left(&many), left(&single) - 1);
    app.finish().await;
}
