//! Faults between the server and a model, and their consequences.

use std::time::Duration;

use errand_testkit::Gate;
use errand_testkit::providers::{Answer, Fault};
use serde_json::json;

use crate::models::{EACH, World};

/// Longer than any pause between attempts.
const PAUSE: Duration = Duration::from_secs(8);

#[tokio::test]
async fn each_fault_of_transport_is_tried_again_and_holds_no_place() {
    for (model, _) in EACH {
        let world = World::new().await;
        let name = model.split_once('/').unwrap().1;
        world.server.script(
            name,
            vec![Answer::text("Once.").and_call("list_files", json!({}))],
        );
        let faults = [
            Fault::Status(429),
            Fault::Status(500),
            Fault::Status(503),
            Fault::Status(529),
            Fault::Cut(0),
            Fault::Cut(3),
            Fault::Short(3),
            Fault::Html,
            Fault::BadJson,
            Fault::ErrorEvent("overloaded_error"),
        ];
        let n = faults.len();
        world.server.fail_with(faults);
        let run = world.start(model, json!({}), Some("Go.")).await;
        for attempt in 1..=n {
            world.app.settle().await;
            assert_eq!(world.server.asked().len(), attempt, "{model}");
            let got = world.get(&run).await;
            assert_eq!(got["status"], "running", "{model}: {attempt}");
            assert_eq!(got["waiting_on"]["kind"], "retry", "{model}: {attempt}");
            assert_eq!(got["waiting_on"]["who"], model);
            assert!(got["waiting_on"]["deadline"].is_string());
            world.app.advance(PAUSE).await;
        }
        world.completed(&run).await;
        // The answer exists once, and the attempts are not among the messages.
        assert_eq!(
            world.texts(&run).await,
            [
                "Go.",
                "Once.",
                "call list_files",
                "result {\"files\":[]}",
                "Done."
            ]
        );
        let got = world.get(&run).await;
        assert_eq!(got["usage"]["model_calls"], 2);
        world.app.finish().await;
    }
}

#[tokio::test]
async fn a_provider_s_wish_to_wait_is_respected_up_to_a_minute() {
    let world = World::new().await;
    let body = json!({"error": {"type": "rate_limit_error", "message": "slow down"}});
    world.server.fail_with([
        Fault::Refusal(429, body.clone(), Some("30".to_owned())),
        Fault::Refusal(429, body, Some("86400".to_owned())),
    ]);
    let run = world
        .start("anthropic/claude-test", json!({}), Some("Go."))
        .await;
    world.app.settle().await;
    for (short, rest, asked) in [(29, 1, 1), (59, 1, 2)] {
        world.app.advance(Duration::from_secs(short)).await;
        assert_eq!(world.server.asked().len(), asked);
        world.app.advance(Duration::from_secs(rest)).await;
        assert_eq!(world.server.asked().len(), asked + 1);
    }
    world.completed(&run).await;
    world.app.finish().await;
}

#[tokio::test]
async fn a_bad_key_or_request_is_not_tried_again_and_says_what_to_do() {
    let world = World::new().await;
    for (model, _) in EACH {
        let (provider, name) = model.split_once('/').unwrap();
        for (status, code, told) in [
            (401, "model_unauthorized", "PUT /v1/providers/"),
            (403, "model_unauthorized", provider),
            (404, "model_not_found", name),
            (400, "model_bad_request", "injected fault: 400"),
        ] {
            let before = world.server.asked().len();
            world.server.fail_with([Fault::Status(status)]);
            let run = world.run(model, json!({}), "Go.").await;
            let (got, message) = world.failed(&run).await;
            assert_eq!(got, code, "{model}: {status}");
            assert!(message.contains(told), "{message}");
            assert!(!message.contains("test-key"), "{message}");
            assert_eq!(world.server.asked().len(), before + 1);
        }
    }
    // A retry calls the model again, with the corrected settings.
    world.server.fail_with([Fault::Status(401)]);
    let run = world.run("openai/gpt-test", json!({}), "Go.").await;
    world.failed(&run).await;
    let path = format!("/v1/runs/{run}/retry");
    let reply = world.app.post(&world.team.key, &path, json!({})).await;
    reply.expect(200);
    world.app.settle().await;
    world.completed(&run).await;
    world.app.finish().await;
}

#[tokio::test]
async fn attempts_end_and_a_retry_begins_anew() {
    let world = World::with(vec![("ERRAND_MODELS__ATTEMPTS", "3".to_owned())]).await;
    world.server.fail_with(vec![Fault::Status(503); 4]);
    let run = world
        .start("gemini/gemini-test", json!({}), Some("Go."))
        .await;
    for _ in 0..3 {
        world.app.settle().await;
        world.app.advance(PAUSE).await;
    }
    let (code, message) = world.failed(&run).await;
    assert_eq!(code, "model_unreachable");
    assert!(
        message.contains("3 attempts") && message.contains("503"),
        "{message}"
    );
    let path = format!("/v1/runs/{run}/retry");
    let reply = world.app.post(&world.team.key, &path, json!({})).await;
    reply.expect(200);
    world.app.settle().await;
    world.app.advance(PAUSE).await;
    world.completed(&run).await;
    assert_eq!(world.server.asked().len(), 5);
    world.app.finish().await;
}

/// Waits until a driver listens to a model that can still be silent for this long. (All other timers are further away.)
async fn listens(world: &World, ms: u64) {
    let until = world.app.now().plus_ms(ms);
    let listens = async {
        while world.app.clock().next_waking().is_none_or(|at| at < until) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), listens).await;
    assert!(waited.is_ok(), "{:?}", world.app.clock().next_waking());
}

#[tokio::test]
async fn a_silent_provider_is_given_up_on_and_a_slow_one_is_not() {
    let world = World::with(vec![("ERRAND_MODELS__IDLE_TIMEOUT", "5s".to_owned())]).await;
    let gate = Gate::default();
    world
        .server
        .fail_with([Fault::Hang, Fault::Trickle(gate.clone())]);
    world
        .server
        .script("claude-test", vec![Answer::text("Slowly.")]);
    let run = world
        .start("anthropic/claude-test", json!({}), Some("Go."))
        .await;
    world.server.until(1).await;
    listens(&world, 5_000).await;
    world.app.clock().advance(Duration::from_secs(5));
    world.app.settle().await;
    assert_eq!(world.get(&run).await["waiting_on"]["kind"], "retry");
    world.app.clock().advance(Duration::from_millis(500));
    // Each piece takes 1.5 s: together far more than the permitted silence. Some of them contain nothing new.
    for _ in 0..9 {
        gate.arrival().await;
        listens(&world, 2_000).await;
        world.app.clock().advance(Duration::from_millis(1_500));
        gate.open();
    }
    gate.open_for_good();
    world.app.settle().await;
    world.completed(&run).await;
    assert_eq!(world.server.asked().len(), 2);
    world.app.finish().await;
}

#[tokio::test]
async fn a_provider_that_is_down_holds_up_only_the_runs_that_use_it() {
    let world = World::with(vec![("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "1".to_owned())]).await;
    world
        .server
        .fail_model_with("gpt-test", vec![Fault::Status(503); 64]);
    let mut down = Vec::new();
    for _ in 0..4 {
        down.push(world.start("openai/gpt-test", json!({}), Some("Go.")).await);
    }
    // With a single slot: each failed attempt frees it.
    let run = world.run("anthropic/claude-test", json!({}), "Go.").await;
    world.completed(&run).await;
    for run in &down {
        assert_eq!(world.get(run).await["waiting_on"]["kind"], "retry");
    }
    world.app.finish().await;
}

/// Waits until a run has completed, without advancing the clock.
async fn completes(world: &World, run: &str) {
    let completes = async {
        while world.get(run).await["status"] != "completed" {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), completes).await;
    assert!(waited.is_ok(), "{}", world.get(run).await);
}

#[tokio::test]
async fn a_slow_provider_delays_only_its_own_runs() {
    let settings = [
        ("ERRAND_MODELS__CONCURRENCY", "2"),
        ("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "4"),
    ];
    let settings = settings.map(|(name, value)| (name, value.to_owned()));
    let world = World::with(settings.to_vec()).await;
    let gate = Gate::default();
    let slow = vec![Fault::Trickle(gate.clone()); 6];
    world.server.fail_model_with("gpt-test", slow);
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(world.start("openai/gpt-test", json!({}), Some("Go.")).await);
    }
    world.server.until(2).await;
    // Other runs of this provider wait without a slot, and say so; runs of another provider continue.
    let other = world
        .start("anthropic/claude-test", json!({}), Some("Go."))
        .await;
    completes(&world, &other).await;
    let mut waiting = 0;
    for run in &runs {
        waiting += usize::from(world.get(run).await["waiting_on"]["kind"] == "retry");
    }
    assert_eq!(waiting, 4);
    assert_eq!(world.server.asked().len(), 3);
    // Stopping a waiting run frees no slot.
    let path = format!("/v1/runs/{}/stop", runs[3]);
    let stopped = world.app.post(&world.team.key, &path, json!({})).await;
    stopped.expect(200);
    // As soon as a slot is free, the next run gets it, without any time passing.
    gate.open_for_good();
    for run in runs.iter().filter(|run| **run != runs[3]) {
        completes(&world, run).await;
        let got = world.get(run).await;
        assert_eq!(got["usage"]["model_calls"], 1);
    }
    assert_eq!(world.server.asked().len(), 6);
    world.app.settle().await;
    world.app.finish().await;
}

#[tokio::test]
async fn a_run_between_attempts_can_be_stopped_and_restarted() {
    let mut world = World::new().await;
    world.server.fail_with(vec![Fault::Status(529); 3]);
    let stopped = world
        .start("anthropic/claude-test", json!({}), Some("Go."))
        .await;
    world.app.settle().await;
    let path = format!("/v1/runs/{stopped}/stop");
    let reply = world.app.post(&world.team.key, &path, json!({})).await;
    reply.expect(200);
    let run = world
        .start("anthropic/claude-test", json!({}), Some("Go."))
        .await;
    world.app.settle().await;
    world.app.crash().await;
    world.app.settle().await;
    assert_eq!(world.get(&run).await["waiting_on"]["kind"], "retry");
    world.app.advance(PAUSE).await;
    world.app.advance(PAUSE).await;
    world.completed(&run).await;
    assert_eq!(world.get(&stopped).await["status"], "interrupted");
    world.app.finish().await;
}
