//! `errand runs repair`, through the admin socket: a damaged or stuck run continues, ends, or continues as another run.

use errand::admin::socket::{AdminSocket, SocketError, call};
use errand::admin::{Admin, AdminAnswer, AdminRequest, RepairLine, RepairWay};
use errand_core::id::IdGen;
use errand_store::AuditScope;
use errand_testkit::{Held, Team, TestApp, WebhookSink};
use serde_json::json;

use crate::engine_life::assert_well_formed;

/// Repairs like the command beside a server, with a call of its admin socket.
async fn repair(app: &TestApp, run: &str, way: RepairWay) -> Result<RepairLine, String> {
    let store = app.store().clone();
    let admin = Admin::new(store, [5; 32], app.clock().clone(), app.url().to_owned());
    let socket = AdminSocket::start(app.dir(), admin).unwrap();
    let run = run.to_owned();
    let answer = call(app.dir(), &AdminRequest::Repair { run, way }).await;
    socket.shut_down().await;
    match answer {
        Ok(AdminAnswer::Repaired { repaired }) => Ok(repaired),
        Ok(_) => panic!("an unexpected response"),
        Err(SocketError::Refused(why)) => Err(why),
        Err(error) => panic!("{error}"),
    }
}

async fn assert_sound(app: &TestApp, team: &Team, run: &str) {
    assert_well_formed(&app.messages(team, run).await);
    let found = app.store().audit(AuditScope::All, app.now()).await.unwrap();
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn a_run_without_a_driver_continues() {
    let app = TestApp::with_settings(&[("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "1")]).await;
    let team = app.team("acme").await;
    let Held { gate, body, .. } = app.thinking_run(&team).held().await;
    // It waits for the only slot. It is claimed, and its driver has disappeared without a report.
    let run = app.run(&team, body).await;
    let token = IdGen::new([6; 32]).claim_token(app.now());
    let step_deadline = app.now().plus_ms(3_600_000);
    let claimed = app
        .store()
        .claim(vec![token], None, step_deadline, app.now())
        .await
        .unwrap();
    let claimed: Vec<_> = claimed
        .runs
        .iter()
        .map(|c| c.ready.run.to_string())
        .collect();
    assert_eq!(claimed, [run.as_str()]);

    let repaired = repair(&app, &run, RepairWay::Resume).await.unwrap();
    assert_eq!(repaired.waits_for.as_deref(), Some("place"));
    assert!(
        repaired.sentence.contains("as soon as"),
        "{}",
        repaired.sentence
    );
    gate.open();
    gate.open();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_sound(&app, &team, &run).await;
    app.finish().await;
}

#[tokio::test]
async fn a_run_is_taken_from_a_driver_that_waits_for_its_model() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).held().await;
    let repaired = repair(&app, &run, RepairWay::Resume).await.unwrap();
    assert!(
        repaired
            .sentence
            .starts_with("The run was taken from its driver.")
    );
    // Another driver reaches the model.
    gate.arrival().await;
    gate.open();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_sound(&app, &team, &run).await;
    app.finish().await;
}

#[tokio::test]
async fn a_person_settles_the_call_of_a_stuck_tool() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let held = app.paying_run(&team).in_sandbox().held().await;
    let Held { run, gate, .. } = held;
    let repaired = repair(&app, &run, RepairWay::Resume).await.unwrap();
    assert_eq!(repaired.waits_for.as_deref(), Some("sandbox"));
    let waiting = app.get_run(&team, &run).await;
    assert_eq!(waiting["run"]["waiting_on"]["kind"], "sandbox");
    app.payment.hold_at(None);
    gate.open();
    app.settle().await;
    // The driver has left, and nothing is paid again without a question.
    assert_eq!(app.payment.begun(), 1);
    let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
    let question = pending["questions"][0]["question"].as_str().unwrap();
    app.answer(&team, &run, json!({"answers": {question: "done"}}))
        .await;
    app.settle().await;
    assert_eq!(app.payment.begun(), 1);
    assert_eq!(app.status(&team, &run).await, "completed");
    assert_sound(&app, &team, &run).await;
    app.finish().await;
}

#[tokio::test]
async fn a_run_that_is_ended_tells_its_webhook_and_can_be_retried() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sink = WebhookSink::start().await;
    let steps = json!([{"approve": {"title": "May I?"}, "as": "ok"}, {"finish": "x"}]);
    let agent = app.playbook(&team, steps).await;
    let start = json!({"agent_id": agent, "webhook_url": sink.url()});
    let run = app.run(&team, start).await;
    app.settle().await;
    let repaired = repair(&app, &run, RepairWay::Fail).await.unwrap();
    assert_eq!(repaired.waits_for, None);
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "failed");
    assert_eq!(got["run"]["error"]["code"], "repaired");
    assert!(got["pending_human_request"].is_null());
    assert_eq!(sink.received().len(), 2, "the request and the end");
    let again = repair(&app, &run, RepairWay::Fail).await.unwrap();
    assert!(
        again.sentence.contains("was not changed"),
        "{}",
        again.sentence
    );

    // Repaired again, it is retried and asks again.
    repair(&app, &run, RepairWay::Resume).await.unwrap();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "waiting");
    assert_sound(&app, &team, &run).await;
    app.finish().await;
}

#[tokio::test]
async fn a_fork_of_a_completed_run_has_its_transcript_and_files() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([
        {"tool": "write_file", "with": {"path": "a.txt", "content": "{{ message }}"}},
        {"approve": {"title": "May I?"}, "as": "ok"},
        {"tool": "read_file", "with": {"path": "a.txt"}, "as": "text"},
        {"finish": "{{ text }}"}
    ]);
    let agent = app.playbook(&team, steps).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "first"}))
        .await;
    app.settle().await;
    app.answer(&team, &run, json!({"approved": true})).await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    let messages = app.messages(&team, &run).await;

    let forked = repair(&app, &run, RepairWay::Fork).await.unwrap();
    assert_ne!(forked.run_id, run);
    let new = forked.run_id;
    app.settle().await;
    let texts = |messages: &[serde_json::Value]| -> Vec<serde_json::Value> {
        let text = |m: &serde_json::Value| {
            json!([
                m["type"],
                m["text_content"],
                m["timestamp"],
                m["tool_result"]
            ])
        };
        messages.iter().map(text).collect()
    };
    let copies = app.messages(&team, &new).await;
    assert_eq!(texts(&copies[..messages.len()]), texts(&messages));
    let [old, of_fork] = [
        app.get_run(&team, &run).await,
        app.get_run(&team, &new).await,
    ];
    assert_eq!(of_fork["run"]["sandbox_id"], old["run"]["sandbox_id"]);
    assert_eq!(of_fork["run"]["source"], "cli");

    // It continues by itself: a message restarts its steps, with the same files.
    app.message(&team, &new, "second").await;
    app.settle().await;
    app.answer(&team, &new, json!({"approved": true})).await;
    app.settle().await;
    assert_eq!(app.status(&team, &new).await, "completed");
    let last = app.messages(&team, &new).await.pop().unwrap();
    assert_eq!(last["text_content"], "second");
    assert_eq!(app.messages(&team, &run).await, messages);
    assert_sound(&app, &team, &new).await;
    app.finish().await;
}

#[tokio::test]
async fn a_fork_asks_again_what_the_old_run_waits_for() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"approve": {"title": "May I?"}, "as": "ok"}, {"finish": "x"}]);
    let agent = app.playbook(&team, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let forked = repair(&app, &run, RepairWay::Fork).await.unwrap();
    app.settle().await;
    let [old, new] = [
        app.get_run(&team, &run).await,
        app.get_run(&team, &forked.run_id).await,
    ];
    for got in [&old, &new] {
        assert_eq!(got["run"]["status"], "waiting", "{got:#}");
    }
    let id = |got: &serde_json::Value| got["pending_human_request"]["id"].clone();
    assert_ne!(id(&old), id(&new));
    assert_sound(&app, &team, &forked.run_id).await;
    app.finish().await;
}

#[tokio::test]
async fn a_healthy_run_is_not_repaired() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "x"}])).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let told = repair(&app, &run, RepairWay::Resume).await.unwrap_err();
    assert!(told.contains("a message resumes it"), "{told}");
    let unknown = IdGen::new([9; 32]).run(app.now()).to_string();
    for way in [RepairWay::Resume, RepairWay::Fail, RepairWay::Fork] {
        let told = repair(&app, &unknown, way).await.unwrap_err();
        assert!(told.contains("there is no run"), "{told}");
    }
    let told = repair(&app, "nonsense", RepairWay::Resume)
        .await
        .unwrap_err();
    assert!(told.contains("run id"), "{told}");
    app.finish().await;
}
