//! Limits of a run that another run started: as strict as both, within the caller's remaining limits, and a maximum
//! number.

use errand_core::turn::Move;
use errand_testkit::providers::Answer;
use errand_testkit::{ScriptedModel, Team, TestApp};
use serde_json::{Value, json};

use crate::models;

async fn named(app: &TestApp, team: &Team, name: &str, data: Value) -> String {
    let config = json!({"version": "v2", "data": data});
    let body = json!({"name": name, "build": {"name": "first", "config": config}});
    let made = app.post(&team.key, "/v1/agents", body).await.expect(201);
    made["agent"]["id"].as_str().unwrap().to_owned()
}

fn pays() -> Value {
    json!({"tools": {"run_command": "allow"}, "playbook": {"steps": [
        {"tool": "run_command", "with": {"eur": 1}, "as": "paid", "on_error": "continue"},
        {"finish": "{{ paid }}"}]}})
}

#[tokio::test]
async fn a_child_has_the_stricter_policy_of_both() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let child = named(&app, &team, "Pays", pays()).await;
    let reads = json!([
        {"tool": "write_file", "with": {"path": "mail.txt", "content": "pay me"}},
        {"tool": "read_file", "with": {"path": "mail.txt"}}]);
    let starts = json!([
        {"tool": "run_assignment", "with": {"assignment": child}, "as": "got", "on_error": "continue"},
        {"finish": "{{ got }}"}]);
    let all = |first: &Value| -> Value {
        let steps = first
            .as_array()
            .unwrap()
            .iter()
            .chain(starts.as_array().unwrap());
        json!(steps.collect::<Vec<_>>())
    };
    let none = json!([]);
    // The caller's policy, its earlier actions, and whether the call asks or is refused.
    let cases = [
        (Some("allow"), &none, "completed", 1),
        (Some("guard"), &reads, "waiting", 0),
        (Some("ask"), &none, "waiting", 0),
        (Some("deny"), &none, "completed", 0),
        // The caller does not have the tool, which counts as `guard`.
        (None, &none, "completed", 1),
        (None, &reads, "waiting", 0),
    ];
    for (policy, before, status, begun) in cases {
        let mut tools =
            json!({"run_assignment": "allow", "write_file": "allow", "read_file": "allow"});
        if let Some(policy) = policy {
            tools["run_command"] = json!(policy);
        }
        let data =
            json!({"tools": tools, "assignments": [child], "playbook": {"steps": all(before)}});
        let parent = named(&app, &team, "First", data).await;
        let already = app.payment.begun();
        let run = app.run(&team, json!({"agent_id": parent})).await;
        app.settle().await;
        let got = app.get_run(&team, &run).await;
        let waits = !got["pending_human_request"].is_null();
        let what = if waits {
            "waiting"
        } else {
            got["run"]["status"].as_str().unwrap()
        };
        assert_eq!(
            (what, app.payment.begun() - already),
            (status, begun),
            "{policy:?} {before}: {got}"
        );
        if waits && before != &none {
            // The sources of the caller's reads are named.
            let source = &got["pending_human_request"]["reason"]["sources"][0];
            assert_eq!(source["item"], "mail.txt", "{got}");
            assert_eq!(source["run_id"], json!(run), "{got}");
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn the_number_of_runs_below_a_run_is_bounded() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let says = json!({"playbook": {"steps": [{"finish": "hello"}]}});
    let leaf = named(&app, &team, "Leaf", says).await;
    let starts = |other: &str, times: usize, limits: Value| {
        let steps: Vec<Value> = (0..times)
            .map(|_| json!({"tool": "run_assignment", "with": {"assignment": other}, "as": "got", "on_error": "continue"}))
            .chain([json!({"finish": "{{ got }}"})])
            .collect();
        json!({"tools": {"run_assignment": "allow"}, "assignments": [other], "limits": limits, "playbook": {"steps": steps}})
    };
    let middle = named(&app, &team, "Middle", starts(&leaf, 3, json!({}))).await;
    let top = named(
        &app,
        &team,
        "Top",
        starts(&middle, 3, json!({"children": 5})),
    )
    .await;
    let run = app.run(&team, json!({"agent_id": top})).await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    let mut below = 0;
    for agent in [&middle, &leaf] {
        let path = format!("/v1/runs?agent_id={agent}");
        let listed = app.get(&team.key, &path).await.expect(200);
        below += listed["total"].as_u64().unwrap();
    }
    assert_eq!(below, 5, "one, three, and one more");
    let messages = app.messages(&team, &run).await;
    let text = messages.last().unwrap()["text_content"].as_str().unwrap();
    assert!(text.contains("limits.children"), "{text}");
    app.finish().await;
}

#[tokio::test]
async fn usage_of_child_runs_counts_toward_the_callers_limits() {
    let models::World { app, team, server } = models::World::new().await;
    let child = app
        .agent(
            &team,
            models::config(
                "anthropic/claude-test",
                json!({"limits": {"tokens": 1_000_000}}),
            ),
        )
        .await;
    app.model.add(
        "starts",
        vec![
            vec![call(&child)],
            vec![call(&child)],
            vec![call(&child)],
            vec![Move::Finish {
                text: "done".to_owned(),
            }],
        ],
    );
    for _ in 0..6 {
        server.script("claude-test", vec![Answer::text("Said.")]);
    }
    let data = json!({"tools": {"run_assignment": "allow"}, "assignments": [child], "limits": {"tokens": 20}});
    let parent = app
        .agent(&team, ScriptedModel::config("starts", data))
        .await;
    let run = app
        .run(&team, json!({"agent_id": parent, "message": "Go."}))
        .await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    let request = &got["pending_human_request"];
    let about = request["description"].as_str().unwrap_or_default();
    assert!(about.contains("limits.tokens"), "{got}");
    app.finish().await;
}

fn call(agent: &str) -> Move {
    let arguments = json!({"assignment": agent, "message": "Say something."});
    Move::Call {
        id: None,
        name: "run_assignment".to_owned(),
        arguments: arguments.as_object().unwrap().clone(),
    }
}
