//! Tells a data directory from a copy of one that was made while a server worked on it.
//!
//! A file beside the database, the mark, says which file the database is and whether it was closed in order. `cp -r` of a
//! directory that is in use takes its files at different moments, so that the copy is damaged or holds rows without
//! their files; it is found by its mark, which says that the database is open and is another file.
//!
//! Promised: what is refused is a directory that was not closed in order *and* whose database is not the file that the
//! mark tells of. So a crash, a moved directory, a snapshot of a volume (which keeps the files' numbers) and a copy of a
//! stopped server's directory all open. A directory without a mark is of an older version, and opens.
//!
//! A start on a full disk goes on: a mark that says already what it is to say is left as it is, and another one is written
//! over where there is no room for a new file.
//!
//! Which file it is, is told by the moment of its birth; where the file system does not keep that, by its number. Not by
//! the device, whose number may be another one after each start of the machine.
//!
//! Left out: whether the files are whole. A restored directory's mark says that it was closed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::open::FILE;
use super::{DirLock, OpenError, Store};

/// The mark's name in the data directory.
pub(super) const MARK: &str = "store.mark";
/// A mark is smaller than this; more is none.
const MARK_BYTES_MAX: u64 = 4096;

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Whether a server has closed the database in order.
    closed: bool,
    /// Which file the database is.
    database: Identity,
}

/// Which file a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    /// Its number on its file system.
    inode: u64,
    /// When it was made. Unit: nanoseconds since 1970.
    born_ns: Option<u64>,
}

impl Identity {
    fn of(path: &Path) -> io::Result<Option<Self>> {
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

    fn is_same_file(&self, other: &Self) -> bool {
        match (self.born_ns, other.born_ns) {
            (Some(one), Some(another)) => one == another,
            _ => self.inode == other.inode,
        }
    }
}

/// None where there is no mark, or one that cannot be read: it was cut off, or is of another version.
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

/// Writes the mark of the database as it is now; on disk when this returns, where `synced`.
fn write(dir: &Path, closed: bool, synced: bool) -> io::Result<()> {
    let Some(database) = Identity::of(&dir.join(FILE))? else {
        return Ok(());
    };
    let mark = Mark { closed, database };
    // As after a crash. Nothing that cannot be read is in the way of what is written anew.
    if read(dir).is_ok_and(|found| found.as_ref() == Some(&mark)) {
        return Ok(());
    }
    let text = serde_json::to_vec(&mark)?;
    match replace(dir, &text, synced) {
        Err(error) if is_full(&error) => write_over(dir, &text, synced),
        written => written,
    }
}

/// Puts a new file in the place of the mark.
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
        // What is there of it is of no use.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    if synced {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Writes over the mark that is there, which takes no room on most file systems. Where that fails as well, the mark goes,
/// rather than to say what is not so: a directory without one opens.
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
    tracing::warn!(%error, "the disk is full, so that a copy of the data directory is not told from it");
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

/// Refuses a copy of a directory that a server worked on. Changes nothing.
pub(crate) fn refuse_copy(dir: &Path) -> Result<(), OpenError> {
    let looked = || {
        let mark = read(dir)?;
        let found = Identity::of(&dir.join(FILE))?;
        Ok(matches!((mark, found), (Some(mark), Some(found))
            if !mark.closed && !mark.database.is_same_file(&found)))
    };
    match looked() {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::Copied(dir.to_owned())),
        Err(source) => Err(OpenError::Directory {
            dir: dir.to_owned(),
            source,
        }),
    }
}

/// Says that the database of a directory is whole and closed, whatever its mark said. For directories that a restore has
/// made, and for those that the operator accepts.
pub(super) fn mark_closed(dir: &Path) -> io::Result<()> {
    write(dir, true, true)
}

/// The mark of a store while it is open. When it ends, after the database is closed, the mark says so.
pub(super) struct OpenMark {
    /// Whether the end was written. Held while it is.
    is_written: Mutex<bool>,
    dir: PathBuf,
    /// Which file was opened: another one's mark is left alone.
    database: Option<Identity>,
    closed: Arc<AtomicBool>,
    synced: bool,
}

impl OpenMark {
    /// Says that the database is open. `closed`: becomes true when it was closed in order.
    pub(super) fn set(dir: &Path, closed: Arc<AtomicBool>, synced: bool) -> io::Result<Self> {
        write(dir, false, synced)?;
        Ok(Self {
            is_written: Mutex::new(false),
            dir: dir.to_owned(),
            database: Identity::of(&dir.join(FILE))?,
            closed,
            synced,
        })
    }

    /// Whether the database that was opened is still the one in the directory, which may have been replaced.
    fn is_still_there(&self) -> bool {
        let found = Identity::of(&self.dir.join(FILE));
        matches!((found, &self.database), (Ok(Some(found)), Some(opened)) if found.is_same_file(opened))
    }
}

impl OpenMark {
    /// Says that the database is closed, if it was closed in order and that is not said yet. Blocking.
    pub(super) fn end(&self) {
        let mut is_written = self
            .is_written
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *is_written || !self.closed.load(Ordering::Acquire) || !self.is_still_there() {
            return;
        }
        match write(&self.dir, true, self.synced) {
            Ok(()) => *is_written = true,
            Err(error) => tracing::warn!(
                %error,
                "the mark of an orderly end could not be written: a copy of this data directory will be refused"
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
    /// Accepts a directory that would be refused as a copy ([`OpenError::Copied`]), once: its database is looked through
    /// first. `lock`: as [`Store::lock`] gives it.
    ///
    /// # Errors
    /// [`OpenError::NotWhole`] where the database is not whole; [`OpenError::Database`], [`OpenError::Directory`].
    pub fn accept_copy(dir: &Path, _lock: &DirLock) -> Result<(), OpenError> {
        if refuse_copy(dir).is_ok() {
            return Ok(());
        }
        super::snapshot::check_database(dir)?;
        mark_closed(dir).map_err(|source| OpenError::Directory {
            dir: dir.to_owned(),
            source,
        })
    }
}
