//! The trash: what was taken out of the way, for a day, in case somebody misses it.
//!
//! Promised: a thing is moved there whole, by one rename on one file system, so that it is at its old place or in the
//! trash and never half in both. Its name there begins with the moment of the move, from which its day counts, also
//! over restarts. A removal that a crash cut short is finished by a later one.
//!
//! Left out: what goes to the trash (that is `janitor`), and bringing things back (`mv` does, while the server is
//! stopped).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use errand_core::time::Timestamp;
use errand_sandbox::remove_tree;

/// How long things stay: a day, long enough to notice a loss, short enough for a disk. Unit: milliseconds.
pub const TRASH_MS: u64 = 24 * 3_600_000;
/// How long the text of a moment is.
const MOMENT_BYTES: usize = 24;
/// Names that are tried, should several things of one name come in one millisecond.
const NAMES_MAX: u32 = 1000;

/// The directory of what is about to go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trash {
    dir: PathBuf,
}

/// What became of the things whose day was over.
#[derive(Debug, Default)]
pub struct Emptied {
    /// How many are gone.
    pub removed: u64,
    /// The first failure; what failed is tried again in the next round.
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

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves a thing into the trash: `MOMENT-NAME`. None where there was nothing to move. Blocking.
    ///
    /// # Errors
    /// Of the file system, such as where the thing is on another one than the trash.
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
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A name that nothing has: a file would be replaced by a rename.
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
            "too many things of one name in the trash",
        ))
    }

    /// Removes the things whose day is over. One without a moment in its name, or with one that is still to come (the
    /// clock was set back), gets its day from now on. Blocking; `stop` is asked between two things.
    ///
    /// # Errors
    /// Of reading the trash itself; see [`Emptied::failed`] for the rest.
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

/// The moment that a name in the trash begins with.
fn moment_of(path: &Path) -> Option<Timestamp> {
    let (moment, rest) = path
        .file_name()?
        .as_bytes()
        .split_at_checked(MOMENT_BYTES)?;
    let moment = std::str::from_utf8(moment).ok()?;
    let at: Timestamp = moment.parse().ok()?;
    (rest.first() == Some(&b'-') && at.to_string() == moment).then_some(at)
}

/// Removes a thing and all that is in it; one that is gone is removed already.
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

/// Makes a directory that others cannot look into.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

#[cfg(test)]
mod tests;
