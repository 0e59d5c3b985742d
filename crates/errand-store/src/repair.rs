//! Repairs a run that is damaged or stuck, on behalf of an operator: it continues, it ends, or a fork continues in
//! its place.
//!
//! # Guarantees
//!
//! Afterwards the run can continue, or has ended. Its row agrees with its transcript, and its requests and its
//! sandbox agree with both. Nothing in a transcript is changed or removed. A driver that is still working is fenced:
//! it commits nothing more, and its sandbox is not given to others until it has left.
//!
//! These operations have no team parameter: they are for whoever may write to the data directory.

pub(crate) mod fork;
mod rows;
#[cfg(test)]
mod tests;

use errand_core::human::{HumanRequest, Resolution};
use errand_core::id::{ClaimToken, RunId};
use errand_core::ledger::Ledger;
use errand_core::run::{Event, RunError, Status, WaitReason};
use errand_core::time::Timestamp;
use errand_core::transcript::Body;

use crate::db::sqlite::{Store, Tx};
use crate::error::{Result, StoreError};
use crate::notify::Bell;
use crate::runs::change::{Change, Closing};
use crate::runs::losses;
use crate::runs::quarantine;
use crate::runs::settle::{execute, settle};
pub use fork::{Fork, Forked};

/// Error code of a run that was ended by a repair.
const CODE: &str = "repaired";
/// Message of that error.
const MESSAGE: &str = "an operator ended the run with `errand runs repair --fail`; a retry continues from here, a fork copies \
    what can be read";

/// Result of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The run's new status.
    pub status: Status,
    /// The reason that the run waits now, as in `waiting_on.kind`. `None` if it has ended.
    pub waits_for: Option<WaitReason>,
    /// Whether a working driver was told to stop.
    pub was_taken_away: bool,
    /// Whether anything was changed. `false` if the run had already ended.
    pub is_changed: bool,
}

impl Store {
    /// Lets a run continue: rebuilds its row from its transcript, takes its claim away, repairs its requests, and
    /// queues it. A failed run is retried.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Refused` for a run that is completed or interrupted, or whose rows cannot be read.
    /// The message says what can be done instead.
    pub async fn repair_resume(&self, run: RunId, now: Timestamp) -> Result<Repaired> {
        let bell = self.bell().clone();
        self.write(move |tx| resume(tx, &bell, run, now)).await
    }

    /// Ends a run as failed, regardless of the state of its rows. A run that has ended is left unchanged.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn repair_fail(&self, run: RunId, now: Timestamp) -> Result<Repaired> {
        let bell = self.bell().clone();
        let failed = self.write(move |tx| fail(tx, &bell, run, now)).await;
        match failed {
            // Some of its rows cannot be read, so it is ended without reading them.
            Err(
                error @ (StoreError::Corrupt { .. } | StoreError::Refused(_) | StoreError::Sql(_)),
            ) => {
                tracing::warn!(run.id = %run, error = &error as &dyn std::error::Error, "a run cannot be read and is failed without reading it");
                self.write(move |tx| fail_unread(tx, run, now)).await?;
                Ok(Repaired {
                    status: Status::Failed,
                    waits_for: None,
                    was_taken_away: self.bell().is_driven(run),
                    is_changed: true,
                })
            }
            answer => answer,
        }
    }

    /// Starts a run from the transcript of another one, which is not changed.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Refused` if the run's row or the build cannot be read, or fewer entries than
    /// requested can be read.
    pub async fn fork_run(&self, fork: Fork) -> Result<Forked> {
        self.write(move |tx| fork::fork(tx, &fork)).await
    }
}

/// Fails a run whose rows cannot be read.
fn fail_unread(tx: &Tx<'_>, run: RunId, now: Timestamp) -> Result<()> {
    let follow_ups = quarantine::fail_unread(tx, run, &RunError::new(CODE, MESSAGE), now)?;
    execute(tx, follow_ups, now)
}

fn resume(tx: &Tx<'_>, bell: &Bell, run: RunId, now: Timestamp) -> Result<Repaired> {
    let unreadable = |error: StoreError| match error {
        StoreError::Corrupt { .. } => StoreError::Refused(format!(
            "the run cannot continue, because {error}; a fork continues with what can be read of it, and --fail ends it"
        )),
        other => other,
    };
    let mut change = Change::of_run(tx, run, now).map_err(unreadable)?;
    if let status @ (Status::Completed | Status::Interrupted) = change.row.status {
        return Err(StoreError::Refused(format!(
            "the run is {}, so there is nothing to repair; a message resumes it",
            status.as_str()
        )));
    }
    let entries = rows::whole(tx, run).map_err(unreadable)?;
    let ledger = Ledger::of(&entries);
    rows::count_again(&mut change, Some((&entries, &ledger)))?;
    let taken = take_away(&mut change, bell)?;
    losses::forget(tx, run)?;
    if change.row.status == Status::Failed {
        change.apply(Event::Retry)?;
        change.append(None, Body::Retried { by: None })?;
        // A trigger allows an ended run to change to pending only, so this is written first.
        change.write()?;
    }
    change.row.completed_at = None;
    change.row.error = None;
    rows::settle_requests(&change, &entries, ledger.request.as_ref())?;
    match ledger.request {
        Some(request) => wait_for(&mut change, &request)?,
        None => {
            change.row.request = None;
            if change.row.status == Status::Waiting {
                change.apply(Event::Answered)?;
            } else {
                change.queue()?;
            }
        }
    }
    let row = &mut change.row;
    if row.status != Status::Pending {
        row.started_at = row.started_at.or(Some(now));
    }
    let repaired = Repaired {
        status: row.status,
        waits_for: row.waiting_kind,
        was_taken_away: taken.is_some(),
        is_changed: true,
    };
    change.mark_updated();
    settle(change)?;
    tx.ring_fence(run);
    Ok(repaired)
}

/// Takes the run from its driver. Returns the claim if the driver is still working and was told to stop; releases the
/// sandbox if the driver is gone.
fn take_away(change: &mut Change<'_>, bell: &Bell) -> Result<Option<ClaimToken>> {
    let claim = change.row.claim;
    let driven = claim.filter(|_| bell.is_driven(change.row.id));
    match claim {
        Some(_) => {
            // A lost driver has certainly worked only until its last commit.
            if driven.is_none()
                && let Some(at) = change.row.claimed_at.take()
            {
                change.row.active_ms += change.row.updated_at.ms_since(at);
            }
            change.release();
        }
        // It was released, so nobody has worked since.
        None => {
            change.row.claimed_at = None;
            change.row.claim_boot = None;
            change.row.deadline = None;
        }
    }
    change.row.wake_at = None;
    if let Some(driver) = driven {
        change.keep_sandbox_for(driver)?;
    }
    if let Some(sandbox) = &change.row.sandbox {
        rows::free_of_the_gone(change.tx, bell, sandbox)?;
    }
    Ok(driven)
}

/// Makes the run wait for the request that its transcript leaves open, regardless of what its row says.
fn wait_for(change: &mut Change<'_>, request: &HumanRequest) -> Result<()> {
    let way: &[Event] = match change.row.status {
        Status::Pending => &[Event::Claimed, Event::StepDone, Event::Asked],
        Status::Starting => &[Event::StepDone, Event::Asked],
        Status::Running => &[Event::Asked],
        Status::Waiting | Status::Completed | Status::Failed | Status::Interrupted => &[],
    };
    for event in way {
        change.apply(*event)?;
    }
    change.row.wake_at = None;
    change.row.request = Some(request.id);
    change.waits_on(
        WaitReason::Human,
        Some(request.title.clone()),
        request.expires_at,
    );
    if request.expires_at.is_some() {
        change.tx.ring_work();
    }
    Ok(())
}

fn fail(tx: &Tx<'_>, bell: &Bell, run: RunId, now: Timestamp) -> Result<Repaired> {
    let mut change = Change::of_run(tx, run, now)?;
    if change.row.status.has_ended() {
        return Ok(Repaired {
            status: change.row.status,
            waits_for: None,
            was_taken_away: false,
            is_changed: false,
        });
    }
    let entries = match rows::whole(tx, run) {
        Err(StoreError::Corrupt { .. }) => None,
        entries => Some(entries?),
    };
    let ledger = entries.as_ref().map(Ledger::of);
    rows::count_again(&mut change, entries.as_deref().zip(ledger.as_ref()))?;
    let taken = take_away(&mut change, bell)?;
    let request = ledger.as_ref().and_then(|ledger| ledger.request.clone());
    match &entries {
        Some(entries) => rows::settle_requests(&change, entries, request.as_ref())?,
        None => quarantine::close_requests(tx, run, now)?,
    }
    change.row.request = None;
    match request {
        Some(request) => {
            change.close(&Closing {
                request: &request,
                resolution: &Resolution::Stopped,
                by: None,
            })?;
        }
        None => change.close_open_calls("an operator ended the run")?,
    }
    let error = RunError::new(CODE, MESSAGE);
    change.append(
        None,
        Body::Error {
            error: error.clone(),
            mark: None,
        },
    )?;
    change.apply(Event::Failed)?;
    change.end(Some(error))?;
    settle(change)?;
    tx.ring_fence(run);
    Ok(Repaired {
        status: Status::Failed,
        waits_for: None,
        was_taken_away: taken.is_some(),
        is_changed: true,
    })
}
