//! Repairs single rows of a run, below the level of [`Change`].

use errand_core::human::{HumanRequest, Resolution};
use errand_core::id::{RunId, SandboxId};
use errand_core::ledger::Ledger;
use errand_core::transcript::{Body, Entry};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::db::sqlite::Tx;
use crate::db::types::{Blob, count};
use crate::error::{Result, StoreError};
use crate::notify::Bell;
use crate::runs::change::Change;
use crate::runs::queries::entries_from;
use crate::runs::request_rows::put_request;

/// Reads a whole transcript.
///
/// # Errors
/// `Corrupt`, also if an entry is missing.
pub(super) fn whole(conn: &Connection, run: RunId) -> Result<Vec<Entry>> {
    let entries = entries_from(conn, run, 0)?;
    match entries
        .iter()
        .zip(1..)
        .find(|(entry, at)| entry.position != *at)
    {
        None => Ok(entries),
        Some((entry, at)) => Err(StoreError::Corrupt {
            table: "messages",
            column: "position",
            message: format!("entry {at} is missing; {} follows instead", entry.position),
        }),
    }
}

/// Recomputes the counters of the row. `read` is the transcript and its ledger, if it can be read.
pub(super) fn count_again(
    change: &mut Change<'_>,
    read: Option<(&[Entry], &Ledger)>,
) -> Result<()> {
    let id = Blob(change.row.id.as_uuid());
    let most = |sql: &str| -> Result<u64> {
        let most = change
            .tx
            .prepare_cached(sql)?
            .query_row(params![id], |row| row.get::<_, Option<i64>>(0))?;
        Ok(most.map_or(0, count))
    };
    let position = most("SELECT max(position) FROM messages WHERE run_id = ?1")?;
    let shown = most("SELECT max(shown) FROM messages WHERE run_id = ?1")?;
    let sequence = most("SELECT max(sequence) FROM events WHERE run_id = ?1")?;
    let row = &mut change.row;
    (row.position, row.shown, row.sequence) = (position, shown, sequence);
    let Some((entries, ledger)) = read else {
        return Ok(());
    };
    row.newest_user = ledger.newest_user;
    // The search for open calls begins at the last turn, which must not come after the first open call.
    let first = ledger.open.front().and_then(|open| {
        entries.iter().find(
            |entry| matches!(&entry.body, Body::ToolCall { call, .. } if call.id == open.call.id),
        )
    });
    let latest = first.map_or(position + 1, |first| first.position);
    row.turn = row.turn.min(latest);
    Ok(())
}

/// Makes the rows of a run's requests agree with its transcript: closed as there, and only the pending one open. A
/// row without a transcript entry is deleted, because nobody can have seen that request.
pub(super) fn settle_requests(
    change: &Change<'_>,
    entries: &[Entry],
    pending: Option<&HumanRequest>,
) -> Result<()> {
    let (tx, run) = (change.tx, change.row.id);
    let mut known = Vec::new();
    for entry in entries {
        match &entry.body {
            Body::HumanRequest { request, .. } => known.push((request, None)),
            Body::HumanResponse {
                request_id,
                resolution,
                by,
            } => {
                if let Some((_, closed)) = known
                    .iter_mut()
                    .find(|(request, _)| request.id == *request_id)
                {
                    *closed = Some((entry.at, resolution.clone(), by.clone()));
                }
            }
            _ => {}
        }
    }
    let open = tx
        .prepare_cached("SELECT id FROM human_requests WHERE run_id = ?1 AND closed_at IS NULL")?
        .query_map(params![Blob(run.as_uuid())], |row| row.get::<_, Blob>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for id in open {
        if !known
            .iter()
            .any(|(request, _)| request.id.as_uuid() == id.0)
        {
            tx.execute("DELETE FROM human_requests WHERE id = ?1", params![id])?;
        }
    }
    // The pending one comes last, because only one row may be open at a time.
    let is_pending = |request: &HumanRequest| pending.is_some_and(|p| p.id == request.id);
    for (request, closed) in &known {
        if !is_pending(request) {
            let stopped = || (change.now, Resolution::Stopped, None);
            put_request(
                change,
                request,
                Some(closed.clone().unwrap_or_else(stopped)),
            )?;
        }
    }
    match pending {
        Some(request) => put_request(change, request, None),
        None => Ok(()),
    }
}

/// Releases a sandbox that its owner cannot release: a run that has ended or does not exist, or a driver that is
/// gone.
pub(super) fn free_of_the_gone(tx: &Tx<'_>, bell: &Bell, sandbox: &SandboxId) -> Result<()> {
    let owner = tx
        .prepare_cached("SELECT owner_run FROM sandboxes WHERE id = ?1")?
        .query_row(params![sandbox.as_str()], |row| {
            row.get::<_, Option<Blob>>(0)
        })
        .optional()?
        .flatten();
    if !owner.is_some_and(|owner| bell.is_driven(RunId::from_stored(owner.0))) {
        tx.execute(
            "UPDATE sandboxes SET leaving = NULL WHERE id = ?1 AND leaving IS NOT NULL",
            params![sandbox.as_str()],
        )?;
    }
    tx.execute(
        "UPDATE sandboxes AS s SET owner_run = NULL WHERE s.id = ?1 AND s.owner_run IS NOT NULL AND s.leaving IS NULL
             AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.id = s.owner_run AND r.status NOT IN ('completed', 'failed', 'interrupted'))",
        params![sandbox.as_str()],
    )?;
    Ok(())
}
