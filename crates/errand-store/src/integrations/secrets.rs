//! A team's secrets. Only the engine reads their values, at the moment of a call.
//!
//! # Guarantees
//!
//! A value is encrypted for its team and name, so that it cannot be decrypted in any other row. Lists never contain
//! values.
//!
//! # Non-goals
//!
//! Where a secret may be used (see `errand_core::secret`, `errand_core::config`).

use std::fmt;

use errand_core::id::{TeamId, UserId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, count};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{Page, PageQuery};

/// Maximum number of secrets of a team. Every result of a connection is searched for all of them.
const SECRETS_MAX: i64 = 200;

/// A secret without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Unique within the team.
    pub name: String,
    /// The user who last set its value.
    pub created_by: Option<UserId>,
    pub created_at: Timestamp,
    /// When its value was last set.
    pub updated_at: Timestamp,
}

/// A secret to set. Its `Debug` output does not contain the value.
#[derive(Clone)]
pub struct SetSecret {
    pub team: TeamId,
    pub name: String,
    pub value: String,
    pub by: UserId,
    pub now: Timestamp,
}

impl fmt::Debug for SetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetSecret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Encryption context of a secret's value.
pub(crate) fn purpose(team: Uuid, name: &str) -> String {
    format!("secret:{team}:{name}")
}

impl Store {
    /// A page of the team's secrets, by name.
    pub async fn list_secrets(&self, team: TeamId, page: PageQuery) -> Result<Page<Secret>> {
        self.read_for(team, move |conn| select(conn, team, page))
            .await
    }

    /// Creates a secret, or replaces its value.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the team has the maximum number of secrets; [`StoreError::Seal`].
    pub async fn set_secret(
        &self,
        new: SetSecret,
        recorded: Idempotent<Secret>,
    ) -> Result<Outcome<Secret>> {
        self.write(move |tx| idempotent(tx, &recorded, new.now, || set(tx, &new)))
            .await
    }

    /// Deletes a secret. Calls that use it fail from then on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_secret(
        &self,
        team: TeamId,
        name: String,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                let deleted = tx
                    .prepare_cached("DELETE FROM secrets WHERE team_id = ?1 AND name = ?2")?
                    .execute(params![Blob(team.as_uuid()), name])?;
                (deleted == 1).then_some(()).ok_or(StoreError::NotFound)
            })
        })
        .await
    }

    /// Names of the team's secrets.
    pub async fn secret_names(&self, team: TeamId) -> Result<Vec<String>> {
        self.peek(move |conn| {
            let mut select =
                conn.prepare_cached("SELECT name FROM secrets WHERE team_id = ?1 ORDER BY name")?;
            let names = select.query_map(params![Blob(team.as_uuid())], |row| row.get(0))?;
            Ok(names.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// All secrets of a team as pairs of name and value. For the engine, which inserts them into calls and masks them
    /// in results.
    ///
    /// # Errors
    /// [`StoreError::Seal`] if any of them cannot be decrypted. Then none is used, because an unknown value could not
    /// be masked.
    pub async fn open_secrets(&self, team: TeamId) -> Result<Vec<(String, String)>> {
        let sealed: Vec<(String, Vec<u8>)> = self
            .peek(move |conn| {
                let mut select =
                    conn.prepare_cached("SELECT name, value FROM secrets WHERE team_id = ?1")?;
                let rows = select.query_map(params![Blob(team.as_uuid())], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await?;
        let opened = sealed.into_iter().map(|(name, sealed)| {
            let plain = self.keys().open(&purpose(team.as_uuid(), &name), &sealed)?;
            let value = String::from_utf8(plain).map_err(|_| StoreError::Corrupt {
                table: "secrets",
                column: "value",
                message: "it is not text".to_owned(),
            })?;
            Ok((name, value))
        });
        opened.collect()
    }
}

fn secret(row: &Row<'_>) -> rusqlite::Result<Secret> {
    Ok(Secret {
        name: row.get(0)?,
        created_by: row
            .get::<_, Option<Blob>>(1)?
            .map(|id| UserId::from_stored(id.0)),
        created_at: row.get::<_, Ms>(2)?.0,
        updated_at: row.get::<_, Ms>(3)?.0,
    })
}

fn select(conn: &Connection, team: TeamId, page: PageQuery) -> Result<Page<Secret>> {
    let total = conn
        .prepare_cached("SELECT count(*) FROM secrets WHERE team_id = ?1")?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))?;
    let mut select = conn.prepare_cached(
        "SELECT name, created_by, created_at, updated_at FROM secrets WHERE team_id = ?1 ORDER BY name LIMIT ?2 OFFSET ?3",
    )?;
    let offset = i64::try_from(page.offset).unwrap_or(i64::MAX);
    let items = select
        .query_map(params![Blob(team.as_uuid()), page.limit, offset], secret)?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Page {
        items,
        total: count(total),
    })
}

fn set(tx: &Tx<'_>, new: &SetSecret) -> Result<Secret> {
    let team = Blob(new.team.as_uuid());
    let found = |tx: &Tx<'_>| {
        tx.prepare_cached(
            "SELECT name, created_by, created_at, updated_at FROM secrets WHERE team_id = ?1 AND name = ?2",
        )?
        .query_row(params![team, new.name], secret)
        .optional()
    };
    if found(tx)?.is_none() {
        let there: i64 = tx
            .prepare_cached("SELECT count(*) FROM secrets WHERE team_id = ?1")?
            .query_row(params![team], |row| row.get(0))?;
        if there >= SECRETS_MAX {
            return Err(StoreError::Refused(format!(
                "a team has at most {SECRETS_MAX} secrets; delete those that are no longer used"
            )));
        }
    }
    let sealed = tx.keys().current().seal(
        &purpose(new.team.as_uuid(), &new.name),
        new.value.as_bytes(),
    )?;
    tx.prepare_cached(
        "INSERT INTO secrets (team_id, name, value, created_by, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?5)
         ON CONFLICT (team_id, name) DO UPDATE SET value = excluded.value, created_by = excluded.created_by,
             updated_at = excluded.updated_at",
    )?
    .execute(params![
        team,
        new.name,
        sealed.0,
        Blob(new.by.as_uuid()),
        Ms(new.now)
    ])?;
    found(tx)?.ok_or(StoreError::NotFound)
}
