//! Quarantine: fails a run whose rows cannot be parsed, without reading them, and releases everything that waits for
//! it.
//!
//! Such a run fails and holds nothing. Runs that wait for its sandbox or for itself continue, and its child runs end.
//! Its transcript, events and webhooks are left unchanged, because they cannot be read.

use errand_core::id::{RunId, TeamId};
use errand_core::run::RunError;
use errand_core::time::Timestamp;
use rusqlite::{Connection, params};

use crate::db::sqlite::Tx;
use crate::db::types::{Blob, Ms};
use crate::error::{Result, StoreError};
use crate::runs::change::Change;
use crate::runs::children;
use crate::runs::commands::stop_as;

/// Calls `act` for each run, each in a savepoint. A run that cannot be read, or is in an impossible state, is
/// quarantined and its changes are rolled back, so that it does not block the others.
pub(crate) fn for_each(
    tx: &Tx<'_>,
    runs: &[RunId],
    now: Timestamp,
    act: impl Fn(RunId) -> Result<()>,
) -> Result<()> {
    for run in runs {
        tx.execute_batch("SAVEPOINT one_run")?;
        let done = act(*run);
        if done.is_err() {
            tx.execute_batch("ROLLBACK TO one_run")?;
        }
        tx.execute_batch("RELEASE one_run")?;
        match done {
            Ok(()) => {}
            Err(error @ (StoreError::Corrupt { .. } | StoreError::Refused(_))) => {
                set_aside(tx, *run, &error, now)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Quarantines a run that the engine cannot read.
pub(crate) fn set_aside(tx: &Tx<'_>, run: RunId, error: &StoreError, now: Timestamp) -> Result<()> {
    tracing::error!(run.id = %run, %error, "a run cannot be read and is set aside as failed");
    let why = "the rows of the run cannot be read; the log of the server says which";
    end(tx, run, &RunError::new("unreadable", why), now)
}

/// Fails a run without reading it.
pub(crate) fn end(tx: &Tx<'_>, run: RunId, error: &RunError, now: Timestamp) -> Result<()> {
    let id = Blob(run.as_uuid());
    tx.execute(
        "UPDATE runs SET status = 'failed', error_code = ?3, error_message = ?4, completed_at = ?2
         WHERE id = ?1 AND status NOT IN ('completed', 'failed', 'interrupted')",
        params![id, Ms(now), error.code, error.message],
    )?;
    tx.execute(
        "UPDATE runs SET claim_token = NULL, claim_boot = NULL, claimed_at = NULL, wake_at = NULL, deadline_at = NULL, request_id = NULL,
             waiting_kind = NULL, waiting_who = NULL, waiting_since = NULL, waiting_deadline = NULL, updated_at = ?2 WHERE id = ?1",
        params![id, Ms(now)],
    )?;
    close_requests(tx, run, now)?;
    let freed: Vec<String> = tx
        .prepare("UPDATE sandboxes SET owner_run = NULL, leaving = NULL WHERE owner_run = ?1 RETURNING id")?
        .query_map(params![id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for sandbox in freed {
        let_in(tx, &sandbox, run, now)?;
    }
    let left = children::let_go(tx, run)?;
    let team: Blob = tx
        .prepare_cached("SELECT team_id FROM runs WHERE id = ?1")?
        .query_row(params![id], |row| row.get(0))?;
    for_each(tx, &left, now, |child| {
        stop_as(tx, TeamId::from_stored(team.0), child, None, now).map(drop)
    })?;
    children::wake_caller(tx, run, now)?;
    tx.ring(run, true);
    tx.ring_fence(run);
    Ok(())
}

/// Hands a released sandbox over to the run that has waited for it longest. `other` is the run that released it.
pub(crate) fn let_in(tx: &Tx<'_>, sandbox: &str, other: RunId, now: Timestamp) -> Result<()> {
    let next: Vec<RunId> = tx
        .prepare_cached(
            "SELECT id FROM runs WHERE sandbox_id = ?1 AND waiting_kind = 'sandbox' AND id <> ?2
                 AND status NOT IN ('completed', 'failed', 'interrupted') ORDER BY updated_at LIMIT 1",
        )?
        .query_map(params![sandbox, Blob(other.as_uuid())], |row| {
            row.get::<_, Blob>(0)
        })?
        .map(|id| Ok(RunId::from_stored(id?.0)))
        .collect::<Result<_>>()?;
    for_each(tx, &next, now, |next| {
        let mut change = Change::of_run(tx, next, now)?;
        change.queue()?;
        change.mark_updated();
        change.finish().map(drop)
    })
}

/// Closes the open requests of a run without reading them.
pub(crate) fn close_requests(conn: &Connection, run: RunId, now: Timestamp) -> Result<()> {
    conn.execute(
        "UPDATE human_requests SET closed_at = ?2, resolution = '{\"how\":\"stopped\"}' WHERE run_id = ?1 AND closed_at IS NULL",
        params![Blob(run.as_uuid()), Ms(now)],
    )?;
    Ok(())
}
