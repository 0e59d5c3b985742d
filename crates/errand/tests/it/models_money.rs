//! Money: usage is never lost, and an unknown price is unknown, not zero.

use std::time::Duration;

use errand_testkit::Gate;
use errand_testkit::providers::{Answer, Fault, Protocol, UsageForm};
use serde_json::{Value, json};

use crate::models::{EACH, World};
use crate::models_progress::local;

async fn model_calls(world: &World, run: &str) -> Vec<Value> {
    let path = format!("/v1/runs/{run}/model-calls");
    let calls = world.app.get(&world.team.key, &path).await.expect(200);
    calls["model_calls"].as_array().unwrap().clone()
}

async fn sum(world: &World) -> Value {
    let usage = world.app.get(&world.team.key, "/v1/usage").await;
    usage.expect(200)["sum"].clone()
}

async fn limit_month(world: &World, usd: Value) -> Value {
    let body = json!({"cost_usd_month": usd});
    let reply = world.app.patch(&world.team.key, "/v1/usage/limits", body);
    reply.await.expect(200)
}

#[tokio::test]
async fn usage_is_counted_in_every_form() {
    for (model, protocol) in EACH {
        for form in UsageForm::ALL {
            let world = World::new().await;
            let answer = Answer::text("It is done.")
                .with_tokens(5_000, 1_000, 0, 500)
                .with_usage(form);
            world
                .server
                .script(model.split_once('/').unwrap().1, vec![answer]);
            let run = world.run(model, json!({}), "Go.").await;
            let usage = world.completed(&run).await["usage"].clone();
            let call = &model_calls(&world, &run).await[0];
            assert_eq!(call["outcome"], "answered");
            if protocol == Protocol::OpenAi {
                let asked = world.server.last();
                assert_eq!(asked.body["stream_options"]["include_usage"], true);
            }
            if form == UsageForm::Missing {
                assert_eq!(usage["estimated"], true, "{protocol:?}");
                assert_eq!(call["estimated"], true);
                assert!(usage["input_tokens"].as_u64() > Some(10), "{usage}");
                assert_eq!(usage["output_tokens"], 3, "{usage}");
                let tokens = usage["input_tokens"].as_u64().unwrap() + 3;
                assert_eq!(sum(&world).await["estimated_tokens"], tokens);
            } else {
                assert_eq!(usage["input_tokens"], 5_000, "{protocol:?} {form:?}");
                assert_eq!(usage["cached_tokens"], 1_000, "{protocol:?} {form:?}");
                assert_eq!(usage["output_tokens"], 500, "{protocol:?} {form:?}");
                assert_eq!(usage.get("estimated"), None);
                assert_eq!(call["estimated"], false);
            }
            world.app.finish().await;
        }
    }
}

#[tokio::test]
async fn limits_hold_however_usage_is_said() {
    for form in UsageForm::ALL {
        let world = local("[models.default_price]\ninput = 10.0\noutput = 10.0\n").await;
        world.server.answer_by(move |asked| {
            let path = format!("/workspace/{}.txt", asked.turns());
            Answer::call("write_file", json!({"path": path, "content": "x"}))
                .with_tokens(5_000, 0, 0, 500)
                .with_usage(form)
        });
        for limits in [json!({"tokens": 9_000}), json!({"cost_usd": 0.09})] {
            let before = world.server.asked().len();
            let data = json!({"limits": limits, "human_in_the_loop": false});
            let run = world.run("local/some", data, "Go.").await;
            assert_eq!(world.failed(&run).await.0, "limit_exceeded", "{form:?}");
            let calls = world.server.asked().len() - before;
            // A request of this test is estimated at some hundred tokens.
            let most = if form == UsageForm::Missing { 30 } else { 2 };
            assert!(calls <= most, "{form:?}: {calls}");
        }
        world.app.finish().await;
    }
}

#[tokio::test]
async fn attempts_that_failed_count_and_are_listed() {
    let world = World::new().await;
    // Input tokens are reported at the beginning, before the stream breaks off.
    let good = Answer::text("It is done.").with_tokens(3_050, 0, 0, 40);
    world.server.script("claude-sonnet-4-5", vec![good]);
    world.server.fail_with([
        Fault::Status(529),
        Fault::Short(3),
        Fault::ErrorEvent("overloaded_error"),
    ]);
    let run = world
        .run("anthropic/claude-sonnet-4-5", json!({}), "Go.")
        .await;
    for _ in 0..4 {
        world.app.advance(Duration::from_secs(60)).await;
    }
    let usage = world.completed(&run).await["usage"].clone();
    let calls = model_calls(&world, &run).await;
    let outcomes: Vec<_> = calls
        .iter()
        .map(|c| c["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["failed", "failed", "failed", "answered"]);
    let input: Vec<_> = calls
        .iter()
        .map(|c| c["input_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(input, [0, 3_050, 3_050, 3_050]);
    assert!(calls[0]["error"].as_str().unwrap().contains("529"));
    assert_eq!(usage["input_tokens"], 3 * 3_050);
    assert_eq!(usage["model_calls"], 1);
    let cost: f64 = calls.iter().map(|c| c["cost_usd"].as_f64().unwrap()).sum();
    assert!((usage["cost_usd"].as_f64().unwrap() - cost).abs() < 1e-9);
    let sum = sum(&world).await;
    assert_eq!(
        (&sum["input_tokens"], &sum["model_calls"]),
        (&json!(9_150), &json!(1))
    );
    let limits = world.app.get(&world.team.key, "/v1/usage/limits").await;
    let spent = limits.expect(200)["spent_usd_month"].as_f64().unwrap();
    assert!((spent - cost).abs() < 1e-9, "{spent} {cost}");
    world.app.finish().await;
}

#[tokio::test]
async fn a_call_that_was_stopped_counts() {
    for (model, protocol) in EACH {
        let world = World::new().await;
        let gate = Gate::default();
        let name = model.split_once('/').unwrap().1;
        world
            .server
            .script(name, vec![Answer::text("one two three")]);
        world.server.fail_with([Fault::Trickle(gate.clone())]);
        let run = world.start(model, json!({}), Some("Count.")).await;
        let mut stream = crate::api_events::open(&world.app, &world.team.key, &run, None).await;
        // Waits until a piece of the text has arrived.
        let events = match protocol {
            Protocol::Anthropic => 4,
            Protocol::OpenAi => 2,
            Protocol::Gemini => 1,
        };
        (0..events).for_each(|_| gate.open());
        while let Some(item) = stream.next().await {
            if item.kind == "message.delta" {
                break;
            }
        }
        let path = format!("/v1/runs/{run}/stop");
        let stopped = world.app.post(&world.team.key, &path, json!({}));
        stopped.await.expect(200);
        // The driver leaves after the response to the stop.
        let left = async {
            while model_calls(&world, &run).await.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), left)
            .await
            .expect("the call is on record");
        let got = world.get(&run).await;
        assert_eq!(got["status"], "interrupted");
        let calls = model_calls(&world, &run).await;
        assert_eq!(calls.len(), 1, "{protocol:?}: {calls:?}");
        assert_eq!(calls[0]["outcome"], "canceled");
        assert!(calls[0]["input_tokens"].as_u64() > Some(0), "{calls:?}");
        assert_eq!(got["usage"]["input_tokens"], calls[0]["input_tokens"]);
        assert_eq!(sum(&world).await["input_tokens"], calls[0]["input_tokens"]);
        gate.open_for_good();
        world.app.finish().await;
    }
}

#[tokio::test]
async fn a_cost_that_is_not_known_is_null() {
    let world = local("").await;
    let answer = Answer::text("Done.").with_tokens(1_800, 0, 0, 1);
    world.server.script("some", vec![answer]);
    let run = world.run("local/some", json!({}), "Go.").await;
    let usage = world.completed(&run).await["usage"].clone();
    assert_eq!(usage["cost_usd"], Value::Null);
    assert_eq!(usage["cost_unknown_tokens"], 1_801);
    assert_eq!(model_calls(&world, &run).await[0]["cost_usd"], Value::Null);
    // The known part of the cost is shown as well.
    let known = world.run("openai/gpt-4.1", json!({}), "Go.").await;
    assert!(world.completed(&known).await["usage"]["cost_usd"].as_f64() > Some(0.0));
    let sum = sum(&world).await;
    assert_eq!(sum["cost_usd"], Value::Null);
    assert_eq!(sum["cost_unknown_tokens"], 1_801);
    assert!(sum["cost_known_usd"].as_f64() > Some(0.0));
    world.app.finish().await;
}

#[tokio::test]
async fn a_team_s_limit_refuses_a_model_without_a_price() {
    let world = local("").await;
    limit_month(&world, json!(0.01)).await;
    let config = crate::models::config("local/some", json!({}));
    let agent = world.app.agent(&world.team, config).await;
    let body = json!({"agent_id": agent, "message": "Go."});
    let start = || world.app.post(&world.team.key, "/v1/runs", body.clone());
    let message = start().await.error(400).1;
    for part in [
        "[models.prices.\"local/some\"]",
        "[models.default_price]",
        "PATCH /v1/usage/limits",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(world.server.asked().len(), 0);
    // A limit that is set later applies before the next call.
    limit_month(&world, Value::Null).await;
    let gate = Gate::default();
    world.server.hold_at(&gate);
    world
        .server
        .script("some", vec![Answer::call("list_files", json!({}))]);
    let run = world.app.run(&world.team, body.clone()).await;
    gate.arrival().await;
    limit_month(&world, json!(0.01)).await;
    gate.open_for_good();
    world.app.settle().await;
    let (code, message) = world.failed(&run).await;
    assert_eq!(code, "model_price_unknown");
    assert!(message.contains("then retry the run"), "{message}");
    assert_eq!(world.server.asked().len(), 1);
    let limits = world
        .app
        .get(&world.team.key, "/v1/usage/limits")
        .await
        .expect(200);
    assert_eq!(limits["unknown_tokens_month"], 120);
    world.app.finish().await;
}

#[tokio::test]
async fn an_operator_s_default_price_counts() {
    let world = local("[models.default_price]\ninput = 10.0\noutput = 20.0\n").await;
    limit_month(&world, json!(0.05)).await;
    let answer = Answer::text("Done.").with_tokens(1_000, 0, 0, 100);
    world.server.script("some", vec![answer]);
    let data = json!({"limits": {"cost_usd": 1.0}});
    let run = world.run("local/some", data, "Go.").await;
    let usage = world.completed(&run).await["usage"].clone();
    assert!(
        (usage["cost_usd"].as_f64().unwrap() - 0.012).abs() < 1e-9,
        "{usage}"
    );
    world.app.finish().await;
}

#[tokio::test]
async fn thoughts_and_usage_before_the_answer_count() {
    // A blocked call has also been paid for.
    let world = World::new().await;
    let (model, protocol) = EACH[2];
    assert_eq!(protocol, Protocol::Gemini);
    let block = json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 77}});
    world
        .server
        .fail_with([Fault::Events(vec![format!("data: {block}\r\n\r\n")])]);
    let run = world.run(model, json!({}), "Go.").await;
    let (code, message) = world.failed(&run).await;
    assert_eq!(code, "model_refused");
    assert!(message.contains("PROHIBITED_CONTENT"), "{message}");
    assert_eq!(world.get(&run).await["usage"]["input_tokens"], 77);
    world.app.finish().await;
}
