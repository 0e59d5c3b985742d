//! The time limit of one step of a run, which does not depend on its driver.

use std::time::Duration;

use errand_core::time::Timestamp;
use errand_core::turn::Move;
use errand_testkit::{Gate, Held, ScriptedModel, Team, TestApp, payment};
use serde_json::{Value, json};

const LIMIT_S: u64 = 3600;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn moment(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// The run once it has ended.
async fn ended(app: &TestApp, team: &Team, run: &str) -> Value {
    // The clock does not advance: the response arrives when the run ends.
    let got = app
        .get(&team.key, &format!("/v1/runs/{run}?wait_s=60"))
        .await
        .expect(200);
    assert!(got["run"]["completed_at"].is_string(), "{got:#}");
    got["run"].clone()
}

fn errors(messages: &[Value]) -> Vec<&str> {
    let error = |m: &'_ Value| m["tool_result"]["error"].is_string();
    messages
        .iter()
        .filter(|m| error(m))
        .map(|m| m["tool_result"]["error"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_model_that_hangs_ends_its_run_and_a_retry_goes_on() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let day = json!({"limits": {"seconds": 86_400}});
    let Held { run, gate, .. } = app.thinking_run(&team).build(day).held().await;
    let waits = app.get_run(&team, &run).await["run"]["waiting_on"].clone();
    assert_eq!(
        moment(&waits["deadline"]),
        app.now().plus_ms(LIMIT_S * 1000),
        "the earlier deadline is told"
    );
    app.clock().advance(seconds(LIMIT_S));
    let got = ended(&app, &team, &run).await;
    assert_eq!(got["status"], "failed");
    assert_eq!(got["error"]["code"], "step_timeout");
    let message = got["error"]["message"].as_str().unwrap();
    for part in [
        "3600 s",
        "engine.step_seconds_max",
        "the model",
        "a retry goes on from this step",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    app.settle().await;

    app.post(&team.key, &format!("/v1/runs/{run}/retry"), json!({}))
        .await
        .expect(200);
    gate.arrival().await;
    gate.open();
    assert_eq!(ended(&app, &team, &run).await["status"], "completed");
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_hanging_tool_fails_its_run_and_keeps_the_sandbox() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let twice = vec![vec![payment(1), payment(1)]];
    let held = app.paying_run(&team).turns(twice).in_sandbox();
    let Held {
        run, gate, body, ..
    } = held.held().await;
    app.clock().advance(seconds(LIMIT_S));
    let got = ended(&app, &team, &run).await;
    assert_eq!(got["error"]["code"], "step_timeout");
    let message = got["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("under way was the tool run_command"),
        "{message}"
    );
    let messages = app.messages(&team, &run).await;
    super::engine_life::assert_well_formed(&messages);
    let errors = errors(&messages);
    assert!(errors[0].starts_with("outcome_unknown"), "{errors:?}");
    assert!(errors[1].starts_with("not_run"), "{errors:?}");

    // The tool is still active in the sandbox, so the next run waits.
    let next = app.run(&team, body).await;
    let waits = app.get_run(&team, &next).await["run"]["waiting_on"].clone();
    assert_eq!(waits["kind"], "sandbox");
    app.payment.hold_at(None);
    gate.open();
    assert_eq!(ended(&app, &team, &next).await["status"], "completed");
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn many_short_steps_may_take_longer_in_sum() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let say = |n: u64| {
        vec![Move::Say {
            text: n.to_string(),
        }]
    };
    let long = app.thinking_run(&team).turns((0..8).map(say).collect());
    let Held { run, gate, .. } = long.started().await;
    for step in 0..8 {
        gate.arrival().await;
        let got = app.get_run(&team, &run).await["run"].clone();
        assert_eq!(
            moment(&got["waiting_on"]["deadline"]),
            app.now().plus_ms(LIMIT_S * 1000),
            "step {step}"
        );
        app.clock().advance(seconds(LIMIT_S - 1));
        gate.open();
    }
    gate.arrival().await;
    gate.open();
    assert_eq!(ended(&app, &team, &run).await["status"], "completed");
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn the_time_limit_that_ends_first_is_reported() {
    let app = TestApp::with_settings(&[("ERRAND_ENGINE__STEP_SECONDS_MAX", "60")]).await;
    let team = app.team("acme").await;
    for (working_time_s, ends_after_s, code) in [
        (61, 60, "step_timeout"),
        (60, 60, "limit_exceeded"),
        (59, 59, "limit_exceeded"),
    ] {
        let limits = json!({"limits": {"seconds": working_time_s}, "human_in_the_loop": false});
        let run = app.thinking_run(&team).build(limits).held().await.run;
        let waits = app.get_run(&team, &run).await["run"]["waiting_on"].clone();
        assert_eq!(
            moment(&waits["deadline"]),
            app.now().plus_ms(ends_after_s * 1000)
        );
        app.clock().advance(seconds(ends_after_s));
        let got = ended(&app, &team, &run).await;
        assert_eq!(got["error"]["code"], code, "{working_time_s}");
        app.settle().await;
    }
    app.finish().await;
}

/// Waits until a run has an open request, and returns it.
async fn asks(app: &TestApp, team: &Team, run: &str) -> Value {
    let path = format!("/v1/runs/{run}?wait_s=60");
    let got = app.get(&team.key, &path).await.expect(200);
    assert_eq!(got["run"]["status"], "waiting", "{got}");
    let request = got["pending_human_request"].clone();
    assert_eq!(request["type"], "approval");
    let title = request["title"].as_str().unwrap();
    assert_eq!(title, "Continue beyond the limit of active time?");
    request
}

#[tokio::test]
async fn a_run_at_its_active_time_limit_asks_to_continue() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let gate = Gate::default();
    app.model.add("slow", vec![]);
    app.model.hold_at(&gate);
    let config = ScriptedModel::config("slow", json!({"limits": {"seconds": 60}}));
    let agent = app.agent(&team, config).await;
    let mut ends = Vec::new();
    for approved in [true, false] {
        let run = app.run(&team, json!({"agent_id": agent})).await;
        gate.arrival().await;
        app.clock().advance(seconds(60));
        let request = asks(&app, &team, &run).await;
        let text = request["description"].as_str().unwrap();
        assert!(
            text.contains("60 s") && text.contains("limits.seconds"),
            "{text}"
        );
        app.settle().await;
        // Waiting does not count as active time.
        app.clock().advance(seconds(3_600));
        app.answer(&team, &run, json!({"approved": approved})).await;
        if approved {
            // It gets the same amount again, and asks again at its end.
            gate.arrival().await;
            app.clock().advance(seconds(59));
            assert_eq!(app.status(&team, &run).await, "running");
            app.clock().advance(seconds(1));
            asks(&app, &team, &run).await;
            app.settle().await;
            app.answer(&team, &run, json!({"approved": true})).await;
            gate.arrival().await;
            gate.open();
        }
        app.settle().await;
        ends.push(app.get_run(&team, &run).await["run"].clone());
    }
    assert_eq!(ends[0]["status"], "completed", "{}", ends[0]);
    assert_eq!(ends[1]["status"], "failed");
    assert_eq!(ends[1]["error"]["code"], "limit_exceeded");
    let message = ends[1]["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("no person allowed it to continue"),
        "{message}"
    );
    // A retry gives it its time, and it asks at the end.
    let run = ends[1]["id"].as_str().unwrap();
    let path = format!("/v1/runs/{run}/retry");
    app.post(&team.key, &path, json!({})).await.expect(200);
    gate.arrival().await;
    app.clock().advance(seconds(60));
    asks(&app, &team, run).await;
    // A message precedes the answer; there is no time for it either.
    let path = format!("/v1/runs/{run}/messages");
    let message = json!({"message": "Go on."});
    app.post(&team.key, &path, message).await.expect(201);
    asks(&app, &team, run).await;
    app.answer(&team, run, json!({"approved": true})).await;
    gate.arrival().await;
    gate.open();
    app.settle().await;
    assert_eq!(app.status(&team, run).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn the_active_time_limit_closes_a_call_in_progress() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let held = app.paying_run(&team).in_sandbox();
    let held = held.turns(vec![vec![payment(1), payment(1)]]);
    let minute = json!({"limits": {"seconds": 60}});
    let Held { run, gate, .. } = held.build(minute).held().await;
    app.clock().advance(seconds(60));
    asks(&app, &team, &run).await;
    app.answer(&team, &run, json!({"approved": true})).await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["waiting_on"]["kind"], "sandbox", "{got}");
    gate.open_for_good();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_eq!(app.payment.begun(), 1, "nothing is done twice");
    let messages = app.messages(&team, &run).await;
    let errors: Vec<_> = messages
        .iter()
        .filter_map(|m| m["tool_result"]["error"].as_str())
        .collect();
    assert!(
        errors[0].starts_with("outcome_unknown: the run's working time"),
        "{errors:?}"
    );
    assert!(errors[1].starts_with("not_run: "), "{errors:?}");
    let findings = app
        .store()
        .audit(errand_store::AuditScope::All, app.now())
        .await;
    assert!(findings.unwrap().is_empty());
    app.finish().await;
}
