//! Room on the disk that is kept for what must be possible when there is no other: to stop runs.
//!
//! A file of [`BYTES`] lies in the data directory. When a write that may have it finds no room, the file is removed, and
//! the write is done once more. From then on nothing else is written before the file is there again: other writes would
//! take the room that the next stop needs. A server that starts without the file writes as long as it can.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::open::private_file;

/// The file in the data directory.
const NAME: &str = "errand.reserve";
/// Room for the stops of some hundred runs. Unit: bytes.
const BYTES: u64 = 4 << 20;
/// After so many commits it is tried again to make the file, where there was no room for it.
const TRY_AFTER: u32 = 64;

/// See the module's document. Of the thread that writes.
pub(super) struct Reserve {
    path: PathBuf,
    is_there: Cell<bool>,
    /// It was given up: nothing but what may have it is written.
    is_given_up: Cell<bool>,
    commits: Cell<u32>,
}

impl Reserve {
    /// Makes the file, where there is room.
    pub(super) fn keep(dir: &Path) -> Self {
        let reserve = Self {
            path: dir.join(NAME),
            is_there: Cell::new(false),
            is_given_up: Cell::new(false),
            commits: Cell::new(0),
        };
        reserve.make();
        reserve
    }

    fn make(&self) -> bool {
        let made = make(&self.path);
        if let Err(error) = &made {
            tracing::debug!(%error, "no room could be kept");
            // A part of it would be in the way.
            let _ = fs::remove_file(&self.path);
        }
        self.is_there.set(made.is_ok());
        made.is_ok()
    }

    /// Gives the room up to a write that found none. False: there is nothing to give.
    pub(super) fn give_up(&self) -> bool {
        if !self.is_there.replace(false) {
            return false;
        }
        self.is_given_up.set(true);
        fs::remove_file(&self.path).is_ok()
    }

    /// Whether a write that may not have the room may be tried.
    pub(super) fn lets_others_write(&self) -> bool {
        if self.is_given_up.get() && self.make() {
            self.is_given_up.set(false);
        }
        !self.is_given_up.get()
    }

    /// After a commit: where there was no room for the file, there may be now.
    pub(super) fn after_commit(&self) {
        if self.is_there.get() || self.is_given_up.get() {
            return;
        }
        let commits = self.commits.get() + 1;
        self.commits.set(commits % TRY_AFTER);
        if commits == TRY_AFTER {
            self.make();
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    let file = private_file(path)?;
    if file.metadata()?.len() >= BYTES {
        return Ok(());
    }
    match fallocate(&file, FallocateFlags::empty(), 0, BYTES) {
        // A file system that cannot: its room is taken by writing.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => fill(&file),
        made => Ok(made?),
    }
}

fn fill(mut file: &File) -> io::Result<()> {
    let mut zeros = io::Read::take(io::repeat(0), BYTES);
    io::copy(&mut zeros, &mut file)?;
    file.sync_all()
}
