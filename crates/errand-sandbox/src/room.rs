//! How much room a sandbox has left, for files that the server writes: uploads and file tools.
//!
//! Guarantees: what is written through [`Root`] never makes a sandbox hold more than [`RoomLimits`] allows, also where many
//! writes go on at once: each takes its room before the bytes are written, and gives back what it did not use.
//!
//! What a sandbox holds is measured when that is first needed and counted from there on. A command may change anything, so
//! after one it is measured again.
//!
//! Non-goals: what a command writes itself. The watch over commands bounds that.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::FileError;
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
}

/// The room of all sandboxes. Cheap to clone: a clone is the same.
#[derive(Clone, Debug)]
pub struct Rooms {
    limits: RoomLimits,
    known: Arc<Mutex<HashMap<PathBuf, Arc<Room>>>>,
}

/// The room of one sandbox.
#[derive(Debug)]
pub(crate) struct Room {
    limits: RoomLimits,
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
    /// How often what it holds has become unknown: a measure that was begun before counts no more.
    changes: u64,
}

/// What a sandbox holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    bytes: u64,
    files: u64,
}

/// There is no room: [`RoomLimits`] of the sandbox.
#[derive(Debug)]
pub(crate) struct Full(pub(crate) RoomLimits);

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
        }
    }

    /// The room of the sandbox in a directory. `is_empty`: it was made just now.
    pub(crate) fn of(&self, dir: &Path, is_empty: bool) -> Arc<Room> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = known.get(dir) {
            return Arc::clone(room);
        }
        if known.len() >= REMEMBERED_MAX {
            known.retain(|_, room| Arc::strong_count(room) > 1);
        }
        let state = State {
            held: is_empty.then(Held::default),
            ..State::default()
        };
        let room = Arc::new(Room {
            limits: self.limits,
            state: Mutex::new(state),
        });
        known.insert(dir.to_owned(), Arc::clone(&room));
        room
    }

    /// Forgets a sandbox that was moved or removed.
    pub fn forget(&self, dir: &Path) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(dir);
    }
}

impl Room {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed files without saying how.
    pub(crate) fn is_unknown(&self) {
        let mut state = self.state();
        state.held = None;
        state.changes += 1;
    }

    /// What the sandbox holds, measured if it is not known. Blocking: in proportion to the number of its files.
    fn held(&self, root: &Root) -> Result<Held, FileError> {
        loop {
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
            // A write that ended meanwhile may be in the measure or not: it counts from the next one on.
            if state.changes == begun {
                state.held.get_or_insert(measured);
            } else {
                return Ok(measured);
            }
        }
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
                return Ok(Err(Full(self.limits)));
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
            return Ok(Err(Full(self.room.limits)));
        }
        state.taken_bytes += bytes;
        drop(state);
        self.bytes += bytes;
        Ok(Ok(()))
    }

    /// The file is in its place, on so many bytes of disk, instead of one that took `before` (None: there was none).
    pub(crate) fn placed(self, bytes: u64, before: Option<u64>) {
        let mut state = self.room.state();
        if let Some(held) = &mut state.held {
            held.bytes = held
                .bytes
                .saturating_add(bytes)
                .saturating_sub(before.unwrap_or(0));
            held.files += u64::from(before.is_none());
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.room.state();
        state.taken_bytes = state.taken_bytes.saturating_sub(self.bytes);
        state.taken_files = state.taken_files.saturating_sub(self.files);
    }
}
