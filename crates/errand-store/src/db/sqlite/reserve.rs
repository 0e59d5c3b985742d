//! Disk space that is reserved for stopping runs, which must work even when the disk is full.
//!
//! A file of [`BYTES`] is kept in the data directory. When a write that may use the reserve finds no space, the file
//! is removed and the write is repeated. From then on, no other writes are accepted until the file exists again,
//! because they would use up the space that the next stop needs. A server that starts without the file writes as long
//! as it can.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::open::private_file;

/// Name of the file in the data directory.
const NAME: &str = "errand.reserve";
/// Space for stopping some hundred runs, in bytes.
const BYTES: u64 = 4 << 20;
/// Number of commits after which creating the file is tried again, if there was no space for it.
const TRY_AFTER: u32 = 64;

/// The reserve, as used by the writer's thread.
pub(super) struct Reserve {
    path: PathBuf,
    is_there: Cell<bool>,
    /// The reserve is used up, so that only writes that may use it are accepted.
    is_given_up: Cell<bool>,
    commits: Cell<u32>,
}

impl Reserve {
    /// Creates the file if there is space.
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
            tracing::debug!(%error, "no disk space could be reserved");
            // A partial file is useless.
            let _ = fs::remove_file(&self.path);
        }
        self.is_there.set(made.is_ok());
        made.is_ok()
    }

    /// Releases the reserve for a write that found no space. Returns `false` if there is none.
    pub(super) fn give_up(&self) -> bool {
        if !self.is_there.replace(false) {
            return false;
        }
        self.is_given_up.set(true);
        fs::remove_file(&self.path).is_ok()
    }

    /// Whether a write that may not use the reserve may be tried.
    pub(super) fn lets_others_write(&self) -> bool {
        if self.is_given_up.get() && self.make() {
            self.is_given_up.set(false);
        }
        !self.is_given_up.get()
    }

    /// Called after a commit: if there was no space for the file, there may be now.
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
        // The file system does not support fallocate, so write the bytes.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => fill(&file),
        made => Ok(made?),
    }
}

fn fill(mut file: &File) -> io::Result<()> {
    let mut zeros = io::Read::take(io::repeat(0), BYTES);
    io::copy(&mut zeros, &mut file)?;
    file.sync_all()
}
