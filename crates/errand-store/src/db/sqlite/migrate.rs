//! Migrations: upgrades the database of an older version to this program's schema.
//!
//! # Guarantees
//!
//! Each migration is logged with its duration. Before the first one, a complete copy of the database is made next to
//! it, `errand.db.before-VN`, with which the older version can be used again. Nothing is begun unless there is space
//! for the copy and for the migration. A start that was interrupted in between finds the copy and keeps it. Copies of
//! earlier migrations are removed after a later one has succeeded.
//!
//! A new database needs none of this.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use refinery::Target;
use rusqlite::Connection;

use super::OpenError;
use super::open::{FILE, has_schema, migrations, schema_known, schema_of};
use super::snapshot::{copy_database, private_new};

/// Prefix of a copy's name. The version of the new schema follows.
const COPY: &str = "errand.db.before-V";
/// The database's size must be free this many times: for the copy, for the log while a table is rewritten, and for
/// that table.
const ROOM_TIMES: u64 = 3;
/// Space that must be free in addition, in bytes.
const ROOM_BYTES_MIN: u64 = 16 * 1024 * 1024;

pub(super) fn migrate(dir: &Path, conn: &mut Connection) -> Result<(), OpenError> {
    let database = |source| OpenError::Database {
        dir: dir.to_owned(),
        source,
    };
    let runner = migrations::runner();
    let known = schema_known(&runner);
    let found = if has_schema(conn).map_err(database)? {
        Some(schema_of(conn).map_err(database)?)
    } else {
        None
    };
    match found {
        Some(found) if found > known => {
            return Err(OpenError::Newer {
                dir: dir.to_owned(),
                found,
                known,
            });
        }
        Some(found) if found == known => return Ok(()),
        Some(found) => {
            require_room(dir, free_bytes(dir).map_err(|source| failed(dir, source))?)?;
            let copy = keep_copy(dir, conn, known)?;
            tracing::info!(
                from = found,
                to = known,
                copy = %copy.display(),
                "the database is being upgraded to this program's schema; the copy allows going back"
            );
        }
        None if has_tables(conn).map_err(database)? => {
            return Err(OpenError::Foreign(dir.to_owned()));
        }
        None => {}
    }
    let began = Instant::now();
    run(dir, conn, found)?;
    if let Some(found) = found {
        tracing::info!(
            from = found,
            to = known,
            ms = millis(began),
            "the database now has this program's schema"
        );
        remove_older_copies(dir, known);
    }
    Ok(())
}

/// Commits each migration together with its line in the history. Otherwise, after a kill between the two commits, every
/// start would fail on a migration that was applied but not recorded.
fn grouped() -> refinery::Runner {
    migrations::runner().set_grouped(true)
}

/// Runs the migrations one by one, so that the duration of each is known.
fn run(dir: &Path, conn: &mut Connection, from: Option<i64>) -> Result<(), OpenError> {
    let failed = |source| OpenError::Migration {
        dir: dir.to_owned(),
        source: Box::new(source),
    };
    let Some(from) = from else {
        return grouped().run(conn).map(drop).map_err(failed);
    };
    let runner = migrations::runner();
    let mut steps: Vec<_> = runner
        .get_migrations()
        .iter()
        .filter(|step| i64::from(step.version()) > from)
        .collect();
    steps.sort_by_key(|step| step.version());
    for step in steps {
        let began = Instant::now();
        grouped()
            .set_target(Target::Version(step.version()))
            .run(conn)
            .map_err(failed)?;
        tracing::info!(
            to = step.version(),
            name = step.name(),
            ms = millis(began),
            "a migration succeeded"
        );
    }
    Ok(())
}

fn has_tables(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row(
        "SELECT count(*) > 0 FROM sqlite_master WHERE type = 'table'",
        [],
        |row| row.get(0),
    )
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn failed(dir: &Path, source: io::Error) -> OpenError {
    OpenError::Directory {
        dir: dir.to_owned(),
        source,
    }
}

/// Free space for this user on the file system of a directory, in bytes.
fn free_bytes(dir: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

fn require_room(dir: &Path, free: u64) -> Result<(), OpenError> {
    let log = dir.join(format!("{FILE}-wal"));
    let size = size_of(&dir.join(FILE)).saturating_add(size_of(&log));
    let needed = size
        .saturating_mul(ROOM_TIMES)
        .saturating_add(ROOM_BYTES_MIN);
    if free >= needed {
        return Ok(());
    }
    Err(OpenError::NoRoomToMigrate {
        dir: dir.to_owned(),
        needed,
        free,
    })
}

/// Keeps a copy of the database before the migration to schema `to`. An existing copy was made by an interrupted
/// start and is kept, because the database may have changed since.
fn keep_copy(dir: &Path, conn: &Connection, to: i64) -> Result<PathBuf, OpenError> {
    let copy = dir.join(format!("{COPY}{to}"));
    if copy.exists() {
        return Ok(copy);
    }
    let beside = dir.join(format!("{COPY}{to}.new"));
    let made = || {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        drop(private_new(&beside)?);
        copy_database(conn, &beside, &mut |_, _| true)?;
        File::open(&beside)?.sync_all()?;
        fs::rename(&beside, &copy)?;
        File::open(dir)?.sync_all()
    };
    made().map_err(|source| OpenError::NoCopy {
        dir: dir.to_owned(),
        source,
    })?;
    Ok(copy)
}

/// Removes the copies of earlier migrations. A copy that cannot be removed only wastes space.
fn remove_older_copies(dir: &Path, newest: i64) {
    let newest = format!("{COPY}{newest}");
    let names = fs::read_dir(dir).map(|entries| {
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect::<Vec<_>>()
    });
    for name in names.unwrap_or_default() {
        let is_copy = name.strip_prefix(COPY).is_some_and(|schema| {
            !schema.is_empty() && schema.bytes().all(|byte| byte.is_ascii_digit())
        });
        if !is_copy || name == newest {
            continue;
        }
        match fs::remove_file(dir.join(&name)) {
            Ok(()) => tracing::info!(copy = name, "the copy of an earlier migration was removed"),
            Err(error) => {
                tracing::warn!(%error, copy = name, "the copy of an earlier migration could not be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_needs_three_times_the_size_of_the_database() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), vec![0; 1_000_000]).unwrap();
        let needed = 3_000_000 + ROOM_BYTES_MIN;
        assert!(require_room(dir.path(), needed).is_ok());
        let refused = require_room(dir.path(), needed - 1).unwrap_err();
        assert!(
            matches!(refused, OpenError::NoRoomToMigrate { needed: n, free, .. } if n == needed && free == needed - 1)
        );
    }
}
