//! The tree of runs: which run started which, and which run waits for which.
//!
//! Of the tables, only `child_runs` is written here. The end of a run affects others through follow-ups (see `follow_ups`).

use errand_core::budget::Used;
use errand_core::id::{HumanRequestId, RunId};
use errand_core::run::WaitReason;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::db::sqlite::Tx;
use crate::db::types::{Blob, count};
use crate::error::Result;
use crate::runs::row::RunRow;

/// The run that a call of the parent has started, if it has.
pub(crate) fn child_of(conn: &Connection, parent: RunId, call_id: &str) -> Result<Option<RunId>> {
    let found = conn
        .prepare_cached("SELECT child FROM child_runs WHERE parent = ?1 AND call_id = ?2")?
        .query_row(params![Blob(parent.as_uuid()), call_id], |row| {
            row.get::<_, Blob>(0)
        })
        .optional()?;
    Ok(found.map(|id| RunId::from_stored(id.0)))
}

/// Total usage of all runs below a run, at all depths.
pub(crate) fn used_below(conn: &Connection, run: RunId) -> Result<Used> {
    let used = conn
        .prepare_cached(
            "WITH RECURSIVE below (run) AS (
                 SELECT child FROM child_runs WHERE parent = ?1
                 UNION SELECT c.child FROM below b JOIN child_runs c ON c.parent = b.run)
             SELECT coalesce(sum(r.input_tokens + r.output_tokens), 0), coalesce(sum(r.cost_usd), 0.0)
             FROM below b JOIN runs r ON r.id = b.run",
        )?
        .query_row(params![Blob(run.as_uuid())], |row| {
            Ok(Used {
                steps: 0,
                tokens: count(row.get(0)?),
                cost_usd: row.get(1)?,
            })
        })?;
    Ok(used)
}

/// Makes a run stop waiting for its child runs. Returns those that have not ended.
pub(crate) fn release_children(tx: &Tx<'_>, run: RunId) -> Result<Vec<RunId>> {
    let run = Blob(run.as_uuid());
    let awaited: Vec<(RunId, bool)> = tx
        .prepare_cached(
            "SELECT c.child, r.status IN ('completed', 'failed', 'interrupted') FROM child_runs c JOIN runs r ON r.id = c.child
             WHERE c.parent = ?1 AND c.awaited",
        )?
        .query_map(params![run], |row| {
            Ok((RunId::from_stored(row.get::<_, Blob>(0)?.0), row.get(1)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    if !awaited.is_empty() {
        tx.prepare_cached("UPDATE child_runs SET awaited = 0 WHERE parent = ?1")?
            .execute(params![run])?;
    }
    let open = awaited.into_iter().filter(|(_, has_ended)| !has_ended);
    Ok(open.map(|(child, _)| child).collect())
}

/// The run that waits for this one without being queued.
pub(crate) fn waiting_caller(conn: &Connection, run: RunId) -> Result<Option<RunId>> {
    let caller = conn
        .prepare_cached(
            "SELECT c.parent FROM child_runs c JOIN runs r ON r.id = c.parent
             WHERE c.child = ?1 AND r.status = 'running' AND r.waiting_kind = 'child_run' AND r.claim_token IS NULL
                 AND r.wake_at IS NULL",
        )?
        .query_row(params![Blob(run.as_uuid())], |row| row.get::<_, Blob>(0))
        .optional()?;
    Ok(caller.map(|id| RunId::from_stored(id.0)))
}

/// The child run that this run waits for, if any.
pub(crate) fn awaited(row: &RunRow) -> Option<RunId> {
    if row.status.has_ended() || row.waiting_kind != Some(WaitReason::ChildRun) {
        return None;
    }
    row.waiting_who.as_ref()?.parse().ok()
}

/// The run below this one that made a human request, if it was not this one.
pub(crate) fn asked_below(
    conn: &Connection,
    run: RunId,
    request: HumanRequestId,
) -> Result<Option<RunId>> {
    let found = conn
        .prepare_cached(
            "WITH RECURSIVE above (asked, run) AS (
                 SELECT run_id, run_id FROM human_requests WHERE id = ?2
                 UNION SELECT a.asked, c.parent FROM above a JOIN child_runs c ON c.child = a.run)
             SELECT asked FROM above WHERE run = ?1 AND asked <> ?1",
        )?
        .query_row(
            params![Blob(run.as_uuid()), Blob(request.as_uuid())],
            |row| row.get::<_, Blob>(0),
        )
        .optional()?;
    Ok(found.map(|id| RunId::from_stored(id.0)))
}

/// Notifies those who watch the callers of a run that asks a person, because the callers show the request too.
pub(crate) fn notify_callers(tx: &Tx<'_>, run: RunId) -> Result<()> {
    let mut select = tx.prepare_cached(
        "WITH RECURSIVE above (run) AS (
             SELECT parent FROM child_runs WHERE child = ?1 AND awaited
             UNION SELECT c.parent FROM above a JOIN child_runs c ON c.child = a.run WHERE c.awaited)
         SELECT run FROM above",
    )?;
    let mut rows = select.query(params![Blob(run.as_uuid())])?;
    while let Some(row) = rows.next()? {
        tx.ring(RunId::from_stored(row.get::<_, Blob>(0)?.0), true);
    }
    Ok(())
}
