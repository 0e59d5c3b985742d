//! Forks: a new run that begins with the transcript of another run, up to a message.
//!
//! # Guarantees
//!
//! The other run is not changed, and its changes in the meantime do not matter. The new transcript is well formed:
//! calls and requests that the cut leaves open are closed, and started again if nothing of them had begun. The usage
//! of the other run is not copied. If there is a sandbox, its files were copied before, and its row is inserted here.
//!
//! # Non-goals
//!
//! Copying the files (the API does), and forks of damaged runs by an operator (see `repair`).

#[cfg(test)]
mod tests;

use errand_core::author::By;
use errand_core::id::{ApiKeyId, BuildId, MessageId, RunId, SandboxId, TeamId};
use errand_core::run::RunSource;
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, count};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{CheckedBuild, Principal, RunView};
use crate::runs::create::{NewRun, create_run};
use crate::runs::expected_build::check_expected;
use crate::runs::row::row_of;
use crate::runs::transcript_copy::{config_of, copy, readable};

/// A fork to create.
#[derive(Clone, Debug)]
pub struct ForkRun {
    pub team: TeamId,
    /// The run to fork.
    pub run: RunId,
    /// Id for the new run.
    pub id: RunId,
    /// The last message to copy. `None`: all messages.
    pub after: Option<MessageId>,
    /// Another build of the same agent. `None`: the build of the forked run.
    pub build: Option<BuildId>,
    pub source: RunSource,
    /// Receives all events of the new run.
    pub webhook_url: Option<String>,
    /// Receives `human_request` events only.
    pub human_request_webhook_url: Option<String>,
    /// A message to append after the copied ones.
    pub message: Option<(MessageId, String)>,
    /// The message may have been written by strangers.
    pub untrusted: bool,
    pub by: By,
    pub api_key: Option<ApiKeyId>,
    /// A sandbox whose files were already copied, but that has no row yet.
    pub sandbox: Option<SandboxId>,
    /// Lifetime of the sandbox, from the setting `sandbox.ttl`.
    pub sandbox_ttl_ms: u64,
    /// The build as the caller has checked it. `None`: the caller found none.
    pub expected_build: Option<CheckedBuild>,
    pub now: Timestamp,
}

impl Store {
    /// Creates a run from the transcript of another one, up to a message. Writes the run, its transcript, the
    /// sandbox's row, the event and the idempotency record in one transaction.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the run; `Invalid` for a message that the run does not have, a message after
    /// which there is nothing to do, and a build of another agent or one that cannot be used; `Refused` if the agent
    /// is deleted, or the entries to copy cannot be read.
    pub async fn fork(
        &self,
        fork: ForkRun,
        recorded: Idempotent<RunView>,
    ) -> Result<Outcome<RunView>> {
        self.write(move |tx| idempotent(tx, &recorded, fork.now, || make(tx, &fork)))
            .await
    }
}

fn make(tx: &Tx<'_>, fork: &ForkRun) -> Result<RunView> {
    let old = row_of(tx, fork.team, fork.run)?;
    crate::runs::losses::check_not_parked(old.error.as_ref(), "forked")?;
    if agent_is_deleted(tx, &old)? {
        return Err(StoreError::Refused(
            "the run's agent is deleted, so no new run of it can be started".to_owned(),
        ));
    }
    let last = match fork.after {
        Some(message) => position_of(tx, fork.run, message)?,
        None => old.position,
    };
    let entries = readable(tx, fork.run, Some(last))?;
    if (entries.len() as u64) < last {
        return Err(StoreError::Refused(format!(
            "only the run's first {} entries can be read; fork after an earlier message",
            entries.len()
        )));
    }
    if fork.message.is_none() && has_ended_with(&entries) {
        return Err(StoreError::Invalid {
            field: "after_message",
            message: "with this message the run had ended, and there is nothing to go on with; give a message that follows it, or \
                fork after an earlier one"
                .to_owned(),
        });
    }
    let build = fork.build.unwrap_or(old.build);
    let invalid = |message: String| StoreError::Invalid {
        field: "build",
        message,
    };
    let config = config_of(tx, &old, build).map_err(|error| match error {
        StoreError::Refused(why) => invalid(why),
        other => other,
    })?;
    check_expected(fork.expected_build.as_ref(), build)?.map_err(invalid)?;
    if let Some(sandbox) = &fork.sandbox {
        insert_sandbox(tx, fork, sandbox)?;
    }
    let new = NewRun {
        team: old.team,
        id: fork.id,
        agent: old.agent,
        build,
        config: &config,
        source: Some(fork.source),
        started_by: Some(fork.by.user),
        api_key: fork.api_key,
        principal: Principal::of(fork.api_key, fork.by.user),
        title: old.title,
        sandbox: fork.sandbox.clone(),
        sandbox_ttl_ms: fork.sandbox_ttl_ms,
        webhook_url: fork.webhook_url.clone(),
        human_webhook_url: fork.human_request_webhook_url.clone(),
        human_in_the_loop: config.human_in_the_loop,
        now: fork.now,
    };
    let run = create_run(tx, new, |change| {
        copy(change, &entries)?;
        if let Some((id, text)) = &fork.message {
            let body = Body::User {
                text: text.clone(),
                untrusted: fork.untrusted,
                by: Some(fork.by.clone()),
            };
            change.append(Some(*id), body)?;
        }
        Ok(())
    })?;
    Ok(RunView { run, pending: None })
}

fn agent_is_deleted(conn: &Connection, run: &crate::runs::row::RunRow) -> Result<bool> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM agents WHERE id = ?1 AND deleted_at IS NOT NULL")?
        .exists(params![Blob(run.agent.as_uuid())])?)
}

/// Position of a message in the transcript of a run.
fn position_of(conn: &Connection, run: RunId, message: MessageId) -> Result<u64> {
    let position = conn
        .prepare_cached(
            "SELECT position FROM messages WHERE run_id = ?1 AND id = ?2 AND shown IS NOT NULL",
        )?
        .query_row(
            params![Blob(run.as_uuid()), Blob(message.as_uuid())],
            |row| row.get(0),
        )
        .optional()?;
    position.map(count).ok_or_else(|| StoreError::Invalid {
        field: "after_message",
        message: format!(
            "the run has no message {message}; GET /v1/runs/{{run_id}}/messages lists its messages"
        ),
    })
}

/// Whether the entries end with the answer that ended the run, or would have ended it.
fn has_ended_with(entries: &[Entry]) -> bool {
    let last = entries.iter().rev().find(|entry| entry.body.is_shown());
    last.is_some_and(|entry| matches!(entry.body, Body::Assistant { ends: true, .. }))
}

fn insert_sandbox(tx: &Connection, fork: &ForkRun, sandbox: &SandboxId) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO sandboxes (id, team_id, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        sandbox.as_str(),
        Blob(fork.team.as_uuid()),
        Ms(fork.now),
        Ms(fork.now.plus_ms(fork.sandbox_ttl_ms))
    ])?;
    Ok(())
}
