//! `errand demo`: a complete run with one command, on one screen.
//!
//! Guarantees: the server, the webhook receiver and their directory belong to this command and are gone when it ends,
//! however it ends (with `--keep`, it waits for Ctrl-C first). All actions go through the API.

mod by_hand;
mod more;
mod receiver;
mod server;

use std::io;

use anyhow::{Context as _, Result, anyhow, bail};
use errand_client::{Answer, Client, HumanRequest, NewRun, RequestKind, Run};

use super::follow::{Follow, FollowEvent, check_completed};
use super::out::{Out, Style, display};
use super::transcript::ms_since;
use super::{CommandContext, assignment, terminal};
use receiver::Receiver;
use server::Server;

/// The demo's assignment and input file.
const ASSIGNMENT: &str = include_str!("../../../../examples/invoices.yaml");
const INVOICES: &str = include_str!("../../../../examples/invoices.csv");
/// Paths of the input file and of the result.
const INVOICES_PATH: &str = "/workspace/invoices.csv";
const REPORT_PATH: &str = "/workspace/report.md";
/// First message of the run.
const MESSAGE: &str = "Please pay these invoices.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Approve automatically
    #[arg(long)]
    yes: bool,
    /// Keep the server running until Ctrl-C
    #[arg(long)]
    keep: bool,
}

pub(super) async fn run(args: &Args, with: &CommandContext) -> Result<()> {
    if !args.yes && !terminal::is_there() {
        bail!(
            "the demo asks for an approval, but there is no terminal; use `errand demo --yes` to approve automatically"
        );
    }
    let out = &with.out;
    let place = tempfile::Builder::new().prefix("errand-demo-").tempdir();
    let place = place
        .context("no temporary directory can be created; set TMPDIR to a writable directory")?;
    let mut server = Server::start(place.path()).await?;
    let shown = {
        let shown = async {
            let mut receiver = Receiver::start(&server.webhook_secret).await?;
            show(&server.client, &mut receiver, args, out).await?;
            if args.keep {
                more::fill(&server.client).await?;
                let link = server.claim_link.as_deref();
                keep(&server.client, &server.key, link, out).await
            } else {
                Ok(())
            }
        };
        tokio::select! {
            shown = shown => shown,
            why = server.app.ended() => Err(anyhow!(why)),
            _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
        }
    };
    server.stop().await;
    place
        .close()
        .context("the temporary directory cannot be removed")?;
    shown
}

async fn show(client: &Client, receiver: &mut Receiver, args: &Args, out: &Out) -> Result<()> {
    let say = |text: &str| say(out, text);
    say(&format!(
        "{} on {}, in a temporary directory, without a model key or another server.\n",
        out.paint(Style::Bold, "A complete run"),
        client.base()
    ))?;

    let agent = client
        .create_agent(&assignment::parse(ASSIGNMENT)?)
        .await?
        .into_value()
        .agent;
    say(&format!(
        "  agent    {}  {}, from examples/invoices.yaml",
        agent.id, agent.name
    ))?;
    let sandbox = client.create_sandbox().await?.into_value().sandbox_id;
    let file = client.upload(&sandbox, INVOICES_PATH, INVOICES).await?;
    say(&format!(
        "  sandbox  {sandbox}  with {} ({} bytes)",
        file.path, file.size_bytes
    ))?;
    let new = NewRun::of(agent.id)
        .sandbox_id(sandbox.clone())
        .message(MESSAGE)
        .webhook_url(receiver.url());
    let run = client.start_run(&new).await?.into_value();
    say(&format!(
        "  run      {}  with webhooks to {}\n",
        run.id,
        receiver.url()
    ))?;

    follow(client, &run, args, out).await?;
    let run = client.run(&run.id).await?.into_value().run;
    check_completed(&run)?;
    let webhook = receiver.ended(&run.id).await?;
    say(&format!(
        "\n{} webhook {} received, signature verified ({})",
        out.paint(Style::Green, "✓"),
        webhook.event,
        webhook.id
    ))?;

    let report = client
        .download(&sandbox, REPORT_PATH)
        .await
        .context("the result file cannot be downloaded")?;
    let report = report.into_bytes().await?;
    let report = String::from_utf8_lossy(&report);
    say(&format!(
        "{} result file {REPORT_PATH}\n",
        out.paint(Style::Green, "✓")
    ))?;
    for line in display(&report).trim_end().lines() {
        say(format!("  {} {line}", out.paint(Style::Dim, "│")).trim_end())?;
    }
    let took_ms = run
        .completed_at
        .map_or(0, |end| ms_since(end, run.created_at));
    let line = format!("run {} completed in {took_ms} ms", run.id);
    say(&format!("\n{}\n", out.paint(Style::Bold, &line)))?;
    say(&out.paint(Style::Dim, "The same steps with curl and jq:"))?;
    say(&format!(
        "\n{}",
        by_hand::commands(client.base(), &receiver.url())
    ))?;
    Ok(())
}

async fn follow(client: &Client, run: &Run, args: &Args, out: &Out) -> Result<()> {
    let mut follow = Follow::new(client, &run.id, run.created_at, out);
    while let Some(moment) = follow.next().await? {
        let FollowEvent::Asked(request) = moment else {
            continue;
        };
        let approved = args.yes || asked_on_terminal(&request, out).await?;
        let answer = Answer::approved(approved);
        client.respond(&run.id, &request.id, &answer).await?;
    }
    Ok(())
}

async fn asked_on_terminal(request: &HumanRequest, out: &Out) -> Result<bool> {
    if request.kind != RequestKind::Approval {
        bail!("the run asks a question, but the demo can only answer approvals");
    }
    loop {
        out.prompt(&out.paint_note(Style::Yellow, "             Approve? [y/n] "))?;
        let answer = terminal::read_line()
            .await?
            .context("the approval was not answered")?;
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "n" | "no" => return Ok(false),
            _ => {}
        }
    }
}

async fn keep(client: &Client, key: &str, link: Option<&str>, out: &Out) -> Result<()> {
    say(out, "\nThe server runs until you press Ctrl-C:\n")?;
    say(out, &format!("  export ERRAND_URL={}", client.base()))?;
    say(out, &format!("  export ERRAND_API_KEY={key}"))?;
    if let Some(link) = link {
        say(
            out,
            "\nWeb pages with more example runs; set a password first:\n",
        )?;
        say(out, &format!("  {link}"))?;
    }
    tokio::signal::ctrl_c()
        .await
        .context("cannot receive signals")
}

/// Prints text for people. With `--json`, it goes to standard error to keep standard output for JSON.
fn say(out: &Out, text: &str) -> io::Result<()> {
    if out.json() {
        out.note(text)
    } else {
        out.line(text)
    }
}
