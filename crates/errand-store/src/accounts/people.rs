//! Users: email addresses, passwords and set-up links.
//!
//! A set-up link allows whoever has its token to set the user's password, once and until it expires. A user has at
//! most one working link: a new link, or a new password, invalidates earlier ones.

use errand_core::id::UserId;
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::sessions::end_sessions;
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms};
use crate::error::{Result, StoreError};

/// Maximum length of an email address in characters, as mail servers accept it.
const EMAIL_CHARS_MAX: usize = 254;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    /// In lower case. `None` for an owner whose account has not been claimed yet.
    pub email: Option<String>,
    pub created_at: Timestamp,
    /// Whether the user is disabled and may not do anything.
    pub disabled: bool,
}

/// A user to create.
#[derive(Clone, Debug)]
pub struct NewUser {
    pub id: UserId,
    /// Email address, as entered.
    pub email: String,
    pub now: Timestamp,
}

impl Store {
    /// Creates a user without a password and without a team.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] (`email`), [`StoreError::Conflict`] if another user has the address.
    pub async fn create_user(&self, new: NewUser) -> Result<User> {
        self.write(move |tx| {
            let email = normal_email(&new.email)?;
            if select_by_email(tx, &email)?.is_some() {
                return Err(email_taken());
            }
            insert_user(tx, new.id, &email, new.now)
        })
        .await
    }

    /// The user with an email address, regardless of upper and lower case. `None` also if the text is not an
    /// address.
    pub async fn user_by_email(&self, email: &str) -> Result<Option<User>> {
        let Ok(email) = normal_email(email) else {
            return Ok(None);
        };
        self.read(move |conn| select_by_email(conn, &email)).await
    }

    /// Sets a user's password, and invalidates the user's set-up links and sessions. `phc_hash`: argon2id as a PHC
    /// string.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Refused`] if the user is disabled.
    pub async fn set_password(&self, email: &str, phc_hash: String) -> Result<User> {
        let email = normal_email(email)?;
        self.write(move |tx| {
            let user = select_by_email(tx, &email)?.ok_or(StoreError::NotFound)?;
            not_disabled(&user)?;
            update_password(tx, user.id, &phc_hash)?;
            void_links(tx, user.id)?;
            end_sessions(tx, user.id)?;
            tx.ring_all();
            Ok(user)
        })
        .await
    }

    /// The PHC string of a user's password. `None` if the user does not exist, is disabled, or has no password.
    pub async fn password_hash(&self, user: UserId) -> Result<Option<String>> {
        self.read(move |conn| {
            let found = conn
                .prepare_cached(
                    "SELECT password_hash FROM users WHERE id = ?1 AND disabled_at IS NULL",
                )?
                .query_row(params![Blob(user.as_uuid())], |row| {
                    row.get::<_, Option<String>>(0)
                })
                .optional()?;
            Ok(found.flatten())
        })
        .await
    }

    /// Stores a set-up link for a user and invalidates earlier ones. `token_hash`: SHA-256 of its token.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Refused`] if the user is disabled.
    pub async fn create_set_up_link(
        &self,
        user: UserId,
        token_hash: [u8; 32],
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<User> {
        self.write(move |tx| {
            let found = select_user(tx, user)?.ok_or(StoreError::NotFound)?;
            not_disabled(&found)?;
            void_links(tx, user)?;
            tx.prepare_cached("INSERT INTO set_up_links (token_hash, user_id, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![token_hash, Blob(user.as_uuid()), Ms(now), Ms(expires_at)])?;
            Ok(found)
        })
        .await
    }

    /// The user of a set-up link. `None` if the link is unknown, used, expired or replaced, or the user is disabled.
    /// Does not use it up.
    pub async fn set_up_link(&self, token_hash: [u8; 32], now: Timestamp) -> Result<Option<User>> {
        self.read(move |conn| link_holder(conn, token_hash, now))
            .await
    }

    /// Sets the password of the user of a set-up link, and the email address if the user has none yet. A link works once.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if [`Store::set_up_link`] returns `None`, [`StoreError::Invalid`] (`email`: missing,
    /// not an address, or not the user's), [`StoreError::Conflict`] if another user has the address. A refused link
    /// is not used up.
    pub async fn claim_set_up_link(
        &self,
        token_hash: [u8; 32],
        email: Option<String>,
        phc_hash: String,
        now: Timestamp,
    ) -> Result<User> {
        self.write(move |tx| claim_link(tx, token_hash, email.as_deref(), &phc_hash, now))
            .await
    }
}

/// Normalizes an email address: trimmed and in lower case.
pub(super) fn normal_email(text: &str) -> Result<String> {
    let email = text.trim().to_lowercase();
    let odd = |c: char| c.is_whitespace() || c.is_control();
    let well_formed = email
        .rsplit_once('@')
        .is_some_and(|(local, host)| !local.is_empty() && !local.contains('@') && !host.is_empty());
    if well_formed && !email.chars().any(odd) && email.chars().count() <= EMAIL_CHARS_MAX {
        return Ok(email);
    }
    Err(invalid_email(
        "must be an email address, such as ann@example.com",
    ))
}

fn invalid_email(message: &str) -> StoreError {
    StoreError::Invalid {
        field: "email",
        message: message.to_owned(),
    }
}

pub(super) fn email_taken() -> StoreError {
    StoreError::Conflict("another user has this email address; use another one".to_owned())
}

fn not_disabled(user: &User) -> Result<()> {
    if user.disabled {
        return Err(StoreError::Refused(
            "this user is disabled; an operator can enable the user with `errand users enable`"
                .to_owned(),
        ));
    }
    Ok(())
}

pub(super) fn user_row(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: UserId::from_stored(row.get::<_, Blob>(0)?.0),
        email: row.get(1)?,
        created_at: row.get::<_, Ms>(2)?.0,
        disabled: row.get::<_, Option<i64>>(3)?.is_some(),
    })
}

pub(super) fn select_user(conn: &Connection, user: UserId) -> Result<Option<User>> {
    let found = conn
        .prepare_cached("SELECT id, email, created_at, disabled_at FROM users WHERE id = ?1")?
        .query_row(params![Blob(user.as_uuid())], user_row)
        .optional()?;
    Ok(found)
}

pub(super) fn select_by_email(conn: &Connection, email: &str) -> Result<Option<User>> {
    let found = conn
        .prepare_cached("SELECT id, email, created_at, disabled_at FROM users WHERE email = ?1")?
        .query_row(params![email], user_row)
        .optional()?;
    Ok(found)
}

pub(super) fn insert_user(
    tx: &Connection,
    id: UserId,
    email: &str,
    now: Timestamp,
) -> Result<User> {
    tx.prepare_cached("INSERT INTO users (id, email, created_at) VALUES (?1, ?2, ?3)")?
        .execute(params![Blob(id.as_uuid()), email, Ms(now)])?;
    Ok(User {
        id,
        email: Some(email.to_owned()),
        created_at: now,
        disabled: false,
    })
}

pub(super) fn user_is_enabled(conn: &Connection, user: UserId) -> Result<bool> {
    Ok(select_user(conn, user)?.is_some_and(|found| !found.disabled))
}

pub(super) fn update_password(tx: &Connection, user: UserId, phc_hash: &str) -> Result<()> {
    tx.prepare_cached("UPDATE users SET password_hash = ?2 WHERE id = ?1")?
        .execute(params![Blob(user.as_uuid()), phc_hash])?;
    Ok(())
}

pub(super) fn void_links(tx: &Connection, user: UserId) -> Result<()> {
    tx.prepare_cached("DELETE FROM set_up_links WHERE user_id = ?1 AND used_at IS NULL")?
        .execute(params![Blob(user.as_uuid())])?;
    Ok(())
}

fn link_holder(conn: &Connection, token_hash: [u8; 32], now: Timestamp) -> Result<Option<User>> {
    let found = conn
        .prepare_cached(
            "SELECT u.id, u.email, u.created_at, u.disabled_at
             FROM set_up_links l JOIN users u ON u.id = l.user_id AND u.disabled_at IS NULL
             WHERE l.token_hash = ?1 AND l.used_at IS NULL AND l.expires_at > ?2",
        )?
        .query_row(params![token_hash, Ms(now)], user_row)
        .optional()?;
    Ok(found)
}

fn claim_link(
    tx: &Connection,
    token_hash: [u8; 32],
    email: Option<&str>,
    phc_hash: &str,
    now: Timestamp,
) -> Result<User> {
    let user = link_holder(tx, token_hash, now)?.ok_or(StoreError::NotFound)?;
    let given = email.map(normal_email).transpose()?;
    let email = match (&user.email, given) {
        (None, None) => {
            return Err(invalid_email(
                "must be given, because this user has no email address yet",
            ));
        }
        (None, Some(given)) if select_by_email(tx, &given)?.is_some() => return Err(email_taken()),
        (None, Some(given)) => given,
        (Some(own), Some(given)) if *own != given => {
            return Err(invalid_email(
                "does not match the user of this link; leave it out",
            ));
        }
        (Some(own), _) => own.clone(),
    };
    tx.prepare_cached(
        "UPDATE set_up_links SET used_at = ?2 WHERE token_hash = ?1 AND used_at IS NULL",
    )?
    .execute(params![token_hash, Ms(now)])?;
    tx.prepare_cached("UPDATE users SET email = ?2, password_hash = ?3 WHERE id = ?1")?
        .execute(params![Blob(user.id.as_uuid()), email, phc_hash])?;
    void_links(tx, user.id)?;
    end_sessions(tx, user.id)?;
    Ok(User {
        email: Some(email),
        ..user
    })
}
