//! Whose run is claimed next: each principal of each team has its runs in order, and [`RunSlots`] says whose turn it is.
//!
//! Guarantees: what is read is one index entry for each principal that has a run in line, and one for each run that is
//! taken; how many wait does not matter.

use std::collections::VecDeque;

use errand_core::fair::Fair;
use errand_core::id::{ApiKeyId, RunId, TeamId, UserId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use crate::db::types::{Blob, Ms};
use crate::error::Result;
use crate::model::ReadyRun;

/// Who started a run: an API key, or a person in the web interface. Runs that a run starts have its principal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(Uuid);

impl Principal {
    /// The key that was used; otherwise the person.
    #[must_use]
    pub fn of(key: Option<ApiKeyId>, person: UserId) -> Self {
        Self(key.map_or(person.as_uuid(), ApiKeyId::as_uuid))
    }

    pub(crate) fn as_uuid(self) -> Uuid {
        self.0
    }

    pub(crate) fn from_stored(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

/// The slots of runs, shared between teams and, within a team, between those that started the runs.
pub type RunSlots = Fair<TeamId, Principal>;
/// The next principal that has a run in line: a skip scan, one look-up for each.
const NEXT: &str = "SELECT team_id, principal FROM runs INDEXED BY runs_ready
    WHERE wake_at IS NOT NULL AND claim_token IS NULL AND (team_id, principal) > (?1, ?2)
    ORDER BY team_id, principal LIMIT 1";
/// A principal's runs that are due, from the first, or after one.
const DUE: &str = "SELECT wake_at, id FROM runs INDEXED BY runs_ready
    WHERE team_id = ?1 AND principal = ?2 AND (wake_at, id) > (?4, ?5) AND wake_at <= ?3
      AND wake_at IS NOT NULL AND claim_token IS NULL
    ORDER BY wake_at, id LIMIT ?6";

/// Most runs of a principal that are read at once: more than one, and not many that are not taken.
const PART_MAX: usize = 8;

/// One principal's runs.
struct Line {
    team: TeamId,
    principal: Principal,
    /// The first of those that are left, in order.
    runs: VecDeque<RunId>,
    /// After which one to go on reading; none where all are read.
    read_to: Option<(Timestamp, RunId)>,
}

/// All principals that have runs in line.
pub(crate) struct Turns {
    slots: RunSlots,
    lines: Vec<Line>,
    /// How many runs of a line are read at once.
    part: usize,
}

impl Turns {
    /// `limit`: how many will be taken at most.
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

    /// Whether nobody is left that wants a driver.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The runs whose turn it is, at most `limit`.
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
    /// Reads the next runs that are due, at most `part`.
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
