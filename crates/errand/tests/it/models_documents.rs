//! What models read: images if they support them, documents as text, several things at once; and the cost.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use errand_testkit::providers::{Answer, ProviderServer};
use errand_testkit::{TestApp, TestOptions};
use serde_json::json;

use crate::connections::root;
use crate::models::{EACH, World, config};

/// A PNG of one pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

/// A world with a model that does not support images, and one that does according to the operator, both with prices.
async fn with_local() -> World {
    let server = ProviderServer::start().await;
    let file = format!(
        "[models]\nvision = [\"local/seeing\"]\n[models.providers.local]\nkind = \"openai_compatible\"\nbase_url = \"{}\"\n\
         [models.prices.\"local/blind\"]\ninput = 1.0\ncached_input = 0.5\noutput = 10.0\n\
         [models.prices.\"anthropic/claude-sonnet-4-5\"]\ninput = 100.0\noutput = 1000.0\n",
        server.openai_url()
    );
    let app = TestApp::start_with(TestOptions {
        settings: server.settings(),
        file: Some(file),
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    World { app, team, server }
}

/// Starts a run of a model on a sandbox.
async fn on_sandbox(world: &World, model: &str, sandbox: &str) -> String {
    let agent = world.app.agent(&world.team, config(model, json!({}))).await;
    let body = json!({"agent_id": agent, "sandbox_id": sandbox, "message": "Look."});
    world.app.run(&world.team, body).await
}

#[tokio::test]
async fn images_are_sent_only_to_vision_models_and_as_read() {
    let world = with_local().await;
    let bytes = STANDARD.decode(PIXEL).unwrap();
    let seeing = EACH.map(|(model, _)| model).into_iter();
    for model in seeing.chain(["local/seeing", "local/blind"]) {
        let sandbox = world.app.sandbox(&world.team).await;
        let put = async |bytes: Vec<u8>| {
            let key = &world.team.key;
            let reply = world.app.upload(key, &sandbox, "pixel.png", bytes).await;
            reply.expect(201);
        };
        put(bytes.clone()).await;
        let name = model.split_once('/').unwrap().1;
        let look = || Answer::call("read_file", json!({"path": "/workspace/pixel.png"}));
        let script = vec![look(), Answer::text("A pixel."), Answer::text("Again.")];
        world.server.script(name, script);
        let run = on_sandbox(&world, model, &sandbox).await;
        world.app.settle().await;
        world.completed(&run).await;
        let sent = world.server.last().body.to_string();
        let is_shown = sent.contains(PIXEL);
        assert_eq!(is_shown, model != "local/blind", "{model}: {sent}");
        assert_eq!(sent.contains("You cannot see images"), !is_shown);
        // The file has changed: the new content is not shown in place of what the model saw.
        put([bytes.as_slice(), b"more"].concat()).await;
        let path = format!("/v1/runs/{run}/messages");
        let body = json!({"message": "And now?"});
        let reply = world.app.post(&world.team.key, &path, body).await;
        reply.expect(201);
        world.app.settle().await;
        world.completed(&run).await;
        let sent = world.server.last().body.to_string();
        assert!(!sent.contains(&PIXEL[..PIXEL.len() - 4]), "{model}");
        assert_eq!(sent.contains("changed since then"), is_shown, "{model}");
    }
    world.app.finish().await;
}

#[tokio::test]
async fn a_model_reads_pdf_text_and_a_broken_pdf_is_an_error() {
    let world = World::new().await;
    let pdf = root().join("examples/invoices/paper-and-pens-4711.pdf");
    let pdf = std::fs::read(pdf).unwrap();
    let sandbox = world.app.sandbox(&world.team).await;
    let broken = pdf[..pdf.len() / 3].to_vec();
    for (name, bytes) in [("whole.pdf", pdf), ("broken.pdf", broken)] {
        let key = &world.team.key;
        let reply = world.app.upload(key, &sandbox, name, bytes).await;
        reply.expect(201);
    }
    let read = |name: &str| json!({"path": format!("/workspace/{name}")});
    let both =
        Answer::call("read_file", read("whole.pdf")).and_call("read_file", read("broken.pdf"));
    let script = vec![both, Answer::text("Read.")];
    world.server.script("claude-test", script);
    let run = on_sandbox(&world, "anthropic/claude-test", &sandbox).await;
    world.app.settle().await;
    world.completed(&run).await;
    let results = world.server.last().tool_results();
    for part in ["Invoice 4711", "IBAN: DE89 3704", "Total: 180.50 EUR"] {
        assert!(results[0].contains(part), "{part}: {results:?}");
    }
    let parts = &world.server.last().body["messages"][2]["content"];
    assert_eq!(parts[1]["is_error"], true, "{parts}");
    world.app.finish().await;
}

#[tokio::test]
async fn the_operator_s_prices_go_before_the_known_ones() {
    let world = with_local().await;
    for (model, cost) in [
        ("local/blind", 0.0006 + 0.0002 + 0.001),
        ("anthropic/claude-sonnet-4-5", 0.1 + 0.1),
    ] {
        let name = model.split_once('/').unwrap().1;
        let answer = Answer::text("Done.").with_tokens(1_000, 400, 0, 100);
        world.server.script(name, vec![answer]);
        let run = world.run(model, json!({}), "Go.").await;
        let got = world.completed(&run).await;
        let told = got["usage"]["cost_usd"].as_f64().unwrap();
        assert!((told - cost).abs() < 1e-9, "{model}: {told}, not {cost}");
    }
    // With a price, its cost can be limited.
    let data = json!({"limits": {"cost_usd": 0.001}});
    world.server.script(
        "blind",
        vec![Answer::call("list_files", json!({})).with_tokens(1_000, 0, 0, 100)],
    );
    let run = world.run("local/blind", data, "Go.").await;
    assert_eq!(world.get(&run).await["status"], "waiting");
    world.app.finish().await;
}

/// A server that answers once two requests have arrived.
async fn both_at_once() -> (String, tokio::task::JoinHandle<()>) {
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    let page = move || {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            "there"
        }
    };
    let router = axum::Router::new().fallback(page);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, serving)
}

#[tokio::test]
async fn read_only_calls_run_concurrently_and_in_order() {
    let settings = (
        "ERRAND_FETCH_URL__ALLOW_PRIVATE_NETWORKS",
        "true".to_owned(),
    );
    let world = World::with(vec![settings]).await;
    let (url, serving) = both_at_once().await;
    let page = |name: &str| json!({"url": format!("{url}/{name}")});
    let first = Answer::call("fetch_url", page("one"))
        .and_call("fetch_url", page("two"))
        .and_call(
            "write_file",
            json!({"path": "/workspace/a", "content": "x"}),
        )
        .and_call("read_file", json!({"path": "/workspace/a"}));
    let script = vec![first, Answer::text("Done.")];
    world.server.script("claude-test", script);
    let tools = json!({"fetch_url": "allow", "write_file": "allow", "read_file": "allow"});
    let run = world
        .run("anthropic/claude-test", json!({"tools": tools}), "Go.")
        .await;
    world.completed(&run).await;
    let results = world.server.last().tool_results();
    assert!(results[0].contains("/one") && results[0].contains("there"));
    assert!(results[1].contains("/two") && results[1].contains("there"));
    // A read after a change comes after it.
    assert!(results[2].contains("size_bytes"), "{results:?}");
    assert_eq!(results[3], "x");
    world.app.finish().await;
    serving.abort();
}
