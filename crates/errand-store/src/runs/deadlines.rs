//! Enforces deadlines of claimed runs, independently of what their drivers do.
//!
//! If a run's *active time* is used up, the run asks a person whether to continue, if people can be asked; an
//! approval grants the same time again. Otherwise, and if a single *step* takes too long, the run fails. In each
//! case, the driver is fenced: open calls get a result (calls in progress get an unknown outcome, and a late outcome
//! is kept), and nobody uses the sandbox until the driver has left it.

use errand_core::budget;
use errand_core::human::HumanRequest;
use errand_core::id::{HumanRequestId, RunId};
use errand_core::run::{Event, RunError, WaitReason};
use errand_core::time::Timestamp;
use errand_core::transcript::Body;

use crate::db::sqlite::{Store, Tx};
use crate::db::types::Ms;
use crate::error::Result;
use crate::runs::change::Change;
use crate::runs::claims::ids;
use crate::runs::settle::{for_each, settle};

/// Reason given to the calls that are open when the active time ends.
const TIME_OVER: &str = "the run's working time is over";

impl Store {
    /// Takes runs from their drivers if their active time is used up (they ask a person, or fail with
    /// `limit_exceeded`), or if their step takes too long (they fail with `step_timeout`). Returns their number.
    /// `step_seconds_max` only appears in the error message.
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
    if change.row.active_time_ends().is_none_or(|end| end <= now) {
        time_over(&mut change)?;
    } else {
        let error = step_timeout(&change, step_seconds_max);
        change.fail("the step took too long", error)?;
    }
    settle(change).map(drop)
}

fn time_over(change: &mut Change<'_>) -> Result<()> {
    let seconds = change.row.limit_ms / 1000;
    let build = change.tx.builds().get(change.tx, change.row.build)?;
    // A build that cannot be read does not ask anybody.
    if build.is_ok_and(|build| build.human_in_the_loop) {
        return ask(change, seconds);
    }
    let message = format!(
        "the run worked for longer than its limit of {seconds} s; a retry gives it that time again, a new run of a build with a higher limits.seconds more"
    );
    change.fail(TIME_OVER, RunError::new("limit_exceeded", message))
}

/// Asks a person whether the run may continue. No call is open in the meantime.
fn ask(change: &mut Change<'_>, seconds: u64) -> Result<()> {
    change.close_open_calls(TIME_OVER)?;
    // The run may still be in its first step, and only a running run can ask.
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
    change.ask(&request)
}

fn step_timeout(change: &Change<'_>, step_seconds_max: u32) -> RunError {
    let row = &change.row;
    // The last committed step says what is in progress. Calls that only read follow a model's turn without a commit.
    let under_way = match (row.waiting_kind, &row.waiting_who) {
        (Some(WaitReason::Tool), Some(tool)) => format!("the tool {tool}"),
        (Some(WaitReason::Tool), None) => {
            "the opening of the run's sandbox, or a call that only reads".to_owned()
        }
        _ => "the model's turn (the model, or a call of that turn that only reads)".to_owned(),
    };
    let message = format!(
        "a step took longer than the {step_seconds_max} s that engine.step_seconds_max allows; under way was {under_way}; a retry goes on from this step"
    );
    RunError::new("step_timeout", message)
}
