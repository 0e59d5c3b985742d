//! Sessions in the web interface.
//!
//! # Guarantees
//!
//! A session is found by the SHA-256 of its token only. It ends when it was not used for a while, when it reaches its
//! maximum age, when it is closed, when its user is disabled, and when the password is changed in another session.
//! The role is the *current* one: a user who was removed from a team no longer sees it at the next request.
//!
//! # Non-goals
//!
//! Passwords, cookies and forms (see the web pages).

use errand_core::id::{TeamId, UserId};
use errand_core::role::Role;
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::people::{update_password, void_links};
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, word};
use crate::error::{Result, StoreError};

/// How long a session lives without being used.
const IDLE_MS: u64 = 7 * 24 * 3_600_000;
/// Maximum age of a session.
const LIFE_MS: u64 = 30 * 24 * 3_600_000;
/// Minimum age of the last recorded use before it is written again.
const SEEN_EVERY_MS: u64 = 3_600_000;
/// Number of ended sessions that are deleted with each new one.
const SWEPT_WITH_EACH: u32 = 16;

/// A team of a user, with the user's current role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub team: TeamId,
    pub name: String,
    /// The user's role.
    pub role: Role,
}

/// A logged-in user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub user: UserId,
    pub email: String,
    /// The currently selected team. `None`: the user is in no team.
    pub team: Option<Membership>,
    /// All teams of the user, oldest first.
    pub teams: Vec<Membership>,
    /// When the user logged in.
    pub created_at: Timestamp,
}

impl Store {
    /// The id and the password's PHC string of the user with this email address. `None` if the user does not exist,
    /// is disabled, or has no password.
    pub async fn log_in_by_email(&self, email: &str) -> Result<Option<(UserId, String)>> {
        let email = email.trim().to_lowercase();
        self.read(move |conn| {
            let found = conn
                .prepare_cached(
                    "SELECT id, password_hash FROM users
                     WHERE email = ?1 AND disabled_at IS NULL AND password_hash IS NOT NULL",
                )?
                .query_row(params![email], |row| {
                    Ok((UserId::from_stored(row.get::<_, Blob>(0)?.0), row.get(1)?))
                })
                .optional()?;
            Ok(found)
        })
        .await
    }

    /// Opens a session. `token_hash`: SHA-256 of its token.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the user does not exist or is disabled.
    pub async fn open_session(
        &self,
        user: UserId,
        token_hash: [u8; 32],
        now: Timestamp,
    ) -> Result<()> {
        self.write(move |tx| insert_session(tx, user, token_hash, now))
            .await
    }

    /// The session with this token. `None` if it has ended. Records the use, accurate to the hour.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a role cannot be read.
    pub async fn session(&self, token_hash: [u8; 32], now: Timestamp) -> Result<Option<Session>> {
        let found = self
            .peek(move |conn| select_session(conn, token_hash, now))
            .await?;
        let Some((session, seen_at)) = found else {
            return Ok(None);
        };
        if now.ms_since(seen_at) >= SEEN_EVERY_MS {
            self.write(move |tx| touch_session(tx, token_hash, now))
                .await?;
        }
        Ok(Some(session))
    }

    /// Ends a session. Succeeds if it does not exist.
    pub async fn close_session(&self, token_hash: [u8; 32]) -> Result<()> {
        self.write(move |tx| {
            // Event streams that use the session must check it again.
            tx.ring_all();
            tx.prepare_cached("DELETE FROM sessions WHERE token_hash = ?1")?
                .execute(params![token_hash])?;
            Ok(())
        })
        .await
    }

    /// Selects another team for the session.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the session's user is not a member of the team.
    pub async fn choose_team(&self, token_hash: [u8; 32], team: TeamId) -> Result<()> {
        self.write(move |tx| {
            let changed = tx
                .prepare_cached(
                    "UPDATE sessions SET team_id = ?2 WHERE token_hash = ?1 AND EXISTS (
                         SELECT 1 FROM memberships m WHERE m.user_id = sessions.user_id AND m.team_id = ?2)",
                )?
                .execute(params![token_hash, Blob(team.as_uuid())])?;
            if changed == 0 {
                return Err(StoreError::NotFound);
            }
            Ok(())
        })
        .await
    }

    /// Changes the user's password and ends all other sessions of the user. `phc_hash`: argon2id as a PHC string.
    /// `kept`: SHA-256 of the token of the session that continues.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the user does not exist or is disabled.
    pub async fn change_password(
        &self,
        user: UserId,
        phc_hash: String,
        kept: [u8; 32],
    ) -> Result<()> {
        self.write(move |tx| {
            if !super::people::user_is_enabled(tx, user)? {
                return Err(StoreError::NotFound);
            }
            tx.ring_all();
            update_password(tx, user, &phc_hash)?;
            void_links(tx, user)?;
            tx.prepare_cached("DELETE FROM sessions WHERE user_id = ?1 AND token_hash <> ?2")?
                .execute(params![Blob(user.as_uuid()), kept])?;
            Ok(())
        })
        .await
    }
}

/// Ends all sessions of a user, for example after the password was set with a link or by the operator. Returns their
/// number.
pub(super) fn end_sessions(tx: &Connection, user: UserId) -> Result<u64> {
    let ended = tx
        .prepare_cached("DELETE FROM sessions WHERE user_id = ?1")?
        .execute(params![Blob(user.as_uuid())])?;
    Ok(ended as u64)
}

fn insert_session(
    tx: &Connection,
    user: UserId,
    token_hash: [u8; 32],
    now: Timestamp,
) -> Result<()> {
    tx.prepare_cached(
        "DELETE FROM sessions WHERE token_hash IN
             (SELECT token_hash FROM sessions WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)",
    )?
    .execute(params![Ms(now), SWEPT_WITH_EACH])?;
    let inserted = tx
        .prepare_cached(
            "INSERT INTO sessions (token_hash, user_id, created_at, seen_at, expires_at)
             SELECT ?1, id, ?3, ?3, ?4 FROM users WHERE id = ?2 AND disabled_at IS NULL",
        )?
        .execute(params![
            token_hash,
            Blob(user.as_uuid()),
            Ms(now),
            Ms(now.plus_ms(IDLE_MS))
        ])?;
    if inserted == 0 {
        return Err(StoreError::NotFound);
    }
    Ok(())
}

fn touch_session(tx: &Connection, token_hash: [u8; 32], now: Timestamp) -> Result<()> {
    let life = i64::try_from(LIFE_MS).unwrap_or(i64::MAX);
    tx.prepare_cached(
        "UPDATE sessions SET seen_at = ?2, expires_at = min(?3, created_at + ?4) WHERE token_hash = ?1",
    )?
    .execute(params![token_hash, Ms(now), Ms(now.plus_ms(IDLE_MS)), life])?;
    Ok(())
}

fn select_session(
    conn: &Connection,
    token_hash: [u8; 32],
    now: Timestamp,
) -> Result<Option<(Session, Timestamp)>> {
    type Found = (UserId, Option<String>, Option<TeamId>, Timestamp, Timestamp);
    let row = |row: &Row<'_>| -> rusqlite::Result<Found> {
        Ok((
            UserId::from_stored(row.get::<_, Blob>(0)?.0),
            row.get(1)?,
            row.get::<_, Option<Blob>>(2)?
                .map(|team| TeamId::from_stored(team.0)),
            row.get::<_, Ms>(3)?.0,
            row.get::<_, Ms>(4)?.0,
        ))
    };
    let found = conn
        .prepare_cached(
            "SELECT s.user_id, u.email, s.team_id, s.created_at, s.seen_at
             FROM sessions s JOIN users u ON u.id = s.user_id AND u.disabled_at IS NULL
             WHERE s.token_hash = ?1 AND s.expires_at > ?2",
        )?
        .query_row(params![token_hash, Ms(now)], row)
        .optional()?;
    let Some((user, email, chosen, created_at, seen_at)) = found else {
        return Ok(None);
    };
    let teams = select_memberships(conn, user)?;
    let team = chosen
        .and_then(|team| teams.iter().find(|of| of.team == team))
        .or_else(|| teams.first())
        .cloned();
    let session = Session {
        user,
        email: email.unwrap_or_default(),
        team,
        teams,
        created_at,
    };
    Ok(Some((session, seen_at)))
}

fn select_memberships(conn: &Connection, user: UserId) -> Result<Vec<Membership>> {
    conn.prepare_cached(
        "SELECT t.id, t.name, m.role FROM memberships m JOIN teams t ON t.id = m.team_id
         WHERE m.user_id = ?1 ORDER BY t.created_at, t.id",
    )?
    .query_and_then(params![Blob(user.as_uuid())], |row| {
        let role: String = row.get(2)?;
        Ok(Membership {
            team: TeamId::from_stored(row.get::<_, Blob>(0)?.0),
            name: row.get(1)?,
            role: word("memberships", "role", &role, Role::parse)?,
        })
    })?
    .collect()
}
