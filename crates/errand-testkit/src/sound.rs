//! Consistency checks for a server that has nothing in progress.

use errand_core::event::EventKind;
use errand_store::{AuditScope, Recovered};
use serde_json::Value;

use crate::app::{Team, TestApp};

/// Asserts that each tool call has exactly one result, and that the result comes after the call.
pub fn assert_well_formed(messages: &[Value]) {
    let open = calls_without_a_result(messages);
    assert!(open.is_empty(), "calls without a result: {open:?}");
}

fn calls_without_a_result(messages: &[Value]) -> Vec<&str> {
    let mut open: Vec<&str> = Vec::new();
    for message in messages {
        match message["type"].as_str().unwrap() {
            "tool_call" => open.push(message["tool_call"]["id"].as_str().unwrap()),
            "tool_result" => {
                let id = message["tool_result"]["tool_call_id"].as_str().unwrap();
                let at = open
                    .iter()
                    .position(|o| *o == id)
                    .unwrap_or_else(|| panic!("a result without its call: {message}"));
                open.remove(at);
            }
            _ => {}
        }
    }
    open
}

/// Asserts that the store is consistent: nothing is due or in progress, a second recovery finds nothing to do, the
/// audit finds nothing, the events of each run are numbered without gaps, and all calls of ended runs have results.
pub async fn assert_sound(app: &TestApp, team: &Team) {
    let store = app.store();
    assert_eq!(store.busy(app.now()).await.unwrap(), None);
    // Recovery would release claims of other starts and sandboxes of ended runs.
    assert_eq!(
        store.recover(app.now()).await.unwrap(),
        Recovered::default()
    );
    let found = store.audit(AuditScope::All, app.now()).await.unwrap();
    assert_eq!(found, [], "the store violates invariants");
    let listed = app.get(&team.key, "/v1/runs?limit=50").await.expect(200);
    for run in listed["runs"].as_array().unwrap() {
        assert_run_sound(app, team, run).await;
    }
}

async fn assert_run_sound(app: &TestApp, team: &Team, run: &Value) {
    let id = run["id"].as_str().unwrap();
    let page = app
        .store()
        .events_after(team.id, id.parse().unwrap(), 0, 1000)
        .await
        .unwrap();
    let numbers: Vec<u64> = page.events.iter().map(|e| e.seq).collect();
    let without_gap: Vec<u64> = (1..=page.last).collect();
    assert_eq!(
        numbers, without_gap,
        "the events of run {id} are numbered without a gap"
    );
    let messages = app.messages(team, id).await;
    let created = page
        .events
        .iter()
        .filter(|e| e.kind == EventKind::MessageCreated);
    let announced: Vec<_> = created.map(|e| e.data["id"].clone()).collect();
    let stored: Vec<_> = messages.iter().map(|m| m["id"].clone()).collect();
    assert_eq!(
        announced, stored,
        "each message of run {id} has one event, in order"
    );
    if page.ended {
        assert_well_formed(&messages);
        assert!(run["completed_at"].is_string(), "{run:#}");
    } else {
        calls_without_a_result(&messages);
    }
}
