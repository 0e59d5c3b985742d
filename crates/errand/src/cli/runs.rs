//! `errand runs`: runs, through the API. Repairing a run works on the server's machine.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{ArgGroup, Args, Subcommand};
use errand_core::run::Status;
use errand_core::time::Timestamp;
use serde_json::{Map, Value, json};

use super::agents::{Paging, id_of, note_more};
use super::out::{Out, Style};
use super::transcript::{Transcript, question};
use super::{CommandContext, RemoteServer, answers, follow, many_runs, repair, sandboxes};
use crate::client::{Client, Reply, RunReply};

/// Maximum number of messages per page in the API.
const MESSAGES_PAGE: u32 = errand_core::limits::MESSAGES_PAGE_MAX;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a run and print its ID
    Start(Start),
    /// List runs, newest first
    List(List),
    /// Show a run and its open request
    Get(RunArgs),
    /// Print a run's messages, oldest first
    Messages(Messages),
    /// Print a run's messages as they arrive, until it ends
    Follow(RunArgs),
    /// Send a message to a run
    Message(Message),
    /// Answer a run's request
    Respond(Respond),
    /// Stop a run, or all runs that match criteria
    Stop(many_runs::Selection),
    /// Retry a failed run from the step that failed, or all runs that match criteria
    Retry(many_runs::Retry),
    /// Start a new run from a run's transcript up to a message, and print its ID
    Fork(Fork),
    /// Repair a damaged or stuck run (on the server's machine)
    Repair(repair::Args),
}

#[derive(Debug, Args)]
pub(super) struct Start {
    /// ID or name of the agent
    agent: String,
    /// File for its sandbox; can be repeated
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// First message
    #[arg(long)]
    message: Option<String>,
    /// Treat the first message as untrusted, for example if it quotes an email: calls with the guard policy need an
    /// approval
    #[arg(long, requires = "message")]
    untrusted: bool,
    /// Sandbox to work in [default: a new one if there are files, otherwise when a tool needs one]
    #[arg(long, value_name = "ID")]
    sandbox: Option<String>,
    /// URL for the run's webhooks
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// Print its messages as they arrive; fails if the run fails
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only runs with this status; can be repeated
    #[arg(long = "status", value_name = "STATUS", value_parser = status)]
    statuses: Vec<Status>,
    /// Only runs of this agent (ID or name)
    #[arg(long)]
    agent: Option<String>,
    /// Only runs with this text in their title or ID
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only runs created at or after this time
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only runs created before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    #[command(flatten)]
    page: Paging,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
pub(super) struct Fork {
    /// ID of the run
    run: String,
    /// Last message to include [default: the run's last]
    #[arg(long, value_name = "MESSAGE_ID")]
    after: Option<String>,
    /// Another build of the run's agent [default: the run's own]
    #[arg(long, value_name = "ID")]
    build: Option<String>,
    /// New message after the included ones
    #[arg(long)]
    message: Option<String>,
    /// Treat the message as untrusted, for example if it quotes an email: calls with the guard policy need an approval
    #[arg(long, requires = "message")]
    untrusted: bool,
    /// Start with an empty sandbox instead of a copy of the run's files
    #[arg(long)]
    no_files: bool,
    /// Print the new run's messages as they arrive; fails if the new run fails
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    remote: RemoteServer,
}

pub(super) fn status(word: &str) -> Result<Status, String> {
    let words = || Status::ALL.map(Status::as_str).join(", ");
    Status::parse(word).ok_or_else(|| format!("it takes one of {}", words()))
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// ID of the run
    run: String,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
pub(super) struct Messages {
    /// ID of the run
    run: String,
    /// Maximum number of messages [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Number of messages to skip
    #[arg(long, default_value_t = 0, value_name = "N")]
    offset: u64,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
pub(super) struct Message {
    /// ID of the run
    run: String,
    /// Text of the message
    text: String,
    /// Treat the message as untrusted, for example if it quotes an email: calls with the guard policy need an approval
    #[arg(long)]
    untrusted: bool,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("response").required(true).args(["approve", "deny", "answer"])))]
pub(super) struct Respond {
    /// ID of the run
    run: String,
    /// ID of the request [default: the open request]
    request: Option<String>,
    /// Approve the request
    #[arg(long)]
    approve: bool,
    /// Deny the request
    #[arg(long)]
    deny: bool,
    /// Answer to a question; can be repeated
    #[arg(long, value_name = "QUESTION=ANSWER")]
    answer: Vec<String>,
    /// Reason, which the agent sees
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    remote: RemoteServer,
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    match command {
        Command::Start(args) => start(args, with).await,
        Command::List(args) => list(args, with).await,
        Command::Get(RunArgs { run, remote }) => {
            let reply = with.client(&remote)?.run(&run).await?;
            if out.json() {
                return Ok(out.json_text(&reply.text)?);
            }
            show(&reply.value, out)
        }
        Command::Messages(args) => messages(args, with).await,
        Command::Follow(RunArgs { run, remote }) => {
            follow::follow_to_end(&with.client(&remote)?, &run, out).await
        }
        Command::Message(Message {
            run,
            text,
            untrusted,
            remote,
        }) => {
            let body = if untrusted {
                json!({"message": text, "untrusted": true})
            } else {
                json!({ "message": text })
            };
            let reply = with.client(&remote)?.post_message(&run, &body).await?;
            if out.json() {
                return Ok(out.json_text(&reply.text)?);
            }
            Ok(out.note("The message was saved. The run reads it before its next step.")?)
        }
        Command::Respond(args) => respond(args, with).await,
        Command::Stop(selection) => many_runs::stop(selection, with).await,
        Command::Retry(args) => many_runs::retry(args, with).await,
        Command::Fork(args) => fork(args, with).await,
        Command::Repair(args) => repair::run(args, with).await,
    }
}

async fn fork(args: Fork, with: &CommandContext) -> Result<()> {
    let given = [
        ("after_message", args.after),
        ("build", args.build),
        ("message", args.message),
    ];
    let mut body: Map<String, Value> = given
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), json!(value?))))
        .collect();
    if args.untrusted {
        body.insert("untrusted".to_owned(), json!(true));
    }
    if args.no_files {
        body.insert("files".to_owned(), json!(false));
    }
    let client = with.client(&args.remote)?;
    let forked = client.fork(&args.run, &Value::Object(body)).await?;
    print_started(&client, &forked, args.follow, &with.out).await
}

async fn start(args: Start, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let client = with.client(&args.remote)?;
    let agent = id_of(&client, &args.agent).await?;
    let sandbox = match args.sandbox {
        None if !args.files.is_empty() => Some(client.create_sandbox().await?.value.sandbox_id),
        given => given,
    };
    if let Some(sandbox) = &sandbox {
        for file in &args.files {
            sandboxes::upload(&client, sandbox, file, "/workspace/", out).await?;
        }
    }
    let mut body = Map::from_iter([("agent_id".to_owned(), json!(agent))]);
    let given = [
        ("sandbox_id", sandbox),
        ("message", args.message),
        ("webhook_url", args.webhook),
    ];
    body.extend(
        given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))),
    );
    if args.untrusted {
        body.insert("untrusted".to_owned(), json!(true));
    }
    let started = client.start_run(&Value::Object(body)).await?;
    print_started(&client, &started, args.follow, out).await
}

/// Prints the ID of a new run, or follows it.
async fn print_started(
    client: &Client,
    started: &Reply<RunReply>,
    follow: bool,
    out: &Out,
) -> Result<()> {
    let run = started.value.run.id.to_string();
    match (follow, out.json()) {
        (true, json) => {
            if !json {
                out.note(&out.paint_note(Style::Dim, &format!("run {run}")))?;
            }
            follow::follow_to_end(client, &run, out).await
        }
        (false, true) => Ok(out.json_text(&started.text)?),
        (false, false) => Ok(out.line(&run)?),
    }
}

async fn list(args: List, with: &CommandContext) -> Result<()> {
    let (out, page) = (&with.out, &args.page);
    let client = with.client(&args.remote)?;
    let mut query = vec![
        ("limit", page.limit.to_string()),
        ("offset", page.offset.to_string()),
    ];
    query.extend(
        args.statuses
            .iter()
            .map(|status| ("status", status.as_str().to_owned())),
    );
    if let Some(agent) = &args.agent {
        query.push(("agent_id", id_of(&client, agent).await?));
    }
    let rest = [
        ("q", args.search),
        ("since", args.since.map(|at| at.to_string())),
        ("until", args.until.map(|at| at.to_string())),
    ];
    query.extend(
        rest.into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let list = client.runs(&query).await?;
    if out.json() {
        return Ok(out.json_text(&list.text)?);
    }
    let shown = list.value.runs.len();
    let rows = list.value.runs.iter().map(|run| {
        let waits = run.waiting_on.as_ref().map(|waiting| waiting.next.clone());
        [
            run.id.to_string(),
            run.status.as_str().to_owned(),
            run.created_at.to_string(),
            run.title.clone().unwrap_or_default(),
            waits.unwrap_or_default(),
        ]
    });
    out.table(&["id", "status", "created", "title", "next"], rows)?;
    note_more(with, shown, page.offset, list.value.total)
}

fn show(reply: &RunReply, out: &Out) -> Result<()> {
    let run = &reply.run;
    let moment = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let mut rows: Vec<[String; 2]> = [
        ("id", run.id.to_string()),
        ("agent", run.agent_id.to_string()),
        ("build", run.build_id.to_string()),
        ("status", run.status.as_str().to_owned()),
        (
            "sandbox",
            run.sandbox_id.clone().unwrap_or_else(|| "-".to_owned()),
        ),
        ("created", run.created_at.to_string()),
        ("started", moment(run.started_at)),
        ("ended", moment(run.completed_at)),
        ("steps", run.usage.steps.to_string()),
    ]
    .map(|(name, value)| [name.to_owned(), value])
    .to_vec();
    if let Some(waiting) = &run.waiting_on {
        rows.push([
            "waiting for".to_owned(),
            format!("{}: {}", waiting.kind, waiting.next),
        ]);
    }
    if let Some(error) = &run.error {
        rows.push([
            "error".to_owned(),
            format!("{} ({})", error.message, error.code),
        ]);
    }
    out.table(&["run", ""], rows)?;
    if let Some(request) = &reply.pending_human_request {
        out.line("")?;
        out.line(&super::out::display(&question(request)))?;
        out.note(&follow::answer_hint(&run.id.to_string(), request))?;
    }
    Ok(())
}

async fn messages(args: Messages, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let client = with.client(&args.remote)?;
    let (mut offset, mut left) = (args.offset, args.limit.unwrap_or(u64::MAX));
    let mut transcript = Transcript::new(out, None);
    while left > 0 {
        let limit = u32::try_from(left).map_or(MESSAGES_PAGE, |left| left.min(MESSAGES_PAGE));
        let page = client.messages(&args.run, limit, offset).await?;
        let shown = page.value.messages.len() as u64;
        offset += shown;
        left = left.saturating_sub(shown);
        if out.json() {
            out.json_text(&page.text)?;
        }
        for message in &page.value.messages {
            transcript.begin(message.timestamp);
            if !out.json() {
                out.line(&transcript.message(message))?;
            }
        }
        if shown == 0 || offset >= page.value.total {
            break;
        }
    }
    Ok(())
}

async fn respond(args: Respond, with: &CommandContext) -> Result<()> {
    let client = with.client(&args.remote)?;
    let Reply { value, .. } = client.run(&args.run).await?;
    let pending = value.pending_human_request;
    let request = match (&args.request, &pending) {
        (Some(request), _) => request.clone(),
        (None, Some(pending)) => pending.id.to_string(),
        (None, None) => {
            let status = value.run.status.as_str();
            anyhow::bail!(
                "run {} has no open request; its status is {status}",
                args.run
            )
        }
    };
    let questions = pending
        .filter(|pending| pending.id.to_string() == request)
        .and_then(|pending| pending.questions);
    let mut body = Map::new();
    if args.approve || args.deny {
        body.insert("approved".to_owned(), json!(args.approve));
    } else {
        body.insert(
            "answers".to_owned(),
            answers::parse(&args.answer, &questions.unwrap_or_default())?,
        );
    }
    if let Some(reason) = args.reason {
        body.insert("reason".to_owned(), json!(reason));
    }
    let answered = answer(&client, &args.run, &request, Value::Object(body)).await?;
    if with.out.json() {
        return Ok(with.out.json_text(&answered)?);
    }
    Ok(with
        .out
        .note("The answer was accepted. The run continues.")?)
}

async fn answer(client: &Client, run: &str, request: &str, body: Value) -> Result<String> {
    let answered = client.respond(run, request, &body).await;
    Ok(answered.context("the answer was not accepted")?.text)
}
