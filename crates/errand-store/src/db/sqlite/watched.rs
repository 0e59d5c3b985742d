//! Supervision of an open store: whether its file is still that of the data directory, its orderly end, and shrinking
//! its log.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::condition::Condition;
use super::open::{FILE, connect};
use super::whole::{self, Wholeness};
use super::{Store, Trouble};
use crate::error::Result;

/// How long shrinking a large log waits for readers before it is postponed.
const SHRINK_PATIENCE: Duration = Duration::from_millis(100);

/// Identity of the open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(dir: &Path) -> io::Result<Self> {
        let found = fs::metadata(dir.join(FILE))?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// Records the orderly end of a store when the store is closed or dropped, if the file is known to be undamaged.
pub(super) struct EndMark {
    pub(super) is_noted: AtomicBool,
    pub(super) dir: PathBuf,
    pub(super) is_whole: Arc<AtomicBool>,
    pub(super) condition: Condition,
    pub(super) poisoned: watch::Receiver<bool>,
}

impl EndMark {
    /// Records it, once. Blocking.
    fn end(&self) {
        let is_in_order = self.is_whole.load(Ordering::Acquire)
            && self.condition.refusal().is_none()
            && !*self.poisoned.borrow();
        if is_in_order && !self.is_noted.swap(true, Ordering::AcqRel) {
            whole::mark(&self.dir);
        }
    }
}

impl Drop for EndMark {
    fn drop(&mut self) {
        self.end();
    }
}

impl Store {
    /// Closes the store in order, even while others hold clones of it: commits what was submitted before, records on
    /// disk that the database is closed, and refuses everything that comes later. A store that was lost, or whose
    /// last write failed, is left as it is. May be called more than once.
    pub async fn close(&self) {
        let inner = &self.inner;
        if *inner.writer.poisoned().borrow() {
            return;
        }
        inner.writer.begin_to_close();
        // Readers first: SQLite removes the log when the last connection that may write is closed.
        inner.reader_places.close();
        for pool in [&inner.readers, &inner.quick] {
            pool.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        inner.writer.close().await;
        let held = Arc::clone(inner);
        let noted = tokio::task::spawn_blocking(move || {
            held.mark.iter().for_each(|mark| mark.end());
            held.end.end();
        });
        if let Err(error) = noted.await {
            tracing::warn!(%error, "the orderly shutdown could not be recorded");
        }
    }
}

impl Store {
    /// Called after opening. `is_whole`: the file was checked or had been closed in order, so an orderly end will be
    /// recorded. Otherwise the file is checked on a separate thread while the store works.
    pub fn is_opened(&self, is_whole: bool) {
        let noted = Arc::clone(&self.inner.end.is_whole);
        if is_whole {
            noted.store(true, Ordering::Release);
            return;
        }
        tracing::info!(
            "the database is large, so the rest of it is checked while the server works"
        );
        let (inner, dir) = (Arc::downgrade(&self.inner), self.inner.dir.clone());
        let condition = self.inner.condition.clone();
        let goes_on = move || inner.strong_count() > 0;
        let check = move || match whole::check_tables(&dir, goes_on) {
            Some(Wholeness::Whole) => {
                tracing::info!("the database was checked and is undamaged");
                noted.store(true, Ordering::Release);
            }
            Some(Wholeness::Damaged(found)) => condition.met(Trouble::Damaged, &found),
            Some(Wholeness::Unknown) | None => {}
        };
        let started = std::thread::Builder::new()
            .name("store-check".to_owned())
            .spawn(check);
        if let Err(error) = started {
            tracing::warn!(%error, "the database could not be checked");
        }
    }

    /// Why the open file is no longer that of the data directory. `None` if it still is. Blocks for a moment.
    #[must_use]
    pub fn why_lost(&self) -> Option<String> {
        let dir = self.inner.dir.display();
        match FileId::of(&self.inner.dir) {
            Ok(found) if found == self.inner.file => None,
            Ok(_) => Some(format!(
                "the data directory {dir}, or its database, was replaced under the running server"
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!(
                "the data directory {dir}, or its database, was removed under the running server"
            )),
            // Any other error will show up at the next write too.
            Err(_) => None,
        }
    }

    /// Abandons the store: nothing is written any more, and the program ends.
    pub fn lose(&self, why: &str) {
        self.inner.condition.lose(why);
        // Never closed, because SQLite would remove the log at this path, which may belong to another store by now.
        std::mem::forget(self.clone());
        self.inner.writer.poison();
    }

    /// Executes an empty write, which detects problems of writing, and notices when they are over.
    ///
    /// # Errors
    /// The problem that prevents writes.
    pub async fn try_to_write(&self) -> Result<()> {
        self.write(|_| Ok(())).await
    }

    /// Truncates a log that has grown large, if no reader needs it any more. Otherwise, it would keep its size until the
    /// program ends. Blocks for moments.
    pub fn shrink_log(&self) -> Result<()> {
        if self.inner.writer.is_closing() {
            return Ok(());
        }
        let conn = connect(&self.inner.dir, false, 256)?;
        conn.busy_timeout(SHRINK_PATIENCE)?;
        // Most of it is moved into the file while the writer works. The columns are: busy, frames in the log, frames moved.
        let passive = "PRAGMA wal_checkpoint(PASSIVE)";
        let (frames, brought): (i64, i64) =
            conn.query_row(passive, [], |row| Ok((row.get(1)?, row.get(2)?)))?;
        // A few new commits are normal. More frames than that are held back by a reader.
        if frames - brought < 1_000 {
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(())
    }
}
