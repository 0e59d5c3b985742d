//! Access control: API keys here, and [`people`], [`sessions`], [`teams`], [`members`], [`operate`], [`invitations`]
//! and [`secrets`] in their own modules.
//!
//! # Guarantees
//!
//! A key has the role that its creator has *now*, determined by a single query. A key expires no later than the key
//! that created it. A team always has an owner who is not disabled, and only owners can create or remove owners.
//!
//! # Non-goals
//!
//! Checking whether a caller may do what it asks (the API calls [`Caller::may`]); generating keys and tokens, and
//! hashing them or passwords. Secrets reach the store as hashes, except for the webhook secret, which is sealed.

#[cfg(test)]
pub(crate) mod fixture;
mod invitations;
mod members;
mod operate;
mod people;
mod sessions;
mod teams;
#[cfg(test)]
mod tests;

use errand_core::id::{ApiKeyId, TeamId, UserId};
use errand_core::role::Role;
use errand_core::time::Timestamp;
use rusqlite::{Connection, Row, params};

pub use invitations::{Invitation, Joining, NewInvitation};
pub use members::{Member, OfMember};
pub use operate::{Access, Person, TeamFacts};
pub use people::{NewUser, User};
pub use sessions::{Membership, Session};
pub use teams::{Bootstrap, Bootstrapped, NewTeam, Team};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, word};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{ApiKey, Caller, Page, PageQuery};

/// Minimum age of a key's `last_used_at` before it is written again. A write for every request would cost more than
/// the request.
const TOUCH_EVERY_MS: i64 = 60_000;

/// An API key to store. The store never sees the key itself.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    pub id: ApiKeyId,
    pub team: TeamId,
    /// The user whose role the key has. Must be a member of the team.
    pub created_by: UserId,
    pub name: String,
    /// Its first characters, to recognize it.
    pub prefix: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// When it expires. `None`: never, unless `not_after` limits it.
    pub expires_at: Option<Timestamp>,
    /// When the key that creates this one expires. The new key expires no later.
    pub not_after: Option<Timestamp>,
    pub now: Timestamp,
}

impl Store {
    /// The caller with the key of this SHA-256. `None` if there is no such key, it has expired, or its creator is
    /// disabled or has left the team. Writes nothing.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the creator's role cannot be read.
    pub async fn caller_by_key_hash(
        &self,
        hash: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<Caller>> {
        self.peek(move |conn| caller(conn, hash, now)).await
    }

    /// Records that a key was used. Writes only if the last record is at least 60 s old. Succeeds if the key was
    /// deleted.
    pub async fn touch_key(&self, key: ApiKeyId, now: Timestamp) -> Result<()> {
        if !self.peek(move |conn| key_is_stale(conn, key, now)).await? {
            return Ok(());
        }
        self.write(move |tx| write_last_used(tx, key, now)).await
    }

    /// A page of the team's keys, newest first, including expired ones.
    pub async fn list_api_keys(&self, team: TeamId, page: PageQuery) -> Result<Page<ApiKey>> {
        self.read_for(team, move |conn| select_keys(conn, team, page))
            .await
    }

    /// Stores a key.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] (`expires_at`) if the key would already have expired; [`StoreError::NotFound`] if its
    /// creator is disabled or not a member of the team.
    pub async fn create_api_key(
        &self,
        new: NewApiKey,
        recorded: Idempotent<ApiKey>,
    ) -> Result<Outcome<ApiKey>> {
        self.write(move |tx| idempotent(tx, &recorded, new.now, || insert_key(tx, &new)))
            .await
    }

    /// Deletes a key. From the commit on, calls with it are refused.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_api_key(
        &self,
        team: TeamId,
        key: ApiKeyId,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        self.write(move |tx| {
            // Event streams that use the key must check it again.
            tx.ring_all();
            idempotent(tx, &recorded, now, || delete_key(tx, team, key))
        })
        .await
    }
}

fn caller(conn: &Connection, hash: [u8; 32], now: Timestamp) -> Result<Option<Caller>> {
    let row = |row: &Row<'_>| -> Result<Caller> {
        Ok(Caller {
            team: TeamId::from_stored(row.get::<_, Blob>(0)?.0),
            user: UserId::from_stored(row.get::<_, Blob>(1)?.0),
            api_key: ApiKeyId::from_stored(row.get::<_, Blob>(2)?.0),
            role: word(
                "memberships",
                "role",
                row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?,
                Role::parse,
            )?,
            expires_at: row.get::<_, Option<Ms>>(4)?.map(|ms| ms.0),
            last_used_at: row.get::<_, Option<Ms>>(5)?.map(|ms| ms.0),
            api_key_name: row.get(6)?,
        })
    };
    conn.prepare_cached(
        "SELECT k.team_id, k.created_by, k.id, m.role, k.expires_at, k.last_used_at, k.name
         FROM api_keys k
         JOIN users u ON u.id = k.created_by AND u.disabled_at IS NULL
         JOIN memberships m ON m.team_id = k.team_id AND m.user_id = k.created_by
         WHERE k.hash = ?1 AND (k.expires_at IS NULL OR k.expires_at > ?2)",
    )?
    .query_and_then(params![hash, Ms(now)], row)?
    .next()
    .transpose()
}

fn key_is_stale(conn: &Connection, key: ApiKeyId, now: Timestamp) -> Result<bool> {
    let stale = conn
        .prepare_cached(
            "SELECT 1 FROM api_keys WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at <= ?2)",
        )?
        .exists(params![
            Blob(key.as_uuid()),
            now.as_millis() - TOUCH_EVERY_MS
        ])?;
    Ok(stale)
}

fn write_last_used(tx: &Connection, key: ApiKeyId, now: Timestamp) -> Result<()> {
    tx.prepare_cached(
        "UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at <= ?3)",
    )?
    .execute(params![Blob(key.as_uuid()), Ms(now), now.as_millis() - TOUCH_EVERY_MS])?;
    Ok(())
}

fn select_keys(conn: &Connection, team: TeamId, page: PageQuery) -> Result<Page<ApiKey>> {
    let total = conn
        .prepare_cached("SELECT count(*) FROM api_keys WHERE team_id = ?1")?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))?;
    let items = conn
        .prepare_cached(
            "SELECT id, name, prefix, created_by, created_at, last_used_at, expires_at FROM api_keys
             WHERE team_id = ?1 ORDER BY created_at DESC, id DESC LIMIT ?2 OFFSET ?3",
        )?
        .query_and_then(params![Blob(team.as_uuid()), page.limit, int(page.offset)], api_key)?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: count(total),
    })
}

fn api_key(row: &Row<'_>) -> Result<ApiKey> {
    Ok(ApiKey {
        id: ApiKeyId::from_stored(row.get::<_, Blob>(0)?.0),
        name: row.get(1)?,
        prefix: row.get(2)?,
        created_by: UserId::from_stored(row.get::<_, Blob>(3)?.0),
        created_at: row.get::<_, Ms>(4)?.0,
        last_used_at: row.get::<_, Option<Ms>>(5)?.map(|ms| ms.0),
        expires_at: row.get::<_, Option<Ms>>(6)?.map(|ms| ms.0),
    })
}

fn insert_key(tx: &Connection, new: &NewApiKey) -> Result<ApiKey> {
    let expires_at = match (new.expires_at, new.not_after) {
        (Some(asked), Some(bound)) => Some(asked.min(bound)),
        (asked, bound) => asked.or(bound),
    };
    if expires_at.is_some_and(|end| end <= new.now) {
        return Err(StoreError::Invalid {
            field: "expires_at",
            message: "must be in the future".to_owned(),
        });
    }
    let inserted = tx
        .prepare_cached(
            "INSERT INTO api_keys (id, team_id, created_by, name, prefix, hash, created_at, expires_at)
             SELECT ?1, m.team_id, m.user_id, ?4, ?5, ?6, ?7, ?8
             FROM memberships m JOIN users u ON u.id = m.user_id AND u.disabled_at IS NULL
             WHERE m.team_id = ?2 AND m.user_id = ?3",
        )?
        .execute(params![
            Blob(new.id.as_uuid()),
            Blob(new.team.as_uuid()),
            Blob(new.created_by.as_uuid()),
            new.name,
            new.prefix,
            new.hash,
            Ms(new.now),
            expires_at.map(Ms),
        ])?;
    if inserted == 0 {
        return Err(StoreError::NotFound);
    }
    Ok(ApiKey {
        id: new.id,
        name: new.name.clone(),
        prefix: new.prefix.clone(),
        created_by: new.created_by,
        created_at: new.now,
        last_used_at: None,
        expires_at,
    })
}

fn delete_key(tx: &Connection, team: TeamId, key: ApiKeyId) -> Result<()> {
    let deleted = tx
        .prepare_cached("DELETE FROM api_keys WHERE id = ?1 AND team_id = ?2")?
        .execute(params![Blob(key.as_uuid()), Blob(team.as_uuid())])?;
    if deleted == 0 {
        Err(StoreError::NotFound)
    } else {
        Ok(())
    }
}
