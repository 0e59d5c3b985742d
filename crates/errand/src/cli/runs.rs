//! `errand runs`: runs, through the API. Repairing a run works on the server's machine.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{ArgGroup, Args, Subcommand};
use errand_client::{
    Answer, BuildId, Client, ForkRun, HumanRequestId, MessageId, NewMessage, NewRun, PageRequest,
    Reply, Run, RunDetails, RunFilter, RunId, RunStatus, SandboxId,
};
use errand_core::run::Status;
use errand_core::time::Timestamp;

use super::agents::{Paging, id_of, note_more};
use super::out::{Out, Style};
use super::transcript::{Transcript, question};
use super::{CommandContext, RemoteServer, answers, follow, many_runs, repair, sandboxes};

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
    sandbox: Option<SandboxId>,
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
    run: RunId,
    /// Last message to include [default: the run's last]
    #[arg(long, value_name = "MESSAGE_ID")]
    after: Option<MessageId>,
    /// Another build of the run's agent [default: the run's own]
    #[arg(long, value_name = "ID")]
    build: Option<BuildId>,
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

/// The statuses as the API's client has them.
pub(super) fn words(statuses: &[Status]) -> Vec<RunStatus> {
    let words = statuses.iter().map(|status| status.as_str());
    words.map(RunStatus::from).collect()
}

/// The time as the API's client has it.
pub(super) fn time(at: Timestamp) -> errand_client::Timestamp {
    errand_client::Timestamp::from_millis(at.as_millis())
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// ID of the run
    run: RunId,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
pub(super) struct Messages {
    /// ID of the run
    run: RunId,
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
    run: RunId,
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
    run: RunId,
    /// ID of the request [default: the open request]
    request: Option<HumanRequestId>,
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
            let message = NewMessage::of(text).untrusted(untrusted);
            let reply = with.client(&remote)?.post_message(&run, &message).await?;
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
    let mut fork = ForkRun::new().untrusted(args.untrusted);
    fork.after_message = args.after;
    fork.build = args.build;
    fork.message = args.message;
    fork.files = args.no_files.then_some(false);
    let client = with.client(&args.remote)?;
    let forked = client.fork_run(&args.run, &fork).await?;
    print_started(&client, &forked, args.follow, &with.out).await
}

async fn start(args: Start, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let client = with.client(&args.remote)?;
    let agent = id_of(&client, &args.agent).await?;
    let sandbox = match args.sandbox {
        None if !args.files.is_empty() => {
            Some(client.create_sandbox().await?.into_value().sandbox_id)
        }
        given => given,
    };
    if let Some(sandbox) = &sandbox {
        for file in &args.files {
            sandboxes::upload(&client, sandbox, file, "/workspace/", out).await?;
        }
    }
    let mut new = NewRun::of(agent).untrusted(args.untrusted);
    new.sandbox_id = sandbox;
    new.message = args.message;
    new.webhook_url = args.webhook;
    let started = client.start_run(&new).await?;
    print_started(&client, &started, args.follow, out).await
}

/// Prints the ID of a new run, or follows it.
async fn print_started(
    client: &Client,
    started: &Reply<Run>,
    follow: bool,
    out: &Out,
) -> Result<()> {
    let run = &started.id;
    match (follow, out.json()) {
        (true, json) => {
            if !json {
                out.note(&out.paint_note(Style::Dim, &format!("run {run}")))?;
            }
            follow::follow_to_end(client, run, out).await
        }
        (false, true) => Ok(out.json_text(&started.text)?),
        (false, false) => Ok(out.line(run.as_str())?),
    }
}

async fn list(args: List, with: &CommandContext) -> Result<()> {
    let (out, page) = (&with.out, &args.page);
    let client = with.client(&args.remote)?;
    let mut filter = RunFilter::new();
    filter.status = words(&args.statuses);
    if let Some(agent) = &args.agent {
        filter.agent_id = Some(id_of(&client, agent).await?);
    }
    filter.search = args.search;
    filter.since = args.since.map(time);
    filter.until = args.until.map(time);
    let list = client.runs(&filter, page.request()).await?;
    if out.json() {
        return Ok(out.json_text(&list.text)?);
    }
    let shown = list.items.len();
    let rows = list.items.iter().map(|run| {
        let waits = run.waiting_on.as_ref().map(|waiting| waiting.next.clone());
        [
            run.id.to_string(),
            run.status.to_string(),
            run.created_at.to_string(),
            run.title.clone().unwrap_or_default(),
            waits.unwrap_or_default(),
        ]
    });
    out.table(&["id", "status", "created", "title", "next"], rows)?;
    note_more(with, shown, page.offset, list.total)
}

fn show(reply: &RunDetails, out: &Out) -> Result<()> {
    let run = &reply.run;
    let moment = |at: Option<errand_client::Timestamp>| {
        at.map_or_else(|| "-".to_owned(), |at| at.to_string())
    };
    let mut rows: Vec<[String; 2]> = [
        ("id", run.id.to_string()),
        ("agent", run.agent_id.to_string()),
        ("build", run.build_id.to_string()),
        ("status", run.status.to_string()),
        (
            "sandbox",
            run.sandbox_id
                .as_ref()
                .map_or_else(|| "-".to_owned(), SandboxId::to_string),
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
        out.note(&follow::answer_hint(&run.id, request))?;
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
        let page = client.messages(&args.run, PageRequest::of(limit).offset(offset));
        let page = page.await?;
        let shown = page.items.len() as u64;
        offset += shown;
        left = left.saturating_sub(shown);
        if out.json() {
            out.json_text(&page.text)?;
        }
        for message in &page.items {
            transcript.begin(message.timestamp);
            if !out.json() {
                out.line(&transcript.message(message))?;
            }
        }
        if shown == 0 || offset >= page.total {
            break;
        }
    }
    Ok(())
}

async fn respond(args: Respond, with: &CommandContext) -> Result<()> {
    let client = with.client(&args.remote)?;
    let RunDetails {
        run,
        pending_human_request: pending,
        ..
    } = client.run(&args.run).await?.into_value();
    let request = match (&args.request, &pending) {
        (Some(request), _) => request.clone(),
        (None, Some(pending)) => pending.id.clone(),
        (None, None) => anyhow::bail!(
            "run {} has no open request; its status is {}",
            args.run,
            run.status
        ),
    };
    let questions = pending
        .filter(|pending| pending.id == request)
        .and_then(|pending| pending.questions);
    let mut answer = if args.approve || args.deny {
        Answer::approved(args.approve)
    } else {
        let questions = questions.unwrap_or_default();
        Answer::to_questions(answers::parse(&args.answer, &questions)?)
    };
    if let Some(reason) = args.reason {
        answer = answer.reason(reason);
    }
    let answered = client.respond(&args.run, &request, &answer).await;
    let answered = answered.context("the answer was not accepted")?;
    if with.out.json() {
        return Ok(with.out.json_text(&answered.text)?);
    }
    Ok(with
        .out
        .note("The answer was accepted. The run continues.")?)
}
