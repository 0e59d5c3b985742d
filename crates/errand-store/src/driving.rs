//! What the engine does to a run: find, claim, load, commit a step, let go; and what happens by the clock.

use errand_core::human::Resolution;
use errand_core::id::{ClaimToken, RunId, SandboxId, TeamId};
use errand_core::ledger::lapse_fails;
use errand_core::run::{Event, RunError, Status};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, NewEntry, Outcome};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::change::Change;
use crate::error::{Result, StoreError};
use crate::model::{Committed, DrivenRun, ReadyRun, StepCommit, StepEnd};
use crate::rows::{Blob, Ms, json};
use crate::runs::{COLUMNS, entries_from, read_row};
use crate::sqlite::{Store, Tx};

/// What a start found and set right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Runs whose driver was gone; they go on.
    pub runs: u64,
    /// Sandboxes that a run had not given back.
    pub sandboxes: u64,
}

impl Store {
    /// After a start: whoever held a claim before is gone, since this program holds the directory's lock.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn recover(&self, now: Timestamp) -> Result<Recovered> {
        let boot = self.boot();
        self.write(move |tx| {
            let mut recovered = Recovered::default();
            let lost = ids(tx, "SELECT id FROM runs WHERE claim_token IS NOT NULL AND claim_boot IS NOT ?1", &Blob(boot.as_uuid()))?;
            for run in lost {
                lose(tx, run, now)?;
                recovered.runs += 1;
            }
            let held = ids(
                tx,
                "SELECT r.id FROM sandboxes s JOIN runs r ON r.id = s.owner_run WHERE r.status IN ('completed', 'failed', 'interrupted') AND ?1 IS NOT NULL",
                &Blob(boot.as_uuid()),
            )?;
            for run in held {
                let mut change = Change::of_run(tx, run, now)?;
                change.free_sandbox()?;
                recovered.sandboxes += 1;
            }
            Ok(recovered)
        })
        .await
    }

    /// Up to `limit` runs that want a driver now, taken in turn from each team (beginning after `last`), each team's in
    /// order.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn ready_runs(
        &self,
        now: Timestamp,
        limit: u32,
        last: Option<TeamId>,
    ) -> Result<Vec<ReadyRun>> {
        self.read(move |conn| ready(conn, now, limit, last)).await
    }

    /// The next moment at which something happens by the clock: a timer, a lapsing request, the end of a run's working
    /// time. Moments that have come count as `now`.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn next_moment(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        self.read(move |conn| {
            let least = |sql: &str, after: Option<Timestamp>| -> Result<Option<Timestamp>> {
                let mut statement = conn.prepare_cached(sql)?;
                let read = |row: &rusqlite::Row<'_>| row.get::<_, Option<Ms>>(0);
                let found = match after {
                    Some(after) => statement.query_row(params![Ms(after)], read)?,
                    None => statement.query_row([], read)?,
                };
                Ok(found.map(|ms| ms.0))
            };
            // Runs that are due already wait for a place, not for the clock.
            let timer = least("SELECT min(wake_at) FROM runs WHERE wake_at IS NOT NULL AND claim_token IS NULL AND wake_at > ?1", Some(now))?;
            let lapse = least("SELECT min(expires_at) FROM human_requests WHERE closed_at IS NULL AND expires_at IS NOT NULL", None)?;
            let limit = least("SELECT min(deadline_at) FROM runs WHERE claim_token IS NOT NULL", None)?;
            Ok([timer, lapse, limit].into_iter().flatten().min())
        })
        .await
    }

    /// Takes runs for drivers of this program. Those that somebody else took, or that no longer want a driver, are left
    /// out of the answer.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn claim(
        &self,
        wanted: Vec<(ReadyRun, ClaimToken)>,
        now: Timestamp,
    ) -> Result<Vec<(ReadyRun, ClaimToken)>> {
        let boot = self.boot();
        self.write(move |tx| {
            let mut claimed = Vec::with_capacity(wanted.len());
            for (ready, token) in &wanted {
                let mut change = match Change::of_run(tx, ready.run, now) {
                    Ok(change) => change,
                    Err(StoreError::NotFound) => continue,
                    Err(error) => return Err(error),
                };
                let wants =
                    change.row.claim.is_none() && change.row.wake_at.is_some_and(|at| at <= now);
                if !wants || change.apply(Event::Claimed).is_err() {
                    continue;
                }
                let row = &mut change.row;
                row.claim = Some(*token);
                row.claim_boot = Some(boot);
                row.claimed_at = Some(now);
                row.started_at = row.started_at.or(Some(now));
                row.wake_at = None;
                row.deadline = Some(now.plus_ms(row.limit_ms.saturating_sub(row.worked_ms)));
                let (kind, deadline) = (
                    if row.status == Status::Starting {
                        "start"
                    } else {
                        "model"
                    },
                    row.deadline,
                );
                change.waits_on(kind, None, deadline);
                change.finish()?;
                claimed.push((*ready, *token));
            }
            Ok(claimed)
        })
        .await
    }

    /// A claimed run, whole.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where the claim is not held any more.
    pub async fn driven_run(&self, run: RunId, claim: ClaimToken) -> Result<DrivenRun> {
        self.read(move |conn| load(conn, run, claim)).await
    }

    /// Commits a step: messages, status, events, deliveries, human request and usage, in one transaction.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where the claim is not held any more, or the step is not the next one: nothing was
    /// written; stop, the run is not yours.
    pub async fn commit_step(&self, step: StepCommit) -> Result<Committed> {
        self.write(move |tx| commit(tx, &step)).await
    }

    /// Fails a run whose driver cannot go on: its setup cannot be read, or the driver itself failed.
    ///
    /// # Errors
    /// Of the store only; a claim that is not held any more is no error.
    pub async fn fail_claimed(
        &self,
        run: RunId,
        claim: ClaimToken,
        error: RunError,
        now: Timestamp,
    ) -> Result<()> {
        self.write(
            move |tx| match Change::of_run(tx, run, now)?.held_by(claim) {
                Ok(change) => fail(change, "the run failed", error.clone(), false),
                Err(StoreError::Fenced) => Ok(()),
                Err(error) => Err(error),
            },
        )
        .await
    }

    /// A driver that was fenced is done with the run's sandbox: whoever waits for it may begin. What became of a call
    /// that it had begun is kept.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn leave(
        &self,
        run: RunId,
        late: Option<(String, Outcome)>,
        now: Timestamp,
    ) -> Result<()> {
        self.write(move |tx| {
            let mut change = Change::of_run(tx, run, now)?;
            if let Some((call_id, outcome)) = &late {
                change.append(
                    None,
                    Body::Late {
                        call_id: call_id.clone(),
                        outcome: outcome.clone(),
                    },
                )?;
            }
            if change.row.status.has_ended() {
                change.free_sandbox()?;
            }
            change.finish().map(drop)
        })
        .await
    }

    /// Resolves the requests that have lapsed. Returns how many.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn lapse_requests(&self, now: Timestamp) -> Result<u64> {
        self.write(move |tx| {
            let lapsed = ids(
                tx,
                "SELECT run_id FROM human_requests WHERE closed_at IS NULL AND expires_at IS NOT NULL AND expires_at <= ?1 LIMIT 256",
                &Ms(now),
            )?;
            for run in &lapsed {
                lapse(tx, *run, now)?;
            }
            Ok(lapsed.len() as u64)
        })
        .await
    }

    /// Fails the runs whose working time is over. Returns how many.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn fail_overdue(&self, now: Timestamp) -> Result<u64> {
        self.write(move |tx| {
            let overdue = ids(tx, "SELECT id FROM runs WHERE claim_token IS NOT NULL AND deadline_at <= ?1 LIMIT 256", &Ms(now))?;
            for run in &overdue {
                let mut change = Change::of_run(tx, *run, now)?;
                let seconds = change.row.limit_ms / 1000;
                let error = RunError::new(
                    "limit_exceeded",
                    format!("the run worked for longer than its limit of {seconds} s; raise limits.seconds in the build, then retry"),
                );
                change.mark_updated();
                fail(change, "the run's working time is over", error, true)?;
                tx.ring_fence(*run);
            }
            Ok(overdue.len() as u64)
        })
        .await
    }
}

impl Store {
    /// What is due or under way now: a sentence, or none where everything waits for the clock, a person or a message.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn busy(&self, now: Timestamp) -> Result<Option<String>> {
        self.read(move |conn| {
            let open: (i64, i64, i64, i64) = conn
                .prepare_cached(
                    "SELECT (SELECT count(*) FROM runs WHERE claim_token IS NOT NULL),
                            (SELECT count(*) FROM runs WHERE claim_token IS NULL AND wake_at <= ?1),
                            (SELECT count(*) FROM human_requests WHERE closed_at IS NULL AND expires_at <= ?1),
                            (SELECT count(*) FROM deliveries WHERE state = 'pending' AND due_at <= ?1)",
                )?
                .query_row(params![Ms(now)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
            Ok((open != (0, 0, 0, 0)).then(|| {
                let (claimed, ready, lapsed, due) = open;
                format!("{claimed} runs are driven, {ready} want a driver, {lapsed} requests have lapsed, {due} deliveries are due")
            }))
        })
        .await
    }
}

fn ids(conn: &Connection, sql: &str, parameter: &dyn rusqlite::ToSql) -> Result<Vec<RunId>> {
    let found = conn
        .prepare_cached(sql)?
        .query_map([parameter], |row| row.get::<_, Blob>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(found
        .into_iter()
        .map(|id| RunId::from_stored(id.0))
        .collect())
}

fn lose(tx: &Tx<'_>, run: RunId, now: Timestamp) -> Result<()> {
    let mut change = Change::of_run(tx, run, now)?;
    change.apply(Event::DriverLost)?;
    // How long a driver worked that is gone is known up to its last step only.
    if let Some(at) = change.row.claimed_at.take() {
        change.row.worked_ms += change.row.updated_at.ms_since(at);
    }
    change.release();
    change.row.wake_at = Some(now);
    change.waits_on("place", None, None);
    change.finish()?;
    tx.ring_work();
    Ok(())
}

/// Fails a run: open calls closed, the error told, the end.
fn fail(mut change: Change<'_>, why: &str, error: RunError, driver_alive: bool) -> Result<()> {
    change.close_open_calls(why)?;
    change.append(
        None,
        Body::Error {
            error: error.clone(),
            mark: None,
        },
    )?;
    change.apply(Event::Failed)?;
    change.end(Some(error), driver_alive)?;
    change.finish().map(drop)
}

fn ready(
    conn: &Connection,
    now: Timestamp,
    limit: u32,
    last: Option<TeamId>,
) -> Result<Vec<ReadyRun>> {
    let mut teams: Vec<TeamId> = Vec::new();
    // A skip scan: one look-up for each team that has a run in line, not one for each run.
    let mut next_team = conn.prepare_cached(
        "SELECT team_id FROM runs INDEXED BY runs_ready
         WHERE wake_at IS NOT NULL AND claim_token IS NULL AND team_id > ?1 ORDER BY team_id LIMIT 1",
    )?;
    let mut from: Vec<u8> = Vec::new();
    while let Some(team) = next_team
        .query_row(params![from], |row| row.get::<_, Blob>(0))
        .optional()?
    {
        from = team.0.as_bytes().to_vec();
        teams.push(TeamId::from_stored(team.0));
    }
    let after = last.map_or(0, |last| teams.partition_point(|team| *team <= last));
    teams.rotate_left(after);
    let mut lines = Vec::with_capacity(teams.len());
    for team in teams {
        let line = conn
            .prepare_cached(
                "SELECT id FROM runs INDEXED BY runs_ready
                 WHERE team_id = ?1 AND wake_at <= ?2 AND wake_at IS NOT NULL AND claim_token IS NULL ORDER BY wake_at, id LIMIT ?3",
            )?
            .query_map(params![Blob(team.as_uuid()), Ms(now), limit], |row| row.get::<_, Blob>(0))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        lines.push((team, line.into_iter()));
    }
    let mut taken = Vec::new();
    loop {
        let before = taken.len();
        for (team, line) in &mut lines {
            if taken.len() < limit as usize
                && let Some(run) = line.next()
            {
                taken.push(ReadyRun {
                    team: *team,
                    run: RunId::from_stored(run.0),
                });
            }
        }
        if taken.len() == before {
            return Ok(taken);
        }
    }
}

fn load(conn: &Connection, run: RunId, claim: ClaimToken) -> Result<DrivenRun> {
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
    let config: String = conn
        .prepare_cached("SELECT config FROM builds WHERE id = ?1")?
        .query_row(params![Blob(row.build.as_uuid())], |row| row.get(0))?;
    let sandbox_usable = match &row.sandbox {
        None => true,
        Some(id) => usable(conn, id, run)?,
    };
    Ok(DrivenRun {
        id: row.id,
        team: row.team,
        config: json("builds", "config", &config)?,
        step: row.step,
        sandbox: row.sandbox,
        sandbox_usable,
        steps: row.steps,
        tokens: row.input_tokens + row.output_tokens,
        cost_usd: row.cost_usd,
        entries: entries_from(conn, run, 0)?,
    })
}

/// Whether the run holds its sandbox. One whose run has not ended does not expire; one that expired before a resume was
/// not taken.
fn usable(conn: &Connection, sandbox: &SandboxId, run: RunId) -> Result<bool> {
    let owner = conn
        .prepare_cached("SELECT owner_run FROM sandboxes WHERE id = ?1 AND deleted_at IS NULL")?
        .query_row(params![sandbox.as_str()], |row| {
            row.get::<_, Option<Blob>>(0)
        })
        .optional()?
        .flatten();
    Ok(owner.is_some_and(|owner| owner.0 == run.as_uuid()))
}

fn commit(tx: &Tx<'_>, step: &StepCommit) -> Result<Committed> {
    let mut change = Change::of_run(tx, step.run, step.now)?.held_by(step.claim)?;
    if step.step != change.row.step + 1 {
        return Err(StoreError::Fenced);
    }
    let outside = change.row.position > step.known;
    change.row.step = step.step;
    change.apply(Event::StepDone)?;
    if let Some(sandbox) = &step.sandbox {
        take_new_sandbox(tx, &mut change, sandbox, step.now)?;
    }
    if step.turn {
        change.row.turn = change.row.position + 1;
    }
    for NewEntry { id, body } in &step.entries {
        change.append(Some(*id), body.clone())?;
    }
    count_usage(&mut change, step);
    let goes_on = end_step(&mut change, step)?;
    let (_, appended) = change.finish()?;
    let entries = if outside {
        entries_from(tx, step.run, step.known + 1)?
    } else {
        appended
    };
    Ok(Committed { entries, goes_on })
}

fn count_usage(change: &mut Change<'_>, step: &StepCommit) {
    let row = &mut change.row;
    row.steps += step.usage.model_calls + step.usage.tool_calls;
    row.model_calls += step.usage.model_calls;
    row.tool_calls += step.usage.tool_calls;
    row.input_tokens += step.usage.input_tokens;
    row.cached_tokens += step.usage.cached_tokens;
    row.output_tokens += step.usage.output_tokens;
    row.cost_usd += step.usage.cost_usd;
}

/// Brings the run to where the step leads. True where it goes on under the same claim.
fn end_step(change: &mut Change<'_>, step: &StepCommit) -> Result<bool> {
    match &step.end {
        StepEnd::Go { doing, who } => {
            let deadline = change.row.deadline;
            change.waits_on(doing, who.clone(), deadline);
            Ok(true)
        }
        StepEnd::Ask(request) => {
            change.apply(Event::Asked)?;
            change.ask(request)?;
            change.release();
            Ok(false)
        }
        StepEnd::Sleep(until) => {
            change.release();
            change.row.wake_at = Some(*until);
            change.waits_on("timer", None, Some(*until));
            change.mark_updated();
            change.tx.ring_work();
            Ok(false)
        }
        // A message came while the last model call was under way: what would have ended the run is an ordinary answer.
        StepEnd::Complete { read_to } if change.row.newest_user > *read_to => {
            let deadline = change.row.deadline;
            change.waits_on("model", None, deadline);
            Ok(true)
        }
        StepEnd::Complete { .. } => {
            change.apply(Event::Completed)?;
            change.end(None, false)?;
            Ok(false)
        }
        StepEnd::Fail(error) => {
            change.apply(Event::Failed)?;
            change.end(Some(error.clone()), false)?;
            Ok(false)
        }
        StepEnd::Release => {
            change.release();
            change.row.wake_at = Some(step.now);
            change.waits_on("place", None, None);
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

fn lapse(tx: &Tx<'_>, run: RunId, now: Timestamp) -> Result<()> {
    let mut change = Change::of_run(tx, run, now)?;
    let Some(request) = change.pending()? else {
        return Ok(());
    };
    let resolution = Resolution::Expired {
        on_expire: request.on_expire,
    };
    if lapse_fails(&request) {
        let error = RunError::new(
            "request_expired",
            format!("nobody answered the request {:?} in time", request.title),
        );
        change.apply(Event::Failed)?;
        change.close(&request, &resolution, None)?;
        change.close_open_calls("the request expired")?;
        change.append(
            None,
            Body::Error {
                error: error.clone(),
                mark: None,
            },
        )?;
        change.end(Some(error), false)?;
    } else {
        change.apply(Event::Answered)?;
        change.close(&request, &resolution, None)?;
        change.queue()?;
    }
    change.finish().map(drop)
}
