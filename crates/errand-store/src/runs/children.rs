//! Child runs: runs that another run starts with `run_assignment` and waits for.
//!
//! # Guarantees
//!
//! A call starts one run, in the same step that records that the caller waits for it. A caller waits without a
//! driver, and is queued in the transaction that ends its child run. Whatever ends a caller ends its child run in the
//! same write. The caller's next driver reads the result from the ended run, so nothing has to be delivered, and
//! nothing can be delivered twice.
//!
//! # Non-goals
//!
//! Deciding which assignments a build may start (the caller's driver lists them), and the tool itself
//! (`errand-engine`).

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
use errand_core::tool_error::{ToolError, ToolErrorCode};
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

/// Maximum nesting depth of child runs.
const DEPTH_MAX: i64 = 3;

/// Maximum number of characters of a child run's error that its caller gets.
const ERROR_CHARS_MAX: usize = 2_000;

/// A child run to start for a call.
#[derive(Clone, Debug)]
pub struct StartChild {
    pub call_id: String,
    /// Id for the child run, unless the call has already started one.
    pub id: RunId,
    /// Id or name of the assignment.
    pub assignment: String,
    /// Assignments that the caller's build may start.
    pub allowed: Vec<AgentId>,
    /// First message.
    pub message: Option<(MessageId, String)>,
    /// Content that the caller has read so far. Untrusted content may have shaped everything that the caller says from then
    /// on.
    pub content: Content,
    /// Policies of the caller's tools.
    pub policies: CallerPolicies,
    /// The remaining part of the caller's limits.
    pub left: Left,
    /// Checks whether the build's model can be used here.
    pub runnable: Runnable,
    /// Whether people may be asked. The caller's own requirement applies to its child runs too.
    pub people: bool,
}

/// Result for the caller's step.
pub(crate) enum Child {
    /// The caller waits for this run.
    Waits(RunId),
    /// The call has a result, possibly with its source.
    Gives(Option<Box<Body>>, Outcome),
}

/// Starts the child run of a call, or finds the one that was started before.
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
        // Refused before anything was written. The caller's model gets the reason.
        Err(StoreError::Invalid { message, .. } | StoreError::Refused(message)) => Ok(
            Child::Gives(None, Outcome::error(ToolErrorCode::NotRun, message)),
        ),
        Err(error) => Err(error),
    }
}

/// Restricts a build to what remains of its caller's limits.
pub(crate) fn limited(config: Arc<BuildConfig>, left: Left) -> Arc<BuildConfig> {
    if left == Left::default() {
        return config;
    }
    Arc::new(BuildConfig {
        limits: config.limits.clone().within(left),
        ..BuildConfig::clone(&config)
    })
}

/// Checks that one more child run may be started, by the run's own build and by those of all its callers. Each counts
/// the runs below it at all depths.
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
    // A limit of the caller counts like one of the child's own: a model without a price cannot respect a cost limit.
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

/// The team's agent with this id or name. If several have the name, the oldest one.
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

/// The result that an ended child run gives its caller: its last message. It is trusted only if everything that the
/// child has read is.
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
            // The message may contain untrusted text, so it is quoted.
            let message: String = message.chars().take(ERROR_CHARS_MAX).collect();
            let message = format!(
                "the run {} failed with the code {code}; its message: {message:?}",
                child.id
            );
            Outcome::Error(ToolError::with_content(ToolErrorCode::ChildFailed, message))
        }
        _ => Outcome::error(
            ToolErrorCode::ChildStopped,
            format!("the run {} was stopped", child.id),
        ),
    };
    Ok(Child::Gives(Some(Box::new(source)), outcome))
}

/// Handles the end of a run: queues its caller, and stops the child runs that it was waiting for.
pub(crate) fn ended(change: &mut Change<'_>) -> Result<()> {
    let tx = change.tx;
    let left = let_go(tx, change.row.id)?;
    if !left.is_empty() {
        // The child runs must see that their caller has ended, so that they do not wake it.
        change.write()?;
    }
    for_each(tx, &left, change.now, |child| {
        stop_as(tx, change.row.team, child, None, change.now).map(drop)
    })?;
    wake_caller(tx, change.row.id, change.now)
}

/// Stops waiting for child runs. Returns those that have not ended.
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

/// Queues the caller of a run that has ended.
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

/// The child run that this run waits for, if any.
pub(crate) fn awaited(row: &RunRow) -> Option<RunId> {
    if row.status.has_ended() || row.waiting_kind.as_deref() != Some("child_run") {
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

/// Notifies those who watch the callers of a run that asks a person.
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

/// The pending human request of the child run that this run waits for, at any depth.
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
