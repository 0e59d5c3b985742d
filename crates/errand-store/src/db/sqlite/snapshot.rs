//! Copies of the database as it was at one point in time, while others write.
//!
//! # Guarantees
//!
//! A [`Snapshot`] contains what was committed when it was taken, and nothing later. It delays no write and writes
//! nothing to the database. SQLite's log cannot shrink before the snapshot is dropped.
//!
//! # Non-goals
//!
//! The files of sandboxes, and the other parts of a backup.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use errand_core::id::SandboxId;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::open::{FILE, connect, has_schema, migrations, schema_known, schema_of};
use super::{DirLock, OpenError, Store};

/// Pages copied between two calls of `go_on`: 16 MiB.
const PAGES: i32 = 4096;
/// Reported for a file that SQLite accepts as a database but that is empty.
const EMPTY: &str = "it holds none of errand's tables";
/// Cache of the copying connection, in KiB.
const CACHE_KIB: u32 = 2048;

/// All rows as they were at one point in time.
pub struct Snapshot {
    conn: Connection,
}

/// Why the database could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// SQLite refused.
    #[error("the database cannot be read")]
    Database(#[source] rusqlite::Error),
    #[error("the copy of the database cannot be written")]
    Write(#[source] io::Error),
    /// The copy is damaged.
    #[error(
        "the database is damaged ({0}): no backup was made, so that it does not replace a good one; keep your existing backups, and run `errand doctor`"
    )]
    Damaged(String),
    #[error("the backup was canceled")]
    CalledOff,
}

/// Facts that must be known about a copy of a database to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// Version of its schema.
    pub schema: i64,
    /// Ids of the master keys that its secrets are sealed under.
    pub key_ids: Vec<String>,
    /// Its sandboxes that are not deleted.
    pub sandboxes: Vec<SandboxId>,
}

impl Store {
    /// Takes a snapshot of everything that is committed when this returns. Blocks for a moment.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        Snapshot::of(self.dir())
    }

    /// Version of the schema that this program uses.
    #[must_use]
    pub fn schema_known() -> i64 {
        schema_known(&migrations::runner())
    }

    /// Marks the database of a restored directory as complete and closed. `lock` comes from [`Store::lock`].
    pub fn mark_restored(dir: &Path, _lock: &DirLock) -> io::Result<()> {
        super::origin::mark_closed(dir)
    }
}

impl Snapshot {
    /// Takes a snapshot of a directory whose lock the caller holds, or whose store is open.
    ///
    /// # Errors
    /// [`SnapshotError::Database`].
    pub fn of(dir: &Path) -> Result<Self, SnapshotError> {
        let taken = || {
            let conn = connect(dir, true, CACHE_KIB)?;
            conn.execute_batch("BEGIN")?;
            // SQLite takes the snapshot at the first read.
            conn.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
            Ok(conn)
        };
        taken()
            .map(|conn| Self { conn })
            .map_err(SnapshotError::Database)
    }

    /// Writes the snapshot to a new file and checks the result. Blocking. `go_on` receives the number of copied pages
    /// and the total, and returns whether to continue. The caller syncs the file.
    ///
    /// # Errors
    /// [`SnapshotError`]; the written file is useless then.
    pub fn write_to(
        self,
        path: &Path,
        go_on: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<DatabaseFacts, SnapshotError> {
        let mut called_off = false;
        drop(private_new(path).map_err(SnapshotError::Write)?);
        let copied = copy_database(&self.conn, path, &mut |done, all| {
            called_off = !go_on(done, all);
            !called_off
        });
        // Ends the read transaction, so that the log can shrink again.
        drop(self);
        match copied {
            Err(_) if called_off => return Err(SnapshotError::CalledOff),
            Err(error) => return Err(SnapshotError::Write(error)),
            Ok(()) => {}
        }
        let copy = open_unchanged(path).map_err(SnapshotError::Database)?;
        quick_check(&copy)?;
        let facts = facts(&copy).map_err(SnapshotError::Database)?;
        if facts.schema == 0 {
            return Err(SnapshotError::Damaged(EMPTY.to_owned()));
        }
        Ok(facts)
    }
}

/// Checks the database of a directory that nobody uses.
pub(super) fn check_database(dir: &Path) -> Result<(), OpenError> {
    let database = |source| OpenError::Database {
        dir: dir.to_owned(),
        source,
    };
    let conn = connect(dir, true, CACHE_KIB).map_err(database)?;
    match quick_check(&conn) {
        Ok(()) if has_schema(&conn).map_err(database)? => Ok(()),
        // SQLite accepts an empty file as a database.
        Ok(()) => Err(OpenError::NotWhole {
            dir: dir.to_owned(),
            what: EMPTY.to_owned(),
        }),
        Err(SnapshotError::Database(source)) => Err(database(source)),
        Err(error) => Err(OpenError::NotWhole {
            dir: dir.to_owned(),
            what: error.to_string(),
        }),
    }
}

fn quick_check(conn: &Connection) -> Result<(), SnapshotError> {
    let found: String = conn
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| SnapshotError::Damaged(error.to_string()))?;
    if found == "ok" {
        return Ok(());
    }
    Err(SnapshotError::Damaged(found))
}

/// Opens a database that nobody writes to, such that no other files appear next to it.
fn open_unchanged(path: &Path) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}

fn facts(conn: &Connection) -> rusqlite::Result<DatabaseFacts> {
    let schema = if has_schema(conn)? {
        schema_of(conn)?
    } else {
        0
    };
    let mut sandboxes = Vec::new();
    if has_table(conn, "sandboxes")? {
        let mut select =
            conn.prepare("SELECT id FROM sandboxes WHERE deleted_at IS NULL ORDER BY id")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let id: String = row.get(0)?;
            // An id that cannot be parsed has no directory.
            sandboxes.extend(SandboxId::parse(&id));
        }
    }
    Ok(DatabaseFacts {
        schema,
        key_ids: crate::crypto::reencrypt::key_ids(conn)?,
        sandboxes,
    })
}

pub(crate) fn has_table(conn: &Connection, name: &str) -> rusqlite::Result<bool> {
    conn.prepare("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1")?
        .exists([name])
}

/// Creates a file that only this user can read. Fails if it exists.
pub(super) fn private_new(path: &Path) -> io::Result<File> {
    File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Copies what a connection sees into an empty file, without syncing it.
pub(super) fn copy_database(
    from: &Connection,
    to: &Path,
    go_on: &mut dyn FnMut(u64, u64) -> bool,
) -> io::Result<()> {
    if !go_on(0, 0) {
        return Err(io::Error::other("called off"));
    }
    let mut copy = Connection::open_with_flags(
        to,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(io::Error::other)?;
    // The caller syncs it, and a partial copy is useless anyway.
    copy.pragma_update(None, "synchronous", "OFF")
        .and_then(|()| copy.pragma_update(None, "journal_mode", "OFF"))
        .map_err(io::Error::other)?;
    let copied = || -> rusqlite::Result<bool> {
        let backup = Backup::new(from, &mut copy)?;
        loop {
            let stepped = backup.step(PAGES)?;
            let progress = backup.progress();
            let all = u64::try_from(progress.pagecount).unwrap_or(0);
            let left = u64::try_from(progress.remaining).unwrap_or(0);
            if matches!(stepped, StepResult::Done) {
                return Ok(true);
            }
            if !go_on(all.saturating_sub(left), all) {
                return Ok(false);
            }
        }
    };
    let mut copied = copied;
    match copied() {
        Ok(true) => {}
        Ok(false) => return Err(io::Error::other("called off")),
        Err(error) => return Err(io::Error::other(error)),
    }
    copy.close().map_err(|(_, error)| io::Error::other(error))
}

/// Reads the facts of a database file that nobody writes to.
///
/// # Errors
/// [`SnapshotError::Database`].
pub fn database_facts(path: &Path) -> Result<DatabaseFacts, SnapshotError> {
    open_unchanged(path)
        .and_then(|conn| facts(&conn))
        .map_err(SnapshotError::Database)
}

/// Name of the database in a data directory.
pub const DATABASE_FILE: &str = FILE;
