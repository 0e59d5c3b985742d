//! Compares what a run costs in two versions of the program: processor time, bytes written and write calls.
//!
//! Rates vary by half on a shared machine, and these costs by about 15%. The two versions therefore take turns on fresh
//! data directories, each pair gives one ratio, and the median of the ratios decides.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::http::Client;
use crate::load::{self, Load};
use crate::measure::Bench;
use crate::server::{Server, Written};
use crate::stats::{Sorted, round};

/// Runs of one side of one pair. At 1 ms of processor time for each run, 2,000 runs are 200 clock ticks: a tick more or
/// less changes a ratio by half a percent.
const RUNS: usize = 2_000;
const CLIENTS: usize = 16;
/// Runs that one client starts one after another. A lone run shares its commits with no other run, so that it writes
/// several times as many bytes.
const LONE_RUNS: usize = 300;

/// The two programs and what the comparison allows.
pub(crate) struct Comparison {
    /// The earlier version of `errand`.
    pub(crate) against: PathBuf,
    pub(crate) pairs: usize,
    /// By how many percent the median of a cost may grow.
    pub(crate) growth_max_percent: f64,
}

/// Cost of one run for the server.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    cpu_us: f64,
    bytes_written: f64,
    write_calls: f64,
}

/// A run at 16 clients, and one that is alone.
#[derive(Clone, Copy, Debug, Serialize)]
struct Costs {
    loaded: Cost,
    alone: Cost,
}

/// One printed result: the median of the ratios of all pairs.
#[derive(Debug, Serialize)]
struct Verdict {
    cost: &'static str,
    ratio_p50: f64,
    ratios: Vec<f64>,
    within: bool,
}

type Reading = fn(&Costs) -> f64;

const COMPARED: [(&str, Reading); 6] = [
    ("processor time per run", |costs| costs.loaded.cpu_us),
    ("bytes written per run", |costs| costs.loaded.bytes_written),
    ("write calls per run", |costs| costs.loaded.write_calls),
    ("processor time per lone run", |costs| costs.alone.cpu_us),
    ("bytes written per lone run", |costs| {
        costs.alone.bytes_written
    }),
    ("write calls per lone run", |costs| costs.alone.write_calls),
];

impl Comparison {
    /// Measures the pairs and prints one JSON line for each pair and each cost.
    ///
    /// # Errors
    /// A cost whose median grew by more than `growth_max_percent`, or a server that cannot be measured.
    pub(crate) async fn run(&self, bench: &Bench) -> Result<()> {
        anyhow::ensure!(
            self.against.exists(),
            "{} does not exist",
            self.against.display()
        );
        let mut pairs = Vec::with_capacity(self.pairs);
        for number in 0..self.pairs {
            // Each version goes first in half of the pairs: the disk and the caches are warmer for the second.
            let (now, before) = if number % 2 == 0 {
                let before = costs(bench, &self.against).await?;
                (costs(bench, &bench.binary).await?, before)
            } else {
                let now = costs(bench, &bench.binary).await?;
                (now, costs(bench, &self.against).await?)
            };
            crate::print(&serde_json::to_string(
                &serde_json::json!({"pair": number + 1, "before": before, "now": now}),
            )?);
            pairs.push((before, now));
        }
        let verdicts: Vec<Verdict> = COMPARED
            .iter()
            .map(|(cost, reading)| self.verdict(cost, *reading, &pairs))
            .collect();
        for verdict in &verdicts {
            crate::print(&serde_json::to_string(verdict)?);
        }
        let grown: Vec<&str> = verdicts
            .iter()
            .filter(|verdict| !verdict.within)
            .map(|verdict| verdict.cost)
            .collect();
        anyhow::ensure!(
            grown.is_empty(),
            "grew by more than {}%: {}",
            self.growth_max_percent,
            grown.join(", ")
        );
        Ok(())
    }

    fn verdict(&self, cost: &'static str, reading: Reading, pairs: &[(Costs, Costs)]) -> Verdict {
        let ratios: Vec<f64> = pairs
            .iter()
            .map(|(before, now)| round(reading(now) / reading(before)))
            .collect();
        let ratio_p50 = Sorted::of(ratios.clone()).at(50.0);
        Verdict {
            cost,
            ratio_p50,
            ratios,
            within: ratio_p50 <= 1.0 + self.growth_max_percent / 100.0,
        }
    }
}

async fn costs(bench: &Bench, binary: &Path) -> Result<Costs> {
    let scratch = bench.scratch()?;
    let server = Server::start(binary, scratch.path()).await?;
    let key = server.create_key(binary, scratch.path()).await?;
    let mut client = Client::connect(server.address, &key).await?;
    let agent = load::agent(&mut client, load::two_calls()).await?;
    let loaded = cost(&server, &key, &agent, bench.size(RUNS, 60), CLIENTS).await?;
    let alone = cost(&server, &key, &agent, bench.size(LONE_RUNS, 10), 1).await?;
    server.stop().await?;
    Ok(Costs { loaded, alone })
}

async fn cost(
    server: &Server,
    key: &str,
    agent: &str,
    runs: usize,
    clients: usize,
) -> Result<Cost> {
    // The first runs fill caches and are not counted.
    Load::of(server, key, agent, runs / 10, clients).await?;
    let before = server.written()?;
    let load = Load::of(server, key, agent, runs, clients).await?;
    let after = server.written()?;
    // `Load::of` starts a tenth more runs, and one, than it measures.
    let started = (runs + runs / 10 + 1) as f64;
    let Written { bytes, calls } = after
        .since(&before)
        .context("the server wrote less than before")?;
    Ok(Cost {
        cpu_us: round(load.server_cpu_s * 1e6 / load.runs as f64),
        bytes_written: round(bytes as f64 / started),
        write_calls: round(calls as f64 / started),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs_of(cpu_us: f64) -> Costs {
        let cost = Cost {
            cpu_us,
            bytes_written: 100.0,
            write_calls: 10.0,
        };
        Costs {
            loaded: cost,
            alone: cost,
        }
    }

    #[test]
    fn the_median_of_the_ratios_decides() {
        let comparison = Comparison {
            against: PathBuf::new(),
            pairs: 3,
            growth_max_percent: 5.0,
        };
        let pairs = |now: [f64; 3]| now.map(|now| (costs_of(100.0), costs_of(now)));
        let verdict = |now| comparison.verdict("x", |costs| costs.loaded.cpu_us, &pairs(now));
        assert!(verdict([90.0, 105.0, 300.0]).within);
        assert!(!verdict([90.0, 106.0, 107.0]).within);
    }
}
