//! The writer thread, which commits all waiting writes together.
//!
//! Each job runs inside the transaction of its batch. A job that is *refused* has written nothing (verified with
//! SQLite's count of changes) and does not affect the others. Any other failure rolls the batch back, and its jobs
//! run again one by one. Callers get their answers only after COMMIT has returned.
//!
//! If the disk is full, the batch is rolled back and its callers get an error. Any other failure of COMMIT leaves the
//! outcome unknown: the writer is poisoned, all waiting callers get an error, and the program ends.
//!
//! [`Writer::close`] ends the writer in order: what was submitted before is committed, and every later write is
//! refused.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use errand_core::id::RunId;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::checkpoint::Checkpoints;
use super::condition::{Condition, Trouble};
use super::lost_log;
use super::origin::OpenMark;
use super::reserve::Reserve;
use super::trial::{Fault, Trial};
use crate::agents::builds::Builds;
use crate::crypto::seal::ring::Keyring;
use crate::error::{Result, StoreError};
use crate::notify::{Bell, RevocationListener};
use crate::runs::loss_counts::LossCounts;

/// Maximum number of jobs per commit: more than the runs that work at once, but few enough not to delay the first
/// one.
const BATCH_MAX: usize = 512;
/// Maximum number of waiting jobs. Beyond that, callers wait to submit theirs.
const QUEUE_MAX: usize = 4096;
/// Error message for writes to a closed store.
const CLOSED: &str = "the server is stopping, and its store is closed; repeat it with the same Idempotency-Key once the \
                      server is back";

/// The transaction of a batch, and the notifications to send once it is on disk.
pub(crate) struct Tx<'a> {
    conn: &'a Connection,
    rings: &'a RefCell<Rings>,
    around: &'a Around,
}

/// Everything that writes need besides the connection.
pub(crate) struct Around {
    /// Notified after commits.
    pub(crate) bell: Bell,
    /// Base URL for responses to human requests.
    pub(crate) respond_base: String,
    /// Parsed builds.
    pub(crate) builds: Builds,
    /// Runs that lost claims in a row.
    pub(crate) losses: LossCounts,
    /// Keys that seal and open secrets.
    pub(crate) keys: Arc<Keyring>,
    /// Whether the database is closed in order: false from the start of the writer until it has ended in order.
    pub(crate) closed: Arc<AtomicBool>,
    /// Records the problems of the store.
    pub(crate) condition: Condition,
    /// Mark of the open store. `None` if it is simulated.
    pub(crate) mark: Option<Arc<OpenMark>>,
}

#[derive(Default)]
pub(crate) struct Rings {
    /// Changed runs, and whether each has come to rest.
    runs: Vec<(RunId, bool)>,
    /// In the order of events.
    fences: Vec<Fenced>,
    all: bool,
    work: bool,
    outbox: bool,
}

/// Change of a run's driver.
enum Fenced {
    /// A driver received the run, and its listener must be registered.
    Given(RunId, Arc<Notify>),
    /// The run was taken from its driver.
    Taken(RunId),
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn
    }
}

impl Tx<'_> {
    /// Base URL for responses to human requests.
    pub(crate) fn respond_base(&self) -> &str {
        &self.around.respond_base
    }

    pub(crate) fn builds(&self) -> &Builds {
        &self.around.builds
    }

    /// Runs that lost claims in a row.
    pub(crate) fn losses(&self) -> &LossCounts {
        &self.around.losses
    }

    /// Keys for sealing secrets within a write. The current key is the one when the write is executed.
    pub(crate) fn keys(&self) -> &Keyring {
        &self.around.keys
    }

    /// Notifies those who watch a run, after the commit. `at_rest`: it has ended, or waits for a person.
    pub(crate) fn ring(&self, run: RunId, at_rest: bool) {
        self.rings.borrow_mut().runs.push((run, at_rest));
    }

    /// Creates the listener of a driver that has received a run. It is notified when the run is taken away.
    pub(crate) fn revocation_listener(&self, run: RunId) -> RevocationListener {
        let listener = self.around.bell.revocation_listener(run);
        let given = Fenced::Given(run, listener.ear());
        self.rings.borrow_mut().fences.push(given);
        listener
    }

    /// Tells a driver, after the commit, that its run was taken away.
    pub(crate) fn ring_fence(&self, run: RunId) {
        self.rings.borrow_mut().fences.push(Fenced::Taken(run));
    }

    /// Makes all watchers check their permissions again.
    pub(crate) fn ring_all(&self) {
        self.rings.borrow_mut().all = true;
    }

    /// Tells the engine that there is work.
    pub(crate) fn ring_work(&self) {
        self.rings.borrow_mut().work = true;
    }

    /// Tells the outbox that there is a delivery.
    pub(crate) fn ring_outbox(&self) {
        self.rings.borrow_mut().outbox = true;
    }
}

/// The write of one caller.
trait Job: Send {
    fn run(&mut self, tx: &Tx<'_>) -> Ran;
    /// The error of the last execution.
    fn failure(&self) -> Option<&StoreError>;
    /// Whether it may use the disk space that is reserved for a full disk.
    fn may_use_reserve(&self) -> bool;
    /// Sends the caller the result of `run`, or `failure`.
    fn answer(self: Box<Self>, failure: Option<StoreError>);
}

/// Result of a job within its batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ran {
    /// It succeeded, or was refused without writing anything. The batch continues.
    Clean,
    /// It has written something that must be rolled back.
    Undo,
    /// The disk failed, and its state is unknown.
    Broken,
}

struct Write<T, F> {
    act: F,
    may_use_reserve: bool,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: Fn(&Tx<'_>) -> Result<T> + Send> Job for Write<T, F> {
    fn run(&mut self, tx: &Tx<'_>) -> Ran {
        let before = tx.total_changes();
        let result = (self.act)(tx);
        let ran = match &result {
            Ok(_) => Ran::Clean,
            Err(error) if error.is_answer() && tx.total_changes() == before => Ran::Clean,
            Err(StoreError::Sql(error))
                if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) =>
            {
                Ran::Broken
            }
            Err(_) => Ran::Undo,
        };
        self.result = Some(result);
        ran
    }

    fn failure(&self) -> Option<&StoreError> {
        self.result.as_ref()?.as_ref().err()
    }

    fn may_use_reserve(&self) -> bool {
        self.may_use_reserve
    }

    fn answer(self: Box<Self>, failure: Option<StoreError>) {
        let unanswered = || StoreError::Unavailable(Cow::Borrowed("the write was not begun"));
        let result = match (failure, self.result) {
            // A refusal is valid regardless of the commit, because it wrote nothing.
            (Some(_), Some(Err(refused))) if refused.is_answer() => Err(refused),
            (Some(failure), _) => Err(failure),
            (None, Some(result)) => result,
            (None, None) => Err(unanswered()),
        };
        // The caller may be gone.
        let _ = self.reply.send(result);
    }
}

/// How long the last checkpoint waits for readers, which may belong to other programs.
const LAST_CHECKPOINT_PATIENCE: Duration = Duration::from_secs(1);

/// Handle for submitting writes.
pub(crate) struct Writer {
    way: Way,
    /// Whether the writer is ending. Once this is true, no later write is accepted.
    closing: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    poison: watch::Sender<bool>,
    poisoned: watch::Receiver<bool>,
}

enum Way {
    Thread {
        jobs: Option<mpsc::Sender<Box<dyn Job>>>,
        thread: Option<JoinHandle<()>>,
        /// Becomes true, or loses its sender, when the thread has closed the database.
        ended: watch::Receiver<bool>,
    },
    /// Simulated: writes run on the tasks of their callers.
    Here(Box<Mutex<Simulated>>),
}

/// A writer without a thread. One of the callers commits the writes of all callers that wait.
struct Simulated {
    writing: Loop,
    /// Each with the task that submitted it.
    waiting: Vec<(Option<tokio::task::Id>, Box<dyn Job>)>,
}

impl Simulated {
    /// Takes the waiting jobs in the order that the simulation decides.
    fn take_batch(&mut self) -> Vec<Box<dyn Job>> {
        let mut batch = Vec::with_capacity(self.waiting.len());
        while !self.waiting.is_empty() {
            let faults = self.writing.trial.faults.as_ref();
            let chosen = faults.map_or(0, |faults| faults.next_write(self.waiting.len()));
            let task = self.waiting.get(chosen).and_then(|(task, _)| *task);
            // A task may have given up an earlier write. The thread would execute that one first, too.
            let first = self.waiting.iter().position(|(of, _)| *of == task);
            batch.push(self.waiting.remove(first.unwrap_or(0)).1);
        }
        batch
    }
}

impl Writer {
    /// Starts the thread, unless the store is simulated.
    ///
    /// `checkpoints` moves the log into the database file. Without it, SQLite does that in the commit that makes the
    /// log too long.
    pub(crate) fn start(
        conn: Connection,
        checkpoints: Option<Checkpoints>,
        reserve: Option<Reserve>,
        around: Around,
        trial: Trial,
    ) -> std::io::Result<Self> {
        let (poison, poisoned) = watch::channel(false);
        around.closed.store(false, Ordering::Release);
        let commits = Arc::new(AtomicU64::new(0));
        let here = trial.simulated;
        let closing = Arc::new(AtomicBool::new(false));
        let writing = Loop {
            closing: Arc::clone(&closing),
            conn,
            checkpoints,
            reserve,
            around,
            poison: poison.clone(),
            trial,
            commits: Arc::clone(&commits),
        };
        if here {
            let waiting = Vec::new();
            let way = Way::Here(Box::new(Mutex::new(Simulated { writing, waiting })));
            return Ok(Self {
                way,
                closing,
                commits,
                poison,
                poisoned,
            });
        }
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let (has_ended, ended) = watch::channel(false);
        let work = move || {
            writing.run(queue);
            // Closes the connections before the message is sent.
            drop(writing);
            has_ended.send_replace(true);
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(work)?;
        let way = Way::Thread {
            jobs: Some(jobs),
            thread: Some(thread),
            ended,
        };
        Ok(Self {
            way,
            closing,
            commits,
            poison,
            poisoned,
        })
    }

    /// Refuses all further writes, because the program ends.
    pub(crate) fn poison(&self) {
        self.poison.send_replace(true);
    }

    pub(crate) fn poisoned(&self) -> watch::Receiver<bool> {
        self.poisoned.clone()
    }

    /// Number of committed transactions.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Number of waiting jobs.
    pub(crate) fn waiting(&self) -> u64 {
        match &self.way {
            Way::Thread {
                jobs: Some(jobs), ..
            } => u64::try_from(jobs.max_capacity() - jobs.capacity()).unwrap_or(u64::MAX),
            Way::Thread { jobs: None, .. } | Way::Here(_) => 0,
        }
    }

    /// Executes a write. `may_use_reserve`: it may use the disk space that is reserved for a full disk
    /// ([`super::reserve`]).
    pub(crate) async fn write<T, F>(&self, act: F, may_use_reserve: bool) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        let gone = || {
            StoreError::Unavailable(Cow::Borrowed(if self.is_closing() {
                CLOSED
            } else {
                "the store is closed after a failed write; the server starts again from its file"
            }))
        };
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Write {
            act,
            may_use_reserve,
            result: None,
            reply,
        });
        match &self.way {
            Way::Thread { jobs, .. } => {
                let jobs = jobs.as_ref().ok_or_else(gone)?;
                jobs.send(job).await.map_err(|_| gone())?;
            }
            Way::Here(writing) => self.write_here(writing, job).await,
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Whether the writer was told to end.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Makes the writer end with the next write.
    pub(crate) fn begin_to_close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Ends the writer: commits what was submitted before, and refuses what comes later. When this returns, the
    /// writer has closed the database.
    pub(crate) async fn close(&self) {
        self.begin_to_close();
        if let Way::Thread { ended, .. } = &self.way {
            // Wakes the thread. The write is refused if the thread has already ended.
            let _ = self.write(|_| Ok(()), false).await;
            let mut ended = ended.clone();
            // If the sender is gone, the thread has panicked.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    async fn write_here(&self, simulated: &Mutex<Simulated>, job: Box<dyn Job>) {
        let (before, after) = {
            let mut simulated = simulated.lock().unwrap_or_else(PoisonError::into_inner);
            simulated.waiting.push((tokio::task::try_id(), job));
            let faults = simulated.writing.trial.faults.as_ref();
            faults.map_or((0, 0), |faults| faults.gives_way())
        };
        for _ in 0..before {
            tokio::task::yield_now().await;
        }
        {
            let mut simulated = simulated.lock().unwrap_or_else(PoisonError::into_inner);
            // Empty if another caller has committed this write meanwhile.
            let batch = simulated.take_batch();
            if *self.poisoned.borrow() {
                batch
                    .into_iter()
                    .for_each(|job| job.answer(Some(unknown())));
            } else if self.is_closing() {
                let closed = || StoreError::Unavailable(Cow::Borrowed(CLOSED));
                batch.into_iter().for_each(|job| job.answer(Some(closed())));
            } else if !batch.is_empty() && !simulated.writing.commit(batch) {
                simulated.writing.poison.send_replace(true);
            }
        }
        for _ in 0..after {
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Way::Thread { jobs, thread, .. } = &mut self.way {
            // What was submitted is still committed; then the thread ends.
            *jobs = None;
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}

struct PoisonOnPanic<'a>(&'a watch::Sender<bool>);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.send_replace(true);
        }
    }
}

struct Loop {
    /// Whether to end as soon as the queue is empty.
    closing: Arc<AtomicBool>,
    /// Dropped before `conn`, because the last connection to close removes the log.
    checkpoints: Option<Checkpoints>,
    conn: Connection,
    /// `None` in tests without a reserve.
    reserve: Option<Reserve>,
    around: Around,
    poison: watch::Sender<bool>,
    trial: Trial,
    commits: Arc<AtomicU64>,
}

enum End {
    Committed,
    /// Nothing was written. Each job may be tried alone.
    RolledBack(Option<StoreError>),
    /// The outcome is unknown.
    Unknown,
}

impl Loop {
    fn run(&self, mut queue: mpsc::Receiver<Box<dyn Job>>) {
        // A panic in a job ends the thread. Callers must not continue as if the store were working.
        let _poison = PoisonOnPanic(&self.poison);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while queue.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            if !self.commit(std::mem::take(&mut batch)) {
                self.poison.send_replace(true);
                queue.close();
                while let Some(job) = queue.blocking_recv() {
                    job.answer(Some(unknown()));
                }
                return;
            }
            if self.closing.load(Ordering::Acquire) {
                // What waits is still received and committed.
                queue.close();
            }
        }
        // The end of the program: leave a file without a log beside it.
        let checkpointed = self
            .conn
            .busy_timeout(LAST_CHECKPOINT_PATIENCE)
            .and_then(|()| {
                // The first column says whether a reader kept it from being complete.
                let complete = "PRAGMA wal_checkpoint(TRUNCATE)";
                self.conn
                    .query_row(complete, [], |row| Ok(row.get::<_, i64>(0)? == 0))
            });
        match checkpointed {
            Ok(true) => {
                self.around.mark.iter().for_each(|mark| mark.log_is_done());
                if let Err(error) = lost_log::allow_removal(&self.conn) {
                    tracing::debug!(%error, "an empty write-ahead log stays beside the database");
                }
            }
            // A reader still needs the log. It stays beside the database.
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "the last checkpoint failed; the next start does it");
            }
        }
        // Also with a log beside it: nothing changes either of them any more.
        self.around.closed.store(true, Ordering::Release);
    }

    /// Commits a batch. Returns `false` if the outcome is unknown.
    fn commit(&self, batch: Vec<Box<dyn Job>>) -> bool {
        let Some(mut batch) = self.let_through(batch) else {
            return true;
        };
        let mut end = self.transact(&mut batch);
        if let ([job], End::RolledBack(failure)) = (batch.as_slice(), &end)
            && job.may_use_reserve()
            && is_full(failure.as_ref().or(job.failure()))
            && self.reserve.as_ref().is_some_and(Reserve::give_up)
        {
            end = self.transact(&mut batch);
        }
        match end {
            End::Committed => {
                batch.into_iter().for_each(|job| job.answer(None));
                self.reserve.iter().for_each(Reserve::after_commit);
                if let Some(checkpoints) = &self.checkpoints {
                    checkpoints.after_commit(&self.conn);
                }
                true
            }
            End::RolledBack(failure) if batch.len() == 1 => {
                batch
                    .into_iter()
                    .for_each(|job| job.answer(failure.as_ref().map(same)));
                true
            }
            End::RolledBack(_) => batch.into_iter().all(|job| self.commit(vec![job])),
            End::Unknown => {
                batch
                    .into_iter()
                    .for_each(|job| job.answer(Some(unknown())));
                false
            }
        }
    }

    /// Refuses the jobs that may not run while the reserve is used up. Returns `None` if no job remains.
    fn let_through(&self, batch: Vec<Box<dyn Job>>) -> Option<Vec<Box<dyn Job>>> {
        match &self.reserve {
            Some(reserve) if !reserve.lets_others_write() => {}
            _ => return Some(batch),
        }
        let (urgent, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|job| job.may_use_reserve());
        for job in others {
            let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
            let full = StoreError::from(rusqlite::Error::SqliteFailure(full, None));
            self.around.condition.failed(&full);
            job.answer(Some(full));
        }
        (!urgent.is_empty()).then_some(urgent)
    }

    fn transact(&self, batch: &mut [Box<dyn Job>]) -> End {
        if let Some(refusal) = self.around.condition.refusal() {
            return End::RolledBack(Some(refusal));
        }
        let changes = self.conn.total_changes();
        if let Err(error) = execute(&self.conn, "BEGIN IMMEDIATE") {
            return End::RolledBack(Some(self.met(error)));
        }
        let rings = RefCell::new(Rings::default());
        let tx = Tx {
            conn: &self.conn,
            rings: &rings,
            around: &self.around,
        };
        let alone = batch.len() == 1;
        for job in batch.iter_mut() {
            match job.run(&tx) {
                Ran::Clean => {}
                Ran::Undo => {
                    job.failure()
                        .into_iter()
                        .for_each(|error| self.around.condition.failed(error));
                    return self.roll_back(None);
                }
                Ran::Broken => {
                    tracing::error!("the disk failed during a write: the server must start again");
                    return End::Unknown;
                }
            }
        }
        if let Some(end) = self.fault() {
            return end;
        }
        match execute(&self.conn, "COMMIT") {
            Ok(()) => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                let wrote = self.conn.total_changes() != changes;
                self.around.condition.committed(wrote);
                self.ring(rings.into_inner());
                End::Committed
            }
            // SQLite rolls such a commit back: the next one overwrites what it has written.
            Err(error)
                if matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory)
                ) =>
            {
                let failure = self.met(error);
                self.roll_back(Some(failure))
            }
            Err(error)
                if alone && error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) =>
            {
                self.roll_back(Some(error.into()))
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                self.roll_back(None)
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed and its outcome is unknown: the server must start again");
                End::Unknown
            }
        }
    }

    /// Handles an error of a statement outside the jobs.
    fn met(&self, error: rusqlite::Error) -> StoreError {
        let error = StoreError::from(error);
        self.around.condition.failed(&error);
        if !error.is_passing() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a transaction could not begin or end"
            );
        }
        error
    }

    /// The injected fault for this commit, if any.
    fn fault(&self) -> Option<End> {
        match self.trial.faults.as_ref()?.at_commit() {
            Fault::None => None,
            Fault::Full => {
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                let full = rusqlite::Error::SqliteFailure(full, None);
                Some(self.roll_back(Some(full.into())))
            }
            Fault::Broken { written } => {
                let last = if written { "COMMIT" } else { "ROLLBACK" };
                if let Err(error) = self.conn.execute_batch(last) {
                    tracing::error!(%error, "the last statement of an injected fault failed");
                }
                Some(End::Unknown)
            }
        }
    }

    fn roll_back(&self, failure: Option<StoreError>) -> End {
        // SQLite may have rolled back on its own.
        if self.conn.is_autocommit() {
            return End::RolledBack(failure);
        }
        match self.conn.execute_batch("ROLLBACK") {
            Ok(()) => End::RolledBack(failure),
            Err(error) => {
                tracing::error!(%error, "a rollback failed: the server must start again");
                End::Unknown
            }
        }
    }

    fn ring(&self, rings: Rings) {
        let bell = &self.around.bell;
        rings
            .runs
            .into_iter()
            .for_each(|(run, at_rest)| bell.ring(run, at_rest));
        for fenced in rings.fences {
            match fenced {
                Fenced::Given(run, ear) => bell.listen(run, ear),
                Fenced::Taken(run) => bell.ring_fence(run),
            }
        }
        if rings.all {
            bell.ring_all();
        }
        if rings.work {
            bell.ring_work();
        }
        if rings.outbox {
            bell.ring_outbox();
        }
    }
}

fn is_full(failure: Option<&StoreError>) -> bool {
    matches!(
        failure,
        Some(StoreError::Trouble {
            what: Trouble::Full,
            ..
        })
    )
}

/// Executes a statement without parameters. Compiled once.
pub(crate) fn execute(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(drop)
}

fn unknown() -> StoreError {
    StoreError::Unavailable(Cow::Borrowed(
        "writing to the disk failed and whether this was done is unknown; repeat it with the same Idempotency-Key once the server is back",
    ))
}

/// A copy of the failure, for the next waiting caller.
fn same(failure: &StoreError) -> StoreError {
    match failure {
        StoreError::Unavailable(why) => StoreError::Unavailable(why.clone()),
        // Still a `Trouble`, so that it is logged where it occurs and not for each caller that is refused.
        StoreError::Trouble { what, source } => StoreError::Trouble {
            what: *what,
            source: same_of_sqlite(source),
        },
        other => StoreError::Unavailable(Cow::Owned(other.to_string())),
    }
}

fn same_of_sqlite(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(code, text) => {
            rusqlite::Error::SqliteFailure(*code, text.clone())
        }
        other => rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR),
            Some(other.to_string()),
        ),
    }
}
