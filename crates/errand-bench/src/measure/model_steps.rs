//! Processor time that the program itself needs for a step of a network model.

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Bench;
use crate::http::Client;
use crate::line::{Goal, Outcome};
use crate::load::{self, Waiting, string_at};
use crate::provider::Provider;
use crate::server::Server;

const AT_50: Goal = Goal::at_most(
    "Processor time of a model step at 50 messages of transcript",
    "ms",
    2.0,
);
const GROWTH: Goal = Goal::at_most(
    "A model step at 800 messages, relative to one at 200",
    "×",
    4.0,
);
const AT_200: Goal = Goal::informational("Processor time of a model step at 200 messages", "ms");
const AT_800: Goal = Goal::informational("Processor time of a model step at 800 messages", "ms");

/// Messages in the transcript at the middle of each window, and requests on either side of it.
const WINDOWS: [(u64, u64); 3] = [(50, 12), (200, 20), (800, 20)];

pub(super) const METHOD: &str = "The provider of a run of `openai/gpt-4.1` is a server in the benchmark that answers immediately: each answer calls `read_file` on a small file, and the last ends the run. A step is one model call with the tool call that follows it: two messages, two commits. The provider reads the server's processor time at the first and the last request of a window around 50, 200 and 800 messages, while the server waits for the answer. The sums over all runs, one after the other, are divided by the steps in the windows.";

/// The request at which the transcript has this many messages: one from the user, and two per answer.
fn request_at(messages: u64) -> u64 {
    messages / 2 + 1
}

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let provider = Provider::start().await?;
    let base = format!("http://{}/v1", provider.address);
    let variables = [
        ("OPENAI_BASE_URL", base.as_str()),
        ("OPENAI_API_KEY", "bench"),
    ];
    let server = Server::start_with(&bench.binary, scratch.path(), &variables).await?;
    let key = server.create_key(&bench.binary, scratch.path()).await?;
    let mut client = Client::connect(server.address, &key).await?;
    let agent = agent(&mut client).await?;
    let windows: Vec<(u64, u64)> = WINDOWS
        .iter()
        .take(bench.size(WINDOWS.len(), 1))
        .map(|(messages, side)| {
            let middle = request_at(*messages);
            (middle - side, middle + side)
        })
        .collect();
    let wanted: Vec<u64> = windows.iter().flat_map(|(from, to)| [*from, *to]).collect();
    let last = wanted.iter().max().context("no window")? + 2;
    let disk = bench.disk()?;
    let runs = bench.size(40, 1);
    let mut spent = vec![0.0; windows.len()];
    // The first run is a warm-up.
    for round in 0..=runs {
        provider.expect(server.pid(), last, &wanted);
        let run = load::start(&mut client, &agent).await?;
        let waiting = Waiting::of(&mut client, &run).await?;
        waiting.until(&mut client, &run, "completed").await?;
        for ((from, to), spent) in windows.iter().zip(&mut spent) {
            if round > 0 {
                *spent += provider.cpu_at(*to)? - provider.cpu_at(*from)?;
            }
        }
    }
    server.stop().await?;
    let ms = |window: usize| {
        let (from, to) = windows.get(window).copied().unwrap_or((0, 1));
        let spent = spent.get(window).copied().unwrap_or_default();
        spent * 1000.0 / (to - from) as f64 / runs as f64
    };
    // A quick measure has only the first window; its figures are meaningless.
    let figures = vec![
        AT_50.with_value(ms(0)),
        GROWTH.with_value(ms(2) / ms(1).max(0.001)),
        AT_200.with_value(ms(1)),
        AT_800.with_value(ms(2)),
    ];
    Ok(Outcome {
        figures,
        disk,
        curves: Vec::new(),
        details: json!({"runs": runs, "windows_of_requests": windows, "server_cpu_s": spent}),
        notes: Vec::new(),
    })
}

/// Creates an agent with the model and the built-in tools, and returns its id.
async fn agent(client: &mut Client) -> Result<String> {
    let data = json!({
        "models": {"agent": {"model": "openai/gpt-4.1"}},
        // Above the default limit of a build.
        "limits": {"steps": 100_000},
        "input": "You read the note again and again, and say when you are done.",
    });
    let config = json!({"version": "v2", "data": data});
    let body = json!({"name": "bench", "build": {"name": "bench", "config": config}});
    let made = client.post("/v1/agents", &body).await?;
    string_at(&made, "/agent/id")
}
