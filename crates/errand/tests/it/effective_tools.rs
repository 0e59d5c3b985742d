//! The tools of a build: what the API and the pages list is what the provider receives, and tools that are off are not
//! offered.

use errand_testkit::providers::Answer;
use errand_testkit::{TestApp, TestOptions};
use serde_json::{Value, json};

use crate::connections::{Mailbox, connect, options, stdio};
use crate::models::config;
use crate::web::Browser;

/// Names and policies of the tools of a build, as read now.
fn listed(build: &Value) -> Vec<(String, String)> {
    let tools = build["effective_tools"].as_array().unwrap().iter();
    tools
        .map(|tool| {
            let text = |key: &str| tool[key].as_str().unwrap().to_owned();
            (text("name"), text("policy"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listed_tools_are_those_sent_to_the_provider() {
    let server = errand_testkit::providers::ProviderServer::start().await;
    let mailbox = Mailbox::new();
    let mut options: TestOptions = options(Some(&mailbox));
    options.settings.extend(server.settings());
    let app = TestApp::start_with(options).await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let id = connect(&app, &team, "mail", stdio("mailbox")).await;
    let path = format!("/v1/connections/{id}");
    let floors = json!({"floors": {"mail__label_message": "deny"}});
    app.patch(&team.key, &path, floors).await.expect(200);
    let mail = |tools: Value| json!({"connections": [id], "tools": tools});
    // The build's tools, the number of the connection's tools offered to the model, and whether there is a warning.
    let cases = [
        (json!({"connections": [id]}), 0, true),
        (mail(json!({})), 0, true),
        (mail(json!({"read_file": "allow"})), 0, true),
        (
            mail(json!({"mail__read_message": "off", "mail__list_messages": "off"})),
            0,
            true,
        ),
        (
            mail(json!({"mail__*": "off", "ask_human": "allow"})),
            0,
            true,
        ),
        (
            mail(json!({"mail__read_message": "allow", "fetch_url": "guard"})),
            1,
            false,
        ),
        (mail(json!({"mail__*": "default"})), 4, false),
        (
            mail(json!({"mail__*": "ask", "mail__delete_message": "off", "run_command": "deny"})),
            3,
            false,
        ),
    ];
    for (data, of_mail, warned) in cases {
        server.script("claude-test", vec![Answer::text("Done.")]);
        let body = json!({"name": "x", "build": {"name": "x", "config": config("anthropic/claude-test", data.clone())}});
        let made = app.post(&team.key, "/v1/agents", body).await.expect(201);
        let warnings = made["warnings"].as_array().unwrap();
        let about = |w: &Value| w["path"] == "build.config.data.connections[0]";
        assert_eq!(warnings.iter().any(about), warned, "{data}: {made}");
        let agent = made["agent"]["id"].as_str().unwrap();
        let run = app
            .run(&team, json!({"agent_id": agent, "message": "Go."}))
            .await;
        app.settle().await;
        assert_eq!(app.status(&team, &run).await, "completed");
        let mut received = server.last().tools();
        received.sort();
        let got = app
            .get(&team.key, &format!("/v1/agents/{agent}"))
            .await
            .expect(200);
        let build = got["build"]["id"].as_str().unwrap();
        let alone = app
            .get(&team.key, &format!("/v1/revisions/{build}"))
            .await
            .expect(200);
        let tools = listed(&alone["build"]);
        assert_eq!(tools, listed(&got["build"]));
        let mut offered: Vec<String> = tools
            .iter()
            .filter(|(_, policy)| policy != "deny")
            .map(|(name, _)| name.clone())
            .collect();
        offered.sort();
        assert_eq!(received, offered, "{data}");
        let mails = offered
            .iter()
            .filter(|name| name.starts_with("mail__"))
            .count();
        assert_eq!(mails, of_mail, "{data}: {tools:?}");
        // The page lists the same tools.
        let page = owner.get(&format!("/assignments/{agent}")).await.ok();
        for (name, policy) in &tools {
            let row = format!("<span class=\"name mono\"><bdi dir=\"auto\">{name}</bdi></span>");
            let rest = page
                .split_once(&row)
                .map(|(_, rest)| rest)
                .unwrap_or_else(|| panic!("{name}: {page}"));
            assert!(
                rest.split("</li>")
                    .next()
                    .unwrap()
                    .contains(policy.as_str()),
                "{name}"
            );
        }
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_playbook_names_the_tools_that_it_calls() {
    let mailbox = Mailbox::new();
    let app = TestApp::start_with(options(Some(&mailbox))).await;
    let team = app.team("acme").await;
    let id = connect(&app, &team, "mail", stdio("mailbox")).await;
    let body = |tools: Value| {
        let data = json!({"connections": [id], "tools": tools, "playbook": {"steps": [{"tool": "mail__list_messages"}]}});
        json!({"name": "x", "build": {"name": "x", "config": {"version": "v2", "data": data}}})
    };
    for tools in [
        Value::Null,
        json!({"mail__read_message": "allow"}),
        json!({"mail__*": "allow", "mail__list_messages": "off"}),
    ] {
        let (_, message) = app
            .post(&team.key, "/v1/agents", body(tools))
            .await
            .error(400);
        assert!(message.contains("playbook.steps[0]"), "{message}");
    }
    for tools in [
        json!({"mail__list_messages": "allow"}),
        json!({"mail__*": "default"}),
    ] {
        app.post(&team.key, "/v1/agents", body(tools))
            .await
            .expect(201);
    }
    let (_, message) = app
        .post(&team.key, "/v1/agents", body(json!({"mail__*": "some"})))
        .await
        .error(400);
    assert!(
        message.contains("data.tools.mail__*") && message.contains("default"),
        "{message}"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_warning_names_a_page_tool_that_can_send_anywhere() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for (data, warned) in [
        (json!({"tools": {"fetch_url": "allow"}}), true),
        (json!({"tools": {"fetch_url": "guard"}}), false),
        (
            json!({"tools": {"fetch_url": "allow"}, "fetch_url": {"allow": ["example.com"]}}),
            false,
        ),
    ] {
        let mut data = data;
        data["playbook"] = json!({"steps": [{"finish": "x"}]});
        let agent = app
            .agent(&team, json!({"version": "v2", "data": data}))
            .await;
        let body = json!({"name": "x", "config": {"version": "v2", "data": data}});
        let path = format!("/v1/agents/{agent}/revisions");
        let made = app.post(&team.key, &path, body).await.expect(201);
        let about: Vec<_> = made["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| &w["path"])
            .collect();
        assert_eq!(
            about.contains(&&json!("config.data.tools.fetch_url")),
            warned,
            "{made}"
        );
    }
    app.finish().await;
}
