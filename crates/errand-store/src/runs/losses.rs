//! Runs that may be what ends the program: each loses its claim, again and again, before it has committed a step.
//!
//! Guarantees: a run that lost two claims in a row is *suspect*: it is given to a driver only when that driver works alone
//! ([`Store::claim_alone`]). After two more losses it is parked: failed, with the code [`POISONED`]. A committed step or an
//! orderly stop of the program ends the count. The counts of runs that lost none are neither read nor written.
//!
//! Non-goals: keeping others from starting a new run of the same build.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::{ClaimToken, RunId};
use errand_core::run::{Event, RunError, Status};
use errand_core::time::Timestamp;
use errand_core::transcript::Body;
use rusqlite::params;

use crate::db::sqlite::{Store, Tx};
use crate::db::types::Blob;
use crate::error::{Result, StoreError};
use crate::model::{Claimed, ReadyRun};
use crate::runs::change::Change;
use crate::runs::claims;

/// The code of the error with which a run is parked.
pub const POISONED: &str = "poisoned";
/// Losses in a row after which a run is driven alone.
const SUSPECT: i64 = 2;
/// Losses in a row after which it is parked.
const PARKED: i64 = 4;
/// Most parked runs that are named at once.
const NAMED_MAX: u32 = 20;

/// The counts above zero. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Losses(Arc<Mutex<HashMap<RunId, i64>>>);

impl Losses {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the run is to be driven alone.
    pub(crate) fn suspects(&self, run: RunId) -> bool {
        self.lock().get(&run).is_some_and(|lost| *lost >= SUSPECT)
    }

    /// Whether a step of the run ends a count. It says so for each step: a transaction may be rolled back.
    fn counts(&self, run: RunId) -> bool {
        let mut counts = self.lock();
        match counts.get_mut(&run) {
            Some(lost) => {
                *lost = 0;
                true
            }
            None => false,
        }
    }
}

impl Store {
    /// Gives a suspect run to a driver, which must be the only one. `None` where it wants none any more.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn claim_alone(
        &self,
        ready: ReadyRun,
        token: ClaimToken,
        step_deadline: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Claimed>> {
        let boot = self.boot();
        self.write(move |tx| {
            let token = (token, boot);
            let taken = claims::take(tx, ready, token, step_deadline, now);
            claims::set_aside_unreadable(tx, ready.run, taken, now)
        })
        .await
    }

    /// The program ends in order, and cuts off what is still at work: the claims that are lost with that do not count.
    ///
    /// # Errors
    /// Of the store only.
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

    /// Runs that are parked, with how many there are.
    ///
    /// # Errors
    /// Of the store only.
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

    /// Puts a failed run of any team in line again, a parked one, too: on behalf of the operator.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Refused` unless it failed.
    pub async fn retry_by_operator(&self, run: RunId, now: Timestamp) -> Result<Status> {
        self.write(move |tx| {
            let mut change = Change::of_run(tx, run, now)?;
            if change.row.status != Status::Failed {
                return Err(StoreError::Refused(format!(
                    "only a failed run is retried; this one is {}",
                    change.row.status.as_str()
                )));
            }
            change.apply(Event::Retry)?;
            change.append(None, Body::Retried { by: None })?;
            change.row.completed_at = None;
            change.row.error = None;
            change.row.worked_ms = 0;
            change.queue()?;
            let status = change.row.status;
            change.finish()?;
            forget(tx, run)?;
            Ok(status)
        })
        .await
    }
}

/// Reads the counts, at a start.
pub(crate) fn read(tx: &Tx<'_>) -> Result<()> {
    let rows = tx
        .prepare_cached(
            "SELECT id, lost FROM runs INDEXED BY runs_lost WHERE lost > 0 AND lost < ?1",
        )?
        .query_map([PARKED], |row| Ok((row.get::<_, Blob>(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(Blob, i64)>>>()?;
    let mut counts = tx.losses().lock();
    counts.clear();
    counts.extend(
        rows.into_iter()
            .map(|(id, lost)| (RunId::from_stored(id.0), lost)),
    );
    Ok(())
}

/// Counts a claim that was lost. The error: the run is to be parked with it.
pub(crate) fn count(tx: &Tx<'_>, run: RunId) -> Result<Option<RunError>> {
    let lost: i64 = tx
        .prepare_cached("UPDATE runs SET lost = lost + 1 WHERE id = ?1 RETURNING lost")?
        .query_row(params![Blob(run.as_uuid())], |row| row.get(0))?;
    tx.losses().lock().insert(run, lost);
    Ok((lost >= PARKED).then(|| {
        RunError::new(
            POISONED,
            format!(
                "the server ended {lost} times in a row while it worked on this run, twice of them on this run alone, so the run is parked; the operator finds out why, and lets it go on with `errand runs retry --force {run}`"
            ),
        )
    }))
}

/// A step of the run was committed.
pub(crate) fn step_done(tx: &Tx<'_>, run: RunId) -> Result<()> {
    if tx.losses().counts(run) {
        forget(tx, run)?;
    }
    Ok(())
}

/// Ends the count: a step was committed, or an operator lets the run go on.
pub(crate) fn forget(tx: &Tx<'_>, run: RunId) -> Result<()> {
    tx.prepare_cached("UPDATE runs SET lost = 0 WHERE id = ?1 AND lost <> 0")?
        .execute(params![Blob(run.as_uuid())])?;
    tx.losses().lock().insert(run, 0);
    Ok(())
}

/// Refuses what a member may not do to a parked run.
pub(crate) fn check_not_parked(error: Option<&RunError>, what: &str) -> Result<()> {
    if error.is_some_and(|error| error.code == POISONED) {
        return Err(StoreError::Refused(format!(
            "the run is parked, since the server ended again and again while it worked on it, and cannot be {what}; ask the operator of the server, who can let it go on"
        )));
    }
    Ok(())
}
