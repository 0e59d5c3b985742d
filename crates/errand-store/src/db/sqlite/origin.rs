//! Recognizes a copy of a data directory that was made while a server was using the original.
//!
//! A file next to the database, the mark, records which file the database is, and whether it was closed in order. `cp
//! -r` of a directory in use copies its files at different moments, so that the copy may be damaged, or contain rows
//! without their files. Such a copy is recognized by its mark, which says that the database is open and is a
//! different file.
//!
//! # Guarantees
//!
//! A directory is refused only if it was not closed in order *and* its database is not the file that the mark refers
//! to. Therefore a directory after a crash, a moved directory, a volume snapshot (which keeps the inode numbers), and
//! a copy of a stopped server's directory all open. A directory without a mark comes from an older version, and
//! opens.
//!
//! A start on a full disk works: a mark with the right content is left unchanged, and otherwise it is overwritten if
//! there is no space for a new file.
//!
//! A file is identified by its creation time, or, on file systems without one, by its inode number. The device number
//! is not used, because it may change when the machine restarts.
//!
//! # Non-goals
//!
//! Checking whether the files are undamaged. The mark of a restored directory says that it was closed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::open::FILE;
use super::{DirLock, OpenError, Store, lost_log};

/// Name of the mark in the data directory.
pub(super) const MARK: &str = "store.mark";
/// A mark is smaller than this. A larger file is not a mark.
const MARK_BYTES_MAX: u64 = 4096;

/// Content of the mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Whether a server has closed the database in order.
    closed: bool,
    /// Identity of the database file.
    database: Identity,
    /// The log that an open store works with ([`super::lost_log`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<LogLeft>,
}

/// The log of an open store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogLeft {
    /// Identity of its file.
    pub(super) file: Identity,
    /// The machine's start during which the store was opened.
    pub(super) machine_start: Option<String>,
}

/// Identity of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Inode number.
    inode: u64,
    /// Creation time, in nanoseconds since 1970.
    born_ns: Option<u64>,
}

impl Identity {
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let born = found
            .created()
            .ok()
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            .and_then(|since| u64::try_from(since.as_nanos()).ok())
            .filter(|ns| *ns > 0);
        Ok(Some(Self {
            inode: found.ino(),
            born_ns: born,
        }))
    }

    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        match (self.born_ns, other.born_ns) {
            (Some(one), Some(another)) => one == another,
            _ => self.inode == other.inode,
        }
    }
}

/// Reads the mark. `None` if there is none, or if it cannot be parsed, because it was cut off or has a different
/// version.
fn read(dir: &Path) -> io::Result<Option<Mark>> {
    use io::Read as _;
    let file = match File::open(dir.join(MARK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(MARK_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text).ok())
}

/// The log that a store left because it was not closed in order. `None` if it was, or if the mark does not say.
pub(super) fn log_left(dir: &Path) -> io::Result<Option<LogLeft>> {
    Ok(read(dir)?
        .filter(|mark| !mark.closed)
        .and_then(|mark| mark.log))
}

/// Writes the mark for the current database. With `synced`, it is on disk when this returns.
fn write(dir: &Path, closed: bool, log: Option<LogLeft>, synced: bool) -> io::Result<()> {
    let Some(database) = Identity::of(&dir.join(FILE))? else {
        return Ok(());
    };
    let mark = Mark {
        closed,
        database,
        log,
    };
    // A mark that cannot be read, for example after a crash, is simply replaced.
    if read(dir).is_ok_and(|found| found.as_ref() == Some(&mark)) {
        return Ok(());
    }
    let text = serde_json::to_vec(&mark)?;
    match replace(dir, &text, synced) {
        Err(error) if is_full(&error) => write_over(dir, &text, synced),
        written => written,
    }
}

/// Replaces the mark by a new file.
fn replace(dir: &Path, text: &[u8], synced: bool) -> io::Result<()> {
    let beside = dir.join(format!("{MARK}.new"));
    let write = || {
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text)?;
        if synced {
            file.sync_all()?;
        }
        fs::rename(&beside, dir.join(MARK))
    };
    if let Err(error) = write() {
        // A partial file is useless.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    if synced {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Overwrites the existing mark, which needs no additional space on most file systems. If that fails too, the mark is
/// removed, because a wrong one would be worse: a directory without a mark opens.
fn write_over(dir: &Path, text: &[u8], synced: bool) -> io::Result<()> {
    let path = dir.join(MARK);
    let write = || {
        let mut file = File::options().write(true).open(&path)?;
        file.write_all(text)?;
        file.set_len(u64::try_from(text.len()).unwrap_or(MARK_BYTES_MAX))?;
        if synced { file.sync_all() } else { Ok(()) }
    };
    let Err(error) = write() else {
        return Ok(());
    };
    tracing::warn!(%error, "the disk is full, so a copy of the data directory will not be recognized as a copy");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && !is_full(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Refuses a directory that was copied while a server was using it, or whose log is lost. Changes nothing.
pub(crate) fn refuse_partial(dir: &Path) -> Result<(), OpenError> {
    let looked = || {
        let mark = read(dir)?;
        let found = Identity::of(&dir.join(FILE))?;
        Ok(matches!((mark, found), (Some(mark), Some(found))
            if !mark.closed && !mark.database.is_same_file(&found)))
    };
    let failed = |source| OpenError::Directory {
        dir: dir.to_owned(),
        source,
    };
    if looked().map_err(failed)? {
        return Err(OpenError::Copied(dir.to_owned()));
    }
    match lost_log::find(dir).map_err(failed)? {
        None => Ok(()),
        Some(what) => Err(OpenError::LogLost {
            dir: dir.to_owned(),
            what,
        }),
    }
}

/// Marks the database of a directory as complete and closed, regardless of its previous mark. For restored
/// directories, and for copies that the operator accepts.
pub(super) fn mark_closed(dir: &Path) -> io::Result<()> {
    write(dir, true, None, true)
}

/// The mark of an open store. After the database is closed, it says so.
pub(super) struct OpenMark {
    /// Whether the end was written. The lock is held while writing it.
    is_written: Mutex<bool>,
    dir: PathBuf,
    /// The file that was opened. The mark of a different file is left unchanged.
    database: Option<Identity>,
    closed: Arc<AtomicBool>,
    synced: bool,
}

impl OpenMark {
    /// Marks the database as open. `closed` becomes true when it was closed in order.
    pub(super) fn set(dir: &Path, closed: Arc<AtomicBool>, synced: bool) -> io::Result<Self> {
        // After a crash, the log stays named until this store has opened it.
        write(dir, false, log_left(dir)?, synced)?;
        Ok(Self {
            is_written: Mutex::new(false),
            dir: dir.to_owned(),
            database: Identity::of(&dir.join(FILE))?,
            closed,
            synced,
        })
    }

    /// Names the log that the store works with, once the database is open. From now on, commits may be in that file
    /// alone.
    pub(super) fn names_log(&self) -> io::Result<()> {
        let log = lost_log::identity(&self.dir)?.map(|file| LogLeft {
            file,
            machine_start: lost_log::machine_start(),
        });
        write(&self.dir, false, log, self.synced)
    }

    /// Records that the log holds nothing that the database lacks. Called before SQLite removes the log at an orderly
    /// end. Blocking.
    pub(super) fn log_is_done(&self) {
        if !self.is_still_there() {
            return;
        }
        if let Err(error) = write(&self.dir, false, None, self.synced) {
            tracing::warn!(%error, "the end of the write-ahead log could not be recorded");
        }
    }

    /// Whether the opened database is still the one in the directory, which may have been replaced.
    fn is_still_there(&self) -> bool {
        let found = Identity::of(&self.dir.join(FILE));
        matches!((found, &self.database), (Ok(Some(found)), Some(opened)) if found.is_same_file(opened))
    }
}

impl OpenMark {
    /// Marks the database as closed, if it was closed in order and is not marked yet. Blocking.
    pub(super) fn end(&self) {
        let mut is_written = self
            .is_written
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *is_written || !self.closed.load(Ordering::Acquire) || !self.is_still_there() {
            return;
        }
        match write(&self.dir, true, None, self.synced) {
            Ok(()) => *is_written = true,
            Err(error) => tracing::warn!(
                %error,
                "the orderly shutdown could not be recorded: a copy of this data directory will be refused"
            ),
        }
    }
}

impl Drop for OpenMark {
    fn drop(&mut self) {
        self.end();
    }
}

impl Store {
    /// Accepts a directory that would be refused as a copy ([`OpenError::Copied`]) or for its lost log
    /// ([`OpenError::LogLost`]), once, after checking its database. `lock` comes from [`Store::lock`].
    ///
    /// # Errors
    /// [`OpenError::NotWhole`] if the database is damaged; [`OpenError::Database`], [`OpenError::Directory`].
    pub fn accept_copy(dir: &Path, _lock: &DirLock) -> Result<(), OpenError> {
        if refuse_partial(dir).is_ok() {
            return Ok(());
        }
        super::snapshot::check_database(dir)?;
        mark_closed(dir).map_err(|source| OpenError::Directory {
            dir: dir.to_owned(),
            source,
        })
    }
}
