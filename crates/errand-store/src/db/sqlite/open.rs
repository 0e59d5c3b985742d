//! Opens a store: lock, database file, migrations, readers.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use errand_core::id::BootId;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::checkpoint::Checkpoints;
use super::lost_log::LostLog;
use super::migrate::migrate;
use super::origin::{OpenMark, refuse_partial};
use super::reserve::Reserve;
use super::trial::Trial;
use super::turns::TeamTurns;
use super::watched::{EndMark, FileId};
use super::writer::{Around, Writer};
use super::{Condition, Inner, Store};
use crate::agents::builds::Builds;
use crate::crypto::seal::MasterKey;
use crate::db::types::Ms;
use crate::notify::Bell;
use crate::runs::loss_counts::LossCounts;

mod embedded {
    refinery::embed_migrations!("migrations/sqlite");
}
pub(super) use embedded::migrations;

/// Name of the lock file in the data directory.
const LOCK: &str = "lock";
/// Name of the database in the data directory.
pub(crate) const FILE: &str = "errand.db";

/// Cache of the writer, as a multiple of a reader's: it holds the pages of all active runs, so that a batch reads
/// none from disk.
const WRITER_CACHE_TIMES: i64 = 8;
/// Size to which a log is truncated when it starts from the beginning: twice its size between two checkpoints, in
/// bytes.
const LOG_BYTES_KEPT: i64 = 64 << 20;
/// Maximum number of connections for inline reads: one per worker thread, up to this.
const QUICK_READERS_MAX: usize = 8;

/// Parameters for opening a store.
pub struct OpenOptions {
    /// The data directory. Created if it does not exist.
    pub dir: PathBuf,
    /// Id of this start of the program.
    pub boot: BootId,
    /// Public URL of the server for `respond_url`, without a trailing slash.
    pub respond_base: String,
    /// Seals secrets at rest.
    pub master_key: MasterKey,
    /// Number of pooled readers, 1 to 64.
    pub readers: usize,
    /// Cache of each reader in KiB. The writer has eight times as much.
    pub cache_kib: u32,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server is using the directory.
    #[error("{} is in use by another errand server; stop it first, or use another --data-dir", .0.display())]
    InUse(PathBuf),
    /// The database has tables, but none of errand's.
    #[error(
        "the database errand.db in {dir} is not errand's: it was made by another program. Put errand's own file back, or \
         choose another data directory",
        dir = .0.display()
    )]
    Foreign(PathBuf),
    /// The directory was written by a newer program.
    #[error("{} was written by a newer errand (its schema is {found}, this program knows {known}); run that version, or go back to a backup or to `errand.db.before-VN` (docs/backup.md)", .dir.display())]
    Newer {
        dir: PathBuf,
        /// Version of its schema.
        found: i64,
        /// Version of this program's schema.
        known: i64,
    },
    /// The directory was copied while a server was using it.
    #[error(
        "{dir} is a copy of a data directory that was in use: its files were copied at different moments, so it may be \
         damaged, or contain runs without their files. Use a backup (`errand backup`, then `errand restore`), or stop the \
         server before copying its directory. If the copy is consistent, such as a copy of a volume snapshot, start once \
         with `errand serve --accept-copy`",
        dir = .0.display()
    )]
    Copied(PathBuf),
    /// The log of a server that crashed is lost.
    #[error(
        "the write-ahead log errand.db-wal in {dir} {what} since the server was killed or crashed, so its last commits are \
         missing. Put the file back if it was moved, or restore a backup. To continue without these commits, start once with \
         `errand serve --accept-copy`, which checks the database first. Do the same if another program, such as sqlite3, has \
         opened the database since: it has moved the log into the database, and nothing is lost",
        dir = .dir.display()
    )]
    LogLost {
        dir: PathBuf,
        /// How it was lost.
        what: LostLog,
    },
    /// The database of a copy is damaged, so the copy cannot be accepted.
    #[error("the database in {} is damaged, so this copy cannot be used: {what}", .dir.display())]
    NotWhole {
        dir: PathBuf,
        /// The findings of the check.
        what: String,
    },
    /// There is not enough disk space for a migration.
    #[error(
        "there is not enough disk space to upgrade the database in {} to this program's schema: it needs {} MiB (three times \
         the size of the database: for a copy to go back to, and for the migration itself), but only {} MiB are free; \
         free some space and start again. Nothing was changed",
        .dir.display(), .needed.div_ceil(1 << 20), .free >> 20
    )]
    NoRoomToMigrate {
        dir: PathBuf,
        /// Bytes that must be free.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The copy before a migration could not be made.
    #[error("the database in {} could not be copied before the upgrade to this program's schema; nothing was changed", .dir.display())]
    NoCopy {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error("the data directory {} cannot be used", .dir.display())]
    Directory {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error("the database in {} cannot be opened", .dir.display())]
    Database {
        dir: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    /// A migration failed. The database is unchanged.
    #[error("the database in {} could not be upgraded to this program's schema", .dir.display())]
    Migration {
        dir: PathBuf,
        #[source]
        source: Box<refinery::Error>,
    },
    /// An interrupted rotation of the master key could not be completed. No secret is lost.
    #[error("the interrupted rotation of the master key in {} could not be completed", .dir.display())]
    Rotation {
        dir: PathBuf,
        #[source]
        source: Box<crate::error::StoreError>,
    },
}

impl Store {
    /// Opens the store: takes the directory's lock, and creates or migrates the database.
    ///
    /// # Errors
    /// [`OpenError`]. Nothing was changed then, except by a migration that succeeded.
    pub fn open(options: OpenOptions) -> Result<Self, OpenError> {
        let lock = Self::lock(&options.dir)?;
        Self::open_locked(options, lock)
    }

    /// Opens the store of a directory whose lock the caller holds.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_locked(options: OpenOptions, lock: DirLock) -> Result<Self, OpenError> {
        Self::open_on_trial(options, lock, Trial::default())
    }

    /// Like [`Store::open_locked`], with options for tests.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on_trial(
        options: OpenOptions,
        lock: DirLock,
        trial: Trial,
    ) -> Result<Self, OpenError> {
        let dir = options.dir;
        let database = |source| OpenError::Database {
            dir: dir.clone(),
            source,
        };
        let directory = |source| OpenError::Directory {
            dir: dir.clone(),
            source,
        };
        refuse_partial(&dir)?;
        // SQLite gives its log the same permissions.
        private_file(&dir.join(FILE)).map_err(directory)?;
        let closed = Arc::new(AtomicBool::new(true));
        // Created before the connections, so that it is dropped after them.
        let mark = if trial.simulated {
            None
        } else {
            let mark = OpenMark::set(&dir, Arc::clone(&closed), !trial.unsynced);
            Some(Arc::new(mark.map_err(directory)?))
        };
        let mut conn = connect(&dir, false, options.cache_kib).map_err(database)?;
        if trial.simulated || trial.unsynced {
            conn.pragma_update(None, "synchronous", "OFF")
                .map_err(database)?;
        }
        migrate(&dir, &mut conn)?;
        note_creation(&conn, options.boot).map_err(database)?;
        let keys = crate::crypto::reencrypt::open_keys(&mut conn, options.master_key)
            .map(Arc::new)
            .map_err(|source| OpenError::Rotation {
                dir: dir.clone(),
                source: Box::new(source),
            })?;
        if let Some(mark) = &mark {
            mark.names_log().map_err(directory)?;
        }
        let readers = if trial.one_reader { 1 } else { options.readers };
        let readers = (0..readers.clamp(1, 64))
            .map(|_| connect(&dir, true, options.cache_kib))
            .collect::<Result<Vec<_>, _>>()
            .map_err(database)?;
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let quick = (0..threads.clamp(2, QUICK_READERS_MAX))
            .map(|_| connect(&dir, true, options.cache_kib))
            .collect::<Result<Vec<_>, _>>()
            .map_err(database)?;
        let (bell, builds) = (Bell::default(), Builds::default());
        let condition = Condition::default();
        let around = Around {
            condition: condition.clone(),
            bell: bell.clone(),
            respond_base: options.respond_base,
            builds: builds.clone(),
            losses: LossCounts::default(),
            keys: Arc::clone(&keys),
            closed,
            mark: mark.clone(),
        };
        let on_callers_task = trial.simulated;
        let checkpoints = if trial.simulated || trial.unsynced {
            None
        } else {
            let other = connect(&dir, false, options.cache_kib).map_err(database)?;
            Some(Checkpoints::start(&mut conn, other).map_err(directory)?)
        };
        let reserve = checkpoints.is_some().then(|| Reserve::keep(&dir));
        let file = FileId::of(&dir).map_err(directory)?;
        let writer = Writer::start(conn, checkpoints, reserve, around, trial).map_err(directory)?;
        let end = EndMark {
            is_noted: AtomicBool::new(false),
            dir: dir.clone(),
            is_whole: Arc::default(),
            condition: condition.clone(),
            poisoned: writer.poisoned(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                boot: options.boot,
                keys,
                bell,
                writer,
                reader_places: Arc::new(Semaphore::new(readers.len())),
                team_turns: TeamTurns::at(readers.len()),
                readers: Mutex::new(readers),
                quick: Mutex::new(quick),
                builds,
                condition,
                on_callers_task,
                mark,
                file,
                end,
                _lock: lock,
                dir,
            }),
        })
    }

    /// Takes the lock of a data directory, which is created if it does not exist.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if a server is using it.
    pub fn lock(dir: &Path) -> Result<DirLock, OpenError> {
        let failed = |source| OpenError::Directory {
            dir: dir.to_owned(),
            source,
        };
        make_private(dir).map_err(failed)?;
        let file = private_file(&dir.join(LOCK)).map_err(failed)?;
        let directory = File::open(dir).map_err(failed)?;
        for held in [&file, &directory] {
            match held.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(dir.to_owned())),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        Ok(DirLock {
            _file: file,
            _directory: directory,
        })
    }
}

/// The schema versions of a data directory and of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Version in the directory.
    pub found: i64,
    /// Version that this program uses.
    pub known: i64,
}

/// The lock on a data directory. Held until it is dropped or the process ends.
///
/// Both the directory itself and the file `lock` are locked, so that a second server is refused even if somebody removes
/// the file because it looks like a remainder of a dead server.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
    _directory: File,
}

impl Store {
    /// Reads from a data directory's database without locking or migrating it. A transaction that a kill interrupted is
    /// rolled back, as by any reader with write access.
    pub(crate) fn look<T>(
        dir: &Path,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, OpenError> {
        let found = connect(dir, true, 256).and_then(|conn| read(&conn));
        found.map_err(|source| OpenError::Database {
            dir: dir.to_owned(),
            source,
        })
    }

    /// The schema of a data directory, without creating, migrating or locking anything. `None` if there is no
    /// database.
    ///
    /// # Errors
    /// [`OpenError::Database`].
    pub fn schema(dir: &Path) -> Result<Option<Schema>, OpenError> {
        if !dir.join(FILE).exists() {
            return Ok(None);
        }
        let found = Self::look(dir, |conn| {
            if has_schema(conn)? {
                schema_of(conn)
            } else {
                Ok(0)
            }
        })?;
        let known = schema_known(&migrations::runner());
        Ok(Some(Schema { found, known }))
    }
}

/// Creates a directory that other users cannot enter.
fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// Opens a file, or creates it, such that only this user can read it. Also tightens the permissions of an existing
/// file, since somebody else may have created the directory.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let mut options = File::options();
    options
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600);
    let file = options.open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

pub(super) fn connect(dir: &Path, read_only: bool, cache_kib: u32) -> rusqlite::Result<Connection> {
    let access = if read_only {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    } else {
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
    };
    let conn =
        Connection::open_with_flags(dir.join(FILE), access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    if read_only && needs_rollback(&conn) {
        roll_back(dir)?;
    }
    conn.set_prepared_statement_cache_capacity(128);
    // Query plans then do not depend on bound values. Otherwise, statements with conditions on indexed columns would
    // be compiled again for each use.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    if !read_only {
        // The last connection to close would move the log into the database and remove it, also after a failed commit,
        // while the mark says that the log belongs to the database. The writer removes it at an orderly end.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Only takes effect on an empty file.
        conn.pragma_update(None, "page_size", 4096)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        // For stores without the checkpoint thread (`checkpoint`).
        conn.pragma_update(None, "wal_autocheckpoint", 8000)?;
        // A log that a reader kept from shrinking is truncated to this size once it starts from the beginning.
        conn.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    }
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // A negative value is in KiB.
    let cache_kib = i64::from(cache_kib) * if read_only { 1 } else { WRITER_CACHE_TIMES };
    conn.pragma_update(None, "cache_size", -cache_kib)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(conn)
}

/// Reads the schema's table, which opens the database's files.
const FIRST_READ: &str = "SELECT count(*) FROM sqlite_master";

/// Whether a transaction was interrupted by a kill before the database had a write-ahead log, so that its pages have to
/// be restored from the rollback journal. A read-only connection cannot do this.
fn needs_rollback(conn: &Connection) -> bool {
    let read = conn.query_row(FIRST_READ, [], |_| Ok(()));
    // Whoever reads next sees any other error.
    read.is_err_and(|error| {
        error
            .sqlite_error()
            .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK)
    })
}

/// Lets SQLite roll back an interrupted transaction. This loses nothing, because the transaction was never committed.
fn roll_back(dir: &Path) -> rusqlite::Result<()> {
    let access = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(dir.join(FILE), access)?;
    // In case there is a write-ahead log too: only the writer may remove it.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    conn.query_row(FIRST_READ, [], |_| Ok(()))
}

/// Records this start as the time of the store's creation, if no time is recorded yet.
fn note_creation(conn: &Connection, boot: BootId) -> rusqlite::Result<()> {
    let noted = conn.query_row("SELECT count(*) > 0 FROM store", [], |row| row.get(0))?;
    if noted {
        return Ok(());
    }
    conn.execute(
        "INSERT INTO store (id, created_at) VALUES (1, ?1)",
        [Ms(boot.at())],
    )
    .map(drop)
}

pub(super) fn schema_known(runner: &refinery::Runner) -> i64 {
    runner
        .get_migrations()
        .iter()
        .map(|m| i64::from(m.version()))
        .max()
        .unwrap_or(0)
}

pub(super) fn has_schema(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row(
        "SELECT count(*) > 0 FROM sqlite_master WHERE name = 'refinery_schema_history'",
        [],
        |row| row.get(0),
    )
}

pub(super) fn schema_of(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row(
        "SELECT coalesce(max(version), 0) FROM refinery_schema_history",
        [],
        |row| row.get(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a database and a rollback journal as a kill during the first transactions leaves them.
    fn interrupted(dir: &Path) {
        let made = tempfile::tempdir().unwrap();
        let from = made.path().join(FILE);
        let conn = Connection::open(&from).unwrap();
        conn.execute_batch(
            "CREATE TABLE t (x); INSERT INTO t VALUES (1); PRAGMA cache_size = 4; BEGIN; \
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) \
             INSERT INTO t SELECT randomblob(1000) FROM n;",
        )
        .unwrap();
        for name in [FILE.to_owned(), format!("{FILE}-journal")] {
            fs::copy(made.path().join(&name), dir.join(&name)).unwrap();
        }
    }

    #[test]
    fn an_interrupted_transaction_is_rolled_back_before_reading() {
        let dir = tempfile::tempdir().unwrap();
        interrupted(dir.path());
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let conn = Connection::open_with_flags(dir.path().join(FILE), flags).unwrap();
        assert!(needs_rollback(&conn), "the test makes what it is about");
        let conn = connect(dir.path(), true, 256).unwrap();
        let count = conn.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
        assert_eq!(count.unwrap(), 1);
    }
}
