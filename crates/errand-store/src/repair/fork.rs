//! Creates a run from the transcript of another one.

use errand_core::config::BuildConfig;
use errand_core::human::{HumanRequest, Resolution};
use errand_core::id::{BuildId, HumanRequestId, RunId, SandboxId};
use errand_core::ledger::Ledger;
use errand_core::run::Status;
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry};
use errand_core::wire::RunBody;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::Value;

use super::rows::put_request;
use crate::db::sqlite::Tx;
use crate::db::types::{Blob, Ms, count, json};
use crate::error::{Result, StoreError};
use crate::runs::change::Change;
use crate::runs::queries::run_body;
use crate::runs::row::RunRow;

/// A fork to create.
#[derive(Clone, Debug)]
pub struct Fork {
    /// The run to fork.
    pub run: RunId,
    /// Id for the new run.
    pub id: RunId,
    /// Position of the last entry to copy; 0 for none. `None`: all entries that can be read.
    pub after: Option<u64>,
    /// Another build of the same agent. `None`: the build of the forked run.
    pub build: Option<BuildId>,
    /// Source of the new run: `api`, `web`, `schedule`, `mcp` or `cli`.
    pub source: &'static str,
    pub now: Timestamp,
}

/// Result of a fork.
#[derive(Clone, Debug, PartialEq)]
pub struct Forked {
    /// The new run.
    pub run: RunBody,
    /// Number of copied entries.
    pub taken: u64,
    /// Number of entries of the forked run.
    pub of: u64,
}

pub(super) fn fork(tx: &Tx<'_>, fork: &Fork) -> Result<Forked> {
    let old = Change::of_run(tx, fork.run, fork.now)
        .map_err(|error| match error {
            StoreError::Corrupt { .. } => StoreError::Refused(format!(
                "the run cannot be forked, because {error}; start a new run of its agent"
            )),
            other => other,
        })?
        .row;
    let entries = readable(tx, fork.run, fork.after)?;
    if let Some(after) = fork.after
        && (entries.len() as u64) < after
    {
        return Err(StoreError::Refused(format!(
            "only the run's first {} entries can be read, not {after}; fork after one of those",
            entries.len()
        )));
    }
    let build = fork.build.unwrap_or(old.build);
    let config = config_of(tx, &old, build)?;
    let sandbox = free_sandbox_of(tx, &old, fork.now)?;
    let of = old.position;
    let about = (fork.id, fork.source, fork.now);
    let mut row = new_row(about, old, build, &config, sandbox);
    // An operator starts it on the machine itself, so no user is recorded.
    row.started_by = None;
    row.insert(tx)?;
    crate::stats::counters::started(tx, &row, &config.model.to_string())?;
    let mut change = Change::new(tx, row, fork.now);
    change.mark_updated();
    change.count_today()?;
    let ledger = copy(&mut change, &entries)?;
    close_what_is_open(&mut change, &ledger, &entries)?;
    change.row.turn = change.row.position + 1;
    change.queue()?;
    let run = run_body(tx, &change.row)?;
    change.finish()?;
    Ok(Forked {
        run,
        taken: entries.len() as u64,
        of,
    })
}

/// The entries from the first one up to `after`, or up to the first one that is missing or cannot be read.
pub(crate) fn readable(conn: &Connection, run: RunId, after: Option<u64>) -> Result<Vec<Entry>> {
    let most = after.map_or(i64::MAX, crate::db::types::int);
    let mut statement = conn.prepare_cached(
        "SELECT position, id, created_at, body FROM messages WHERE run_id = ?1 AND position <= ?2 ORDER BY position",
    )?;
    let mut rows = statement.query(params![Blob(run.as_uuid()), most])?;
    let mut entries: Vec<Entry> = Vec::new();
    while let Some(row) = rows.next()? {
        let position = count(row.get(0)?);
        let text: String = row.get(3)?;
        let body = match json("messages", "body", &text) {
            Ok(body) if position == entries.len() as u64 + 1 => body,
            _ => break,
        };
        entries.push(Entry {
            position,
            id: errand_core::id::MessageId::from_stored(row.get::<_, Blob>(1)?.0),
            at: row.get::<_, Ms>(2)?.0,
            body,
        });
    }
    Ok(entries)
}

pub(crate) fn config_of(tx: &Tx<'_>, old: &RunRow, build: BuildId) -> Result<BuildConfig> {
    let config: String = tx
        .prepare_cached("SELECT config FROM builds WHERE id = ?1 AND agent_id = ?2")?
        .query_row(
            params![Blob(build.as_uuid()), Blob(old.agent.as_uuid())],
            |row| row.get(0),
        )
        .optional()?
        .ok_or_else(|| {
            StoreError::Refused(format!(
                "the run's agent has no build {build}; a fork needs a build of the same agent"
            ))
        })?;
    let config: Value = json("builds", "config", &config)?;
    tx.builds()
        .parse(&config)
        .map_err(|error| StoreError::Refused(format!("the build cannot be used: {error}")))
}

/// The sandbox of the forked run, if nobody uses it any more. The new run then continues on its files.
fn free_sandbox_of(conn: &Connection, old: &RunRow, now: Timestamp) -> Result<Option<SandboxId>> {
    let Some(sandbox) = old.sandbox.clone().filter(|_| old.status.has_ended()) else {
        return Ok(None);
    };
    let is_free = conn
        .prepare_cached(
            "SELECT 1 FROM sandboxes WHERE id = ?1 AND owner_run IS NULL AND deleted_at IS NULL AND expires_at > ?2",
        )?
        .exists(params![sandbox.as_str(), Ms(now)])?;
    Ok(is_free.then_some(sandbox))
}

/// The row of the new run: with its own id, source and time, and the parameters of the forked run.
pub(crate) fn new_row(
    (id, source, now): (RunId, &str, Timestamp),
    old: RunRow,
    build: BuildId,
    config: &BuildConfig,
    sandbox: Option<SandboxId>,
) -> RunRow {
    RunRow {
        id,
        build,
        status: Status::Pending,
        source: Some(source.to_owned()),
        sandbox,
        people: config.human_in_the_loop,
        error: None,
        created_at: now,
        updated_at: now,
        started_at: None,
        completed_at: None,
        position: 0,
        shown: 0,
        sequence: 0,
        newest_user: 0,
        turn: 0,
        step: 0,
        claim: None,
        claim_boot: None,
        claimed_at: None,
        wake_at: None,
        deadline: None,
        limit_ms: config.limits.seconds.saturating_mul(1000),
        worked_ms: 0,
        waiting_kind: None,
        waiting_who: None,
        waiting_since: None,
        waiting_deadline: None,
        request: None,
        steps: 0,
        model_calls: 0,
        tool_calls: 0,
        input_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        cost_usd: 0.0,
        model_ms: 0,
        unpriced_tokens: 0,
        estimated_tokens: 0,
        ..old
    }
}

/// Appends copies of the entries with their times. Human requests get new ids, because a response belongs to one run.
pub(crate) fn copy(change: &mut Change<'_>, entries: &[Entry]) -> Result<Ledger> {
    let mut ledger = Ledger::default();
    let mut requests: Vec<(HumanRequestId, HumanRequest)> = Vec::new();
    for entry in entries {
        let mut body = entry.body.clone();
        match &mut body {
            Body::HumanRequest { request, .. } => {
                let was = request.id;
                request.id = HumanRequestId::derived(change.row.id, entry.position, entry.at);
                requests.push((was, request.clone()));
            }
            Body::HumanResponse {
                request_id,
                resolution,
                by,
            } => {
                if let Some((_, request)) = requests.iter().find(|(was, _)| was == request_id) {
                    *request_id = request.id;
                    let closed = (entry.at, resolution.clone(), by.clone());
                    put_request(change, request, Some(closed))?;
                }
            }
            _ => {}
        }
        ledger.feed(&change.append_at(None, body, entry.at)?);
    }
    Ok(ledger)
}

/// Closes what the cut leaves open. If nothing of it had begun, or the transcript ends with a failure, the step is
/// repeated.
pub(crate) fn close_what_is_open(
    change: &mut Change<'_>,
    ledger: &Ledger,
    entries: &[Entry],
) -> Result<()> {
    let has_begun = ledger.open.iter().any(|open| open.intent.is_some());
    let is_cut = ledger.request.is_some() || !ledger.open.is_empty();
    let bodies = match &ledger.request {
        Some(request) => {
            let stopped = Resolution::Stopped;
            put_request(change, request, Some((change.now, stopped.clone(), None)))?;
            let mut bodies = vec![Body::HumanResponse {
                request_id: request.id,
                resolution: stopped.clone(),
                by: None,
            }];
            bodies.extend(ledger.results_of(request, &stopped));
            bodies
        }
        None => ledger.close_open("the run was forked here"),
    };
    for body in bodies {
        change.append(None, body)?;
    }
    let ending = entries
        .iter()
        .rev()
        .find(|entry| !matches!(entry.body, Body::User { .. } | Body::Late { .. }));
    let has_failed = ending.is_some_and(|entry| matches!(entry.body, Body::Error { .. }));
    // A call with an unknown outcome is not repeated automatically: the model, or a retry, decides.
    if has_failed || (is_cut && !has_begun) {
        change.append(None, Body::Retried { by: None })?;
    }
    Ok(())
}
