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

mod reading;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use errand_core::id::{DeliveryId, RunId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

pub(crate) use reading::select_one;

use crate::error::{Result, StoreError};
use crate::model::{AttemptRow, DeliveryEnd, DeliveryRow, DueDelivery, Lane};
use crate::once::{Answer, Once, once};
use crate::rows::{Blob, Ms, int};
use crate::sqlite::{Store, Tx};

/// What is due, in order, without those that an earlier event of the run holds back; `$where` narrows it down. The index
/// gives the order, so that rows are read only until there are enough. One that tells of no run is held back by nothing.
macro_rules! due {
    ($where:literal) => {
        concat!(
            "SELECT d.run_id, d.number, d.id, d.team_id, d.url, d.body, coalesce(d.resent_at, d.created_at), d.attempts,
                 d.resent_after, d.delivery_id, d.receiver
             FROM deliveries d
             WHERE d.state = 'pending' AND d.due_at <= ?1 ",
            $where,
            " AND (d.attempts > 0 OR NOT EXISTS (
                 SELECT 1 FROM deliveries e
                 WHERE e.run_id = d.run_id AND e.sequence < d.sequence AND e.url = d.url
                   AND e.state = 'pending' AND e.attempts = 0))
             ORDER BY d.due_at, d.number"
        )
    };
}
const DUE: &str = due!("");
const DUE_AT_RECEIVER: &str = due!("AND d.receiver = ?2");
/// Who has deliveries that are pending, each with the time of its first.
const RECEIVERS: &str = "WITH RECURSIVE known (receiver) AS (
        SELECT (SELECT min(receiver) FROM deliveries WHERE state = 'pending')
        UNION ALL SELECT (SELECT min(d.receiver) FROM deliveries d WHERE d.state = 'pending' AND d.receiver > k.receiver)
        FROM known k WHERE k.receiver IS NOT NULL)
    SELECT k.receiver FROM known k WHERE k.receiver IS NOT NULL
    ORDER BY (SELECT min(d.due_at) FROM deliveries d WHERE d.state = 'pending' AND d.receiver = k.receiver)";
/// So many rows are gone over in order. If there are more, many wait for somebody who has enough; then each receiver is
/// looked at by itself, so that nobody's backlog is in the way of others.
const IN_ORDER_MAX: usize = 500;

impl Store {
    /// Deliveries to try now, of all teams: at most `limit`, at most one for each run, and none of the runs in `busy`
    /// (lane and URL of what is being tried). In the order in which they were due, but with what is being tried no more
    /// than `receiver_max` for one receiver: a dead one leaves room for the others.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn due_deliveries(
        &self,
        now: Timestamp,
        limit: usize,
        receiver_max: usize,
        busy: Vec<(Lane, String)>,
    ) -> Result<Vec<DueDelivery>> {
        // Many that wait for one receiver may be gone over: on a thread, that nobody else waits.
        self.read(move |conn| select_due(conn, now, limit, receiver_max, &busy))
            .await
    }

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
                    crate::webhooks::disable_of(tx, number, attempt.at)?;
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

/// Scheme, host and port of a URL: who is called.
fn receiver(url: &str) -> &str {
    let from = url.find("://").map_or(0, |at| at + 3);
    let to = url
        .get(from..)
        .and_then(|rest| rest.find(['/', '?', '#']))
        .map_or(url.len(), |at| from + at);
    url.get(..to).unwrap_or(url)
}

fn select_due(
    conn: &Connection,
    now: Timestamp,
    limit: usize,
    receiver_max: usize,
    busy: &[(Lane, String)],
) -> Result<Vec<DueDelivery>> {
    let mut chosen = Chosen {
        limit,
        receiver_max,
        lanes: busy.iter().map(|(lane, _)| *lane).collect(),
        receivers: HashMap::new(),
        due: Vec::new(),
    };
    for (_, url) in busy {
        *chosen.at(receiver(url)) += 1;
    }
    let mut in_order = conn.prepare_cached(DUE)?;
    let whole = chosen.from(in_order.query(params![Ms(now)])?)?;
    if whole || chosen.is_full() {
        return Ok(chosen.due);
    }
    let receivers = conn
        .prepare_cached(RECEIVERS)?
        .query_map([], |row| row.get::<_, String>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut at_receiver = conn.prepare_cached(DUE_AT_RECEIVER)?;
    for receiver in receivers {
        if *chosen.at(&receiver) < receiver_max && !chosen.is_full() {
            chosen.from(at_receiver.query(params![Ms(now), receiver])?)?;
        }
    }
    Ok(chosen.due)
}

/// What is to be tried now.
struct Chosen {
    limit: usize,
    receiver_max: usize,
    lanes: HashSet<Lane>,
    /// How many are tried at each, with those that are at it.
    receivers: HashMap<String, usize>,
    due: Vec<DueDelivery>,
}

impl Chosen {
    fn at(&mut self, receiver: &str) -> &mut usize {
        self.receivers.entry(receiver.to_owned()).or_default()
    }

    fn is_full(&self) -> bool {
        self.due.len() >= self.limit
    }

    /// Takes what there is room for. False where so many rows were gone over that it was broken off.
    fn from(&mut self, mut rows: rusqlite::Rows<'_>) -> Result<bool> {
        for _ in 0..IN_ORDER_MAX {
            if self.is_full() {
                return Ok(true);
            }
            let Some(row) = rows.next()? else {
                return Ok(true);
            };
            let run = row
                .get::<_, Option<Blob>>(0)?
                .map(|run| RunId::from_stored(run.0));
            let number = row.get(1)?;
            let lane = run.map_or(Lane::Alone(number), Lane::Run);
            // The bodies of those that are held back are not read.
            let receiver = row.get_ref(10)?.as_str().map_err(rusqlite::Error::from)?;
            let receiver_max = self.receiver_max;
            if *self.at(receiver) < receiver_max && self.lanes.insert(lane) {
                *self.at(receiver) += 1;
                self.due.push(due_delivery(run, number, row)?);
            }
        }
        Ok(false)
    }
}

fn due_delivery(run: Option<RunId>, number: i64, row: &Row<'_>) -> Result<DueDelivery> {
    Ok(DueDelivery {
        number,
        delivery: DeliveryId::from_stored(row.get::<_, Blob>(9)?.0),
        id: row.get::<_, Blob>(2)?.0,
        run,
        team: TeamId::from_stored(row.get::<_, Blob>(3)?.0),
        url: row.get(4)?,
        body: row.get(5)?,
        begun_at: row.get::<_, Ms>(6)?.0,
        attempts: row.get(7)?,
        attempts_before: row.get(8)?,
    })
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
