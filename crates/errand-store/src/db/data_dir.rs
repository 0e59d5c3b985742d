//! What a data directory holds before its store is opened, and whether the store in it may be opened or made.
//!
//! Promised: no store is made beside what another one left (its master key, its sandboxes, its log), unless that was
//! asked for; and no master key is drawn while the directory holds secrets that were sealed under another. A start that
//! is cut off while it makes a store leaves a mark ([`MAKING`]), by which the next start goes on with it.
//!
//! Left out: opening (`sqlite::open`), and copies of a directory (their manifest).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::crypto::reencrypt;
use crate::crypto::seal::{MasterKey, SealError};
use crate::db::sqlite::{self, FILE, OpenError, Store, Wholeness, is_damage};

/// The file of the master key, where the environment gives none.
pub const MASTER_KEY_FILE: &str = "master.key";
/// Lies in the directory from before the first thing of a new store is made until its database is whole.
const MAKING: &str = "errand.db.making";
/// What a store makes in its directory, besides the database and the lock.
const REMAINS: [&str; 9] = [
    MASTER_KEY_FILE,
    "master.key.next",
    "sandboxes",
    "trash",
    "admin.sock",
    "errand.db-wal",
    "errand.db-shm",
    "errand.db-journal",
    // A restore that was interrupted: `errand restore` names it so.
    ".restoring",
];
/// Files that belong to a database that is gone: a new one would take them for its own.
const LOGS: [&str; 3] = ["errand.db-wal", "errand.db-shm", "errand.db-journal"];

/// What is to be done where the directory holds no store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Making {
    /// A store is made in an empty directory.
    pub allowed: bool,
    /// A store is made also beside what another one left there.
    pub beside_remains: bool,
}

impl Making {
    /// What the server does by itself: it makes a store in an empty directory.
    pub const BY_ITSELF: Self = Self {
        allowed: true,
        beside_remains: false,
    };
}

/// Why the directory's store is neither opened nor made.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// There is no store.
    #[error(
        "there is no store in {}; check --data-dir (or server.data_dir). Only `errand serve` and `errand demo` make one",
        .0.display()
    )]
    NoStore(PathBuf),
    /// Another store was here, and its database is not.
    #[error(
        "{} holds {found}, and {state}. Look whether the right volume is mounted, or restore the directory from a backup. \
         To start over and leave what is there, use `errand serve --new`",
        .dir.display()
    )]
    NoDatabase {
        /// The data directory.
        dir: PathBuf,
        /// What is there.
        found: String,
        /// What the database is like.
        state: &'static str,
    },
    /// Secrets were sealed, and the key's file is gone.
    #[error(
        "{} holds {count} secrets that were sealed under the master key {needs}, and there is no {MASTER_KEY_FILE} in it: \
         put that file back, or give the key as ERRAND_MASTER_KEY. If the key is lost, `errand serve --discard-secrets` \
         draws a new one: webhook secrets are renewed; stored secrets, providers' keys and sign-ins are to be set anew",
        .dir.display()
    )]
    KeyMissing {
        /// The data directory.
        dir: PathBuf,
        /// How many secrets.
        count: u64,
        /// The ids of the keys that open them.
        needs: String,
    },
    /// The key opens none of the secrets.
    #[error(
        "{} holds {count} secrets that were sealed under the master key {needs}, and {origin} is the key {got}, which \
         opens none of them: start with the key {needs}. If it is lost, `errand serve --discard-secrets` goes on with the \
         key {got}: webhook secrets are renewed; stored secrets, providers' keys and sign-ins are to be set anew",
        .dir.display()
    )]
    OtherKey {
        /// The data directory.
        dir: PathBuf,
        /// How many secrets.
        count: u64,
        /// The ids of the keys that open them.
        needs: String,
        /// Where the given key comes from.
        origin: &'static str,
        /// Its id.
        got: String,
    },
    /// The master key cannot be had.
    #[error(transparent)]
    Key(#[from] SealError),
    /// The database cannot be looked at.
    #[error(transparent)]
    Open(OpenError),
    /// The database is not what SQLite wrote.
    #[error(
        "the database in {} is damaged ({found}): stop the server if one runs, keep a copy of the directory, and restore a \
         backup",
        .dir.display()
    )]
    Damaged {
        /// The data directory.
        dir: PathBuf,
        /// What was found.
        found: String,
    },
    /// The directory cannot be looked at, or the store not be made in it.
    #[error("the data directory {} cannot be used", .dir.display())]
    Directory {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DataDirError {
    /// What an error of a database that is being opened says: damage is told as such.
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

/// A directory that is ready for its store to be opened.
pub struct Prepared {
    /// The key that opens its secrets.
    pub master_key: MasterKey,
    /// Whether its database is known to be whole; else there was no time to check all of it.
    pub is_whole: bool,
}

/// What a directory holds.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A database.
    Store,
    /// Nothing of a store, or a store that was being made.
    Nothing,
    /// Something of a store whose database is not there, or is empty.
    Remains {
        names: Vec<&'static str>,
        is_empty: bool,
    },
}

/// Whether there is a store in a directory: a database that is not empty, or one that was being made. Nothing is made,
/// opened or locked.
///
/// # Errors
/// [`DataDirError::NoStore`], [`DataDirError::NoDatabase`] where something of a store is there.
pub fn expect_store(dir: &Path) -> Result<(), DataDirError> {
    match look(dir)? {
        Found::Store => Ok(()),
        Found::Nothing => Err(DataDirError::NoStore(dir.to_owned())),
        Found::Remains { names, is_empty } => Err(no_database(dir, &names, is_empty)),
    }
}

/// Whether a store is being made in a directory, or a start was cut off while it made one.
#[must_use]
pub fn is_being_made(dir: &Path) -> bool {
    dir.join(MAKING).exists()
}

/// Checks the whole database of a directory that may be in use. None: nothing is wrong with it.
#[must_use]
pub fn damage(dir: &Path) -> Option<String> {
    match sqlite::check(dir, None) {
        Wholeness::Damaged(found) => Some(found),
        Wholeness::Whole | Wholeness::Unknown => None,
    }
}

/// The secrets of a database that is not open yet: how many are under which key, by its id. Those that sign no more in
/// a day are left out.
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

/// Makes a directory whose lock is held ready for a store to be opened: looks whether there is one, marks a new one as
/// being made, and finds the master key. `given`: the key of the environment. `discards`: a key that opens none of the
/// secrets is taken all the same.
///
/// # Errors
/// [`DataDirError`]; nothing was made then.
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
        Found::Store => {
            // A copy of a directory in use is told as what it is, damaged or not.
            sqlite::refuse_copy(dir).map_err(DataDirError::Open)?;
            is_whole = expect_whole(dir)?;
        }
        Found::Nothing if making.allowed => begin(dir).map_err(failed)?,
        Found::Nothing => return Err(DataDirError::NoStore(dir.to_owned())),
        Found::Remains { names, is_empty } if making.beside_remains => {
            tracing::warn!(
                found = names.join(", "),
                "a new store is made beside what another one left, which stays where it is"
            );
            // Before it counts as being made: a start that is cut off here finds what it found now.
            set_aside(dir, is_empty).map_err(failed)?;
            begin(dir).map_err(failed)?;
        }
        Found::Remains { names, is_empty } => return Err(no_database(dir, &names, is_empty)),
    }
    let master_key = fitting_key(dir, given, discards)?;
    Ok(Prepared {
        master_key,
        is_whole,
    })
}

/// Whether the database is known to be whole.
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

/// The store is whole: a start that finds nothing but it from here on does not take it for a new one.
///
/// # Errors
/// Of the file system.
pub fn made(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(MAKING)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(dir)?.sync_all(),
    }
}

fn no_database(dir: &Path, names: &[&str], is_empty: bool) -> DataDirError {
    let found = match names {
        [] => "an empty errand.db".to_owned(),
        names => names.join(", "),
    };
    let state = match (is_empty, names.is_empty()) {
        (true, true) => "no database has 0 bytes unless something went wrong",
        (true, false) => "its database errand.db has 0 bytes",
        (false, _) => "no database errand.db",
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
    // The path may be a link: what it leads to counts.
    let database = match fs::metadata(dir.join(FILE)) {
        Ok(found) => Some(found.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    if database.is_some_and(|bytes| bytes > 0) {
        return Ok(Found::Store);
    }
    if is_making {
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
    Ok(Found::Remains {
        names,
        is_empty: database.is_some(),
    })
}

/// On disk before anything of the store is made.
fn begin(dir: &Path) -> io::Result<()> {
    crate::db::sqlite::private_file(&dir.join(MAKING))?.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Renames the log of a database that is gone: SQLite would bring it into the new one.
fn set_aside(dir: &Path, is_empty: bool) -> io::Result<()> {
    if is_empty {
        fs::remove_file(dir.join(FILE))?;
    }
    for name in LOGS {
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

/// The key of the environment, else that of the file, which is made where nothing was sealed yet.
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
