//! Sessions of people in the web interface.
//!
//! Promised: a session is found by the SHA-256 of its token alone; it ends when it has not been used for a while, at the
//! end of its longest life, when it is closed, when its user is disabled, and, but for the one that does it, when the
//! password is changed. The role is that of *now*: whoever was taken out of a team sees it no more with the next
//! request.
//!
//! Left out: passwords, cookies and forms (the web pages).

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
/// How long it lives at most.
const LIFE_MS: u64 = 30 * 24 * 3_600_000;
/// How old the note of its last use grows before it is written again.
const SEEN_EVERY_MS: u64 = 3_600_000;
/// How many sessions that have ended are removed with each new one.
const SWEPT_WITH_EACH: u32 = 16;

/// A team of a person, with their present role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The team.
    pub team: TeamId,
    /// Its name.
    pub name: String,
    /// The person's role in it.
    pub role: Role,
}

/// Who is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The person.
    pub user: UserId,
    /// Their e-mail address.
    pub email: String,
    /// The team that they look at. None: they are of no team.
    pub team: Option<Membership>,
    /// All their teams, oldest first.
    pub teams: Vec<Membership>,
    /// When they logged in.
    pub created_at: Timestamp,
}

impl Store {
    /// The id and the password's PHC string of whoever has this e-mail address. None: unknown, disabled, or without a
    /// password.
    ///
    /// # Errors
    /// Those of any read.
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
    /// [`StoreError::NotFound`] where the user is unknown or disabled.
    pub async fn open_session(
        &self,
        user: UserId,
        token_hash: [u8; 32],
        now: Timestamp,
    ) -> Result<()> {
        self.write(move |tx| insert_session(tx, user, token_hash, now))
            .await
    }

    /// Who is logged in with this token. None: nobody any more. Notes the use, to the hour.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where a role cannot be read.
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

    /// Ends a session. One that is gone is no error.
    ///
    /// # Errors
    /// Those of any write.
    pub async fn close_session(&self, token_hash: [u8; 32]) -> Result<()> {
        self.write(move |tx| {
            // Whoever streams with it looks at once whether it counts.
            tx.ring_all();
            tx.prepare_cached("DELETE FROM sessions WHERE token_hash = ?1")?
                .execute(params![token_hash])?;
            Ok(())
        })
        .await
    }

    /// Looks at another team from now on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the session's user is not of the team.
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

    /// Sets another password, and ends all other sessions of the user. `phc_hash`: argon2id, as a PHC string. `kept`:
    /// the SHA-256 of the token of the session that goes on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the user is unknown or disabled.
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

/// Ends all sessions of a user, such as where their password was set by somebody with a link, or by the operator; how many
/// there were.
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
