//! A team's secrets: written, used and deleted; their values are read by the engine alone, at the moment of a call.
//!
//! Promised: a value is sealed for its team and its name, so that it opens in no other row; what is listed has no value.
//!
//! Left out: where a secret may be used (`errand_core::secret`, `errand_core::config`).

use std::fmt;

use errand_core::id::{TeamId, UserId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, count};
use crate::error::{Result, StoreError};
use crate::idempotency::{Answer, Once, once};
use crate::model::{Page, PageQuery};

/// Most secrets of a team: all of them are looked for in whatever a connection gives back.
const SECRETS_MAX: i64 = 200;

/// A secret, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Its name, which no other of the team has.
    pub name: String,
    /// Who set it last.
    pub created_by: Option<UserId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its value was set last.
    pub updated_at: Timestamp,
}

/// A secret to set. Its `Debug` shows nothing of the value.
#[derive(Clone)]
pub struct SetSecret {
    /// Whose.
    pub team: TeamId,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// By whom.
    pub by: UserId,
    /// Now.
    pub now: Timestamp,
}

impl fmt::Debug for SetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetSecret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What a secret's value is sealed for.
pub(crate) fn purpose(team: Uuid, name: &str) -> String {
    format!("secret:{team}:{name}")
}

impl Store {
    /// The team's secrets, by name.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn list_secrets(&self, team: TeamId, page: PageQuery) -> Result<Page<Secret>> {
        self.read_for(team, move |conn| select(conn, team, page))
            .await
    }

    /// Makes a secret, or sets another value for the one of that name.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the team has as many as it may; [`StoreError::Seal`].
    pub async fn set_secret(
        &self,
        new: SetSecret,
        recorded: Once<Secret>,
    ) -> Result<Answer<Secret>> {
        self.write(move |tx| once(tx, &recorded, new.now, || set(tx, &new)))
            .await
    }

    /// Deletes a secret: calls that name it fail from now on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_secret(
        &self,
        team: TeamId,
        name: String,
        now: Timestamp,
        recorded: Once<()>,
    ) -> Result<Answer<()>> {
        self.write(move |tx| {
            once(tx, &recorded, now, || {
                let deleted = tx
                    .prepare_cached("DELETE FROM secrets WHERE team_id = ?1 AND name = ?2")?
                    .execute(params![Blob(team.as_uuid()), name])?;
                (deleted == 1).then_some(()).ok_or(StoreError::NotFound)
            })
        })
        .await
    }

    /// The names of the team's secrets.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn secret_names(&self, team: TeamId) -> Result<Vec<String>> {
        self.peek(move |conn| {
            let mut select =
                conn.prepare_cached("SELECT name FROM secrets WHERE team_id = ?1 ORDER BY name")?;
            let names = select.query_map(params![Blob(team.as_uuid())], |row| row.get(0))?;
            Ok(names.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// All secrets of a team, opened: name and value. For the engine, which puts them into calls and takes them out of
    /// what comes back.
    ///
    /// # Errors
    /// [`StoreError::Seal`] where one cannot be opened: then none is used, since what cannot be known cannot be masked.
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
                message: "it is no text".to_owned(),
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
                "a team has {SECRETS_MAX} secrets at most; delete those that are not used any more"
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
