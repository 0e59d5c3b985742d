//! Examines a data directory before its store is opened, and decides whether the store may be opened or created.
//!
//! # Guarantees
//!
//! No store is created next to the remains of another one (its master key, sandboxes or log) unless that is
//! requested. No master key is generated while the directory contains secrets that were sealed under a different one.
//! A start that is interrupted while it creates a store leaves a mark ([`MAKING`]), so that the next start continues.
//!
//! # Non-goals
//!
//! Opening the store (`sqlite::open`), and copies of a directory (see their manifest).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::crypto::reencrypt;
use crate::crypto::seal::{MasterKey, SealError};
use crate::db::sqlite::{self, FILE, OpenError, Store, Wholeness, is_damage};

/// File of the master key, unless the environment supplies one.
pub const MASTER_KEY_FILE: &str = "master.key";
/// Mark that exists from before the first file of a new store is created until its database is complete.
const MAKING: &str = "errand.db.making";
/// Files and directories that a store creates, besides the database and the lock.
const REMAINS: [&str; 9] = [
    MASTER_KEY_FILE,
    "master.key.next",
    "sandboxes",
    "trash",
    "admin.sock",
    "errand.db-wal",
    "errand.db-shm",
    "errand.db-journal",
    // Directory of an interrupted `errand restore`.
    ".restoring",
];
/// Files of a database that is gone. A new database would take them for its own.
const LOGS: [&str; 3] = ["errand.db-wal", "errand.db-shm", "errand.db-journal"];

/// Whether to create a store if the directory contains none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Making {
    /// Create a store in an empty directory.
    pub allowed: bool,
    /// Create a store even next to the remains of another one.
    pub beside_remains: bool,
}

impl Making {
    /// The server's default: create a store in an empty directory only.
    pub const BY_ITSELF: Self = Self {
        allowed: true,
        beside_remains: false,
    };
}

/// Why the store is neither opened nor created.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The directory contains no store.
    #[error(
        "there is no store in {}; check --data-dir (or server.data_dir). Only `errand serve` and `errand demo` create one",
        .0.display()
    )]
    NoStore(PathBuf),
    /// The directory contains remains of a store, but not its database.
    #[error(
        "{} contains {found}, and {state}. Check that the right volume is mounted, or restore the directory from a \
         backup. To start over and keep these files, use `errand serve --new`",
        .dir.display()
    )]
    NoDatabase {
        dir: PathBuf,
        /// The remains.
        found: String,
        /// State of the database.
        state: &'static str,
    },
    /// There are sealed secrets, but the key file is missing.
    #[error(
        "{} contains {count} secrets that were sealed under the master key {needs}, but no {MASTER_KEY_FILE}: restore \
         that file, or supply the key as ERRAND_MASTER_KEY. If the key is lost, `errand serve --discard-secrets` \
         generates a new one: webhook secrets are replaced; stored secrets, providers' keys and sign-ins must be set again",
        .dir.display()
    )]
    KeyMissing {
        dir: PathBuf,
        count: u64,
        /// Ids of the keys that open them.
        needs: String,
    },
    /// The key opens none of the secrets.
    #[error(
        "{} contains {count} secrets that were sealed under the master key {needs}, but {origin} is the key {got}, which \
         opens none of them: start with the key {needs}. If it is lost, `errand serve --discard-secrets` continues with \
         the key {got}: webhook secrets are replaced; stored secrets, providers' keys and sign-ins must be set again",
        .dir.display()
    )]
    OtherKey {
        dir: PathBuf,
        count: u64,
        /// Ids of the keys that open them.
        needs: String,
        /// Where the given key comes from.
        origin: &'static str,
        /// Id of the given key.
        got: String,
    },
    /// The master key cannot be loaded.
    #[error(transparent)]
    Key(#[from] SealError),
    /// The database cannot be examined.
    #[error(transparent)]
    Open(OpenError),
    /// The database is damaged.
    #[error(
        "the database in {} is damaged ({found}): stop the server if one runs, keep a copy of the directory, and restore a \
         backup",
        .dir.display()
    )]
    Damaged {
        dir: PathBuf,
        /// The findings of the check.
        found: String,
    },
    /// The directory cannot be examined, or the store cannot be created in it.
    #[error("the data directory {} cannot be used", .dir.display())]
    Directory {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl DataDirError {
    /// Converts an error of opening the database. Damage becomes [`DataDirError::Damaged`].
    #[must_use]
    pub fn of_opening(dir: &Path, error: OpenError) -> Self {
        let source: &(dyn std::error::Error + 'static) = &error;
        let mut causes = std::iter::successors(Some(source), |error| error.source());
        let damage = causes.find_map(|cause| {
            let cause = cause.downcast_ref::<rusqlite::Error>()?;
            is_damage(cause).then(|| cause.to_string())
        });
        match damage {
            Some(found) => Self::Damaged {
                dir: dir.to_owned(),
                found,
            },
            None => Self::Open(error),
        }
    }
}

/// A directory whose store can be opened.
pub struct Prepared {
    /// The key that opens its secrets.
    pub master_key: MasterKey,
    /// Whether the whole database was checked. `false` if there was not enough time.
    pub is_whole: bool,
}

/// Content of a directory.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A database.
    Store,
    /// Nothing of a store, or a store that was being created.
    Nothing,
    /// Parts of a store without its rows.
    Remains {
        names: Vec<&'static str>,
        database: Hollow,
    },
}

/// The state of a database that holds no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hollow {
    /// No file.
    Missing,
    /// A file of 0 bytes.
    NoBytes,
    /// A database of SQLite that contains nothing. No store is without tables.
    NoTables,
}

/// Checks that a directory contains a store: a database that is not empty, or one that was being created. Creates,
/// opens and locks nothing.
///
/// # Errors
/// [`DataDirError::NoStore`]; [`DataDirError::NoDatabase`] if there are parts of a store; [`DataDirError::Open`] if it
/// is a copy of a store in use, or its log is lost.
pub fn expect_store(dir: &Path) -> Result<(), DataDirError> {
    match look(dir)? {
        Found::Store => Ok(()),
        Found::Nothing => Err(DataDirError::NoStore(dir.to_owned())),
        Found::Remains { names, database } => Err(no_database(dir, &names, database)),
    }
}

/// Whether a store is being created in a directory, or a start was interrupted while creating one.
#[must_use]
pub fn is_being_made(dir: &Path) -> bool {
    dir.join(MAKING).exists()
}

/// Checks the whole database of a directory that may be in use. Returns what is damaged, or `None`.
#[must_use]
pub fn damage(dir: &Path) -> Option<String> {
    match sqlite::check(dir, None) {
        Wholeness::Damaged(found) => Some(found),
        Wholeness::Whole | Wholeness::Unknown => None,
    }
}

/// Number of secrets by the id of their key, in a database that is not open yet. Without those that expire within a
/// day.
///
/// # Errors
/// [`OpenError::Database`].
pub fn sealed_under(dir: &Path) -> Result<BTreeMap<String, u64>, OpenError> {
    if fs::metadata(dir.join(FILE)).is_ok_and(|found| found.len() > 0) {
        Store::look(dir, reencrypt::sealed_under)
    } else {
        Ok(BTreeMap::new())
    }
}

/// Prepares a directory, whose lock is held, for opening its store: checks whether there is one, marks a new one as
/// being created, and loads or creates the master key. `given` is the key from the environment. With `discards`, a
/// key is accepted even if it opens none of the secrets.
///
/// # Errors
/// [`DataDirError`]; nothing was created then.
pub fn prepare(
    dir: &Path,
    making: Making,
    given: Option<MasterKey>,
    discards: bool,
) -> Result<Prepared, DataDirError> {
    let failed = |source| DataDirError::Directory {
        dir: dir.to_owned(),
        source,
    };
    let mut is_whole = true;
    match look(dir)? {
        Found::Store => is_whole = expect_whole(dir)?,
        Found::Nothing if making.allowed => begin(dir).map_err(failed)?,
        Found::Nothing => return Err(DataDirError::NoStore(dir.to_owned())),
        Found::Remains { names, database } if making.beside_remains => {
            tracing::warn!(
                found = names.join(", "),
                "a new store is created next to the remains of another one, which stay where they are"
            );
            // Done before the mark is created, so that a start that is interrupted here finds the same state again.
            set_aside(dir, database).map_err(failed)?;
            begin(dir).map_err(failed)?;
        }
        Found::Remains { names, database } => return Err(no_database(dir, &names, database)),
    }
    let master_key = fitting_key(dir, given, discards)?;
    Ok(Prepared {
        master_key,
        is_whole,
    })
}

/// Whether the whole database was checked, and is not damaged.
fn expect_whole(dir: &Path) -> Result<bool, DataDirError> {
    match sqlite::look(dir) {
        Wholeness::Whole => Ok(true),
        Wholeness::Unknown => Ok(false),
        Wholeness::Damaged(found) => Err(DataDirError::Damaged {
            dir: dir.to_owned(),
            found,
        }),
    }
}

/// Removes the mark: the store is complete, and a later start must not treat it as new.
pub fn made(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(MAKING)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(dir)?.sync_all(),
    }
}

fn no_database(dir: &Path, names: &[&str], database: Hollow) -> DataDirError {
    let found = match names {
        [] => "an empty errand.db".to_owned(),
        names => names.join(", "),
    };
    let state = match (database, names.is_empty()) {
        (Hollow::Missing, _) => "no database errand.db",
        (Hollow::NoBytes, true) => "a database never has 0 bytes unless something went wrong",
        (Hollow::NoBytes, false) => "its database errand.db has 0 bytes",
        (Hollow::NoTables, true) => "a store's database always has tables",
        (Hollow::NoTables, false) => {
            "its database errand.db has no tables, so it is not the one that belongs here"
        }
    };
    DataDirError::NoDatabase {
        dir: dir.to_owned(),
        found,
        state,
    }
}

fn look(dir: &Path) -> Result<Found, DataDirError> {
    let failed = |source| DataDirError::Directory {
        dir: dir.to_owned(),
        source,
    };
    let size = |name: &str| match fs::symlink_metadata(dir.join(name)) {
        Ok(found) => Ok(Some(found.size())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    };
    let is_making = size(MAKING)?.is_some();
    // The path may be a link, so examine what it leads to.
    let database = match fs::metadata(dir.join(FILE)) {
        Ok(found) => Some(found.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let has_bytes = database.is_some_and(|bytes| bytes > 0);
    if has_bytes {
        // Checked before the database is opened, because opening it renews what this reads. Also before damage, so that
        // a copy of a directory in use is reported as what it is.
        sqlite::refuse_partial(dir).map_err(DataDirError::Open)?;
        if is_making || !has_no_tables(dir) {
            return Ok(Found::Store);
        }
    } else if is_making {
        return Ok(Found::Nothing);
    }
    let mut names = Vec::new();
    for name in REMAINS {
        if size(name)?.is_some() {
            names.push(name);
        }
    }
    if names.is_empty() && database.is_none() {
        return Ok(Found::Nothing);
    }
    let database = match database {
        None => Hollow::Missing,
        Some(0) => Hollow::NoBytes,
        Some(_) => Hollow::NoTables,
    };
    Ok(Found::Remains { names, database })
}

/// Whether the database contains nothing at all. `false` if it cannot be read: a later check says why.
fn has_no_tables(dir: &Path) -> bool {
    let count = "SELECT count(*) = 0 FROM sqlite_master";
    Store::look(dir, |conn| conn.query_row(count, [], |row| row.get(0))).unwrap_or(false)
}

/// Creates the mark. On disk before anything of the store is created.
fn begin(dir: &Path) -> io::Result<()> {
    crate::db::sqlite::private_file(&dir.join(MAKING))?.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Renames the log of a database that is gone, which SQLite would apply to the new one, and a database without tables.
fn set_aside(dir: &Path, database: Hollow) -> io::Result<()> {
    if database == Hollow::NoBytes {
        fs::remove_file(dir.join(FILE))?;
    }
    for name in LOGS.into_iter().chain([FILE]) {
        let path = dir.join(name);
        let aside = (0..u32::MAX)
            .map(|n| dir.join(format!("{name}.old{n}")))
            .find(|aside| fs::symlink_metadata(aside).is_err());
        let Some(aside) = aside else { continue };
        match fs::rename(&path, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(dir)?.sync_all()
}

/// The key from the environment, or else from the file, which is created only if nothing was sealed yet.
fn fitting_key(
    dir: &Path,
    given: Option<MasterKey>,
    discards: bool,
) -> Result<MasterKey, DataDirError> {
    let sealed = sealed_under(dir).map_err(|error| DataDirError::of_opening(dir, error))?;
    let count = sealed.values().sum();
    let needs = || sealed.keys().cloned().collect::<Vec<_>>().join(" or ");
    let file = dir.join(MASTER_KEY_FILE);
    let (key, origin) = match given {
        Some(key) => (key, "ERRAND_MASTER_KEY"),
        None => match MasterKey::read(&file)? {
            Some(key) => (key, MASTER_KEY_FILE),
            None if sealed.is_empty() || discards => {
                (MasterKey::load_or_create(&file)?, MASTER_KEY_FILE)
            }
            None => {
                return Err(DataDirError::KeyMissing {
                    dir: dir.to_owned(),
                    count,
                    needs: needs(),
                });
            }
        },
    };
    let opens = |id: &String| key.ids().contains(id);
    if discards || sealed.is_empty() || sealed.keys().any(opens) {
        return Ok(key);
    }
    Err(DataDirError::OtherKey {
        dir: dir.to_owned(),
        count,
        needs: needs(),
        origin,
        got: key.id(),
    })
}

#[cfg(test)]
mod tests;
