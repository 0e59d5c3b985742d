//! Run reports of a team by day and by agent, for the overview.
//!
//! # Guarantees
//!
//! No query reads all runs. Ended runs come from daily totals that are maintained by the transactions that start and
//! end runs, open runs from the index by status, and an agent's last run from the index by agent. Days are in UTC.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use errand_core::id::{AgentId, TeamId};
use errand_core::run::Status;
use errand_core::time::Day;
use errand_core::wire::RunBody;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, count, word};
use crate::error::Result;
use crate::runs::queries::run_body;
use crate::runs::row::{COLUMNS, read_row};

/// Maximum number of agents in a report.
const AGENTS_MAX: u32 = 1_000;

/// Number of runs by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunSums {
    pub started: u64,
    pub completed: u64,
    pub failed: u64,
    /// Stopped.
    pub interrupted: u64,
}

/// Results of an agent's runs.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentSummary {
    pub agent: AgentId,
    pub name: String,
    pub sums: RunSums,
    /// The newest run.
    pub last_run: Option<RunBody>,
}

/// Results of a team's runs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunsSummary {
    /// All days in ascending order, including those without runs.
    pub days: Vec<(Day, RunSums)>,
    /// The existing agents, newest first.
    pub agents: Vec<AgentSummary>,
    /// Number of open runs by status.
    pub now: Vec<(Status, u64)>,
}

impl Store {
    /// Results of a team's runs from `since` until before `until`, and the open runs.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a run cannot be read.
    pub async fn runs_summary(&self, team: TeamId, since: Day, until: Day) -> Result<RunsSummary> {
        self.read_for(team, move |conn| {
            Ok(RunsSummary {
                days: select_days(conn, team, since, until)?,
                agents: select_agents(conn, team, since, until)?,
                now: select_open(conn, team)?,
            })
        })
        .await
    }
}

/// Started and ended runs, grouped by `column`, which is `day` or `agent_id`.
fn sums_by<K: Ord>(
    conn: &Connection,
    column: &'static str,
    (team, since, until): (TeamId, Day, Day),
    key: impl Fn(&Row<'_>) -> rusqlite::Result<K>,
) -> Result<BTreeMap<K, RunSums>> {
    let mut sums: BTreeMap<K, RunSums> = BTreeMap::new();
    let span = params![Blob(team.as_uuid()), since.number(), until.number()];
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {column}, sum(started), sum(completed), sum(failed), sum(interrupted) FROM run_days
         WHERE team_id = ?1 AND day >= ?2 AND day < ?3 GROUP BY 1"
    ))?;
    let mut rows = statement.query(span)?;
    while let Some(row) = rows.next()? {
        let of = RunSums {
            started: count(row.get(1)?),
            completed: count(row.get(2)?),
            failed: count(row.get(3)?),
            interrupted: count(row.get(4)?),
        };
        sums.insert(key(row)?, of);
    }
    Ok(sums)
}

fn select_days(
    conn: &Connection,
    team: TeamId,
    since: Day,
    until: Day,
) -> Result<Vec<(Day, RunSums)>> {
    let day = |row: &Row<'_>| row.get::<_, i64>(0).map(Day::from_number);
    let sums = sums_by(conn, "day", (team, since, until), day)?;
    let days = (since.number()..until.number()).map(Day::from_number);
    Ok(days
        .map(|day| (day, sums.get(&day).copied().unwrap_or_default()))
        .collect())
}

fn select_agents(
    conn: &Connection,
    team: TeamId,
    since: Day,
    until: Day,
) -> Result<Vec<AgentSummary>> {
    let agent = |row: &Row<'_>| Ok(AgentId::from_stored(row.get::<_, Blob>(0)?.0));
    let sums = sums_by(conn, "agent_id", (team, since, until), agent)?;
    let agents = conn
        .prepare_cached(
            "SELECT id, name FROM agents WHERE team_id = ?1 AND deleted_at IS NULL ORDER BY created_at DESC, id DESC LIMIT ?2",
        )?
        .query_map(params![Blob(team.as_uuid()), AGENTS_MAX], |row| {
            Ok((agent(row)?, row.get::<_, String>(1)?))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut last = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM runs WHERE team_id = ?1 AND agent_id = ?2 ORDER BY created_at DESC, id DESC LIMIT 1"
    ))?;
    let mut summaries = Vec::with_capacity(agents.len());
    for (agent, name) in agents {
        let of_agent = params![Blob(team.as_uuid()), Blob(agent.as_uuid())];
        let last_run = last
            .query_row(of_agent, read_row)
            .optional()?
            .transpose()?
            .map(|row| run_body(conn, &row))
            .transpose()?;
        summaries.push(AgentSummary {
            sums: sums.get(&agent).copied().unwrap_or_default(),
            agent,
            name,
            last_run,
        });
    }
    Ok(summaries)
}

fn select_open(conn: &Connection, team: TeamId) -> Result<Vec<(Status, u64)>> {
    let rows = conn
        .prepare_cached(
            "SELECT status, count(*) FROM runs INDEXED BY runs_by_status
             WHERE team_id = ?1 AND status IN ('pending', 'starting', 'running', 'waiting') GROUP BY status",
        )?
        .query_map(params![Blob(team.as_uuid())], |row| {
            Ok((row.get::<_, String>(0)?, count(row.get(1)?)))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut found = Vec::new();
    for (text, count) in rows {
        found.push((word("runs", "status", &text, Status::parse)?, count));
    }
    let open = Status::ALL.into_iter().filter(|status| !status.has_ended());
    let count_of = |status: Status| found.iter().find(|(of, _)| *of == status);
    Ok(open
        .map(|status| (status, count_of(status).map_or(0, |(_, count)| *count)))
        .collect())
}
