//! Whether what is stored is sound.
//!
//! Promised: nothing here changes anything.

use errand_core::time::Timestamp;
use rusqlite::params;

use crate::error::Result;
use crate::rows::{Blob, count};
use crate::sqlite::Store;

impl Store {
    /// How many runs that have not ended wait for nothing that will come: no driver of this start has them, no moment is
    /// set, no request is open, and no other run has their sandbox.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn runs_without_reason(&self, _now: Timestamp) -> Result<u64> {
        let boot = self.boot();
        self.read(move |conn| {
            let found: i64 = conn
                .prepare_cached(
                    "SELECT count(*) FROM runs r
                     WHERE r.status NOT IN ('completed', 'failed', 'interrupted') AND NOT (CASE
                         WHEN r.claim_token IS NOT NULL THEN r.claim_boot IS ?1
                         WHEN r.status = 'waiting' THEN EXISTS (
                             SELECT 1 FROM human_requests h WHERE h.run_id = r.id AND h.closed_at IS NULL)
                         WHEN r.wake_at IS NOT NULL THEN 1
                         ELSE r.waiting_kind IS 'sandbox' END)",
                )?
                .query_row(params![Blob(boot.as_uuid())], |row| row.get(0))?;
            Ok(count(found))
        })
        .await
    }

    /// What SQLite finds wrong with its own file and with references between rows: sentences, none where all is well.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn integrity(&self) -> Result<Vec<String>> {
        self.read(|conn| {
            let mut wrong = conn
                .prepare("PRAGMA integrity_check")?
                .query_map([], |row| row.get::<_, String>(0))?
                .filter(|line| !line.as_ref().is_ok_and(|line| line == "ok"))
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let references = conn
                .prepare("SELECT \"table\", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2")?
                .query_map([], |row| {
                    let (table, parent): (String, String) = (row.get(0)?, row.get(1)?);
                    let rows: i64 = row.get(2)?;
                    Ok(format!("{rows} rows of {table} refer to rows of {parent} that are not there"))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            wrong.extend(references);
            Ok(wrong)
        })
        .await
    }
}
