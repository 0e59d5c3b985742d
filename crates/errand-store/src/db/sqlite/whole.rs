//! Checks whether the database file is undamaged.
//!
//! A store that is closed in order records the identity, size and time of its file ([`mark`]). A start that finds the
//! file in this state trusts it. Any other file (after a crash, a copy, or an outside change) is checked with `PRAGMA
//! quick_check` before it is opened, for at most [`TIME_AT_START`], because a start must not take minutes on a large
//! database. What remains is checked table by table while the server works ([`check_tables`]), so that no check holds
//! a snapshot for long.
//!
//! A check is not a proof: it does not find changed bytes within a value.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::open::{FILE, connect, private_file};

/// Record of an orderly shutdown.
const MARK: &str = "errand.db.closed";
/// Maximum time of the check at a start.
const TIME_AT_START: Duration = Duration::from_secs(2);
/// SQLite virtual machine steps between two looks at the time.
const STEPS: i32 = 10_000;
/// Maximum number of findings that are reported.
const FINDINGS_MAX: usize = 5;

/// Result of examining a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wholeness {
    /// It was closed in order, or the check found nothing.
    Whole,
    /// There was not enough time to check all of it.
    Unknown,
    /// It is damaged, with the findings.
    Damaged(String),
}

/// Identifies a file and its state: changes when the file is replaced or modified.
fn state_of(dir: &Path) -> io::Result<String> {
    let found = fs::metadata(dir.join(FILE))?;
    Ok(format!(
        "{} {} {} {}.{:09}\n",
        found.dev(),
        found.ino(),
        found.size(),
        found.mtime(),
        found.mtime_nsec()
    ))
}

fn has_log(dir: &Path) -> bool {
    fs::metadata(dir.join(format!("{FILE}-wal"))).is_ok_and(|log| log.len() > 0)
}

/// Records that the file was closed in order. If that fails, the next start checks the file.
pub(super) fn mark(dir: &Path) {
    if has_log(dir) {
        return;
    }
    let noted = state_of(dir)
        .and_then(|state| (&private_file(&dir.join(MARK))?).write_all(state.as_bytes()));
    if let Err(error) = noted {
        tracing::debug!(%error, "the orderly shutdown could not be recorded; the next start checks the database");
    }
}

/// Examines a file before it is opened. Removes the record of the orderly shutdown, which the next one writes again.
pub(crate) fn look(dir: &Path) -> Wholeness {
    let noted = fs::read_to_string(dir.join(MARK)).ok();
    let is_noted = noted.is_some() && noted == state_of(dir).ok() && !has_log(dir);
    let _ = fs::remove_file(dir.join(MARK));
    if is_noted {
        return Wholeness::Whole;
    }
    check(dir, Some(TIME_AT_START))
}

/// Checks a file that may be open in a server. Changes nothing.
pub(crate) fn check(dir: &Path, time_max: Option<Duration>) -> Wholeness {
    let checked = connect(dir, true, 2048).and_then(|mut conn| {
        if let Some(time_max) = time_max {
            let ends = Instant::now() + time_max;
            conn.progress_handler(STEPS, Some(move || Instant::now() >= ends))?;
        }
        quick_check(&conn, "PRAGMA quick_check(20)")
    });
    judge(checked)
}

/// Checks a file table by table. `None`: the server ended first.
pub(super) fn check_tables(dir: &Path, goes_on: impl Fn() -> bool) -> Option<Wholeness> {
    let tables = connect(dir, true, 2048).and_then(|conn| {
        let mut select = conn.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
        let names = select.query_map([], |row| row.get::<_, String>(0))?;
        let names = names.collect::<rusqlite::Result<Vec<_>>>()?;
        drop(select);
        Ok((conn, names))
    });
    let (conn, tables) = match tables {
        Ok(tables) => tables,
        Err(error) => return Some(judge(Err(error))),
    };
    for table in tables {
        if !goes_on() {
            return None;
        }
        let sql = format!("PRAGMA quick_check('{}')", table.replace('\'', "''"));
        match judge(quick_check(&conn, &sql)) {
            Wholeness::Whole => {}
            other => return Some(other),
        }
    }
    Some(Wholeness::Whole)
}

fn quick_check(conn: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare(sql)?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
    lines
        .filter(|line| !line.as_ref().is_ok_and(|line| line == "ok"))
        .collect()
}

fn judge(checked: rusqlite::Result<Vec<String>>) -> Wholeness {
    match checked {
        Ok(found) if found.is_empty() => Wholeness::Whole,
        Ok(found) => {
            let shown: Vec<String> = found.into_iter().take(FINDINGS_MAX).collect();
            Wholeness::Damaged(shown.join("; "))
        }
        Err(error) if is_damage(&error) => Wholeness::Damaged(error.to_string()),
        Err(error) => {
            if error.sqlite_error_code() != Some(ErrorCode::OperationInterrupted) {
                tracing::warn!(%error, "the database could not be checked");
            }
            Wholeness::Unknown
        }
    }
}

/// Whether an error says that the file is damaged.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    super::condition::Trouble::of(error) == Some(super::condition::Trouble::Damaged)
}
