//! Usage reports of a team: totals by any combination of day, agent, model and API key.
//!
//! # Guarantees
//!
//! No report reads runs or calls. It adds up the daily totals that `counters` maintains in the transactions that start
//! runs and record calls. Days are in UTC.

#[cfg(test)]
mod tests;

use errand_core::id::{AgentId, ApiKeyId, TeamId};
use errand_core::time::Day;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, count};
use crate::error::{Result, StoreError};

/// Maximum number of lines of a report: a year of days for some tens of agents.
const LINES_MAX: u32 = 20_000;

/// A criterion by which a report groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageKey {
    /// Day in UTC.
    Day,
    Agent,
    /// `provider/name`.
    Model,
    /// The API key that started the runs.
    ApiKey,
}

/// Parameters of a report.
#[derive(Clone, Debug)]
pub struct UsageQuery {
    pub team: TeamId,
    /// Criteria to group by. Empty: a single total.
    pub by: Vec<UsageKey>,
    /// First day.
    pub since: Day,
    /// The day after the last one.
    pub until: Day,
}

/// Usage of one line, or the total.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UsageSums {
    /// Started runs.
    pub runs: u64,
    /// Calls of network models.
    pub model_calls: u64,
    /// Tokens sent.
    pub input_tokens: u64,
    /// The part of `input_tokens` that came from the provider's cache.
    pub cached_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// US dollars, as far as prices are known.
    pub cost_usd: f64,
    /// Tokens without a known price.
    pub unpriced_tokens: u64,
    /// Tokens of calls that the provider did not count, or not completely.
    pub estimated_tokens: u64,
    /// Milliseconds spent waiting for models.
    pub model_ms: u64,
}

/// An id with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<T> {
    pub id: T,
    /// `None` if it has no name or was deleted.
    pub name: Option<String>,
}

/// One line of a report. Fields that the report does not group by are `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageLine {
    pub day: Option<Day>,
    pub agent: Option<Named<AgentId>>,
    /// `provider/name`.
    pub model: Option<String>,
    /// The inner `None` means the runs that were started without a key.
    pub api_key: Option<Option<Named<ApiKeyId>>>,
    pub sums: UsageSums,
}

impl Store {
    /// A usage report and its total. Sorted by day, then by cost in descending order.
    ///
    /// # Errors
    /// `Refused` if the report has too many lines.
    pub async fn usage_by(&self, query: UsageQuery) -> Result<(Vec<UsageLine>, UsageSums)> {
        self.read_for(query.team, move |conn| {
            let all = UsageQuery {
                by: Vec::new(),
                ..query.clone()
            };
            let sum = select_usage(conn, &all)?.first().map(|line| line.sums);
            Ok((select_usage(conn, &query)?, sum.unwrap_or_default()))
        })
        .await
    }
}

fn select_usage(conn: &Connection, query: &UsageQuery) -> Result<Vec<UsageLine>> {
    let is = |key: UsageKey| query.by.contains(&key);
    let column = |key: UsageKey, column: &'static str| if is(key) { column } else { "NULL" };
    let (day, agent) = (
        column(UsageKey::Day, "day"),
        column(UsageKey::Agent, "agent_id"),
    );
    let (model, key) = (
        column(UsageKey::Model, "model"),
        column(UsageKey::ApiKey, "api_key_id"),
    );
    let sql = format!(
        "SELECT s.day, s.agent, (SELECT name FROM agents WHERE id = s.agent), s.model, s.key, (SELECT name FROM named_api_keys WHERE id = s.key),
             s.runs, s.model_calls, s.input_tokens, s.cached_tokens, s.output_tokens, s.cost_usd,
             s.model_ms, s.unpriced_tokens, s.estimated_tokens
         FROM (SELECT {day} AS day, {agent} AS agent, {model} AS model, {key} AS key, sum(runs) AS runs, sum(model_calls) AS model_calls,
                   sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens, sum(output_tokens) AS output_tokens,
                   sum(cost_usd) AS cost_usd, sum(model_ms) AS model_ms,
                   sum(unpriced_tokens) AS unpriced_tokens, sum(estimated_tokens) AS estimated_tokens
               FROM usage_days WHERE team_id = ?1 AND day >= ?2 AND day < ?3 GROUP BY 1, 2, 3, 4) s
         ORDER BY s.day, s.cost_usd DESC, s.runs DESC, s.agent, s.model, s.key LIMIT {}",
        LINES_MAX + 1
    );
    let lines = conn
        .prepare_cached(&sql)?
        .query_map(
            params![
                Blob(query.team.as_uuid()),
                query.since.number(),
                query.until.number()
            ],
            |row| usage_line(row, is(UsageKey::ApiKey)),
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if lines.len() > LINES_MAX as usize {
        return Err(StoreError::Refused(format!(
            "the report has more than {LINES_MAX} lines; ask for fewer days, or group by less"
        )));
    }
    Ok(lines)
}

fn usage_line(row: &Row<'_>, by_key: bool) -> rusqlite::Result<UsageLine> {
    let agent = match row.get::<_, Option<Blob>>(1)? {
        Some(id) => Some(Named {
            id: AgentId::from_stored(id.0),
            name: row.get(2)?,
        }),
        None => None,
    };
    // An empty key means the runs that were started without one.
    let key = match row.get_ref(4)? {
        ValueRef::Blob(bytes) if !bytes.is_empty() => Some(Named {
            id: ApiKeyId::from_stored(row.get::<_, Blob>(4)?.0),
            name: row.get(5)?,
        }),
        _ => None,
    };
    let n = |index: usize| row.get::<_, i64>(index).map(count);
    Ok(UsageLine {
        day: row.get::<_, Option<i64>>(0)?.map(Day::from_number),
        agent,
        model: row.get(3)?,
        api_key: by_key.then_some(key),
        sums: UsageSums {
            runs: n(6)?,
            model_calls: n(7)?,
            input_tokens: n(8)?,
            cached_tokens: n(9)?,
            output_tokens: n(10)?,
            cost_usd: row.get(11)?,
            model_ms: n(12)?,
            unpriced_tokens: n(13)?,
            estimated_tokens: n(14)?,
        },
    })
}
