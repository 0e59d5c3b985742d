//! `Idempotency-Key`: one effect and one response, whatever happens in between.

use std::time::Duration;

use axum::body::Body;
use errand_core::role::Role;
use errand_testkit::{Reply, Team, TestApp, TestOptions};
use futures::StreamExt as _;
use http::Method;
use serde_json::{Value, json};

use crate::api_runs::{count_runs, echo, seen, waiting};

/// Sends a call with an idempotency key.
async fn call(
    app: &TestApp,
    method: Method,
    key: &str,
    path: &str,
    body: &Value,
    idem: &str,
) -> Reply {
    app.json(
        method,
        key,
        path,
        body.clone(),
        &[("idempotency-key", idem)],
    )
    .await
}

async fn post(app: &TestApp, key: &str, path: &str, body: &Value, idem: &str) -> Reply {
    call(app, Method::POST, key, path, body, idem).await
}

fn is_replay(reply: &Reply) -> bool {
    match reply.header("idempotency-replayed") {
        None => false,
        Some("true") => true,
        Some(other) => panic!("idempotency-replayed: {other}"),
    }
}

/// Asserts that the second response equals the first, byte for byte.
#[track_caller]
fn assert_replayed(first: &Reply, second: &Reply) {
    assert!((200..300).contains(&first.status), "{first:?}");
    assert!(
        !is_replay(first) && is_replay(second),
        "{first:?} and {second:?}"
    );
    assert_eq!((first.status, &first.bytes), (second.status, &second.bytes));
    assert_eq!(first.header("content-type"), second.header("content-type"));
}

#[tokio::test]
async fn a_repeated_call_replays_the_first_response() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = json!({"agent_id": echo(&app, &team).await, "message": "hello"});
    let first = post(&app, &team.key, "/v1/runs", &body, "one").await;
    app.settle().await;
    app.clock().advance(Duration::from_secs(60));
    let second = post(&app, &team.key, "/v1/runs", &body, "one").await;
    assert_replayed(&first, &second);
    assert_eq!(
        second.json()["run"]["status"],
        "pending",
        "the answer of then, not of now"
    );
    assert_eq!(count_runs(&app, &team).await, 1);
    post(&app, &team.key, "/v1/runs", &body, "two")
        .await
        .expect(201);
    app.post(&team.key, "/v1/runs", body).await.expect(201);
    assert_eq!(
        count_runs(&app, &team).await,
        3,
        "another key, or none: another run"
    );
    app.settle().await;
    app.finish().await;
}

/// Every `POST`, `PATCH` and `DELETE` with a valid body, in an order in which all succeed.
async fn every_change(app: &TestApp, team: &Team) -> Vec<(Method, String, Value)> {
    let agent = echo(app, team).await;
    let (run, request) = waiting(app, team).await;
    let failing = app.playbook(team, json!([{"fail": "on purpose"}])).await;
    let failed = app.run(team, json!({"agent_id": failing})).await;
    app.settle().await;
    let build = app
        .get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200)["build"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let sandbox = app.sandbox(team).await;
    let doomed = app
        .post(&team.key, "/v1/api-keys", json!({"name": "doomed"}))
        .await
        .expect(201)["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": "x"}]}}});
    let (post, patch, delete) = (Method::POST, Method::PATCH, Method::DELETE);
    vec![
        (
            post.clone(),
            "/v1/runs".to_owned(),
            json!({"agent_id": agent}),
        ),
        (
            post.clone(),
            format!("/v1/runs/{run}/human-requests/{request}/respond"),
            json!({"approved": true}),
        ),
        (
            post.clone(),
            format!("/v1/runs/{run}/messages"),
            json!({"message": "hello"}),
        ),
        (post.clone(), format!("/v1/runs/{run}/stop"), json!({})),
        (post.clone(), format!("/v1/runs/{failed}/retry"), json!({})),
        (post.clone(), "/v1/sandboxes".to_owned(), json!({})),
        (
            post.clone(),
            format!("/v1/sandboxes/{sandbox}/upload-urls"),
            json!({"path": "a.txt"}),
        ),
        (
            delete.clone(),
            format!("/v1/sandboxes/{sandbox}"),
            json!({}),
        ),
        (
            post.clone(),
            "/v1/agents".to_owned(),
            json!({"name": "new"}),
        ),
        (
            patch.clone(),
            format!("/v1/agents/{agent}"),
            json!({"name": "renamed"}),
        ),
        (
            post.clone(),
            format!("/v1/agents/{agent}/revisions"),
            json!({"name": "new", "config": config}),
        ),
        (
            post.clone(),
            format!("/v1/agents/{agent}/builds"),
            json!({"name": "new", "config": config}),
        ),
        (
            post.clone(),
            "/v1/builds".to_owned(),
            json!({"agent_id": agent, "name": "new", "config": config}),
        ),
        (
            patch,
            format!("/v1/revisions/{build}"),
            json!({"description": "changed"}),
        ),
        (delete.clone(), format!("/v1/agents/{failing}"), json!({})),
        (delete, format!("/v1/api-keys/{doomed}"), json!({})),
    ]
}

#[tokio::test]
async fn every_change_can_be_repeated() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for (method, path, body) in every_change(&app, &team).await {
        let first = call(&app, method.clone(), &team.key, &path, &body, "the key").await;
        app.settle().await;
        app.clock().advance(Duration::from_secs(1));
        let second = call(&app, method, &team.key, &path, &body, "the key").await;
        assert_replayed(&first, &second);
    }
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_repeated_change_has_one_effect() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, request) = waiting(&app, &team).await;
    let respond = format!("/v1/runs/{run}/human-requests/{request}/respond");
    let messages = format!("/v1/runs/{run}/messages");
    for (path, body) in [
        (respond, json!({"approved": true})),
        (messages, json!({"message": "hello"})),
    ] {
        post(&app, &team.key, &path, &body, "k").await;
        app.settle().await;
        let before = seen(&app, &team, &run).await;
        post(&app, &team.key, &path, &body, "k").await;
        app.settle().await;
        assert_eq!(seen(&app, &team, &run).await, before, "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn another_body_under_the_same_key_is_409_and_changes_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let path = format!("/v1/runs/{run}/messages");
    post(&app, &team.key, &path, &json!({"message": "one"}), "k")
        .await
        .expect(201);
    app.settle().await;
    let before = seen(&app, &team, &run).await;
    let (code, message) = post(&app, &team.key, &path, &json!({"message": "two"}), "k")
        .await
        .error(409);
    assert_eq!(code, "conflict");
    assert!(message.contains("Idempotency-Key"), "{message}");
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("idempotency-key", "k"),
    ];
    // The same JSON in other bytes is a different body.
    let spaced = app
        .send(
            Method::POST,
            &path,
            &headers,
            Body::from(r#"{ "message": "one" }"#),
        )
        .await;
    spaced.error(409);
    app.settle().await;
    assert_eq!(seen(&app, &team, &run).await, before);
    app.finish().await;
}

#[tokio::test]
async fn one_of_concurrent_requests_takes_effect() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = json!({"agent_id": echo(&app, &team).await});
    let calls = (0..16).map(|_| post(&app, &team.key, "/v1/runs", &body, "k"));
    let replies = futures::future::join_all(calls).await;
    let done: Vec<_> = replies.iter().filter(|r| r.status == 201).collect();
    assert!(
        replies
            .iter()
            .all(|r| r.status == 201 || r.error(409).0 == "conflict"),
        "the same answer, or: still in progress"
    );
    assert_eq!(done.iter().filter(|r| !is_replay(r)).count(), 1);
    assert!(done.iter().all(|r| r.bytes == done[0].bytes));
    assert_eq!(count_runs(&app, &team).await, 1);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn one_of_concurrent_different_bodies_takes_effect() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let bodies: Vec<_> = (0..8)
        .map(|n| json!({"name": format!("agent {n}")}))
        .collect();
    let calls = bodies
        .iter()
        .map(|body| post(&app, &team.key, "/v1/agents", body, "k"));
    let replies = futures::future::join_all(calls).await;
    assert_eq!(replies.iter().filter(|r| r.status == 201).count(), 1);
    assert_eq!(replies.iter().filter(|r| r.status == 409).count(), 7);
    assert_eq!(
        app.get(&team.key, "/v1/agents").await.expect(200)["total"],
        1
    );
    app.finish().await;
}

#[tokio::test]
async fn keys_survive_a_crash_and_an_orderly_stop() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = json!({"agent_id": echo(&app, &team).await});
    let first = post(&app, &team.key, "/v1/runs", &body, "k").await;
    app.crash().await;
    assert_replayed(&first, &post(&app, &team.key, "/v1/runs", &body, "k").await);
    app.stop_and_start().await;
    assert_replayed(&first, &post(&app, &team.key, "/v1/runs", &body, "k").await);
    app.settle().await;
    assert_eq!(count_runs(&app, &team).await, 1);
    app.finish().await;
}

#[tokio::test]
async fn interrupted_calls_are_repeated_without_a_second_effect() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let http = reqwest::Client::builder().build().unwrap();
    let url = format!("{}/v1/agents", app.url());
    let name = |n: u32| json!({"name": format!("agent {n}")});
    let mut sent = futures::stream::FuturesUnordered::new();
    for n in 0..32 {
        let request = http.post(&url).bearer_auth(&team.key);
        let request = request
            .header("idempotency-key", n.to_string())
            .json(&name(n));
        sent.push(tokio::spawn(request.send()));
    }
    // One call has a response. Each of the others may be done, partly done, or not started.
    let first = sent.next().await.unwrap().unwrap().unwrap();
    assert_eq!(first.status(), 201);
    app.crash().await;
    for n in 0..32 {
        let reply = post(&app, &team.key, "/v1/agents", &name(n), &n.to_string()).await;
        assert_eq!(reply.expect(201)["agent"]["name"], name(n)["name"]);
    }
    let agents = app.get(&team.key, "/v1/agents").await.expect(200);
    assert_eq!(agents["total"], 32);
    app.finish().await;
}

#[tokio::test]
async fn a_refusal_is_not_kept() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = echo(&app, &team).await;
    post(
        &app,
        &team.key,
        "/v1/runs",
        &json!({"agent_id": "nonsense"}),
        "a",
    )
    .await
    .error(400);
    post(
        &app,
        &team.key,
        "/v1/runs",
        &json!({"agent_id": agent}),
        "a",
    )
    .await
    .expect(201);

    // The same request is refused first, and executed once its obstacle is gone.
    let bare = app
        .post(&team.key, "/v1/agents", json!({"name": "bare"}))
        .await
        .expect(201)["agent"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let body = json!({"agent_id": bare});
    post(&app, &team.key, "/v1/runs", &body, "b")
        .await
        .error(400);
    let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"wait": "1h"}]}}});
    let build = json!({"agent_id": bare, "name": "first", "config": config});
    app.post(&team.key, "/v1/builds", build).await.expect(201);
    let fresh = post(&app, &team.key, "/v1/runs", &body, "b").await;
    assert!(!is_replay(&fresh));
    fresh.expect(201);

    let sandbox = app.sandbox(&team).await;
    let body = json!({"agent_id": bare, "sandbox_id": sandbox});
    let holder = app.run(&team, body.clone()).await;
    post(&app, &team.key, "/v1/runs", &body, "c")
        .await
        .error(409);
    app.stop_run(&team, &holder).await;
    app.settle().await;
    post(&app, &team.key, "/v1/runs", &body, "c")
        .await
        .expect(201);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_429_is_not_kept() {
    let settings = vec![("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1".to_owned())];
    let app = TestApp::start_with(TestOptions {
        settings,
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    app.get(&team.key, "/v1/runs").await.expect(200);
    let body = json!({"name": "x"});
    post(&app, &team.key, "/v1/agents", &body, "k")
        .await
        .error(429);
    app.clock().advance(Duration::from_secs(60));
    let done = post(&app, &team.key, "/v1/agents", &body, "k").await;
    assert!(!is_replay(&done));
    done.expect(201);
    app.finish().await;
}

#[tokio::test]
async fn its_scope_is_api_key_method_and_path() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let second = app.key(team.id, team.owner).await;
    let body = json!({"name": "x"});
    let agent = |reply: Reply| {
        reply.expect(201)["agent"]["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let one = agent(post(&app, &team.key, "/v1/agents", &body, "k").await);
    let two = agent(post(&app, &second, "/v1/agents", &body, "k").await);
    let three = agent(post(&app, &other.key, "/v1/agents", &body, "k").await);
    assert!(one != two && two != three && one != three);
    for (method, path) in [
        (Method::PATCH, format!("/v1/agents/{one}")),
        (Method::PATCH, format!("/v1/agents/{two}")),
        (Method::POST, "/v1/api-keys".to_owned()),
    ] {
        let reply = call(&app, method.clone(), &team.key, &path, &body, "k").await;
        assert!(
            matches!(reply.status, 200 | 201) && !is_replay(&reply),
            "{method} {path}: {reply:?}"
        );
    }
    // Also for the same path with different methods.
    let deleted = call(
        &app,
        Method::DELETE,
        &team.key,
        &format!("/v1/agents/{one}"),
        &body,
        "k",
    )
    .await;
    assert_eq!((deleted.status, is_replay(&deleted)), (204, false));
    app.finish().await;
}

#[tokio::test]
async fn keys_are_kept_for_24_hours() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = json!({"name": "x"});
    let first = post(&app, &team.key, "/v1/agents", &body, "k").await;
    app.advance(Duration::from_millis(24 * 3_600_000 - 1)).await;
    assert_replayed(
        &first,
        &post(&app, &team.key, "/v1/agents", &body, "k").await,
    );
    post(&app, &team.key, "/v1/agents", &json!({"name": "y"}), "k")
        .await
        .error(409);
    app.advance(Duration::from_millis(1)).await;
    let again = post(&app, &team.key, "/v1/agents", &body, "k").await;
    assert!(
        !is_replay(&again),
        "the hours count from the first answer, not from its last replay"
    );
    assert_ne!(
        again.expect(201)["agent"]["id"],
        first.json()["agent"]["id"]
    );
    app.finish().await;
}

#[tokio::test]
async fn a_key_has_1_to_255_characters() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = json!({"name": "x"});
    for bad in [String::new(), "x".repeat(256)] {
        let (code, message) = post(&app, &team.key, "/v1/agents", &body, &bad)
            .await
            .error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains("Idempotency-Key"), "{message}");
    }
    assert_eq!(
        app.get(&team.key, "/v1/agents").await.expect(200)["total"],
        0
    );
    for good in [
        "x".to_owned(),
        "y".repeat(255),
        "a key: with / all ~ sorts".to_owned(),
    ] {
        let first = post(&app, &team.key, "/v1/agents", &body, &good).await;
        assert_replayed(
            &first,
            &post(&app, &team.key, "/v1/agents", &body, &good).await,
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn reads_ignore_the_key() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for total in [0, 1] {
        let reply = call(&app, Method::GET, &team.key, "/v1/agents", &json!({}), "k").await;
        assert!(!is_replay(&reply));
        assert_eq!(reply.expect(200)["total"], total);
        echo(&app, &team).await;
    }
    app.finish().await;
}

#[tokio::test]
async fn a_secret_that_is_shown_once_is_not_in_the_replay() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = json!({"name": "deploy"});
    let first = post(&app, &team.key, "/v1/api-keys", &body, "k")
        .await
        .expect(201);
    assert!(first["key"].is_string());
    let replay = post(&app, &team.key, "/v1/api-keys", &body, "k").await;
    assert!(is_replay(&replay));
    let mut expected = first.clone();
    expected["key"] = Value::Null;
    expected["shown_once"] = json!(true);
    let mut replayed = replay.expect(201);
    // Whether the first response has it as well is not specified.
    expected["shown_once"].clone_from(&replayed["shown_once"]);
    assert_eq!(replayed["shown_once"].take(), true);
    expected["shown_once"].take();
    assert_eq!(replayed, expected);
    assert_eq!(
        app.get(&team.key, "/v1/api-keys").await.expect(200)["total"],
        2,
        "no second key"
    );
    app.finish().await;
}

#[tokio::test]
async fn permission_is_checked_before_a_replay() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (user, key) = app.person(&team, "ann@acme.example", Role::Admin).await;
    let body = json!({"name": "deploy"});
    post(&app, &key, "/v1/api-keys", &body, "k")
        .await
        .expect(201);
    app.store()
        .set_role(team.id, user, Role::Member, Role::Owner)
        .await
        .unwrap();
    post(&app, &key, "/v1/api-keys", &body, "k")
        .await
        .error(403);
    app.store()
        .remove_member(team.id, user, Role::Owner)
        .await
        .unwrap();
    post(&app, &key, "/v1/api-keys", &body, "k")
        .await
        .error(401);
    app.finish().await;
}

/// A direct upload of a raw body with an idempotency key.
async fn upload(
    app: &TestApp,
    team: &Team,
    sandbox: &str,
    path: &str,
    body: &'static str,
    idem: &str,
) -> Reply {
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/octet-stream"),
        ("idempotency-key", idem),
    ];
    let path = format!("/v1/sandboxes/{sandbox}/files?path={path}");
    app.send(Method::POST, &path, &headers, Body::from(body))
        .await
}

/// The same as `multipart/form-data`.
async fn upload_form(
    app: &TestApp,
    team: &Team,
    sandbox: &str,
    boundary: &str,
    body: &str,
    idem: &str,
) -> Reply {
    let bearer = format!("Bearer {}", team.key);
    let kind = format!("multipart/form-data; boundary={boundary}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", kind.as_str()),
        ("idempotency-key", idem),
    ];
    let part = "Content-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\n";
    let form = format!("--{boundary}\r\n{part}{body}\r\n--{boundary}--\r\n");
    app.send(
        Method::POST,
        &format!("/v1/sandboxes/{sandbox}/files"),
        &headers,
        Body::from(form),
    )
    .await
}

async fn content(app: &TestApp, team: &Team, sandbox: &str, path: &str) -> String {
    let reply = app
        .get(
            &team.key,
            &format!("/v1/sandboxes/{sandbox}/files/content?path={path}"),
        )
        .await;
    assert_eq!(reply.status, 200, "{reply:?}");
    String::from_utf8(reply.bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn uploads_differ_by_path_and_content() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let first = upload(&app, &team, &sandbox, "a.txt", "hello", "k").await;
    first.expect(201);
    assert_replayed(
        &first,
        &upload(&app, &team, &sandbox, "a.txt", "hello", "k").await,
    );
    upload(&app, &team, &sandbox, "a.txt", "other", "k")
        .await
        .error(409);
    assert_eq!(
        content(&app, &team, &sandbox, "a.txt").await,
        "hello",
        "what is refused is not written"
    );
    upload(&app, &team, &sandbox, "b.txt", "hello", "k")
        .await
        .error(409);
    app.get(
        &team.key,
        &format!("/v1/sandboxes/{sandbox}/files/content?path=b.txt"),
    )
    .await
    .error(404);
    upload(&app, &team, &sandbox, "a.txt", "other", "k2")
        .await
        .expect(201);
    assert_eq!(content(&app, &team, &sandbox, "a.txt").await, "other");
    app.finish().await;
}

#[tokio::test]
async fn the_file_of_a_multipart_upload_counts_not_the_form() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let first = upload_form(&app, &team, &sandbox, "one", "hello", "k").await;
    first.expect(201);
    assert_replayed(
        &first,
        &upload_form(&app, &team, &sandbox, "two", "hello", "k").await,
    );
    upload_form(&app, &team, &sandbox, "one", "other", "k")
        .await
        .error(409);
    assert_eq!(content(&app, &team, &sandbox, "a.txt").await, "hello");
    app.finish().await;
}
