//! Checkpoints: what stands in SQLite's log goes into the database's file, so that the log can begin anew.
//!
//! A thread with a connection of its own does the most of it beside the writer; the writer does the rest, which is
//! little, between two commits. So no step waits for more than that, and the log stays bounded under any load.
//!
//! A checkpoint that fails loses nothing: what it was to bring is in the log, which is kept until one succeeds.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

/// Frames of the log (a page each, 4 KiB) from which a checkpoint is worth it: 32 MiB.
const FRAMES: i32 = 8_000;
/// Frames at which the writer waits for the thread, should it not keep up: 128 MiB.
const FRAMES_MAX: i32 = 4 * FRAMES;
/// How often the thread goes over the log at a time. What is written during the first pass is little, and during the
/// second less.
const PASSES: usize = 2;

/// The writer's side.
pub(super) struct Checkpoints {
    /// Frames in the log after the last commit.
    frames: Arc<AtomicI32>,
    /// Says that the thread has brought what was there when it began its last pass.
    passed: Receiver<()>,
    /// Whether the thread is at it.
    begun: Cell<bool>,
    /// None: the thread is to end.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoints {
    /// Starts the thread. `writer`: the connection that writes, whose commits are counted from here on. `other`: another
    /// one on the same file.
    pub(super) fn start(writer: &mut Connection, other: Connection) -> std::io::Result<Self> {
        let frames = Arc::new(AtomicI32::new(0));
        let counted = Arc::clone(&frames);
        writer
            .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, in_log| {
                counted.store(in_log, Ordering::Relaxed);
                Ok(())
            }))
            .map_err(std::io::Error::other)?;
        // One that waits is enough, either way: the writer wakes the thread again only after it has heard.
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

    /// After each commit of the writer, whose connection this is.
    pub(super) fn after_commit(&self, conn: &Connection) {
        let frames = self.frames.load(Ordering::Relaxed);
        if self.passed.try_recv().is_ok() {
            self.begun.set(false);
            checkpoint(conn);
        } else if frames >= FRAMES_MAX {
            if self.begun.replace(false) {
                // A thread that is gone needs no waiting for.
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

/// Brings what can be brought without waiting for anybody.
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

    /// Commits until so many pages have been written.
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
        // A batch more than the most, and what stands beside each page.
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
