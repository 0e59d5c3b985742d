//! `errand runs stop` and `errand runs retry`: one run, or all runs that match criteria.

use anyhow::Result;
use clap::{ArgGroup, Args};
use errand_client::{BulkChange, BulkOutcome, Client, Reply, RunId, RunSource};
use errand_core::run::Status;
use errand_core::time::Timestamp;

use super::agents::id_of;
use super::out::Out;
use super::runs::{status, time, words};
use super::{CommandContext, LocalServer, RemoteServer, unexpected_response};
use crate::admin::{AdminAnswer, AdminRequest, reach};

/// Names of the arguments that are criteria.
const CRITERIA: [&str; 6] = ["all", "statuses", "agent", "source", "since", "until"];

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).multiple(true).args(["run"]).args(CRITERIA)))]
pub(super) struct Selection {
    /// ID of the run
    #[arg(conflicts_with_all = CRITERIA, conflicts_with_all = ["limit", "dry_run"])]
    run: Option<RunId>,
    /// All runs to which the command applies
    #[arg(long)]
    all: bool,
    /// Only runs with this status; can be repeated
    #[arg(long = "status", value_name = "STATUS", value_parser = status)]
    statuses: Vec<Status>,
    /// Only runs of this agent (ID or name)
    #[arg(long)]
    agent: Option<String>,
    /// Only runs from this source: api, web, schedule, mcp or cli
    #[arg(long)]
    source: Option<RunSource>,
    /// Only runs created at or after this time, for example 2026-11-23T09:30:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only runs created before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// At most this many, oldest first [default and maximum: 1000]
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Only print the matching runs
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    remote: RemoteServer,
}

/// Arguments of `errand runs retry`.
#[derive(Debug, Args)]
pub(super) struct Retry {
    #[command(flatten)]
    selection: Selection,
    /// As the operator, on the server's machine: also a poisoned run, of any team
    #[arg(long, requires = "run")]
    force: bool,
    #[command(flatten)]
    place: LocalServer,
}

/// Stops one run or several.
pub(super) async fn stop(selection: Selection, with: &CommandContext) -> Result<()> {
    let (client, out) = (with.client(&selection.remote)?, &with.out);
    let Some(run) = &selection.run else {
        let change = selection.change(&client).await?;
        return show(
            &client.stop_runs(&change).await?,
            "interrupted",
            &selection,
            out,
        );
    };
    let reply = client.stop_run(run).await?;
    if out.json() {
        return Ok(out.json_text(&reply.text)?);
    }
    let message = reply.message.as_deref();
    Ok(out.note(message.unwrap_or("The run was stopped."))?)
}

/// Retries one failed run or several.
pub(super) async fn retry(args: Retry, with: &CommandContext) -> Result<()> {
    let selection = args.selection;
    if let (true, Some(run)) = (args.force, &selection.run) {
        let request = AdminRequest::Retry {
            run: run.to_string(),
        };
        return match reach::execute(&with.settings_of(&args.place)?, request).await? {
            AdminAnswer::Repaired { repaired } if with.out.json() => {
                Ok(with.out.json_value(&repaired)?)
            }
            AdminAnswer::Repaired { repaired } => Ok(with.out.note(&repaired.sentence)?),
            _ => Err(unexpected_response()),
        };
    }
    let (client, out) = (with.client(&selection.remote)?, &with.out);
    let Some(run) = &selection.run else {
        let change = selection.change(&client).await?;
        let reply = client.retry_runs(&change).await?;
        return show(&reply, "queued again", &selection, out);
    };
    let reply = client.retry_run(run).await?;
    if out.json() {
        return Ok(out.json_text(&reply.text)?);
    }
    Ok(out.note("The run continues from the step that failed.")?)
}

impl Selection {
    /// The request to the API.
    async fn change(&self, client: &Client) -> Result<BulkChange> {
        let mut change = BulkChange::default();
        change.status = words(&self.statuses);
        if let Some(agent) = &self.agent {
            change.agent_id = Some(id_of(client, agent).await?);
        }
        change.source.clone_from(&self.source);
        change.since = self.since.map(time);
        change.until = self.until.map(time);
        change.limit = self.limit;
        change.all = self.all;
        change.dry_run = self.dry_run;
        Ok(change)
    }
}

/// Prints the runs as the result, and their number as a note.
fn show(reply: &Reply<BulkOutcome>, what: &str, selection: &Selection, out: &Out) -> Result<()> {
    if out.json() {
        return Ok(out.json_text(&reply.text)?);
    }
    let done = &reply.value;
    for run in &done.runs {
        out.line(run.as_str())?;
    }
    let runs = |n: u64| match n {
        1 => "1 run".to_owned(),
        n => format!("{n} runs"),
    };
    let is = |n: u64| if n == 1 { "is" } else { "are" };
    if selection.dry_run {
        out.note(&format!(
            "{} would be {what}. Nothing was changed.",
            runs(done.matched)
        ))?;
    } else {
        out.note(&format!(
            "{} {} {what}.",
            runs(done.changed),
            is(done.changed)
        ))?;
        let left = done.matched.saturating_sub(done.changed);
        if left > 0 {
            out.note(&format!(
                "{} cannot be read and {} quarantined as failed; see the server's log.",
                runs(left),
                is(left)
            ))?;
        }
    }
    if done.more {
        out.note("More runs match; run the same command again to continue.")?;
    }
    Ok(())
}
