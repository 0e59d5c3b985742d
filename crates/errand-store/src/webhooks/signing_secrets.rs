//! Secrets for signing a team's webhooks: the current one, and recently replaced ones.
//!
//! # Guarantees
//!
//! Secrets are sealed at rest. A replaced secret keeps signing, together with the new one, for a day from the commit
//! that replaces it. Therefore no webhook is ever signed only with a secret that its receiver does not know yet.

use errand_core::id::TeamId;
use errand_core::limits::{RETIRED_SECRET_MS, RETIRED_SECRETS_MAX};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::crypto::seal::Sealed;
use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};

/// The secrets that sign a team's webhooks now. Deliberately without `Debug`.
#[derive(Clone)]
pub struct SigningSecrets {
    /// The current secret: `whsec_…`.
    pub present: String,
    /// Replaced secrets that still sign, newest first.
    pub retired: Vec<RetiredSecret>,
}

/// A replaced secret. Deliberately without `Debug`.
#[derive(Clone)]
pub struct RetiredSecret {
    /// The secret: `whsec_…`.
    pub secret: String,
    /// Until when it signs.
    pub valid_until: Timestamp,
}

/// A secret that replaces the current one. Deliberately without `Debug`.
#[derive(Clone)]
pub struct NewSecret {
    pub team: TeamId,
    /// `whsec_` and 32 random bytes in base64.
    pub secret: String,
    pub now: Timestamp,
}

/// Result of replacing a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rolled {
    /// Until when each of the replaced secrets keeps signing, newest first.
    pub retired_until: Vec<Timestamp>,
}

impl Store {
    /// The team's current webhook secret, opened: `whsec_…`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Seal`] if the server runs with a different master key.
    pub async fn webhook_secret(&self, team: TeamId) -> Result<String> {
        let sealed = self
            .read_for(team, move |conn| select_present(conn, team))
            .await?;
        self.open_secret(team, &sealed)
    }

    /// The secrets that sign the team's webhooks now, opened. Replaced secrets that cannot be opened are left out.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Seal`] if the server runs with a different master key.
    pub async fn signing_secrets(&self, team: TeamId, now: Timestamp) -> Result<SigningSecrets> {
        let (present, retired) = self
            .peek(move |conn| {
                Ok((
                    select_present(conn, team)?,
                    select_retired(conn, team, now)?,
                ))
            })
            .await?;
        let open = |(sealed, valid_until): (Vec<u8>, Timestamp)| {
            let opened = self.open_secret(team, &sealed);
            let secret = opened.inspect_err(|error| self.skip_retired(team, error));
            secret.ok().map(|secret| RetiredSecret {
                secret,
                valid_until,
            })
        };
        Ok(SigningSecrets {
            present: self.open_secret(team, &present)?,
            retired: retired.into_iter().filter_map(open).collect(),
        })
    }

    /// Replaces the team's webhook secret. The old one keeps signing for a day.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Conflict`] if the maximum number of secrets was replaced within a day.
    pub async fn roll_webhook_secret(
        &self,
        new: NewSecret,
        recorded: Idempotent<Rolled>,
    ) -> Result<Outcome<Rolled>> {
        let (team, now) = (new.team, new.now);
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                let sealed = seal_secret(tx, team, &new.secret)?;
                roll(tx, team, &sealed, now)
            })
        })
        .await
    }

    /// Skips a replaced secret that cannot be opened. Receivers know the current one, or will soon.
    fn skip_retired(&self, team: TeamId, error: &StoreError) {
        if self.keys().is_news(&purpose(team)) {
            tracing::warn!(
                team.id = %team,
                error = error as &dyn std::error::Error,
                "a retired webhook secret cannot be opened: webhooks are signed without it"
            );
        }
    }

    fn open_secret(&self, team: TeamId, sealed: &[u8]) -> Result<String> {
        let plain = self.keys().open(&purpose(team), sealed)?;
        String::from_utf8(plain).map_err(|e| StoreError::Corrupt {
            table: "teams",
            column: "webhook_secret",
            message: e.utf8_error().to_string(),
        })
    }
}

/// Seals a secret within a write, with the master key that is current at that moment.
pub(crate) fn seal_secret(tx: &Tx<'_>, team: TeamId, secret: &str) -> Result<Sealed> {
    let key = tx.keys().current();
    Ok(key.seal(&purpose(team), secret.as_bytes())?)
}

/// Context for sealing a team's webhook secrets.
fn purpose(team: TeamId) -> String {
    format!("webhook_secret:{team}")
}

fn select_present(conn: &Connection, team: TeamId) -> Result<Vec<u8>> {
    conn.prepare_cached("SELECT webhook_secret FROM teams WHERE id = ?1")?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))
        .optional()?
        .ok_or(StoreError::NotFound)
}

fn select_retired(
    conn: &Connection,
    team: TeamId,
    now: Timestamp,
) -> Result<Vec<(Vec<u8>, Timestamp)>> {
    let retired = conn
        .prepare_cached(
            "SELECT secret, valid_until FROM retired_webhook_secrets WHERE team_id = ?1 AND valid_until > ?2 ORDER BY retired_at DESC",
        )?
        .query_map(params![Blob(team.as_uuid()), Ms(now)], |row| {
            Ok((row.get(0)?, row.get::<_, Ms>(1)?.0))
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(retired)
}

fn roll(tx: &Tx<'_>, team: TeamId, sealed: &Sealed, now: Timestamp) -> Result<Rolled> {
    let opens = |sealed: &[u8]| tx.keys().open(&purpose(team), sealed).is_ok();
    let present = select_present(tx, team)?;
    // A secret that cannot be opened signs nothing, so it does not count toward the limit.
    let mut retired_until: Vec<Timestamp> = select_retired(tx, team, now)?
        .into_iter()
        .filter(|(sealed, _)| opens(sealed))
        .map(|(_, until)| until)
        .collect();
    if retired_until.len() >= RETIRED_SECRETS_MAX {
        return Err(StoreError::Conflict(format!(
            "the secret was replaced {RETIRED_SECRETS_MAX} times within a day, and all of the old ones still sign; wait until one has expired"
        )));
    }
    tx.prepare_cached(
        "DELETE FROM retired_webhook_secrets WHERE team_id = ?1 AND valid_until <= ?2",
    )?
    .execute(params![Blob(team.as_uuid()), Ms(now)])?;
    if opens(&present) {
        let until = now.plus_ms(RETIRED_SECRET_MS);
        tx.prepare_cached(
            "INSERT INTO retired_webhook_secrets (team_id, retired_at, valid_until, secret) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![Blob(team.as_uuid()), Ms(now), Ms(until), present])?;
        retired_until.insert(0, until);
    }
    tx.prepare_cached("UPDATE teams SET webhook_secret = ?2 WHERE id = ?1")?
        .execute(params![Blob(team.as_uuid()), sealed.0])?;
    Ok(Rolled { retired_until })
}
