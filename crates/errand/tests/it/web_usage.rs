//! Usage and model providers in the web interface, and a model's output while it is generated.

use errand_core::role::Role;
use errand_testkit::providers::{Answer, ProviderServer};
use errand_testkit::{TestApp, TestOptions};
use serde_json::json;

use crate::web::{Browser, between};

/// A model with a known price.
const MODEL: &str = "openai/gpt-5-mini";

async fn app() -> (TestApp, ProviderServer) {
    let server = ProviderServer::start().await;
    let app = TestApp::start_with(TestOptions {
        settings: server.settings(),
        ..TestOptions::default()
    })
    .await;
    (app, server)
}

#[tokio::test]
async fn usage_is_shown_as_charts_tables_and_csv() {
    let (app, server) = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "ben@acme.example", Role::Member).await;
    let member = Browser::of(&app, "ben@acme.example").await;
    assert!(
        owner
            .get("/usage")
            .await
            .ok()
            .contains("No usage in this period")
    );
    let answer = Answer::text("**Hello**").with_tokens(100_000, 0, 0, 1_000);
    server.script("gpt-5-mini", vec![answer]);
    let config = json!({"version": "v2", "data": {"models": {"agent": {"model": MODEL}}}});
    let body = json!({"name": "Letters <1>", "build": {"name": "first", "config": config}});
    let agent = app.post(&team.key, "/v1/agents", body).await.expect(201);
    let agent = agent["agent"]["id"].as_str().unwrap();
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "Hello"}))
        .await;
    app.settle().await;

    let page = owner.get("/usage").await.ok();
    for part in [
        "Letters &lt;1&gt;",
        MODEL,
        "By API key",
        "100,000",
        "Cost by day",
        "Tokens by day",
        "Runs started by day",
        "$0.03",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let seen = owner.get("/usage/csv?by=agent&days=7").await;
    assert_eq!(
        seen.reply.header("content-type"),
        Some("text/csv; charset=utf-8")
    );
    assert!(
        seen.html
            .starts_with("agent_id,agent_name,runs,model_calls,")
            && seen.html.contains(",Letters <1>,1,1,100000,0,1000,"),
        "{}",
        seen.html
    );
    // The run's page has the figures by step.
    let page = owner.get(&format!("/runs/{run}")).await.ok();
    assert!(
        page.contains("101,000 tokens, $0.03") && page.contains("gpt-5-mini"),
        "{page}"
    );
    // Only people who can see API keys see figures by key.
    let page = member.get("/usage").await.ok();
    assert!(!page.contains("By API key") && !page.contains("Monthly budget (USD)"));
    member.get("/usage/csv?by=key").await.refused(404);
    owner.get("/usage/csv?by=key").await.ok();
    owner.get("/usage/csv?by=nothing").await.refused(404);
    // The team's monthly budget.
    let page = owner
        .post("/usage/limit", &[("limit", "-1")])
        .await
        .refused(400);
    assert!(
        page.contains("The budget must be a number above 0"),
        "{page}"
    );
    owner
        .post("/usage/limit", &[("limit", "12.5")])
        .await
        .leads_to();
    assert!(owner.get("/usage").await.ok().contains("of $12.50"));
    member
        .post("/usage/limit", &[("limit", "1")])
        .await
        .refused(403);
}

#[tokio::test]
async fn a_provider_is_set_edited_removed_and_its_key_hidden() {
    let (app, _server) = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "ben@acme.example", Role::Member).await;
    let member = Browser::of(&app, "ben@acme.example").await;
    let key = "a-key-that-nobody-sees";
    let page = owner
        .post(
            "/settings/models",
            &[
                ("name", "own"),
                ("kind", "openai_compatible"),
                ("api_key", key),
            ],
        )
        .await
        .refused(400);
    assert!(
        page.contains("value=\"own\"") && !page.contains(key) && page.contains("role=\"alert\""),
        "{page}"
    );
    owner
        .post(
            "/settings/models",
            &[
                ("name", "anthropic"),
                ("kind", "anthropic"),
                ("api_key", key),
            ],
        )
        .await
        .leads_to();
    let page = owner.get("/settings/models").await.ok();
    let row = between(&page, "<bdi dir=\"auto\">anthropic</bdi>", "</tr>").unwrap();
    assert!(
        row.contains("state completed") && !page.contains(key),
        "{page}"
    );
    let seen = member.get("/settings/models").await.ok();
    assert!(!seen.contains("<form method=\"post\" action=\"/settings/models"));
    let name = [("name", "anthropic")];
    member
        .post("/settings/models/delete", &name)
        .await
        .refused(403);
    owner
        .post("/settings/models/delete", &name)
        .await
        .leads_to();
    assert!(
        owner
            .get("/settings/models")
            .await
            .ok()
            .contains("No providers set up by the team")
    );
}
