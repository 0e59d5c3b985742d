//! Detects runs that may be crashing the program: runs that lose their claim repeatedly without committing a step.
//!
//! # Guarantees
//!
//! A run that lost two claims in a row is *suspect*: it is only claimed when its driver works alone
//! ([`Store::claim_alone`]). After two more losses it is parked: failed with the code [`POISONED`]. A committed step,
//! or an orderly shutdown, resets the count. Counts of runs that lost no claim are neither read nor written.
//!
//! # Non-goals
//!
//! Preventing others from starting a new run of the same build.

use errand_core::id::RunId;
use errand_core::run::{Event, RunError, Status};
use errand_core::time::Timestamp;
use errand_core::transcript::Body;
use rusqlite::params;

use crate::db::sqlite::{Store, Tx};
use crate::db::types::Blob;
use crate::error::{Result, StoreError};
use crate::runs::change::Change;
use crate::runs::settle::settle;

/// Error code of parked runs.
pub const POISONED: &str = "poisoned";
/// Losses in a row after which a run is parked.
const PARKED: i64 = 4;
/// Maximum number of parked runs that are listed.
const NAMED_MAX: u32 = 20;

impl Store {
    /// Resets the counts at an orderly shutdown, which interrupts what is still running: those losses do not count.
    pub async fn forgive_losses(&self) -> Result<()> {
        self.write(|tx| {
            tx.execute(
                "UPDATE runs SET lost = -1 WHERE claim_token IS NOT NULL",
                [],
            )?;
            Ok(())
        })
        .await
    }

    /// The parked runs, and their total number.
    pub async fn poisoned_runs(&self) -> Result<(Vec<RunId>, u64)> {
        self.read(|conn| {
            let count: i64 = conn
                .prepare_cached("SELECT count(*) FROM runs INDEXED BY runs_lost WHERE lost > 0 AND lost >= ?1")?
                .query_row([PARKED], |row| row.get(0))?;
            let runs = conn
                .prepare_cached("SELECT id FROM runs INDEXED BY runs_lost WHERE lost > 0 AND lost >= ?1 LIMIT ?2")?
                .query_map(params![PARKED, NAMED_MAX], |row| row.get::<_, Blob>(0))?
                .map(|id| id.map(|id| RunId::from_stored(id.0)))
                .collect::<rusqlite::Result<Vec<_>>>()?;
            Ok((runs, u64::try_from(count).unwrap_or(0)))
        })
        .await
    }

    /// Queues a failed run of any team again on behalf of the operator, even if it is parked.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Refused` unless the run failed.
    pub async fn retry_by_operator(&self, run: RunId, now: Timestamp) -> Result<Status> {
        self.write(move |tx| {
            let mut change = Change::of_run(tx, run, now)?;
            if change.row.status != Status::Failed {
                return Err(StoreError::Refused(format!(
                    "only a failed run can be retried; this one is {}",
                    change.row.status.as_str()
                )));
            }
            change.apply(Event::Retry)?;
            change.append(None, Body::Retried { by: None })?;
            let status = change.row.status;
            settle(change)?;
            forget(tx, run)?;
            Ok(status)
        })
        .await
    }
}

/// Loads the counts at a start.
pub(crate) fn read(tx: &Tx<'_>) -> Result<()> {
    let rows = tx
        .prepare_cached(
            "SELECT id, lost FROM runs INDEXED BY runs_lost WHERE lost > 0 AND lost < ?1",
        )?
        .query_map([PARKED], |row| Ok((row.get::<_, Blob>(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(Blob, i64)>>>()?;
    tx.losses().replace(
        rows.into_iter()
            .map(|(id, lost)| (RunId::from_stored(id.0), lost)),
    );
    Ok(())
}

/// Counts a lost claim. Returns an error if the run must be parked with it.
pub(crate) fn count(tx: &Tx<'_>, run: RunId) -> Result<Option<RunError>> {
    let lost: i64 = tx
        .prepare_cached("UPDATE runs SET lost = lost + 1 WHERE id = ?1 RETURNING lost")?
        .query_row(params![Blob(run.as_uuid())], |row| row.get(0))?;
    tx.losses().set(run, lost);
    Ok((lost >= PARKED).then(|| {
        RunError::new(
            POISONED,
            format!(
                "the server ended unexpectedly {lost} times in a row while working on this run, the last two times while working on nothing else, so the run is parked; the operator can find out why, and release it with `errand runs retry --force {run}`"
            ),
        )
    }))
}

/// Resets the count after a committed step.
pub(crate) fn step_done(tx: &Tx<'_>, run: RunId) -> Result<()> {
    if tx.losses().counts(run) {
        forget(tx, run)?;
    }
    Ok(())
}

/// Resets the count, because a step was committed or an operator released the run.
pub(crate) fn forget(tx: &Tx<'_>, run: RunId) -> Result<()> {
    tx.prepare_cached("UPDATE runs SET lost = 0 WHERE id = ?1 AND lost <> 0")?
        .execute(params![Blob(run.as_uuid())])?;
    tx.losses().set(run, 0);
    Ok(())
}

/// Refuses an operation that members may not perform on a parked run.
pub(crate) fn check_not_parked(error: Option<&RunError>, what: &str) -> Result<()> {
    if error.is_some_and(|error| error.code == POISONED) {
        return Err(StoreError::Refused(format!(
            "the run is parked, because the server ended unexpectedly several times while working on it, and cannot be {what}; ask the operator of the server, who can release it"
        )));
    }
    Ok(())
}
