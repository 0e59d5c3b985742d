//! Delivery of webhooks.
//!
//! Promised: each delivery in the outbox reaches its URL at least once, or is given up after three days, or ends with
//! a 410; each attempt is recorded. Receivers tell repeats by `webhook-id`. One delivery of a run is under way at a
//! time, in order; after its first failure an event is retried by itself and later ones overtake it. No receiver takes
//! more than half of the places, so that a dead one does not hold up the others.
//!
//! Which are under way is known in memory alone: a server that dies, or stops, in the middle of an attempt causes a
//! repeat, never a loss. Nothing here decides *whether* to send: rows are written in the transaction that changed the run.

use std::collections::HashMap;

use errand_core::retry::webhook_retry_delay_ms;
use errand_core::time::Timestamp;
use errand_store::StoreError;
use errand_store::model::{AttemptRow, DeliveryEnd, DueDelivery, Lane};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::conclude::persist;
use crate::dispatch::{Parts, at};
use crate::webhook::{Verdict, WebhookSecret, send};

/// The pause after a failure of the store.
const STORE_PAUSE_MS: u64 = 250;

/// Delivers until the server drains.
pub(crate) async fn run(parts: Parts, places: usize, cancel: CancellationToken) {
    let mut outbox = Outbox {
        parts: parts.clone(),
        places,
        under_way: JoinSet::new(),
        lanes: HashMap::new(),
    };
    while !parts.draining.is_cancelled() {
        let moment = match outbox.round().await {
            Ok(moment) => moment,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the outbox could not be read; trying again"
                );
                Some(parts.clock.now().plus_ms(STORE_PAUSE_MS))
            }
        };
        tokio::select! {
            biased;
            () = parts.store.bell().outbox() => {}
            () = at(&parts.clock, moment) => {}
            () = parts.draining.cancelled() => {}
            Some(ended) = outbox.under_way.join_next_with_id() => outbox.ended(&ended.map_or_else(|e| e.id(), |(id, ())| id)),
        }
    }
    tokio::select! {
        biased;
        () = async { while outbox.under_way.join_next().await.is_some() {} } => {}
        () = cancel.cancelled() => {}
    }
}

struct Outbox {
    parts: Parts,
    places: usize,
    under_way: JoinSet<()>,
    lanes: HashMap<Id, (Lane, String)>,
}

impl Outbox {
    /// Begins what is due, and says when the next one is.
    async fn round(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let now = self.parts.clock.now();
        let free = self.places.saturating_sub(self.under_way.len());
        if free > 0 {
            let busy: Vec<(Lane, String)> = self.lanes.values().cloned().collect();
            // No receiver takes more than half of the places.
            let receiver_max = self.places.div_ceil(2);
            let due = self
                .parts
                .store
                .due_deliveries(now, free, receiver_max, busy)
                .await?;
            for delivery in due {
                let key = (delivery.lane(), delivery.url.clone());
                let parts = self.parts.clone();
                let handle = self
                    .under_way
                    .spawn(async move { attempt(&parts, delivery).await });
                self.lanes.insert(handle.id(), key);
            }
        }
        self.parts.store.next_delivery_at(now).await
    }

    fn ended(&mut self, id: &Id) {
        self.lanes.remove(id);
    }
}

/// One attempt, and its record.
async fn attempt(parts: &Parts, delivery: DueDelivery) {
    let at = parts.clock.now();
    let run = delivery.run.map(|run| run.to_string());
    let made = match secret_of(parts, &delivery).await {
        Ok(secret) => {
            let id = delivery.id.to_string();
            let sent = send(
                parts.post.as_ref(),
                &delivery.url,
                &id,
                at.as_seconds(),
                delivery.body.clone().into(),
                &secret,
            );
            // A server that stops waits for no receiver: what may have arrived is sent again after the next start,
            // under the same id.
            let Some(made) = parts.draining.run_until_cancelled(sent).await else {
                return;
            };
            made
        }
        Err(error) => {
            tracing::error!(run.id = run, %error, "a delivery could not be signed; it is tried again");
            crate::webhook::Attempt {
                status: None,
                error: Some(error),
                answer: None,
                duration_ms: 0,
                verdict: Verdict::Retry,
            }
        }
    };
    let attempt = delivery.attempts + 1;
    let now = parts.clock.now();
    let end = match made.verdict {
        Verdict::Delivered => DeliveryEnd::Delivered,
        Verdict::Gone => DeliveryEnd::Gone,
        Verdict::Retry => {
            let elapsed_ms = now.ms_since(delivery.begun_at);
            let tried = attempt.saturating_sub(delivery.attempts_before);
            webhook_retry_delay_ms(tried, elapsed_ms, parts.ids.jitter_permille())
                .map_or(DeliveryEnd::Exhausted, |ms| {
                    DeliveryEnd::Again(now.plus_ms(ms))
                })
        }
    };
    tracing::info!(run.id = run, delivery.id = %delivery.id, attempt, status = made.status, duration_ms = made.duration_ms, ?end, "webhook attempt");
    let row = AttemptRow {
        attempt,
        at,
        duration_ms: made.duration_ms,
        status: made.status,
        error: made.error,
        answer: made.answer,
    };
    // What is not recorded is sent again, so it keeps its place until it is.
    let recorded = persist(parts, || {
        parts
            .store
            .record_attempt(delivery.number, row.clone(), end)
    });
    if let Err(error) = recorded.await {
        tracing::warn!(
            run.id = run,
            error = &error as &dyn std::error::Error,
            "an attempt could not be recorded; it is repeated"
        );
        parts.clock.sleep_ms(STORE_PAUSE_MS).await;
    }
}

/// The team's secret, with those that it replaced a short while ago.
async fn secret_of(parts: &Parts, delivery: &DueDelivery) -> Result<WebhookSecret, String> {
    let now = parts.clock.now();
    let secrets = parts
        .store
        .signing_secrets(delivery.team, now)
        .await
        .map_err(|e| e.to_string())?;
    let parse = |text: &String| WebhookSecret::parse(text).map_err(|e| e.to_string());
    let mut signing = parse(&secrets.present)?;
    for retired in &secrets.retired {
        signing = signing.and_with(parse(&retired.secret)?);
    }
    Ok(signing)
}
