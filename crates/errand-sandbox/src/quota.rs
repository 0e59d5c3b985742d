//! The disk quota of a team: limits the total bytes of all its sandboxes.
//!
//! # Guarantees
//!
//! Writes through [`crate::Root`] never make a team exceed its quota, even when they run at once in many of its sandboxes:
//! each reserves its bytes for the team as it does for the sandbox.
//!
//! The totals start with the records of the store and follow every write and measurement from then on. A record that a
//! crash left outdated is corrected when the sandbox is next measured.
//!
//! # Non-goals
//!
//! Storing the records. The callers do that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::TeamId;

/// The team whose quota a sandbox counts toward, and the bytes recorded for the sandbox in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    pub team: TeamId,
    /// On disk.
    pub bytes: u64,
}

/// The quotas of all teams. Cheap to clone: a clone is the same table.
#[derive(Clone, Debug)]
pub(crate) struct Quotas {
    bytes_max: u64,
    teams: Arc<Mutex<HashMap<TeamId, Arc<TeamRoom>>>>,
}

/// Used space of one team.
#[derive(Debug)]
pub(crate) struct TeamRoom {
    /// 0: no limit.
    bytes_max: u64,
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    /// Bytes that the sandboxes hold.
    held: u64,
    /// Bytes reserved by writes in progress.
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

    /// Records that a sandbox with `before` bytes now has `after`.
    pub(crate) fn moved(&self, before: u64, after: u64) {
        let mut sums = self.sums();
        sums.held = sums.held.saturating_sub(before).saturating_add(after);
    }

    /// Completes a write that had reserved `taken` bytes: a sandbox with `before` bytes now has `after`.
    pub(crate) fn placed(&self, taken: u64, before: u64, after: u64) {
        let mut sums = self.sums();
        sums.taken = sums.taken.saturating_sub(taken);
        sums.held = sums.held.saturating_sub(before).saturating_add(after);
    }

    /// Reserves bytes for a write. Returns `false`, and reserves nothing, if the quota is used up.
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

    /// Maximum bytes of a sandbox that counts with `counted` bytes now: what the team's other sandboxes leave. `None`: no
    /// limit.
    pub(crate) fn allows(&self, counted: u64) -> Option<u64> {
        let sums = self.sums();
        let others = sums.held.saturating_sub(counted).saturating_add(sums.taken);
        (self.bytes_max > 0).then(|| self.bytes_max.saturating_sub(others))
    }
}
