//! Secrets that no key at hand opens: found, and given up where an operator says so.
//!
//! Promised: what can be opened is never given up. A team's webhook secret is renewed, so that its webhooks are signed;
//! everything else is dropped, and its object says that there is none: a provider has no key, a connection is not signed
//! in to, a secret is not there.

use std::collections::BTreeMap;

use errand_core::time::Timestamp;
use rusqlite::{Connection, params};

use super::{Place, SEALED, rows};
use crate::crypto::seal::MasterKey;
use crate::db::sqlite::Store;
use crate::db::types::Ms;
use crate::error::Result;

/// Secrets that end by themselves within a day: nothing is to be decided because of them.
const PASSING: &str = "retired_webhook_secrets";
/// Most names of one kind that are kept for the log.
const NAMES_MAX: usize = 100;

/// What was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// By table: how many, and what they were for (never a value), as many as are worth naming.
    pub by_kind: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Discarded {
    /// How many in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.by_kind.values().map(|(count, _)| count).sum()
    }
}

/// The secrets of a running store, by the key that they are sealed under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedKeys {
    /// The id of the key that seals now.
    pub current: String,
    /// How many secrets can be opened.
    pub opened: u64,
    /// Ids of keys that are not at hand, with how many secrets only they open.
    pub lost: BTreeMap<String, u64>,
}

/// How many secrets are sealed under which key, by its id. Columns that an older schema does not have are left out.
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
        // The id is in a sealed value's first bytes; the rest is not read.
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
    ///
    /// # Errors
    /// Those of any read.
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

    /// Gives up the secrets that no key at hand opens.
    ///
    /// # Errors
    /// Those of any write.
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
        // A value that cannot be had is none: the rows hold nothing else.
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
