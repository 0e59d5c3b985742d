//! Runs per second through the API, and how long one takes.

use anyhow::Result;

use super::Bench;
use crate::line::{Goal, Outcome};
use crate::load::{self, Load};

/// Number of clients that start a run and wait for its end, again and again.
pub(super) const CLIENTS: usize = 16;

const RUNS: Goal = Goal::at_least("Runs with 16 clients", "/s", 1200.0);
const POST_P50: Goal = Goal::at_most("`POST /v1/runs` at that load, p50", "ms", 2.0);
const POST_P99: Goal = Goal::at_most("`POST /v1/runs` at that load, p99", "ms", 10.0);
const TURNAROUND: Goal = Goal::at_most("From the `POST` to the end of the run, p50", "ms", 20.0);

pub(super) const METHOD: &str = "The real program runs with its default settings (except for the rate limit) on the loopback interface. 16 clients with one connection each start a run with `POST /v1/runs`, wait for its end, and start the next. A run writes a file (synced), reads it, and ends with a message. The clients share the processors with the server.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let (server, key, mut client) = bench.first(scratch.path()).await?;
    let agent = load::agent(&mut client, load::two_calls()).await?;
    let disk = bench.disk()?;
    let load = Load::of(&server, &key, &agent, bench.size(20_000, 60), CLIENTS).await?;
    let mut details = load.details();
    if let Some(object) = details.as_object_mut() {
        object.insert("rss_bytes_after".to_owned(), server.rss_bytes()?.into());
    }
    server.stop().await?;
    Ok(Outcome {
        figures: vec![
            RUNS.with_value(load.runs_per_s())
                .of_limit("of the processor time is used", load.share_of_processors()),
            POST_P50.with_value(load.posts.at(50.0)),
            POST_P99.with_value(load.posts.at(99.0)),
            TURNAROUND.with_value(load.turnarounds.at(50.0)),
        ],
        disk,
        curves: vec![
            load.posts.curve("POST /v1/runs"),
            load.turnarounds.curve("POST to the end of the run"),
        ],
        details,
        notes: load.notes(),
    })
}
