//! Secrets that no available key can open: finds them, and discards them if an operator asks for it.
//!
//! # Guarantees
//!
//! A secret that can be opened is never discarded. A team's webhook secret is replaced, so that its webhooks are
//! signed. Everything else is removed: the provider has no key, the connection is not signed in, and the secret does
//! not exist any more.

use std::collections::BTreeMap;

use errand_core::time::Timestamp;
use rusqlite::{Connection, params};

use super::{Place, SEALED, rows};
use crate::crypto::seal::MasterKey;
use crate::db::sqlite::Store;
use crate::db::types::Ms;
use crate::error::Result;

/// These expire within a day, so they need no decision.
const PASSING: &str = "retired_webhook_secrets";
/// Maximum number of names per kind that are kept for the log.
const NAMES_MAX: usize = 100;

/// Result of discarding secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// By table: the number of secrets and what they were for, up to a maximum. Never a value.
    pub by_kind: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Discarded {
    /// Total number of discarded secrets.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.by_kind.values().map(|(count, _)| count).sum()
    }
}

/// Which keys the secrets of a running store are sealed under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedKeys {
    /// Id of the key that seals now.
    pub current: String,
    /// Number of secrets that can be opened.
    pub opened: u64,
    /// Ids of keys that are not available, with the number of secrets that only they open.
    pub lost: BTreeMap<String, u64>,
}

/// Number of secrets by the id of their key. Columns that an older schema lacks are left out.
pub(crate) fn sealed_under(conn: &Connection) -> rusqlite::Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for place in SEALED.iter().filter(|place| place.table != PASSING) {
        let is_there: bool = conn.query_row(
            "SELECT count(*) > 0 FROM pragma_table_info(?1) WHERE name = ?2",
            params![place.table, place.column],
            |row| row.get(0),
        )?;
        if !is_there {
            continue;
        }
        // The id is in the first bytes of a sealed value; the rest is not read.
        let mut select = conn.prepare(&format!(
            "SELECT substr({1}, 1, 9), count(*) FROM {0} WHERE {1} IS NOT NULL GROUP BY 1",
            place.table, place.column
        ))?;
        let counted = select.query_map([], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?))
        })?;
        for counted in counted {
            let (head, count) = counted?;
            let id = MasterKey::id_in(&head).unwrap_or_else(|| "unknown".to_owned());
            *found.entry(id).or_insert(0) += u64::try_from(count).unwrap_or(0);
        }
    }
    Ok(found)
}

impl Store {
    /// Which keys the secrets are sealed under. For `errand doctor`.
    pub async fn sealed_keys(&self) -> Result<SealedKeys> {
        let found = self.read(|conn| Ok(sealed_under(conn)?)).await?;
        let keys = self.keys();
        let (opened, lost): (BTreeMap<_, _>, _) =
            found.into_iter().partition(|(id, _)| keys.has(id));
        Ok(SealedKeys {
            current: keys.current().id(),
            opened: opened.values().sum(),
            lost,
        })
    }

    /// Discards the secrets that no available key can open.
    pub async fn discard_lost_secrets(&self, now: Timestamp) -> Result<Discarded> {
        self.write(move |tx| {
            let keys = tx.keys();
            let mut discarded = Discarded::default();
            for place in SEALED {
                for (key, purpose, sealed) in rows(tx, place)? {
                    if keys.open(&purpose, &sealed).is_ok() {
                        continue;
                    }
                    give_up(tx, place, (&key, &purpose, &sealed), &keys.current(), now)?;
                    let (count, names) = discarded.by_kind.entry(place.table).or_default();
                    *count += 1;
                    if names.len() < NAMES_MAX {
                        names.push(purpose);
                    }
                }
            }
            Ok(discarded)
        })
        .await
    }
}

fn give_up(
    tx: &Connection,
    place: &Place,
    (key, purpose, sealed): (&[u8], &str, &[u8]),
    master: &MasterKey,
    now: Timestamp,
) -> Result<()> {
    match place.table {
        "teams" => {
            let renewed =
                master.seal(purpose, crate::crypto::seal::webhook_secret()?.as_bytes())?;
            tx.execute(
                "UPDATE teams SET webhook_secret = ?2 WHERE id = ?1",
                params![key, renewed.0],
            )?;
        }
        "providers" => {
            tx.execute(
                "UPDATE providers SET api_key = NULL, updated_at = ?3 WHERE team_id = ?1 AND api_key = ?2",
                params![key, sealed, Ms(now)],
            )?;
        }
        "connections" => {
            tx.execute(
                "UPDATE connections SET sign_in = NULL, sign_in_of = NULL, updated_at = ?2 WHERE id = ?1",
                params![key, Ms(now)],
            )?;
        }
        // The rows contain nothing else, so they are deleted or set to null.
        table => {
            tx.execute(
                &format!(
                    "DELETE FROM {table} WHERE {} = ?1 AND {} = ?2",
                    place.key, place.column
                ),
                params![key, sealed],
            )?;
        }
    }
    Ok(())
}
