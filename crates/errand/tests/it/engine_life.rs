//! The life of a run: states, messages, requests, stops, timers, as seen through the API.

use std::time::Duration;

use errand_core::turn::Move;
pub(crate) use errand_testkit::assert_well_formed;
use errand_testkit::{Gate, Held, ScriptedModel, Team, TestApp, WebhookSink, payment};
use serde_json::{Value, json};

fn kinds(messages: &[Value]) -> Vec<&str> {
    messages
        .iter()
        .map(|m| m["type"].as_str().unwrap())
        .collect()
}

fn call(name: &str, arguments: Value) -> Move {
    Move::Call {
        id: None,
        name: name.to_owned(),
        arguments: arguments.as_object().unwrap().clone(),
    }
}

#[tokio::test]
async fn a_plain_run_goes_from_pending_to_completed() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    let agent = app
        .playbook(
            &team,
            json!([
                {"tool": "write_file", "with": {"path": "/workspace/out.txt", "content": "hello {{ message }}"}},
                {"tool": "read_file", "with": {"path": "out.txt"}, "as": "text"},
                {"finish": "It says {{ text }}."}
            ]),
        )
        .await;
    let started = app
        .post(
            &team.key,
            "/v1/runs",
            json!({"agent_id": agent, "message": "world", "webhook_url": sink.url()}),
        )
        .await
        .expect(201);
    assert_eq!(started["run"]["status"], "pending");
    assert_eq!(started["run"]["sandbox_id"], Value::Null);
    let run = started["run"]["id"].as_str().unwrap();
    app.settle().await;

    let got = app.get_run(&team, run).await;
    assert_eq!(got["run"]["status"], "completed", "{got:#}");
    assert_eq!(got["run"]["waiting_on"], Value::Null);
    assert_eq!(got["run"]["usage"]["tool_calls"], 2);
    assert!(got["run"]["completed_at"].is_string());
    let messages = app.messages(&team, run).await;
    assert_eq!(
        kinds(&messages),
        [
            "text",
            "tool_call",
            "tool_result",
            "tool_call",
            "tool_result",
            "text"
        ]
    );
    assert_eq!(messages[5]["text_content"], "It says hello world.");
    assert_well_formed(&messages);

    sink.until(1).await;
    let hook = &sink.received()[0];
    assert_eq!(hook.json()["event"], "run_completed");
    assert_eq!(
        hook.json()["run"],
        got["run"],
        "the webhook holds the run as GET gives it"
    );
    let secret = app.get(&team.key, "/v1/webhook-secret").await.expect(200)["secret"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(hook.is_signed_by(&secret));
    app.finish().await;
}

#[tokio::test]
async fn an_approval_waits_and_a_second_answer_changes_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app
        .playbook(
            &team,
            json!([{"approve": {"title": "Pay?"}, "as": "ok"}, {"finish": "{{ ok.approved }}"}]),
        )
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "waiting");
    assert_eq!(got["run"]["waiting_on"]["kind"], "human");
    let request = got["pending_human_request"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
    let answered = app
        .post(
            &team.key,
            &path,
            json!({"approved": true, "reason": "fine"}),
        )
        .await
        .expect(200);
    assert_eq!(answered["human_request"]["response"], "approved");
    assert_eq!(answered["human_request"]["reason"], "fine");
    let (code, message) = app
        .post(&team.key, &path, json!({"approved": false}))
        .await
        .error(400);
    assert_eq!(code, "bad_request");
    assert!(message.contains("owner@acme.example"), "{message}");
    app.settle().await;
    let messages = app.messages(&team, &run).await;
    assert_eq!(messages.last().unwrap()["text_content"], "true");
    assert_eq!(
        app.post(&team.key, &path, json!({"approved": false}))
            .await
            .status,
        400
    );
    app.finish().await;
}

#[tokio::test]
async fn a_message_closes_a_request_and_resumes() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"approve": {"title": "Pay?"}, "as": "ok"}, {"finish": "{{ ok.message }} {{ message }}"}])).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let posted = app
        .post(
            &team.key,
            &format!("/v1/runs/{run}/messages"),
            json!({"message": "not yet"}),
        )
        .await
        .expect(201);
    assert_eq!(posted["message"]["role"], "user");
    app.settle().await;
    let messages = app.messages(&team, &run).await;
    assert_eq!(
        kinds(&messages),
        ["human_request", "human_response", "text", "text"]
    );
    assert_eq!(messages[3]["text_content"], "not yet not yet");
    assert_eq!(
        app.get_run(&team, &run).await["pending_human_request"],
        Value::Null
    );
    app.finish().await;
}

#[tokio::test]
async fn a_message_resumes_a_completed_run() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app
        .playbook(&team, json!([{"finish": "heard {{ message }}"}]))
        .await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "one"}))
        .await;
    app.settle().await;
    let first = app.get_run(&team, &run).await;
    app.message(&team, &run, "two").await;
    app.settle().await;
    let texts: Vec<_> = app
        .messages(&team, &run)
        .await
        .iter()
        .map(|m| m["text_content"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(texts, ["one", "heard one", "two", "heard two"]);
    assert_eq!(
        app.get_run(&team, &run).await["run"]["started_at"],
        first["run"]["started_at"],
        "started_at is the first start"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_message_to_a_failed_run_is_kept_and_a_retry_goes_on() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    app.payment.fail_with(Some("refused: no money"));
    let agent = app
        .agent(&team, json!({"version": "v2", "data": {"tools": {"run_command": "allow", "write_file": "allow"}, "playbook": {"steps": [
            {"tool": "write_file", "with": {"path": "a", "content": "x"}},
            {"tool": "run_command", "with": {"command": "pay"}},
            {"finish": "paid"}
        ]}}}))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "failed");
    assert_eq!(got["run"]["error"]["code"], "tool_failed");
    app.message(&team, &run, "hello?").await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "failed");

    app.payment.fail_with(None);
    app.post(&team.key, &format!("/v1/runs/{run}/retry"), json!({}))
        .await
        .expect(200);
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_eq!(app.payment.begun(), 2);
    let messages = app.messages(&team, &run).await;
    let writes = messages
        .iter()
        .filter(|m| m["tool_call"]["name"] == "write_file")
        .count();
    assert_eq!(
        writes, 1,
        "what was done before the failure is not done again"
    );
    assert_eq!(
        app.post(&team.key, &format!("/v1/runs/{run}/retry"), json!({}))
            .await
            .status,
        400
    );
    app.finish().await;
}

#[tokio::test]
async fn a_message_during_the_last_model_call_is_answered() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let finish = |text: &str| vec![Move::Finish { text: text.into() }];
    let held = app
        .thinking_run(&team)
        .turns(vec![finish("first"), finish("second")])
        .field("message", "hello");
    let Held { run, gate, .. } = held.held().await;
    app.message(&team, &run, "wait").await;
    gate.open();
    gate.arrival().await;
    assert_eq!(
        app.status(&team, &run).await,
        "running",
        "completed is refused while a later message stands unread"
    );
    gate.open();
    app.settle().await;
    let messages = app.messages(&team, &run).await;
    let texts: Vec<_> = messages
        .iter()
        .map(|m| m["text_content"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["hello", "wait", "first", "second"]);
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn a_stop_closes_a_tool_call_and_keeps_its_late_outcome() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let both = vec![vec![payment(1), payment(2)]];
    let Held { run, gate, .. } = app.paying_run(&team).turns(both).held().await;
    let stopped = app
        .post(&team.key, &format!("/v1/runs/{run}/stop"), json!({}))
        .await
        .expect(200);
    assert_eq!(stopped["success"], true);
    assert_eq!(app.status(&team, &run).await, "interrupted");
    let messages = app.messages(&team, &run).await;
    assert_well_formed(&messages);
    let errors: Vec<_> = messages
        .iter()
        .filter_map(|m| m["tool_result"]["error"].as_str())
        .collect();
    assert!(errors[0].starts_with("outcome_unknown"), "{errors:?}");
    assert!(errors[1].starts_with("not_run"), "{errors:?}");
    gate.open();
    app.settle().await;
    assert_eq!(app.payment.begun(), 1);
    let again = app
        .post(&team.key, &format!("/v1/runs/{run}/stop"), json!({}))
        .await
        .expect(200);
    assert_eq!(again["success"], true);
    assert_eq!(
        app.messages(&team, &run).await.len(),
        messages.len(),
        "a stop of an ended run leaves it as it is"
    );
    app.finish().await;
}

#[tokio::test]
async fn only_the_exact_approved_call_runs() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    app.model
        .add("pay", vec![vec![call("run_command", json!({"eur": 40}))]]);
    let agent = app
        .agent(
            &team,
            ScriptedModel::config("pay", json!({"tools": {"run_command": "ask"}})),
        )
        .await;
    for (approved, begun) in [(false, 0), (true, 1)] {
        let run = app.run(&team, json!({"agent_id": agent})).await;
        app.settle().await;
        let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
        assert_eq!(pending["type"], "approval");
        assert_eq!(pending["tool_call"]["arguments"], json!({"eur": 40}));
        assert_eq!(app.payment.begun(), 0);
        app.answer(&team, &run, json!({"approved": approved})).await;
        app.settle().await;
        assert_eq!(app.payment.begun(), begun);
        assert_eq!(app.status(&team, &run).await, "completed");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_timer_is_durable() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app
        .playbook(&team, json!([{"wait": "3d"}, {"finish": "late"}]))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "running");
    assert_eq!(got["run"]["waiting_on"]["kind"], "timer");
    app.crash().await;
    app.advance(Duration::from_secs(2 * 86_400)).await;
    assert_eq!(app.status(&team, &run).await, "running");
    app.advance(Duration::from_secs(86_400)).await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn requests_expire_as_the_build_says() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for (on_expire, status, text) in [
        ("deny", "completed", "denied"),
        ("continue", "completed", "expired"),
        ("fail", "failed", ""),
    ] {
        let agent = app
            .playbook(&team, json!([
                {"approve": {"title": "Pay?", "expires_in": "1h", "on_expire": on_expire}, "as": "ok"},
                {"finish": "expired", "if": format!("{{{{ '{on_expire}' == 'continue' and ok.expired }}}}")},
                {"finish": "denied", "if": "{{ not ok.approved }}"},
                {"finish": "approved"}
            ]))
            .await;
        let run = app.run(&team, json!({"agent_id": agent})).await;
        app.settle().await;
        assert!(app.get_run(&team, &run).await["pending_human_request"]["expires_at"].is_string());
        app.advance(Duration::from_secs(3600)).await;
        assert_eq!(app.status(&team, &run).await, status, "{on_expire}");
        if !text.is_empty() {
            assert_eq!(
                app.messages(&team, &run).await.last().unwrap()["text_content"],
                text
            );
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn active_time_is_limited_independently_of_the_driver() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let data = json!({"limits": {"seconds": 60}, "human_in_the_loop": false});
    let run = app.thinking_run(&team).build(data).held().await.run;
    app.advance(Duration::from_secs(61)).await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "failed");
    assert_eq!(got["run"]["error"]["code"], "limit_exceeded");
    app.finish().await;
}

async fn hold_runs(app: &TestApp, team: &Team, n: usize) -> Vec<String> {
    let agent = app
        .agent(team, ScriptedModel::config("held", json!({})))
        .await;
    let mut runs = Vec::new();
    for _ in 0..n {
        runs.push(app.run(team, json!({"agent_id": agent})).await);
    }
    runs
}

#[tokio::test]
async fn runs_share_slots_in_order_and_fairly_between_teams() {
    let app = TestApp::with_settings(&[("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "2")]).await;
    let (one, two) = (app.team("one").await, app.team("two").await);
    let gate = Gate::default();
    app.model.add("held", vec![]);
    app.model.hold_at(&gate);
    let first = hold_runs(&app, &one, 4).await;
    gate.arrival().await;
    gate.arrival().await;
    let second = hold_runs(&app, &two, 2).await;
    assert_eq!(app.status(&one, &first[2]).await, "pending");
    assert_eq!(
        app.get_run(&one, &first[2]).await["run"]["waiting_on"]["kind"],
        "place"
    );
    // Each freed slot goes to the team whose turn it is, not to the longest queue.
    gate.open();
    gate.arrival().await;
    assert_ne!(app.status(&two, &second[0]).await, "pending");
    assert_eq!(app.status(&one, &first[3]).await, "pending");
    for _ in 0..8 {
        gate.open();
    }
    app.settle().await;
    for run in &first {
        assert_eq!(app.status(&one, run).await, "completed");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_run_without_people_never_hangs() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    app.model.add(
        "ask",
        vec![vec![
            call("request_approval", json!({"title": "May I?"})),
            call("run_command", json!({})),
        ]],
    );
    let data = json!({"human_in_the_loop": false, "tools": {"run_command": "ask"}});
    let agent = app.agent(&team, ScriptedModel::config("ask", data)).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_eq!(app.payment.begun(), 0);
    let errors: Vec<_> = app
        .messages(&team, &run)
        .await
        .iter()
        .filter_map(|m| m["tool_result"]["error"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    app.finish().await;
}

#[tokio::test]
async fn an_answer_after_the_deadline_approves_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([
        {"approve": {"title": "Pay?", "expires_in": "1h"}, "as": "ok"},
        {"finish": "{{ ok.approved }}"}
    ]);
    let agent = app.playbook(&team, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
    app.clock().advance(Duration::from_secs(3600));
    let id = pending["id"].as_str().unwrap();
    let path = format!("/v1/runs/{run}/human-requests/{id}/respond");
    let (_, message) = app
        .post(&team.key, &path, json!({"approved": true}))
        .await
        .error(400);
    assert!(message.contains("expired"), "{message}");
    app.settle().await;
    assert_eq!(
        app.messages(&team, &run).await.last().unwrap()["text_content"],
        "false"
    );
    app.finish().await;
}
