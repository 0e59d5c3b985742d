//! Bulk operations: stops or retries many runs in one operation, each like the call for a single run.

use errand_core::id::RunId;
use errand_core::run::Status;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, params_from_iter};

use crate::db::sqlite::{Store, Tx};
use crate::db::types::Blob;
use crate::error::Result;
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{ManyRuns, ManyRunsDone};
use crate::runs::commands::{retry, stop};
use crate::runs::settle::for_each;

/// Statuses of runs that can be stopped.
pub const STOPPABLE: [Status; 4] = [
    Status::Pending,
    Status::Starting,
    Status::Running,
    Status::Waiting,
];
/// Statuses of runs that can be retried.
pub const RETRIABLE: [Status; 1] = [Status::Failed];

impl Store {
    /// Stops runs, oldest first, in one transaction together with the record of the answer. A run whose rows cannot
    /// be read is quarantined as failed; it does not block the others and is not counted as changed.
    pub async fn stop_many(
        &self,
        many: ManyRuns,
        recorded: Idempotent<ManyRunsDone>,
    ) -> Result<Outcome<ManyRunsDone>> {
        self.write_at_all_costs(move |tx| {
            idempotent(tx, &recorded, many.now, || {
                change_each(tx, &many, &STOPPABLE, |run| {
                    let had_ended = stop(tx, many.team, run, &many.by, many.now)?;
                    Ok(!had_ended)
                })
            })
        })
        .await
    }

    /// Queues failed runs again, oldest first. Otherwise like [`Store::stop_many`].
    pub async fn retry_many(
        &self,
        many: ManyRuns,
        recorded: Idempotent<ManyRunsDone>,
    ) -> Result<Outcome<ManyRunsDone>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, many.now, || {
                change_each(tx, &many, &RETRIABLE, |run| {
                    retry(tx, many.team, run, &many.by, many.now).map(|_| true)
                })
            })
        })
        .await
    }
}

/// Changes the matching runs, or lists them for a dry run. `act` returns whether it changed the run.
fn change_each(
    tx: &Tx<'_>,
    many: &ManyRuns,
    possible: &[Status],
    mut act: impl FnMut(RunId) -> Result<bool>,
) -> Result<ManyRunsDone> {
    let mut runs = matching(tx, many, possible)?;
    let limit = many.limit as usize;
    let more = runs.len() > limit;
    runs.truncate(limit);
    let matched = runs.len() as u64;
    if many.dry_run {
        return Ok(ManyRunsDone {
            matched,
            changed: 0,
            more,
            runs,
        });
    }
    let mut changed = Vec::with_capacity(runs.len());
    for_each(tx, &runs, many.now, |run| {
        if act(run)? {
            changed.push(run);
        }
        Ok(())
    })?;
    Ok(ManyRunsDone {
        matched,
        changed: changed.len() as u64,
        more,
        runs: changed,
    })
}

/// The oldest matching runs: up to the limit, plus one to know whether there are more.
fn matching(conn: &Connection, many: &ManyRuns, possible: &[Status]) -> Result<Vec<RunId>> {
    let most = i64::from(many.limit) + 1;
    let mut found = Vec::new();
    let concerned = possible
        .iter()
        .filter(|status| many.statuses.is_empty() || many.statuses.contains(status));
    for status in concerned {
        let (condition, mut values) = condition(many, *status);
        values.push(SqlValue::Integer(most));
        // Runs with these statuses are few compared with the ended ones, so no other index excludes as many rows.
        let rows = conn
            .prepare_cached(&format!(
                "SELECT created_at, id FROM runs INDEXED BY runs_by_status WHERE {condition} ORDER BY created_at, id LIMIT ?"
            ))?
            .query_map(params_from_iter(values), |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Blob>(1)?.0))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        found.extend(rows);
    }
    found.sort_unstable();
    let runs = found.into_iter().take(usize::try_from(most).unwrap_or(0));
    Ok(runs.map(|(_, id)| RunId::from_stored(id)).collect())
}

fn condition(many: &ManyRuns, status: Status) -> (String, Vec<SqlValue>) {
    let blob = |id: uuid::Uuid| SqlValue::Blob(id.as_bytes().to_vec());
    let given = [
        ("agent_id = ?", many.agent.map(|id| blob(id.as_uuid()))),
        (
            "source = ?",
            many.source
                .map(|source| SqlValue::Text(source.as_str().to_owned())),
        ),
        (
            "created_at >= ?",
            many.since.map(|at| SqlValue::Integer(at.as_millis())),
        ),
        (
            "created_at < ?",
            many.until.map(|at| SqlValue::Integer(at.as_millis())),
        ),
    ];
    // Only the operator may release parked runs. They have failed, so this excludes them from retries and does not
    // affect stops.
    let mut wheres = vec!["team_id = ?", "status = ?", "error_code IS NOT 'poisoned'"];
    let mut values = vec![
        blob(many.team.as_uuid()),
        SqlValue::Text(status.as_str().to_owned()),
    ];
    for (condition, value) in given {
        if let Some(value) = value {
            wheres.push(condition);
            values.push(value);
        }
    }
    (wheres.join(" AND "), values)
}

#[cfg(test)]
mod tests;
