//! Cost of a step, and of a page, when a transcript is long.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use errand_core::time::Timestamp;
use serde_json::{Value, json};

use super::Bench;
use crate::http::Client;
use crate::line::{Figure, Goal, Outcome};
use crate::load::{self, string_at};
use crate::server::Server;
use crate::stats::Sorted;

const TIME: Goal = Goal::at_most(
    "Duration of a step at 10,000 messages, relative to one at the beginning",
    "×",
    1.5,
);
const CPU: Goal = Goal::at_most(
    "Processor time of a step at 10,000 messages, relative to one at the beginning",
    "×",
    1.5,
);
const PAGE: Goal = Goal::at_most(
    "A page of 50 of 10,000 messages at any offset, p50",
    "ms",
    5.0,
);
const STEP: Goal = Goal::informational("A step of such a run at the beginning", "ms");

/// The first messages do not count, because the run is claimed and its file written meanwhile.
const FIRST: u64 = 10;
/// Interval at which the progress of the run is read.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(25);
/// Maximum time without a new message.
const SILENCE_MAX: Duration = Duration::from_secs(120);

pub(super) const METHOD: &str = "A playbook with a `for_each` writes a message and reads a file, with three messages and two moves per round, until there are 10,000 messages. Three such runs execute one after the other, and the median ratio counts. The duration of a step comes from the messages' `created_at`, in a window of a twentieth of the transcript after its tenth message and at its end. Processor time is the server's, sampled during the run, in a window of a tenth. Pages of 50 are requested at offsets 0, 5,000 and 9,950.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let (server, key, mut client) = bench.first(scratch.path()).await?;
    // Three messages per round, and four around them.
    let rounds = bench.size(3_332, 60);
    let steps = json!([
        {"tool": "write_file", "with": {"path": "/workspace/note.txt", "content": "A short note."}},
        {"for_each": format!("{{{{ range({rounds}) }}}}"), "steps": [
            {"say": "Round {{ item }}: looking at the note."},
            {"tool": "read_file", "with": {"path": "/workspace/note.txt"}},
        ]},
        {"finish": "Done."}
    ]);
    let agent = load::agent(&mut client, steps).await?;
    let disk = bench.disk()?;
    let mut taken = Vec::new();
    for _ in 0..bench.size(3, 1) {
        taken.push(RunCost::of(&server, &key, &agent).await?);
    }
    let last = taken.last().context("no run")?;
    let (pages, page) = pages(&mut client, &last.run, last.messages, bench.size(100, 3)).await?;
    server.stop().await?;
    let middle =
        |figure: fn(&RunCost) -> f64| Sorted::of(taken.iter().map(figure).collect()).at(50.0);
    Ok(Outcome {
        figures: vec![
            TIME.with_value(middle(|taken| taken.late_ms / taken.early_ms)),
            CPU.with_value(middle(|taken| {
                taken.late_cpu_us / taken.early_cpu_us.max(1.0)
            })),
            page,
            STEP.with_value(middle(|taken| taken.early_ms)),
        ],
        disk,
        curves: Vec::new(),
        details: json!({
            "messages": last.messages,
            "message_ms": taken.iter().map(|taken| [taken.early_ms, taken.late_ms]).collect::<Vec<_>>(),
            "message_cpu_us": taken.iter().map(|taken| [taken.early_cpu_us, taken.late_cpu_us]).collect::<Vec<_>>(),
            "page_ms_p50": pages,
        }),
        notes: Vec::new(),
    })
}

/// Result of one run: means per message.
struct RunCost {
    run: String,
    messages: u64,
    early_ms: f64,
    late_ms: f64,
    early_cpu_us: f64,
    late_cpu_us: f64,
}

impl RunCost {
    async fn of(server: &Server, key: &str, agent: &str) -> Result<Self> {
        let mut client = Client::connect(server.address, key).await?;
        let run = load::start(&mut client, agent).await?;
        let samples = samples(server, &mut client, &run).await?;
        let messages = samples.last().map_or(0, |sample| sample.0);
        let window = messages / 20;
        let early = [FIRST, FIRST + window];
        // The last two messages end the run.
        let late = [messages - 2 - window, messages - 2];
        let wide = messages / 10;
        Ok(Self {
            early_ms: ms_per_message(&mut client, &run, early).await?,
            late_ms: ms_per_message(&mut client, &run, late).await?,
            early_cpu_us: cpu_us_per_message(&samples, [FIRST, FIRST + wide]),
            late_cpu_us: cpu_us_per_message(&samples, [messages - 2 - wide, messages - 2]),
            run,
            messages,
        })
    }
}

/// Samples the number of messages and the processor seconds that the server has used, until the run has ended.
async fn samples(server: &Server, client: &mut Client, run: &str) -> Result<Vec<(u64, f64)>> {
    let mut samples: Vec<(u64, f64)> = Vec::new();
    let mut changed = Instant::now();
    loop {
        let got = client.get(&format!("/v1/runs/{run}")).await?;
        let status = string_at(&got, "/run/status")?;
        let page = client
            .get(&format!("/v1/runs/{run}/messages?limit=1"))
            .await?;
        let total = page
            .get("total")
            .and_then(Value::as_u64)
            .context("no total")?;
        if samples.last().is_none_or(|last| last.0 != total) {
            changed = Instant::now();
        }
        samples.push((total, server.cpu_seconds()?));
        match status.as_str() {
            "completed" => return Ok(samples),
            "failed" | "interrupted" | "waiting" => {
                anyhow::bail!("the long run did not complete: {got}")
            }
            _ => anyhow::ensure!(
                changed.elapsed() < SILENCE_MAX,
                "the long run makes no progress: {got}"
            ),
        }
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
}

async fn ms_per_message(client: &mut Client, run: &str, [from, to]: [u64; 2]) -> Result<f64> {
    let mut at = [0.0; 2];
    for (at, offset) in at.iter_mut().zip([from, to]) {
        let page = client
            .get(&format!("/v1/runs/{run}/messages?limit=1&offset={offset}"))
            .await?;
        let time: Timestamp = string_at(&page, "/messages/0/timestamp")?.parse()?;
        *at = time.as_millis() as f64;
    }
    let [begin, end] = at;
    Ok((end - begin).max(1.0) / (to - from).max(1) as f64)
}

fn cpu_us_per_message(samples: &[(u64, f64)], [from, to]: [u64; 2]) -> f64 {
    (cpu_at(samples, to) - cpu_at(samples, from)) * 1e6 / (to - from).max(1) as f64
}

/// Processor seconds at this number of messages, interpolated between the two samples around it.
fn cpu_at(samples: &[(u64, f64)], messages: u64) -> f64 {
    let after = samples.partition_point(|sample| sample.0 < messages);
    let end = samples
        .get(after)
        .or(samples.last())
        .copied()
        .unwrap_or_default();
    let begin = after
        .checked_sub(1)
        .and_then(|before| samples.get(before))
        .copied()
        .unwrap_or(end);
    let wide = end.0.saturating_sub(begin.0).max(1) as f64;
    begin.1 + (end.1 - begin.1) * messages.saturating_sub(begin.0) as f64 / wide
}

/// Median time of a page at each offset, in ms, and the slowest of them as a figure.
async fn pages(
    client: &mut Client,
    run: &str,
    messages: u64,
    times: usize,
) -> Result<(Vec<f64>, Figure)> {
    let mut p50 = Vec::new();
    for offset in [0, messages / 2, messages.saturating_sub(50)] {
        let request = client.request(
            "GET",
            &format!("/v1/runs/{run}/messages?limit=50&offset={offset}"),
            "",
        );
        let mut taken = Vec::with_capacity(times);
        for _ in 0..times {
            let begin = Instant::now();
            let answer = client.send(&request).await?;
            anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
            taken.push(begin.elapsed().as_secs_f64() * 1000.0);
        }
        p50.push(Sorted::of(taken).at(50.0));
    }
    let slowest = p50.iter().copied().fold(0.0, f64::max);
    Ok((p50, PAGE.with_value(slowest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_interpolated_between_samples() {
        let samples = [(0, 1.0), (100, 2.0), (100, 2.5), (300, 4.5)];
        assert_eq!(cpu_at(&samples, 50), 1.5);
        assert_eq!(cpu_at(&samples, 200), 3.5);
        assert_eq!(cpu_at(&samples, 300), 4.5);
        assert_eq!(cpu_us_per_message(&samples, [0, 50]), 10_000.0);
    }
}
