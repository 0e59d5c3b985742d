//! Webhook deliveries in the outbox: which are due, and the result of an attempt.
//!
//! # Guarantees
//!
//! An attempt is recorded once, together with its consequences. At most one delivery of a run is in flight at a time,
//! in the order of events for each URL; a delivery that has failed once is retried by itself, and later ones may
//! overtake it. A delivery whose attempt was not recorded, because the program ended, is sent again: at least once,
//! not exactly once. Sending a delivery again starts a new schedule for it, with the same id and the same bytes.
//!
//! # Non-goals
//!
//! Creating deliveries (the transaction that commits the event does), sending them, and the retry schedule
//! (`errand_core::retry`).

mod delivery_log;
mod due;
#[cfg(test)]
mod tests;

use errand_core::id::{DeliveryId, TeamId};
use errand_core::time::Timestamp;
use errand_core::webhook::DeliveryState;
use rusqlite::{Connection, OptionalExtension as _, params};

pub(crate) use delivery_log::select_one;
pub use due::{DeliverySlots, DeliveryTurns, DueDeliveries, Receiver};

use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, int};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{AttemptRow, DeliveryEnd, DeliveryRow};

impl Store {
    /// When the next delivery becomes due, or `None`. Deliveries that are due but held back do not count: they become
    /// free when an attempt is recorded, which notifies the outbox.
    pub async fn next_delivery_at(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        self.peek(move |conn| {
            let at = conn
                .prepare_cached(
                    "SELECT min(due_at) FROM deliveries WHERE state = 'pending' AND due_at > ?1",
                )?
                .query_row(params![Ms(now)], |row| row.get::<_, Option<Ms>>(0))?;
            Ok(at.map(|ms| ms.0))
        })
        .await
    }

    /// Records an attempt and its consequences. `attempt.attempt` must be one more than the delivery's attempts so
    /// far.
    ///
    /// Returns `false`, and changes nothing, if it is not, or if the delivery is not pending: the attempt was already
    /// recorded, or the delivery was dropped in the meantime.
    pub async fn record_attempt(
        &self,
        number: i64,
        attempt: AttemptRow,
        end: DeliveryEnd,
    ) -> Result<bool> {
        self.write(move |tx| {
            let recorded = update_delivery(tx, number, &attempt, end)?;
            if recorded {
                insert_attempt(tx, number, &attempt)?;
                if end == DeliveryEnd::Gone {
                    crate::webhooks::subscriptions::disable_of(tx, number, attempt.at)?;
                }
                // The run's next delivery is free now, or this one has a new due time.
                tx.ring_outbox();
            }
            Ok(recorded)
        })
        .await
    }

    /// Sends a delivery again: it is due at once and retried for three days, with the same id and the same bytes. A
    /// delivery to a team's webhook goes to that webhook's current address. A pending delivery becomes due at once.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Refused` if its webhook is deleted.
    pub async fn resend(
        &self,
        team: TeamId,
        delivery: DeliveryId,
        now: Timestamp,
        recorded: Idempotent<DeliveryRow>,
    ) -> Result<Outcome<DeliveryRow>> {
        self.write(move |tx| idempotent(tx, &recorded, now, || resend(tx, team, delivery, now)))
            .await
    }
}

fn update_delivery(
    tx: &Connection,
    number: i64,
    attempt: &AttemptRow,
    end: DeliveryEnd,
) -> Result<bool> {
    let (state, due_at) = match end {
        DeliveryEnd::Delivered => (DeliveryState::Delivered, None),
        DeliveryEnd::Gone => (DeliveryState::Gone, None),
        DeliveryEnd::Exhausted => (DeliveryState::Exhausted, None),
        DeliveryEnd::Again(at) => (DeliveryState::Pending, Some(at)),
    };
    let changed = tx
        .prepare_cached(
            // It was sent again during this attempt. The attempt belongs to the old schedule, and the new one begins.
            "UPDATE deliveries SET attempts = ?2,
                 state = iif(?3 IN ('pending', 'exhausted') AND resent_at > ?5, 'pending', ?3),
                 due_at = iif(?3 IN ('pending', 'exhausted') AND resent_at > ?5, resent_at, ?4)
             WHERE number = ?1 AND state = 'pending' AND attempts = ?2 - 1",
        )?
        .execute(params![
            number,
            attempt.attempt,
            state.as_str(),
            due_at.map(Ms),
            Ms(attempt.at)
        ])?;
    Ok(changed > 0)
}

fn insert_attempt(tx: &Connection, number: i64, attempt: &AttemptRow) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO delivery_attempts (delivery, attempt, at, duration_ms, status, error, answer) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        number,
        attempt.attempt,
        Ms(attempt.at),
        int(attempt.duration_ms),
        attempt.status,
        attempt.error,
        attempt.answer
    ])?;
    Ok(())
}

fn resend(tx: &Tx<'_>, team: TeamId, delivery: DeliveryId, now: Timestamp) -> Result<DeliveryRow> {
    let is_deleted = tx
        .prepare_cached(
            "SELECT w.deleted_at IS NOT NULL FROM deliveries d LEFT JOIN webhooks w ON w.id = d.webhook_id
             WHERE d.delivery_id = ?1 AND d.team_id = ?2",
        )?
        .query_row(
            params![Blob(delivery.as_uuid()), Blob(team.as_uuid())],
            |row| row.get::<_, bool>(0),
        )
        .optional()?
        .ok_or(StoreError::NotFound)?;
    if is_deleted {
        return Err(StoreError::Refused(
            "the webhook of this delivery is deleted; create one with the same address to receive future events"
                .to_owned(),
        ));
    }
    tx.prepare_cached(
        "UPDATE deliveries AS d SET state = 'pending', due_at = ?3, resent_at = ?3, resent_after = attempts,
             url = coalesce((SELECT w.url FROM webhooks w WHERE w.id = d.webhook_id), url)
         WHERE delivery_id = ?1 AND team_id = ?2",
    )?
    .execute(params![
        Blob(delivery.as_uuid()),
        Blob(team.as_uuid()),
        Ms(now)
    ])?;
    tx.ring_outbox();
    select_one(tx, team, delivery)
}
