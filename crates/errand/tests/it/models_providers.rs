//! Providers: keys, addresses, and who can set them.

use errand_core::role::Role;
use errand_testkit::TestApp;
use errand_testkit::providers::ProviderServer;
use serde_json::{Value, json};

use crate::models::{World, config};

const SECRET: &str = "sk-of-the-team-0123456789";

#[tokio::test]
async fn a_model_without_a_key_is_refused_when_the_run_is_started() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for (model, told) in [
        ("claude-sonnet-4-5", "ANTHROPIC_API_KEY"),
        ("gpt-5", "OPENAI_API_KEY"),
        ("o4-mini", "OPENAI_API_KEY"),
        ("gemini-2.5-pro", "GEMINI_API_KEY"),
        ("nowhere/x", "[models.providers.nowhere]"),
        ("builtin/x", "builtin/playbook"),
    ] {
        let agent = app.agent(&team, config(model, json!({}))).await;
        let body = json!({"agent_id": agent});
        let reply = app.post(&team.key, "/v1/runs", body).await;
        let (code, message) = reply.error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains(told), "{message}");
    }
    let runs = app.get(&team.key, "/v1/runs").await.expect(200);
    assert_eq!(runs["total"], 0);
    app.finish().await;
}

/// An app without keys of the operator, in which teams can use the loopback interface.
async fn bare() -> World {
    let server = ProviderServer::start().await;
    let app = TestApp::with_settings(&[("ERRAND_MODELS__ALLOW_PRIVATE_NETWORKS", "true")]).await;
    let team = app.team("acme").await;
    World { app, team, server }
}

async fn put(world: &World, key: &str, name: &str, body: Value) -> errand_testkit::Reply {
    let path = format!("/v1/providers/{name}");
    let none: [(&str, &str); 0] = [];
    world
        .app
        .json(http::Method::PUT, key, &path, body, &none)
        .await
}

#[tokio::test]
async fn a_team_has_keys_and_addresses_of_its_own() {
    let mut world = bare().await;
    let key = world.team.key.clone();
    let body = json!({"base_url": world.server.url(), "api_key": SECRET});
    let made = put(&world, &key, "anthropic", body).await.expect(200);
    assert_eq!(made["provider"]["has_key"], true);
    assert_eq!(made["provider"]["kind"], "anthropic");
    let body = json!({"kind": "openai_compatible", "base_url": world.server.openai_url()});
    put(&world, &key, "local-llm", body).await.expect(200);

    let run = world.run("anthropic/claude-x", json!({}), "Go.").await;
    world.completed(&run).await;
    assert_eq!(world.server.last().headers["x-api-key"], SECRET);
    // A name with a suffix that resembles an effort stays unchanged.
    let run = world.run("local-llm/qwen3-max", json!({}), "Go.").await;
    world.completed(&run).await;
    assert_eq!(world.server.last().body["model"], "qwen3-max");
    assert_eq!(world.server.last().body["reasoning_effort"], Value::Null);

    // The key cannot be read anywhere: not in the API, not in the data directory, not after a restart.
    world.app.crash().await;
    let listed = world.app.get(&key, "/v1/providers").await;
    assert!(!String::from_utf8_lossy(&listed.bytes).contains("sk-of"));
    let listed = listed.expect(200);
    let names: Vec<_> = listed["providers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["anthropic", "local-llm"]);
    for entry in std::fs::read_dir(world.app.dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
    let run = world.run("anthropic/claude-x", json!({}), "Go.").await;
    world.completed(&run).await;

    // Another team does not have it.
    let other = world.app.team("other").await;
    let listed = world.app.get(&other.key, "/v1/providers").await.expect(200);
    assert_eq!(listed["providers"], json!([]));
    let agent = world
        .app
        .agent(&other, config("anthropic/claude-x", json!({})))
        .await;
    let body = json!({"agent_id": agent});
    world
        .app
        .post(&other.key, "/v1/runs", body)
        .await
        .error(400);

    // A key belongs to its address: a new address deletes it.
    let body = json!({"base_url": world.server.url()});
    let kept = put(&world, &key, "anthropic", body).await.expect(200);
    assert_eq!(kept["provider"]["has_key"], true);
    let body = json!({"base_url": "https://elsewhere.example"});
    let moved = put(&world, &key, "anthropic", body).await.expect(200);
    assert_eq!(moved["provider"]["has_key"], false);
    world
        .app
        .delete(&key, "/v1/providers/anthropic")
        .await
        .expect(204);
    world
        .app
        .delete(&key, "/v1/providers/anthropic")
        .await
        .error(404);
    world.app.finish().await;
}

#[tokio::test]
async fn an_invalid_provider_is_refused_by_field() {
    let world = World::new().await;
    let key = &world.team.key;
    for (name, body, told) in [
        ("mine", json!({}), "kind"),
        ("mine", json!({"kind": "claude"}), "openai_compatible"),
        ("mine", json!({"kind": "openai_compatible"}), "base_url"),
        ("openai", json!({"api_key": ""}), "api_key"),
        ("openai", json!({"api_key": "a b"}), "api_key"),
        ("openai", json!({"base_url": "no address"}), "base_url"),
        ("openai", json!({"base_url": "ftp://x.example"}), "http"),
        (
            "openai",
            json!({"base_url": "https://x.example/?a=b"}),
            "query",
        ),
        (
            "openai",
            json!({"base_url": "https://me:hidden@x.example/v1"}),
            "api_key",
        ),
        // The address guard: a team cannot reach the operator's networks.
        (
            "openai",
            json!({"base_url": "http://127.0.0.1:1/v1"}),
            "models.allow_private_networks",
        ),
        (
            "openai",
            json!({"base_url": "http://169.254.169.254/"}),
            "base_url",
        ),
        (
            "openai",
            json!({"base_urll": "https://x.example"}),
            "base_url",
        ),
    ] {
        let (_, message) = put(&world, key, name, body.clone()).await.error(400);
        assert!(message.contains(told), "{body}: {message}");
    }
    for name in ["builtin", "UPPER", "a.b", &"x".repeat(41)] {
        put(&world, key, name, json!({"kind": "openai"}))
            .await
            .error(404);
    }
    let (_, member) = world
        .app
        .person(&world.team, "m@acme.example", Role::Member)
        .await;
    put(&world, &member, "openai", json!({})).await.error(403);
    world.app.get(&member, "/v1/providers").await.expect(200);
    world.app.finish().await;
}
