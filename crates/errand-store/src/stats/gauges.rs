//! Counts of active and waiting work, for metrics and `errand doctor`.
//!
//! # Guarantees
//!
//! [`Store::figures`] reads only what is open, from indexes, so that a million ended runs do not make it slower.
//! Anything more expensive is a separate function and says so.
//!
//! # Non-goals
//!
//! Checking whether the rows are consistent (see `audit`), and interpreting the numbers.

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use errand_core::id::{RunId, SandboxId};
use errand_core::run::Status;
use errand_core::time::Timestamp;
use rusqlite::{Connection, Row, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, word};
use crate::error::Result;

/// Statuses of runs that have not ended.
const OPEN: [Status; 4] = [
    Status::Pending,
    Status::Starting,
    Status::Running,
    Status::Waiting,
];
/// Statuses of runs that have ended.
const ENDED: [Status; 3] = [Status::Completed, Status::Failed, Status::Interrupted];

/// Counts of open work at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Runs that have not ended, by status. Contains each status once.
    pub open_runs: Vec<(Status, u64)>,
    /// Runs that a driver has claimed.
    pub claims: u64,
    /// The part of `claims` that belongs to another start of the program.
    pub claims_of_others: u64,
    /// When the oldest claim was taken.
    pub oldest_claim: Option<Timestamp>,
    /// Human requests without a response.
    pub requests_open: u64,
    pub deliveries: Deliveries,
}

/// Number of webhook deliveries by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deliveries {
    /// To be tried, now or later.
    pub pending: u64,
    /// Accepted by the receiver.
    pub delivered: u64,
    /// The receiver wants no more deliveries.
    pub gone: u64,
    /// Given up after the last attempt.
    pub exhausted: u64,
    /// The webhook was deleted before they were delivered.
    pub dropped: u64,
    /// Since when the oldest due delivery has been due. `None` if none is due.
    pub due_since: Option<Timestamp>,
}

/// Work that is past its time and has not been picked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late {
    pub count: u64,
    /// The earliest time.
    pub since: Option<Timestamp>,
}

/// Work that should have happened before some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Runs that wait for a slot.
    pub places: Late,
    /// Runs whose timer has expired.
    pub timers: Late,
    /// Human requests that have expired.
    pub requests: Late,
    /// Deliveries that are due.
    pub deliveries: Late,
}

impl Store {
    /// Counts what is open now. Uses indexes, so the cost grows with what is open and not with what has ended.
    pub async fn figures(&self, now: Timestamp) -> Result<Figures> {
        let boot = Blob(self.boot().as_uuid());
        self.read(move |conn| {
            let claims = conn
                .prepare_cached(
                    "SELECT count(*), count(*) FILTER (WHERE claim_boot IS NOT ?1), min(claimed_at)
                     FROM runs INDEXED BY runs_claimed WHERE claim_token IS NOT NULL",
                )?
                .query_row(params![boot], |row| {
                    Ok((number(row, 0)?, number(row, 1)?, moment(row, 2)?))
                })?;
            let requests_open = conn
                .prepare_cached("SELECT count(*) FROM human_requests WHERE closed_at IS NULL")?
                .query_row([], |row| number(row, 0))?;
            Ok(Figures {
                open_runs: runs_by_status(conn, &OPEN)?,
                claims: claims.0,
                claims_of_others: claims.1,
                oldest_claim: claims.2,
                requests_open,
                deliveries: deliveries(conn, now)?,
            })
        })
        .await
    }

    /// Number of ended runs by status, each status once. Scans an index, which takes about 50 ms per million runs, so
    /// do not call it in every round.
    pub async fn ended_runs(&self) -> Result<Vec<(Status, u64)>> {
        self.read(|conn| runs_by_status(conn, &ENDED)).await
    }

    /// Counts the work that should have happened before `moment` but did not.
    pub async fn overdue(&self, moment: Timestamp) -> Result<Overdue> {
        self.read(move |conn| {
            let late = |sql: &str| -> Result<Late> {
                Ok(conn.prepare_cached(sql)?.query_row(params![Ms(moment)], late)?)
            };
            Ok(Overdue {
                places: late(
                    "SELECT count(*), min(wake_at) FROM runs
                     WHERE wake_at IS NOT NULL AND claim_token IS NULL AND wake_at <= ?1 AND waiting_kind IS NOT 'timer'",
                )?,
                timers: late(
                    "SELECT count(*), min(wake_at) FROM runs
                     WHERE wake_at IS NOT NULL AND claim_token IS NULL AND wake_at <= ?1 AND waiting_kind IS 'timer'",
                )?,
                requests: late(
                    "SELECT count(*), min(expires_at) FROM human_requests
                     WHERE closed_at IS NULL AND expires_at IS NOT NULL AND expires_at <= ?1",
                )?,
                deliveries: late(
                    "SELECT count(*), min(due_at) FROM deliveries WHERE state = 'pending' AND due_at <= ?1",
                )?,
            })
        })
        .await
    }

    /// The latest time known to have been stored. `None` in an empty store.
    pub async fn newest_moment(&self) -> Result<Option<Timestamp>> {
        self.read(|conn| {
            let newest = conn
                .prepare_cached(
                    "SELECT max(at) FROM (
                         SELECT max(created_at) AS at FROM (SELECT created_at FROM events ORDER BY number DESC LIMIT 256)
                         UNION ALL SELECT max(created_at) FROM users
                         UNION ALL SELECT max(created_at) FROM api_keys
                         UNION ALL SELECT max(created_at) FROM sandboxes)",
                )?
                .query_row([], |row| moment(row, 0))?;
            Ok(newest)
        })
        .await
    }

    /// All sandboxes that are not deleted.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`](crate::StoreError::Corrupt) if an id cannot be read.
    pub async fn kept_sandboxes(&self) -> Result<Vec<SandboxId>> {
        self.read(|conn| {
            conn.prepare("SELECT id FROM sandboxes WHERE deleted_at IS NULL")?
                .query_and_then([], |row| sandbox(row, 0))?
                .collect()
        })
        .await
    }

    /// The sandboxes among these that a run has written to, according to its transcript. Reads a row of every run.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`](crate::StoreError::Corrupt) if an id cannot be read.
    pub async fn written_sandboxes(&self, of: HashSet<SandboxId>) -> Result<Vec<SandboxId>> {
        if of.is_empty() {
            return Ok(Vec::new());
        }
        self.read(move |conn| {
            let mut written = HashSet::new();
            let mut runs =
                conn.prepare("SELECT id, sandbox_id FROM runs WHERE sandbox_id IS NOT NULL")?;
            let mut wrote = conn.prepare(
                "SELECT EXISTS (SELECT 1 FROM messages WHERE run_id = ?1
                     AND json_extract(body, '$.kind') = 'tool_result'
                     AND json_extract(body, '$.name') IN ('write_file', 'edit_file')
                     AND json_type(body, '$.outcome.result') IS NOT NULL)",
            )?;
            let rows = runs.query_and_then([], |row| {
                let run = RunId::from_stored(row.get::<_, Blob>(0)?.0);
                Ok::<_, crate::StoreError>((run, sandbox(row, 1)?))
            })?;
            for row in rows {
                let (run, sandbox) = row?;
                if of.contains(&sandbox)
                    && !written.contains(&sandbox)
                    && wrote.query_row(params![Blob(run.as_uuid())], |row| row.get(0))?
                {
                    written.insert(sandbox);
                }
            }
            Ok(written.into_iter().collect())
        })
        .await
    }
}

fn runs_by_status(conn: &Connection, statuses: &[Status]) -> Result<Vec<(Status, u64)>> {
    // A range of the index for each team; nothing else is read.
    let mut select = conn.prepare_cached(
        "SELECT sum((SELECT count(*) FROM runs r INDEXED BY runs_by_status WHERE r.team_id = t.id AND r.status = ?1))
         FROM teams t",
    )?;
    statuses
        .iter()
        .map(|status| {
            let found: Option<i64> =
                select.query_row(params![status.as_str()], |row| row.get(0))?;
            Ok((*status, count(found.unwrap_or(0))))
        })
        .collect()
}

fn deliveries(conn: &Connection, now: Timestamp) -> Result<Deliveries> {
    let (pending, due_since) = conn
        .prepare_cached(
            "SELECT count(*), min(due_at) FILTER (WHERE due_at <= ?1) FROM deliveries WHERE state = 'pending'",
        )?
        .query_row(params![Ms(now)], |row| Ok((number(row, 0)?, moment(row, 1)?)))?;
    let mut found = Deliveries {
        pending,
        due_since,
        ..Deliveries::default()
    };
    // Must match the condition of the partial index.
    let mut given_up = conn.prepare_cached(
        "SELECT state, count(*) FROM deliveries INDEXED BY deliveries_given_up
         WHERE state IN ('gone', 'exhausted', 'dropped') GROUP BY state",
    )?;
    let mut rows = given_up.query([])?;
    while let Some(row) = rows.next()? {
        match row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)? {
            "gone" => found.gone = number(row, 1)?,
            "dropped" => found.dropped = number(row, 1)?,
            _ => found.exhausted = number(row, 1)?,
        }
    }
    // Numbers have no gaps, so all other deliveries were delivered.
    let made = conn
        .prepare_cached("SELECT coalesce(max(number), 0) FROM deliveries")?
        .query_row([], |row| number(row, 0))?;
    found.delivered =
        made.saturating_sub(found.pending + found.gone + found.exhausted + found.dropped);
    Ok(found)
}

fn late(row: &Row<'_>) -> rusqlite::Result<Late> {
    Ok(Late {
        count: number(row, 0)?,
        since: moment(row, 1)?,
    })
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get(column).map(count)
}

fn moment(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<Ms>>(column)?.map(|ms| ms.0))
}

fn sandbox(row: &Row<'_>, column: usize) -> Result<SandboxId> {
    word(
        "sandboxes",
        "id",
        row.get_ref(column)?
            .as_str()
            .map_err(rusqlite::Error::from)?,
        SandboxId::parse,
    )
}
