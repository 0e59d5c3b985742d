//! What becomes of runs whose time is over: decided here, by the clock, whatever their drivers do.
//!
//! A run whose *working time* is over asks a person whether to go on, where people can be asked; an approval gives it as
//! much again. Otherwise, and where a single *step* takes too long, it fails. In each case its driver is fenced: calls that
//! are open get a result (begun ones an unknown outcome, kept when it comes late), and the sandbox is used by nobody until
//! the driver has left it.

use errand_core::budget;
use errand_core::human::HumanRequest;
use errand_core::id::{HumanRequestId, RunId};
use errand_core::run::{Event, RunError};
use errand_core::time::Timestamp;
use errand_core::transcript::Body;

use crate::db::sqlite::{Store, Tx};
use crate::db::types::Ms;
use crate::error::Result;
use crate::runs::change::Change;
use crate::runs::claims::{fail, ids};
use crate::runs::quarantine::for_each;

/// Why the calls are closed that were open then.
const TIME_OVER: &str = "the run's working time is over";

impl Store {
    /// Takes the runs from their drivers whose working time is over (they ask a person, or fail with `limit_exceeded`),
    /// or whose step takes longer than it may (they fail with `step_timeout`). `step_seconds_max` is named in the error
    /// alone. Returns how many.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn end_overdue(&self, step_seconds_max: u32, now: Timestamp) -> Result<u64> {
        self.write(move |tx| {
            let overdue = ids(
                tx,
                "SELECT id FROM runs WHERE claim_token IS NOT NULL AND deadline_at <= ?1 LIMIT 256",
                &Ms(now),
            )?;
            for_each(tx, &overdue, now, |run| {
                overrun(tx, run, step_seconds_max, now)
            })?;
            Ok(overdue.len() as u64)
        })
        .await
    }
}

fn overrun(tx: &Tx<'_>, run: RunId, step_seconds_max: u32, now: Timestamp) -> Result<()> {
    let mut change = Change::of_run(tx, run, now)?;
    change.mark_updated();
    if change.row.working_time_ends().is_none_or(|end| end <= now) {
        time_over(change)?;
    } else {
        let error = step_timeout(&change, step_seconds_max);
        let driver = change.row.claim;
        fail(change, "the step took too long", error, driver)?;
    }
    tx.ring_fence(run);
    Ok(())
}

fn time_over(change: Change<'_>) -> Result<()> {
    let seconds = change.row.limit_ms / 1000;
    let build = change.tx.builds().get(change.tx, change.row.build)?;
    // A build that cannot be read asks nobody.
    if build.is_ok_and(|build| build.human_in_the_loop) {
        return ask(change, seconds);
    }
    let message = format!(
        "the run worked for longer than its limit of {seconds} s; a retry gives it that time again, a new run of a build with a higher limits.seconds more"
    );
    let driver = change.row.claim;
    fail(
        change,
        TIME_OVER,
        RunError::new("limit_exceeded", message),
        driver,
    )
}

/// Asks whether the run may go on. Nothing is open meanwhile.
fn ask(mut change: Change<'_>, seconds: u64) -> Result<()> {
    let driver = change.row.claim;
    change.close_open_calls(TIME_OVER)?;
    // Its first step may be under way.
    change.apply(Event::StepDone)?;
    change.apply(Event::Asked)?;
    let id = HumanRequestId::derived(change.row.id, change.row.position + 1, change.now);
    let request = HumanRequest::new(id, budget::time_over(seconds), change.now);
    change.append(
        None,
        Body::HumanRequest {
            request: request.clone(),
            mark: None,
        },
    )?;
    change.ask(&request)?;
    change.release();
    change.row.wake_at = None;
    if let Some(driver) = driver {
        change.leave_sandbox_to(driver)?;
    }
    change.finish().map(drop)
}

fn step_timeout(change: &Change<'_>, step_seconds_max: u32) -> RunError {
    let row = &change.row;
    // What is under way is what the last committed step said. Calls that only read follow a model's turn without one.
    let under_way = match (row.waiting_kind.as_deref(), &row.waiting_who) {
        (Some("tool"), Some(tool)) => format!("the tool {tool}"),
        (Some("tool"), None) => {
            "the opening of the run's sandbox, or a call that only reads".to_owned()
        }
        _ => "the model's turn (the model, or a call of that turn that only reads)".to_owned(),
    };
    let message = format!(
        "a step took longer than the {step_seconds_max} s that engine.step_seconds_max allows; under way was {under_way}; a retry goes on from this step"
    );
    RunError::new("step_timeout", message)
}
