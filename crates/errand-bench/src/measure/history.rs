//! Runs per second with a million finished runs in the store, compared with an empty store.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use super::Bench;
use super::throughput::CLIENTS;
use crate::http::Client;
use crate::line::{Goal, Outcome};
use crate::load::{self, Load, Waiting};
use crate::seed::{Copies, multiply};
use crate::stats::Sorted;

const RATIO: Goal = Goal::at_least(
    "Runs per second with 1,000,000 finished runs, relative to an empty store",
    "×",
    0.8,
);
const RATE: Goal = Goal::informational("Runs with 16 clients and 1,000,000 finished runs", "/s");
const POST: Goal = Goal::informational("`POST /v1/runs` with 1,000,000 finished runs, p50", "ms");
const READY: Goal = Goal::at_most("Start with 1,000,000 finished runs", "ms", 100.0);

/// Distance between two finished runs, in ms: a million of them span ten days.
const APART_MS: i64 = 864;

/// Measured lists and their query parameters.
const LISTS: [(Goal, &str); 4] = [
    (
        Goal::informational("The first page of all of 1,000,000 runs, p50", "ms"),
        "",
    ),
    (
        Goal::informational("The first page of completed runs, p50", "ms"),
        "&status=completed",
    ),
    (
        Goal::informational("The first page of failed runs (there are none), p50", "ms"),
        "&status=failed",
    ),
    (
        Goal::informational("A page in the middle, at offset 500,000, p50", "ms"),
        "&offset=500000",
    ),
];

pub(super) const METHOD: &str = "A finished run of the throughput measure is copied in the database file while the server is stopped (all its rows, with new ids and times; indexes and triggers are kept). The load of the throughput measure then runs on a new server and on this one, twice each, alternating. Lists are requested with the default page of 20.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let (full, empty) = (scratch.path().join("full"), scratch.path().join("empty"));
    let copies = bench.size(1_000_000, 2_000);
    let (full_key, full_agent, seeding_s) = seeded(bench, &full, copies).await?;

    let disk = bench.disk()?;
    let (mut with, mut without, mut ready_ms) = (Vec::new(), Vec::new(), Vec::new());
    let runs = bench.size(8_000, 40);
    for round in 0..2 {
        let (server, key, mut client) = bench.first(&empty.join(round.to_string())).await?;
        let agent = load::agent(&mut client, load::two_calls()).await?;
        without.push(Load::of(&server, &key, &agent, runs, CLIENTS).await?);
        server.stop().await?;

        let server = bench.serve(&full).await?;
        ready_ms.push(server.ready_ms);
        with.push(Load::of(&server, &full_key, &full_agent, runs, CLIENTS).await?);
        server.stop().await?;
    }
    let server = bench.serve(&full).await?;
    ready_ms.push(server.ready_ms);
    let mut client = Client::connect(server.address, &full_key).await?;
    let total = client.get("/v1/runs?limit=1").await?;
    let expected = copies + 1 + 2 * (runs as u64 + runs as u64 / 10 + 1);
    anyhow::ensure!(
        total.get("total").and_then(Value::as_u64) == Some(expected),
        "{expected} runs should be there: {total}"
    );
    let rss = server.rss_bytes()?;
    let mut lists = Vec::new();
    for (goal, query) in LISTS {
        let query = query.replace("500000", &(copies / 2).to_string());
        lists.push(goal.with_value(page_ms(&mut client, &query, bench.size(50, 3)).await?));
    }
    server.stop().await?;

    let rate =
        |loads: &[Load]| loads.iter().map(Load::runs_per_s).sum::<f64>() / loads.len() as f64;
    let post = with
        .iter()
        .map(|load| load.posts.at(50.0))
        .fold(0.0, f64::max);
    let mut figures = vec![
        RATIO.with_value(rate(&with) / rate(&without)),
        RATE.with_value(rate(&with)),
        POST.with_value(post),
        READY.with_value(Sorted::of(ready_ms).at(50.0)),
    ];
    figures.extend(lists);
    Ok(Outcome {
        figures,
        disk,
        curves: with
            .last()
            .map(|load| {
                load.turnarounds
                    .curve("POST to the end of the run, with 1,000,000 finished runs")
            })
            .into_iter()
            .collect(),
        details: json!({
            "finished_runs": copies,
            "seeding_s": seeding_s,
            "database_bytes": std::fs::metadata(full.join("errand.db"))?.len(),
            "rss_bytes": rss,
            "runs_per_s_empty": without.iter().map(Load::runs_per_s).collect::<Vec<_>>(),
            "runs_per_s_full": with.iter().map(Load::runs_per_s).collect::<Vec<_>>(),
            "full": with.last().map(Load::details),
            "empty": without.last().map(Load::details),
        }),
        notes: with.last().map(Load::notes).unwrap_or_default(),
    })
}

/// Fills a directory with this many finished runs. Returns the API key, the agent, and the seconds it took.
async fn seeded(bench: &Bench, dir: &Path, copies: u64) -> Result<(String, String, f64)> {
    let (server, key, mut client) = bench.first(dir).await?;
    let agent = load::agent(&mut client, load::two_calls()).await?;
    let run = load::start(&mut client, &agent).await?;
    let waiting = Waiting::of(&mut client, &run).await?;
    waiting.until(&mut client, &run, "completed").await?;
    drop(client);
    server.stop().await?;
    let begin = Instant::now();
    let wanted = Copies {
        run: &run,
        copies,
        apart_ms: APART_MS,
    };
    multiply(dir, &[wanted]).await?;
    Ok((key, agent, begin.elapsed().as_secs_f64()))
}

/// Median time of a page of the list, in ms.
async fn page_ms(client: &mut Client, query: &str, times: usize) -> Result<f64> {
    let request = client.request("GET", &format!("/v1/runs?limit=20{query}"), "");
    let mut taken = Vec::with_capacity(times);
    for _ in 0..times {
        let begin = Instant::now();
        let answer = client.send(&request).await?;
        anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        taken.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(Sorted::of(taken).at(50.0))
}
