//! Finishes changes and executes their follow-ups. This is the only place where a change of one run leads to changes
//! of others.
//!
//! # Guarantees
//!
//! All follow-ups are executed in the transaction of the change, in the order in which they were recorded, those of a
//! follow-up after the ones that were recorded before. A run that cannot be read does not block the others: it is
//! quarantined.

use std::collections::VecDeque;

use errand_core::id::RunId;
use errand_core::time::Timestamp;
use errand_core::transcript::Entry;
use rusqlite::{OptionalExtension as _, params};

use crate::db::sqlite::Tx;
use crate::db::types::Blob;
use crate::error::{Result, StoreError};
use crate::runs::change::{Change, Finished};
use crate::runs::follow_ups::FollowUp;
use crate::runs::lineage;
use crate::runs::quarantine::quarantine_run;

/// Finishes a change and executes its follow-ups. Returns the appended entries.
pub(crate) fn settle(change: Change<'_>) -> Result<Vec<Entry>> {
    let (tx, now) = (change.tx, change.now);
    let Finished {
        entries,
        follow_ups,
    } = change.finish()?;
    execute(tx, follow_ups, now)?;
    Ok(entries)
}

/// Executes follow-ups, including those that they lead to. This ends, because each of those belongs to a run that has
/// just ended or that released its sandbox.
pub(crate) fn execute(tx: &Tx<'_>, follow_ups: Vec<FollowUp>, now: Timestamp) -> Result<()> {
    let mut queue = VecDeque::from(follow_ups);
    while let Some(follow_up) = queue.pop_front() {
        match follow_up {
            FollowUp::HandOverSandbox {
                sandbox,
                released_by,
            } => {
                if let Some(next) = next_for_sandbox(tx, &sandbox, released_by)? {
                    let (more, is_quarantined) =
                        isolated(tx, next, now, || enqueue(tx, next, now))?;
                    queue.extend(more);
                    if is_quarantined {
                        // It did not take the sandbox, so the next one gets it.
                        queue.push_back(FollowUp::HandOverSandbox {
                            sandbox,
                            released_by,
                        });
                    }
                }
            }
            FollowUp::StopChildren { parent, team } => {
                for child in lineage::release_children(tx, parent)? {
                    let (more, _) = isolated(tx, child, now, || {
                        let mut change = Change::of_team(tx, team, child, now)?;
                        if !change.stop(None)? {
                            return Ok(Vec::new());
                        }
                        change.finish().map(|finished| finished.follow_ups)
                    })?;
                    queue.extend(more);
                }
            }
            FollowUp::WakeCaller { child } => {
                if let Some(caller) = lineage::waiting_caller(tx, child)? {
                    let (more, _) = isolated(tx, caller, now, || enqueue(tx, caller, now))?;
                    queue.extend(more);
                }
            }
            FollowUp::NotifyCallers { child } => lineage::notify_callers(tx, child)?,
        }
    }
    Ok(())
}

/// Calls `act` for each run, each in a savepoint. A run that cannot be read, or is in an impossible state, is
/// quarantined and its changes are rolled back, so that it does not block the others.
pub(crate) fn for_each(
    tx: &Tx<'_>,
    runs: &[RunId],
    now: Timestamp,
    mut act: impl FnMut(RunId) -> Result<()>,
) -> Result<()> {
    for run in runs {
        let (follow_ups, _) = isolated(tx, *run, now, || act(*run).map(|()| Vec::new()))?;
        execute(tx, follow_ups, now)?;
    }
    Ok(())
}

/// Changes a run in a savepoint. If the run cannot be read, or is in an impossible state, its changes are rolled back
/// and it is quarantined. Returns the follow-ups, and whether the run was quarantined.
fn isolated(
    tx: &Tx<'_>,
    run: RunId,
    now: Timestamp,
    act: impl FnOnce() -> Result<Vec<FollowUp>>,
) -> Result<(Vec<FollowUp>, bool)> {
    tx.execute_batch("SAVEPOINT one_run")?;
    let done = act();
    if done.is_err() {
        if tx.is_autocommit() {
            // SQLite has rolled back the whole transaction, for example because the disk is full. The savepoint is gone,
            // and only the first error says why.
            return done.map(|follow_ups| (follow_ups, false));
        }
        tx.execute_batch("ROLLBACK TO one_run")?;
    }
    tx.execute_batch("RELEASE one_run")?;
    match done {
        Err(error @ (StoreError::Corrupt { .. } | StoreError::Refused(_))) => {
            Ok((quarantine_run(tx, run, &error, now)?, true))
        }
        done => done.map(|follow_ups| (follow_ups, false)),
    }
}

fn enqueue(tx: &Tx<'_>, run: RunId, now: Timestamp) -> Result<Vec<FollowUp>> {
    let mut change = Change::of_run(tx, run, now)?;
    change.queue()?;
    change.mark_updated();
    change.finish().map(|finished| finished.follow_ups)
}

/// The run that has waited for a sandbox longest.
fn next_for_sandbox(tx: &Tx<'_>, sandbox: &str, released_by: RunId) -> Result<Option<RunId>> {
    let next = tx
        .prepare_cached(
            "SELECT id FROM runs WHERE sandbox_id = ?1 AND waiting_kind = 'sandbox' AND id <> ?2
                 AND status NOT IN ('completed', 'failed', 'interrupted') ORDER BY updated_at LIMIT 1",
        )?
        .query_row(params![sandbox, Blob(released_by.as_uuid())], |row| {
            row.get::<_, Blob>(0)
        })
        .optional()?;
    Ok(next.map(|id| RunId::from_stored(id.0)))
}

#[cfg(test)]
mod tests;
