//! After a crash, every active run continues by itself, and nothing is done twice without a person's approval.

use std::time::Duration;

use errand_core::turn::Move;
use errand_testkit::{Gate, ScriptedModel, TestApp, WebhookSink};
use serde_json::json;

use crate::engine_life::assert_well_formed;

fn pay() -> Vec<Vec<Move>> {
    vec![vec![Move::Call {
        id: None,
        name: "run_command".into(),
        arguments: json!({"eur": 7}).as_object().unwrap().clone(),
    }]]
}

#[tokio::test]
async fn a_run_that_was_at_work_goes_on() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let gate = Gate::default();
    app.model.add("slow", vec![]);
    app.model.hold_at(&gate);
    let agent = app
        .agent(&team, ScriptedModel::config("slow", json!({})))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    gate.arrival().await;
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
        let gate = Gate::default();
        app.model.add("pay", pay());
        app.payment.hold_at(Some(&gate));
        let agent = app
            .agent(&team, ScriptedModel::config("pay", json!({})))
            .await;
        let run = app.run(&team, json!({"agent_id": agent})).await;
        gate.arrival().await;
        app.crash().await;
        app.payment.hold_at(None);
        app.settle().await;
        assert_eq!(app.payment.begun(), 1);
        let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
        assert_eq!(pending["type"], "question");
        assert_eq!(pending["tool_call"]["arguments"], json!({"eur": 7}));
        let question = pending["questions"][0]["question"].as_str().unwrap();
        let path = format!(
            "/v1/runs/{run}/human-requests/{}/respond",
            pending["id"].as_str().unwrap()
        );
        app.post(&team.key, &path, json!({"answers": {question: answer}}))
            .await
            .expect(200);
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
    app.post(&team.key, &format!("/v1/runs/{first}/stop"), json!({}))
        .await
        .expect(200);
    let second = app.run(&team, body).await;
    app.settle().await;
    // The resume of the first run is stored, and waits for the sandbox.
    app.post(
        &team.key,
        &format!("/v1/runs/{first}/messages"),
        json!({"message": "go on"}),
    )
    .await
    .expect(201);
    app.settle().await;
    let got = app.get_run(&team, &first).await;
    assert_eq!(got["run"]["status"], "pending");
    assert_eq!(got["run"]["waiting_on"]["kind"], "sandbox");
    app.post(&team.key, &format!("/v1/runs/{second}/stop"), json!({}))
        .await
        .expect(200);
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
    let gate = Gate::default();
    app.model.add("pay", pay());
    app.payment.hold_at(Some(&gate));
    let agent = app
        .agent(&team, ScriptedModel::config("pay", json!({})))
        .await;
    let sandbox = app.sandbox(&team).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "sandbox_id": sandbox}))
        .await;
    gate.arrival().await;
    app.post(&team.key, &format!("/v1/runs/{run}/stop"), json!({}))
        .await
        .expect(200);
    let go_on = json!({"message": "go on"});
    app.post(&team.key, &format!("/v1/runs/{run}/messages"), go_on)
        .await
        .expect(201);
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "pending");
    assert_eq!(got["run"]["waiting_on"]["kind"], "sandbox");
    // Stopped again while it waits: the sandbox still belongs to the active driver.
    app.post(&team.key, &format!("/v1/runs/{run}/stop"), json!({}))
        .await
        .expect(200);
    let other = app
        .run(&team, json!({"agent_id": agent, "sandbox_id": sandbox}))
        .await;
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
    let gate = Gate::default();
    app.model.add("pay", pay());
    app.payment.hold_at(Some(&gate));
    let agent = app
        .agent(&team, ScriptedModel::config("pay", json!({})))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    gate.arrival().await;
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
    let gate = Gate::default();
    app.model.add("pay", pay());
    app.payment.hold_at(Some(&gate));
    let agent = app
        .agent(&team, ScriptedModel::config("pay", json!({})))
        .await;
    let sandbox = app.sandbox(&team).await;
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    let stopped = app.run(&team, body.clone()).await;
    gate.arrival().await;
    app.post(&team.key, &format!("/v1/runs/{stopped}/stop"), json!({}))
        .await
        .expect(200);
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
