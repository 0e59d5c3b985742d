//! The client, with mock servers that return the responses of each test.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::StatusCode;
use serde_json::{Value, json};
use wiremock::matchers::{any, body_json, body_string, header, method, path, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::*;

const KEY: &str = "dv_00000000000000000000000000000000";
const ID: &str = "0193b0e2-0000-7000-8000-000000000000";
const AT: &str = "2026-11-23T09:30:00.123Z";

fn client_with(server: &MockServer, policy: RetryPolicy) -> Client {
    Client::builder(&format!("{}/", server.uri()), KEY)
        .retry(policy.pause(Duration::ZERO))
        .build()
        .unwrap()
}

fn client(server: &MockServer) -> Client {
    client_with(server, RetryPolicy::default())
}

fn run_id() -> RunId {
    RunId::from(ID)
}

fn run(status: &str) -> Value {
    json!({
        "id": ID, "agent_id": ID, "build_id": ID, "status": status, "source": "api", "sandbox_id": null,
        "started_at": AT, "completed_at": null, "created_at": AT, "updated_at": AT, "human_in_the_loop_enabled": true,
        "title": null, "error": null, "waiting_on": null,
        "usage": {"steps": 1, "model_calls": 1, "tool_calls": 0, "input_tokens": 0, "cached_tokens": 0,
                  "output_tokens": 0, "cost_usd": 0.0, "seconds": 0.5},
    })
}

fn ok(body: Value) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(body)
}

fn refusal(status: u16, code: &str) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_json(json!({"error": code, "message": "later"}))
}

#[tokio::test]
async fn an_error_of_the_api_keeps_its_code_and_message() {
    let server = MockServer::start().await;
    let body = json!({"error": "bad_request", "message": "limit: must be from 1 to 100"});
    Mock::given(method("GET"))
        .and(path("/v1/agents"))
        .and(header("authorization", format!("Bearer {KEY}")))
        .and(query_param("limit", "500"))
        .respond_with(
            ResponseTemplate::new(400)
                .set_body_json(body)
                .insert_header("x-request-id", "r1"),
        )
        .mount(&server)
        .await;
    let error = client(&server)
        .agents(PageRequest::of(500))
        .await
        .unwrap_err();
    let api = error.as_api().unwrap();
    assert_eq!(api.status, StatusCode::BAD_REQUEST);
    assert_eq!(api.code, ErrorCode::BadRequest);
    assert_eq!(api.request_id.as_deref(), Some("r1"));
    assert_eq!(
        error.to_string(),
        "limit: must be from 1 to 100 (bad_request)"
    );
}

#[tokio::test]
async fn a_foreign_response_is_an_error_and_redirects_are_ignored() {
    let server = MockServer::start().await;
    let elsewhere =
        ResponseTemplate::new(302).insert_header("location", format!("{}/stolen", server.uri()));
    Mock::given(path("/v1/agents"))
        .respond_with(elsewhere)
        .mount(&server)
        .await;
    Mock::given(path("/stolen"))
        .respond_with(ResponseTemplate::new(200))
        .expect(0)
        .mount(&server)
        .await;
    Mock::given(path(format!("/v1/runs/{ID}")))
        .respond_with(ResponseTemplate::new(200).set_body_string("<html>"))
        .mount(&server)
        .await;
    let redirected = client(&server).agents(PageRequest::default()).await;
    assert!(matches!(
        redirected,
        Err(Error::UnexpectedResponse { status: Some(status), .. }) if status == StatusCode::FOUND
    ));
    assert!(matches!(
        client(&server).run(&run_id()).await,
        Err(Error::UnexpectedResponse { status: None, .. })
    ));
}

#[tokio::test]
async fn lists_are_read_to_their_end() {
    let server = MockServer::start().await;
    let agent = |n: u64| json!({"id": n.to_string(), "name": format!("agent {}", n % 120), "created_at": AT});
    for (offset, ids) in [(0, 0..100), (100, 100..150)] {
        let agents: Vec<_> = ids.map(agent).collect();
        Mock::given(path("/v1/agents"))
            .and(query_param("limit", "100"))
            .and(query_param("offset", offset.to_string()))
            .respond_with(ok(json!({"agents": agents, "total": 150})))
            .expect(2)
            .mount(&server)
            .await;
    }
    let client = client(&server);
    let all: Vec<Agent> = client.all_agents().try_collect().await.unwrap();
    assert_eq!(all.len(), 150);
    let found = client.agents_named("agent 10").await.unwrap();
    let ids: Vec<_> = found.iter().map(|agent| agent.id.as_str()).collect();
    assert_eq!(ids, ["10", "130"]);
}

#[tokio::test]
async fn a_filter_becomes_the_query_of_each_page() {
    let server = MockServer::start().await;
    Mock::given(path("/v1/runs"))
        .and(query_param("status", "failed"))
        .and(query_param("q", "a b&c"))
        .and(query_param("since", AT))
        .respond_with(ok(json!({"data": [], "runs": [run("failed")], "total": 1})))
        .mount(&server)
        .await;
    let filter = RunFilter::new()
        .status(RunStatus::Failed)
        .since(AT.parse::<Timestamp>().unwrap())
        .search("a b&c");
    let runs: Vec<Run> = client(&server)
        .all_runs(&filter)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(runs.len(), 1);
}

#[tokio::test]
async fn parts_of_a_path_stay_parts_and_the_text_is_kept() {
    let server = MockServer::start().await;
    let text = "{\"files\" : [], \"new\": 1}";
    Mock::given(path("/v1/sandboxes/..%2Fa%20b/files"))
        .and(query_param("path", "/workspace/a b&c"))
        .respond_with(ResponseTemplate::new(200).set_body_string(text))
        .mount(&server)
        .await;
    let client = client(&server);
    let reply = client
        .files(&"../a b".into(), "/workspace/a b&c")
        .await
        .unwrap();
    assert_eq!(reply.text, text);
    for id in ["", ".", ".."] {
        let error = client.stop_run(&id.into()).await.unwrap_err();
        assert!(matches!(error, Error::Path { .. }), "{id:?}");
    }
    assert_eq!(server.received_requests().await.unwrap().len(), 1);
}

#[tokio::test]
async fn any_endpoint_can_be_called() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/agents/a/schedules"))
        .and(query_param("x", "1"))
        .and(body_json(json!({"frequency": "daily"})))
        .respond_with(ok(json!({"ok": true})))
        .mount(&server)
        .await;
    let client = client(&server);
    let reply = client
        .request(http::Method::POST, "agents/a/schedules")
        .query("x", 1)
        .json(&json!({"frequency": "daily"}))
        .send::<Value>()
        .await;
    assert_eq!(reply.unwrap().into_value(), json!({"ok": true}));
    let outside = client.request(http::Method::GET, "agents/../runs");
    assert!(matches!(
        outside.send_empty().await,
        Err(Error::Path { .. })
    ));
}

#[test]
fn invalid_addresses_and_keys_are_named() {
    for address in ["localhost:8700", "", "ftp://example.com", "http://"] {
        let error = Client::new(address, KEY).unwrap_err();
        assert!(matches!(error, Error::Address { .. }), "{address}");
    }
    for key in ["secret", "dv_short", &KEY[3..], &format!("{KEY}0")] {
        let error = Client::new("http://127.0.0.1:8700", key).unwrap_err();
        assert!(matches!(error, Error::ApiKey), "{key}");
    }
    let client = Client::new(" https://errand.example.com/ ", KEY).unwrap();
    assert_eq!(client.base(), "https://errand.example.com");
    assert!(!format!("{client:?}").contains("dv_"), "{client:?}");
    for key in ["", "ö", "a\nb", &"a".repeat(256)] {
        let error = client.with_idempotency_key(key).unwrap_err();
        assert!(matches!(error, Error::IdempotencyKey), "{key:?}");
    }
}

#[test]
fn futures_and_streams_can_be_spawned() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let client = Client::new("http://127.0.0.1:8700", KEY).unwrap();
    let (run, sandbox) = (run_id(), SandboxId::from("s"));
    drop(is_send(client.wait(&run)));
    drop(is_send(client.events(&run).next()));
    drop(is_send(client.events(&run).into_stream()));
    drop(is_send(client.all_messages(&run)));
    drop(is_send(client.upload(&sandbox, "a", "content")));
    drop(is_send(client.download(&sandbox, "a")));
}

#[test]
fn unknown_words_and_fields_do_not_break_a_client() {
    let mut value = run("hibernating");
    value["source"] = "fax".into();
    value["waiting_on"] = json!({"kind": "weather", "since": AT, "next": "It waits.", "new": {}});
    value["a field to come"] = 1.into();
    let body = json!({"run": value, "pending_human_request": null, "new": []});
    let details: RunDetails = serde_json::from_value(body).unwrap();
    assert_eq!(
        details.run.status,
        RunStatus::Other("hibernating".to_owned())
    );
    assert_eq!(details.run.source, Some(RunSource::from("fax")));
    assert_eq!(
        details.run.waiting_on.as_ref().unwrap().kind.as_str(),
        "weather"
    );
    assert!(!details.is_at_rest());
}

/// A server that answers the first calls with `refusal`, and the next ones with a sandbox.
async fn recovering(refusal: ResponseTemplate, refusals: u64) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(path("/v1/sandboxes"))
        .respond_with(refusal)
        .up_to_n_times(refusals)
        .mount(&server)
        .await;
    let sandbox = json!({"sandbox_id": "s", "expires_at": AT});
    Mock::given(path("/v1/sandboxes"))
        .respond_with(ResponseTemplate::new(201).set_body_json(sandbox))
        .mount(&server)
        .await;
    server
}

async fn keys_of(server: &MockServer) -> Vec<Option<String>> {
    let received = server.received_requests().await.unwrap();
    let key = |request: &wiremock::Request| {
        let key = request.headers.get("idempotency-key")?;
        Some(key.to_str().unwrap().to_owned())
    };
    received.iter().map(key).collect()
}

#[tokio::test]
async fn all_attempts_of_a_call_have_the_same_idempotency_key() {
    // A proxy's response has no body of the API.
    for refusal in [refusal(503, "unavailable"), ResponseTemplate::new(502)] {
        let server = recovering(refusal, 2).await;
        let client = client(&server);
        client.create_sandbox().await.unwrap();
        client.create_sandbox().await.unwrap();
        let keys = keys_of(&server).await;
        assert_eq!(keys.len(), 4);
        assert_eq!(keys[0].as_ref().unwrap().len(), 32);
        assert!(keys[0] == keys[1] && keys[1] == keys[2], "{keys:?}");
        assert_ne!(keys[2], keys[3], "another call has another key");
    }
}

#[tokio::test]
async fn a_key_of_the_caller_is_sent() {
    let server = recovering(refusal(429, "rate_limited"), 1).await;
    let keyed = client(&server).with_idempotency_key("order-17").unwrap();
    keyed.create_sandbox().await.unwrap();
    let key = Some("order-17".to_owned());
    assert_eq!(keys_of(&server).await, [key.clone(), key]);
}

#[tokio::test]
async fn a_call_is_repeated_a_few_times_and_a_defect_never() {
    for (status, code, calls) in [(503, "unavailable", 4), (500, "internal", 1)] {
        let server = recovering(refusal(status, code), 9).await;
        let error = client(&server).create_sandbox().await.unwrap_err();
        assert_eq!(error.to_string(), format!("later ({code})"));
        assert_eq!(keys_of(&server).await.len(), calls, "{status}");
    }
}

#[tokio::test]
async fn without_retries_no_key_is_sent() {
    let server = recovering(refusal(503, "unavailable"), 1).await;
    let client = client_with(&server, RetryPolicy::never());
    client.create_sandbox().await.unwrap_err();
    assert_eq!(keys_of(&server).await, [None]);
}

#[tokio::test]
async fn a_replay_is_recognized() {
    let server = MockServer::start().await;
    let rolled = json!({"secret": null, "shown_once": true, "retired": []});
    Mock::given(path("/v1/webhook-secret/roll"))
        .respond_with(ok(rolled).insert_header("idempotency-replayed", "true"))
        .mount(&server)
        .await;
    let rolled = client(&server).roll_webhook_secret().await.unwrap();
    assert!(rolled.is_replay);
    assert_eq!(rolled.secret, None);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_tried_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = |policy: RetryPolicy| {
        let policy = policy.pause(Duration::from_millis(1));
        Client::builder(&base, KEY).retry(policy).build().unwrap()
    };
    for policy in [RetryPolicy::default(), RetryPolicy::never()] {
        let error = client(policy).create_sandbox().await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("{base} does not respond"));
        let error = client(policy).events(&run_id()).next().await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_call_ends_after_its_time_limit() {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(ok(json!({})).set_delay(Duration::from_secs(600)))
        .mount(&server)
        .await;
    let client = Client::builder(&server.uri(), KEY)
        .retry(RetryPolicy::never())
        .timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let error = client.run(&run_id()).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { source, .. } if source.is_timeout()));
}

#[tokio::test]
async fn a_transfer_that_stalls_ends() {
    // The kernel accepts connections, and nobody reads from them.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let client = Client::builder(&base, KEY)
        .retry(RetryPolicy::never())
        .stall_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let sandbox = SandboxId::from("s");
    let stalled = |error: &Error| matches!(error, Error::Stalled { .. });
    let content = FileContent::stream(1, stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let error = client.upload(&sandbox, "a", content).await.unwrap_err();
    assert!(stalled(&error), "{error:?}");
    let error = client.upload(&sandbox, "a", "content").await.unwrap_err();
    assert!(stalled(&error), "{error:?}");
    let error = client.download(&sandbox, "a").await.unwrap_err();
    assert!(stalled(&error), "{error:?}");
    let error = client.events(&run_id()).next().await.unwrap_err();
    assert!(stalled(&error), "{error:?}");
}

#[tokio::test]
async fn waiting_ends_with_the_run_or_a_request() {
    let server = MockServer::start().await;
    let at = || Mock::given(path(format!("/v1/runs/{ID}"))).and(query_param("wait_s", "30"));
    let body = |status| ok(json!({"run": run(status), "pending_human_request": null}));
    at().respond_with(body("running"))
        .up_to_n_times(1)
        .mount(&server)
        .await;
    at().respond_with(body("completed")).mount(&server).await;
    let reply = client(&server).wait(&run_id()).await.unwrap();
    assert_eq!(reply.run.status, RunStatus::Completed);
    assert_eq!(server.received_requests().await.unwrap().len(), 2);

    let request = json!({"id": ID, "title": "Pay?", "description": null, "created_at": AT, "type": "approval", "expires_at": null});
    let asking: RunDetails =
        serde_json::from_value(json!({"run": run("waiting"), "pending_human_request": request}))
            .unwrap();
    assert!(asking.is_at_rest());
}

#[tokio::test]
async fn a_large_file_goes_to_an_upload_url_without_the_key() {
    let server = MockServer::start().await;
    let url = json!({"upload_url": format!("{}/up?token=t", server.uri()), "path": "/workspace/a", "expires_in_seconds": 1});
    Mock::given(method("POST"))
        .and(path("/v1/sandboxes/s/upload-urls"))
        .and(body_json(json!({"path": "a"})))
        .respond_with(ok(url))
        .mount(&server)
        .await;
    Mock::given(method("PUT"))
        .and(path("/up"))
        .and(query_param("token", "t"))
        .and(header("content-length", "10485761"))
        .respond_with(ok(
            json!({"path": "/workspace/a", "size_bytes": 10_485_761}),
        ))
        .mount(&server)
        .await;
    let bytes = vec![0_u8; 10 * 1024 * 1024 + 1];
    let uploaded = client(&server)
        .upload(&"s".into(), "a", bytes)
        .await
        .unwrap();
    assert_eq!(uploaded.size_bytes, 10_485_761);
    let put = server.received_requests().await.unwrap().pop().unwrap();
    assert!(!put.headers.contains_key("authorization"));
}

#[tokio::test]
async fn content_from_memory_is_sent_again_and_a_stream_is_not() {
    let server = MockServer::start().await;
    let at = || {
        Mock::given(path("/v1/sandboxes/s/files"))
            .and(query_param("path", "a b"))
            .and(body_string("content"))
    };
    at().respond_with(ResponseTemplate::new(502))
        .up_to_n_times(2)
        .mount(&server)
        .await;
    at().respond_with(ok(json!({"path": "/workspace/a b", "size_bytes": 7})))
        .mount(&server)
        .await;
    let client = client(&server);
    let pieces = stream::iter([Ok::<_, std::io::Error>("con"), Ok("tent")]);
    let streamed = FileContent::stream(7, pieces);
    client
        .upload(&"s".into(), "a b", streamed)
        .await
        .unwrap_err();
    let uploaded = client.upload(&"s".into(), "a b", "content").await.unwrap();
    assert_eq!(uploaded.path, "/workspace/a b");
    assert_eq!(server.received_requests().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_file_is_downloaded() {
    let server = MockServer::start().await;
    let at = || Mock::given(path("/v1/sandboxes/s/files/content")).and(query_param("path", "a"));
    at().respond_with(refusal(429, "rate_limited"))
        .up_to_n_times(1)
        .mount(&server)
        .await;
    at().respond_with(ResponseTemplate::new(200).set_body_bytes([0, 159, 7]))
        .mount(&server)
        .await;
    let file = client(&server).download(&"s".into(), "a").await.unwrap();
    assert_eq!(file.size_bytes(), Some(3));
    assert_eq!(file.into_bytes().await.unwrap(), [0, 159, 7]);
}

fn stream_of(text: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw(text.to_owned(), "text/event-stream")
}

fn events_path() -> wiremock::MockBuilder {
    Mock::given(path(format!("/v1/runs/{ID}/events")))
}

#[tokio::test]
async fn events_resume_where_the_connection_broke_off() {
    let server = MockServer::start().await;
    let end = "id: 3\nevent: b\ndata: {}\n\nevent: end\ndata: {}\n\n";
    events_path()
        .and(header("last-event-id", "2"))
        .respond_with(stream_of(end))
        .mount(&server)
        .await;
    events_path()
        .and(header("last-event-id", "2"))
        .respond_with(refusal(503, "unavailable"))
        .with_priority(1)
        .up_to_n_times(2)
        .mount(&server)
        .await;
    let broken = ": hello\n\nid: 1\nevent: a\ndata: {}\n\nid: 2\nevent: a\ndata: {\"n\":\ndata: 1}\n\nid: 3\nevent: b\nda";
    events_path()
        .respond_with(stream_of(broken))
        .up_to_n_times(1)
        .mount(&server)
        .await;

    // Without retries of calls, a stream still resumes.
    let mut events = client_with(&server, RetryPolicy::never()).events(&run_id());
    let mut seen = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        seen.push((event.id.unwrap(), event.data));
    }
    assert_eq!(seen, [(1, json!({})), (2, json!({"n": 1})), (3, json!({}))]);
    assert_eq!(events.last(), Some(3));
    assert!(events.next().await.unwrap().is_none());
    assert_eq!(server.received_requests().await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_stream_that_brings_nothing_is_given_up() {
    let server = MockServer::start().await;
    events_path()
        .respond_with(stream_of(":\n\n"))
        .expect(9)
        .mount(&server)
        .await;
    let error = client(&server).events(&run_id()).next().await.unwrap_err();
    assert!(matches!(error, Error::UnexpectedResponse { .. }), "{error}");
}

#[tokio::test]
async fn an_ended_run_has_no_more_events() {
    let server = MockServer::start().await;
    events_path()
        .respond_with(ResponseTemplate::new(204))
        .expect(1)
        .mount(&server)
        .await;
    let events = client(&server).events_after(&run_id(), 7).into_stream();
    assert_eq!(events.count().await, 0);
}

#[tokio::test]
async fn errors_that_last_end_the_stream_at_once() {
    let html = ResponseTemplate::new(200).set_body_raw("<html>", "text/html");
    let huge = format!("data: {}", "x".repeat(16 * 1024 * 1024));
    let cases = [
        (refusal(404, "not_found"), "later (not_found)"),
        (html, "not a stream of events"),
        (stream_of(&huge), "an event without an end"),
    ];
    for (response, message) in cases {
        let server = MockServer::start().await;
        events_path()
            .respond_with(response)
            .expect(1)
            .mount(&server)
            .await;
        let error = client(&server).events(&run_id()).next().await.unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[tokio::test]
async fn events_are_parsed_as_their_names_say() {
    let server = MockServer::start().await;
    let delta = r#"{"run_id": "r", "message_id": "m", "attempt": 1, "offset": 2, "text": "é"}"#;
    let progress = r#"{"run_id": "r", "tool_call_id": "c", "progress": 1, "total": null}"#;
    let text = format!(
        "event: message.delta\ndata: {delta}\n\nevent: tool.progress\ndata: {progress}\n\n\
         id: 4\nevent: run.updated\ndata: {}\n\nid: 5\nevent: new\ndata: 1\n\n\
         id: 6\nevent: run.updated\ndata: 1\n\nevent: end\ndata: {{}}\n\n",
        run("running")
    );
    events_path()
        .and(header("last-event-id", "3"))
        .respond_with(stream_of(&text))
        .mount(&server)
        .await;
    let mut events = client(&server).events_after(&run_id(), 3);
    let mut next = async || {
        let event = events.next().await.unwrap().unwrap();
        (event.body(), events.last())
    };
    let (body, last) = next().await;
    assert!(matches!(body, Ok(EventBody::MessageDelta(delta)) if delta.text == "é"));
    assert_eq!(last, Some(3), "a delta has no number");
    assert!(matches!(next().await.0, Ok(EventBody::ToolProgress(_))));
    let (body, last) = next().await;
    assert!(matches!(body, Ok(EventBody::RunUpdated(run)) if run.status == RunStatus::Running));
    assert_eq!(last, Some(4));
    assert!(matches!(next().await.0, Ok(EventBody::Other)));
    let error = next().await.0.unwrap_err();
    assert_eq!(error.to_string(), "event run.updated cannot be parsed");
}
