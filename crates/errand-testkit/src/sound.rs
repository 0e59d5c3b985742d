//! What always holds once nothing is under way.

use errand_store::{AuditScope, Recovered};
use serde_json::Value;

use crate::app::{Team, TestApp};

/// Every tool call has exactly one result, and it comes after its call.
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

/// What is stored makes sense: nothing is due or under way, a second recovery finds nothing to set right, the events of
/// each run of the team are numbered without a gap, and the calls of each that has ended are closed.
pub async fn assert_sound(app: &TestApp, team: &Team) {
    let store = app.store();
    assert_eq!(store.busy(app.now()).await.unwrap(), None);
    // No claim is of another start, and no run that has ended holds a sandbox.
    assert_eq!(
        store.recover(app.now()).await.unwrap(),
        Recovered::default()
    );
    let found = store.audit(AuditScope::All, app.now()).await.unwrap();
    assert_eq!(found, [], "what is stored breaks invariants");
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
    let created = page.events.iter().filter(|e| e.kind == "message.created");
    let told: Vec<_> = created.map(|e| e.data["id"].clone()).collect();
    let kept: Vec<_> = messages.iter().map(|m| m["id"].clone()).collect();
    assert_eq!(
        told, kept,
        "each message of run {id} has one event, in order"
    );
    if page.ended {
        assert_well_formed(&messages);
        assert!(run["completed_at"].is_string(), "{run:#}");
    } else {
        calls_without_a_result(&messages);
    }
}
