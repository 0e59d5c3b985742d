//! What is special to SQLite: one writer thread with group commit, a few readers, a lock on the directory, migrations.

mod checkpoint;
mod condition;
mod migrate;
mod open;
mod origin;
mod reserve;
pub(crate) mod snapshot;
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

pub use condition::{Condition, Trouble};
pub use open::{DirLock, OpenError, OpenOptions, Schema};
pub(crate) use open::{FILE, private_file};
use origin::OpenMark;
pub(crate) use origin::refuse_copy;
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

/// What errand keeps. Cheap to clone; the last clone closes it.
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
    /// For reads on their caller's task.
    quick: Mutex<Vec<Connection>>,
    builds: Builds,
    condition: Condition,
    /// Simulated: reads are done on the caller's task.
    on_callers_task: bool,
    /// Says that the store is open, and at its end that it was closed in order: after all that has the database open.
    mark: Option<OpenMark>,
    /// The file that is open.
    file: FileId,
    /// After everything that has the file open, and before the lock.
    end: EndMark,
    /// Held as long as the store is open: a second server on the directory is refused.
    _lock: DirLock,
}

/// A connection while it reads. It goes back also when the read panics.
struct Lent {
    conn: Option<Connection>,
    inner: Arc<Inner>,
    /// Of a thread's reader, given back after the connection; a quick one has none.
    place: Option<OwnedSemaphorePermit>,
}

impl Lent {
    /// One snapshot for all statements of a read.
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
        // A read that panicked, or whose end failed, must not leave its snapshot to the next.
        if !conn.is_autocommit()
            && let Err(error) = execute(&conn, "ROLLBACK")
        {
            tracing::warn!(%error, "the end of a read failed");
        }
        let home = match self.place {
            Some(_) => &self.inner.readers,
            None => &self.inner.quick,
        };
        let mut home = home.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock: `Store::close` empties the pool after it has said so.
        if !self.inner.writer.is_closing() {
            home.push(conn);
        }
    }
}

fn stopping() -> StoreError {
    StoreError::Unavailable(Cow::Borrowed("the server is stopping"))
}

impl Store {
    /// Does a write: runs `act` on the writer's thread, in a transaction with others that wait. It may run twice (when a
    /// neighbour's failure rolls the batch back), so it takes its input by reference. `Ok` means it is on disk.
    pub(crate) async fn write<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        self.inner.writer.write(act, false).await
    }

    /// Does a write that must be possible on a full disk as well: it may have the room that is kept for that. For what
    /// ends something, and writes little.
    pub(crate) async fn write_at_all_costs<T, F>(&self, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        self.inner.writer.write(act, true).await
    }

    /// Does a read, beside the writer, on what is committed.
    pub(crate) async fn read<T, F>(&self, act: F) -> Result<T>
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
        // The caller may be gone before the read is done: place and connection go back together, with the read.
        let read = tokio::task::spawn_blocking(move || lent.read(act));
        read.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Does a read of a team, in the team's turn: what one team asks for keeps no other team waiting.
    pub(crate) async fn read_for<T, F>(&self, team: TeamId, act: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let turn = self.inner.team_turns.take(team).await;
        // The turn goes with the read: it is over when the read is, also if the caller has gone.
        self.read(move |conn| {
            let _turn = turn;
            act(conn)
        })
        .await
    }

    /// Does a short read: a few rows that are found on an index. It is done where the caller is, since to hand it to
    /// another thread costs more than the read; where all connections for that are lent, on a thread.
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
            Some(conn) => Lent {
                conn: Some(conn),
                inner: Arc::clone(&self.inner),
                place: None,
            }
            .read(act),
            None => self.read(act).await,
        }
    }

    /// Reads one row the way a page is read: on a connection and a thread of the pool.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn check_read(&self) -> Result<()> {
        self.read(|conn| {
            conn.prepare_cached("SELECT count(*) FROM (SELECT 1 FROM teams LIMIT 1)")?
                .query_row([], |_| Ok(()))?;
            Ok(())
        })
        .await
    }

    /// Passes an empty write through the writer: it reaches its turn, and nothing is written.
    ///
    /// # Errors
    /// Those of any write.
    pub async fn check_writer(&self) -> Result<()> {
        self.write(|_| Ok(())).await
    }

    /// Builds that were parsed.
    pub(crate) fn builds(&self) -> Builds {
        self.inner.builds.clone()
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

    /// When the store was made.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn created_at(&self) -> Result<Timestamp> {
        self.peek(|conn| {
            let at: Ms = conn.query_row("SELECT created_at FROM store", [], |row| row.get(0))?;
            Ok(at.0)
        })
        .await
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

    /// The key that seals secrets at rest, as it is now.
    #[must_use]
    pub fn master_key(&self) -> Arc<MasterKey> {
        self.inner.keys.current()
    }

    /// All keys that open what is sealed.
    pub(crate) fn keys(&self) -> &Keyring {
        &self.inner.keys
    }

    /// Whether it can do its work, and if not, why.
    #[must_use]
    pub fn condition(&self) -> &Condition {
        &self.inner.condition
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
