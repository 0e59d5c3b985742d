//! Creates a run from the transcript of another one.

use errand_core::id::{BuildId, RunId, SandboxId};
use errand_core::run::RunSource;
use errand_core::time::Timestamp;
use errand_core::wire::RunBody;
use rusqlite::{Connection, params};

use crate::db::sqlite::Tx;
use crate::db::types::Ms;
use crate::error::{Result, StoreError};
use crate::runs::change::Change;
use crate::runs::create::{NewRun, create_run};
use crate::runs::row::RunRow;
use crate::runs::transcript_copy::{config_of, copy, readable};

/// A fork to create.
#[derive(Clone, Debug)]
pub struct Fork {
    /// The run to fork.
    pub run: RunId,
    /// Id for the new run.
    pub id: RunId,
    /// Position of the last entry to copy; 0 for none. `None`: all entries that can be read.
    pub after: Option<u64>,
    /// Another build of the same agent. `None`: the build of the forked run.
    pub build: Option<BuildId>,
    pub source: RunSource,
    pub now: Timestamp,
}

/// Result of a fork.
#[derive(Clone, Debug, PartialEq)]
pub struct Forked {
    /// The new run.
    pub run: RunBody,
    /// Number of copied entries.
    pub taken: u64,
    /// Number of entries of the forked run.
    pub of: u64,
}

pub(super) fn fork(tx: &Tx<'_>, fork: &Fork) -> Result<Forked> {
    let old = Change::of_run(tx, fork.run, fork.now)
        .map_err(|error| match error {
            StoreError::Corrupt { .. } => StoreError::Refused(format!(
                "the run cannot be forked, because {error}; start a new run of its agent"
            )),
            other => other,
        })?
        .row;
    let entries = readable(tx, fork.run, fork.after)?;
    if let Some(after) = fork.after
        && (entries.len() as u64) < after
    {
        return Err(StoreError::Refused(format!(
            "only the run's first {} entries can be read, not {after}; fork after one of those",
            entries.len()
        )));
    }
    let build = fork.build.unwrap_or(old.build);
    let config = config_of(tx, &old, build)?;
    let sandbox = free_sandbox_of(tx, &old, fork.now)?;
    let of = old.position;
    let new = NewRun {
        team: old.team,
        id: fork.id,
        agent: old.agent,
        build,
        config: &config,
        source: Some(fork.source),
        // An operator starts it on the machine itself, so no user is recorded.
        started_by: None,
        api_key: old.api_key,
        principal: old.principal,
        title: old.title,
        sandbox,
        sandbox_ttl_ms: old.sandbox_ttl_ms,
        webhook_url: old.webhook_url,
        human_webhook_url: old.human_webhook_url,
        human_in_the_loop: config.human_in_the_loop,
        now: fork.now,
    };
    let run = create_run(tx, new, |change| copy(change, &entries))?;
    Ok(Forked {
        run,
        taken: entries.len() as u64,
        of,
    })
}

/// The sandbox of the forked run, if nobody uses it any more. The new run then continues on its files.
fn free_sandbox_of(conn: &Connection, old: &RunRow, now: Timestamp) -> Result<Option<SandboxId>> {
    let Some(sandbox) = old.sandbox.clone().filter(|_| old.status.has_ended()) else {
        return Ok(None);
    };
    let is_free = conn
        .prepare_cached(
            "SELECT 1 FROM sandboxes WHERE id = ?1 AND owner_run IS NULL AND deleted_at IS NULL AND expires_at > ?2",
        )?
        .exists(params![sandbox.as_str(), Ms(now)])?;
    Ok(is_free.then_some(sandbox))
}
