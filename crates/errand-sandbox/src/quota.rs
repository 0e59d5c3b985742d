//! The disk quota of a team: how many bytes all of its sandboxes hold together.
//!
//! Guarantees: writes through [`crate::Root`] never take a team beyond its quota, also where they go on at once in many of
//! its sandboxes: each takes its bytes from the team's room as it takes them from the sandbox's.
//!
//! The sums begin with what the store has on record for each sandbox and follow every write and measure from there on.
//! A record that a crash left behind is corrected when the sandbox is next measured.
//!
//! Non-goals: keeping records. The callers do that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::TeamId;

/// The team whose quota a sandbox counts for, and the bytes that the store has on record for the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    /// The team.
    pub team: TeamId,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The room of each team. Cheap to clone: a clone is the same.
#[derive(Clone, Debug)]
pub(crate) struct Quotas {
    bytes_max: u64,
    teams: Arc<Mutex<HashMap<TeamId, Arc<TeamRoom>>>>,
}

/// The room of one team.
#[derive(Debug)]
pub(crate) struct TeamRoom {
    /// 0: no limit.
    bytes_max: u64,
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    /// What the sandboxes hold.
    held: u64,
    /// Bytes of writes that are under way.
    taken: u64,
}

impl Quotas {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            teams: Arc::default(),
        }
    }

    pub(crate) fn of(&self, team: TeamId) -> Arc<TeamRoom> {
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        let room = teams.entry(team).or_insert_with(|| {
            Arc::new(TeamRoom {
                bytes_max: self.bytes_max,
                sums: Mutex::default(),
            })
        });
        Arc::clone(room)
    }
}

impl TeamRoom {
    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn held(&self) -> u64 {
        self.sums().held
    }

    /// A sandbox that held `before` bytes holds `after`.
    pub(crate) fn moved(&self, before: u64, after: u64) {
        let mut sums = self.sums();
        sums.held = sums.held.saturating_sub(before).saturating_add(after);
    }

    /// A write that had taken `taken` bytes is done: a sandbox that held `before` bytes holds `after`.
    pub(crate) fn placed(&self, taken: u64, before: u64, after: u64) {
        let mut sums = self.sums();
        sums.taken = sums.taken.saturating_sub(taken);
        sums.held = sums.held.saturating_sub(before).saturating_add(after);
    }

    /// Takes room for a write. False: there is none, and nothing was taken.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let mut sums = self.sums();
        let taken = sums.taken.saturating_add(bytes);
        if self.bytes_max > 0 && sums.held.saturating_add(taken) > self.bytes_max {
            return false;
        }
        sums.taken = taken;
        true
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        let mut sums = self.sums();
        sums.taken = sums.taken.saturating_sub(bytes);
    }

    /// Bytes that a sandbox may hold which counts for `counted` now: what its team's other sandboxes leave. None: no limit.
    pub(crate) fn allows(&self, counted: u64) -> Option<u64> {
        let sums = self.sums();
        let others = sums.held.saturating_sub(counted).saturating_add(sums.taken);
        (self.bytes_max > 0).then(|| self.bytes_max.saturating_sub(others))
    }
}
