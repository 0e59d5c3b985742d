//! Recorded sizes of sandboxes, with which the totals for the teams' quotas start.
//!
//! # Non-goals
//!
//! Measuring. The server measures directories and records the result, at the latest a minute after a change; a change that
//! a crash leaves unrecorded is found at the next measurement. The record of a deleted sandbox is 0.

use errand_core::id::{SandboxId, TeamId};
use rusqlite::{Connection, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, count, int, word};
use crate::error::Result;

/// A sandbox that is not deleted, with its size record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedSandbox {
    pub id: SandboxId,
    pub team: TeamId,
    /// Last recorded size on disk, in bytes.
    pub bytes: u64,
}

impl Store {
    /// Total size of each team's sandboxes. Teams without any are left out.
    pub async fn sandbox_bytes_of_teams(&self) -> Result<Vec<(TeamId, u64)>> {
        self.read(|conn| {
            conn.prepare_cached(
                "SELECT team_id, sum(bytes) FROM sandboxes INDEXED BY sandboxes_by_bytes WHERE bytes > 0 GROUP BY team_id",
            )?
            .query_and_then([], |row| {
                let team = TeamId::from_stored(row.get::<_, Blob>(0)?.0);
                Ok((team, count(row.get(1)?)))
            })?
            .collect()
        })
        .await
    }

    /// Sandboxes of all teams that are not deleted, ordered by id, after `after`, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`](crate::StoreError::Corrupt) if an id cannot be read.
    pub async fn recorded_sandboxes(
        &self,
        after: Option<SandboxId>,
        limit: u32,
    ) -> Result<Vec<RecordedSandbox>> {
        self.read(move |conn| {
            let after = after.as_ref().map_or("", SandboxId::as_str);
            conn.prepare_cached(
                "SELECT id, team_id, bytes FROM sandboxes WHERE id > ?1 AND deleted_at IS NULL ORDER BY id LIMIT ?2",
            )?
            .query_and_then(params![after, int(u64::from(limit))], |row| {
                let id = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                Ok(RecordedSandbox {
                    id: word("sandboxes", "id", id, SandboxId::parse)?,
                    team: TeamId::from_stored(row.get::<_, Blob>(1)?.0),
                    bytes: count(row.get(2)?),
                })
            })?
            .collect()
        })
        .await
    }

    /// Records the sizes of sandboxes. Returns the recorded ones: a sandbox that is deleted, or has no row yet, is skipped.
    pub async fn record_sandbox_bytes(
        &self,
        measured: Vec<(SandboxId, u64)>,
    ) -> Result<Vec<(SandboxId, u64)>> {
        self.write(move |tx| {
            let mut recorded = Vec::with_capacity(measured.len());
            for (sandbox, bytes) in &measured {
                if record(tx, sandbox, *bytes)? {
                    recorded.push((sandbox.clone(), *bytes));
                }
            }
            Ok(recorded)
        })
        .await
    }
}

/// Returns `false` if the sandbox is deleted or has no row.
pub(crate) fn record(tx: &Connection, sandbox: &SandboxId, bytes: u64) -> Result<bool> {
    let changed = tx
        .prepare_cached("UPDATE sandboxes SET bytes = ?2 WHERE id = ?1 AND deleted_at IS NULL")?
        .execute(params![sandbox.as_str(), int(bytes)])?;
    Ok(changed > 0)
}
