//! Checks everything that is stored against the invariants in [`invariants`].
//!
//! # Guarantees
//!
//! An audit reads and changes nothing. A row that cannot be read is a finding, not an error. It goes run by run along
//! indexes, with a few hundred runs per read transaction, so that a store with a million finished runs can be audited
//! while it works. Each run is seen at one moment, different runs at different moments.
//!
//! # Non-goals
//!
//! Repairing what is found (see `repair`), and files beside the database, such as those of sandboxes.

#[cfg(test)]
pub(crate) mod fixture;
mod history;
mod invariants;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use errand_core::error_chain::error_chain;
use errand_core::id::{BootId, RunId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, params};

use crate::db::sqlite::Store;
use crate::db::types::Blob;
use crate::error::{Result, StoreError};
use invariants::{HAS_A_REASON, OF_RUN, OF_STORE, REASONLESS, ROW_READS, WITHOUT_REASON};
use stored::{Stored, is_of_a_row};

/// Maximum number of findings per invariant. More of them say nothing new.
const FINDINGS_MAX: usize = 100;
/// Number of runs per read transaction, which bounds how long a snapshot is held open.
const RUNS_AT_ONCE: usize = 256;
/// Scope of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditScope {
    /// Everything.
    All,
    /// Runs that have not ended, and what can be checked of the others with indexes.
    Open,
}

/// A violation of an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the invariant.
    pub invariant: &'static str,
    /// The invariant as a sentence.
    pub sentence: &'static str,
    /// The run concerned, if any.
    pub run: Option<RunId>,
    /// The violation.
    pub what: String,
}

impl Store {
    /// Checks the store against the invariants. At most 100 findings for each. After a crash, claims of the last
    /// start are findings until [`Store::recover`] has released them.
    ///
    /// # Errors
    /// If the store fails. Wrong rows are findings, not errors.
    pub async fn audit(&self, scope: AuditScope, now: Timestamp) -> Result<Vec<Finding>> {
        let boot = self.boot();
        let mut found = self.read(move |conn| of_store(conn, scope, boot)).await?;
        let mut open = match scope {
            AuditScope::All => Vec::new(),
            AuditScope::Open => self.read(open_runs).await?,
        };
        let mut after: Option<RunId> = None;
        loop {
            let runs = match scope {
                AuditScope::All => self.read(move |conn| runs_after(conn, after)).await?,
                AuditScope::Open => {
                    let rest = open.split_off(open.len().min(RUNS_AT_ONCE));
                    std::mem::replace(&mut open, rest)
                }
            };
            let Some(last) = runs.last().copied() else {
                return Ok(found.findings);
            };
            after = Some(last);
            found = self
                .read(move |conn| {
                    for run in runs {
                        of_run(conn, run, boot, now, &mut found)?;
                    }
                    Ok(found)
                })
                .await?;
        }
    }

    /// Number of open runs without a reason for waiting, or with a reason that can never be fulfilled.
    pub async fn runs_without_reason(&self, _now: Timestamp) -> Result<u64> {
        let boot = self.boot();
        self.read(move |conn| {
            let count: i64 = conn
                .prepare_cached(WITHOUT_REASON)?
                .query_row(params![Blob(boot.as_uuid())], |row| row.get(0))?;
            Ok(crate::db::types::count(count))
        })
        .await
    }

    /// SQLite's own check of the file, and of the references between rows. Returns a sentence for each problem.
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
                    Ok(format!("{} rows of {table} refer to rows of {parent} that do not exist", row.get::<_, i64>(2)?))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            wrong.extend(references);
            Ok(wrong)
        })
        .await
    }
}

/// Collects findings, up to a maximum for each invariant.
#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    counts: BTreeMap<&'static str, usize>,
}

impl Found {
    fn push(&mut self, invariant: (&'static str, &'static str), run: Option<RunId>, what: String) {
        let count = self.counts.entry(invariant.0).or_default();
        *count += 1;
        if *count <= FINDINGS_MAX {
            let (invariant, sentence) = invariant;
            self.findings.push(Finding {
                invariant,
                sentence,
                run,
                what,
            });
        }
    }
}

fn of_store(conn: &Connection, scope: AuditScope, boot: BootId) -> Result<Found> {
    let mut found = Found::default();
    let mut ask = |invariant, sql: &str, parameters: &[&dyn rusqlite::ToSql]| -> Result<()> {
        let mut statement = conn.prepare(&format!("{sql} LIMIT {FINDINGS_MAX}"))?;
        let mut rows = statement.query(parameters)?;
        while let Some(row) = rows.next()? {
            let run: Option<Blob> = row.get(0)?;
            found.push(
                invariant,
                run.map(|run| RunId::from_stored(run.0)),
                row.get(1)?,
            );
        }
        Ok(())
    };
    ask(HAS_A_REASON, REASONLESS, &[&Blob(boot.as_uuid())])?;
    for of in &OF_STORE {
        if of.scope.is_none_or(|its| its == scope) {
            ask((of.name, of.sentence), of.sql, &[])?;
        }
    }
    Ok(found)
}

fn runs_after(conn: &Connection, after: Option<RunId>) -> Result<Vec<RunId>> {
    let after = after.map_or_else(Vec::new, |run| run.as_uuid().as_bytes().to_vec());
    ids(
        conn,
        &format!("SELECT id FROM runs WHERE id > ?1 ORDER BY id LIMIT {RUNS_AT_ONCE}"),
        &[&after],
    )
}

fn open_runs(conn: &Connection) -> Result<Vec<RunId>> {
    ids(
        conn,
        "SELECT r.id FROM teams t CROSS JOIN runs r INDEXED BY runs_by_status
             ON r.team_id = t.id AND r.status IN ('pending', 'starting', 'running', 'waiting')",
        &[],
    )
}

fn ids(conn: &Connection, sql: &str, parameters: &[&dyn rusqlite::ToSql]) -> Result<Vec<RunId>> {
    let ids = conn
        .prepare_cached(sql)?
        .query_map(parameters, |row| {
            Ok(RunId::from_stored(row.get::<_, Blob>(0)?.0))
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(ids)
}

fn of_run(
    conn: &Connection,
    run: RunId,
    boot: BootId,
    now: Timestamp,
    found: &mut Found,
) -> Result<()> {
    let stored = match Stored::read(conn, run, boot, now) {
        Ok(stored) => stored,
        Err(StoreError::NotFound) => return Ok(()),
        Err(error) if is_of_a_row(&error) => {
            found.push(ROW_READS, Some(run), error_chain(&error));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for of in &OF_RUN {
        let mut wrong = Vec::new();
        (of.check)(&stored, &mut wrong);
        for what in wrong {
            found.push((of.name, of.sentence), Some(run), what);
        }
    }
    Ok(())
}
