//! Messages of a run over HTTP: reading and posting in every state; which messages resume a run.

use std::time::Duration;

use errand_testkit::TestApp;
use serde_json::{Value, json};

use crate::api_runs::{assert_time, echo, in_every_state, one_place, release, seen, waiting};

#[tokio::test]
async fn messages_are_paged_oldest_first() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"for_each": "{{ range(24) }}", "steps": [{"say": "{{ item }}"}, {"wait": "1s"}]}, {"finish": "24"}]);
    let agent = app.playbook(&team, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    for _ in 0..24 {
        app.advance(Duration::from_secs(1)).await;
    }
    assert_eq!(app.status(&team, &run).await, "completed");
    let page = async |query: &str| {
        let reply = app
            .get(&team.key, &format!("/v1/runs/{run}/messages{query}"))
            .await
            .expect(200);
        let texts: Vec<usize> = reply["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["text_content"].as_str().unwrap().parse().unwrap())
            .collect();
        assert_eq!(
            reply["total"], 25,
            "what the engine notes for itself is not among them"
        );
        (
            texts,
            reply["limit"].as_u64().unwrap(),
            reply["offset"].as_u64().unwrap(),
        )
    };
    assert_eq!(page("").await, ((0..20).collect(), 20, 0));
    assert_eq!(page("?limit=50").await, ((0..25).collect(), 50, 0));
    assert_eq!(
        page("?limit=7&offset=20").await,
        ((20..25).collect(), 7, 20)
    );
    assert_eq!(page("?limit=1&offset=3").await, (vec![3], 1, 3));
    assert_eq!(page("?offset=25").await, (vec![], 20, 25));
    app.finish().await;
}

#[tokio::test]
async fn each_type_of_message_has_its_documented_form() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([
        {"tool": "write_file", "with": {"path": "a.txt", "content": "x"}},
        {"tool": "read_file", "with": {"path": "missing.txt"}, "on_error": "continue"},
        {"tool": "read_file", "with": {"path": "a.txt"}},
        {"approve": {"title": "Pay?"}},
        {"fail": "no money"}
    ]);
    let agent = app.playbook(&team, steps).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "go"}))
        .await;
    app.settle().await;
    let pending = app.get_run(&team, &run).await["pending_human_request"].clone();
    let respond = format!(
        "/v1/runs/{run}/human-requests/{}/respond",
        pending["id"].as_str().unwrap()
    );
    app.post(&team.key, &respond, json!({"approved": false}))
        .await
        .expect(200);
    app.settle().await;
    let messages = app.messages(&team, &run).await;
    let heads: Vec<_> = messages
        .iter()
        .map(|m| (m["type"].as_str().unwrap(), m["role"].as_str().unwrap()))
        .collect();
    let call = [("tool_call", "assistant"), ("tool_result", "tool")];
    let expected = [
        &[("text", "user")],
        &call[..],
        &call,
        &call,
        &[
            ("human_request", "assistant"),
            ("human_response", "user"),
            ("error", "system"),
        ],
    ]
    .concat();
    assert_eq!(heads, expected);
    for message in &messages {
        assert_time(&message["timestamp"]);
        assert!(message["id"].is_string());
    }
    let call = &messages[1]["tool_call"];
    assert_eq!(
        (&call["name"], &call["arguments"]["path"]),
        (&json!("write_file"), &json!("a.txt"))
    );
    assert_eq!(messages[2]["tool_result"]["tool_call_id"], call["id"]);
    assert_eq!(
        messages[2]["tool_result"]["result"],
        json!({"path": "/workspace/a.txt", "size_bytes": 1})
    );
    assert!(
        messages[4]["tool_result"]["error"].is_string()
            && messages[4]["tool_result"].get("result").is_none()
    );
    assert_eq!(
        messages[6]["tool_result"]["result"], "x",
        "a text for what is not structured"
    );
    assert_eq!(messages[7]["text_content"], "Pay?");
    assert_eq!(messages[7]["human_request"], pending);
    assert_eq!(messages[8]["text_content"], "denied");
    assert!(
        messages[9]["text_content"]
            .as_str()
            .unwrap()
            .contains("no money")
    );
    app.finish().await;
}

#[tokio::test]
async fn a_message_is_answered_in_the_documented_form() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = echo(&app, &team).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let path = format!("/v1/runs/{run}/messages");
    for text in ["hello", " ", "0", "é\u{1f600}\n\"quoted\""] {
        let posted = app
            .post(&team.key, &path, json!({"message": text}))
            .await
            .expect(201);
        let message = posted["message"].as_object().unwrap();
        let names: Vec<_> = message.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["id", "type", "role", "timestamp", "text_content", "author"]
        );
        assert_eq!(message["author"]["kind"], "api_key");
        assert_eq!(
            (&message["type"], &message["role"]),
            (&json!("text"), &json!("user"))
        );
        assert_eq!(message["text_content"], text);
        assert_time(&message["timestamp"]);
        app.settle().await;
        let all = app.messages(&team, &run).await;
        assert!(
            all.contains(&posted["message"]),
            "GET gives the same: {all:?}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn an_invalid_message_is_refused_and_changes_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let before = seen(&app, &team, &run).await;
    let path = format!("/v1/runs/{run}/messages");
    for body in [
        json!({}),
        json!({"message": ""}),
        json!({"message": null}),
        json!({"message": 7}),
        json!({"text": "x"}),
        json!("x"),
        json!(["x"]),
    ] {
        let (code, message) = app.post(&team.key, &path, body.clone()).await.error(400);
        assert_eq!(code, "bad_request", "{body}");
        assert!(
            !body.is_object() || message.contains("message") || message.contains("text"),
            "{body}: {message}"
        );
    }
    app.settle().await;
    assert_eq!(seen(&app, &team, &run).await, before);
    app.finish().await;
}

#[tokio::test]
async fn a_message_is_kept_in_every_state_and_resumes_where_it_should() {
    let app = TestApp::start_with(one_place()).await;
    let team = app.team("acme").await;
    let (runs, gate) = in_every_state(&app, &team).await;
    for (status, run) in &runs {
        let total = app.messages(&team, run).await.len();
        let reply = app
            .post(
                &team.key,
                &format!("/v1/runs/{run}/messages"),
                json!({"message": "hello"}),
            )
            .await;
        let posted = reply.expect(201)["message"].clone();
        let messages = app.messages(&team, run).await;
        assert!(messages[total..].contains(&posted), "{status}: it is kept");
        let got = app.get_run(&team, run).await;
        // The only slot is taken, so a resumed run waits for it.
        let (now, kind) = match *status {
            "completed" | "interrupted" => ("pending", json!("place")),
            "waiting" => ("running", json!("place")),
            "failed" => ("failed", Value::Null),
            "running" => ("running", json!("timer")),
            "starting" => ("starting", got["run"]["waiting_on"]["kind"].clone()),
            _ => ("pending", json!("place")),
        };
        assert_eq!(got["run"]["status"], now, "a run that was {status}");
        assert_eq!(
            got["run"]["waiting_on"]["kind"], kind,
            "a run that was {status}"
        );
        assert_eq!(got["pending_human_request"], Value::Null);
        assert_eq!(
            got["run"]["completed_at"].is_null(),
            *status != "failed",
            "a resumed run has not ended"
        );
    }
    release(app, &gate).await;
}

#[tokio::test]
async fn a_resumed_run_goes_on_with_what_it_had() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([
        {"finish": "{{ messages | length }} messages", "if": "{{ message == 'done' }}"},
        {"tool": "write_file", "with": {"path": "a.txt", "content": "{{ message }}"}},
        {"wait": "1h"}
    ]);
    let agent = app.playbook(&team, steps).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "go"}))
        .await;
    app.settle().await;
    app.stop_run(&team, &run).await;
    let stopped = app.get_run(&team, &run).await["run"].clone();
    assert!(stopped["completed_at"].is_string());
    app.clock().advance(Duration::from_secs(5));
    app.message(&team, &run, "done").await;
    app.settle().await;
    let resumed = app.get_run(&team, &run).await["run"].clone();
    assert_eq!(resumed["status"], "completed");
    for name in ["id", "build_id", "sandbox_id", "created_at", "started_at"] {
        assert_eq!(resumed[name], stopped[name], "{name}");
    }
    assert_ne!(resumed["completed_at"], stopped["completed_at"]);
    assert_eq!(
        app.messages(&team, &run).await.last().unwrap()["text_content"],
        "2 messages"
    );
    app.finish().await;
}
