//! Clients that send slowly or nothing, or do not read: the resources they hold are bounded, and others are served in
//! the meantime.

use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use errand_testkit::{Reply, Team, TestApp};
use http::{Method, Request};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

use crate::api_sandboxes::{on_disk, upload_url};

/// Longer than any timeout of these servers, so only a faulty server makes the test wait this long.
const PATIENCE: Duration = Duration::from_secs(60);

async fn connect(app: &TestApp) -> TcpStream {
    let address = app.url().strip_prefix("http://").unwrap();
    TcpStream::connect(address).await.unwrap()
}

/// Sends the bytes and then nothing. Returns what arrives until the server closes the connection.
async fn send_then_wait(app: &TestApp, bytes: &[u8]) -> String {
    let mut stream = connect(app).await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the server ends a connection whose client is silent")
        .ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends a request whose body stops after some bytes. The server is reading it when this returns.
async fn stall(app: &TestApp, path: &str, key: Option<&str>) -> JoinHandle<u16> {
    let (router, path) = (app.app().router(), path.to_owned());
    let method = if key.is_some() {
        Method::POST
    } else {
        Method::PUT
    };
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let (read, was_read) = oneshot::channel();
    let mut read = Some(read);
    let body = futures::stream::poll_fn(move |_| match read.take() {
        Some(read) => {
            read.send(()).ok();
            Poll::Ready(Some(Ok::<_, std::io::Error>("abc")))
        }
        None => Poll::Pending,
    });
    let request = request.body(Body::from_stream(body)).unwrap();
    let upload =
        tokio::spawn(async move { router.oneshot(request).await.unwrap().status().as_u16() });
    tokio::time::timeout(PATIENCE, was_read)
        .await
        .expect("a body that is read")
        .unwrap();
    upload
}

#[tokio::test]
async fn a_body_that_stops_coming_ends_and_leaves_nothing() {
    let app = TestApp::with_settings(&[("ERRAND_SERVER__IDLE_TIMEOUT", "300ms")]).await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "whole", "whole")
        .await
        .expect(201);
    let files_of_sandboxes = || on_disk(app.sandbox_dir(&sandbox).parent().unwrap());
    let before = files_of_sandboxes();
    let url = upload_url(&app, &team, &sandbox, "big").await;
    let files = format!("/v1/sandboxes/{sandbox}/files");
    let key = format!("authorization: Bearer {}\r\n", team.key);
    let form = "content-type: multipart/form-data; boundary=b\r\n";
    let json = "content-type: application/json\r\n";
    let web_form = "content-type: application/x-www-form-urlencoded\r\n";
    let part = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nabc";
    for (method, path, headers, body) in [
        ("PUT", url.clone(), String::new(), "abc"),
        ("POST", format!("{files}?path=x"), key.clone(), "abc"),
        ("POST", files.clone(), format!("{key}{form}"), part),
        (
            "POST",
            "/v1/runs".to_owned(),
            format!("{key}{json}"),
            "{\"a",
        ),
        ("POST", "/v1/sandboxes".to_owned(), key.clone(), "abc"),
        ("POST", "/log-in".to_owned(), web_form.to_owned(), "email=a"),
    ] {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: errand\r\ncontent-length: 1000\r\n{headers}\r\n{body}"
        );
        let answer = send_then_wait(&app, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{path}: {answer}");
        assert!(
            answer.contains("request_timeout") || path == "/log-in",
            "{path}: {answer}"
        );
    }
    // Nothing of them is left on disk, and each freed its slot.
    assert_eq!(before, files_of_sandboxes());
    let put = app.send(Method::PUT, &url, &[], Body::from("whole")).await;
    put.expect(200);
    app.finish().await;
}

#[test]
fn uploads_that_stand_still_hold_no_thread() {
    // Two blocking threads, and ten times as many uploads that are being written.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let app = TestApp::with_settings(&[("ERRAND_UPLOADS__CONCURRENT_PER_KEY", "100")]).await;
        let team = app.team("acme").await;
        let sandbox = app.sandbox(&team).await;
        let path = format!("/v1/sandboxes/{sandbox}/files?path=x");
        let mut uploads = Vec::new();
        for _ in 0..20 {
            uploads.push(stall(&app, &path, Some(&team.key)).await);
        }
        for path in [
            "/readyz",
            "/v1/agents",
            &format!("/v1/sandboxes/{sandbox}/files"),
        ] {
            let answer = tokio::time::timeout(PATIENCE, app.get(&team.key, path)).await;
            answer
                .expect("an answer beside uploads that stand still")
                .expect(200);
        }
        uploads.iter().for_each(JoinHandle::abort);
        app.finish().await;
    });
    runtime.shutdown_background();
}

/// Sends an upload of one byte.
async fn upload(app: &TestApp, path: &str, key: Option<&str>) -> Reply {
    let bearer = format!("Bearer {}", key.unwrap_or_default());
    let headers = [("authorization", bearer.as_str())];
    match key {
        Some(_) => {
            app.send(Method::POST, path, &headers, Body::from("x"))
                .await
        }
        None => app.send(Method::PUT, path, &[], Body::from("x")).await,
    }
}

async fn is_refused(app: &TestApp, path: &str, key: Option<&str>, status: u16) {
    let reply = upload(app, path, key).await;
    reply.error(status);
    assert!(reply.header("retry-after").is_some());
}

#[tokio::test]
async fn uploads_at_once_are_limited_by_key_url_and_total() {
    let app = TestApp::with_settings(&[
        ("ERRAND_UPLOADS__CONCURRENT_PER_KEY", "2"),
        ("ERRAND_UPLOADS__CONCURRENT_PER_URL", "1"),
        ("ERRAND_UPLOADS__CONCURRENT_MAX", "4"),
        ("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "100000"),
    ])
    .await;
    let (one, two) = (app.team("one").await, app.team("two").await);
    let sandbox = app.sandbox(&one).await;
    let by_key = format!("/v1/sandboxes/{sandbox}/files?path=x");
    let by_url = upload_url(&app, &one, &sandbox, "y").await;
    // Per key: 429.
    let mut held = vec![
        stall(&app, &by_key, Some(&one.key)).await,
        stall(&app, &by_key, Some(&one.key)).await,
    ];
    is_refused(&app, &by_key, Some(&one.key), 429).await;
    // The team can use half of the total, and the others the rest.
    is_refused(&app, &by_url, None, 429).await;
    let others = app.sandbox(&two).await;
    let others_url = upload_url(&app, &two, &others, "z").await;
    held.push(stall(&app, &others_url, None).await);
    // Per URL: 429.
    is_refused(&app, &others_url, None, 429).await;
    let others_key = format!("/v1/sandboxes/{others}/files?path=x");
    held.push(stall(&app, &others_key, Some(&two.key)).await);
    // In total: 503.
    let third = app.team("three").await;
    let sandbox = app.sandbox(&third).await;
    let third_path = format!("/v1/sandboxes/{sandbox}/files?path=x");
    is_refused(&app, &third_path, Some(&third.key), 503).await;
    // A client that gives up frees its slot.
    held.drain(..).for_each(|upload| upload.abort());
    let free = async {
        while upload(&app, &by_key, Some(&one.key)).await.status != 201 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, free)
        .await
        .expect("a slot that came free");
    app.finish().await;
}

#[tokio::test]
async fn large_bodies_that_stand_still_are_bounded_by_bytes() {
    let app = TestApp::with_settings(&[]).await;
    let (one, two) = (app.team("one").await, app.team("two").await);
    let path = "/v1/agents";
    // Sends most of a large body, and then nothing.
    let stall = |key: &str| {
        let mut pieces = vec![vec![b' '; 3_900_000]];
        let (read, was_read) = oneshot::channel();
        let mut read = Some(read);
        let body = futures::stream::poll_fn(move |_| match pieces.pop() {
            Some(piece) => Poll::Ready(Some(Ok::<_, std::io::Error>(piece))),
            None => {
                if let Some(read) = read.take() {
                    read.send(()).ok();
                }
                Poll::Pending
            }
        });
        let request = Request::post(path)
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json")
            .body(Body::from_stream(body))
            .unwrap();
        let router = app.app().router();
        let request = async move { router.oneshot(request).await.unwrap().status().as_u16() };
        (tokio::spawn(request), was_read)
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        let (request, was_read) = stall(&one.key);
        tokio::time::timeout(PATIENCE, was_read)
            .await
            .expect("a body that is read")
            .unwrap();
        held.push(request);
    }
    // The fifth is refused; ordinary requests of the same key, and large ones of others, are not.
    assert_eq!(stall(&one.key).0.await.unwrap(), 429);
    app.playbook(&one, json!([{"finish": "x"}])).await;
    let (other, was_read) = stall(&two.key);
    tokio::time::timeout(PATIENCE, was_read)
        .await
        .expect("a body that is read")
        .unwrap();
    other.abort();
    // Someone who is not logged in cannot send a large form.
    let form = vec![b'a'; 65 * 1024];
    let refused = app
        .send(Method::POST, "/log-in", &[], form.into())
        .await
        .status;
    assert_eq!(refused, 413);
    held.drain(..).for_each(|request| request.abort());
    let free = async {
        loop {
            let (request, was_read) = stall(&one.key);
            if was_read.await.is_ok() {
                request.abort();
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, free)
        .await
        .expect("room that came free");
    app.finish().await;
}

#[tokio::test]
async fn connections_that_send_nothing_are_closed() {
    let app = TestApp::with_settings(&[("ERRAND_SERVER__IDLE_TIMEOUT", "200ms")]).await;
    // Before the first byte, within the head, and after a response.
    assert_eq!(send_then_wait(&app, b"").await, "");
    send_then_wait(&app, b"GET /healthz HTTP/1.1\r\nhost: a").await;
    let kept = send_then_wait(&app, b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(kept.starts_with("HTTP/1.1 200 "), "{kept}");
    app.finish().await;
}

#[tokio::test]
async fn a_request_has_exactly_one_host() {
    let app = TestApp::with_settings(&[]).await;
    let end = "connection: close\r\n\r\n";
    for (head, status) in [
        ("GET /healthz HTTP/1.1\r\nhost: a\r\n", 200),
        ("GET /healthz HTTP/1.0\r\n", 200),
        ("GET /healthz HTTP/1.1\r\n", 400),
        ("GET /v1/agents HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.1\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nhost: a\r\nHost: b\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nhost:\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nhost: a b\r\n", 400),
    ] {
        let answer = send_then_wait(&app, format!("{head}{end}").as_bytes()).await;
        let expected = format!(" {status} ");
        assert!(
            answer.get(8..13) == Some(expected.as_str()),
            "{head:?}: {answer}"
        );
        if status == 400 {
            assert!(answer.contains("\"error\":\"bad_request\""), "{answer}");
            assert!(answer.contains("x-request-id: "), "{answer}");
        }
    }
    app.finish().await;
}

/// A waiting run with messages of this many bytes.
async fn run_with_messages(app: &TestApp, team: &Team, count: usize, bytes: usize) -> String {
    let agent = app.playbook(team, json!([{"wait": "1h"}])).await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    let message = "x".repeat(bytes);
    for _ in 0..count {
        app.message(team, &run, &message).await;
    }
    app.settle().await;
    run
}

#[tokio::test]
async fn a_page_of_messages_ends_by_bytes_and_the_next_goes_on() {
    let app = TestApp::with_settings(&[]).await;
    let team = app.team("acme").await;
    let run = run_with_messages(&app, &team, 4, 3_900_000).await;
    let page = async |offset: u64| {
        let path = format!("/v1/runs/{run}/messages?limit=50&offset={offset}");
        app.get(&team.key, &path).await.expect(200)
    };
    let (mut offset, mut seen, mut pages) = (0, 0, 0);
    let total = loop {
        let page = page(offset).await;
        let held = page["messages"].as_array().unwrap().len() as u64;
        let bytes = page.to_string().len();
        assert!(bytes < 9 * 1024 * 1024, "{bytes}");
        assert_eq!(page["offset"], offset);
        seen += held;
        pages += 1;
        // Pages like a client that knows only `offset` and `limit`.
        offset += page["limit"].as_u64().unwrap();
        if offset >= page["total"].as_u64().unwrap() {
            break page["total"].as_u64().unwrap();
        }
    };
    assert!(
        pages >= 2 && seen == total,
        "{seen} of {total} on {pages} pages"
    );
    app.finish().await;
}

#[tokio::test]
async fn the_event_streams_of_a_key_are_limited() {
    let app = TestApp::with_settings(&[("ERRAND_API__EVENT_STREAMS_PER_KEY", "2")]).await;
    let team = app.team("acme").await;
    let run = run_with_messages(&app, &team, 0, 0).await;
    let second = app.key(team.id, team.owner).await;
    let open = async |key: &str| {
        let request = Request::get(format!("/v1/runs/{run}/events"))
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())
            .unwrap();
        app.app().router().oneshot(request).await.unwrap()
    };
    let mut held = vec![open(&team.key).await, open(&team.key).await];
    let refused = open(&team.key).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(open(&second).await.status(), 200, "another key has its own");
    // A client that disconnects frees its stream.
    held.pop();
    let again = async {
        while open(&team.key).await.status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again)
        .await
        .expect("a stream");
    app.finish().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_stream_is_cut() {
    let app = TestApp::with_settings(&[
        ("ERRAND_SERVER__UNREAD_TIMEOUT", "300ms"),
        ("ERRAND_API__EVENT_STREAMS_PER_KEY", "1"),
        ("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "100000"),
    ])
    .await;
    let team = app.team("acme").await;
    let (count, bytes) = (12, 3_900_000);
    let run = run_with_messages(&app, &team, count, bytes).await;
    let mut stream = connect(&app).await;
    let head = format!(
        "GET /v1/runs/{run}/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
        team.key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut begun = [0; 15];
    stream.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200 OK");
    // It stops reading: its stream is freed, so that the key can open another.
    let freed = async {
        loop {
            let request = Request::get(format!("/v1/runs/{run}/events"))
                .header("authorization", format!("Bearer {}", team.key))
                .body(Body::empty())
                .unwrap();
            let response = app.app().router().oneshot(request).await.unwrap();
            if response.status() == 200 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed)
        .await
        .expect("a stream that came free");
    // Its connection is closed, with most of the events never sent.
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the server closes a connection that nobody reads")
        .ok();
    assert!(rest.len() < count * bytes, "{} bytes came", rest.len());
    app.finish().await;
}

#[tokio::test]
async fn an_event_larger_than_a_page_comes_whole() {
    let app = TestApp::with_settings(&[]).await;
    let team = app.team("acme").await;
    let run = run_with_messages(&app, &team, 3, 700_000).await;
    app.post(&team.key, &format!("/v1/runs/{run}/stop"), json!({}))
        .await;
    let path = format!("/v1/runs/{run}/events");
    let text = String::from_utf8(app.get(&team.key, &path).await.bytes.to_vec()).unwrap();
    let ids: Vec<u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("id: ")?.parse().ok())
        .collect();
    assert_eq!(
        ids,
        (1..=ids.len() as u64).collect::<Vec<_>>(),
        "each once, in order"
    );
    let large = "x".repeat(700_000);
    assert_eq!(text.matches(&large).count(), 3);
    assert!(text.contains("event: end\n"));
    app.finish().await;
}
