//! The rows of sandboxes. `errand-sandbox` handles the directories: the row is created before the directory, and
//! deleted before it.
//!
//! # Guarantees
//!
//! A sandbox does not expire while the run that uses it has not ended, and is not deleted while any run on it has not
//! ended. The statements that would do so check this themselves.
//!
//! # Non-goals
//!
//! Assigning a sandbox to a run and releasing it (transactions of the run do that), and files.

pub(crate) mod bytes;
#[cfg(test)]
mod tests;

use errand_core::id::{SandboxId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, word};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
pub use bytes::RecordedSandbox;

/// Refusal of a sandbox that a run cannot use. The same for a malformed id, an unknown sandbox and another team's, so
/// that nobody can find out which sandboxes exist.
pub const UNKNOWN_SANDBOX: &str = "this sandbox does not exist; create one with POST /v1/sandboxes";

/// SQL condition for `sandboxes s` whose run has not ended. Such a sandbox does not expire.
macro_rules! held {
    () => {
        "EXISTS (SELECT 1 FROM runs r WHERE r.id = s.owner_run AND r.status NOT IN ('completed', 'failed', 'interrupted'))"
    };
}

/// SQL condition for `sandboxes s` with any run that has not ended, including runs that wait for it, or with a driver
/// that has not left it yet. Such a sandbox is not deleted.
macro_rules! in_use {
    () => {
        concat!(
            "(",
            held!(),
            " OR s.leaving IS NOT NULL OR EXISTS (SELECT 1 FROM runs r
                         WHERE r.sandbox_id = s.id AND r.status NOT IN ('completed', 'failed', 'interrupted')))"
        )
    };
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub id: SandboxId,
    pub team: TeamId,
    pub created_at: Timestamp,
    /// When it is deleted, unless it is used before.
    pub expires_at: Timestamp,
    /// Last recorded size on disk, in bytes.
    pub bytes: u64,
}

impl Store {
    /// Creates the row of a sandbox. `expires_at` is now plus the setting `sandbox.ttl`.
    pub async fn create_sandbox(
        &self,
        team: TeamId,
        sandbox: SandboxId,
        expires_at: Timestamp,
        now: Timestamp,
        recorded: Idempotent<Sandbox>,
    ) -> Result<Outcome<Sandbox>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                insert_sandbox(tx, team, &sandbox, expires_at, now)
            })
        })
        .await
    }

    /// A sandbox that can be used.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]: it does not exist, belongs to another team, is deleted, or has expired.
    pub async fn sandbox(
        &self,
        team: TeamId,
        sandbox: &SandboxId,
        now: Timestamp,
    ) -> Result<Sandbox> {
        let sandbox = sandbox.clone();
        self.read_for(team, move |conn| select_sandbox(conn, team, &sandbox, now))
            .await
    }

    /// Records a use: the sandbox does not expire before `expires_at`. Never shortens its life. `bytes` is its current size
    /// on disk, if known.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], as for [`Store::sandbox`].
    pub async fn touch_sandbox(
        &self,
        team: TeamId,
        sandbox: &SandboxId,
        expires_at: Timestamp,
        bytes: Option<u64>,
        now: Timestamp,
    ) -> Result<()> {
        let sandbox = sandbox.clone();
        self.write(move |tx| update_use(tx, team, &sandbox, (expires_at, bytes), now))
            .await
    }

    /// Deletes the row of a sandbox. When this returns, the directory may be removed.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], as for [`Store::sandbox`]; [`StoreError::Conflict`] while a run on it has not ended.
    pub async fn delete_sandbox(
        &self,
        team: TeamId,
        sandbox: &SandboxId,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        let sandbox = sandbox.clone();
        self.write(move |tx| idempotent(tx, &recorded, now, || delete(tx, team, &sandbox, now)))
            .await
    }

    /// Expired sandboxes of all teams that are not deleted, at most `limit`, in the order of expiry.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if an id cannot be read.
    pub async fn expired_sandboxes(&self, now: Timestamp, limit: u32) -> Result<Vec<SandboxId>> {
        self.read(move |conn| select_expired(conn, now, limit))
            .await
    }

    /// Deletes the row of a sandbox if it is *still* expired: a use since [`Store::expired_sandboxes`] keeps it. Returns its
    /// size record if it was deleted, so that the directory may be removed.
    pub async fn mark_sandbox_deleted(
        &self,
        sandbox: &SandboxId,
        now: Timestamp,
    ) -> Result<Option<RecordedSandbox>> {
        let sandbox = sandbox.clone();
        self.write(move |tx| delete_expired(tx, &sandbox, now))
            .await
    }

    /// State of sandboxes, in the order of the ids. For cleaning up directories.
    pub async fn sandbox_fates(
        &self,
        sandboxes: Vec<SandboxId>,
    ) -> Result<Vec<(SandboxId, SandboxFate)>> {
        self.read(move |conn| {
            let mut select =
                conn.prepare_cached("SELECT deleted_at IS NOT NULL FROM sandboxes WHERE id = ?1")?;
            sandboxes
                .into_iter()
                .map(|id| {
                    let deleted: Option<bool> = select
                        .query_row(params![id.as_str()], |row| row.get(0))
                        .optional()?;
                    let fate = match deleted {
                        Some(false) => SandboxFate::Kept,
                        Some(true) => SandboxFate::Deleted,
                        None => SandboxFate::Unknown,
                    };
                    Ok((id, fate))
                })
                .collect()
        })
        .await
    }
}

/// State of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxFate {
    /// It has a row, so its directory stays.
    Kept,
    /// Its row is deleted, so its directory will never be used again.
    Deleted,
    /// It has no row. Because rows are created before directories, it does not belong to this store.
    Unknown,
}

fn insert_sandbox(
    tx: &Connection,
    team: TeamId,
    sandbox: &SandboxId,
    expires_at: Timestamp,
    now: Timestamp,
) -> Result<Sandbox> {
    tx.prepare_cached(
        "INSERT INTO sandboxes (id, team_id, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        sandbox.as_str(),
        Blob(team.as_uuid()),
        Ms(now),
        Ms(expires_at)
    ])?;
    Ok(Sandbox {
        id: sandbox.clone(),
        team,
        created_at: now,
        expires_at,
        bytes: 0,
    })
}

fn select_sandbox(
    conn: &Connection,
    team: TeamId,
    sandbox: &SandboxId,
    now: Timestamp,
) -> Result<Sandbox> {
    let row = |row: &Row<'_>| {
        Ok(Sandbox {
            id: sandbox.clone(),
            team,
            created_at: row.get::<_, Ms>(0)?.0,
            expires_at: row.get::<_, Ms>(1)?.0,
            bytes: count(row.get(2)?),
        })
    };
    conn.prepare_cached(concat!(
        "SELECT s.created_at, s.expires_at, s.bytes FROM sandboxes s
         WHERE s.id = ?1 AND s.team_id = ?2 AND s.deleted_at IS NULL AND (s.expires_at > ?3 OR ",
        held!(),
        ")"
    ))?
    .query_row(
        params![sandbox.as_str(), Blob(team.as_uuid()), Ms(now)],
        row,
    )
    .optional()?
    .ok_or(StoreError::NotFound)
}

fn update_use(
    tx: &Connection,
    team: TeamId,
    sandbox: &SandboxId,
    (expires_at, bytes): (Timestamp, Option<u64>),
    now: Timestamp,
) -> Result<()> {
    let changed = tx
        .prepare_cached(concat!(
            "UPDATE sandboxes AS s SET expires_at = max(s.expires_at, ?4), bytes = coalesce(?5, s.bytes)
             WHERE s.id = ?1 AND s.team_id = ?2 AND s.deleted_at IS NULL AND (s.expires_at > ?3 OR ",
            held!(),
            ")"
        ))?
        .execute(params![sandbox.as_str(), Blob(team.as_uuid()), Ms(now), Ms(expires_at), bytes.map(int)])?;
    if changed == 0 {
        Err(StoreError::NotFound)
    } else {
        Ok(())
    }
}

fn delete(tx: &Connection, team: TeamId, sandbox: &SandboxId, now: Timestamp) -> Result<()> {
    let deleted = tx
        .prepare_cached(concat!(
            "UPDATE sandboxes AS s SET deleted_at = ?3, bytes = 0
             WHERE s.id = ?1 AND s.team_id = ?2 AND s.deleted_at IS NULL AND s.expires_at > ?3 AND NOT ",
            in_use!()
        ))?
        .execute(params![sandbox.as_str(), Blob(team.as_uuid()), Ms(now)])?;
    if deleted > 0 {
        return Ok(());
    }
    // If it can be used but was not deleted, a run is using it.
    select_sandbox(tx, team, sandbox, now)?;
    Err(StoreError::Conflict(
        "a run on this sandbox has not ended; stop the run first, or wait for its end".to_owned(),
    ))
}

fn select_expired(conn: &Connection, now: Timestamp, limit: u32) -> Result<Vec<SandboxId>> {
    conn.prepare_cached(concat!(
        "SELECT s.id FROM sandboxes s WHERE s.deleted_at IS NULL AND s.expires_at <= ?1 AND NOT ",
        in_use!(),
        " ORDER BY s.expires_at, s.id LIMIT ?2"
    ))?
    .query_and_then(params![Ms(now), int(u64::from(limit))], |row| {
        word(
            "sandboxes",
            "id",
            row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?,
            SandboxId::parse,
        )
    })?
    .collect()
}

fn delete_expired(
    tx: &Connection,
    sandbox: &SandboxId,
    now: Timestamp,
) -> Result<Option<RecordedSandbox>> {
    let found = tx
        .prepare_cached(concat!(
            "SELECT s.team_id, s.bytes FROM sandboxes s
             WHERE s.id = ?1 AND s.deleted_at IS NULL AND s.expires_at <= ?2 AND NOT ",
            in_use!()
        ))?
        .query_row(params![sandbox.as_str(), Ms(now)], |row| {
            Ok(RecordedSandbox {
                id: sandbox.clone(),
                team: TeamId::from_stored(row.get::<_, Blob>(0)?.0),
                bytes: count(row.get(1)?),
            })
        })
        .optional()?;
    if found.is_some() {
        tx.prepare_cached("UPDATE sandboxes SET deleted_at = ?2, bytes = 0 WHERE id = ?1")?
            .execute(params![sandbox.as_str(), Ms(now)])?;
    }
    Ok(found)
}
