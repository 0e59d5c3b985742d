//! A million waiting runs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use errand_core::time::Timestamp;
use serde_json::{Value, json};

use super::Bench;
use crate::http::Client;
use crate::line::{Goal, Outcome};
use crate::load::{self, Waiting, string_at};
use crate::seed::{Copies, multiply};
use crate::server::Server;
use crate::stats::Sorted;

const MEMORY: Goal = Goal::at_most("Memory that 1,000,000 waiting runs add", "MB", 100.0);
const READY: Goal = Goal::at_most("Start with 1,000,000 waiting runs", "ms", 2000.0);
const LATE: Goal = Goal::at_most(
    "Delay of timers among 1,000,000 waiting runs, p99",
    "ms",
    100.0,
);
const LATE_P50: Goal =
    Goal::informational("Delay of timers among 1,000,000 waiting runs, p50", "ms");

/// Distance between two waiting runs, in ms.
const APART_MS: i64 = 500;
/// Distance between two timers.
const SPREAD: Duration = Duration::from_millis(20);
/// How far in the future timers are set, in addition to twice the time of a start: they must fire after the second
/// start.
const AHEAD_S: f64 = 20.0;

pub(super) const METHOD: &str = "Two runs that the server created, one that waits for a person and one for a timer 1,000 days ahead, are copied in the database file to half a million each. Memory is that of this server after its start, minus that of a server on an empty directory. Then runs with a timer are started, 20 ms apart, and the server is restarted before the timers are due. The delay is the end of such a run (its next step) minus the time of its timer.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let empty = bench.serve(&scratch.path().join("empty")).await?;
    let (empty_rss, empty_ms) = (empty.rss_bytes()?, empty.ready_ms);
    empty.stop().await?;

    let dir = scratch.path().join("full");
    let copies = bench.size(500_000, 500);
    let (key, seeding_s) = seeded(bench, &dir, copies).await?;
    let disk = bench.disk()?;
    let server = bench.serve(&dir).await?;
    let first_ms = server.ready_ms;
    let mut client = Client::connect(server.address, &key).await?;
    let total = client.get("/v1/runs?status=waiting&limit=1").await?;
    anyhow::ensure!(
        total.get("total").and_then(Value::as_u64) == Some(copies + 1),
        "{} runs should wait for a person: {total}",
        copies + 1
    );
    let ahead_s = 2.0 * first_ms / 1000.0 + bench.size(AHEAD_S, 3.0);
    let timers = Timers::set(&mut client, bench.size(300, 20), ahead_s.ceil() as u64).await?;
    let rss = server.rss_bytes()?;
    drop(client);
    server.stop().await?;

    let server = bench.serve(&dir).await?;
    let (second_ms, second_rss) = (server.ready_ms, server.rss_bytes()?);
    let late = timers.lateness(&server, &key).await?;
    let after = server.rss_bytes()?;
    server.stop().await?;
    let added = |rss: u64| (rss as f64 - empty_rss as f64) / 1e6;
    Ok(Outcome {
        figures: vec![
            MEMORY.with_value(added(rss.max(second_rss).max(after))),
            READY.with_value(first_ms.max(second_ms)),
            LATE.with_value(late.at(99.0)),
            LATE_P50.with_value(late.at(50.0)),
        ],
        disk,
        curves: vec![late.curve("delay of a timer among 1,000,000 waiting runs")],
        details: json!({
            "waiting_runs": 2 * copies,
            "seeding_s": seeding_s,
            "database_bytes": std::fs::metadata(dir.join("errand.db"))?.len(),
            "empty_rss_bytes": empty_rss, "rss_bytes": [rss, second_rss, after],
            "empty_ready_ms": empty_ms, "ready_ms": [first_ms, second_ms],
            "timers": late.len(), "late_ms_max": late.at(100.0),
        }),
        notes: Vec::new(),
    })
}

/// Fills a directory with this many runs of each kind. Returns the API key, and the seconds it took.
async fn seeded(bench: &Bench, dir: &Path, copies: u64) -> Result<(String, f64)> {
    let (server, key, mut client) = bench.first(dir).await?;
    let asking = load::agent(&mut client, json!([{"approve": {"title": "Go on?"}}])).await?;
    let sleeping =
        load::agent(&mut client, json!([{"wait": "1000d"}, {"finish": "Done."}])).await?;
    let asking = load::start(&mut client, &asking).await?;
    let waiting = Waiting::of(&mut client, &asking).await?;
    waiting.until(&mut client, &asking, "waiting").await?;
    let sleeping = load::start(&mut client, &sleeping).await?;
    timer_of(&mut client, &sleeping).await?;
    drop(client);
    server.stop().await?;
    let begin = Instant::now();
    let wanted = [&asking, &sleeping].map(|run| Copies {
        run,
        copies,
        apart_ms: APART_MS,
    });
    multiply(dir, &wanted).await?;
    Ok((key, begin.elapsed().as_secs_f64()))
}

/// Waits until the run sleeps, and returns the time at which it wakes.
async fn timer_of(client: &mut Client, run: &str) -> Result<Timestamp> {
    let begin = Instant::now();
    loop {
        let got = client.get(&format!("/v1/runs/{run}")).await?;
        if got.pointer("/run/waiting_on/kind").and_then(Value::as_str) == Some("timer") {
            return Ok(string_at(&got, "/run/waiting_on/deadline")?.parse()?);
        }
        anyhow::ensure!(
            begin.elapsed() < Duration::from_secs(60),
            "the run does not sleep: {got}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs with timers that will fire soon.
struct Timers(Vec<(String, Timestamp)>);

impl Timers {
    async fn set(client: &mut Client, count: usize, ahead_s: u64) -> Result<Self> {
        let steps = json!([{"wait": format!("{ahead_s}s")}, {"finish": "Done."}]);
        let agent = load::agent(client, steps).await?;
        let mut timers = Vec::with_capacity(count);
        for _ in 0..count {
            let run = load::start(client, &agent).await?;
            let due = timer_of(client, &run).await?;
            timers.push((run, due));
            tokio::time::sleep(SPREAD).await;
        }
        Ok(Self(timers))
    }

    /// Time from the timer to the end of each run, in ms, once all have ended.
    async fn lateness(self, server: &Server, key: &str) -> Result<Sorted> {
        let mut client = Client::connect(server.address, key).await?;
        let (first, _) = self.0.first().context("no timers")?;
        let waiting = Waiting::of(&mut client, first).await?;
        let mut late = Vec::with_capacity(self.0.len());
        for (run, due) in self.0 {
            waiting.until(&mut client, &run, "completed").await?;
            let got = client.get(&format!("/v1/runs/{run}")).await?;
            let ended: Timestamp = string_at(&got, "/run/completed_at")?.parse()?;
            late.push((ended.as_millis() - due.as_millis()) as f64);
        }
        Ok(Sorted::of(late))
    }
}
