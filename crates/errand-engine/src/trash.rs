//! The trash: keeps removed files for a day, in case somebody needs them back.
//!
//! # Guarantees
//!
//! - An item is moved with one rename on one file system, so it is never partly moved.
//! - Its name in the trash begins with the time of the move. The day is counted from it, also across restarts.
//! - A removal that a crash interrupted is completed later.
//!
//! # Non-goals
//!
//! Deciding what goes to the trash (`janitor` does that), and restoring items (use `mv` while the server is stopped).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use errand_core::time::Timestamp;
use errand_sandbox::remove_tree;

/// How long items stay, in milliseconds: a day is long enough to notice a loss, and short enough for the disk.
pub const TRASH_MS: u64 = 24 * 3_600_000;
/// Length of a timestamp in a name.
const MOMENT_BYTES: usize = 24;
/// Maximum number of names to try if several items with the same name arrive in one millisecond.
const NAMES_MAX: u32 = 1000;

/// The trash directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trash {
    dir: PathBuf,
}

/// The result of [`Trash::empty`].
#[derive(Debug, Default)]
pub struct Emptied {
    pub removed: u64,
    /// The first failure. The item is tried again in the next round.
    pub failed: Option<io::Error>,
}

impl Trash {
    /// The trash of a data directory.
    #[must_use]
    pub fn beneath(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("trash"),
        }
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves an item into the trash as `TIME-NAME`. Returns `None` if it does not exist. Blocking.
    ///
    /// # Errors
    /// The item cannot be moved, for example because the trash is on another file system.
    pub fn take(&self, path: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a path without a name",
            ));
        };
        if is_missing(path)? {
            return Ok(None);
        }
        make_private(&self.dir)?;
        let to = self.free_name(name, now)?;
        match fs::rename(path, &to) {
            Ok(()) => Ok(Some(to)),
            // Another caller has removed it in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An unused name. Needed because a rename replaces an existing file.
    fn free_name(&self, name: &OsStr, now: Timestamp) -> io::Result<PathBuf> {
        for number in 0..NAMES_MAX {
            let mut stamped = OsString::from(format!("{now}-"));
            stamped.push(name);
            if number > 0 {
                stamped.push(format!(".{number}"));
            }
            let to = self.dir.join(stamped);
            if is_missing(&to)? {
                return Ok(to);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "too many items with the same name in the trash",
        ))
    }

    /// Removes items that are older than a day. An item without a time in its name, or with a time in the future (the
    /// clock was set back), gets a day from now. Blocking; `stop` is checked between items.
    ///
    /// # Errors
    /// The trash directory cannot be read. See [`Emptied::failed`] for single items.
    pub fn empty(&self, now: Timestamp, stop: impl Fn() -> bool) -> io::Result<Emptied> {
        let names = match fs::read_dir(&self.dir) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Emptied::default()),
            Err(error) => return Err(error),
        };
        let mut emptied = Emptied::default();
        for entry in names {
            if stop() {
                break;
            }
            let path = entry?.path();
            let done = match moment_of(&path) {
                Some(at) if at <= now => {
                    if now.ms_since(at) < TRASH_MS {
                        continue;
                    }
                    remove(&path).map(|()| emptied.removed += 1)
                }
                Some(_) | None => self.stamp(&path, now),
            };
            if let Err(error) = done {
                emptied.failed.get_or_insert(error);
            }
        }
        Ok(emptied)
    }

    fn stamp(&self, path: &Path, now: Timestamp) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default();
        let bare = match moment_of(path) {
            Some(_) => OsStr::from_bytes(name.as_bytes().get(MOMENT_BYTES + 1..).unwrap_or(b"")),
            None => name,
        };
        let to = self.free_name(bare, now)?;
        fs::rename(path, to)
    }
}

/// The time at the beginning of an item's name.
fn moment_of(path: &Path) -> Option<Timestamp> {
    let (moment, rest) = path
        .file_name()?
        .as_bytes()
        .split_at_checked(MOMENT_BYTES)?;
    let moment = std::str::from_utf8(moment).ok()?;
    let at: Timestamp = moment.parse().ok()?;
    (rest.first() == Some(&b'-') && at.to_string() == moment).then_some(at)
}

/// Removes a file or a directory tree. A missing one counts as removed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => remove_tree(path).map_err(io::Error::other),
        Ok(_) => fs::remove_file(path),
    }
}

fn is_missing(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Creates a directory that other users cannot read.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

#[cfg(test)]
mod tests;
