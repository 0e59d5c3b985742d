//! Checkpoints: move the content of SQLite's log into the database file, so that the log can start from the
//! beginning.
//!
//! A thread with its own connection does most of this while the writer works; the writer does the small rest between
//! two commits. So no step waits for more than that, and the log stays bounded under any load.
//!
//! A failed checkpoint loses nothing: the content stays in the log until a later one succeeds.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

/// Number of log frames (pages of 4 KiB) from which a checkpoint is worthwhile: 32 MiB.
const FRAMES: i32 = 8_000;
/// Number of frames at which the writer waits for the thread, if the thread cannot keep up: 128 MiB.
const FRAMES_MAX: i32 = 4 * FRAMES;
/// Number of passes per checkpoint. Little is written during the first pass, and even less during the second.
const PASSES: usize = 2;

/// The writer's side of checkpoints.
pub(super) struct Checkpoints {
    /// Frames in the log after the last commit.
    frames: Arc<AtomicI32>,
    /// Receives a message when the thread has completed its last pass.
    passed: Receiver<()>,
    /// Whether the thread is working on a checkpoint.
    begun: Cell<bool>,
    /// `None`: the thread must end.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoints {
    /// Starts the thread. `writer` is the writing connection, whose commits are counted from now on; `other` is
    /// another connection to the same file.
    pub(super) fn start(writer: &mut Connection, other: Connection) -> std::io::Result<Self> {
        let frames = Arc::new(AtomicI32::new(0));
        let counted = Arc::clone(&frames);
        writer
            .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, in_log| {
                counted.store(in_log, Ordering::Relaxed);
                Ok(())
            }))
            .map_err(std::io::Error::other)?;
        // A capacity of one is enough in both directions: the writer wakes the thread again only after its answer.
        let (wake, woken) = sync_channel(1);
        let (has_passed, passed) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn(move || run(&other, &woken, &has_passed))?;
        Ok(Self {
            frames,
            passed,
            begun: Cell::new(false),
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// Called after each commit of the writer, with its connection.
    pub(super) fn after_commit(&self, conn: &Connection) {
        let frames = self.frames.load(Ordering::Relaxed);
        if self.passed.try_recv().is_ok() {
            self.begun.set(false);
            checkpoint(conn);
        } else if frames >= FRAMES_MAX {
            if self.begun.replace(false) {
                // If the thread has ended, there is nothing to wait for.
                let _ = self.passed.recv();
            }
            checkpoint(conn);
        } else if frames >= FRAMES && !self.begun.replace(true) {
            let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(conn: &Connection, woken: &Receiver<()>, passed: &SyncSender<()>) {
    while woken.recv().is_ok() {
        for _ in 0..PASSES {
            checkpoint(conn);
        }
        if passed.send(()).is_err() {
            return;
        }
    }
}

/// Moves as much as possible without waiting for readers.
fn checkpoint(conn: &Connection) {
    let brought = conn
        .prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")
        .and_then(|mut statement| statement.query_row([], |_| Ok(())));
    if let Err(error) = brought {
        tracing::warn!(%error, "a checkpoint failed; the log is kept until one succeeds");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn open(dir: &Path) -> Connection {
        let conn = Connection::open(dir.join("log.db")).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.pragma_update(None, "synchronous", "OFF").unwrap();
        conn
    }

    /// Commits until this many pages have been written.
    fn write(conn: &Connection, checkpoints: &Checkpoints, pages: i32) {
        for _ in 0..pages / 100 {
            conn.execute_batch("BEGIN IMMEDIATE").unwrap();
            for _ in 0..100 {
                conn.execute("INSERT INTO t VALUES (zeroblob(4000))", [])
                    .unwrap();
            }
            conn.execute_batch("COMMIT").unwrap();
            checkpoints.after_commit(conn);
        }
    }

    #[test]
    fn the_log_stays_bounded_while_commits_do_not_pause_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut conn = open(dir.path());
        conn.execute_batch("CREATE TABLE t (x BLOB)").unwrap();
        let checkpoints = Checkpoints::start(&mut conn, open(dir.path())).unwrap();
        write(&conn, &checkpoints, 4 * FRAMES_MAX);
        let log = std::fs::metadata(dir.path().join("log.db-wal")).unwrap();
        // The maximum, plus one batch and the header of each page.
        assert!(
            log.len() < 4_200 * (FRAMES_MAX as u64 + 200),
            "{}",
            log.len()
        );
        drop((checkpoints, conn));
        let count: i32 = open(dir.path())
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, 4 * FRAMES_MAX);
    }
}
