//! Starts runs as a client program does: agents with a playbook, and clients that start runs and wait for their end.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::http::{Client, text_after};
use crate::server::{Server, own_cpu_seconds};
use crate::stats::Sorted;

/// Maximum time of one run.
const RUN_MAX: Duration = Duration::from_secs(120);
/// First pause of a client that polls, if the server does not support `wait_s`.
const PAUSE: Duration = Duration::from_millis(4);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Playbook of the load: two tool calls (one writes a file that is synced) and a final message.
pub(crate) fn two_calls() -> Value {
    json!([
        {"tool": "write_file", "with": {"path": "/workspace/out.txt", "content": "{{ run.id }}"}},
        {"tool": "read_file", "with": {"path": "/workspace/out.txt"}, "as": "text"},
        {"finish": "It says {{ text }}."}
    ])
}

/// Creates an agent with a playbook and returns its id.
pub(crate) async fn agent(client: &mut Client, steps: Value) -> Result<String> {
    let config = json!({"version": "v2", "data": {"playbook": {"steps": steps}}});
    let body = json!({"name": "bench", "build": {"name": "bench", "config": config}});
    let made = client.post("/v1/agents", &body).await?;
    string_at(&made, "/agent/id")
}

/// Starts a run and returns its id.
pub(crate) async fn start(client: &mut Client, agent: &str) -> Result<String> {
    let body = json!({"agent_id": agent});
    let started = client.post("/v1/runs", &body).await?;
    string_at(&started, "/run/id")
}

pub(crate) fn string_at(value: &Value, pointer: &str) -> Result<String> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("no {pointer} in {value}"))
}

/// How a client learns of the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// One request, which the server answers when the run ends or waits for a person.
    Held,
    /// Repeated requests.
    Polled,
}

impl Waiting {
    /// Finds out what the server supports: a server that does not know the parameter refuses it.
    pub(crate) async fn of(client: &mut Client, run: &str) -> Result<Self> {
        let request = client.request("GET", &format!("/v1/runs/{run}?wait_s=0"), "");
        let answer = client.send(&request).await?;
        match answer.status {
            200 => Ok(Self::Held),
            400 => Ok(Self::Polled),
            status => anyhow::bail!("GET of a run: {status} {}", answer.body),
        }
    }

    /// Waits until the run has this status. If it stops at another status, that is an error.
    pub(crate) async fn until(self, client: &mut Client, run: &str, wanted: &str) -> Result<()> {
        let query = match self {
            Self::Held => "?wait_s=30",
            Self::Polled => "",
        };
        let request = client.request("GET", &format!("/v1/runs/{run}{query}"), "");
        let (begin, mut pause) = (Instant::now(), PAUSE);
        loop {
            if self == Self::Polled {
                tokio::time::sleep(pause).await;
                pause = (pause * 3 / 2).min(PAUSE_MAX);
            }
            let answer = client.send(&request).await?;
            anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
            match text_after(answer.body, "\"status\":\"")? {
                status if status == wanted => return Ok(()),
                "completed" | "failed" | "interrupted" | "waiting" => {
                    anyhow::bail!("a run should become {wanted}: {}", answer.body)
                }
                _ => anyhow::ensure!(begin.elapsed() < RUN_MAX, "too slow: {}", answer.body),
            }
        }
    }
}

/// Measurements of the clients.
pub(crate) struct Load {
    pub(crate) runs: usize,
    pub(crate) seconds: f64,
    pub(crate) waiting: Waiting,
    /// Time of each `POST`, in ms.
    pub(crate) posts: Sorted,
    /// Time from the `POST` to the end, in ms.
    pub(crate) turnarounds: Sorted,
    pub(crate) server_cpu_s: f64,
    pub(crate) client_cpu_s: f64,
}

impl Load {
    /// Runs `clients` clients that each start a run and wait for its end, `runs` runs in total, after some warm-up
    /// runs that are not counted.
    pub(crate) async fn of(
        server: &Server,
        key: &str,
        agent: &str,
        runs: usize,
        clients: usize,
    ) -> Result<Self> {
        let mut client = Client::connect(server.address, key).await?;
        let run = start(&mut client, agent).await?;
        let waiting = Waiting::of(&mut client, &run).await?;
        waiting.until(&mut client, &run, "completed").await?;
        all(server, key, agent, runs / 10, clients, waiting).await?;

        let (server_before, client_before) = (server.cpu_seconds()?, own_cpu_seconds()?);
        let begin = Instant::now();
        let times = all(server, key, agent, runs, clients, waiting).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let (posts, turnarounds) = times.into_iter().unzip();
        Ok(Self {
            runs,
            seconds,
            waiting,
            posts: Sorted::of(posts),
            turnarounds: Sorted::of(turnarounds),
            server_cpu_s: server.cpu_seconds()? - server_before,
            client_cpu_s: own_cpu_seconds()? - client_before,
        })
    }

    pub(crate) fn runs_per_s(&self) -> f64 {
        self.runs as f64 / self.seconds
    }

    /// Share of the machine's processor time that the server and the clients used.
    pub(crate) fn share_of_processors(&self) -> f64 {
        let there = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        (self.server_cpu_s + self.client_cpu_s) / (self.seconds * there)
    }

    /// Deviations from the described method.
    pub(crate) fn notes(&self) -> Vec<String> {
        match self.waiting {
            Waiting::Held => Vec::new(),
            Waiting::Polled => vec![
                "the server does not know `wait_s`: clients asked for the end again and again"
                    .to_owned(),
            ],
        }
    }

    pub(crate) fn details(&self) -> Value {
        let per_run = |seconds: f64| (seconds * 1e6 / self.runs as f64).round();
        json!({
            "runs": self.runs,
            "seconds": self.seconds,
            "end_learnt_by": format!("{:?}", self.waiting).to_lowercase(),
            "server_cpu_us_per_run": per_run(self.server_cpu_s),
            "client_cpu_us_per_run": per_run(self.client_cpu_s),
            "turnaround_ms_p99": self.turnarounds.at(99.0),
        })
    }
}

/// Runs all clients in one task. Returns the time of the `POST` and of the whole run, in ms, for each run.
async fn all(
    server: &Server,
    key: &str,
    agent: &str,
    runs: usize,
    clients: usize,
    waiting: Waiting,
) -> Result<Vec<(f64, f64)>> {
    let left = Cell::new(runs);
    let local = tokio::task::LocalSet::new();
    let left = std::rc::Rc::new(left);
    let mut tasks = Vec::with_capacity(clients);
    for _ in 0..clients {
        let mut client = Client::connect(server.address, key).await?;
        let body = json!({"agent_id": agent}).to_string();
        let post = client.request("POST", "/v1/runs", &body);
        let left = std::rc::Rc::clone(&left);
        tasks.push(local.spawn_local(async move {
            let mut times = Vec::new();
            while left.get() > 0 {
                left.set(left.get() - 1);
                times.push(one(&mut client, &post, waiting).await?);
            }
            anyhow::Ok(times)
        }));
    }
    local
        .run_until(async move {
            let mut times = Vec::with_capacity(runs);
            for task in tasks {
                times.extend(task.await??);
            }
            Ok(times)
        })
        .await
}

async fn one(client: &mut Client, post: &[u8], waiting: Waiting) -> Result<(f64, f64)> {
    let begin = Instant::now();
    let answer = client.send(post).await?;
    let posted = begin.elapsed().as_secs_f64() * 1000.0;
    anyhow::ensure!(answer.status == 201, "{} {}", answer.status, answer.body);
    let run = text_after(answer.body, "\"id\":\"")?.to_owned();
    waiting.until(client, &run, "completed").await?;
    Ok((posted, begin.elapsed().as_secs_f64() * 1000.0))
}
