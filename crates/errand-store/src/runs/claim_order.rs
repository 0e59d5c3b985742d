//! Decides which run is claimed next. Each principal of each team has a queue, and [`RunSlots`] decides whose turn it
//! is.
//!
//! # Guarantees
//!
//! Reads one index entry per principal with queued runs, and one per claimed run. The number of waiting runs does not
//! matter.

use std::collections::VecDeque;

use errand_core::id::{RunId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::db::types::{Blob, Ms};
use crate::error::Result;
use crate::model::ReadyRun;
use crate::runs::principal::{Principal, RunSlots};

/// The next principal with queued runs: a skip scan with one index lookup per principal.
const NEXT: &str = "SELECT team_id, principal FROM runs INDEXED BY runs_ready
    WHERE wake_at IS NOT NULL AND claim_token IS NULL AND (team_id, principal) > (?1, ?2)
    ORDER BY team_id, principal LIMIT 1";
/// The due runs of a principal, from the first one, or after a given one.
const DUE: &str = "SELECT wake_at, id FROM runs INDEXED BY runs_ready
    WHERE team_id = ?1 AND principal = ?2 AND (wake_at, id) > (?4, ?5) AND wake_at <= ?3
      AND wake_at IS NOT NULL AND claim_token IS NULL
    ORDER BY wake_at, id LIMIT ?6";

/// Maximum number of a principal's runs that are read at once: enough to avoid single reads, but few that are not
/// claimed.
const PART_MAX: usize = 8;

/// The queue of one principal.
struct Line {
    team: TeamId,
    principal: Principal,
    /// The next runs, in order.
    runs: VecDeque<RunId>,
    /// The run after which to continue reading. `None` if all have been read.
    read_to: Option<(Timestamp, RunId)>,
}

/// The queues of all principals that have queued runs.
pub(crate) struct Turns {
    slots: RunSlots,
    lines: Vec<Line>,
    /// Number of runs to read at once for each queue.
    part: usize,
}

impl Turns {
    /// `limit` is the maximum number of runs that will be taken.
    pub(crate) fn read(
        conn: &Connection,
        now: Timestamp,
        limit: usize,
        slots: RunSlots,
    ) -> Result<Self> {
        let mut found: Vec<(TeamId, Principal)> = Vec::new();
        let mut next = conn.prepare_cached(NEXT)?;
        let (mut team, mut principal) = (Vec::new(), Vec::new());
        while let Some((found_team, found_principal)) = next
            .query_row(params![team, principal], |row| {
                Ok((row.get::<_, Blob>(0)?.0, row.get::<_, Blob>(1)?.0))
            })
            .optional()?
        {
            team = found_team.as_bytes().to_vec();
            principal = found_principal.as_bytes().to_vec();
            found.push((
                TeamId::from_stored(found_team),
                Principal::from_stored(found_principal),
            ));
        }
        let part = limit
            .checked_div(found.len())
            .unwrap_or(0)
            .clamp(1, PART_MAX);
        let mut turns = Self {
            slots,
            lines: Vec::with_capacity(found.len()),
            part,
        };
        for (team, principal) in found {
            let mut line = Line {
                team,
                principal,
                runs: VecDeque::new(),
                read_to: Some((
                    Timestamp::from_millis(i64::MIN),
                    RunId::from_stored(uuid::Uuid::nil()),
                )),
            };
            line.read(conn, now, part)?;
            if !line.runs.is_empty() {
                turns.lines.push(line);
            }
        }
        Ok(turns)
    }

    /// Whether no run wants a driver any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Takes the next runs, at most `limit`.
    pub(crate) fn take(
        &mut self,
        conn: &Connection,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<ReadyRun>> {
        let mut taken = Vec::new();
        while taken.len() < limit {
            let waiting = self.lines.iter().map(|line| (&line.team, &line.principal));
            let Some(index) = self.slots.choose(waiting) else {
                break;
            };
            let Some(line) = self.lines.get_mut(index) else {
                break;
            };
            let Some(run) = line.runs.pop_front() else {
                break;
            };
            let (team, principal) = (line.team, line.principal);
            self.slots.take(&team, &principal);
            taken.push(ReadyRun {
                team,
                principal,
                run,
            });
            if line.runs.is_empty() {
                line.read(conn, now, self.part)?;
            }
            if line.runs.is_empty() {
                self.lines.swap_remove(index);
            }
        }
        Ok(taken)
    }
}

impl Line {
    /// Reads the next due runs, at most `part`.
    fn read(&mut self, conn: &Connection, now: Timestamp, part: usize) -> Result<()> {
        let Some((at, after)) = self.read_to else {
            return Ok(());
        };
        let mut due = conn.prepare_cached(DUE)?;
        let mut rows = due.query(params![
            Blob(self.team.as_uuid()),
            Blob(self.principal.as_uuid()),
            Ms(now),
            Ms(at),
            Blob(after.as_uuid()),
            u32::try_from(part).unwrap_or(u32::MAX)
        ])?;
        let mut read = 0;
        while let Some(row) = rows.next()? {
            let run = RunId::from_stored(row.get::<_, Blob>(1)?.0);
            self.read_to = Some((row.get::<_, Ms>(0)?.0, run));
            self.runs.push_back(run);
            read += 1;
        }
        if read < part {
            self.read_to = None;
        }
        Ok(())
    }
}
