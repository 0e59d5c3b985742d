//! Crashes before and after each commit, and a full disk at each commit, of a run that calls a connection's tool.
//! Accepted work is completed, and nothing is done twice without a person's approval.

use errand_core::ledger::SKIP;
use errand_core::turn::Move;
use errand_testkit::{Plan, ScriptedModel, World, fail_everywhere};
use serde_json::{Value, json};

use crate::connections::{Mailbox, options, stdio, tools_with};

fn call(name: &str, arguments: Value) -> Vec<Move> {
    vec![Move::Call {
        id: None,
        name: name.to_owned(),
        arguments: arguments.as_object().unwrap().clone(),
    }]
}

fn plan(name: &str, least: u64, mailbox: &Mailbox) -> Plan {
    let options = options(Some(mailbox));
    let mut plan = Plan::new(name, least);
    plan.settings = options.settings;
    plan.file = options.file;
    plan
}

/// Starts a run of these turns with the mailbox, and returns its ID.
async fn start(w: &mut World, mailbox: &Mailbox, turns: Vec<Vec<Move>>) -> String {
    mailbox.forget();
    let body = json!({"name": "mail", "transport": stdio("mailbox")});
    let made = w.post("/v1/connections", body).await.expect(201);
    let id = made["connection"]["id"].as_str().unwrap().to_owned();
    let probed = w
        .post(&format!("/v1/connections/{id}/probe"), json!({}))
        .await
        .expect(200);
    assert_eq!(probed["error"], Value::Null, "{probed}");
    w.app.model.add("mail", turns);
    let agent = w
        .agent(ScriptedModel::config(
            "mail",
            json!({"connections": [id], "tools": tools_with("mail")}),
        ))
        .await;
    w.say_of_doubts(SKIP);
    w.begin();
    w.start(json!({"agent_id": agent})).await
}

#[tokio::test]
async fn a_call_of_a_connection_that_may_do_something_twice() {
    let mailbox = Mailbox::new();
    let plan = plan("a call of a connection", 4, &mailbox);
    let act = async |w: &mut World| {
        let send = call(
            "mail__send_message",
            json!({"to": "a", "subject": "b", "body": "c"}),
        );
        let run = start(w, &mailbox, vec![send]).await;
        w.assert_status(&run, "completed").await;
        let messages = w.messages(&run).await;
        let results: Vec<_> = messages
            .iter()
            .filter(|m| m["type"] == "tool_result")
            .collect();
        assert_eq!(results.len(), 1);
        // Sent once, unless the outcome could not be determined.
        let sent = mailbox.log().len();
        match results[0]["tool_result"]["error"].as_str() {
            None => assert_eq!(sent, 1),
            Some(error) => assert!(error.starts_with("skipped:") && sent <= 1, "{error}"),
        }
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_call_of_a_connection_that_reads_or_is_idempotent() {
    let mailbox = Mailbox::new();
    let plan = plan("idempotent calls of a connection", 4, &mailbox);
    let act = async |w: &mut World| {
        let turns = vec![
            call("mail__label_message", json!({"id": "1", "label": "seen"})),
            call("mail__read_message", json!({"id": "1"})),
        ];
        let run = start(w, &mailbox, turns).await;
        w.assert_status(&run, "completed").await;
        let messages = w.messages(&run).await;
        let errors = messages
            .iter()
            .filter(|m| m["tool_result"]["error"].is_string());
        assert_eq!(errors.count(), 0, "{messages:?}");
        assert!(!mailbox.log().is_empty());
    };
    fail_everywhere(&plan, act).await;
}
