//! How much room a sandbox has left, for files that the server writes: uploads and file tools.
//!
//! Guarantees: what is written through [`Root`] never makes a sandbox hold more than [`RoomLimits`] allows, also where many
//! writes go on at once: each takes its room before the bytes are written, and gives back what it did not use.
//!
//! What a sandbox holds is measured when that is first needed and counted from there on. A command may change anything, so
//! after one it is measured again. Its bytes also count for the team that it belongs to; see [`crate::quota`].
//!
//! Non-goals: what a command writes itself. The watch over commands bounds that.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::TeamId;

use crate::error::FileError;
use crate::quota::{Charged, Quotas, TeamRoom};
use crate::root::Root;

/// Sandboxes whose room is remembered while nothing uses them.
const REMEMBERED_MAX: usize = 10_000;

/// How much one sandbox may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    /// Bytes on disk.
    pub disk_bytes_max: u64,
    /// Files and directories.
    pub files_max: u64,
    /// Bytes on disk of all sandboxes of one team together. 0: no limit.
    pub team_disk_bytes_max: u64,
}

/// The room of all sandboxes. Cheap to clone: a clone is the same.
#[derive(Clone, Debug)]
pub struct Rooms {
    limits: RoomLimits,
    known: Arc<Mutex<HashMap<PathBuf, Arc<Room>>>>,
    quotas: Quotas,
}

/// The room of one sandbox.
#[derive(Debug)]
pub(crate) struct Room {
    limits: RoomLimits,
    team: Arc<TeamRoom>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the sandbox holds. None: it is not known.
    held: Option<Held>,
    /// Bytes of writes that are under way.
    taken_bytes: u64,
    /// Files of writes that are under way.
    taken_files: u64,
    /// How often it was changed: a measure that was begun before may have missed that.
    changes: u64,
    /// Whether it was changed, in a way that nobody counted, since it was last measured.
    is_unmeasured: bool,
    /// Bytes that count for the team: what it held when that was last known, and what was written since.
    counted: u64,
    /// Bytes that the store has on record.
    recorded: u64,
    /// The sandbox was deleted: it counts no more.
    is_gone: bool,
}

/// What a sandbox holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// There is no room, by these limits.
#[derive(Debug)]
pub(crate) enum Full {
    /// The sandbox is full.
    Sandbox(RoomLimits),
    /// The sandboxes of the team together are.
    Team(RoomLimits),
}

/// Room that one write has taken. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Taken {
    room: Arc<Room>,
    bytes: u64,
    files: u64,
}

impl Rooms {
    /// None is known yet.
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

    /// What the sandboxes of the teams hold by the records of the store. Called once, before any sandbox is used.
    pub fn begin_with(&self, teams: impl IntoIterator<Item = (TeamId, u64)>) {
        for (team, bytes) in teams {
            self.quotas.of(team).moved(0, bytes);
        }
    }

    /// Bytes that the sandboxes of a team hold together, as far as that is known.
    #[must_use]
    pub fn team_bytes(&self, team: TeamId) -> u64 {
        self.quotas.of(team).held()
    }

    /// The most that they may hold together. None: no limit.
    #[must_use]
    pub fn team_bytes_max(&self) -> Option<u64> {
        let most = self.limits.team_disk_bytes_max;
        (most > 0).then_some(most)
    }

    /// The room of the sandbox in a directory. `is_empty`: it was made just now.
    pub(crate) fn of(&self, dir: &Path, is_empty: bool, charged: Charged) -> Arc<Room> {
        let mut known = self.known();
        if let Some(room) = known.get(dir) {
            return Arc::clone(room);
        }
        if known.len() >= REMEMBERED_MAX {
            // One whose bytes are not on record yet would count by an old record when it is opened again.
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

    /// Forgets a sandbox that was moved or removed: its bytes count no more. `charged`: what the store had on record when
    /// it deleted it; none where it was deleted before, or had no record.
    pub fn forget(&self, dir: &Path, charged: Option<Charged>) {
        let room = self.known().remove(dir);
        match (room, charged) {
            (Some(room), _) => room.is_deleted(),
            (None, Some(charged)) => self.quotas.of(charged.team).moved(charged.bytes, 0),
            (None, None) => {}
        }
    }

    /// Bytes that a sandbox counts for. None: it was not used since the start.
    #[must_use]
    pub fn bytes_of(&self, dir: &Path) -> Option<u64> {
        let room = self.known().get(dir).map(Arc::clone)?;
        let state = room.state();
        Some(state.counted)
    }

    /// The sandboxes whose bytes differ from those on record by more than `by`, with their bytes.
    #[must_use]
    pub fn unrecorded(&self, by: u64) -> Vec<(PathBuf, u64)> {
        let known = self.known();
        let of = |(dir, room): (&PathBuf, &Arc<Room>)| {
            let state = room.state();
            (state.counted.abs_diff(state.recorded) > by).then(|| (dir.clone(), state.counted))
        };
        known.iter().filter_map(of).collect()
    }

    /// By how many bytes a sandbox differs from its record, and its bytes.
    #[must_use]
    pub fn unrecorded_of(&self, dir: &Path) -> Option<(u64, u64)> {
        let room = self.known().get(dir).map(Arc::clone)?;
        let state = room.state();
        Some((state.counted.abs_diff(state.recorded), state.counted))
    }

    /// The store has so many bytes on record for a sandbox.
    pub fn has_recorded(&self, dir: &Path, bytes: u64) {
        let room = self.known().get(dir).map(Arc::clone);
        if let Some(room) = room {
            room.state().recorded = bytes;
        }
    }

    /// The sandboxes that were changed since they were last measured, at most `limit`.
    #[must_use]
    pub fn unmeasured(&self, limit: usize) -> Vec<PathBuf> {
        let known = self.known();
        let unmeasured = known
            .iter()
            .filter(|(_, room)| room.state().is_unmeasured)
            .map(|(dir, _)| dir.clone());
        unmeasured.take(limit).collect()
    }

    /// Measures a sandbox, unless what it holds is known; one without a directory holds nothing. Returns how many files
    /// and directories it has. Blocking.
    ///
    /// # Errors
    /// Of the measuring.
    pub fn measure(&self, dir: &Path, charged: Charged) -> Result<u64, FileError> {
        self.of(dir, false, charged).measured_at(dir)
    }

    /// The same for one that was used since the start; none where it was not.
    ///
    /// # Errors
    /// Of the measuring.
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

    /// Something has changed files without saying how.
    pub(crate) fn is_unknown(&self) {
        let mut state = self.state();
        state.held = None;
        state.is_unmeasured = true;
        state.changes += 1;
    }

    /// The sandbox was deleted.
    fn is_deleted(&self) {
        let mut state = self.state();
        self.count(&mut state, 0);
        state.is_gone = true;
    }

    fn is_on_record(&self) -> bool {
        let state = self.state();
        state.counted == state.recorded && !state.is_unmeasured
    }

    /// So many bytes count for the team from now on.
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

    /// Bytes that count for the team.
    pub(crate) fn counted(&self) -> u64 {
        self.state().counted
    }

    /// Bytes that the sandbox may hold by the quota of its team. None: the team has none.
    pub(crate) fn team_allows(&self) -> Option<u64> {
        let state = self.state();
        self.team.allows(state.counted)
    }

    /// What a measure that begins now is compared with when it is done: [`Room::is_measured`].
    pub(crate) fn begin_measure(&self) -> u64 {
        self.state().changes
    }

    /// Somebody else has measured the sandbox. `begun`: [`Room::begin_measure`].
    pub(crate) fn is_measured(&self, begun: u64, held: Held) {
        let mut state = self.state();
        if state.changes == begun {
            self.set_held(&mut state, held);
        } else {
            self.count(&mut state, held.bytes);
        }
    }

    /// What the sandbox holds, measured if it is not known. Blocking: in proportion to the number of its files.
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
        // Another one that was done first has counted what was written since.
        if let Some(held) = state.held {
            return Ok(held);
        }
        // Files that changed meanwhile may be in the measure or not: it is good for this once, and is taken again.
        if state.changes != begun {
            return Ok(measured);
        }
        self.set_held(&mut state, measured);
        Ok(measured)
    }

    /// Begins a write of one file. `is_new`: it replaces none.
    ///
    /// # Errors
    /// [`Full`] as the inner error, where no file more fits; of the measuring.
    pub(crate) fn begin(
        self: &Arc<Self>,
        root: &Root,
        is_new: bool,
    ) -> Result<Result<Taken, Full>, FileError> {
        let files = u64::from(is_new);
        if is_new {
            let held = self.held(root)?;
            let mut state = self.state();
            if held.files.saturating_add(state.taken_files) >= self.limits.files_max {
                return Ok(Err(Full::Sandbox(self.limits)));
            }
            state.taken_files += files;
        }
        Ok(Ok(Taken {
            room: Arc::clone(self),
            bytes: 0,
            files,
        }))
    }
}

impl Taken {
    /// Takes room for so many bytes more.
    ///
    /// # Errors
    /// [`Full`] as the inner error; nothing was taken then.
    pub(crate) fn more(&mut self, root: &Root, bytes: u64) -> Result<Result<(), Full>, FileError> {
        let held = self.room.held(root)?;
        let mut state = self.room.state();
        let whole = held
            .bytes
            .saturating_add(state.taken_bytes)
            .saturating_add(bytes);
        if whole > self.room.limits.disk_bytes_max {
            return Ok(Err(Full::Sandbox(self.room.limits)));
        }
        if !self.room.team.take(bytes) {
            return Ok(Err(Full::Team(self.room.limits)));
        }
        state.taken_bytes += bytes;
        drop(state);
        self.bytes += bytes;
        Ok(Ok(()))
    }

    /// The file is in its place, on so many bytes of disk, instead of one that took `before` (None: there was none).
    pub(crate) fn placed(mut self, bytes: u64, before: Option<u64>) {
        // Given back with the same step that counts the file: nobody sees its bytes twice.
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
        // A measure that is under way may have missed it.
        state.changes += 1;
        state.taken_bytes = state.taken_bytes.saturating_sub(taken);
        let counted = if state.is_gone {
            0
        } else {
            after(state.counted)
        };
        self.room.team.placed(taken, state.counted, counted);
        state.counted = counted;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.room.state();
        state.taken_bytes = state.taken_bytes.saturating_sub(self.bytes);
        state.taken_files = state.taken_files.saturating_sub(self.files);
        self.room.team.give_back(self.bytes);
    }
}
