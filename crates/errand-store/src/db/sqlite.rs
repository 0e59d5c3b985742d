//! The SQLite back end: one writer thread with group commit, a pool of readers, a lock on the directory, and
//! migrations.

mod checkpoint;
mod condition;
mod lost_log;
mod migrate;
mod open;
mod origin;
mod reserve;
pub(crate) mod snapshot;
mod span;
mod trial;
mod turns;
mod watched;
mod whole;
mod writer;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::{BootId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::Instrument as _;

pub use condition::{Condition, Trouble};
pub use lost_log::LostLog;
pub use open::{DirLock, OpenError, OpenOptions, Schema};
pub(crate) use open::{FILE, private_file};
use origin::OpenMark;
pub(crate) use origin::refuse_partial;
pub use snapshot::{DATABASE_FILE, DatabaseFacts, Snapshot, SnapshotError, database_facts};
pub use trial::{Fault, Faults, Trial};
pub(crate) use whole::{Wholeness, check, is_damage, look};
pub(crate) use writer::Tx;

use crate::agents::builds::Builds;
use crate::crypto::seal::MasterKey;
use crate::crypto::seal::ring::Keyring;
use crate::db::types::Ms;
use crate::error::{Result, StoreError};
use crate::notify::Bell;
use turns::TeamTurns;
use watched::{EndMark, FileId};
use writer::{Writer, execute};

/// The store of errand's data. Cheap to clone; dropping the last clone closes it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    boot: BootId,
    keys: Arc<Keyring>,
    bell: Bell,
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
    reader_places: Arc<Semaphore>,
    team_turns: TeamTurns,
    /// Connections for reads on their caller's task.
    quick: Mutex<Vec<Connection>>,
    builds: Builds,
    condition: Condition,
    /// Simulated: all reads run on the caller's task.
    on_callers_task: bool,
    /// Marks the store as open, and as closed in order at its end. Dropped after everything that has the database
    /// open.
    mark: Option<Arc<OpenMark>>,
    /// Identity of the open file.
    file: FileId,
    /// Dropped after everything that has the file open, and before the lock.
    end: EndMark,
    /// Held while the store is open, so that a second server on the directory is refused.
    _lock: DirLock,
}

/// A connection that is in use for a read. It is returned to the pool even if the read panics.
struct Lent {
    conn: Option<Connection>,
    inner: Arc<Inner>,
    /// The permit of a pooled reader, released after the connection is returned. `None` for inline reads.
    place: Option<OwnedSemaphorePermit>,
}

impl Lent {
    /// Runs all statements of a read in one snapshot.
    fn read<T>(&self, act: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let conn = self.conn.as_ref().ok_or_else(stopping)?;
        let read = || {
            execute(conn, "BEGIN")?;
            let result = act(conn);
            execute(conn, "COMMIT")?;
            result
        };
        let result = read();
        if let Err(error) = &result {
            self.inner.condition.failed(error);
        }
        result
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else {
            return;
        };
        // A read that panicked, or could not be ended, must not pass its snapshot on to the next read.
        if !conn.is_autocommit()
            && let Err(error) = execute(&conn, "ROLLBACK")
        {
            tracing::warn!(%error, "a read could not be ended");
        }
        let home = match self.place {
            Some(_) => &self.inner.readers,
            None => &self.inner.quick,
        };
        let mut home = home.lock().unwrap_or_else(PoisonError::into_inner);
        // Checked under the lock: `Store::close` empties the pool after it has set this flag.
        if !self.inner.writer.is_closing() {
            home.push(conn);
        }
    }
}

fn stopping() -> StoreError {
    StoreError::Unavailable(Cow::Borrowed("the server is stopping"))
}

impl Store {
    /// Executes a write: runs `act` on the writer's thread, in a transaction together with other waiting writes.
    /// `act` may run twice, if another write of the batch fails and the batch is rolled back, so it takes its input
    /// by reference. `Ok` means that the write is on disk.
    pub(crate) async fn write<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        let span = span::of_write::<F>();
        self.inner.writer.write(act, false).instrument(span).await
    }

    /// Executes a write that must be possible even on a full disk: it may use the reserved disk space. For operations
    /// that end something and write little.
    pub(crate) async fn write_at_all_costs<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        let span = span::of_write::<F>();
        self.inner.writer.write(act, true).instrument(span).await
    }

    /// Executes a read of committed data, in parallel with the writer.
    pub(crate) async fn read<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let span = span::of_read::<F>();
        self.read_on_thread(act).instrument(span).await
    }

    async fn read_on_thread<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let place = Arc::clone(&self.inner.reader_places)
            .acquire_owned()
            .await
            .map_err(|_| stopping())?;
        let conn = self
            .inner
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .ok_or_else(stopping)?;
        let lent = Lent {
            conn: Some(conn),
            inner: Arc::clone(&self.inner),
            place: Some(place),
        };
        if self.inner.on_callers_task {
            return lent.read(act);
        }
        // The caller may be gone before the read is done, so permit and connection are returned together with the
        // read.
        let read = tokio::task::spawn_blocking(move || lent.read(act));
        read.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Executes a read of a team when it is the team's turn, so that the reads of one team do not block those of other teams.
    pub(crate) async fn read_for<T, F>(&self, team: TeamId, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let turn = self.inner.team_turns.take(team).await;
        // The read owns the turn, so that the turn ends with the read even if the caller was canceled.
        let read = self.read_on_thread(move |conn| {
            let _turn = turn;
            act(conn)
        });
        read.instrument(span::of_read::<F>()).await
    }

    /// Executes a short read of a few rows that are found with an index. It runs inline, because handing it to
    /// another thread costs more than the read itself. If all connections for that are in use, it runs on a thread.
    pub(crate) async fn peek<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let conn = self
            .inner
            .quick
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        match conn {
            Some(conn) => {
                let lent = Lent {
                    conn: Some(conn),
                    inner: Arc::clone(&self.inner),
                    place: None,
                };
                span::of_read::<F>().in_scope(|| lent.read(act))
            }
            None => self.read(act).await,
        }
    }

    /// Reads one row like a page does: with a pooled connection on a thread.
    pub async fn check_read(&self) -> Result<()> {
        self.read(|conn| {
            conn.prepare_cached("SELECT count(*) FROM (SELECT 1 FROM teams LIMIT 1)")?
                .query_row([], |_| Ok(()))?;
            Ok(())
        })
        .await
    }

    /// Sends an empty write through the writer. Waits for its turn, but writes nothing.
    pub async fn check_writer(&self) -> Result<()> {
        self.write(|_| Ok(())).await
    }

    pub(crate) fn builds(&self) -> Builds {
        self.inner.builds.clone()
    }

    /// Notifies of changes.
    #[must_use]
    pub fn bell(&self) -> &Bell {
        &self.inner.bell
    }

    /// Id of this start of the program.
    #[must_use]
    pub fn boot(&self) -> BootId {
        self.inner.boot
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// When the store was created.
    pub async fn created_at(&self) -> Result<Timestamp> {
        self.peek(|conn| {
            let at: Ms = conn.query_row("SELECT created_at FROM store", [], |row| row.get(0))?;
            Ok(at.0)
        })
        .await
    }

    /// Number of transactions committed since this start.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.inner.writer.commits()
    }

    /// Number of writes that wait for the writer, without those in the current batch.
    #[must_use]
    pub fn queue(&self) -> u64 {
        self.inner.writer.waiting()
    }

    /// The key that currently seals secrets.
    #[must_use]
    pub fn master_key(&self) -> Arc<MasterKey> {
        self.inner.keys.current()
    }

    /// All keys that can open secrets.
    pub(crate) fn keys(&self) -> &Keyring {
        &self.inner.keys
    }

    /// Whether the store can work, and if not, why.
    #[must_use]
    pub fn condition(&self) -> &Condition {
        &self.inner.condition
    }

    /// Becomes true when a write, sync or commit has failed with an unknown outcome. The program must then end and
    /// recover from the file.
    #[must_use]
    pub fn poisoned(&self) -> watch::Receiver<bool> {
        self.inner.writer.poisoned()
    }
}

#[cfg(test)]
mod tests;
