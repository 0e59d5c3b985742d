//! Decides which deliveries are tried next: in turn by team, and within a team by receiver, as [`DeliverySlots`]
//! says.
//!
//! # Guarantees
//!
//! Of one run's deliveries to one URL, at most one is in flight. A receiver never gets more than its limit at once.
//! Reads are bounded, no matter how many deliveries wait: if few are due, they are read in order; otherwise receivers
//! are examined one by one, [`LINES_MAX`] at a time, and the caller continues from where this ended.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use errand_core::fair::Fair;
use errand_core::id::{DeliveryId, RunId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms};
use crate::error::Result;
use crate::model::{DueDelivery, Lane};

/// The due deliveries in order, without those that wait for an earlier event of the same run; `$where` narrows them
/// down. The index provides the order, so that only as many rows are read as needed. A delivery without a run waits
/// for nothing.
macro_rules! due {
    ($where:literal) => {
        concat!(
            "SELECT d.team_id, d.receiver, d.number, d.run_id, d.url FROM deliveries d
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
pub(super) const DUE: &str = due!("");
const DUE_AT_RECEIVER: &str = due!("AND d.team_id = ?2 AND d.receiver = ?3");
/// The next receiver with waiting deliveries, and the due time of its first one: a skip scan with one index lookup
/// per receiver.
const NEXT_LINE: &str =
    "SELECT team_id, receiver, due_at FROM deliveries INDEXED BY deliveries_waiting
     WHERE state = 'pending' AND (team_id, receiver) > (?1, ?2) ORDER BY team_id, receiver, due_at LIMIT 1";
const ONE: &str = "SELECT run_id, number, id, team_id, url, body, coalesce(resent_at, created_at), attempts, resent_after,
        delivery_id, receiver
    FROM deliveries WHERE number = ?1";

/// Maximum number of rows that are scanned in order, and per receiver. If there are more, many wait for a receiver
/// that is at its limit.
pub(super) const IN_ORDER_MAX: usize = 500;
/// Maximum number of receivers that are examined in one read.
const LINES_MAX: usize = 1_000;

/// The slots for deliveries in flight, shared fairly among teams, and within a team among receivers.
pub type DeliverySlots = Fair<TeamId, String>;

/// A receiver of a team: the scheme, host and port of its URL, as the team entered them.
pub type Receiver = (TeamId, String);

impl DueDelivery {
    /// The lane that this delivery belongs to.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self.run {
            Some(run) => Lane::Run(run, self.url.clone()),
            None => Lane::Alone(self.number),
        }
    }
}

/// State that decides which deliveries may be tried.
#[derive(Clone, Debug)]
pub struct DeliveryTurns {
    /// The holders of the slots.
    pub slots: DeliverySlots,
    /// Lanes with a delivery in flight. Nothing else of these lanes is tried.
    pub busy: HashSet<Lane>,
    /// Maximum number in flight for a receiver that is not in `receivers`.
    pub receiver_max: usize,
    /// Maximum number in flight by receiver.
    pub receivers: Arc<HashMap<Receiver, usize>>,
    /// Where the last read ended, if it did not examine all receivers.
    pub after: Option<Receiver>,
}

impl DeliveryTurns {
    /// Nothing is in flight, and there are enough slots for everything. Each receiver has this limit.
    #[must_use]
    pub fn unshared(receiver_max: usize) -> Self {
        Self {
            slots: DeliverySlots::new(usize::MAX),
            busy: HashSet::new(),
            receiver_max,
            receivers: Arc::default(),
            after: None,
        }
    }
}

/// The deliveries to try now.
#[derive(Clone, Debug, Default)]
pub struct DueDeliveries {
    /// In the order in which to begin them.
    pub due: Vec<DueDelivery>,
    /// Set if not all receivers were examined: continue from here.
    pub after: Option<Receiver>,
}

impl Store {
    /// Selects deliveries of all teams to try now: at most `limit`, in turn.
    pub async fn due_deliveries(
        &self,
        now: Timestamp,
        limit: usize,
        turns: DeliveryTurns,
    ) -> Result<DueDeliveries> {
        // Not inline: scanning many deliveries that wait for one receiver would block the caller's thread.
        self.read(move |conn| select_due(conn, now, limit, turns))
            .await
    }
}

/// The deliveries that wait for one receiver, in order.
struct Line {
    receiver: Receiver,
    waiting: VecDeque<(i64, Lane)>,
}

fn select_due(
    conn: &Connection,
    now: Timestamp,
    limit: usize,
    mut turns: DeliveryTurns,
) -> Result<DueDeliveries> {
    let (lines, after) = match read_in_order(conn, now, &turns)? {
        Some(lines) => (lines, None),
        None => read_by_receiver(conn, now, limit, &turns)?,
    };
    let chosen = choose(lines, limit, &mut turns);
    let mut one = conn.prepare_cached(ONE)?;
    let mut due = Vec::with_capacity(chosen.len());
    for number in chosen {
        due.push(one.query_row(params![number], due_delivery)?);
    }
    Ok(DueDeliveries { due, after })
}

/// All due deliveries, or `None` if there are too many to read in order.
fn read_in_order(
    conn: &Connection,
    now: Timestamp,
    turns: &DeliveryTurns,
) -> Result<Option<Vec<Line>>> {
    let mut lines: Vec<Line> = Vec::new();
    let mut at: HashMap<Receiver, usize> = HashMap::new();
    let mut in_order = conn.prepare_cached(DUE)?;
    let mut rows = in_order.query(params![Ms(now)])?;
    let mut read = 0;
    while let Some(row) = rows.next()? {
        read += 1;
        if read > IN_ORDER_MAX {
            return Ok(None);
        }
        let waiting = waiting(row)?;
        if turns.busy.contains(&waiting.1) {
            continue;
        }
        let receiver = (TeamId::from_stored(row.get::<_, Blob>(0)?.0), row.get(1)?);
        let index = *at.entry(receiver.clone()).or_insert_with(|| {
            lines.push(Line {
                receiver,
                waiting: VecDeque::new(),
            });
            lines.len() - 1
        });
        if let Some(line) = lines.get_mut(index) {
            line.waiting.push_back(waiting);
        }
    }
    Ok(Some(lines))
}

/// The first due deliveries of each receiver that is below its limit, and where to continue if there are too many
/// receivers.
fn read_by_receiver(
    conn: &Connection,
    now: Timestamp,
    limit: usize,
    turns: &DeliveryTurns,
) -> Result<(Vec<Line>, Option<Receiver>)> {
    let (receivers, after) = receivers_waiting(conn, now, turns)?;
    // Slightly more than a fair share each, so that a receiver can use the slots that others leave.
    let part = (2 * limit).div_ceil(receivers.len().max(1));
    let mut lines = Vec::with_capacity(receivers.len());
    let mut at_receiver = conn.prepare_cached(DUE_AT_RECEIVER)?;
    for receiver in receivers {
        let mut waits = VecDeque::new();
        let mut rows =
            at_receiver.query(params![Ms(now), Blob(receiver.0.as_uuid()), receiver.1])?;
        for _ in 0..IN_ORDER_MAX {
            let Some(row) = rows.next()? else { break };
            let waiting = waiting(row)?;
            if !turns.busy.contains(&waiting.1) {
                waits.push_back(waiting);
            }
            if waits.len() >= part {
                break;
            }
        }
        lines.push(Line {
            receiver,
            waiting: waits,
        });
    }
    Ok((lines, after))
}

/// The receivers with due deliveries that are below their limit.
fn receivers_waiting(
    conn: &Connection,
    now: Timestamp,
    turns: &DeliveryTurns,
) -> Result<(Vec<Receiver>, Option<Receiver>)> {
    let mut next = conn.prepare_cached(NEXT_LINE)?;
    let mut receivers = Vec::new();
    let (mut team, mut name) = match &turns.after {
        Some((team, name)) => (team.as_uuid().as_bytes().to_vec(), name.clone()),
        None => (Vec::new(), String::new()),
    };
    for _ in 0..LINES_MAX {
        let found = next
            .query_row(params![team, name], |row| {
                let team = TeamId::from_stored(row.get::<_, Blob>(0)?.0);
                Ok(((team, row.get::<_, String>(1)?), row.get::<_, Ms>(2)?.0))
            })
            .optional()?;
        let Some((receiver, due_at)) = found else {
            return Ok((receivers, None));
        };
        team = receiver.0.as_uuid().as_bytes().to_vec();
        name.clone_from(&receiver.1);
        if due_at <= now && may_have(turns, &receiver) {
            receivers.push(receiver);
        }
    }
    let after = uuid::Uuid::from_slice(&team)
        .ok()
        .map(|team| (TeamId::from_stored(team), name));
    Ok((receivers, after))
}

/// Whether a receiver is below its limit.
fn may_have(turns: &DeliveryTurns, receiver: &Receiver) -> bool {
    let most = turns.receivers.get(receiver).copied();
    let (team, name) = receiver;
    turns.slots.held(team, name) < most.unwrap_or(turns.receiver_max)
        && turns.slots.may_take(team, name)
}

/// The numbers of the deliveries to try.
fn choose(mut lines: Vec<Line>, limit: usize, turns: &mut DeliveryTurns) -> Vec<i64> {
    let mut chosen = Vec::new();
    while chosen.len() < limit {
        // Skip deliveries whose lane has become busy with one that was chosen before.
        for line in &mut lines {
            while line
                .waiting
                .front()
                .is_some_and(|(_, lane)| turns.busy.contains(lane))
            {
                line.waiting.pop_front();
            }
        }
        lines.retain(|line| !line.waiting.is_empty() && may_have(turns, &line.receiver));
        let receivers = lines
            .iter()
            .map(|line| (&line.receiver.0, &line.receiver.1));
        let Some(line) = turns
            .slots
            .choose(receivers)
            .and_then(|index| lines.get_mut(index))
        else {
            break;
        };
        if let Some((number, lane)) = line.waiting.pop_front() {
            turns.busy.insert(lane);
            turns.slots.take(&line.receiver.0, &line.receiver.1);
            chosen.push(number);
        }
    }
    chosen
}

fn waiting(row: &Row<'_>) -> Result<(i64, Lane)> {
    let number = row.get(2)?;
    let run = row.get::<_, Option<Blob>>(3)?;
    let lane = match run {
        Some(run) => Lane::Run(RunId::from_stored(run.0), row.get(4)?),
        None => Lane::Alone(number),
    };
    Ok((number, lane))
}

fn due_delivery(row: &Row<'_>) -> rusqlite::Result<DueDelivery> {
    let run = row.get::<_, Option<Blob>>(0)?;
    Ok(DueDelivery {
        number: row.get(1)?,
        delivery: DeliveryId::from_stored(row.get::<_, Blob>(9)?.0),
        id: row.get::<_, Blob>(2)?.0,
        run: run.map(|run| RunId::from_stored(run.0)),
        team: TeamId::from_stored(row.get::<_, Blob>(3)?.0),
        receiver: row.get(10)?,
        url: row.get(4)?,
        body: row.get(5)?,
        begun_at: row.get::<_, Ms>(6)?.0,
        attempts: row.get(7)?,
        attempts_before: row.get(8)?,
    })
}
