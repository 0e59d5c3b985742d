//! Forks through the API: what they include, what they repeat, and the files they work on.

use errand_core::role::Role;
use errand_testkit::{Team, TestApp, WebhookSink};
use http::Method;
use serde_json::{Value, json};

const NOBODY: &str = "0198f2a4-7c1e-7000-8000-000000000001";

/// Writes the message to a file, asks, and ends with the file's content.
fn steps() -> Value {
    json!([
        {"tool": "write_file", "with": {"path": "out.txt", "content": "{{ message }}"}},
        {"approve": {"title": "Go on?"}, "as": "ok"},
        {"tool": "read_file", "with": {"path": "out.txt"}, "as": "text"},
        {"finish": "{{ text }} {{ ok.approved }}"}
    ])
}

async fn waiting(app: &TestApp, team: &Team) -> (String, String) {
    let agent = app.playbook(team, steps()).await;
    let run = app
        .run(team, json!({"agent_id": agent, "message": "one"}))
        .await;
    app.settle().await;
    (agent, run)
}

async fn approve(app: &TestApp, team: &Team, run: &str, approved: bool) {
    app.answer(team, run, json!({"approved": approved})).await;
    app.settle().await;
}

async fn fork(app: &TestApp, team: &Team, run: &str, body: Value) -> Value {
    let path = format!("/v1/runs/{run}/fork");
    let made = app.post(&team.key, &path, body).await.expect(201);
    app.settle().await;
    made["run"].clone()
}

fn id(of: &Value) -> &str {
    of["id"].as_str().unwrap()
}

/// Kind and text of each message.
async fn told(app: &TestApp, team: &Team, run: &str) -> Vec<String> {
    let line = |m: &Value| {
        let text = m["text_content"].as_str().unwrap_or_default();
        format!("{} {text}", m["type"].as_str().unwrap())
            .trim()
            .to_owned()
    };
    app.messages(team, run).await.iter().map(line).collect()
}

async fn content(app: &TestApp, team: &Team, run: &str) -> String {
    let sandbox = app.get_run(team, run).await["run"]["sandbox_id"].clone();
    let path = format!(
        "/v1/sandboxes/{}/files/content?path=out.txt",
        sandbox.as_str().unwrap()
    );
    let reply = app.get(&team.key, &path).await;
    assert_eq!(reply.status, 200);
    String::from_utf8(reply.bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_fork_goes_on_from_a_message_with_a_copy_of_the_files() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (agent, run) = waiting(&app, &team).await;
    approve(&app, &team, &run, true).await;
    let whole = app.messages(&team, &run).await;
    let before = (app.get_run(&team, &run).await, whole.clone());
    // Up to the result of the write: the request is asked again.
    let written = whole.iter().find(|m| m["type"] == "tool_result").unwrap();
    let made = fork(&app, &team, &run, json!({"after_message": written["id"]})).await;
    assert_eq!(
        (&made["agent_id"], &made["status"], &made["source"]),
        (&json!(agent), &json!("pending"), &json!("api"))
    );
    assert_eq!(made["title"], "one");
    assert_eq!(made["usage"]["steps"], 0, "what the run used up is its own");
    let new = id(&made);
    assert_ne!(new, run);
    let now = app.get_run(&team, new).await;
    assert_eq!(now["run"]["status"], "waiting");
    let old = app.get_run(&team, &run).await["run"]["sandbox_id"].clone();
    assert_ne!(now["run"]["sandbox_id"], old);
    assert_eq!(content(&app, &team, new).await, "one");
    // The fork has its own files.
    let path = format!(
        "/v1/sandboxes/{}/files",
        now["run"]["sandbox_id"].as_str().unwrap()
    );
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/octet-stream"),
    ];
    app.send(
        Method::POST,
        &format!("{path}?path=out.txt"),
        &headers,
        "two".into(),
    )
    .await
    .expect(201);
    approve(&app, &team, new, false).await;
    assert_eq!(
        told(&app, &team, new).await,
        [
            "text one",
            "tool_call",
            "tool_result",
            "human_request Go on?",
            "human_response denied",
            "tool_call",
            "tool_result",
            "text two false"
        ]
    );
    assert_eq!(content(&app, &team, &run).await, "one");
    assert_eq!(
        (
            app.get_run(&team, &run).await,
            app.messages(&team, &run).await
        ),
        before
    );
    app.finish().await;
}

#[tokio::test]
async fn a_fork_of_a_run_that_waits_asks_anew_and_leaves_it_waiting() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (_, run) = waiting(&app, &team).await;
    let before = app.get_run(&team, &run).await;
    let new = fork(&app, &team, &run, json!({})).await;
    let of_fork = app.get_run(&team, id(&new)).await;
    assert_eq!(of_fork["run"]["status"], "waiting");
    assert_ne!(
        of_fork["pending_human_request"]["id"],
        before["pending_human_request"]["id"]
    );
    approve(&app, &team, id(&new), true).await;
    assert_eq!(app.status(&team, id(&new)).await, "completed");
    assert_eq!(app.get_run(&team, &run).await, before);
    approve(&app, &team, &run, true).await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}

#[tokio::test]
async fn a_fork_has_its_own_message_build_webhooks_and_sandbox() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (old_sink, new_sink) = (WebhookSink::start().await, WebhookSink::start().await);
    let agent = app.playbook(&team, json!([{"tool": "write_file", "with": {"path": "out.txt", "content": "x"}}, {"finish": "first {{ message }}"}])).await;
    let run = app
        .run(
            &team,
            json!({"agent_id": agent, "message": "one", "webhook_url": old_sink.url()}),
        )
        .await;
    app.settle().await;
    let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": "second {{ message }}"}]}}});
    let build = app
        .post(
            &team.key,
            &format!("/v1/agents/{agent}/revisions"),
            json!({"name": "b", "config": config}),
        )
        .await
        .expect(201)["build"]["id"]
        .clone();
    // The run had ended at this point, so a message is required.
    let path = format!("/v1/runs/{run}/fork");
    let (_, message) = app.post(&team.key, &path, json!({})).await.error(400);
    assert!(message.starts_with("after_message: "), "{message}");
    let body =
        json!({"message": "two", "build": build, "webhook_url": new_sink.url(), "files": false});
    let new = fork(&app, &team, &run, body).await;
    assert_eq!(
        (&new["build_id"], &new["sandbox_id"]),
        (&build, &Value::Null)
    );
    assert_eq!(
        told(&app, &team, id(&new)).await,
        [
            "text one",
            "tool_call",
            "tool_result",
            "text first one",
            "text two",
            "text second two"
        ]
    );
    assert_eq!(old_sink.events(), ["run_completed"]);
    assert_eq!(new_sink.events(), ["run_completed"]);
    // Without a build, the fork uses the run's build, not the agent's latest.
    let again = fork(&app, &team, &run, json!({"message": "three"})).await;
    assert_ne!(again["build_id"], build);
    app.finish().await;
}

#[tokio::test]
async fn an_invalid_fork_is_refused_by_field() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (agent, run) = waiting(&app, &team).await;
    let other = app.playbook(&team, json!([{"finish": "x"}])).await;
    let foreign = app
        .get(&team.key, &format!("/v1/agents/{other}"))
        .await
        .expect(200)["build"]["id"]
        .clone();
    let (_, member) = app.person(&team, "m@acme.example", Role::Member).await;
    let path = format!("/v1/runs/{run}/fork");
    let before = app.get(&team.key, "/v1/runs").await.expect(200);
    for (body, word) in [
        (json!({"after_message": 5}), "after_message"),
        (json!({"after_message": "x"}), "after_message"),
        (json!({"after_message": NOBODY}), "after_message"),
        (json!({"build": NOBODY}), "build"),
        (json!({"build": foreign}), "build"),
        (json!({"message": ""}), "message"),
        (json!({"files": "no"}), "files"),
        (json!({"webhook_url": "nowhere"}), "webhook_url"),
        (
            json!({"human_request_webhook_url": "nowhere"}),
            "human_request_webhook_url",
        ),
        (json!({"build_id": NOBODY}), "build"),
    ] {
        let (_, message) = app.post(&team.key, &path, body.clone()).await.error(400);
        assert!(message.contains(word), "{body}: {message}");
    }
    app.delete(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(204);
    let (_, message) = app.post(&team.key, &path, json!({})).await.error(400);
    assert!(message.contains("deleted"), "{message}");
    assert_eq!(app.get(&team.key, "/v1/runs").await.expect(200), before);
    assert_eq!(on_disk(&app), 1, "no copy is left");
    app.post(&member, &format!("/v1/runs/{NOBODY}/fork"), json!({}))
        .await
        .error(404);
    app.finish().await;
}

/// Number of sandboxes with a directory.
fn on_disk(app: &TestApp) -> usize {
    let names = std::fs::read_dir(app.dir().join("sandboxes")).unwrap();
    names
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with("sb_")
        })
        .count()
}

#[tokio::test]
async fn a_repeat_under_its_key_makes_one_fork_and_one_copy() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let (_, run) = waiting(&app, &team).await;
    let path = format!("/v1/runs/{run}/fork");
    let headers = [("idempotency-key", "one")];
    let first = app
        .json(Method::POST, &team.key, &path, json!({}), &headers)
        .await;
    app.settle().await;
    app.crash().await;
    let second = app
        .json(Method::POST, &team.key, &path, json!({}), &headers)
        .await;
    assert_eq!((first.status, &first.bytes), (201, &second.bytes));
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(app.get(&team.key, "/v1/runs").await.expect(200)["total"], 2);
    assert_eq!(on_disk(&app), 2);
    assert_eq!(app.store().integrity().await.unwrap(), [""; 0]);
    app.finish().await;
}
