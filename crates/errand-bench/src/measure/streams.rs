//! A thousand open event streams.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::Bench;
use crate::http::Client;
use crate::line::{Goal, Outcome};
use crate::load::{self, Waiting, string_at};
use crate::stats::Sorted;

const MEMORY: Goal = Goal::at_most("Memory that 1,000 open streams add", "MB", 50.0);
const EVENT: Goal = Goal::informational(
    "From the request of an answer to its event on the stream, p50",
    "ms",
);
const EVENT_P99: Goal = Goal::informational(
    "From the request of an answer to its event on the stream, p99",
    "ms",
);

/// Maximum time until an event arrives.
const EVENT_MAX: Duration = Duration::from_secs(60);

pub(super) const METHOD: &str = "1,000 runs wait for a person, each with an event stream on a connection of its own that has received all existing events. Memory is that of the server at this point, minus that before the first stream. Then 200 of the requests are answered one after the other on another connection. The time is from the first byte of the answer's `POST` to `human_request.closed` on the run's stream.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let (server, key, mut client) = bench.first(scratch.path()).await?;
    let steps = json!([{"approve": {"title": "Go on?"}, "as": "answer"}, {"finish": "Done."}]);
    let agent = load::agent(&mut client, steps).await?;
    let (count, answers) = (bench.size(1_000, 20), bench.size(200, 5));
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        runs.push(load::start(&mut client, &agent).await?);
    }
    for run in &runs {
        let waiting = Waiting::of(&mut client, run).await?;
        waiting.until(&mut client, run, "waiting").await?;
    }

    let disk = bench.disk()?;
    let before = server.rss_bytes()?;
    let mut streams = Vec::with_capacity(count);
    for run in &runs {
        let mut stream = Client::connect(server.address, &key).await?;
        let request = stream.request("GET", &format!("/v1/runs/{run}/events"), "");
        stream.write(&request).await?;
        stream.until("human_request.created").await?;
        streams.push(stream);
    }
    let open = server.rss_bytes()?;

    let mut times = Vec::with_capacity(answers);
    for (run, stream) in runs.iter().zip(&mut streams).take(answers) {
        let got = client.get(&format!("/v1/runs/{run}")).await?;
        let request = string_at(&got, "/pending_human_request/id")?;
        let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
        let answer = client.request("POST", &path, &json!({"approved": true}).to_string());
        let begin = Instant::now();
        let event_ms = async {
            stream.until("human_request.closed").await?;
            anyhow::Ok(begin.elapsed().as_secs_f64() * 1000.0)
        };
        let answered_and_seen = async { tokio::try_join!(client.send(&answer), event_ms) };
        let (answered, event_ms) = tokio::time::timeout(EVENT_MAX, answered_and_seen).await??;
        anyhow::ensure!(
            answered.status == 200,
            "{} {}",
            answered.status,
            answered.body
        );
        times.push(event_ms);
    }
    let total = client.get("/v1/runs?status=waiting&limit=1").await?;
    anyhow::ensure!(
        total.get("total").and_then(Value::as_u64) == Some((count - answers) as u64),
        "the unanswered runs should still be waiting: {total}"
    );
    drop(streams);
    server.stop().await?;
    let times = Sorted::of(times);
    Ok(Outcome {
        figures: vec![
            MEMORY.with_value((open as f64 - before as f64) / 1e6),
            EVENT.with_value(times.at(50.0)),
            EVENT_P99.with_value(times.at(99.0)),
        ],
        disk,
        curves: vec![times.curve("from an answer to its event on a stream")],
        details: json!({
            "streams": count,
            "rss_bytes_before": before,
            "rss_bytes_open": open,
            "bytes_per_stream": (open.saturating_sub(before)) / count as u64,
        }),
        notes: Vec::new(),
    })
}
