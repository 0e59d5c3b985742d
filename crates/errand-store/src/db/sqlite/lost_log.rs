//! Notices that the write-ahead log of a crashed server is missing or cut off, and with it the last commits.
//!
//! # Guarantees
//!
//! After a crash, the log belongs to the database: without it, commits that clients were told about are gone, and SQLite
//! opens the rest without an error. Two records say what the log must hold:
//!
//! - The mark of an open store names its log file ([`super::origin`]). If that file is missing, or is another file, the
//!   log is lost.
//! - SQLite's index of the log (`errand.db-shm`) has the number of frames. It is shared memory that is never synced, so
//!   it only counts if the machine has not been started again since. If the log is shorter than that, it was cut off.
//!
//! Both cost nothing while the store works. Closing a connection keeps the log, however the store ends; only an orderly
//! end removes it ([`allow_removal`]).
//!
//! # Non-goals
//!
//! Distinguishing a log that somebody removed from one that another program (`sqlite3`) moved into the database after
//! the crash: both leave no log. The operator decides. A log that was cut off before the machine was started again is
//! not noticed either, because no record of its length survives, short of one more synced write for each commit.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::open::FILE;
use super::origin::{self, Identity};

/// Length of SQLite's header of a log, and of the header of each frame, in bytes.
const HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;
/// Length of one of the two copies of the header of SQLite's index, in bytes.
const INDEX_HEADER_BYTES: usize = 48;
/// The part of SQLite's index that is read: both copies of the header, and how many frames are in the database.
const INDEX_BYTES: usize = 2 * INDEX_HEADER_BYTES + 4;
/// Version of SQLite's index that this program understands.
const INDEX_VERSION: u32 = 3_007_000;

/// The way in which a log was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostLog {
    /// It does not exist.
    Missing,
    /// Another file has its name.
    Replaced,
    /// It is shorter than it was.
    CutOff,
}

impl std::fmt::Display for LostLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Missing => "is missing",
            Self::Replaced => "is another file",
            Self::CutOff => "is shorter than it was",
        })
    }
}

/// Identity of the log of a directory. `None` if there is none.
pub(super) fn identity(dir: &Path) -> io::Result<Option<Identity>> {
    Identity::of(&dir.join(format!("{FILE}-wal")))
}

/// Lets SQLite remove the log when `conn` is closed as the last connection. Without this call, closing keeps the log
/// ([`connect`](super::open::connect)): otherwise a store that fails would remove the log that its mark names.
pub(super) fn allow_removal(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        .map(drop)
}

/// Number of this start of the machine, as the kernel tells it. `None` if it does not.
pub(super) fn machine_start() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Whether the log that an open store left is lost. Opens no database and changes nothing. May be called beside a
/// running server.
pub(super) fn find(dir: &Path) -> io::Result<Option<LostLog>> {
    let Some(left) = origin::log_left(dir)? else {
        return Ok(None);
    };
    let found = match identity(dir)? {
        None => Some(LostLog::Missing),
        Some(found) if !found.is_same_file(&left.file) => Some(LostLog::Replaced),
        Some(_) if left.machine_start.is_some() && left.machine_start == machine_start() => {
            is_cut_off(dir)?.then_some(LostLog::CutOff)
        }
        Some(_) => None,
    };
    // A server that ends in order takes its log out of the mark before it removes it.
    let still_left = found.is_none() || origin::log_left(dir)?.as_ref() == Some(&left);
    Ok(found.filter(|_| still_left))
}

/// Whether the log has fewer frames than SQLite's index says.
fn is_cut_off(dir: &Path) -> io::Result<bool> {
    let Some(before) = Index::read(dir)? else {
        return Ok(false);
    };
    if before.is_in_database() {
        return Ok(false);
    }
    let (length, salt) = log_head(dir)?;
    // A running server may begin its log anew between the two looks.
    if Index::read(dir)?.as_ref() != Some(&before) {
        return Ok(false);
    }
    Ok(length < before.log_bytes() || salt != Some(before.salt))
}

/// Length of the log, and its salt, which changes whenever SQLite begins it anew.
fn log_head(dir: &Path) -> io::Result<(u64, Option<[u8; 8]>)> {
    let file = match File::open(dir.join(format!("{FILE}-wal"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, None)),
        file => file?,
    };
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(HEADER_BYTES).read_to_end(&mut head)?;
    let salt = head.get(16..24).and_then(|salt| salt.try_into().ok());
    Ok((length, salt))
}

/// The state of the log by SQLite's index.
#[derive(Debug, PartialEq, Eq)]
struct Index {
    page_bytes: u64,
    /// Committed frames of the log.
    frames: u32,
    /// How many of them are in the database file as well.
    in_database: u32,
    /// Salt of the log that it belongs to.
    salt: [u8; 8],
}

impl Index {
    /// `None` if there is no index, or none that is complete.
    fn read(dir: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(dir.join(format!("{FILE}-shm"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(INDEX_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(Self::parse(&bytes))
    }

    /// The layout is part of SQLite's file format (`walformat.html`), in the byte order of the machine.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..INDEX_HEADER_BYTES)?;
        if Some(header) != bytes.get(INDEX_HEADER_BYTES..2 * INDEX_HEADER_BYTES) {
            return None;
        }
        let word = |at: usize| -> Option<u32> {
            let word = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_ne_bytes(word))
        };
        let is_initialized = header.get(12) == Some(&1);
        if word(0)? != INDEX_VERSION || !is_initialized || !is_intact(header) {
            return None;
        }
        let page = u16::from_ne_bytes(header.get(14..16)?.try_into().ok()?);
        Some(Self {
            // 65,536 does not fit and is stored as 1.
            page_bytes: if page == 1 { 65_536 } else { u64::from(page) },
            frames: word(16)?,
            in_database: word(2 * INDEX_HEADER_BYTES)?,
            salt: header.get(32..40)?.try_into().ok()?,
        })
    }

    /// Whether nothing is lost without the log.
    fn is_in_database(&self) -> bool {
        self.in_database >= self.frames
    }

    /// Least length of the log.
    fn log_bytes(&self) -> u64 {
        let frame = self.page_bytes + FRAME_HEADER_BYTES;
        u64::from(self.frames)
            .saturating_mul(frame)
            .saturating_add(HEADER_BYTES)
    }
}

/// SQLite's checksum of the header of its index, which covers all but the checksum itself.
fn is_intact(header: &[u8]) -> bool {
    let mut words = header
        .chunks_exact(4)
        .filter_map(|word| word.try_into().ok().map(u32::from_ne_bytes));
    let (mut first, mut second) = (0_u32, 0_u32);
    for _ in 0..5 {
        let (Some(one), Some(two)) = (words.next(), words.next()) else {
            return false;
        };
        first = first.wrapping_add(one).wrapping_add(second);
        second = second.wrapping_add(two).wrapping_add(first);
    }
    words.next() == Some(first) && words.next() == Some(second)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::open::connect;
    use super::super::origin::OpenMark;
    use super::*;

    /// A store that has commits in its log, without an orderly end.
    fn open(dir: &Path) -> (OpenMark, rusqlite::Connection) {
        fs::write(dir.join(FILE), "").unwrap();
        let mark = OpenMark::set(dir, Arc::new(AtomicBool::new(false)), false).unwrap();
        let conn = connect(dir, false, 2048).unwrap();
        conn.execute_batch("CREATE TABLE t (x BLOB); INSERT INTO t VALUES (zeroblob(100000))")
            .unwrap();
        mark.names_log().unwrap();
        (mark, conn)
    }

    #[test]
    fn a_log_that_goes_with_its_database_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (mark, conn) = open(dir.path());
        assert_eq!(find(dir.path()).unwrap(), None);
        let checkpoint = |mode: &str| {
            conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
                .unwrap();
            assert_eq!(find(dir.path()).unwrap(), None, "{mode}");
        };
        for mode in ["PASSIVE", "RESTART", "TRUNCATE"] {
            conn.execute_batch("INSERT INTO t VALUES (zeroblob(50000))")
                .unwrap();
            assert_eq!(find(dir.path()).unwrap(), None, "before {mode}");
            checkpoint(mode);
        }
        conn.execute_batch("INSERT INTO t VALUES (zeroblob(50000))")
            .unwrap();
        drop(conn);
        assert!(identity(dir.path()).unwrap().is_some());
        assert_eq!(find(dir.path()).unwrap(), None, "an end by a failure");

        let conn = connect(dir.path(), false, 2048).unwrap();
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        mark.log_is_done();
        allow_removal(&conn).unwrap();
        drop(conn);
        assert!(identity(dir.path()).unwrap().is_none());
        assert_eq!(find(dir.path()).unwrap(), None, "an orderly end");
    }

    #[test]
    fn each_way_to_lose_a_log_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (_mark, _conn) = open(dir.path());
        let log = dir.path().join("errand.db-wal");
        let aside = dir.path().join("aside");
        let bytes = fs::metadata(&log).unwrap().len();
        fs::rename(&log, &aside).unwrap();
        assert_eq!(find(dir.path()).unwrap(), Some(LostLog::Missing));
        fs::copy(&aside, &log).unwrap();
        assert_eq!(find(dir.path()).unwrap(), Some(LostLog::Replaced));
        fs::rename(&aside, &log).unwrap();
        assert_eq!(find(dir.path()).unwrap(), None);
        let file = fs::File::options().write(true).open(&log).unwrap();
        for shorter in [bytes - 1, bytes / 2, 10, 0] {
            file.set_len(shorter).unwrap();
            assert_eq!(
                find(dir.path()).unwrap(),
                Some(LostLog::CutOff),
                "{shorter}"
            );
        }
        // Without the index, nothing is known of the length.
        fs::remove_file(dir.path().join("errand.db-shm")).unwrap();
        assert_eq!(find(dir.path()).unwrap(), None);
    }
}
