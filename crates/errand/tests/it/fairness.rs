//! Slots of runs and places of deliveries, shared: nobody takes them from everybody else.

use std::time::Duration;

use errand_testkit::{Gate, ScriptedModel, Team, TestApp, TestOptions, WebhookSink};
use serde_json::json;
use tokio::net::TcpListener;

async fn start(settings: &[(&'static str, &str)]) -> TestApp {
    let settings = settings
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    TestApp::start_with(TestOptions {
        settings,
        ..TestOptions::default()
    })
    .await
}

/// The same team, called with another key.
async fn with_another_key(app: &TestApp, team: &Team) -> Team {
    Team {
        key: app.key(team.id, team.owner).await,
        ..team.clone()
    }
}

#[tokio::test]
async fn one_key_leaves_slots_to_another_key_and_to_another_team() {
    let app = start(&[("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "16")]).await;
    let team = app.team("acme").await;
    let gate = Gate::default();
    app.model.add("held", vec![]);
    app.model.hold_at(&gate);
    let held = app
        .agent(&team, ScriptedModel::config("held", json!({})))
        .await;
    let mut runs = Vec::new();
    for _ in 0..40 {
        runs.push(app.run(&team, json!({"agent_id": held})).await);
    }
    for _ in 0..14 {
        gate.arrival().await;
    }
    // Seven eighths are held by one key. Others find what is kept for them, while 26 runs of the first key wait.
    let (second, other) = (with_another_key(&app, &team).await, app.team("other").await);
    for by in [&second, &other] {
        let quick = app.playbook(by, json!([{"finish": "done"}])).await;
        let run = app.run(by, json!({"agent_id": quick})).await;
        let done = async {
            while app.status(by, &run).await != "completed" {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), done)
            .await
            .expect("a slot that is kept for others");
    }
    assert_eq!(app.status(&team, &runs[14]).await, "pending");
    for _ in 0..runs.len() {
        gate.open();
    }
    app.settle().await;
    for run in &runs {
        assert_eq!(app.status(&team, run).await, "completed");
    }
    app.finish().await;
}

/// Accepts connections and never answers. Lives as long as the listener.
async fn black_hole() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn receivers_that_never_answer_are_not_in_the_way_of_others() {
    let mut app = start(&[("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000")]).await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "done"}])).await;
    let mut holes = Vec::new();
    for _ in 0..5 {
        let (listener, url) = black_hole().await;
        for _ in 0..60 {
            app.run(&team, json!({"agent_id": agent, "webhook_url": url}))
                .await;
        }
        holes.push(listener);
    }
    // Also right after a restart, which has forgotten who answers and who does not.
    for restarts in 0..2 {
        if restarts > 0 {
            app.crash().await;
        }
        // All that the dead receivers may have is under way.
        let sink = WebhookSink::start().await;
        app.run(&team, json!({"agent_id": agent, "webhook_url": sink.url()}))
            .await;
        let arrived = async {
            while sink.received().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        // None of the dead receivers has been waited for: their attempts take 15 s.
        tokio::time::timeout(Duration::from_secs(12), arrived)
            .await
            .expect("a webhook to a receiver that answers");
    }
    app.die().await;
}
