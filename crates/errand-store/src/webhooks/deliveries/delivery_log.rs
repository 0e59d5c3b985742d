//! Deliveries as people read them: with requests, responses and the next attempt.

use errand_core::id::{DeliveryId, RunId, TeamId, WebhookId};
use errand_core::webhook::DeliveryState;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int};
use crate::error::{Result, StoreError};
use crate::model::{AttemptRow, DeliveryRow, Page, PageQuery};

/// Columns of a delivery, from `deliveries d`.
const COLUMNS: &str = "d.number, d.delivery_id, d.id, d.event, d.run_id, d.webhook_id, d.sequence, d.url, d.body, d.created_at, d.state, d.due_at";

impl Store {
    /// A run's deliveries to all addresses, with their attempts, in the order of events.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the run does not exist.
    pub async fn deliveries_of(&self, team: TeamId, run: RunId) -> Result<Vec<DeliveryRow>> {
        let all = PageQuery {
            limit: u32::MAX,
            offset: 0,
        };
        Ok(self.run_deliveries(team, run, all).await?.items)
    }

    /// A page of a run's deliveries to all addresses, with their attempts, in the order of events.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the run does not exist.
    pub async fn run_deliveries(
        &self,
        team: TeamId,
        run: RunId,
        page: PageQuery,
    ) -> Result<Page<DeliveryRow>> {
        self.read_for(team, move |conn| {
            crate::runs::row::row_of(conn, team, run)?;
            select_page(
                conn,
                "d.run_id",
                "d.sequence, d.number",
                run.as_uuid(),
                page,
            )
        })
        .await
    }

    /// A page of a webhook's deliveries with their attempts, newest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the webhook does not exist.
    pub async fn webhook_deliveries(
        &self,
        team: TeamId,
        webhook: WebhookId,
        page: PageQuery,
    ) -> Result<Page<DeliveryRow>> {
        self.read_for(team, move |conn| {
            crate::webhooks::subscriptions::select_webhook(conn, team, webhook)?;
            select_page(
                conn,
                "d.webhook_id",
                "d.number DESC",
                webhook.as_uuid(),
                page,
            )
        })
        .await
    }

    /// A delivery with its attempts.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delivery(&self, team: TeamId, delivery: DeliveryId) -> Result<DeliveryRow> {
        self.read_for(team, move |conn| select_one(conn, team, delivery))
            .await
    }
}

/// A delivery with its attempts.
pub(crate) fn select_one(
    conn: &Connection,
    team: TeamId,
    delivery: DeliveryId,
) -> Result<DeliveryRow> {
    let sql =
        format!("SELECT {COLUMNS} FROM deliveries d WHERE d.delivery_id = ?1 AND d.team_id = ?2");
    let (number, mut delivery) = conn
        .prepare_cached(&sql)?
        .query_row(
            params![Blob(delivery.as_uuid()), Blob(team.as_uuid())],
            delivery_row,
        )
        .optional()?
        .ok_or(StoreError::NotFound)?;
    delivery.attempts = attempts_of(conn, number)?;
    Ok(delivery)
}

fn select_page(
    conn: &Connection,
    column: &str,
    order: &str,
    of: uuid::Uuid,
    page: PageQuery,
) -> Result<Page<DeliveryRow>> {
    let total = conn
        .prepare_cached(&format!(
            "SELECT count(*) FROM deliveries d WHERE {column} = ?1"
        ))?
        .query_row(params![Blob(of)], |row| row.get(0))?;
    let sql = format!(
        "SELECT {COLUMNS} FROM deliveries d WHERE {column} = ?1 ORDER BY {order} LIMIT ?2 OFFSET ?3"
    );
    let parameters: [&dyn ToSql; 3] = [&Blob(of), &page.limit, &int(page.offset)];
    let rows = conn
        .prepare_cached(&sql)?
        .query_map(parameters, delivery_row)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let with_attempts = |(number, mut delivery): (i64, DeliveryRow)| -> Result<DeliveryRow> {
        delivery.attempts = attempts_of(conn, number)?;
        Ok(delivery)
    };
    Ok(Page {
        items: rows.into_iter().map(with_attempts).collect::<Result<_>>()?,
        total: count(total),
    })
}

fn delivery_row(row: &Row<'_>) -> rusqlite::Result<(i64, DeliveryRow)> {
    let delivery = DeliveryRow {
        delivery: DeliveryId::from_stored(row.get::<_, Blob>(1)?.0),
        id: row.get::<_, Blob>(2)?.0,
        event: row.get(3)?,
        run: row
            .get::<_, Option<Blob>>(4)?
            .map(|run| RunId::from_stored(run.0)),
        webhook: row
            .get::<_, Option<Blob>>(5)?
            .map(|webhook| WebhookId::from_stored(webhook.0)),
        sequence: count(row.get(6)?),
        url: row.get(7)?,
        body: row.get(8)?,
        created_at: row.get::<_, Ms>(9)?.0,
        state: delivery_state(row, 10)?,
        due_at: row.get::<_, Option<Ms>>(11)?.map(|ms| ms.0),
        attempts: Vec::new(),
    };
    Ok((row.get(0)?, delivery))
}

fn delivery_state(row: &Row<'_>, at: usize) -> rusqlite::Result<DeliveryState> {
    let text: String = row.get(at)?;
    DeliveryState::parse(&text).ok_or_else(|| {
        let what = format!("{text:?} is not the state of a delivery");
        rusqlite::Error::FromSqlConversionFailure(at, Type::Text, what.into())
    })
}

fn attempts_of(conn: &Connection, delivery: i64) -> Result<Vec<AttemptRow>> {
    let attempts = conn
        .prepare_cached(
            "SELECT attempt, at, duration_ms, status, error, answer FROM delivery_attempts WHERE delivery = ?1 ORDER BY attempt",
        )?
        .query_map(params![delivery], |row| {
            Ok(AttemptRow {
                attempt: row.get(0)?,
                at: row.get::<_, Ms>(1)?.0,
                duration_ms: count(row.get(2)?),
                status: row.get(3)?,
                error: row.get(4)?,
                answer: row.get(5)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(attempts)
}
