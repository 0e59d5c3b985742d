//! Copies the transcript of a run into a new one, for forks and repairs.

use errand_core::config::BuildConfig;
use errand_core::human::{HumanRequest, Resolution};
use errand_core::id::{BuildId, HumanRequestId, MessageId, RunId};
use errand_core::ledger::Ledger;
use errand_core::transcript::{Body, Entry};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::Value;

use crate::db::sqlite::Tx;
use crate::db::types::{Blob, Ms, count, int, json};
use crate::error::{Result, StoreError};
use crate::runs::change::Change;
use crate::runs::request_rows::put_request;
use crate::runs::row::RunRow;

/// The entries from the first one up to `after`, or up to the first one that is missing or cannot be read.
pub(crate) fn readable(conn: &Connection, run: RunId, after: Option<u64>) -> Result<Vec<Entry>> {
    let most = after.map_or(i64::MAX, int);
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
            id: MessageId::from_stored(row.get::<_, Blob>(1)?.0),
            at: row.get::<_, Ms>(2)?.0,
            body,
        });
    }
    Ok(entries)
}

/// The configuration of a build of the run's agent.
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

/// Begins a new run with copies of entries, with their times, and closes what they leave open.
pub(crate) fn copy(change: &mut Change<'_>, entries: &[Entry]) -> Result<()> {
    let ledger = append_copies(change, entries)?;
    close_what_is_open(change, &ledger, entries)?;
    change.row.turn = change.row.position + 1;
    Ok(())
}

/// Human requests get new ids, because a response belongs to one run.
fn append_copies(change: &mut Change<'_>, entries: &[Entry]) -> Result<Ledger> {
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
fn close_what_is_open(change: &mut Change<'_>, ledger: &Ledger, entries: &[Entry]) -> Result<()> {
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
