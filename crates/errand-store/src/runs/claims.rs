//! Operations of the engine on runs: find, claim, load, commit a step, release. Also deadlines and changes of the
//! clock.

use std::sync::Arc;

use errand_core::budget::Used;
use errand_core::config::BuildConfig;
use errand_core::human::Resolution;
use errand_core::id::{BootId, ClaimToken, RunId, SandboxId};
use errand_core::ledger::lapse_fails;
use errand_core::run::{Event, RunError, Status, WaitReason};
use errand_core::time::Timestamp;
use errand_core::transcript::{AttemptOutcome, Body, NewEntry};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::agents::builds::Builds;
use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, count};
use crate::error::{Result, StoreError};
use crate::model::{
    Claimed, Claims, Committed, DrivenRun, LateResults, ReadyRun, RunSlots, StepCommit, StepEnd,
    Usage,
};
use crate::runs::change::{Change, Closing};
use crate::runs::children::{self, Child};
use crate::runs::claim_order::Turns;
use crate::runs::expected_build::limited;
use crate::runs::lineage;
use crate::runs::losses;
use crate::runs::quarantine::quarantine_run;
use crate::runs::queries::entries_from;
use crate::runs::row::{COLUMNS, RunRow, read_row};
use crate::runs::settle::{execute, for_each, settle};
use crate::sandboxes::bytes;
use crate::stats::counters;

/// Maximum number of entries that a claim loads. The driver reads longer transcripts itself.
const LOADED_ENTRIES_MAX: u64 = 64;

/// Result of the recovery at a start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Runs whose driver is gone. They are queued again.
    pub runs: u64,
    /// Sandboxes that an ended run had not released.
    pub sandboxes: u64,
    /// Runs that were parked because they may have crashed the program repeatedly.
    pub parked: Vec<RunId>,
}

/// Result of waking a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeOutcome {
    /// It is queued for a driver.
    Queued,
    /// A driver already has it.
    AlreadyClaimed,
    /// It is not waiting for its model.
    NotWaiting,
}

impl Store {
    /// Recovers after a start. All earlier claims are dead, because this program holds the lock of the data
    /// directory.
    pub async fn recover(&self, now: Timestamp) -> Result<Recovered> {
        let boot = self.boot();
        self.write(move |tx| {
            let mut recovered = Recovered::default();
            losses::read(tx)?;
            let lost = ids(tx, "SELECT id FROM runs WHERE claim_token IS NOT NULL AND claim_boot IS NOT ?1", &Blob(boot.as_uuid()))?;
            recovered.runs = lost.len() as u64;
            for_each(tx, &lost, now, |run| {
                if driver_lost(tx, run, now)? {
                    recovered.parked.push(run);
                }
                Ok(())
            })?;
            // No driver of an earlier start is running any more.
            tx.execute(
                "UPDATE sandboxes INDEXED BY sandboxes_held SET leaving = NULL WHERE owner_run IS NOT NULL AND leaving IS NOT NULL",
                [],
            )?;
            let held = ids(
                tx,
                "SELECT r.id FROM sandboxes s INDEXED BY sandboxes_held JOIN runs r ON r.id = s.owner_run
                 WHERE s.owner_run IS NOT NULL AND r.status IN ('completed', 'failed', 'interrupted') AND ?1 IS NOT NULL",
                &Blob(boot.as_uuid()),
            )?;
            recovered.sandboxes = held.len() as u64;
            for_each(tx, &held, now, |run| {
                let mut change = Change::of_run(tx, run, now)?;
                change.release_sandbox()?;
                execute(tx, change.into_follow_ups(), now)
            })?;
            let waiting = ids(
                tx,
                "SELECT id FROM runs INDEXED BY runs_by_sandbox
                 WHERE sandbox_id IS NOT NULL AND status NOT IN ('completed', 'failed', 'interrupted')
                     AND waiting_kind = 'sandbox' AND ?1 IS NOT NULL ORDER BY updated_at",
                &Blob(boot.as_uuid()),
            )?;
            for_each(tx, &waiting, now, |run| {
                let mut change = Change::of_run(tx, run, now)?;
                change.queue()?;
                settle(change).map(drop)
            })?;
            Ok(recovered)
        })
        .await
    }

    /// Adjusts what is already queued after the clock was set back. Otherwise it would wait until the old time is
    /// reached again.
    pub async fn clock_was_set_back(&self, now: Timestamp) -> Result<()> {
        self.write(move |tx| {
            tx.execute(
                "UPDATE runs SET wake_at = ?1 WHERE claim_token IS NULL AND wake_at > ?1 AND waiting_kind = 'place'",
                params![Ms(now)],
            )?;
            tx.execute(
                "UPDATE deliveries SET due_at = ?1 WHERE state = 'pending' AND due_at > ?1 AND attempts = 0",
                params![Ms(now)],
            )?;
            Ok(())
        })
        .await
    }

    /// Extends the deadlines of the runs that were claimed at `since` by `ms`, after the program was stopped, the
    /// machine slept, or the clock was set forward for that long.
    pub async fn time_was_missed(&self, since: Timestamp, ms: u64) -> Result<()> {
        let boot = self.boot();
        self.write(move |tx| {
            tx.execute(
                "UPDATE runs SET deadline_at = deadline_at + ?3, claimed_at = claimed_at + ?3
                 WHERE claim_token IS NOT NULL AND claim_boot = ?1 AND claimed_at <= ?2",
                params![
                    Blob(boot.as_uuid()),
                    Ms(since),
                    i64::try_from(ms).unwrap_or(0)
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// The next deadline: a timer, the expiry of a request, or the end of a run's active time or of its step. A
    /// deadline that has passed counts as `now`.
    pub async fn next_moment(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        self.peek(move |conn| next_moment(conn, now)).await
    }

    /// Claims queued runs for drivers of this program: at most one per token, distributed as `slots` allows (`None`:
    /// no limit), and in order for each principal.
    ///
    /// The result contains everything that the drivers need to begin, and the next deadline, so that the engine needs
    /// no further queries. `step_deadline` is the deadline of the first step.
    pub async fn claim(
        &self,
        tokens: Vec<ClaimToken>,
        slots: Option<RunSlots>,
        step_deadline: Timestamp,
        now: Timestamp,
    ) -> Result<Claims> {
        let boot = self.boot();
        let slots = slots.unwrap_or_else(|| RunSlots::new(usize::MAX));
        self.write(move |tx| {
            let mut turns = Turns::read(tx, now, tokens.len(), slots.clone())?;
            let ready = turns.take(tx, now, tokens.len())?;
            let is_full = ready.len() == tokens.len();
            let mut claims = Claims {
                all: !is_full && turns.is_empty(),
                held_back: !is_full && !turns.is_empty(),
                ..Claims::default()
            };
            for (ready, token) in ready.into_iter().zip(&tokens) {
                if tx.losses().suspects(ready.run) {
                    claims.suspects.push(ready);
                    continue;
                }
                let run = ready.run;
                let claimed = claim_run(tx, ready, (*token, boot), step_deadline, now);
                claims
                    .runs
                    .extend(quarantine_unreadable(tx, run, claimed, now)?);
            }
            claims.moment = next_moment(tx, now)?;
            Ok(claims)
        })
        .await
    }

    /// Claims a suspect run. No other run may be driven at the same time. Returns `None` if it is not queued any
    /// more.
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
            let claimed = claim_run(tx, ready, token, step_deadline, now);
            quarantine_unreadable(tx, ready.run, claimed, now)
        })
        .await
    }

    /// Claims a single run, regardless of the queue.
    #[cfg(test)]
    pub(crate) async fn claim_one(
        &self,
        ready: ReadyRun,
        token: ClaimToken,
        now: Timestamp,
    ) -> Result<Option<Claimed>> {
        let boot = self.boot();
        let step_deadline = now.plus_ms(3_600_000);
        self.write(move |tx| claim_run(tx, ready, (token, boot), step_deadline, now))
            .await
    }

    /// Loads a claimed run completely.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the claim is not held any more.
    pub async fn driven_run(&self, run: RunId, claim: ClaimToken) -> Result<DrivenRun> {
        let builds = self.builds();
        self.read(move |conn| {
            let row = conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM runs WHERE id = ?1 AND claim_token = ?2"
                ))?
                .query_row(
                    params![Blob(run.as_uuid()), Blob(claim.as_uuid())],
                    read_row,
                )
                .optional()?
                .ok_or(StoreError::Fenced)??;
            load(conn, &builds, &row)
        })
        .await
    }

    /// Commits a step in one transaction: messages, status, events, deliveries, human request and usage.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the claim is not held any more, or if this is not the next step. Nothing was written
    /// then, and the driver must stop.
    pub async fn commit_step(&self, step: StepCommit) -> Result<Committed> {
        self.write(move |tx| commit(tx, &step)).await
    }

    /// Fails a run whose driver cannot continue, because its setup cannot be read or the driver itself failed.
    ///
    /// # Errors
    /// If the store fails. A claim that is not held any more is not an error.
    pub async fn fail_claimed(
        &self,
        run: RunId,
        claim: ClaimToken,
        error: RunError,
        now: Timestamp,
    ) -> Result<()> {
        self.write(
            move |tx| match Change::of_run(tx, run, now)?.held_by(claim) {
                Ok(mut change) => {
                    change.fail("the run failed", error.clone())?;
                    settle(change).map(drop)
                }
                Err(StoreError::Fenced) => Ok(()),
                Err(error) => Err(error),
            },
        )
        .await
    }

    /// Records that a driver has left a run that was taken from it, so that the sandbox can be handed over. The
    /// outcomes of calls that it had begun are appended. Repeating this is harmless, except that the outcomes are
    /// appended again.
    pub async fn release_late(
        &self,
        run: RunId,
        claim: ClaimToken,
        left: impl Into<LateResults>,
        now: Timestamp,
    ) -> Result<()> {
        let left = left.into();
        self.write(move |tx| {
            let mut change = Change::of_run(tx, run, now)?;
            for (call_id, outcome) in left.outcomes.clone() {
                change.append(None, Body::Late { call_id, outcome })?;
            }
            for call in &left.model_calls {
                let note = Body::ModelAttempt {
                    call: call.clone(),
                    outcome: AttemptOutcome::Canceled,
                    error: String::new(),
                };
                count_usage(&mut change, &Usage::of_call(call, false));
                counters::record(tx, &change.row, [&note], now)?;
                change.append(None, note)?;
            }
            let is_more = !left.outcomes.is_empty() || !left.model_calls.is_empty();
            if change.released_by(claim)? || is_more {
                settle(change)?;
            }
            Ok(())
        })
        .await
    }

    /// Resolves the requests that have expired and returns their number.
    pub async fn lapse_requests(&self, now: Timestamp) -> Result<u64> {
        self.write(move |tx| {
            let lapsed = ids(
                tx,
                "SELECT run_id FROM human_requests WHERE closed_at IS NULL AND expires_at IS NOT NULL AND expires_at <= ?1 LIMIT 256",
                &Ms(now),
            )?;
            for_each(tx, &lapsed, now, |run| lapse(tx, run, now))?;
            Ok(lapsed.len() as u64)
        })
        .await
    }
}

impl Store {
    /// Queues a run that waits until its model can be asked again.
    pub async fn wake_for_model(&self, run: RunId, now: Timestamp) -> Result<WakeOutcome> {
        self.write(move |tx| {
            let mut change = match Change::of_run(tx, run, now) {
                Err(StoreError::NotFound) => return Ok(WakeOutcome::NotWaiting),
                change => change?,
            };
            if change.row.claim.is_some() {
                return Ok(WakeOutcome::AlreadyClaimed);
            }
            let waits = change.row.waiting_kind == Some(WaitReason::Retry);
            if !waits || change.row.wake_at.is_none() || change.row.status != Status::Running {
                return Ok(WakeOutcome::NotWaiting);
            }
            change.row.wake_at = Some(now);
            settle(change)?;
            tx.ring_work();
            Ok(WakeOutcome::Queued)
        })
        .await
    }

    /// Describes what is due or in progress, or returns `None` if everything waits for the clock, a person or a
    /// message.
    pub async fn busy(&self, now: Timestamp) -> Result<Option<String>> {
        self.read(move |conn| {
            let mut open = Vec::new();
            for (what, sql) in [
                ("runs are driven", "SELECT count(*) FROM runs WHERE claim_token IS NOT NULL AND ?1 IS NOT NULL"),
                ("runs want a driver", "SELECT count(*) FROM runs WHERE claim_token IS NULL AND wake_at <= ?1"),
                ("requests have lapsed", "SELECT count(*) FROM human_requests WHERE closed_at IS NULL AND expires_at <= ?1"),
                ("deliveries are due", "SELECT count(*) FROM deliveries WHERE state = 'pending' AND due_at <= ?1"),
                ("sandboxes are being left", "SELECT count(*) FROM sandboxes WHERE leaving IS NOT NULL AND ?1 IS NOT NULL"),
            ] {
                let count: i64 = conn.prepare_cached(sql)?.query_row(params![Ms(now)], |row| row.get(0))?;
                if count > 0 {
                    open.push(format!("{count} {what}"));
                }
            }
            Ok((!open.is_empty()).then(|| open.join(", ")))
        })
        .await
    }
}

pub(crate) fn ids(
    conn: &Connection,
    sql: &str,
    parameter: &dyn rusqlite::ToSql,
) -> Result<Vec<RunId>> {
    let found = conn
        .prepare_cached(sql)?
        .query_map([parameter], |row| row.get::<_, Blob>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(found
        .into_iter()
        .map(|id| RunId::from_stored(id.0))
        .collect())
}

/// The earliest deadline.
fn next_moment(conn: &Connection, now: Timestamp) -> Result<Option<Timestamp>> {
    let least = |sql: &str, after: Option<Timestamp>| -> Result<Option<Timestamp>> {
        let mut statement = conn.prepare_cached(sql)?;
        let read = |row: &rusqlite::Row<'_>| row.get::<_, Option<Ms>>(0);
        let found = match after {
            Some(after) => statement.query_row(params![Ms(after)], read)?,
            None => statement.query_row([], read)?,
        };
        Ok(found.map(|ms| ms.0))
    };
    // Runs that are already due wait for a slot, not for the clock.
    let timer = least(
        "SELECT min(wake_at) FROM runs WHERE wake_at IS NOT NULL AND claim_token IS NULL AND wake_at > ?1",
        Some(now),
    )?;
    let lapse = least(
        "SELECT min(expires_at) FROM human_requests WHERE closed_at IS NULL AND expires_at IS NOT NULL",
        None,
    )?;
    let limit = least(
        "SELECT min(deadline_at) FROM runs WHERE claim_token IS NOT NULL",
        None,
    )?;
    Ok([timer, lapse, limit].into_iter().flatten().min())
}

/// Claims a queued run for a driver. Returns `None` if it is already claimed or no longer queued.
pub(crate) fn claim_run(
    tx: &Tx<'_>,
    ready: ReadyRun,
    (token, boot): (ClaimToken, BootId),
    step_deadline: Timestamp,
    now: Timestamp,
) -> Result<Option<Claimed>> {
    let mut change = Change::of_run(tx, ready.run, now)?;
    if change.row.claim.is_some() || change.row.wake_at.is_none_or(|at| at > now) {
        return Ok(None);
    }
    change.apply(Event::Claimed)?;
    let row = &mut change.row;
    row.claim = Some(token);
    row.claim_boot = Some(boot);
    row.claimed_at = Some(now);
    row.started_at = row.started_at.or(Some(now));
    row.wake_at = None;
    row.step_ends_by(step_deadline);
    let kind = if row.status == Status::Starting {
        WaitReason::Start
    } else {
        WaitReason::Model
    };
    let deadline = row.deadline;
    change.waits_on(kind, None, deadline);
    // Drivers read long transcripts themselves. Here, on the writer's thread, that would delay all commits.
    let run = if change.row.position <= LOADED_ENTRIES_MAX {
        Some(load(tx, tx.builds(), &change.row)?)
    } else {
        None
    };
    settle(change)?;
    Ok(Some(Claimed {
        ready,
        claim: token,
        revocation: tx.revocation_listener(ready.run),
        run,
    }))
}

/// Handles the loss of a driver: queues the run again, or parks it. Returns `true` if it was parked.
fn driver_lost(tx: &Tx<'_>, run: RunId, now: Timestamp) -> Result<bool> {
    let mut change = Change::of_run(tx, run, now)?;
    change.apply(Event::DriverLost)?;
    if let Some(error) = losses::count(tx, run)? {
        change.fail("the run is parked", error)?;
        settle(change)?;
        return Ok(true);
    }
    settle(change)?;
    Ok(false)
}

fn load(conn: &Connection, builds: &Builds, row: &RunRow) -> Result<DrivenRun> {
    let sandbox_bytes = match &row.sandbox {
        None => Some(0),
        Some(id) => usable(conn, id, row.id)?,
    };
    let entries = if row.position == 0 {
        Vec::new()
    } else {
        entries_from(conn, row.id, 0)?
    };
    let build = builds.get(conn, row.build)?.map(|build| {
        let build = match entries.first().map(|entry| &entry.body) {
            Some(Body::Caller { left, .. }) => limited(build, *left),
            _ => build,
        };
        if row.human_in_the_loop || !build.human_in_the_loop {
            return build;
        }
        // The run that waits for this one must not ask people, so this one must not either.
        Arc::new(BuildConfig {
            human_in_the_loop: false,
            ..BuildConfig::clone(&build)
        })
    });
    // Only a build that can start assignments can have child runs.
    let starts = (build.as_ref()).is_ok_and(|build| build.tools.contains_key("run_assignment"));
    let below = if starts {
        lineage::used_below(conn, row.id)?
    } else {
        Used::default()
    };
    Ok(DrivenRun {
        id: row.id,
        team: row.team,
        build,
        step: row.step,
        sandbox: row.sandbox.clone(),
        sandbox_bytes,
        steps: row.steps,
        tokens: row.input_tokens + row.output_tokens,
        cost_usd: row.cost_usd,
        below,
        entries,
    })
}

/// The bytes that a sandbox has on record which the run holds. One whose run has not ended does not expire; one that
/// expired before a resume was not taken: there is none then.
fn usable(conn: &Connection, sandbox: &SandboxId, run: RunId) -> Result<Option<u64>> {
    let found = conn
        .prepare_cached(
            "SELECT owner_run, bytes FROM sandboxes WHERE id = ?1 AND deleted_at IS NULL",
        )?
        .query_row(params![sandbox.as_str()], |row| {
            Ok((row.get::<_, Option<Blob>>(0)?, row.get::<_, i64>(1)?))
        })
        .optional()?;
    Ok(match found {
        Some((Some(owner), bytes)) if owner.0 == run.as_uuid() => Some(count(bytes)),
        Some(_) | None => None,
    })
}

fn commit(tx: &Tx<'_>, step: &StepCommit) -> Result<Committed> {
    let mut change = Change::of_run(tx, step.run, step.now)?.held_by(step.claim)?;
    if step.step != change.row.step + 1 {
        return Err(StoreError::Fenced);
    }
    losses::step_done(tx, step.run)?;
    let outside = change.row.position > step.known;
    change.row.step = step.step;
    change.row.step_ends_by(step.step_deadline);
    change.apply(Event::StepDone)?;
    if let Some(sandbox) = &step.sandbox {
        take_new_sandbox(tx, &mut change, sandbox, step.now)?;
    }
    if let (Some(sandbox), Some(bytes)) = (&change.row.sandbox, step.sandbox_bytes) {
        bytes::record(tx, sandbox, bytes)?;
    }
    if step.turn {
        change.row.turn = change.row.position + 1;
    }
    for NewEntry { id, body } in &step.entries {
        change.append(Some(*id), body.clone())?;
    }
    count_usage(&mut change, &step.usage);
    counters::record(
        tx,
        &change.row,
        step.entries.iter().map(|entry| &entry.body),
        step.now,
    )?;
    let goes_on = end_step(&mut change, step)?;
    let appended = settle(change)?;
    let entries = if outside {
        entries_from(tx, step.run, step.known + 1)?
    } else {
        appended
    };
    Ok(Committed { entries, goes_on })
}

fn count_usage(change: &mut Change<'_>, used: &Usage) {
    let row = &mut change.row;
    row.steps += used.model_calls + used.tool_calls;
    row.model_calls += used.model_calls;
    row.tool_calls += used.tool_calls;
    row.input_tokens += used.input_tokens;
    row.cached_tokens += used.cached_tokens;
    row.output_tokens += used.output_tokens;
    row.cost_usd += used.cost_usd;
    row.unpriced_tokens += used.unpriced_tokens;
    row.estimated_tokens += used.estimated_tokens;
    row.model_ms += used.model_ms;
}

/// Applies the end of a step to the run. Returns `true` if the run continues under the same claim.
fn end_step(change: &mut Change<'_>, step: &StepCommit) -> Result<bool> {
    match &step.end {
        StepEnd::Go { doing, who } => {
            let deadline = change.row.deadline;
            change.waits_on(*doing, who.clone(), deadline);
            Ok(true)
        }
        StepEnd::Ask(request) => {
            change.apply(Event::Asked)?;
            change.ask(request)?;
            Ok(false)
        }
        StepEnd::Child(new) => match children::start(change.tx, &change.row, new, step.now)? {
            Child::Waits(child) => {
                change.release();
                change.row.wake_at = None;
                change.waits_on(WaitReason::ChildRun, Some(child.to_string()), None);
                change.mark_updated();
                Ok(false)
            }
            Child::Gives(source, outcome) => {
                if let Some(source) = source {
                    change.append(None, *source)?;
                }
                change.append(
                    None,
                    Body::ToolResult {
                        call_id: new.call_id.clone(),
                        name: "run_assignment".to_owned(),
                        outcome,
                    },
                )?;
                let deadline = change.row.deadline;
                change.waits_on(WaitReason::Tool, None, deadline);
                Ok(true)
            }
        },
        StepEnd::Sleep(until) => {
            change.release();
            change.row.wake_at = Some(*until);
            change.waits_on(WaitReason::Timer, None, Some(*until));
            change.mark_updated();
            change.tx.ring_work();
            Ok(false)
        }
        StepEnd::Retry { until, who } => {
            change.release();
            change.row.wake_at = Some(*until);
            change.waits_on(WaitReason::Retry, Some(who.clone()), Some(*until));
            change.mark_updated();
            change.tx.ring_work();
            Ok(false)
        }
        // A message arrived during the last model call. The run continues, and what would have ended it is an
        // ordinary answer.
        StepEnd::Complete { read_to } if change.row.newest_user > *read_to => {
            let deadline = change.row.deadline;
            change.waits_on(WaitReason::Model, None, deadline);
            Ok(true)
        }
        StepEnd::Complete { .. } => {
            change.apply(Event::Completed)?;
            change.end(None)?;
            Ok(false)
        }
        StepEnd::Fail(error) => {
            change.apply(Event::Failed)?;
            change.end(Some(error.clone()))?;
            Ok(false)
        }
        StepEnd::Release => {
            change.release();
            change.row.wake_at = Some(step.now);
            change.waits_on(WaitReason::Slot, None, None);
            change.tx.ring_work();
            Ok(false)
        }
    }
}

fn take_new_sandbox(
    tx: &Tx<'_>,
    change: &mut Change<'_>,
    sandbox: &SandboxId,
    now: Timestamp,
) -> Result<()> {
    if change.row.sandbox.is_some() {
        return Ok(());
    }
    tx.prepare_cached("INSERT INTO sandboxes (id, team_id, created_at, expires_at, owner_run) VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        sandbox.as_str(),
        Blob(change.row.team.as_uuid()),
        Ms(now),
        Ms(now.plus_ms(change.row.sandbox_ttl_ms)),
        Blob(change.row.id.as_uuid())
    ])?;
    change.row.sandbox = Some(sandbox.clone());
    change.mark_updated();
    Ok(())
}

/// Quarantines a run whose rows cannot be read, instead of giving it to a driver.
pub(crate) fn quarantine_unreadable(
    tx: &Tx<'_>,
    run: RunId,
    claimed: Result<Option<Claimed>>,
    now: Timestamp,
) -> Result<Option<Claimed>> {
    match claimed {
        Err(StoreError::NotFound) => Ok(None),
        Err(error @ (StoreError::Corrupt { .. } | StoreError::Refused(_))) => {
            let follow_ups = quarantine_run(tx, run, &error, now)?;
            execute(tx, follow_ups, now)?;
            Ok(None)
        }
        claimed => claimed,
    }
}

fn lapse(tx: &Tx<'_>, run: RunId, now: Timestamp) -> Result<()> {
    let mut change = Change::of_run(tx, run, now)?;
    let Some(request) = change.pending()? else {
        return Ok(());
    };
    let resolution = Resolution::Expired {
        on_expire: request.on_expire,
    };
    let closing = Closing {
        request: &request,
        resolution: &resolution,
        by: None,
    };
    if lapse_fails(&request) {
        let error = RunError::new(
            "request_expired",
            format!("nobody answered the request {:?} in time", request.title),
        );
        change.apply_closing(Event::Failed, Some(closing))?;
        change.close_open_calls("the request expired")?;
        change.append(
            None,
            Body::Error {
                error: error.clone(),
                mark: None,
            },
        )?;
        change.end(Some(error))?;
    } else {
        change.apply_closing(Event::Answered, Some(closing))?;
    }
    settle(change).map(drop)
}
