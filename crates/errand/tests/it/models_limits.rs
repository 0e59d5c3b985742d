//! Usage and cost of models, and their limits.

use errand_testkit::providers::Answer;
use serde_json::{Value, json};

use crate::models::World;

fn close(a: &Value, b: f64) -> bool {
    (a.as_f64().unwrap() - b).abs() < 1e-9
}

async fn respond(world: &World, run: &str, body: Value) {
    let got = world.app.get_run(&world.team, run).await;
    let request = got["pending_human_request"]["id"].as_str().unwrap();
    let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
    let reply = world.app.post(&world.team.key, &path, body).await;
    reply.expect(200);
    world.app.settle().await;
}

/// Makes the model call a tool in each turn, forever.
fn busy(world: &World) {
    world
        .server
        .answer_by(|_| Answer::call("list_files", json!({})).with_tokens(1_000, 600, 100, 50));
}

#[tokio::test]
async fn tokens_cost_and_time_of_each_call_are_summed_everywhere() {
    let world = World::new().await;
    // Per million tokens: 3 USD, 0.3 from the cache, 3.75 into it, 15 for output.
    world.server.script(
        "claude-sonnet-4-5",
        vec![
            Answer::call("list_files", json!({})).with_tokens(10_000, 0, 8_000, 100),
            Answer::text("Done.").with_tokens(12_000, 8_000, 0, 200),
        ],
    );
    let run = world
        .run("anthropic/claude-sonnet-4-5", json!({}), "Go.")
        .await;
    let got = world.completed(&run).await;
    let first = 0.002 * 3.0 + 0.008 * 3.75 + 0.0001 * 15.0;
    let second = 0.004 * 3.0 + 0.008 * 0.3 + 0.0002 * 15.0;
    let usage = &got["usage"];
    assert_eq!(usage["model_calls"], 2);
    assert_eq!(usage["input_tokens"], 22_000);
    assert_eq!(usage["cached_tokens"], 8_000);
    assert_eq!(usage["output_tokens"], 300);
    assert!(close(&usage["cost_usd"], first + second), "{usage}");

    let get = async |path: &str| world.app.get(&world.team.key, path).await.expect(200);
    let calls = get(&format!("/v1/runs/{run}/model-calls")).await;
    let calls = calls["model_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    assert!(close(&calls[0]["cost_usd"], first));
    assert!(close(&calls[1]["cost_usd"], second));
    assert_eq!(calls[1]["cached_tokens"], 8_000);
    assert_eq!(calls[1]["model"], "anthropic/claude-sonnet-4-5");

    // Another model, of another agent.
    let other = world.run("openai/gpt-4.1", json!({}), "Go.").await;
    world.completed(&other).await;
    let total = get("/v1/usage").await["sum"].clone();
    assert_eq!(
        (&total["runs"], &total["model_calls"]),
        (&json!(2), &json!(3))
    );
    let by_model = get("/v1/usage?group_by=model").await;
    assert_eq!(by_model["usage"][0]["model"], "anthropic/claude-sonnet-4-5");
    assert!(close(&by_model["usage"][0]["cost_usd"], first + second));
    assert_eq!(by_model["usage"][1]["model"], "openai/gpt-4.1");
    let by_agent = get("/v1/usage?group_by=agent").await;
    assert_eq!(by_agent["usage"][0]["agent_id"], got["agent_id"]);
    assert_eq!(by_agent["usage"][0]["agent_name"], "test");
    let by_key = get("/v1/usage?group_by=key").await;
    assert_eq!(by_key["usage"].as_array().unwrap().len(), 1);
    assert_eq!(by_key["usage"][0]["api_key_name"], "test");
    let by_day = get("/v1/usage?group_by=day&since=2026-11-23T00:00:00Z").await;
    assert_eq!(by_day["usage"][0]["day"], "2026-11-23");
    assert_eq!(by_day["usage"][0]["model_calls"], 3);
    assert_eq!(
        get("/v1/usage?since=2026-11-24&until=2026-11-25&group_by=day").await["usage"],
        json!([])
    );
    let reply = world
        .app
        .get(&world.team.key, "/v1/usage?group_by=moon")
        .await;
    assert!(reply.error(400).1.contains("agent"));
    world.app.finish().await;
}

#[tokio::test]
async fn a_run_asks_whether_to_go_on_beyond_a_limit() {
    for (limits, calls) in [
        (json!({"tokens": 2_000}), 2),
        (json!({"steps": 4}), 2),
        // 0.00219 USD for each.
        (json!({"cost_usd": 0.004}), 2),
    ] {
        let world = World::new().await;
        busy(&world);
        let data = json!({"limits": limits});
        let run = world.run("anthropic/claude-sonnet-4-5", data, "Go.").await;
        let got = world.app.get_run(&world.team, &run).await;
        assert_eq!(got["run"]["status"], "waiting", "{limits}");
        let request = &got["pending_human_request"];
        assert_eq!(request["type"], "approval");
        assert!(
            request["title"].as_str().unwrap().contains("limit of"),
            "{request}"
        );
        assert_eq!(world.server.asked().len(), calls, "{limits}");
        // The same amount again.
        respond(&world, &run, json!({"approved": true})).await;
        assert_eq!(world.get(&run).await["status"], "waiting", "{limits}");
        assert_eq!(world.server.asked().len(), 2 * calls, "{limits}");
        respond(&world, &run, json!({"approved": false})).await;
        let (code, message) = world.failed(&run).await;
        assert_eq!(code, "limit_exceeded");
        assert!(
            message.contains("no person allowed it to continue"),
            "{message}"
        );
        assert_eq!(world.server.asked().len(), 2 * calls);
        world.app.finish().await;
    }
}

#[tokio::test]
async fn without_people_a_limit_fails_the_run_before_spending() {
    let world = World::new().await;
    busy(&world);
    let data = json!({"limits": {"tokens": 2_000}, "human_in_the_loop": false});
    let run = world.run("gemini/gemini-2.5-flash", data, "Go.").await;
    assert_eq!(world.failed(&run).await.0, "limit_exceeded");
    assert_eq!(world.server.asked().len(), 2);
    world.app.finish().await;
}

#[tokio::test]
async fn a_limit_that_cannot_be_kept_is_refused_at_the_start() {
    let world = World::new().await;
    let data = json!({"limits": {"cost_usd": 1.0}});
    let config = crate::models::config("openai/a-new-model", data);
    let agent = world.app.agent(&world.team, config).await;
    let body = json!({"agent_id": agent});
    let reply = world.app.post(&world.team.key, "/v1/runs", body).await;
    let message = reply.error(400).1;
    assert!(
        message.contains("[models.prices.\"openai/a-new-model\"]"),
        "{message}"
    );
    world.app.finish().await;
}

#[tokio::test]
async fn a_team_s_month_has_a_limit_too() {
    let world = World::new().await;
    busy(&world);
    let key = &world.team.key;
    let path = "/v1/usage/limits";
    let set = async |usd: Value| {
        let body = json!({"cost_usd_month": usd});
        world.app.patch(key, path, body).await
    };
    set(json!(0.004)).await.expect(200);
    set(json!(-1)).await.error(400);
    set(json!("much")).await.error(400);
    let run = world
        .run("anthropic/claude-sonnet-4-5", json!({}), "Go.")
        .await;
    let got = world.app.get_run(&world.team, &run).await;
    let title = got["pending_human_request"]["title"].as_str().unwrap();
    assert!(title.contains("team's cost"), "{got}");
    assert_eq!(world.server.asked().len(), 2);
    let limits = world.app.get(key, path).await.expect(200);
    assert!(close(&limits["cost_usd_month"], 0.004));
    assert!(limits["spent_usd_month"].as_f64().unwrap() > 0.004);

    // Without people, the run fails immediately, without a model call.
    let data = json!({"human_in_the_loop": false});
    let alone = world.run("anthropic/claude-sonnet-4-5", data, "Go.").await;
    assert_eq!(world.failed(&alone).await.0, "limit_exceeded");
    assert_eq!(world.server.asked().len(), 2);

    // A playbook costs nothing, and continues.
    let playbook = world
        .app
        .playbook(&world.team, json!([{"finish": "Done."}]))
        .await;
    let run = world
        .app
        .run(&world.team, json!({"agent_id": playbook}))
        .await;
    world.app.settle().await;
    world.completed(&run).await;

    // A new month starts, and the budget is available again.
    let days = std::time::Duration::from_secs(10 * 86_400);
    world.app.advance(days).await;
    let limits = world.app.get(key, path).await.expect(200);
    assert!(close(&limits["spent_usd_month"], 0.0), "{limits}");
    // A member can read the limit, but not set it.
    let (_, member) = world
        .app
        .person(
            &world.team,
            "m@acme.example",
            errand_core::role::Role::Member,
        )
        .await;
    world.app.get(&member, path).await.expect(200);
    let body = json!({"cost_usd_month": null});
    world
        .app
        .patch(&member, path, body.clone())
        .await
        .error(403);
    let cleared = world.app.patch(key, path, body).await.expect(200);
    assert_eq!(cleared["cost_usd_month"], Value::Null);
    world.app.finish().await;
}
