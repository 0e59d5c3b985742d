//! A team's own settings of model providers.
//!
//! # Guarantees
//!
//! A key is encrypted for its team and provider, and only decrypted for the engine. People only see whether a key is
//! set.

use errand_core::id::TeamId;
use errand_core::time::Timestamp;
use rusqlite::{OptionalExtension as _, Row, params};
use uuid::Uuid;

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{ProviderRow, ProviderSetting, PutProvider};

pub(crate) fn provider_key(team: Uuid, name: &str) -> String {
    format!("provider_key:{team}:{name}")
}

const COLUMNS: &str = "name, kind, base_url, api_key IS NOT NULL, created_at, updated_at";

fn read(row: &Row<'_>) -> rusqlite::Result<ProviderRow> {
    Ok(ProviderRow {
        name: row.get(0)?,
        kind: row.get(1)?,
        base_url: row.get(2)?,
        has_key: row.get(3)?,
        created_at: row.get::<_, Ms>(4)?.0,
        updated_at: row.get::<_, Ms>(5)?.0,
    })
}

impl Store {
    /// The team's providers, by name, without keys.
    pub async fn providers(&self, team: TeamId) -> Result<Vec<ProviderRow>> {
        self.peek(move |conn| {
            Ok(conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM providers WHERE team_id = ?1 ORDER BY name"
                ))?
                .query_map(params![Blob(team.as_uuid())], read)?
                .collect::<rusqlite::Result<Vec<_>>>()?)
        })
        .await
    }

    /// A provider's settings with the decrypted key, for the engine. `None` if the team has no settings for it.
    ///
    /// # Errors
    /// [`StoreError::Seal`] if the server runs with a different master key.
    pub async fn provider_setting(
        &self,
        team: TeamId,
        name: &str,
    ) -> Result<Option<ProviderSetting>> {
        let wanted = name.to_owned();
        let found = self
            .peek(move |conn| {
                Ok(conn
                    .prepare_cached(
                        "SELECT kind, base_url, api_key FROM providers WHERE team_id = ?1 AND name = ?2",
                    )?
                    .query_row(params![Blob(team.as_uuid()), wanted], |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get::<_, Option<Vec<u8>>>(2)?))
                    })
                    .optional()?)
            })
            .await?;
        let Some((kind, base_url, sealed)) = found else {
            return Ok(None);
        };
        let key = sealed
            .map(|sealed| {
                let plain = self
                    .keys()
                    .open(&provider_key(team.as_uuid(), name), &sealed)?;
                String::from_utf8(plain).map_err(|e| StoreError::Corrupt {
                    table: "providers",
                    column: "api_key",
                    message: e.utf8_error().to_string(),
                })
            })
            .transpose()?;
        Ok(Some(ProviderSetting {
            kind,
            base_url,
            key,
        }))
    }

    /// Creates or changes a team's provider. Without a new key, the stored one is kept, unless the address changes: a
    /// key must only be sent to the address for which it was set.
    pub async fn put_provider(
        &self,
        put: PutProvider,
        recorded: Idempotent<ProviderRow>,
    ) -> Result<Outcome<ProviderRow>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, put.now, || {
                // Encrypted here on the writer's thread, so that a concurrent rotation cannot leave it under the old
                // master key.
                let master = tx.keys().current();
                let purpose = provider_key(put.team.as_uuid(), &put.name);
                let key = put.key.as_ref();
                let sealed = key
                    .map(|key| master.seal(&purpose, key.as_bytes()))
                    .transpose()?
                    .map(|sealed| sealed.0);
                tx.prepare_cached(
                    "INSERT INTO providers (team_id, name, kind, base_url, api_key, created_at, updated_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)
                     ON CONFLICT DO UPDATE SET
                         api_key = CASE WHEN ?5 IS NOT NULL THEN ?5
                             WHEN base_url IS ?4 AND kind = ?3 THEN api_key END,
                         kind = ?3, base_url = ?4, updated_at = ?6",
                )?
                .execute(params![
                    Blob(put.team.as_uuid()),
                    put.name,
                    put.kind,
                    put.base_url,
                    sealed,
                    Ms(put.now)
                ])?;
                Ok(tx
                    .prepare_cached(&format!(
                        "SELECT {COLUMNS} FROM providers WHERE team_id = ?1 AND name = ?2"
                    ))?
                    .query_row(params![Blob(put.team.as_uuid()), put.name], read)?)
            })
        })
        .await
    }

    /// Removes a team's provider settings.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_provider(
        &self,
        team: TeamId,
        name: String,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                let deleted = tx
                    .prepare_cached("DELETE FROM providers WHERE team_id = ?1 AND name = ?2")?
                    .execute(params![Blob(team.as_uuid()), name])?;
                if deleted == 1 {
                    Ok(())
                } else {
                    Err(StoreError::NotFound)
                }
            })
        })
        .await
    }
}
