//! Deliveries of events to webhooks, as the outbox holds them: which are due, and what came of an attempt.
//!
//! Promised: an attempt is recorded once, together with what follows from it. Of one run at most one delivery is given
//! out at a time, in the events' order for each URL; a delivery that has failed once is tried again by itself, and
//! later ones overtake it. A delivery whose attempt was not recorded (the program ended) is given out again: at least
//! once, not exactly once.
//!
//! Left out: making deliveries (the transaction that commits the event does), sending, and when to try again
//! (`errand_core::retry`).

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use errand_core::id::{RunId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, Row, params};

use crate::error::{Result, StoreError};
use crate::model::{AttemptRow, DeliveryEnd, DeliveryRow, DueDelivery};
use crate::rows::{Blob, Ms, count, int};
use crate::sqlite::Store;

/// What is due, in order, without those that an earlier event of the run holds back. The index gives the order, so that
/// rows are read only until there are enough.
const DUE: &str =
    "SELECT d.run_id, d.number, d.id, d.team_id, d.url, d.body, d.created_at, d.attempts
    FROM deliveries d
    WHERE d.state = 'pending' AND d.due_at <= ?1 AND (d.attempts > 0 OR NOT EXISTS (
        SELECT 1 FROM deliveries e
        WHERE e.run_id = d.run_id AND e.sequence < d.sequence AND e.url = d.url
          AND e.state = 'pending' AND e.attempts = 0))
    ORDER BY d.due_at, d.number";

impl Store {
    /// Deliveries to try now, of all teams: at most `limit`, at most one for each run, and none of the runs in `busy`
    /// (run and URL of what is being tried). In the order in which they were due, but with what is being tried no more
    /// than `receiver_max` for one receiver: a dead one leaves room for the others.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn due_deliveries(
        &self,
        now: Timestamp,
        limit: usize,
        receiver_max: usize,
        busy: Vec<(RunId, String)>,
    ) -> Result<Vec<DueDelivery>> {
        self.peek(move |conn| select_due(conn, now, limit, receiver_max, &busy))
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
    /// False where it is not, or the delivery is not pending: it was recorded before, and nothing was changed.
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
                // The run's next one is free now, or this one has another time.
                tx.ring_outbox();
            }
            Ok(recorded)
        })
        .await
    }

    /// A run's deliveries with their attempts, in the events' order.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the run is.
    pub async fn deliveries_of(&self, team: TeamId, run: RunId) -> Result<Vec<DeliveryRow>> {
        self.read(move |conn| select_of_run(conn, team, run)).await
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
    busy: &[(RunId, String)],
) -> Result<Vec<DueDelivery>> {
    let mut runs: HashSet<RunId> = busy.iter().map(|(run, _)| *run).collect();
    let mut receivers: HashMap<String, usize> = HashMap::new();
    for (_, url) in busy {
        *receivers.entry(receiver(url).to_owned()).or_default() += 1;
    }
    let mut statement = conn.prepare_cached(DUE)?;
    let mut rows = statement.query(params![Ms(now)])?;
    let mut due = Vec::new();
    while due.len() < limit {
        let Some(row) = rows.next()? else { break };
        let run = RunId::from_stored(row.get::<_, Blob>(0)?.0);
        // The bodies of those that are held back are not read.
        let url = row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?;
        let at_receiver = receivers.entry(receiver(url).to_owned()).or_default();
        if *at_receiver < receiver_max && runs.insert(run) {
            *at_receiver += 1;
            due.push(due_delivery(run, row)?);
        }
    }
    Ok(due)
}

fn due_delivery(run: RunId, row: &Row<'_>) -> Result<DueDelivery> {
    Ok(DueDelivery {
        number: row.get(1)?,
        id: row.get::<_, Blob>(2)?.0,
        run,
        team: TeamId::from_stored(row.get::<_, Blob>(3)?.0),
        url: row.get(4)?,
        body: row.get(5)?,
        created_at: row.get::<_, Ms>(6)?.0,
        attempts: row.get(7)?,
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
            "UPDATE deliveries SET attempts = ?2, state = ?3, due_at = ?4
             WHERE number = ?1 AND state = 'pending' AND attempts = ?2 - 1",
        )?
        .execute(params![number, attempt.attempt, state, due_at.map(Ms)])?;
    Ok(changed > 0)
}

fn insert_attempt(tx: &Connection, number: i64, attempt: &AttemptRow) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO delivery_attempts (delivery, attempt, at, duration_ms, status, error) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        number,
        attempt.attempt,
        Ms(attempt.at),
        int(attempt.duration_ms),
        attempt.status,
        attempt.error
    ])?;
    Ok(())
}

fn select_of_run(conn: &Connection, team: TeamId, run: RunId) -> Result<Vec<DeliveryRow>> {
    let mut statement = conn.prepare_cached(
        "SELECT d.number, d.id, d.event, d.sequence, d.url, d.state, d.due_at,
                a.attempt, a.at, a.duration_ms, a.status, a.error
         FROM runs r
         LEFT JOIN deliveries d ON d.run_id = r.id
         LEFT JOIN delivery_attempts a ON a.delivery = d.number
         WHERE r.id = ?1 AND r.team_id = ?2
         ORDER BY d.sequence, d.number, a.attempt",
    )?;
    let mut rows = statement.query(params![Blob(run.as_uuid()), Blob(team.as_uuid())])?;
    let (mut deliveries, mut last, mut found) = (Vec::<DeliveryRow>::new(), None, false);
    while let Some(row) = rows.next()? {
        found = true;
        // A run without deliveries is one row of nothing.
        let Some(number) = row.get::<_, Option<i64>>(0)? else {
            continue;
        };
        if last.replace(number) != Some(number) {
            deliveries.push(delivery_row(row)?);
        }
        if let (Some(attempt), Some(delivery)) = (attempt_row(row)?, deliveries.last_mut()) {
            delivery.attempts.push(attempt);
        }
    }
    if found {
        Ok(deliveries)
    } else {
        Err(StoreError::NotFound)
    }
}

fn delivery_row(row: &Row<'_>) -> Result<DeliveryRow> {
    Ok(DeliveryRow {
        id: row.get::<_, Blob>(1)?.0,
        event: row.get(2)?,
        sequence: count(row.get(3)?),
        url: row.get(4)?,
        state: row.get(5)?,
        due_at: row.get::<_, Option<Ms>>(6)?.map(|ms| ms.0),
        attempts: Vec::new(),
    })
}

fn attempt_row(row: &Row<'_>) -> Result<Option<AttemptRow>> {
    let Some(attempt) = row.get(7)? else {
        return Ok(None);
    };
    Ok(Some(AttemptRow {
        attempt,
        at: row.get::<_, Ms>(8)?.0,
        duration_ms: count(row.get(9)?),
        status: row.get(10)?,
        error: row.get(11)?,
    }))
}
