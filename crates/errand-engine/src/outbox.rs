//! The outbox: delivers webhooks.
//!
//! # Guarantees
//!
//! Each delivery reaches its URL at least once, or is given up after three days, or ends with a 410. Each attempt is
//! recorded. Receivers recognize repeats by `webhook-id`.
//!
//! Of a run's deliveries to one URL, one is in flight at a time, in order. After its first failure a delivery is retried
//! on its own schedule, and later ones may overtake it. Deliveries to other URLs do not wait for it.
//!
//! Slots are shared in turn by teams and, within a team, by receivers ([`errand_core::fair`]). A receiver that does not
//! answer gets few slots ([`receivers`]), so a healthy receiver does not wait behind deliveries to dead ones.
//!
//! A delivery is not attempted while file descriptors or memory have run out, or while the store cannot read its secret.
//! It keeps its slot and waits ([`crate::exhausted`]), and nothing is recorded.
//!
//! # Non-goals
//!
//! Deciding whether to send: the transaction that changes the run writes the rows. Deliveries in flight are known in
//! memory alone: if the server dies during an attempt, the delivery is repeated, never lost.

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

/// Pause after a failure of the store, in milliseconds.
const STORE_PAUSE_MS: u64 = 250;
/// How long an attempt that waits for its answer keeps its place. Receivers that work answer within a second.
const PLACE_MS: u64 = 1_000;

/// Delivers until the server drains.
pub(crate) async fn run(engine: EngineContext, slots: usize, cancel: CancellationToken) {
    let mut outbox = Outbox {
        engine: engine.clone(),
        slots: DeliverySlots::new(slots),
        receivers: Receivers::new(slots),
        under_way: JoinSet::new(),
        flights: HashMap::new(),
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
    /// The slots that each team and receiver holds.
    slots: DeliverySlots,
    receivers: Receivers,
    under_way: JoinSet<Sign>,
    flights: HashMap<Id, Flight>,
}

/// An attempt that is under way.
struct Flight {
    lane: Lane,
    receiver: Receiver,
    began: Timestamp,
    /// It waits for its answer beside the slots.
    is_beside: bool,
}

impl Flight {
    fn keeps_place_until(&self) -> Timestamp {
        self.began.plus_ms(PLACE_MS)
    }
}

impl Outbox {
    /// Starts attempts of the due deliveries, and returns when the next one is due.
    async fn round(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let now = self.engine.clock.now();
        let mut after = None;
        self.give_back(now);
        loop {
            let free = self.slots.free();
            if free == 0 {
                break;
            }
            let turns = DeliveryTurns {
                slots: self.slots.clone(),
                busy: self
                    .flights
                    .values()
                    .map(|flight| flight.lane.clone())
                    .collect(),
                receiver_max: self.receivers.unknown_max(),
                receivers: self.receivers.known(),
                after,
            };
            let found = self.engine.store.due_deliveries(now, free, turns).await?;
            let mut began_beside = false;
            for delivery in found.due {
                began_beside |= self.begin(delivery, now);
            }
            after = found.after;
            // What began beside the slots has left room in them.
            if after.is_none() && !began_beside {
                break;
            }
        }
        let due_at = self.engine.store.next_delivery_at(now).await?;
        let in_places = self.flights.values().filter(|flight| !flight.is_beside);
        let given_back_at = in_places
            .map(Flight::keeps_place_until)
            .filter(|at| *at > now);
        Ok(due_at.into_iter().chain(given_back_at).min())
    }

    /// Attempts that have waited long enough give their slots back, as far as they can wait beside them.
    fn give_back(&mut self, now: Timestamp) {
        for flight in self.flights.values_mut() {
            let keeps = flight.is_beside || flight.keeps_place_until() > now;
            if keeps || !self.receivers.may_wait(&flight.receiver) {
                continue;
            }
            flight.is_beside = true;
            self.slots.release(&flight.receiver.0, &flight.receiver.1);
            self.receivers.waits(&flight.receiver);
        }
    }

    /// Begins an attempt. Returns whether it waits beside the slots. One on a silent receiver is left for later if nothing
    /// more can wait there.
    fn begin(&mut self, delivery: DueDelivery, now: Timestamp) -> bool {
        let receiver = (delivery.team, delivery.receiver.clone());
        let lane = delivery.lane();
        let is_beside = self.receivers.is_silent(&receiver);
        if is_beside {
            if !self.receivers.may_wait(&receiver) {
                return false;
            }
            self.receivers.waits(&receiver);
        } else {
            self.slots.take(&receiver.0, &receiver.1);
        }
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
        let flight = Flight {
            lane,
            receiver,
            began: now,
            is_beside,
        };
        self.flights.insert(handle.id(), flight);
        is_beside
    }

    fn ended(&mut self, id: &Id, sign: Option<Sign>) {
        let Some(flight) = self.flights.remove(id) else {
            return;
        };
        let receiver = flight.receiver;
        if flight.is_beside {
            self.receivers.waited(&receiver);
        } else {
            self.slots.release(&receiver.0, &receiver.1);
        }
        if let Some(sign) = sign {
            self.receivers.record(receiver, sign);
        }
    }
}

/// Makes one attempt and records it.
async fn attempt(engine: &EngineContext, delivery: DueDelivery) -> Sign {
    let run = delivery.run.map(|run| run.to_string());
    // A server that shuts down does not wait for receivers. A delivery that may have arrived is sent again after the
    // next start, under the same id.
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
    // An attempt without a record is repeated, so the delivery keeps its slot until the record is written.
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

/// Sends a delivery as soon as the machine has the resources for it. Returns when it was sent, and the result. `None` if
/// the server shut down first and nothing was sent.
async fn make(engine: &EngineContext, delivery: &DueDelivery) -> Option<(Timestamp, Attempt)> {
    let secret = match secret_of(engine, delivery).await {
        Ok(secret) => secret,
        Err(SecretError::NotNow(error)) => {
            tracing::debug!(%error, "a delivery does not begin, because the server shuts down");
            return None;
        }
        Err(SecretError::Unusable(error)) => {
            let run = delivery.run.map(|run| run.to_string());
            tracing::error!(run.id = run, %error, "a delivery could not be signed; it is retried");
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
        // Read in each attempt, because receivers refuse a signature that is minutes old.
        let at = engine.clock.now();
        let (post, at_s) = (engine.post.as_ref(), at.as_seconds());
        let sent = send(post, &delivery.url, &id, at_s, body.clone(), &secret);
        async move { (at, sent.await) }
    };
    patiently(&engine.clock, &engine.draining, try_to_send).await
}

enum SecretError {
    /// The server shuts down, and its store could not be read before.
    NotNow(StoreError),
    Unusable(String),
}

/// Reads the team's secret, and the secrets that it has recently replaced.
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
