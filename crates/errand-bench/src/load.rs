//! Clients that start runs and wait for their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use reqwest::Client;
use serde_json::{Value, json};

/// Runs of two tool calls (one writes a file that is synced) and a final message, `clients` at a time.
pub(crate) async fn throughput(url: &str, key: &str, runs: usize, clients: usize) -> Result<Value> {
    let http = Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(clients)
        .build()?;
    let agent = agent(&http, url, key).await?;
    let left = Arc::new(AtomicUsize::new(runs));
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let (http, url, key, agent, left) = (
            http.clone(),
            url.to_owned(),
            key.to_owned(),
            agent.clone(),
            Arc::clone(&left),
        );
        tasks.spawn(async move {
            let mut times = Vec::new();
            while left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
            {
                times.push(one(&http, &url, &key, &agent).await?);
            }
            anyhow::Ok(times)
        });
    }
    let (mut posts, mut turnarounds) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
    while let Some(times) = tasks.join_next().await {
        for (post, turnaround) in times?? {
            posts.push(post);
            turnarounds.push(turnaround);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    posts.sort_by(f64::total_cmp);
    turnarounds.sort_by(f64::total_cmp);
    Ok(json!({
        "runs": runs, "clients": clients, "seconds": seconds, "goal_runs_per_s": 300,
        "runs_per_s": (runs as f64 / seconds).round(),
        "post_ms_p50": at(&posts, 0.5), "post_ms_p99": at(&posts, 0.99),
        "turnaround_ms_p50": at(&turnarounds, 0.5), "turnaround_ms_p99": at(&turnarounds, 0.99),
    }))
}

fn at(sorted: &[f64], share: f64) -> Option<f64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a short list"
    )]
    let index = (sorted.len().saturating_sub(1) as f64 * share) as usize;
    sorted.get(index).map(|ms| (ms * 100.0).round() / 100.0)
}

async fn agent(http: &Client, url: &str, key: &str) -> Result<String> {
    let steps = json!([
        {"tool": "write_file", "with": {"path": "/workspace/out.txt", "content": "{{ run.id }}"}},
        {"tool": "read_file", "with": {"path": "/workspace/out.txt"}, "as": "text"},
        {"finish": "It says {{ text }}."}
    ]);
    let config = json!({"version": "v2", "data": {"playbook": {"steps": steps}}});
    let body = json!({"name": "bench", "build": {"name": "bench", "config": config}});
    let answer: Value = http
        .post(format!("{url}/v1/agents"))
        .bearer_auth(key)
        .json(&body)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    answer
        .pointer("/agent/id")
        .and_then(Value::as_str)
        .map(str::to_owned)
        .context("an agent's id")
}

/// One run from its `POST` to its end: milliseconds of the `POST`, and of the whole.
async fn one(http: &Client, url: &str, key: &str, agent: &str) -> Result<(f64, f64)> {
    let begin = Instant::now();
    let started: Value = http
        .post(format!("{url}/v1/runs"))
        .bearer_auth(key)
        .json(&json!({"agent_id": agent}))
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let post = begin.elapsed().as_secs_f64() * 1000.0;
    let id = started
        .pointer("/run/id")
        .and_then(Value::as_str)
        .context("a run's id")?;
    let mut pause = Duration::from_millis(4);
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(50));
        let got: Value = http
            .get(format!("{url}/v1/runs/{id}"))
            .bearer_auth(key)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        match got.pointer("/run/status").and_then(Value::as_str) {
            Some("completed") => return Ok((post, begin.elapsed().as_secs_f64() * 1000.0)),
            Some("failed" | "interrupted" | "waiting") => {
                anyhow::bail!("a run did not complete: {got}")
            }
            _ => anyhow::ensure!(
                begin.elapsed() < Duration::from_secs(60),
                "a run took over a minute: {got}"
            ),
        }
    }
}
