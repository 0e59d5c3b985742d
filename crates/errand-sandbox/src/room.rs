//! Limits the size of a sandbox for files that the server writes: uploads and file tools.
//!
//! # Guarantees
//!
//! Writes through [`Root`] never make a sandbox exceed [`RoomLimits`], even when many writes run at once: each
//! reserves space before its bytes are written and returns what it does not use.
//!
//! The used space is measured when it is first needed and updated from then on. A command may change anything, so it
//! is measured again after one. The bytes also count toward the quota of the sandbox's team; see [`crate::quota`].
//!
//! # Non-goals
//!
//! Limiting the writes of commands. [`exec`](crate::exec) watches those.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::TeamId;

use crate::error::FileError;
use crate::quota::{Charged, Quotas, TeamRoom};
use crate::root::Root;

/// Number of sandboxes above which the unused ones are forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// Maximum size of one sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    /// On disk.
    pub disk_bytes_max: u64,
    /// Files and directories together.
    pub files_max: u64,
    /// Bytes on disk of all sandboxes of one team together. 0: no limit.
    pub team_disk_bytes_max: u64,
}

/// Used space of all sandboxes. Cheap to clone: a clone is the same table.
#[derive(Clone, Debug)]
pub struct Rooms {
    limits: RoomLimits,
    known: Arc<Mutex<HashMap<PathBuf, Arc<Room>>>>,
    quotas: Quotas,
}

/// Used space of one sandbox.
#[derive(Debug)]
pub(crate) struct Room {
    limits: RoomLimits,
    team: Arc<TeamRoom>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Space in use. `None`: unknown, to be measured.
    held: Option<Held>,
    /// Bytes reserved by writes in progress.
    reserved_bytes: u64,
    /// Files reserved by writes in progress.
    reserved_files: u64,
    /// Number of changes. A measurement that began before the last one may have missed it.
    changes: u64,
    /// Whether there were changes of unknown size since the last measurement.
    is_unmeasured: bool,
    /// Bytes that count toward the team's quota: the last known size, and what was written since.
    counted: u64,
    /// Bytes recorded in the store.
    recorded: u64,
    /// The sandbox was deleted and does not count any more.
    is_gone: bool,
}

/// Space that a sandbox uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// A limit is reached.
#[derive(Debug)]
pub(crate) enum Full {
    /// The sandbox is full.
    Sandbox(RoomLimits),
    /// The team's sandboxes together have reached the team's quota.
    Team(RoomLimits),
}

/// Space that one write has reserved. Returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    room: Arc<Room>,
    bytes: u64,
    files: u64,
}

impl Rooms {
    #[must_use]
    pub fn new(limits: RoomLimits) -> Self {
        Self {
            limits,
            known: Arc::default(),
            quotas: Quotas::new(limits.team_disk_bytes_max),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Room>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Initializes the teams' totals from the records of the store. Call this once, before any sandbox is used.
    pub fn begin_with(&self, teams: impl IntoIterator<Item = (TeamId, u64)>) {
        for (team, bytes) in teams {
            self.quotas.of(team).moved(0, bytes);
        }
    }

    /// Total bytes of a team's sandboxes, as far as known.
    #[must_use]
    pub fn team_bytes(&self, team: TeamId) -> u64 {
        self.quotas.of(team).held()
    }

    /// Quota of each team, in bytes. `None`: no limit.
    #[must_use]
    pub fn team_bytes_max(&self) -> Option<u64> {
        let most = self.limits.team_disk_bytes_max;
        (most > 0).then_some(most)
    }

    /// The record of the sandbox in a directory. `is_empty`: it was created just now, so there is nothing to measure.
    pub(crate) fn of(&self, dir: &Path, is_empty: bool, charged: Charged) -> Arc<Room> {
        let mut known = self.known();
        if let Some(room) = known.get(dir) {
            return Arc::clone(room);
        }
        if known.len() >= REMEMBERED_MAX {
            // A sandbox whose bytes are not recorded yet is kept. Otherwise it would count with an old record when it is opened again.
            known.retain(|_, room| Arc::strong_count(room) > 1 || !room.is_on_record());
        }
        let state = State {
            counted: charged.bytes,
            recorded: charged.bytes,
            ..State::default()
        };
        let room = Room {
            limits: self.limits,
            team: self.quotas.of(charged.team),
            state: Mutex::new(state),
        };
        if is_empty {
            room.set_held(&mut room.state(), Held::default());
        }
        let room = Arc::new(room);
        known.insert(dir.to_owned(), Arc::clone(&room));
        room
    }

    /// Forgets a sandbox that was moved or removed, so that its bytes do not count any more. `charged` is its record in the
    /// store at the deletion; `None` if it was deleted before, or had no record.
    pub fn forget(&self, dir: &Path, charged: Option<Charged>) {
        let room = self.known().remove(dir);
        match (room, charged) {
            (Some(room), _) => room.is_deleted(),
            (None, Some(charged)) => self.quotas.of(charged.team).moved(charged.bytes, 0),
            (None, None) => {}
        }
    }

    /// Bytes with which a sandbox counts. `None` if it was not used since the start.
    #[must_use]
    pub fn bytes_of(&self, dir: &Path) -> Option<u64> {
        let room = self.known().get(dir).map(Arc::clone)?;
        let state = room.state();
        Some(state.counted)
    }

    /// The sandboxes whose bytes differ from their record by more than `by`, with their bytes.
    #[must_use]
    pub fn unrecorded(&self, by: u64) -> Vec<(PathBuf, u64)> {
        let known = self.known();
        let of = |(dir, room): (&PathBuf, &Arc<Room>)| {
            let state = room.state();
            (state.counted.abs_diff(state.recorded) > by).then(|| (dir.clone(), state.counted))
        };
        known.iter().filter_map(of).collect()
    }

    /// The difference between a sandbox and its record, and its bytes.
    #[must_use]
    pub fn unrecorded_of(&self, dir: &Path) -> Option<(u64, u64)> {
        let room = self.known().get(dir).map(Arc::clone)?;
        let state = room.state();
        Some((state.counted.abs_diff(state.recorded), state.counted))
    }

    /// Notes the bytes that were recorded in the store for a sandbox.
    pub fn has_recorded(&self, dir: &Path, bytes: u64) {
        let room = self.known().get(dir).map(Arc::clone);
        if let Some(room) = room {
            room.state().recorded = bytes;
        }
    }

    /// The sandboxes with changes since their last measurement, at most `limit`.
    #[must_use]
    pub fn unmeasured(&self, limit: usize) -> Vec<PathBuf> {
        let known = self.known();
        let unmeasured = known
            .iter()
            .filter(|(_, room)| room.state().is_unmeasured)
            .map(|(dir, _)| dir.clone());
        unmeasured.take(limit).collect()
    }

    /// Measures a sandbox, unless its size is known. A sandbox without a directory is empty. Returns the number of its
    /// files and directories. Blocking.
    ///
    /// # Errors
    /// If the measurement fails.
    pub fn measure(&self, dir: &Path, charged: Charged) -> Result<u64, FileError> {
        self.of(dir, false, charged).measured_at(dir)
    }

    /// Like [`Rooms::measure`], for a sandbox that was used since the start. Returns `None` if it was not.
    ///
    /// # Errors
    /// If the measurement fails.
    pub fn measure_known(&self, dir: &Path) -> Result<Option<u64>, FileError> {
        let room = self.known().get(dir).map(Arc::clone);
        room.map(|room| room.measured_at(dir)).transpose()
    }
}

impl Room {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measured_at(&self, dir: &Path) -> Result<u64, FileError> {
        match Root::open(dir) {
            Ok(root) => Ok(self.held(&root)?.files),
            Err(FileError::SandboxMissing) => {
                let mut state = self.state();
                if state.held.is_none() {
                    self.set_held(&mut state, Held::default());
                }
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Discards the measurement, because files were changed in an unknown way.
    pub(crate) fn mark_unknown(&self) {
        let mut state = self.state();
        state.held = None;
        state.is_unmeasured = true;
        state.changes += 1;
    }

    /// Records that the sandbox was deleted.
    fn is_deleted(&self) {
        let mut state = self.state();
        self.count(&mut state, 0);
        state.is_gone = true;
    }

    fn is_on_record(&self) -> bool {
        let state = self.state();
        state.counted == state.recorded && !state.is_unmeasured
    }

    /// Changes the bytes with which the sandbox counts toward the team's quota.
    fn count(&self, state: &mut State, bytes: u64) {
        if !state.is_gone {
            self.team.moved(state.counted, bytes);
            state.counted = bytes;
        }
    }

    fn set_held(&self, state: &mut State, held: Held) {
        state.held = Some(held);
        state.is_unmeasured = false;
        self.count(state, held.bytes);
    }

    /// Bytes that count toward the team's quota.
    pub(crate) fn counted(&self) -> u64 {
        self.state().counted
    }

    /// Maximum bytes of the sandbox under its team's quota. `None` if the team has no quota.
    pub(crate) fn team_allows(&self) -> Option<u64> {
        let state = self.state();
        self.team.allows(state.counted)
    }

    /// Returns the token for a measurement that begins now, for [`Room::is_measured`].
    pub(crate) fn begin_measure(&self) -> u64 {
        self.state().changes
    }

    /// Records a measurement from elsewhere. `begun` comes from [`Room::begin_measure`].
    pub(crate) fn is_measured(&self, begun: u64, held: Held) {
        let mut state = self.state();
        if state.changes == begun {
            self.set_held(&mut state, held);
        } else {
            self.count(&mut state, held.bytes);
        }
    }

    /// The used space, measured if it is unknown. Blocking: takes time in proportion to the number of files.
    pub(crate) fn held(&self, root: &Root) -> Result<Held, FileError> {
        let begun = {
            let state = self.state();
            if let Some(held) = state.held {
                return Ok(held);
            }
            state.changes
        };
        let usage = root.usage()?;
        let measured = Held {
            bytes: usage.disk_bytes,
            files: usage.files.saturating_add(usage.directories),
        };
        let mut state = self.state();
        // A concurrent measurement has finished first, and includes what was written since.
        if let Some(held) = state.held {
            return Ok(held);
        }
        // Files that changed in the meantime may or may not be included. Use the result once, and measure again next time.
        if state.changes != begun {
            return Ok(measured);
        }
        self.set_held(&mut state, measured);
        Ok(measured)
    }

    /// Begins a write of one file. `is_new`: it replaces none.
    ///
    /// # Errors
    /// The inner error is [`Full`], if no more files are allowed; the outer one comes from the measurement.
    pub(crate) fn begin(
        self: &Arc<Self>,
        root: &Root,
        is_new: bool,
    ) -> Result<Result<Reservation, Full>, FileError> {
        let files = u64::from(is_new);
        if is_new {
            let held = self.held(root)?;
            let mut state = self.state();
            if held.files.saturating_add(state.reserved_files) >= self.limits.files_max {
                return Ok(Err(Full::Sandbox(self.limits)));
            }
            state.reserved_files += files;
        }
        Ok(Ok(Reservation {
            room: Arc::clone(self),
            bytes: 0,
            files,
        }))
    }
}

impl Reservation {
    /// Reserves more bytes.
    ///
    /// # Errors
    /// The inner error is [`Full`], and nothing is reserved then; the outer one comes from the measurement.
    pub(crate) fn reserve(
        &mut self,
        root: &Root,
        bytes: u64,
    ) -> Result<Result<(), Full>, FileError> {
        let held = self.room.held(root)?;
        let mut state = self.room.state();
        let whole = held
            .bytes
            .saturating_add(state.reserved_bytes)
            .saturating_add(bytes);
        if whole > self.room.limits.disk_bytes_max {
            return Ok(Err(Full::Sandbox(self.room.limits)));
        }
        if !self.room.team.take(bytes) {
            return Ok(Err(Full::Team(self.room.limits)));
        }
        state.reserved_bytes += bytes;
        drop(state);
        self.bytes += bytes;
        Ok(Ok(()))
    }

    /// Records that the file is in its place and uses `bytes` on disk, instead of one that used `before` (`None`: it is new).
    pub(crate) fn commit(mut self, bytes: u64, before: Option<u64>) {
        // Returned in the same step that counts the file, so that its bytes are never counted twice.
        let taken = std::mem::take(&mut self.bytes);
        let mut state = self.room.state();
        let after = |held: u64| {
            held.saturating_add(bytes)
                .saturating_sub(before.unwrap_or(0))
        };
        if let Some(held) = &mut state.held {
            held.bytes = after(held.bytes);
            held.files += u64::from(before.is_none());
        }
        // A measurement in progress may have missed it.
        state.changes += 1;
        state.reserved_bytes = state.reserved_bytes.saturating_sub(taken);
        let counted = if state.is_gone {
            0
        } else {
            after(state.counted)
        };
        self.room.team.placed(taken, state.counted, counted);
        state.counted = counted;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.room.state();
        state.reserved_bytes = state.reserved_bytes.saturating_sub(self.bytes);
        state.reserved_files = state.reserved_files.saturating_sub(self.files);
        self.room.team.give_back(self.bytes);
    }
}
