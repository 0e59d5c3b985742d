//! Secrets in connections: sent in headers and variables, and never returned. Unused sessions.

use std::time::Duration;

use errand_testkit::{Team, TestApp};
use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::connections::{Mailbox, all_of, connect, options, respond, root, stdio, until};

const VALUE: &str = "s3cret/of+connections";

/// An MCP server that refuses requests without the secret, and returns the secret in every possible way.
async fn tells_all() -> MockServer {
    let server = MockServer::start().await;
    Mock::given(path("/mcp"))
        .respond_with(|request: &Request| {
            let header = request.headers.get("x-key");
            let key = header.map_or("", |h| h.to_str().unwrap_or_default()).to_owned();
            if key != format!("key {VALUE}") {
                return ResponseTemplate::new(403).set_body_string(format!("not {key}"));
            }
            let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
                return ResponseTemplate::new(405);
            };
            let tool = json!({"name": "look", "description": format!("With {VALUE}."), "inputSchema": {"type": "object", "description": VALUE}, "annotations": {"readOnlyHint": true}});
            let answer = match body["method"].as_str() {
                Some("initialize") => json!({"result": {"protocolVersion": body["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": VALUE, "version": "1"}}}),
                Some("tools/list") => json!({"result": {"tools": [tool]}}),
                Some("tools/call") if body["params"]["arguments"]["fails"] == true => {
                    json!({"error": {"code": -32000, "message": format!("with {key}")}})
                }
                Some("tools/call") => json!({"result": {"content": [{"type": "text", "text": key}], "structuredContent": {"said": key, key: 1}}}),
                _ => return ResponseTemplate::new(202),
            };
            let mut answer = answer;
            answer["jsonrpc"] = json!("2.0");
            answer["id"] = body["id"].clone();
            ResponseTemplate::new(200).set_body_json(answer)
        })
        .mount(&server)
        .await;
    server
}

fn assert_clean(what: &str, value: &Value) {
    use base64::Engine as _;
    let text = value.to_string();
    let base64 = base64::engine::general_purpose::STANDARD.encode(VALUE);
    let url: String = url::form_urlencoded::byte_serialize(VALUE.as_bytes()).collect();
    for form in [VALUE, &base64, &url] {
        assert!(!text.contains(form), "{what} holds {form}: {text}");
    }
}

async fn set(app: &TestApp, team: &Team) {
    let body = json!({"name": "KEY", "value": VALUE});
    app.post(&team.key, "/v1/secrets", body).await.expect(201);
}

/// The messages of a completed run of these steps.
async fn messages(app: &TestApp, team: &Team, connection: &str, steps: Value) -> Value {
    let data = json!({"connections": [connection], "tools": all_of(app, team, connection).await, "playbook": {"steps": steps}});
    let agent = app
        .agent(team, json!({"version": "v2", "data": data}))
        .await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    assert_eq!(app.status(team, &run).await, "completed");
    json!(app.messages(team, &run).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_a_header_reaches_only_the_server() {
    let server = tells_all().await;
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    set(&app, &team).await;
    let url = format!("{}/mcp", server.uri());
    let headers = json!({"x-key": "key {{ secret.KEY }}"});
    let transport = json!({"type": "http", "url": url, "headers": headers});
    let id = connect(&app, &team, "tells", transport).await;
    let got = app.get(&team.key, &format!("/v1/connections/{id}")).await;
    let got = got.expect(200);
    assert_clean("the connection", &got);
    assert_eq!(got["connection"]["transport"]["headers"], headers);
    let tool = &got["connection"]["tools"][0];
    assert_eq!(tool["description"], "With {{ secret.KEY }}.");
    let steps = json!([
        {"tool": "tells__look", "as": "one"},
        {"tool": "tells__look", "with": {"fails": true}, "on_error": "continue", "as": "two"},
        {"finish": "{{ one }} {{ two }}"}]);
    let said = messages(&app, &team, &id, steps).await;
    assert_clean("the messages", &said);
    assert!(said.to_string().contains("key {{ secret.KEY }}"), "{said}");
    // With another secret, the server's refusal is reported without any secret.
    let wrong = json!({"name": "KEY", "value": "another-secret-there"});
    app.post(&team.key, "/v1/secrets", wrong).await;
    let path = format!("/v1/connections/{id}/probe");
    let probed = app.post(&team.key, &path, json!({})).await.expect(200);
    let error = probed["error"].as_str().unwrap();
    assert!(!error.contains("another-secret-there"), "{error}");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_a_variable_reaches_the_program_and_is_masked() {
    let mut options = options(None);
    let spy = root().join("crates/errand/tests/mcp/spy.mjs");
    let file = options.file.get_or_insert_default();
    *file += &format!(
        "[connections.stdio.spy]\ncommand = \"node\"\nargs = [{spy:?}]\nisolation = \"none\"\nteam_env = [\"KEY\"]\n"
    );
    let app = TestApp::start_with(options).await;
    let team = app.team("acme").await;
    set(&app, &team).await;
    let mut transport = stdio("spy");
    transport["env"] = json!({"KEY": "{{ secret.KEY }}"});
    let id = connect(&app, &team, "spy", transport).await;
    let steps = json!([{"tool": "spy__variable", "with": {"name": "KEY"}}]);
    let said = messages(&app, &team, &id, steps).await;
    assert_clean("the messages", &said);
    assert_eq!(
        said.to_string().matches("{{ secret.KEY }}").count(),
        3,
        "{said}"
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_is_closed_and_reopened_on_demand() {
    let mailbox = Mailbox::new();
    mailbox.tells_its_end();
    let app = TestApp::start_with(options(Some(&mailbox))).await;
    let team = app.team("acme").await;
    let id = connect(&app, &team, "mail", stdio("mailbox")).await;
    let ended = || {
        let log = mailbox.log();
        log.iter().filter(|line| line["did"] == "ended").count()
    };
    until("the probe's server has ended", || ended() == 1).await;
    let steps = json!([
        {"tool": "mail__list_messages"},
        {"approve": {"title": "Go on?"}},
        {"tool": "mail__list_messages", "as": "inbox"},
        {"finish": "{{ inbox.messages | length }}"}]);
    let data = json!({"connections": [id], "tools": all_of(&app, &team, &id).await, "playbook": {"steps": steps}});
    let agent = app
        .agent(&team, json!({"version": "v2", "data": data}))
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    assert_eq!(ended(), 1, "while it may be wanted it is kept");
    // Unused sessions are checked at intervals.
    for _ in 0..3 {
        app.advance(Duration::from_secs(300)).await;
    }
    until("the run's server has ended", || ended() == 2).await;
    respond(&app, &team, &run, json!({"approved": true})).await;
    assert_eq!(app.status(&team, &run).await, "completed");
    let messages = app.messages(&team, &run).await;
    assert_eq!(messages.last().unwrap()["text_content"], "2");
    app.finish().await;
}
