//! Errors over HTTP: all have the same form, and clients receive every refusal.

use std::time::Duration;

use axum::body::Body;
use errand_testkit::{Reply, Team, TestApp, TestOptions};
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::api_runs::{NOBODY, count_runs, echo, seen, waiting};

const MIB: usize = 1 << 20;
/// An upper bound, not a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a `POST` with these bytes and this content type.
async fn send_as(
    app: &TestApp,
    key: &str,
    path: &str,
    kind: Option<&str>,
    body: impl Into<Body>,
) -> Reply {
    let bearer = format!("Bearer {key}");
    let mut headers = vec![("authorization", bearer.as_str())];
    headers.extend(kind.map(|kind| ("content-type", kind)));
    app.send(Method::POST, path, &headers, body.into()).await
}

/// Asserts that a response is an error in the common form, and returns its message.
#[track_caller]
fn assert_error(reply: &Reply, status: u16, code: &str) -> String {
    let (error, message) = reply.error(status);
    assert_eq!(error, code, "{message}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(
        reply.json().as_object().unwrap().len(),
        2,
        "error and message, nothing else"
    );
    assert!(message.len() > 10, "a sentence: {message:?}");
    assert!(reply.header("x-request-id").is_some());
    message
}

/// Path and method of each documented endpoint, with IDs that do not exist.
fn endpoints(app: &TestApp) -> Vec<(Method, String)> {
    let paths = app.contract().document()["paths"]
        .as_object()
        .unwrap()
        .clone();
    let mut found = Vec::new();
    for (template, item) in paths {
        let parts: Vec<_> = template
            .split('/')
            .map(|part| if part.starts_with('{') { NOBODY } else { part })
            .collect();
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            if let Ok(
                method
                @ (Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE),
            ) = method.parse()
            {
                found.push((method, parts.join("/")));
            }
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

fn is_public(path: &str) -> bool {
    path.starts_with("/v1/documentation")
        || path.starts_with("/v1/uploads/")
        || path.starts_with("/v1/sign-ins/")
        || !path.starts_with("/v1/")
}

#[tokio::test]
async fn every_endpoint_refuses_a_missing_key_in_the_one_form() {
    let settings = vec![(
        "ERRAND_RATE_LIMIT__FAILED_AUTHENTICATIONS_PER_MINUTE",
        "1000".to_owned(),
    )];
    let app = TestApp::start_with(TestOptions {
        settings,
        ..TestOptions::default()
    })
    .await;
    for (method, path) in endpoints(&app)
        .into_iter()
        .filter(|(_, path)| !is_public(path))
    {
        let reply = app.send(method, &path, &[], Body::empty()).await;
        assert_error(&reply, 401, "unauthorized");
    }
    app.finish().await;
}

#[tokio::test]
async fn every_endpoint_answers_404_to_an_unknown_id() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let with_id = endpoints(&app)
        .into_iter()
        // `PUT` with a name that the team chooses creates the object.
        .filter(|(method, path)| {
            path.contains(NOBODY) && !is_public(path) && method != Method::PUT
        });
    let bodies = [
        ("/messages", json!({"message": "x"})),
        ("/fork", json!({"message": "x"})),
        ("/respond", json!({"approved": true})),
        ("/upload-urls", json!({"path": "a"})),
        ("/promote", json!({"revision_name": "x"})),
        (
            "/revisions",
            json!({"name": "x", "config": {"version": "v2", "data": {"playbook": {"steps": [{"finish": "x"}]}}}}),
        ),
        (
            "/builds",
            json!({"name": "x", "config": {"version": "v2", "data": {"playbook": {"steps": [{"finish": "x"}]}}}}),
        ),
    ];
    let of_things = [
        ("/members/", json!({"role": "member"})),
        ("/webhooks/", json!({"enabled": true})),
        ("/connections/", json!({"trusted": false})),
    ];
    for (method, path) in with_id {
        let by_end = bodies.iter().find(|(end, _)| path.ends_with(end));
        let body = by_end
            .or_else(|| of_things.iter().find(|(part, _)| path.contains(part)))
            .map_or(json!({"name": "x"}), |(_, body)| body.clone());
        let is_upload = method == Method::POST && path.ends_with("/files");
        let reply = if is_upload {
            app.upload(&team.key, NOBODY, "a.txt", "x").await
        } else if method == Method::GET {
            app.get(&team.key, &path).await
        } else {
            app.json(method, &team.key, &path, body, &[]).await
        };
        assert_error(&reply, 404, "not_found");
        let malformed = app.get(&team.key, &path.replace(NOBODY, "..%2f")).await;
        assert!(
            (400..500).contains(&malformed.status),
            "{path}: {malformed:?}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_path_that_is_no_endpoint_is_404_in_the_one_form() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for path in [
        "/v1/nonsense",
        "/v1/runs/",
        "/v1//runs",
        "/v1/runs/a/b/c",
        "/v1/",
        "/v1",
        "/v1/%ff",
        "/v1/documentation/nonsense",
    ] {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let reply = app.json(method, &team.key, path, json!({}), &[]).await;
            assert_error(&reply, 404, "not_found");
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn elsewhere_errors_have_the_one_form_too_unless_html_is_wanted() {
    let app = TestApp::start().await;
    for headers in [
        &[][..],
        &[("accept", "*/*")],
        &[("accept", "application/json")],
    ] {
        let reply = app
            .send(Method::GET, "/nonsense", headers, Body::empty())
            .await;
        assert_error(&reply, 404, "not_found");
    }
    let page = app
        .send(
            Method::GET,
            "/nonsense",
            &[("accept", "text/html,*/*;q=0.8")],
            Body::empty(),
        )
        .await;
    assert_eq!(page.status, 404);
    assert!(
        page.header("content-type")
            .unwrap()
            .starts_with("text/html")
    );
    // Below /v1, the response is JSON regardless of `accept`.
    let reply = app
        .send(
            Method::GET,
            "/v1/nonsense",
            &[("accept", "text/html")],
            Body::empty(),
        )
        .await;
    assert_error(&reply, 401, "unauthorized");
    app.finish().await;
}

#[tokio::test]
async fn a_wrong_method_is_405_and_told_the_right_ones() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let all = endpoints(&app);
    for (_, path) in &all {
        let right: Vec<_> = all
            .iter()
            .filter(|(_, other)| other == path)
            .map(|(method, _)| method)
            .collect();
        for method in [
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ] {
            if right.contains(&&method) {
                continue;
            }
            let reply = app
                .json(method.clone(), &team.key, path, json!({}), &[])
                .await;
            assert_error(&reply, 405, "method_not_allowed");
            let allow = reply
                .header("allow")
                .unwrap_or_else(|| panic!("{method} {path} without allow"));
            let allowed: Vec<_> = allow.split(',').map(str::trim).collect();
            assert!(
                right.iter().all(|m| allowed.contains(&m.as_str())),
                "{path} allows {allow}, not {right:?}"
            );
            assert!(!allowed.contains(&method.as_str()), "{path} allows {allow}");
        }
    }
    app.finish().await;
}

/// Every call that reads JSON, with a valid body.
async fn json_calls(app: &TestApp, team: &Team) -> Vec<(Method, String, Value)> {
    let agent = echo(app, team).await;
    let (run, request) = waiting(app, team).await;
    let build = app
        .get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200)["build"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let sandbox = app.sandbox(team).await;
    let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": "x"}]}}});
    vec![
        (
            Method::POST,
            "/v1/runs".to_owned(),
            json!({"agent_id": agent}),
        ),
        (
            Method::POST,
            format!("/v1/runs/{run}/messages"),
            json!({"message": "x"}),
        ),
        (
            Method::POST,
            format!("/v1/runs/{run}/human-requests/{request}/respond"),
            json!({"approved": true}),
        ),
        (
            Method::POST,
            format!("/v1/sandboxes/{sandbox}/upload-urls"),
            json!({"path": "a.txt"}),
        ),
        (Method::POST, "/v1/agents".to_owned(), json!({"name": "x"})),
        (
            Method::PATCH,
            format!("/v1/agents/{agent}"),
            json!({"name": "x"}),
        ),
        (
            Method::POST,
            format!("/v1/agents/{agent}/revisions"),
            json!({"name": "x", "config": config}),
        ),
        (
            Method::POST,
            "/v1/builds".to_owned(),
            json!({"agent_id": agent, "name": "x", "config": config}),
        ),
        (
            Method::PATCH,
            format!("/v1/revisions/{build}"),
            json!({"name": "x"}),
        ),
        (
            Method::POST,
            "/v1/api-keys".to_owned(),
            json!({"name": "x"}),
        ),
    ]
}

/// Counts of everything that a team has.
async fn counts(app: &TestApp, team: &Team) -> Vec<Value> {
    let mut counts = Vec::new();
    for path in ["/v1/runs", "/v1/agents", "/v1/api-keys"] {
        counts.push(app.get(&team.key, path).await.expect(200)["total"].clone());
    }
    counts
}

#[tokio::test]
async fn a_body_that_is_not_json_is_400_and_changes_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let calls = json_calls(&app, &team).await;
    let before = counts(&app, &team).await;
    let deep = "[".repeat(200_000);
    let deep_inside = format!("{{\"config\": {deep}");
    let bad: [&[u8]; 11] = [
        b"",
        b" ",
        b"{",
        b"{\"name\": }",
        b"{\"name\": \"x\"} trailing",
        b"[]",
        b"\"x\"",
        b"null",
        b"{\"name\": \"\xff\"}",
        deep.as_bytes(),
        deep_inside.as_bytes(),
    ];
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    for (method, path, _) in calls {
        for body in bad {
            let reply = app
                .send(method.clone(), &path, &headers, Body::from(body.to_vec()))
                .await;
            assert_error(&reply, 400, "bad_request");
        }
    }
    assert_eq!(counts(&app, &team).await, before);
    app.finish().await;
}

#[tokio::test]
async fn a_body_of_another_type_is_415_and_changes_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let calls = json_calls(&app, &team).await;
    let before = counts(&app, &team).await;
    for (method, path, body) in calls {
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/xml",
            "nonsense",
            "",
        ] {
            let bearer = format!("Bearer {}", team.key);
            let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
            let reply = app
                .send(
                    method.clone(),
                    &path,
                    &headers,
                    Body::from(body.to_string()),
                )
                .await;
            assert_error(&reply, 415, "unsupported_media_type");
        }
    }
    assert_eq!(counts(&app, &team).await, before);
    for kind in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json;charset=UTF-8",
    ] {
        send_as(
            &app,
            &team.key,
            "/v1/agents",
            Some(kind),
            r#"{"name": "x"}"#,
        )
        .await
        .expect(201);
    }
    app.finish().await;
}

#[tokio::test]
async fn an_unknown_field_is_400_and_suggests_a_known_one() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let calls = json_calls(&app, &team).await;
    let before = counts(&app, &team).await;
    for (method, path, body) in calls {
        let mut body = body.clone();
        body["nonsense_field"] = json!(1);
        let reply = app.json(method, &team.key, &path, body, &[]).await;
        let message = assert_error(&reply, 400, "bad_request");
        assert!(message.contains("nonsense_field"), "{path}: {message}");
    }
    let agent = echo(&app, &team).await;
    let typos = [
        (
            "webhok_url",
            "webhook_url",
            "/v1/runs",
            json!({"agent_id": agent, "webhok_url": "https://example.com"}),
        ),
        (
            "webhookUrl",
            "webhook_url",
            "/v1/runs",
            json!({"agent_id": agent, "webhookUrl": "https://example.com"}),
        ),
        (
            "sandboxid",
            "sandbox_id",
            "/v1/runs",
            json!({"agent_id": agent, "sandboxid": "x"}),
        ),
        ("agentId", "agent_id", "/v1/runs", json!({"agentId": agent})),
        (
            "expires",
            "expires_at",
            "/v1/api-keys",
            json!({"name": "x", "expires": "2027-01-01T00:00:00Z"}),
        ),
        (
            "confg",
            "config",
            "/v1/agents",
            json!({"name": "x", "build": {"name": "x", "confg": {}}}),
        ),
    ];
    for (given, meant, path, body) in typos {
        let message = assert_error(&app.post(&team.key, path, body).await, 400, "bad_request");
        assert!(
            message.contains(given) && message.contains(meant),
            "{given}: {message}"
        );
    }
    let mut after = counts(&app, &team).await;
    after[1] = before[1].clone();
    assert_eq!(after, before);
    assert_eq!(
        app.get(&team.key, "/v1/agents").await.expect(200)["total"],
        before[1].as_u64().unwrap() + 1,
        "the one of this test"
    );
    app.finish().await;
}

#[tokio::test]
async fn an_unknown_query_parameter_is_400_with_the_nearest_known_one() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let before = seen(&app, &team, &run).await;
    for (query, given, meant) in [
        ("limt=1", "limt", "limit"),
        ("statuses=failed", "statuses", "status"),
        ("sort=asc", "sort", "sort_by"),
        ("sortorder=asc", "sortorder", "sort_order"),
        ("Limit=1", "Limit", "limit"),
    ] {
        let reply = app.get(&team.key, &format!("/v1/runs?{query}")).await;
        let message = assert_error(&reply, 400, "bad_request");
        assert!(
            message.contains(given) && message.contains(meant),
            "{query}: {message}"
        );
    }
    for path in [
        "/v1/agents?nonsense=1",
        "/v1/api-keys?nonsense",
        &format!("/v1/runs/{run}?nonsense=1"),
        "/v1/webhook-secret?nonsense=1",
    ] {
        let message = assert_error(&app.get(&team.key, path).await, 400, "bad_request");
        assert!(message.contains("nonsense"), "{path}: {message}");
    }
    let stop = format!("/v1/runs/{run}/stop?force=true");
    assert_error(
        &app.post(&team.key, &stop, json!({})).await,
        400,
        "bad_request",
    );
    assert_eq!(seen(&app, &team, &run).await, before);
    app.finish().await;
}

#[tokio::test]
async fn the_setting_to_ignore_passes_unknown_names_over() {
    let settings = vec![("ERRAND_API__UNKNOWN_FIELDS", "ignore".to_owned())];
    let app = TestApp::start_with(TestOptions {
        settings,
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    let agent = echo(&app, &team).await;
    let body =
        json!({"agent_id": agent, "webhok_url": "https://example.com", "priority": {"high": true}});
    let run = app
        .post(&team.key, "/v1/runs?nonsense=1", body)
        .await
        .expect(201)["run"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    app.settle().await;
    assert_eq!(
        app.get(&team.key, "/v1/runs?limit=1&nonsense=1")
            .await
            .expect(200)["runs"][0]["id"],
        run
    );
    let build = json!({"name": "x", "colour": "red", "config": {"version": "v2", "data": {"playbook": {"steps": [{"finish": "x"}]}}}});
    app.post(
        &team.key,
        "/v1/agents",
        json!({"name": "x", "build": build}),
    )
    .await
    .expect(201);
    // An invalid value of a known field is refused regardless.
    app.post(&team.key, "/v1/runs", json!({"agent_id": 7}))
        .await
        .error(400);
    app.get(&team.key, "/v1/runs?limit=0").await.error(400);
    app.finish().await;
}

#[tokio::test]
async fn unknown_keys_of_a_config_are_kept_and_given_back() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let config = json!({"version": "v2", "extra": [1], "data": {"theme": {"a": 1.5, "ü": null}, "playbook": {"steps": [{"finish": "x"}]}}});
    let agent = app.agent(&team, config.clone()).await;
    assert_eq!(
        app.get(&team.key, &format!("/v1/agents/{agent}"))
            .await
            .expect(200)["build"]["config"],
        config
    );
    app.finish().await;
}

#[tokio::test]
async fn a_call_that_takes_no_body_accepts_anything_as_one() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let bodies: [(Option<&str>, &str); 6] = [
        (None, ""),
        (Some("application/json"), ""),
        (Some("application/json"), "{\"nonsense\": 1}"),
        (Some("application/json"), "{no json"),
        (Some("text/plain"), "anything"),
        (Some("application/x-www-form-urlencoded"), "a=b"),
    ];
    for (kind, body) in bodies {
        let (run, _) = waiting(&app, &team).await;
        send_as(&app, &team.key, &format!("/v1/runs/{run}/stop"), kind, body)
            .await
            .expect(200);
        assert_eq!(app.status(&team, &run).await, "interrupted");
        send_as(&app, &team.key, "/v1/sandboxes", kind, body)
            .await
            .expect(201);
        send_as(
            &app,
            &team.key,
            &format!("/v1/runs/{run}/retry"),
            kind,
            body,
        )
        .await
        .error(400);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_body_of_json_has_at_most_4_mib() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let before = seen(&app, &team, &run).await;
    let path = format!("/v1/runs/{run}/messages");
    let of_size = |bytes: usize| format!("{{\"message\": \"{}\"}}", "x".repeat(bytes - 15));
    let over = of_size(4 * MIB + 1);
    assert_eq!(over.len(), 4 * MIB + 1);
    let reply = send_as(
        &app,
        &team.key,
        &path,
        Some("application/json"),
        over.clone(),
    )
    .await;
    assert_error(&reply, 413, "payload_too_large");
    // Also without a length, in chunks.
    let parts: Vec<Result<_, std::io::Error>> = over
        .as_bytes()
        .chunks(MIB)
        .map(|part| Ok(part.to_vec()))
        .collect();
    let reply = send_as(
        &app,
        &team.key,
        &path,
        Some("application/json"),
        Body::from_stream(futures::stream::iter(parts)),
    )
    .await;
    assert_error(&reply, 413, "payload_too_large");
    let reply = send_as(&app, &team.key, "/v1/runs", Some("application/json"), over).await;
    assert_error(&reply, 413, "payload_too_large");
    app.settle().await;
    assert_eq!(seen(&app, &team, &run).await, before);
    send_as(
        &app,
        &team.key,
        &path,
        Some("application/json"),
        of_size(4 * MIB),
    )
    .await
    .expect(201);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_refused_body_lets_the_client_see_the_answer() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let client = reqwest::Client::builder().build().unwrap();
    let url = format!("{}/v1/runs", app.url());
    let large = "x".repeat(24 * MIB);
    for (key, status) in [(team.key.as_str(), 413), ("dv_wrong", 401)] {
        let request = client
            .post(&url)
            .bearer_auth(key)
            .header("content-type", "application/json");
        // The server keeps reading while the client sends. If it closed the connection, this would fail.
        let response = request.body(large.clone()).send().await.unwrap();
        assert_eq!(response.status(), status);
        assert!(response.json::<Value>().await.unwrap()["message"].is_string());
    }
    assert_eq!(count_runs(&app, &team).await, 0);
    app.finish().await;
}

/// Sends a head and reads the head of the response.
async fn head_of_answer(stream: &mut TcpStream, sent: &str) -> String {
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut head = String::new();
    let read = async {
        while !head.ends_with("\r\n\r\n") {
            let byte = stream.read_u8().await.unwrap();
            head.push(char::from(byte));
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .unwrap_or_else(|_| panic!("no answer to {sent:?}"));
    head
}

fn head(app: &TestApp, key: &str, length: usize) -> (String, String) {
    let address = app.url().strip_prefix("http://").unwrap().to_owned();
    let head = format!(
        "POST /v1/agents HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n"
    );
    (address, head)
}

#[tokio::test]
async fn expect_100_continue_is_honored() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = r#"{"name": "x"}"#;
    let (address, request) = head(&app, &team.key, body.len());
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let first = head_of_answer(&mut stream, &request).await;
    assert!(first.starts_with("HTTP/1.1 100 "), "{first}");
    let second = head_of_answer(&mut stream, body).await;
    assert!(second.starts_with("HTTP/1.1 201 "), "{second}");

    // A body that would be refused is not requested.
    for (key, length, status) in [
        (team.key.as_str(), 5 * MIB, "413"),
        ("dv_wrong", body.len(), "401"),
    ] {
        let (address, request) = head(&app, key, length);
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let answer = head_of_answer(&mut stream, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_request_id_is_on_every_response_and_a_good_one_is_kept() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let bearer = format!("Bearer {}", team.key);
    let id = async |method: Method, path: &str, headers: &[(&str, &str)]| {
        let reply = app.send(method, path, headers, Body::empty()).await;
        let ids: Vec<_> = reply.headers.get_all("x-request-id").iter().collect();
        assert_eq!(ids.len(), 1, "{path}");
        reply.header("x-request-id").unwrap().to_owned()
    };
    let long = "x".repeat(128);
    for kept in [
        "a",
        "A-1.b_2",
        "0198f2a4-7c1e-7000-8000-000000000001",
        &long,
    ] {
        for (method, path) in [
            (Method::GET, "/v1/runs"),
            (Method::GET, "/v1/nonsense"),
            (Method::PATCH, "/v1/runs"),
            (Method::POST, "/v1/runs"),
            (Method::GET, "/healthz"),
            (Method::GET, "/nonsense"),
        ] {
            let given = [("authorization", bearer.as_str()), ("x-request-id", kept)];
            assert_eq!(id(method, path, &given).await, kept, "{path}");
        }
        assert_eq!(
            id(Method::GET, "/v1/runs", &[("x-request-id", kept)]).await,
            kept,
            "of a 401 as well"
        );
    }
    let longer = "x".repeat(129);
    let mut made = std::collections::BTreeSet::new();
    for refused in ["", " ", "a b", "a/b", "a\"b", "<script>", "ä", &longer] {
        let given = [
            ("authorization", bearer.as_str()),
            ("x-request-id", refused),
        ];
        let id = id(Method::GET, "/v1/runs", &given).await;
        assert_ne!(id, refused);
        assert!(
            (1..=128).contains(&id.len())
                && id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
            "{id}"
        );
        made.insert(id);
    }
    for path in [
        "/v1/runs",
        "/v1/nonsense",
        "/healthz",
        "/readyz",
        "/v1/documentation",
    ] {
        made.insert(id(Method::GET, path, &[]).await);
    }
    assert_eq!(made.len(), 13, "each its own");
    app.finish().await;
}
