//! After a crash, every active run continues by itself, and nothing is done twice without a person's approval.

use std::time::Duration;

use errand_testkit::{Held, TestApp, WebhookSink};
use serde_json::json;

use crate::engine_life::assert_well_formed;

#[tokio::test]
async fn a_run_that_was_at_work_goes_on() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).held().await;
    app.crash().await;
    gate.arrival().await;
    gate.open();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn a_call_in_doubt_asks_a_person_and_is_never_repeated() {
    for (answer, begun) in [("done", 1), ("skip", 1), ("not done, run it", 2)] {
        let mut app = TestApp::start().await;
        let team = app.team("acme").await;
        let run = app.paying_run(&team).held().await.run;
        app.crash().await;
        app.payment.hold_at(None);
        app.settle().await;
        assert_eq!(app.payment.begun(), 1);
        let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
        assert_eq!(pending["type"], "question");
        assert_eq!(pending["tool_call"]["arguments"], json!({"eur": 7}));
        let question = pending["questions"][0]["question"].as_str().unwrap();
        app.answer(&team, &run, json!({"answers": {question: answer}}))
            .await;
        app.settle().await;
        assert_eq!(app.payment.begun(), begun, "{answer}");
        assert_eq!(app.status(&team, &run).await, "completed");
        assert_well_formed(&app.messages(&team, &run).await);
        app.finish().await;
    }
}

#[tokio::test]
async fn a_graceful_stop_loses_nothing() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"for_each": "{{ range(20) }}", "steps": [{"tool": "write_file", "with": {"path": "{{ 'f%02d' | format(index) }}", "content": "x"}}]}]);
    let agent = app.playbook(&team, steps).await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(app.run(&team, json!({"agent_id": agent})).await);
    }
    app.stop_and_start().await;
    app.settle().await;
    for run in &runs {
        assert_eq!(app.status(&team, run).await, "completed");
        assert_well_formed(&app.messages(&team, run).await);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_webhook_that_fails_is_tried_again_under_the_same_id() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    sink.answer_with([500, 500]);
    let agent = app.playbook(&team, json!([{"finish": "x"}])).await;
    app.run(&team, json!({"agent_id": agent, "webhook_url": sink.url()}))
        .await;
    app.settle().await;
    sink.until(1).await;
    app.crash().await;
    for _ in 0..3 {
        app.advance(Duration::from_secs(300)).await;
    }
    let received = sink.received();
    assert_eq!(received.len(), 3);
    assert!(
        received
            .iter()
            .all(|r| r.id == received[0].id && r.body == received[0].body),
        "one id and one body at every attempt"
    );
    app.advance(Duration::from_secs(86_400)).await;
    assert_eq!(sink.received().len(), 3);
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_serves_one_run_at_a_time() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app
        .playbook(&team, json!([{"approve": {"title": "?"}}, {"finish": "x"}]))
        .await;
    let sandbox = app
        .post(&team.key, "/v1/sandboxes", json!({}))
        .await
        .expect(201)["sandbox_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    let first = app.run(&team, body.clone()).await;
    assert_eq!(
        app.post(&team.key, "/v1/runs", body.clone())
            .await
            .error(409)
            .0,
        "conflict"
    );
    app.settle().await;
    app.stop_run(&team, &first).await;
    let second = app.run(&team, body).await;
    app.settle().await;
    // The resume of the first run is stored, and waits for the sandbox.
    app.message(&team, &first, "go on").await;
    app.settle().await;
    let got = app.get_run(&team, &first).await;
    assert_eq!(got["run"]["status"], "pending");
    assert_eq!(got["run"]["waiting_on"]["kind"], "sandbox");
    app.stop_run(&team, &second).await;
    app.settle().await;
    assert_eq!(app.status(&team, &first).await, "waiting");
    app.finish().await;
}

#[tokio::test]
async fn a_stop_at_any_moment_gives_the_sandbox_back() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app
        .playbook(
            &team,
            json!([{"tool": "write_file", "with": {"path": "a", "content": "x"}}]),
        )
        .await;
    let sandbox = app.sandbox(&team).await;
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    for round in 0..60 {
        let run = app.run(&team, body.clone()).await;
        // Some stops happen before the claim, some between claim and first step, some later.
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        let stopped = app
            .post(&team.key, &format!("/v1/runs/{run}/stop"), json!({}))
            .await;
        stopped.expect(200);
    }
    let last = app.run(&team, body).await;
    app.settle().await;
    assert_eq!(app.status(&team, &last).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn a_resumed_run_waits_for_its_old_driver_to_leave() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let held = app.paying_run(&team).in_sandbox().held().await;
    let Held {
        run, gate, body, ..
    } = held;
    app.stop_run(&team, &run).await;
    let go_on = json!({"message": "go on"});
    app.post(&team.key, &format!("/v1/runs/{run}/messages"), go_on)
        .await
        .expect(201);
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "pending");
    assert_eq!(got["run"]["waiting_on"]["kind"], "sandbox");
    // Stopped again while it waits: the sandbox still belongs to the active driver.
    app.stop_run(&team, &run).await;
    let other = app.run(&team, body).await;
    assert_eq!(
        app.get_run(&team, &other).await["run"]["waiting_on"]["kind"],
        "sandbox"
    );
    app.payment.hold_at(None);
    gate.open();
    app.settle().await;
    assert_eq!(app.status(&team, &other).await, "completed");
    assert_eq!(app.payment.begun(), 2);
    app.finish().await;
}

#[tokio::test]
async fn a_step_that_outlasts_the_grace_is_cut_off_and_settled_later() {
    let mut app = TestApp::start().await;
    app.set("ERRAND_SERVER__SHUTDOWN_GRACE_S", "1");
    app.stop_and_start().await;
    let team = app.team("acme").await;
    let run = app.paying_run(&team).held().await.run;
    app.stop_and_start().await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(
        got["run"]["status"], "waiting",
        "a person is asked what became of the call"
    );
    assert_eq!(app.payment.begun(), 1);
    app.finish().await;
}

#[tokio::test]
async fn a_crash_while_a_driver_leaves_gives_the_sandbox_back() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let held = app.paying_run(&team).in_sandbox().held().await;
    let Held {
        run: stopped, body, ..
    } = held;
    app.stop_run(&team, &stopped).await;
    let waiting = app.run(&team, body).await;
    assert_eq!(
        app.get_run(&team, &waiting).await["run"]["waiting_on"]["kind"],
        "sandbox"
    );
    // The driver dies with its server, and never reports that it left.
    app.crash().await;
    app.payment.hold_at(None);
    app.settle().await;
    assert_eq!(app.status(&team, &stopped).await, "interrupted");
    assert_eq!(app.status(&team, &waiting).await, "completed");
    app.finish().await;
}
