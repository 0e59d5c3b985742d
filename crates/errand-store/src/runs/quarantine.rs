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
use crate::runs::follow_ups::FollowUp;

/// Quarantines a run that the engine cannot read. The caller executes the follow-ups.
pub(crate) fn quarantine_run(
    tx: &Tx<'_>,
    run: RunId,
    error: &StoreError,
    now: Timestamp,
) -> Result<Vec<FollowUp>> {
    tracing::error!(run.id = %run, %error, "a run cannot be read and is quarantined as failed");
    let why = "the rows of the run cannot be read; the log of the server says which";
    fail_unread(tx, run, &RunError::new("unreadable", why), now)
}

/// Fails a run without reading it. The caller executes the follow-ups.
pub(crate) fn fail_unread(
    tx: &Tx<'_>,
    run: RunId,
    error: &RunError,
    now: Timestamp,
) -> Result<Vec<FollowUp>> {
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
    let mut follow_ups: Vec<FollowUp> = tx
        .prepare("UPDATE sandboxes SET owner_run = NULL, leaving = NULL WHERE owner_run = ?1 RETURNING id")?
        .query_map(params![id], |row| {
            Ok(FollowUp::HandOverSandbox {
                sandbox: row.get(0)?,
                released_by: run,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let team: Blob = tx
        .prepare_cached("SELECT team_id FROM runs WHERE id = ?1")?
        .query_row(params![id], |row| row.get(0))?;
    let team = TeamId::from_stored(team.0);
    follow_ups.push(FollowUp::StopChildren { parent: run, team });
    follow_ups.push(FollowUp::WakeCaller { child: run });
    tx.ring(run, true);
    tx.ring_fence(run);
    Ok(follow_ups)
}

/// Closes the open requests of a run without reading them.
pub(crate) fn close_requests(conn: &Connection, run: RunId, now: Timestamp) -> Result<()> {
    conn.execute(
        "UPDATE human_requests SET closed_at = ?2, resolution = '{\"how\":\"stopped\"}' WHERE run_id = ?1 AND closed_at IS NULL",
        params![Blob(run.as_uuid()), Ms(now)],
    )?;
    Ok(())
}
