//! Records usage: totals per day, and the monthly spending limit of a team.
//!
//! # Guarantees
//!
//! Each call of a network model is counted once, in the transaction that records it; each run in the transaction that
//! starts it. Days and months are in UTC.
//!
//! # Non-goals
//!
//! Reading the totals (see `usage_report`), usage of a single run (in its row), and the calls themselves (in its transcript).

use errand_core::budget::TeamMonth;
use errand_core::id::{RunId, TeamId};
use errand_core::time::Timestamp;
use errand_core::transcript::Body;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, json};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{ModelCallRow, Usage};
use crate::runs::row::RunRow;

/// Adds to the totals of a day.
fn add(
    conn: &Connection,
    row: &RunRow,
    model: &str,
    runs: u64,
    used: &Usage,
    at: Timestamp,
) -> Result<()> {
    let key = row
        .api_key
        .map_or_else(Vec::new, |key| key.as_uuid().as_bytes().to_vec());
    conn.prepare_cached(
        "INSERT INTO usage_days (team_id, day, agent_id, api_key_id, model, runs, model_calls, input_tokens, cached_tokens, output_tokens, cost_usd, model_ms, unpriced_tokens, estimated_tokens)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT DO UPDATE SET runs = runs + ?6, model_calls = model_calls + ?7, input_tokens = input_tokens + ?8,
             cached_tokens = cached_tokens + ?9, output_tokens = output_tokens + ?10, cost_usd = cost_usd + ?11, model_ms = model_ms + ?12,
             unpriced_tokens = unpriced_tokens + ?13, estimated_tokens = estimated_tokens + ?14",
    )?
    .execute(params![
        Blob(row.team.as_uuid()),
        at.day().number(),
        Blob(row.agent.as_uuid()),
        key,
        model,
        int(runs),
        int(used.model_calls),
        int(used.input_tokens),
        int(used.cached_tokens),
        int(used.output_tokens),
        used.cost_usd,
        int(used.model_ms),
        int(used.unpriced_tokens),
        int(used.estimated_tokens),
    ])?;
    Ok(())
}

/// Counts a started run.
pub(crate) fn started(conn: &Connection, row: &RunRow, model: &str) -> Result<()> {
    add(conn, row, model, 1, &Usage::default(), row.created_at)
}

/// Counts the model calls among the entries of a step. An attempt without an answer counts with what it has used.
pub(crate) fn record<'a>(
    conn: &Connection,
    row: &RunRow,
    bodies: impl IntoIterator<Item = &'a Body>,
    now: Timestamp,
) -> Result<()> {
    for body in bodies {
        let (call, answered) = match body {
            Body::ModelCall { call } => (call, true),
            Body::ModelAttempt { call, .. } => (call, false),
            _ => continue,
        };
        let used = Usage::of_call(call, answered);
        add(conn, row, &call.model, 0, &used, now)?;
        conn.prepare_cached(
                "INSERT INTO usage_months (team_id, month, cost_usd, unpriced_tokens) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET cost_usd = cost_usd + ?3, unpriced_tokens = unpriced_tokens + ?4",
            )?
            .execute(params![
                Blob(row.team.as_uuid()),
                now.month(),
                used.cost_usd,
                int(used.unpriced_tokens),
            ])?;
    }
    Ok(())
}

impl Store {
    /// The team's spending limit and its spending in the month of `now`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn team_month(&self, team: TeamId, now: Timestamp) -> Result<TeamMonth> {
        self.peek(move |conn| month(conn, team, now)).await
    }

    /// The team's monthly spending limit. `None`: no limit.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn team_limit_usd(&self, team: TeamId) -> Result<Option<f64>> {
        self.peek(move |conn| {
            conn.prepare_cached("SELECT cost_usd_month FROM teams WHERE id = ?1")?
                .query_row(params![Blob(team.as_uuid())], |row| row.get(0))
                .optional()?
                .ok_or(StoreError::NotFound)
        })
        .await
    }

    /// Sets the team's monthly spending limit. `None`: no limit.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn set_team_limit(
        &self,
        team: TeamId,
        limit_usd: Option<f64>,
        now: Timestamp,
        recorded: Idempotent<TeamMonth>,
    ) -> Result<Outcome<TeamMonth>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                tx.prepare_cached("UPDATE teams SET cost_usd_month = ?2 WHERE id = ?1")?
                    .execute(params![Blob(team.as_uuid()), limit_usd])?;
                month(tx, team, now)
            })
        })
        .await
    }

    /// The model calls of a run, in order.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn model_calls(&self, team: TeamId, run: RunId) -> Result<Vec<ModelCallRow>> {
        self.read_for(team, move |conn| {
            let is_there = conn
                .prepare_cached("SELECT 1 FROM runs WHERE id = ?1 AND team_id = ?2")?
                .exists(params![Blob(run.as_uuid()), Blob(team.as_uuid())])?;
            if !is_there {
                return Err(StoreError::NotFound);
            }
            conn.prepare_cached(
                "SELECT position, created_at, body FROM messages
                 WHERE run_id = ?1 AND shown IS NULL AND body ->> '$.kind' IN ('model_call', 'model_attempt') ORDER BY position",
            )?
            .query_map(params![Blob(run.as_uuid())], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Ms>(1)?.0, row.get::<_, String>(2)?))
            })?
            .map(|row| {
                let (position, at, body) = row?;
                let position = count(position);
                match json("messages", "body", &body)? {
                    Body::ModelCall { call } => Ok(ModelCallRow { position, at, call, failed: None }),
                    Body::ModelAttempt { call, outcome, error } => Ok(ModelCallRow { position, at, call, failed: Some((outcome, error)) }),
                    _ => Err(StoreError::Corrupt {
                        table: "messages",
                        column: "body",
                        message: "it is not a model call".to_owned(),
                    }),
                }
            })
            .collect()
        })
        .await
    }
}

fn month(conn: &Connection, team: TeamId, now: Timestamp) -> Result<TeamMonth> {
    conn.prepare_cached(
        "SELECT t.cost_usd_month, coalesce(m.cost_usd, 0), coalesce(m.unpriced_tokens, 0) FROM teams t
         LEFT JOIN usage_months m ON m.team_id = t.id AND m.month = ?2 WHERE t.id = ?1",
    )?
    .query_row(params![Blob(team.as_uuid()), now.month()], |row| {
        Ok(TeamMonth {
            limit_usd: row.get(0)?,
            spent_usd: row.get(1)?,
            unpriced_tokens: count(row.get(2)?),
        })
    })
    .optional()?
    .ok_or(StoreError::NotFound)
}
