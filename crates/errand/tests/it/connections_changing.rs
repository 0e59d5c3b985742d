//! A server whose tools change while a run uses them.

use errand_core::transcript::Body;
use errand_store::Reach;
use errand_testkit::providers::{Answer, ProviderServer};
use errand_testkit::{Gate, TestApp};
use serde_json::{Value, json};

use crate::connections::{Mailbox, connect, options, stdio, tools_with};
use crate::models::config;

#[tokio::test(flavor = "multi_thread")]
async fn changed_tools_reach_the_model_after_a_probe() {
    let (mailbox, server) = (Mailbox::new(), ProviderServer::start().await);
    let mut options = options(Some(&mailbox));
    options.settings.extend(server.settings());
    let app = TestApp::start_with(options).await;
    let team = app.team("acme").await;
    let id = connect(&app, &team, "mail", stdio("mailbox")).await;
    let list = || Answer::call("mail__list_messages", json!({}));
    let read = Answer::call("mail__read_message", json!({"id": "1"}));
    let count = Answer::call("mail__count_messages", json!({}));
    let script = vec![list(), read, list(), count, Answer::text("Done.")];
    server.script("claude-test", script);
    let gate = Gate::default();
    server.hold_at(&gate);
    let data = json!({"connections": [id], "tools": tools_with("mail")});
    let agent = app
        .agent(&team, config("anthropic/claude-test", data))
        .await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "Go."}))
        .await;
    gate.arrival().await;
    let offers = |n: usize, tool: &str| server.asked()[n].tools().iter().any(|t| t == tool);
    assert!(offers(0, "mail__read_message") && !offers(0, "mail__count_messages"));
    mailbox.change_tools();
    // After the first call, the server announces that its tools have changed. The second call is of a changed tool.
    for _ in 0..2 {
        gate.open();
        gate.arrival().await;
    }
    let results = server.last().tool_results();
    assert!(
        results[1].contains("tool_changed:") && results[1].contains("read_message"),
        "{results:?}"
    );
    assert!(results[1].contains("probe the connection again"));
    // Unchanged tools keep working, and tools that no admin has seen are not offered.
    assert!(!offers(2, "mail__count_messages"));
    // An admin probes them while the model thinks: from the next turn on, the model has them in the same drive.
    let probed = app
        .post(&team.key, &format!("/v1/connections/{id}/probe"), json!({}))
        .await
        .expect(200);
    assert_eq!(probed["error"], Value::Null);
    gate.open();
    gate.arrival().await;
    assert!(offers(3, "mail__count_messages"));
    gate.open_for_good();
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    let results = server.last().tool_results();
    assert!(results[0].contains("ada@example.com"), "{results:?}");
    assert!(
        !results[1].contains("report"),
        "what it was not is not read"
    );
    assert!(results[3].contains("ada@example.com"), "{results:?}");
    let whole = app
        .store()
        .transcript(team.id, run.parse().unwrap(), Reach::Newest, 100)
        .await
        .unwrap();
    let noted = whole.entries.iter().find_map(|entry| match &entry.body {
        Body::ToolsChanged { connection, tools } => Some((connection, tools)),
        _ => None,
    });
    let (connection, changed) = noted.expect("the change is on record");
    assert_eq!(connection, "mail");
    assert_eq!(*changed, ["mail__read_message", "mail__count_messages"]);
    app.finish().await;
}
