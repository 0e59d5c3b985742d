//! What is special to SQLite: one writer thread with group commit, a few readers, a lock on the directory, migrations.

mod open;
mod writer;

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::BootId;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use open::{OpenError, OpenOptions, Schema};
pub(crate) use writer::Tx;

use crate::bell::Bell;
use crate::error::{Result, StoreError};
use crate::seal::MasterKey;
use writer::Writer;

/// What errand keeps. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    boot: BootId,
    master_key: MasterKey,
    bell: Bell,
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
    reader_places: Arc<Semaphore>,
    /// Held as long as the store is open: a second server on the directory is refused.
    _lock: File,
}

/// A reader's connection while it is in use. It goes back also when the read panics.
struct Lent {
    conn: Option<Connection>,
    inner: Arc<Inner>,
    /// Given back after the connection.
    _place: OwnedSemaphorePermit,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.inner
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(self.conn.take());
    }
}

impl Store {
    /// Does a write: runs `act` on the writer's thread, in a transaction with others that wait. It may run twice (when a
    /// neighbour's failure rolls the batch back), so it takes its input by reference. `Ok` means it is on disk.
    pub(crate) async fn write<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        self.inner.writer.write(act).await
    }

    /// Does a read, beside the writer, on what is committed.
    pub(crate) async fn read<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let gone = || StoreError::Unavailable(Cow::Borrowed("the server is stopping"));
        let place = Arc::clone(&self.inner.reader_places)
            .acquire_owned()
            .await
            .map_err(|_| gone())?;
        let conn = self
            .inner
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .ok_or_else(gone)?;
        let lent = Lent {
            conn: Some(conn),
            inner: Arc::clone(&self.inner),
            _place: place,
        };
        // The caller may be gone before the read is done: place and connection go back together, with the read.
        let read = tokio::task::spawn_blocking(move || {
            let Some(conn) = &lent.conn else {
                return Err(gone());
            };
            // One snapshot for all statements of a read.
            let snapshot = conn.unchecked_transaction()?;
            act(&snapshot)
        });
        read.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Rings when there is more to read.
    #[must_use]
    pub fn bell(&self) -> &Bell {
        &self.inner.bell
    }

    /// This start of the program.
    #[must_use]
    pub fn boot(&self) -> BootId {
        self.inner.boot
    }

    /// The directory that holds everything.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// How many transactions were committed since this start.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.inner.writer.commits()
    }

    /// How many writes wait for the writer, beside those that it has in hand.
    #[must_use]
    pub fn queue(&self) -> u64 {
        self.inner.writer.waiting()
    }

    /// The key that seals secrets at rest.
    #[must_use]
    pub fn master_key(&self) -> &MasterKey {
        &self.inner.master_key
    }

    /// Becomes true when a write, sync or commit failed so that its outcome is unknown: the program must end and
    /// recover from the file.
    #[must_use]
    pub fn poisoned(&self) -> watch::Receiver<bool> {
        self.inner.writer.poisoned()
    }
}

#[cfg(test)]
mod tests;
