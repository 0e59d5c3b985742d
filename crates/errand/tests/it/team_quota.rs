//! The disk quota of a team: `sandbox.team_disk_bytes_max`.

use std::fs;
use std::time::Duration;

use axum::body::Body;
use errand_testkit::{Reply, Team, TestApp, TestOptions};
use http::Method;
use serde_json::{Value, json};

use crate::api_sandboxes::{names, put, upload_url};

const SETTING: &str = "sandbox.team_disk_bytes_max";
/// Quota of the teams in these tests, in bytes.
const QUOTA: usize = 1024 * 1024;
/// Leaves less room than [`MORE`] needs, regardless of the file system's block size.
const NEARLY_ALL: usize = 1000 * 1024;
const MORE: usize = 64 * 1024;

async fn start() -> TestApp {
    let quota = ("ERRAND_SANDBOX__TEAM_DISK_BYTES_MAX", QUOTA.to_string());
    TestApp::start_with(TestOptions {
        settings: vec![quota],
        ..TestOptions::default()
    })
    .await
}

async fn upload(app: &TestApp, team: &Team, sandbox: &str, name: &str, bytes: usize) -> Reply {
    let bearer = format!("Bearer {}", team.key);
    let headers = [("authorization", bearer.as_str())];
    let path = format!("/v1/sandboxes/{sandbox}/files?path={name}");
    app.send(Method::POST, &path, &headers, Body::from(vec![7; bytes]))
        .await
}

async fn upload_form(app: &TestApp, team: &Team, sandbox: &str, bytes: usize) -> Reply {
    let mut body =
        b"--edge\r\ncontent-disposition: form-data; name=\"file\"; filename=\"form\"\r\n\r\n"
            .to_vec();
    body.resize(body.len() + bytes, 7);
    body.extend_from_slice(b"\r\n--edge--\r\n");
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "multipart/form-data; boundary=edge"),
    ];
    let path = format!("/v1/sandboxes/{sandbox}/files");
    app.send(Method::POST, &path, &headers, Body::from(body))
        .await
}

fn assert_full(reply: &Reply) {
    let (code, message) = reply.error(413);
    assert_eq!(code, "payload_too_large");
    assert!(message.contains(SETTING), "{message}");
}

/// Runs these tools on a sandbox, and returns the run and the result of each call.
async fn tools(app: &TestApp, team: &Team, sandbox: &str, steps: Value) -> (String, Vec<Value>) {
    let agent = app.playbook(team, steps).await;
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    let run = app.run(team, body).await;
    app.settle().await;
    assert_eq!(app.get_run(team, &run).await["run"]["status"], "completed");
    let messages = app.messages(team, &run).await;
    let results = messages.iter().filter_map(|m| m.get("tool_result"));
    (run, results.cloned().collect())
}

async fn held(app: &TestApp, team: &Team) -> u64 {
    let limits = app.get(&team.key, "/v1/usage/limits").await.expect(200);
    assert_eq!(limits["sandbox_bytes_max"], QUOTA);
    limits["sandbox_bytes"].as_u64().unwrap()
}

/// Polls until the team's usage satisfies a condition, within a bound.
async fn until_held(app: &TestApp, team: &Team, wanted: impl Fn(u64) -> bool) {
    let reached = async {
        while !wanted(held(app, team).await) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached)
        .await
        .expect("the sandboxes are measured");
}

#[tokio::test]
async fn a_full_team_is_refused_and_another_team_is_not() {
    let app = start().await;
    let (full, other) = (app.team("full").await, app.team("other").await);
    let (first, second) = (app.sandbox(&full).await, app.sandbox(&full).await);
    let third = app.sandbox(&other).await;
    assert_eq!(held(&app, &full).await, 0);
    upload(&app, &full, &first, "large", NEARLY_ALL)
        .await
        .expect(201);
    assert!(held(&app, &full).await >= NEARLY_ALL as u64);

    // Also in another, empty sandbox of the team.
    for sandbox in [&first, &second] {
        assert_full(&upload(&app, &full, sandbox, "more", MORE).await);
        assert_full(&upload_form(&app, &full, sandbox, MORE).await);
        let url = upload_url(&app, &full, sandbox, "/workspace/more").await;
        assert_full(&put(&app, &url, vec![7; MORE]).await);
    }
    assert!(names(&app, &full, &second).await.is_empty());

    // Tools: writes that fit are accepted, others are refused, and reading continues to work.
    let text = "x".repeat(MORE);
    let steps = json!([
        {"tool": "write_file", "with": {"path": "small", "content": "small"}},
        {"tool": "write_file", "with": {"path": "more", "content": text}, "on_error": "continue"},
        {"tool": "edit_file", "with": {"path": "small", "old": "small", "new": text}, "on_error": "continue"},
        {"tool": "read_file", "with": {"path": "small"}},
        {"finish": "done"}
    ]);
    let (run, results) = tools(&app, &full, &second, steps.clone()).await;
    for refused in &results[1..3] {
        let error = refused["error"].as_str().unwrap_or_default();
        assert!(
            error.starts_with("sandbox_full: ") && error.contains(SETTING),
            "{refused}"
        );
    }
    assert!(results[3]["error"].is_null(), "{}", results[3]);

    // The other team still has all of its quota.
    let (_, results) = tools(&app, &other, &third, steps).await;
    assert!(
        results.iter().all(|result| result["error"].is_null()),
        "{results:?}"
    );
    upload(&app, &other, &third, "large", NEARLY_ALL - 4 * MORE)
        .await
        .expect(201);

    // The copy for a fork also needs room. If there is none, nothing of the copy stays.
    let before = held(&app, &full).await;
    upload(
        &app,
        &full,
        &second,
        "rest",
        QUOTA - usize::try_from(before).unwrap(),
    )
    .await
    .expect(201);
    let fork = format!("/v1/runs/{run}/fork");
    let body = json!({"message": "again"});
    assert_full(&app.post(&full.key, &fork, body).await);
    assert!(held(&app, &full).await <= QUOTA as u64);
    let body = json!({"message": "again", "files": false});
    app.post(&full.key, &fork, body).await.expect(201);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_deleted_sandbox_gives_its_room_back() {
    let mut app = start().await;
    let team = app.team("acme").await;
    let (first, second) = (app.sandbox(&team).await, app.sandbox(&team).await);
    upload(&app, &team, &first, "dir/large", NEARLY_ALL)
        .await
        .expect(201);
    assert_full(&upload(&app, &team, &second, "more", MORE).await);
    let path = format!("/v1/sandboxes/{first}");
    app.delete(&team.key, &path).await.expect(204);
    assert_eq!(held(&app, &team).await, 0);
    upload(&app, &team, &second, "large", NEARLY_ALL)
        .await
        .expect(201);

    // Also a sandbox that this start of the server has not used.
    app.crash().await;
    assert!(held(&app, &team).await >= NEARLY_ALL as u64);
    let third = app.sandbox(&team).await;
    assert_full(&upload(&app, &team, &third, "more", MORE).await);
    let path = format!("/v1/sandboxes/{second}");
    app.delete(&team.key, &path).await.expect(204);
    upload(&app, &team, &third, "large", NEARLY_ALL)
        .await
        .expect(201);
    app.finish().await;
}

#[tokio::test]
async fn an_expired_sandbox_gives_its_room_back() {
    let app = start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    upload(&app, &team, &sandbox, "large", NEARLY_ALL)
        .await
        .expect(201);
    app.advance(Duration::from_secs(31 * 86_400)).await;
    until_held(&app, &team, |bytes| bytes == 0).await;
    let sandbox = app.sandbox(&team).await;
    upload(&app, &team, &sandbox, "large", NEARLY_ALL)
        .await
        .expect(201);
    app.finish().await;
}

/// A crash between a write and its record leaves a wrong record, in either direction.
#[tokio::test]
async fn the_sum_is_right_after_a_crash() {
    let mut app = start().await;
    let team = app.team("acme").await;
    let (first, second) = (app.sandbox(&team).await, app.sandbox(&team).await);
    upload(&app, &team, &first, "small", 5).await.expect(201);
    let large = app.sandbox_dir(&first).join("large");

    app.die().await;
    fs::write(&large, vec![7; NEARLY_ALL]).unwrap();
    app.come_back().await.unwrap();
    until_held(&app, &team, |bytes| bytes >= NEARLY_ALL as u64).await;
    assert_full(&upload(&app, &team, &second, "more", MORE).await);
    let recorded = async || {
        let sums = app.store().sandbox_bytes_of_teams().await.unwrap();
        sums.iter().map(|(_, bytes)| *bytes).sum::<u64>()
    };
    let on_record = async {
        while recorded().await < NEARLY_ALL as u64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), on_record)
        .await
        .expect("what was measured is recorded");

    app.die().await;
    fs::remove_file(&large).unwrap();
    app.come_back().await.unwrap();
    until_held(&app, &team, |bytes| bytes < MORE as u64).await;
    upload(&app, &team, &second, "large", NEARLY_ALL)
        .await
        .expect(201);
    app.finish().await;
}

/// A large change is recorded with its step, without a round of the janitor.
#[tokio::test]
async fn the_files_of_a_run_are_recorded_when_it_ends() {
    let mut app = start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let steps = json!([
        {"tool": "write_file", "with": {"path": "text", "content": "x".repeat(MORE)}},
        {"finish": "done"}
    ]);
    tools(&app, &team, &sandbox, steps).await;
    let sums = app.store().sandbox_bytes_of_teams().await.unwrap();
    assert_eq!(sums, [(team.id, held(&app, &team).await)]);
    assert!(sums[0].1 >= MORE as u64, "{sums:?}");
    app.crash().await;
    assert!(held(&app, &team).await >= MORE as u64);
    app.finish().await;
}
