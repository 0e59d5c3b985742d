//! Delivery of webhooks.
//!
//! Promised: each delivery in the outbox reaches its URL at least once, or is given up after three days, or ends with
//! a 410; each attempt is recorded. Receivers tell repeats by `webhook-id`. Of a run's deliveries to one URL, one is in
//! flight at a time, in order; after its first failure an event is retried by itself and later ones overtake it. Those to
//! other URLs do not wait for it. Places are shared in turn by team and, within a team, by receiver
//! ([`errand_core::fair`]), and a receiver that does not answer has few of them ([`receivers`]): however many deliveries
//! wait for dead receivers, a healthy one gets its own at once.
//!
//! Which are under way is known in memory alone: a server that dies, or stops, in the middle of an attempt causes a
//! repeat, never a loss. Nothing here decides *whether* to send: rows are written in the transaction that changed the run.
//!
//! A delivery that finds no descriptor or no memory on this machine, or whose secret the store cannot read now, has not
//! been attempted: it keeps its place and waits ([`crate::exhausted`]), and nothing is recorded.

mod receivers;

use std::collections::HashMap;

use errand_core::retry::webhook_retry_delay_ms;
use errand_core::time::Timestamp;
use errand_store::model::{AttemptRow, DeliveryEnd, DueDelivery, Lane};
use errand_store::{DeliverySlots, DeliveryTurns, Receiver, StoreError};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::context::EngineContext;
use crate::exhausted::patiently;
use crate::store_retry::retry_while_unavailable;
use crate::webhook::{Attempt, Verdict, WebhookSecret, send};
use receivers::{Receivers, Sign};

/// The pause after a failure of the store.
const STORE_PAUSE_MS: u64 = 250;

/// Delivers until the server drains.
pub(crate) async fn run(engine: EngineContext, places: usize, cancel: CancellationToken) {
    let mut outbox = Outbox {
        engine: engine.clone(),
        slots: DeliverySlots::new(places),
        receivers: Receivers::new(places),
        under_way: JoinSet::new(),
        lanes: HashMap::new(),
    };
    while !engine.draining.is_cancelled() {
        let moment = match outbox.round().await {
            Ok(moment) => moment,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the outbox could not be read; trying again"
                );
                Some(engine.clock.now().plus_ms(STORE_PAUSE_MS))
            }
        };
        tokio::select! {
            biased;
            () = engine.store.bell().outbox() => {}
            () = engine.clock.sleep_until_some(moment) => {}
            () = engine.draining.cancelled() => {}
            Some(ended) = outbox.under_way.join_next_with_id() => match ended {
                Ok((id, sign)) => outbox.ended(&id, Some(sign)),
                Err(error) => outbox.ended(&error.id(), None),
            },
        }
    }
    tokio::select! {
        biased;
        () = async { while outbox.under_way.join_next().await.is_some() {} } => {}
        () = cancel.cancelled() => {}
    }
}

struct Outbox {
    engine: EngineContext,
    /// Who holds how many of the places.
    slots: DeliverySlots,
    receivers: Receivers,
    under_way: JoinSet<Sign>,
    lanes: HashMap<Id, (Lane, Receiver)>,
}

impl Outbox {
    /// Begins what is due, and says when the next one is.
    async fn round(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let now = self.engine.clock.now();
        let mut after = None;
        loop {
            let free = self.slots.free();
            if free == 0 {
                break;
            }
            let turns = DeliveryTurns {
                slots: self.slots.clone(),
                busy: self.lanes.values().map(|(lane, _)| lane.clone()).collect(),
                receiver_max: self.receivers.unknown_max(),
                receivers: self.receivers.known(),
                after,
            };
            let found = self.engine.store.due_deliveries(now, free, turns).await?;
            for delivery in found.due {
                self.begin(delivery);
            }
            after = found.after;
            if after.is_none() {
                break;
            }
        }
        self.engine.store.next_delivery_at(now).await
    }

    fn begin(&mut self, delivery: DueDelivery) {
        let receiver = (delivery.team, delivery.receiver.clone());
        let lane = delivery.lane();
        self.slots.take(&receiver.0, &receiver.1);
        let engine = self.engine.clone();
        let span = tracing::debug_span!(
            "webhook.attempt",
            run.id = delivery.run.map(tracing::field::display),
            team.id = %delivery.team,
            delivery.id = %delivery.id,
            attempt = delivery.attempts + 1,
            status = Empty,
            duration_ms = Empty,
        );
        let handle = self
            .under_way
            .spawn(async move { attempt(&engine, delivery).await }.instrument(span));
        self.lanes.insert(handle.id(), (lane, receiver));
    }

    fn ended(&mut self, id: &Id, sign: Option<Sign>) {
        let Some((_, receiver)) = self.lanes.remove(id) else {
            return;
        };
        self.slots.release(&receiver.0, &receiver.1);
        if let Some(sign) = sign {
            self.receivers.heard(receiver, sign);
        }
    }
}

/// One attempt, and its record.
async fn attempt(engine: &EngineContext, delivery: DueDelivery) -> Sign {
    let run = delivery.run.map(|run| run.to_string());
    // A server that stops waits for no receiver: what may have arrived is sent again after the next start, under the
    // same id.
    let made = engine.draining.run_until_cancelled(make(engine, &delivery));
    let Some(Some((at, made))) = made.await else {
        return Sign::Neither;
    };
    let sign = Sign::of(&made);
    let attempt = delivery.attempts + 1;
    let now = engine.clock.now();
    let end = match made.verdict {
        Verdict::Delivered => DeliveryEnd::Delivered,
        Verdict::Gone => DeliveryEnd::Gone,
        Verdict::Retry => {
            let elapsed_ms = now.ms_since(delivery.begun_at);
            let tried = attempt.saturating_sub(delivery.attempts_before);
            webhook_retry_delay_ms(tried, elapsed_ms, engine.ids.jitter_permille())
                .map_or(DeliveryEnd::Exhausted, |ms| {
                    DeliveryEnd::Again(now.plus_ms(ms))
                })
        }
    };
    tracing::info!(run.id = run, delivery.id = %delivery.id, attempt, status = made.status, duration_ms = made.duration_ms, ?end, "webhook attempt");
    let span = Span::current();
    span.record("status", made.status);
    span.record("duration_ms", made.duration_ms);
    let row = AttemptRow {
        attempt,
        at,
        duration_ms: made.duration_ms,
        status: made.status,
        error: made.error,
        answer: made.answer,
    };
    // What is not recorded is sent again, so it keeps its place until it is.
    let recorded = retry_while_unavailable(engine, || {
        engine
            .store
            .record_attempt(delivery.number, row.clone(), end)
    });
    if let Err(error) = recorded.await {
        tracing::warn!(
            run.id = run,
            error = &error as &dyn std::error::Error,
            "an attempt could not be recorded; it is repeated"
        );
        engine.clock.sleep_ms(STORE_PAUSE_MS).await;
    }
    sign
}

/// Sends it, as soon as this machine has what that takes. When that was, and what came of it. `None`: the server stopped
/// first, and nothing was sent.
async fn make(engine: &EngineContext, delivery: &DueDelivery) -> Option<(Timestamp, Attempt)> {
    let secret = match secret_of(engine, delivery).await {
        Ok(secret) => secret,
        Err(SecretError::NotNow(error)) => {
            tracing::debug!(%error, "a delivery is not begun any more: the server stops");
            return None;
        }
        Err(SecretError::Unusable(error)) => {
            let run = delivery.run.map(|run| run.to_string());
            tracing::error!(run.id = run, %error, "a delivery could not be signed; it is tried again");
            let attempt = Attempt {
                status: None,
                error: Some(error),
                answer: None,
                duration_ms: 0,
                verdict: Verdict::Retry,
                timed_out: false,
            };
            return Some((engine.clock.now(), attempt));
        }
    };
    let id = delivery.id.to_string();
    let body = bytes::Bytes::from(delivery.body.clone());
    let try_to_send = || {
        // Of each try: receivers refuse a signature that is minutes old.
        let at = engine.clock.now();
        let (post, at_s) = (engine.post.as_ref(), at.as_seconds());
        let sent = send(post, &delivery.url, &id, at_s, body.clone(), &secret);
        async move { (at, sent.await) }
    };
    patiently(&engine.clock, &engine.draining, try_to_send).await
}

/// Why a delivery cannot be signed.
enum SecretError {
    /// The server stops, and its store could not be read until then.
    NotNow(StoreError),
    /// The secret itself cannot be used.
    Unusable(String),
}

/// The team's secret, with those that it replaced a short while ago.
async fn secret_of(
    engine: &EngineContext,
    delivery: &DueDelivery,
) -> Result<WebhookSecret, SecretError> {
    let read = || {
        let now = engine.clock.now();
        engine.store.signing_secrets(delivery.team, now)
    };
    let secrets = match retry_while_unavailable(engine, read).await {
        Ok(secrets) => secrets,
        Err(error) if error.is_passing() => return Err(SecretError::NotNow(error)),
        Err(error) => return Err(SecretError::Unusable(error.to_string())),
    };
    let parse = |text: &String| {
        WebhookSecret::parse(text).map_err(|error| SecretError::Unusable(error.to_string()))
    };
    let mut signing = parse(&secrets.present)?;
    for retired in &secrets.retired {
        signing = signing.and_with(parse(&retired.secret)?);
    }
    Ok(signing)
}
