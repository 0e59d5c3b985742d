//! Deliveries of events to webhooks, as the outbox holds them: which are due, and what came of an attempt.
//!
//! Promised: an attempt is recorded once, together with what follows from it. Of one run at most one delivery is given
//! out at a time, in the events' order for each URL; a delivery that has failed once is tried again by itself, and
//! later ones overtake it. A delivery whose attempt was not recorded (the program ended) is given out again: at least
//! once, not exactly once. One that is sent again has a schedule of its own from then on, under the same id and with the
//! same bytes.
//!
//! Left out: making deliveries (the transaction that commits the event does), sending, and when to try again
//! (`errand_core::retry`).

mod delivery_log;
mod due;
#[cfg(test)]
mod tests;

use errand_core::id::{DeliveryId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

pub(crate) use delivery_log::select_one;
pub use due::{DeliverySlots, DeliveryTurns, DueDeliveries, Receiver};

use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, int};
use crate::error::{Result, StoreError};
use crate::idempotency::{Answer, Once, once};
use crate::model::{AttemptRow, DeliveryEnd, DeliveryRow};

impl Store {
    /// When the next delivery is due that is not due yet. None: there is none. Those that are due already and were
    /// held back become free when an attempt is recorded, which rings.
    ///
    /// # Errors
    /// Those of any read.
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

    /// Records an attempt and what follows from it. `attempt.attempt` must be the delivery's attempts so far and one.
    /// False where it is not, or the delivery is not pending: it was recorded before, or dropped meanwhile, and nothing
    /// was changed.
    ///
    /// # Errors
    /// Those of any write.
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
                // The run's next one is free now, or this one has another time.
                tx.ring_outbox();
            }
            Ok(recorded)
        })
        .await
    }

    /// Sends a delivery again: it is due at once, and tried for three days from now, under the same id and with the same
    /// bytes. One to a webhook of the team goes to the address that it has now. One that is pending already is due at
    /// once.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Refused` where its webhook is deleted.
    pub async fn resend(
        &self,
        team: TeamId,
        delivery: DeliveryId,
        now: Timestamp,
        recorded: Once<DeliveryRow>,
    ) -> Result<Answer<DeliveryRow>> {
        self.write(move |tx| once(tx, &recorded, now, || resend(tx, team, delivery, now)))
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
        DeliveryEnd::Delivered => ("delivered", None),
        DeliveryEnd::Gone => ("gone", None),
        DeliveryEnd::Exhausted => ("exhausted", None),
        DeliveryEnd::Again(at) => ("pending", Some(at)),
    };
    let changed = tx
        .prepare_cached(
            // Sent again while the attempt was under way: it has failed on the old schedule, and the new one begins.
            "UPDATE deliveries SET attempts = ?2,
                 state = iif(?3 IN ('pending', 'exhausted') AND resent_at > ?5, 'pending', ?3),
                 due_at = iif(?3 IN ('pending', 'exhausted') AND resent_at > ?5, resent_at, ?4)
             WHERE number = ?1 AND state = 'pending' AND attempts = ?2 - 1",
        )?
        .execute(params![
            number,
            attempt.attempt,
            state,
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
            "the webhook that this was sent to is deleted; make one with the same address for what is to come"
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
