//! The client, with mock servers that return the responses of each test.

use errand_core::run::Status;
use serde_json::json;
use wiremock::matchers::{body_json, header, headers, method, path, query_param};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;

const KEY: &str = "dv_00000000000000000000000000000000";
const RUN: &str = "0193b0e2-0000-7000-8000-000000000000";

fn client(server: &MockServer) -> Client {
    Client::new(&format!("{}/", server.uri()), KEY).unwrap()
}

#[tokio::test]
async fn an_error_of_the_api_keeps_its_code_and_message() {
    let server = MockServer::start().await;
    let body = json!({"error": "bad_request", "message": "limit: must be from 1 to 100"});
    let answer = ResponseTemplate::new(400).set_body_json(body);
    Mock::given(method("GET"))
        .and(path("/v1/agents"))
        .and(header("authorization", format!("Bearer {KEY}")))
        .and(query_param("limit", "500"))
        .respond_with(answer)
        .mount(&server)
        .await;
    let error = client(&server).agents(500, 0).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Api { status, .. } if *status == StatusCode::BAD_REQUEST)
    );
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
    let page = ResponseTemplate::new(200).set_body_string("<html>");
    Mock::given(path(format!("/v1/runs/{RUN}")))
        .respond_with(page)
        .mount(&server)
        .await;
    assert!(matches!(
        client(&server).agents(1, 0).await,
        Err(ClientError::Strange { .. })
    ));
    assert!(matches!(
        client(&server).run(RUN).await,
        Err(ClientError::Strange { .. })
    ));
}

#[tokio::test]
async fn an_agent_is_found_by_name_on_any_page() {
    let server = MockServer::start().await;
    let agent = |n: u64| json!({"id": n.to_string(), "name": format!("agent {}", n % 120), "created_at": "x"});
    for (offset, ids) in [(0, 0..100), (100, 100..200)] {
        let agents: Vec<_> = ids.map(agent).collect();
        let answer =
            ResponseTemplate::new(200).set_body_json(json!({"agents": agents, "total": 200}));
        Mock::given(path("/v1/agents"))
            .and(query_param("offset", offset.to_string()))
            .respond_with(answer)
            .mount(&server)
            .await;
    }
    let found = client(&server).agents_named("agent 30").await.unwrap();
    assert_eq!(
        found
            .iter()
            .map(|agent| agent.id.as_str())
            .collect::<Vec<_>>(),
        ["30", "150"]
    );
}

#[tokio::test]
async fn path_parts_are_escaped_and_the_text_is_kept() {
    let server = MockServer::start().await;
    let text = "{\"files\" : []}";
    Mock::given(path("/v1/sandboxes/..%2Fa%20b/files"))
        .and(query_param("path", "/workspace/a b&c"))
        .respond_with(ResponseTemplate::new(200).set_body_string(text))
        .mount(&server)
        .await;
    let reply = client(&server)
        .files("../a b", "/workspace/a b&c")
        .await
        .unwrap();
    assert_eq!(reply.text, text);
}

#[tokio::test]
async fn a_large_file_goes_to_an_upload_url_without_the_key() {
    let server = MockServer::start().await;
    let url = json!({"upload_url": format!("{}/up?token=t", server.uri()), "path": "/workspace/a", "expires_in_seconds": 1});
    Mock::given(method("POST"))
        .and(path("/v1/sandboxes/s/upload-urls"))
        .and(body_json(json!({"path": "a"})))
        .respond_with(ResponseTemplate::new(200).set_body_json(url))
        .mount(&server)
        .await;
    let answer = ResponseTemplate::new(200)
        .set_body_json(json!({"path": "/workspace/a", "size_bytes": 10_485_761}));
    Mock::given(method("PUT"))
        .and(path("/up"))
        .and(query_param("token", "t"))
        .and(headers("content-length", vec!["10485761"]))
        .respond_with(answer)
        .mount(&server)
        .await;
    let bytes = vec![0_u8; 10 * 1024 * 1024 + 1];
    let size = bytes.len() as u64;
    let uploaded = client(&server)
        .upload("s", "a", size, bytes.into())
        .await
        .unwrap();
    assert_eq!(uploaded.value.size_bytes, size);
    let put = server.received_requests().await.unwrap().pop().unwrap();
    assert!(!put.headers.contains_key("authorization"));
}

fn stream(text: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw(text.to_owned(), "text/event-stream")
}

#[tokio::test]
async fn events_resume_where_the_connection_broke_off() {
    let server = MockServer::start().await;
    let at = || Mock::given(path(format!("/v1/runs/{RUN}/events")));
    at().and(header("last-event-id", "2"))
        .respond_with(stream(
            "id: 3\nevent: b\ndata: {}\n\nevent: end\ndata: {}\n\n",
        ))
        .mount(&server)
        .await;
    let broken = "id: 1\nevent: a\ndata: {}\n\nid: 2\nevent: a\ndata: {}\n\nid: 3\nevent: b\nda";
    at().respond_with(stream(broken))
        .up_to_n_times(1)
        .mount(&server)
        .await;

    let mut events = client(&server).events(RUN);
    let mut ids = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        ids.push(event.id.unwrap());
    }
    assert_eq!(ids, [1, 2, 3]);
}

#[tokio::test]
async fn an_ended_run_has_no_more_events() {
    let server = MockServer::start().await;
    Mock::given(path(format!("/v1/runs/{RUN}/events")))
        .respond_with(ResponseTemplate::new(204))
        .mount(&server)
        .await;
    assert_eq!(client(&server).events(RUN).next().await.unwrap(), None);
}

#[tokio::test]
async fn an_error_response_ends_the_stream() {
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(404)
        .set_body_json(json!({"error": "not_found", "message": "no such run"}));
    Mock::given(path(format!("/v1/runs/{RUN}/events")))
        .respond_with(answer)
        .expect(1)
        .mount(&server)
        .await;
    let error = client(&server).events(RUN).next().await.unwrap_err();
    assert_eq!(error.to_string(), "no such run (not_found)");
}

#[test]
fn invalid_addresses_and_keys_are_named() {
    assert!(matches!(
        Client::new("localhost:8700", KEY),
        Err(ClientError::Address { .. })
    ));
    assert!(matches!(
        Client::new("http://127.0.0.1:8700", "secret"),
        Err(ClientError::Key)
    ));
    assert_eq!(
        Client::new("https://errand.example.com/", KEY)
            .map(|c| c.base().to_owned())
            .unwrap(),
        "https://errand.example.com"
    );
}

#[test]
fn a_run_is_parsed_in_its_documented_form() {
    let at = "2026-11-23T09:30:00.123Z";
    let reply: RunReply = serde_json::from_value(json!({"run": {
        "id": RUN, "agent_id": RUN, "build_id": RUN, "status": "waiting", "source": "api", "sandbox_id": null,
        "started_at": at, "completed_at": null, "created_at": at, "updated_at": at, "human_in_the_loop_enabled": true,
        "title": null, "error": null, "waiting_on": null, "a field to come": 1,
        "usage": {"steps": 1, "model_calls": 1, "tool_calls": 0, "input_tokens": 0, "cached_tokens": 0,
                  "output_tokens": 0, "cost_usd": 0.0, "seconds": 0.5},
    }, "pending_human_request": null})).unwrap();
    assert_eq!(reply.run.status, Status::Waiting);
}
