//! Which deliveries are tried next: in turn by team, and within a team by receiver, as [`DeliverySlots`] says.
//!
//! Guarantees: of one run's deliveries to one URL, at most one is given out at a time; a receiver gets no more than it may have at once.
//! What is read is bounded, however many wait: as long as few are due, they are read in order; otherwise each receiver is
//! looked at by itself, [`LINES_MAX`] of them at a time, and the caller goes on from where this ended.

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

/// What is due, in order, without those that an earlier event of the run holds back; `$where` narrows it down. The index
/// gives the order, so that rows are read only until there are enough. One that tells of no run is held back by nothing.
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
/// The next receiver that something waits for, with the time of its first: a skip scan, one look-up for each.
const NEXT_LINE: &str =
    "SELECT team_id, receiver, due_at FROM deliveries INDEXED BY deliveries_waiting
     WHERE state = 'pending' AND (team_id, receiver) > (?1, ?2) ORDER BY team_id, receiver, due_at LIMIT 1";
const ONE: &str = "SELECT run_id, number, id, team_id, url, body, coalesce(resent_at, created_at), attempts, resent_after,
        delivery_id, receiver
    FROM deliveries WHERE number = ?1";

/// So many rows are gone over in order, and of one receiver. If there are more, many wait for somebody who has enough.
pub(super) const IN_ORDER_MAX: usize = 500;
/// So many receivers are looked at in one read.
const LINES_MAX: usize = 1_000;

/// The places of deliveries that are under way, shared between teams and, within a team, between receivers.
pub type DeliverySlots = Fair<TeamId, String>;

/// A receiver of a team: its scheme, host and port, as the team wrote them.
pub type Receiver = (TeamId, String);

impl DueDelivery {
    /// Its lane.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self.run {
            Some(run) => Lane::Run(run, self.url.clone()),
            None => Lane::Alone(self.number),
        }
    }
}

/// Whose turn it is.
#[derive(Clone, Debug)]
pub struct DeliveryTurns {
    /// Who holds how many of the places.
    pub slots: DeliverySlots,
    /// Lanes with a delivery in flight: nothing else of these is given out.
    pub busy: HashSet<Lane>,
    /// Most at once for a receiver that `receivers` does not name.
    pub receiver_max: usize,
    /// Most at once for a receiver.
    pub receivers: Arc<HashMap<Receiver, usize>>,
    /// Where the last read ended, if it did not see all receivers.
    pub after: Option<Receiver>,
}

impl DeliveryTurns {
    /// Nothing is under way, and there are places for all; each receiver has at most this many.
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

/// What is tried now.
#[derive(Clone, Debug, Default)]
pub struct DueDeliveries {
    /// In the order in which they are begun.
    pub due: Vec<DueDelivery>,
    /// Not all receivers were looked at: go on from here.
    pub after: Option<Receiver>,
}

impl Store {
    /// Deliveries to try now, of all teams: at most `limit`, each in its turn.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn due_deliveries(
        &self,
        now: Timestamp,
        limit: usize,
        turns: DeliveryTurns,
    ) -> Result<DueDeliveries> {
        // Many that wait for one receiver may be gone over: on a thread, that nobody else waits.
        self.read(move |conn| select_due(conn, now, limit, turns))
            .await
    }
}

/// What waits for one receiver, in order.
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

/// Everything that is due; none where that is too much to be read in order.
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

/// The first that are due of each receiver that may have one more, and where to go on where there are too many receivers.
fn read_by_receiver(
    conn: &Connection,
    now: Timestamp,
    limit: usize,
    turns: &DeliveryTurns,
) -> Result<(Vec<Line>, Option<Receiver>)> {
    let (receivers, after) = receivers_waiting(conn, now, turns)?;
    // Some more than its share for each: where others have nothing that can be tried, it has what they leave.
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

/// The receivers for which something is due and that may have one more at once.
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

/// Whether a receiver may have one more at once.
fn may_have(turns: &DeliveryTurns, receiver: &Receiver) -> bool {
    let most = turns.receivers.get(receiver).copied();
    let (team, name) = receiver;
    turns.slots.held(team, name) < most.unwrap_or(turns.receiver_max)
        && turns.slots.may_take(team, name)
}

/// The numbers of those whose turn it is.
fn choose(mut lines: Vec<Line>, limit: usize, turns: &mut DeliveryTurns) -> Vec<i64> {
    let mut chosen = Vec::new();
    while chosen.len() < limit {
        // Those that have become busy by what was chosen before are passed over.
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
