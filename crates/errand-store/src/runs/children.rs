//! Runs that other runs wait for: calls of `run_assignment`.
//!
//! Promised: a call starts one run, in the step that records that its caller waits for it; a caller waits without a
//! driver, and is in line again in the transaction that ends the run it waits for; who ends a caller ends what it waits
//! for with the same write. What the call gives is read from the ended run, by the caller's next driver: nothing has to be
//! delivered, and nothing can be delivered twice.
//!
//! Left out: which assignments a build may start (the caller's driver names them), and the tool itself (`errand-engine`).

use std::sync::Arc;

use errand_core::budget::Used;
use errand_core::config::{BuildConfig, Left};
use errand_core::content::Content;
use errand_core::effective::CallerPolicies;
use errand_core::human::HumanRequest;
use errand_core::id::{AgentId, BuildId, HumanRequestId, MessageId, RunId, TeamId, UserId};
use errand_core::ledger::Ledger;
use errand_core::limits::RUN_CHILDREN_DEFAULT;
use errand_core::run::Status;
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Outcome};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::json;

use crate::agents::live::live_build_of;
use crate::db::sqlite::Tx;
use crate::db::types::{Blob, count};
use crate::error::{Result, StoreError};
use crate::model::{Runnable, StartRun};
use crate::runs::change::Change;
use crate::runs::commands::{new_row, stop_as};
use crate::runs::quarantine::for_each;
use crate::runs::queries::{entries_from, view_of};
use crate::runs::row::{RunRow, row_of};

/// How deep runs may wait for each other.
const DEPTH_MAX: i64 = 3;

/// Most characters of the error of a run that its caller is given.
const ERROR_CHARS_MAX: usize = 2_000;

/// A run to start for a call.
#[derive(Clone, Debug)]
pub struct StartChild {
    /// The call.
    pub call_id: String,
    /// The id that the run will have, unless the call has started one already.
    pub id: RunId,
    /// The assignment: its id, or its name.
    pub assignment: String,
    /// The assignments that the caller's build may start.
    pub allowed: Vec<AgentId>,
    /// Its first message.
    pub message: Option<(MessageId, String)>,
    /// What came into the caller's run: whatever it says from then on may be that content's word.
    pub content: Content,
    /// The policies of the caller's tools.
    pub policies: CallerPolicies,
    /// What the caller has left of its limits.
    pub left: Left,
    /// Whether the build's model can be run here.
    pub runnable: Runnable,
    /// Whether people may be asked. Who waits for a run that waits for people asks them too.
    pub people: bool,
}

/// What became of it, for the caller's step.
pub(crate) enum Child {
    /// The caller waits for this run.
    Waits(RunId),
    /// The call has its result: where that comes from, and itself.
    Gives(Option<Box<Body>>, Outcome),
}

/// Starts the run of a call, or finds the one that it started before.
pub(crate) fn start(
    tx: &Tx<'_>,
    parent: &RunRow,
    new: &StartChild,
    now: Timestamp,
) -> Result<Child> {
    if let Some(child) = child_of(tx, parent.id, &new.call_id)? {
        let row = row_of(tx, parent.team, child)?;
        return Ok(if row.status.has_ended() {
            tx.prepare_cached("UPDATE child_runs SET awaited = 0 WHERE child = ?1")?
                .execute(params![Blob(child.as_uuid())])?;
            gives(tx, &row, &new.call_id)?
        } else {
            Child::Waits(child)
        });
    }
    match insert(tx, parent, new, now) {
        Ok(()) => Ok(Child::Waits(new.id)),
        // Refused before anything was written: the caller's model reads why.
        Err(StoreError::Invalid { message, .. } | StoreError::Refused(message)) => Ok(
            Child::Gives(None, Outcome::Error(format!("not_run: {message}"))),
        ),
        Err(error) => Err(error),
    }
}

/// A build under what the run that starts it has left.
pub(crate) fn limited(config: Arc<BuildConfig>, left: Left) -> Arc<BuildConfig> {
    if left == Left::default() {
        return config;
    }
    Arc::new(BuildConfig {
        limits: config.limits.clone().within(left),
        ..BuildConfig::clone(&config)
    })
}

/// Whether one run more may be started below a run: by its own build and by those of all that wait for it, each of which
/// counts what was started below it, at all depths.
fn room_below(tx: &Tx<'_>, run: RunId) -> Result<()> {
    let above: Vec<(RunId, BuildId)> = tx
        .prepare_cached(
            "WITH RECURSIVE above (run) AS (
                 SELECT ?1 UNION SELECT c.parent FROM above a JOIN child_runs c ON c.child = a.run)
             SELECT r.id, r.build_id FROM above a JOIN runs r ON r.id = a.run",
        )?
        .query_map(params![Blob(run.as_uuid())], |row| {
            let run = RunId::from_stored(row.get::<_, Blob>(0)?.0);
            Ok((run, BuildId::from_stored(row.get::<_, Blob>(1)?.0)))
        })?
        .collect::<rusqlite::Result<_>>()?;
    for (run, build) in above {
        let max = tx
            .builds()
            .get(tx, build)?
            .map_or(RUN_CHILDREN_DEFAULT, |build| build.limits.children);
        let below: i64 = tx
            .prepare_cached(
                "WITH RECURSIVE below (run) AS (
                     SELECT child FROM child_runs WHERE parent = ?1
                     UNION SELECT c.child FROM below b JOIN child_runs c ON c.parent = b.run)
                 SELECT count(*) FROM below",
            )?
            .query_row(params![Blob(run.as_uuid())], |row| row.get(0))?;
        if count(below) >= max {
            return Err(StoreError::Refused(format!(
                "the run {run} has started {below} runs, all depths together, and reached limits.children of its build ({max})"
            )));
        }
    }
    Ok(())
}

/// What the runs below a run have used up, all depths together.
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

fn child_of(conn: &Connection, parent: RunId, call_id: &str) -> Result<Option<RunId>> {
    let found = conn
        .prepare_cached("SELECT child FROM child_runs WHERE parent = ?1 AND call_id = ?2")?
        .query_row(params![Blob(parent.as_uuid()), call_id], |row| {
            row.get::<_, Blob>(0)
        })
        .optional()?;
    Ok(found.map(|id| RunId::from_stored(id.0)))
}

fn insert(tx: &Tx<'_>, parent: &RunRow, new: &StartChild, now: Timestamp) -> Result<()> {
    let refused = |message: String| StoreError::Refused(message);
    let depth: i64 = tx
        .prepare_cached("SELECT depth FROM child_runs WHERE child = ?1")?
        .query_row(params![Blob(parent.id.as_uuid())], |row| row.get(0))
        .optional()?
        .unwrap_or(0)
        + 1;
    if depth > DEPTH_MAX {
        return Err(refused(format!(
            "assignments start each other {DEPTH_MAX} deep at most"
        )));
    }
    let agent = agent_named(tx, parent.team, &new.assignment)?
        .filter(|agent| new.allowed.contains(agent))
        .ok_or_else(|| {
            refused(format!(
                "this assignment may start no assignment {:?}: its build lists those that it may start, by id, in data.assignments",
                new.assignment
            ))
        })?;
    room_below(tx, parent.id)?;
    let build = live_build_of(tx, parent.team, agent)?;
    let config = tx.builds().get(tx, build)?.map_err(|error| {
        refused(format!(
            "the assignment's latest build cannot be run: {error}"
        ))
    })?;
    // A limit of the caller's counts as one of its own: what has no price cannot be held to it.
    let config = limited(config, new.left);
    (new.runnable.0)(&config).map_err(refused)?;
    if !new.people
        && config
            .playbook
            .as_ref()
            .is_some_and(|playbook| playbook.asks())
    {
        return Err(refused(format!(
            "the assignment {:?} asks people, and this one runs without people (`human_in_the_loop: false`)",
            new.assignment
        )));
    }
    let start = StartRun {
        team: parent.team,
        id: new.id,
        agent,
        source: "",
        sandbox: None,
        webhook_url: None,
        human_request_webhook_url: parent
            .human_webhook_url
            .clone()
            .or_else(|| parent.webhook_url.clone()),
        untrusted: false,
        message: new.message.clone(),
        by: UserId::from_stored(uuid::Uuid::nil()).into(),
        api_key: parent.api_key,
        sandbox_ttl_ms: parent.sandbox_ttl_ms,
        runnable: new.runnable.clone(),
        now,
    };
    let mut row = new_row(&start, build, &config);
    row.source = None;
    row.started_by = None;
    row.principal = parent.principal;
    row.people &= new.people;
    row.insert(tx)?;
    crate::stats::counters::started(tx, &row, &config.model.to_string())?;
    let mut change = Change::new(tx, row, now);
    change.mark_updated();
    change.append(
        None,
        Body::Caller {
            run: parent.id,
            content: new.content.clone(),
            policies: new.policies.clone(),
            left: new.left,
        },
    )?;
    if let Some((id, text)) = &new.message {
        change.append(
            Some(*id),
            Body::User {
                text: text.clone(),
                by: None,
                untrusted: false,
            },
        )?;
    }
    change.queue()?;
    change.count_today()?;
    change.finish()?;
    tx.prepare_cached(
        "INSERT INTO child_runs (child, parent, call_id, depth) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        Blob(new.id.as_uuid()),
        Blob(parent.id.as_uuid()),
        new.call_id,
        depth
    ])?;
    Ok(())
}

/// The team's agent of this id or name; of several of a name the oldest.
fn agent_named(conn: &Connection, team: TeamId, text: &str) -> Result<Option<AgentId>> {
    let id = text.parse::<AgentId>().ok().map(|id| Blob(id.as_uuid()));
    let found = conn
        .prepare_cached(
            "SELECT id FROM agents WHERE team_id = ?1 AND deleted_at IS NULL AND (id = ?2 OR (?2 IS NULL AND name = ?3))
             ORDER BY created_at, id LIMIT 1",
        )?
        .query_row(params![Blob(team.as_uuid()), id, text], |row| {
            row.get::<_, Blob>(0)
        })
        .optional()?;
    Ok(found.map(|id| AgentId::from_stored(id.0)))
}

/// What an ended run gives its caller: its last words, trusted as far as what it read is.
fn gives(conn: &Connection, child: &RunRow, call_id: &str) -> Result<Child> {
    let entries = entries_from(conn, child.id, 0)?;
    let content = Ledger::of(&entries).content;
    let source = Body::Source {
        call_id: call_id.to_owned(),
        from: child.id.to_string(),
        trusted: content.untrusted.is_none(),
        private: !content.private.is_none(),
    };
    let text = entries.iter().rev().find_map(|entry| match &entry.body {
        Body::Assistant { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let outcome = match child.status {
        Status::Completed => Outcome::Result(json!({
            "run_id": child.id.to_string(),
            "status": child.status.as_str(),
            "text": text.unwrap_or_default(),
        })),
        Status::Failed => {
            let (code, message) = child
                .error
                .as_ref()
                .map_or(("", ""), |e| (&e.code, &e.message));
            // Its words may be a stranger's, and are quoted.
            let message: String = message.chars().take(ERROR_CHARS_MAX).collect();
            Outcome::Error(format!(
                "child_failed: the run {} failed with the code {code}; its message: {message:?}",
                child.id
            ))
        }
        _ => Outcome::Error(format!("child_stopped: the run {} was stopped", child.id)),
    };
    Ok(Child::Gives(Some(Box::new(source)), outcome))
}

/// A run has ended: who waits for it is in line again, and what it waits for itself ends with it.
pub(crate) fn ended(change: &mut Change<'_>) -> Result<()> {
    let tx = change.tx;
    let left = let_go(tx, change.row.id)?;
    if !left.is_empty() {
        // What they find of this run shall be that it has ended: it waits for them no more.
        change.write()?;
    }
    for_each(tx, &left, change.now, |child| {
        stop_as(tx, change.row.team, child, None, change.now).map(drop)
    })?;
    wake_caller(tx, change.row.id, change.now)
}

/// Waits for no run any more: those that were waited for, and have not ended.
pub(crate) fn let_go(tx: &Tx<'_>, run: RunId) -> Result<Vec<RunId>> {
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

/// Puts the run in line that waits for this one, which has ended.
pub(crate) fn wake_caller(tx: &Tx<'_>, run: RunId, now: Timestamp) -> Result<()> {
    let caller: Vec<RunId> = tx
        .prepare_cached(
            "SELECT c.parent FROM child_runs c JOIN runs r ON r.id = c.parent
             WHERE c.child = ?1 AND r.status = 'running' AND r.waiting_kind = 'child_run' AND r.claim_token IS NULL
                 AND r.wake_at IS NULL",
        )?
        .query_map(params![Blob(run.as_uuid())], |row| row.get::<_, Blob>(0))?
        .map(|id| Ok(RunId::from_stored(id?.0)))
        .collect::<Result<_>>()?;
    for_each(tx, &caller, now, |caller| {
        let mut change = Change::of_run(tx, caller, now)?;
        change.queue()?;
        change.mark_updated();
        change.finish().map(drop)
    })
}

/// The run that a run waits for, if it waits for one.
pub(crate) fn awaited(row: &RunRow) -> Option<RunId> {
    if row.status.has_ended() || row.waiting_kind.as_deref() != Some("child_run") {
        return None;
    }
    row.waiting_who.as_ref()?.parse().ok()
}

/// The run that asked, where it is not this one but one that was started by it or below.
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

/// A run asks: who watches one that waits for it, whether itself or another, hears it.
pub(crate) fn ring_callers(tx: &Tx<'_>, run: RunId) -> Result<()> {
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

/// The human request of the run that a run waits for, or of the one that this waits for.
pub(crate) fn request_below(conn: &Connection, row: &RunRow) -> Result<Option<HumanRequest>> {
    match awaited(row) {
        None => Ok(None),
        Some(child) => match view_of(conn, row.team, child) {
            Ok(view) => Ok(view.pending),
            Err(StoreError::NotFound) => Ok(None),
            Err(error) => Err(error),
        },
    }
}
