//! Rotation of the master key: seals everything again under a new key.
//!
//! # Guarantees
//!
//! A crash at any moment loses no secret, and the next start completes the rotation. The server may keep working.
//! Everything in [`SEALED`] is sealed again in one transaction; whatever is sealed while that transaction waits for
//! its turn is already under the new key. A test compares [`SEALED`] with the schema.
//!
//! # Non-goals
//!
//! Earlier backups: they still need the key with which they were made.

mod discard;

use std::sync::Arc;

use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::crypto::seal::MasterKey;
use crate::crypto::seal::ring::Keyring;
use crate::db::sqlite::Store;
use crate::error::{Result, StoreError};

pub(crate) use discard::sealed_under;
pub use discard::{Discarded, SealedKeys};

/// A column that contains sealed secrets.
struct Place {
    table: &'static str,
    column: &'static str,
    /// First column of the primary key: an id.
    key: &'static str,
    /// A text that is a part of the purpose, besides the id; or null.
    text: &'static str,
    /// Builds the purpose that the value was sealed for.
    purpose: fn(Option<Uuid>, Option<String>) -> String,
}

/// All columns with sealed secrets.
const SEALED: &[Place] = &[
    Place {
        table: "teams",
        column: "webhook_secret",
        key: "id",
        text: "NULL",
        purpose: |id, _| format!("webhook_secret:{}", id.unwrap_or_default()),
    },
    Place {
        table: "retired_webhook_secrets",
        column: "secret",
        key: "team_id",
        text: "NULL",
        purpose: |id, _| format!("webhook_secret:{}", id.unwrap_or_default()),
    },
    Place {
        table: "secrets",
        column: "value",
        key: "team_id",
        text: "name",
        purpose: |id, name| {
            crate::integrations::secrets::purpose(id.unwrap_or_default(), &name.unwrap_or_default())
        },
    },
    Place {
        table: "providers",
        column: "api_key",
        key: "team_id",
        text: "name",
        purpose: |id, name| {
            crate::integrations::providers::provider_key(
                id.unwrap_or_default(),
                &name.unwrap_or_default(),
            )
        },
    },
    Place {
        table: "connections",
        column: "sign_in",
        key: "id",
        text: "NULL",
        purpose: |id, _| format!("sign_in:{}", id.unwrap_or_default()),
    },
];

/// Result of a rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// Number of secrets that were sealed again.
    pub secrets: u64,
    /// Number of secrets that cannot be opened and are unchanged. They were lost before.
    pub lost: u64,
    /// Id of the new key.
    pub key_id: String,
}

/// Ids of all master keys under which something in a database is sealed. Works with older schemas.
pub(crate) fn key_ids(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut ids = std::collections::BTreeSet::new();
    for Place { table, column, .. } in SEALED {
        if !crate::db::sqlite::snapshot::has_table(conn, table)? {
            continue;
        }
        let mut select = conn.prepare(&format!(
            "SELECT DISTINCT substr({column}, 1, 9) FROM {table} WHERE {column} IS NOT NULL"
        ))?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            ids.extend(crate::crypto::seal::key_id_of(
                row.get_ref(0)?.as_blob().unwrap_or_default(),
            ));
        }
    }
    Ok(ids.into_iter().collect())
}

impl Store {
    /// Seals everything under a new master key. If the key is in a file, the new one is generated and replaces that
    /// file. Otherwise the new key is `given`, and the operator must supply it at the next start.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if a key is missing or not wanted; [`StoreError::Seal`]. After any error, this store
    /// and the next start can still open every secret.
    pub async fn rotate_master_key(&self, given: Option<MasterKey>) -> Result<Rotated> {
        let keys = self.keys();
        let _alone = keys.rotating.lock().await;
        let current = keys.current();
        let file = current.file().map(ToOwned::to_owned);
        match (&file, given) {
            // A rotation that failed halfway continues with the key that is already on disk.
            (Some(file), None) if MasterKey::is_brought_in(file) => {}
            (Some(file), None) => keys.add(Arc::new(MasterKey::bring_in(file)?)),
            (None, Some(key)) if key.id() != current.id() => keys.add(Arc::new(key)),
            (None, Some(_)) => return Err(refused("the new master key is the one that is in use")),
            (Some(_), Some(_)) => {
                return Err(refused(
                    "the master key is in a file of the data directory, so the program generates the new one: leave ERRAND_NEW_MASTER_KEY unset",
                ));
            }
            (None, None) => {
                return Err(refused(
                    "the master key comes from ERRAND_MASTER_KEY: put the new key into ERRAND_NEW_MASTER_KEY (`openssl rand -base64 32` generates one)",
                ));
            }
        }
        let key_id = keys.current().id();
        let (secrets, lost) = self.write(move |tx| seal_anew(tx, tx.keys())).await?;
        if let Some(file) = &file {
            MasterKey::take_over(file)?;
        }
        Ok(Rotated {
            secrets,
            lost,
            key_id,
        })
    }
}

fn refused(message: &str) -> StoreError {
    StoreError::Refused(message.to_owned())
}

/// Loads the keys of a store that is being opened. An interrupted rotation is completed first.
pub(crate) fn open_keys(conn: &mut Connection, mut key: MasterKey) -> Result<Keyring> {
    let (next, file) = (key.take_next(), key.file().map(ToOwned::to_owned));
    let keys = Keyring::new(key);
    if let (Some(next), Some(file)) = (next, file) {
        keys.add(Arc::new(next));
        let tx = conn.transaction()?;
        let (secrets, _) = seal_anew(&tx, &keys)?;
        tx.commit()?;
        MasterKey::take_over(&file)?;
        tracing::info!(
            secrets,
            "an interrupted rotation of the master key was completed"
        );
    }
    Ok(keys)
}

/// Seals everything that is not under the current key again. Returns how many secrets were sealed, and how many
/// cannot be opened.
fn seal_anew(conn: &Connection, keys: &Keyring) -> Result<(u64, u64)> {
    let current = keys.current();
    let (mut done, mut lost) = (0, 0);
    for place in SEALED {
        let mut update = conn.prepare(&format!(
            "UPDATE {0} SET {1} = ?1 WHERE {2} = ?2 AND {1} = ?3",
            place.table, place.column, place.key
        ))?;
        for (key, purpose, sealed) in rows(conn, place)? {
            if current.sealed(&sealed) {
                continue;
            }
            match keys.open(&purpose, &sealed) {
                Ok(plain) => {
                    let anew = current.seal(&purpose, &plain)?;
                    update.execute(params![anew.0, key, sealed])?;
                    done += 1;
                }
                Err(error) => {
                    tracing::warn!(%purpose, %error, "a sealed secret cannot be opened and is left unchanged");
                    lost += 1;
                }
            }
        }
    }
    Ok((done, lost))
}

/// Key of the row, purpose, and sealed bytes.
type SealedRow = (Vec<u8>, String, Vec<u8>);

/// All sealed values of a column.
fn rows(conn: &Connection, place: &Place) -> Result<Vec<SealedRow>> {
    let mut select = conn.prepare(&format!(
        "SELECT {2}, {3}, {1} FROM {0} WHERE {1} IS NOT NULL",
        place.table, place.column, place.key, place.text
    ))?;
    let found = select.query_map([], |row| {
        let key: Vec<u8> = row.get(0)?;
        let purpose = (place.purpose)(Uuid::from_slice(&key).ok(), row.get(1)?);
        Ok((key, purpose, row.get(2)?))
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod tests;
