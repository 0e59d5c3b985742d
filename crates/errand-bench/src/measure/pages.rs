//! Time of the web interface's pages.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::process::Command;

use super::Bench;
use crate::http::{Client, text_after};
use crate::line::{Goal, Outcome};
use crate::load::{self, Waiting};
use crate::seed::{Copies, multiply};
use crate::stats::Sorted;

/// The pages and their goals.
const PAGES: [(&str, Goal); 9] = [
    ("/", Goal::at_most("Home with 10,000 runs, p50", "ms", 20.0)),
    (
        "/runs",
        Goal::at_most("The list of runs with 10,000 runs, p50", "ms", 20.0),
    ),
    (
        "/inbox",
        Goal::at_most("The inbox with 10,000 runs, p50", "ms", 20.0),
    ),
    (
        "/assignments",
        Goal::at_most("The list of assignments with 10,000 runs, p50", "ms", 20.0),
    ),
    (
        "/usage",
        Goal::at_most("Usage with 10,000 runs, p50", "ms", 20.0),
    ),
    (
        "/connections",
        Goal::at_most("Connections with 10,000 runs, p50", "ms", 20.0),
    ),
    (
        "/webhooks",
        Goal::at_most("Webhooks with 10,000 runs, p50", "ms", 20.0),
    ),
    (
        "/settings/models",
        Goal::at_most("Models with 10,000 runs, p50", "ms", 20.0),
    ),
    (
        "/settings/team",
        Goal::at_most("The team with 10,000 runs, p50", "ms", 20.0),
    ),
];
/// Page of the assignment that the finished runs belong to.
const AGENT: Goal = Goal::at_most("An assignment's page with 10,000 runs, p50", "ms", 20.0);
const EDITOR: Goal = Goal::at_most("The editor with 10,000 runs, p50", "ms", 20.0);
const RUN: Goal = Goal::at_most("A run's page with 2,000 messages, p50", "ms", 100.0);

/// Distance between two finished runs, in ms: ten thousand of them span the thirty days that Home displays.
const APART_MS: i64 = 250_000;
const EMAIL: &str = "bench@example.com";
const PASSWORD: &str = "a password to measure with";

pub(super) const METHOD: &str = "A finished run is copied in the database file to 10,000 runs over a month, and a playbook creates one with 2,000 messages. A logged-in user requests each page repeatedly on one connection. The time is from the request to the last byte of the response.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let dir = scratch.path();
    let (server, key, mut client) = bench.first(dir).await?;
    let many = load::agent(&mut client, load::two_calls()).await?;
    let run = load::start(&mut client, &many).await?;
    let waiting = Waiting::of(&mut client, &run).await?;
    waiting.until(&mut client, &run, "completed").await?;
    drop(client);
    server.stop().await?;
    let copies = bench.size(10_000, 100);
    let wanted = Copies {
        run: &run,
        copies,
        apart_ms: APART_MS,
    };
    multiply(dir, &[wanted]).await?;

    let server = bench.serve(dir).await?;
    let mut client = Client::connect(server.address, &key).await?;
    let rounds = bench.size(666, 10);
    let steps = json!([
        {"tool": "write_file", "with": {"path": "/workspace/note.txt", "content": "A short note."}},
        {"for_each": format!("{{{{ range({rounds}) }}}}"), "steps": [
            {"say": "Round {{ item }}: **looking** at the note."},
            {"tool": "read_file", "with": {"path": "/workspace/note.txt"}},
        ]},
        {"finish": "Done."}
    ]);
    let agent = load::agent(&mut client, steps).await?;
    let long = load::start(&mut client, &agent).await?;
    let waiting = Waiting::of(&mut client, &long).await?;
    waiting.until(&mut client, &long, "completed").await?;

    set_password(bench, dir).await?;
    let cookie = log_in(&mut client, &server.address.to_string()).await?;
    let disk = bench.disk()?;
    let times = bench.size(200, 3);
    let mut figures = Vec::new();
    let mut slowest = serde_json::Map::new();
    let run_page = format!("/runs/{long}");
    let (agent_page, editor) = (
        format!("/assignments/{many}"),
        format!("/assignments/{many}/edit"),
    );
    let all = PAGES.into_iter().chain([
        (agent_page.as_str(), AGENT),
        (editor.as_str(), EDITOR),
        (run_page.as_str(), RUN),
    ]);
    for (path, goal) in all {
        let taken = page_ms(&mut client, path, &cookie, times).await?;
        slowest.insert(path.to_owned(), json!(taken.at(99.0)));
        figures.push(goal.with_value(taken.at(50.0)));
    }
    server.stop().await?;
    Ok(Outcome {
        figures,
        disk,
        curves: Vec::new(),
        details: json!({ "runs": copies, "p99_ms": slowest }),
        notes: Vec::new(),
    })
}

/// Sets the password with the command line, as an operator does, while the server is running.
async fn set_password(bench: &Bench, dir: &Path) -> Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let mut child = Command::new(&bench.binary)
        .args(["users", "set-password", EMAIL, "--data-dir"])
        .arg(dir)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(format!("{PASSWORD}\n").as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    anyhow::ensure!(
        output.status.success(),
        "users set-password failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Logs in and returns the session cookie.
async fn log_in(client: &mut Client, host: &str) -> Result<String> {
    let email = EMAIL.replace('@', "%40");
    let body = format!("email={email}&password={}", PASSWORD.replace(' ', "+"));
    let request = format!(
        "POST /log-in HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let status = client.send(request.as_bytes()).await?.status;
    anyhow::ensure!(status == 303, "the login failed with status {status}");
    let cookie = client.header("set-cookie").context("no cookie")?;
    Ok(cookie.split(';').next().unwrap_or_default().to_owned())
}

async fn page_ms(client: &mut Client, path: &str, cookie: &str, times: usize) -> Result<Sorted> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: errand\r\naccept: text/html\r\ncookie: {cookie}\r\n\r\n"
    );
    let mut taken = Vec::with_capacity(times);
    for _ in 0..times {
        let begin = Instant::now();
        let answer = client.send(request.as_bytes()).await?;
        anyhow::ensure!(answer.status == 200, "{path}: {}", answer.status);
        text_after(answer.body, "<html lang=\"")?;
        taken.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(Sorted::of(taken))
}
