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

use errand_core::id::{BuildId, RunId};
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
use crate::model::StartChild;
use crate::runs::create::{NewRun, create_run, title_of};
use crate::runs::expected_build::{agent_named, check_expected, limited};
use crate::runs::lineage::child_of;
use crate::runs::queries::entries_from;
use crate::runs::row::{RunRow, row_of};

/// Maximum nesting depth of child runs.
const DEPTH_MAX: i64 = 3;

/// Maximum number of characters of a child run's error that its caller gets.
const ERROR_CHARS_MAX: usize = 2_000;

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
    check_expected(new.expected_build.as_ref(), build)?.map_err(refused)?;
    if !new.human_in_the_loop
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
    let child = NewRun {
        team: parent.team,
        id: new.id,
        agent,
        build,
        config: &config,
        source: None,
        started_by: None,
        api_key: parent.api_key,
        principal: parent.principal,
        title: new.message.as_ref().and_then(|(_, text)| title_of(text)),
        sandbox: None,
        sandbox_ttl_ms: parent.sandbox_ttl_ms,
        webhook_url: None,
        human_webhook_url: parent
            .human_webhook_url
            .clone()
            .or_else(|| parent.webhook_url.clone()),
        human_in_the_loop: config.human_in_the_loop && new.human_in_the_loop,
        now,
    };
    create_run(tx, child, |change| {
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
            let body = Body::User {
                text: text.clone(),
                by: None,
                untrusted: false,
            };
            change.append(Some(*id), body)?;
        }
        Ok(())
    })?;
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
