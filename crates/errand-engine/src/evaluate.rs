//! Evaluates expensive playbook templates and tool schemas in child processes, which can be killed if they overflow
//! their stack or never end.
//!
//! # Guarantees
//!
//! - A malicious template or schema can only fail its own turn or call.
//! - A process limits its own processor time and memory before it reads a byte. It has no environment, no descriptor of
//!   the server and no privileges, and is killed at its time limit or when the call is cancelled.
//! - The number of evaluations at the same time is limited; a team gets at most half of them.
//! - A process is reused, so that most evaluations do not need to start one.
//!
//! # Non-goals
//!
//! Cheap evaluations. Those run in the server, in place.

mod child;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use errand_core::id::TeamId;
use errand_core::playbook::{Evaluated, Evaluator, Failed, Job, decode_reply, encode_job};
use errand_core::schema::WORK_MAX;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::subprocess::{self, StartError, Started};

pub use child::run_evaluator;

/// Time limit of one evaluation.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Time limit of the wait for a free slot.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum number of evaluations at the same time.
const PLACES: usize = 4;
/// Maximum number for one team, so that half of the slots are left to others.
const TEAM_PLACES: usize = PLACES / 2;
/// Maximum size of a request to a process, and of its reply.
const FRAME_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Evaluations after which a process is replaced, because its processor time is limited over its whole life.
const JOBS_MAX: u32 = 200;
/// How long an unused process is kept.
const IDLE: Duration = Duration::from_secs(30);

/// The reason why an evaluation has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    #[error("it took longer than {} s", TIME_MAX.as_secs())]
    TooSlow,
    /// The schema applies too many schemas to the value.
    #[error("it would take more than {} steps", WORK_MAX)]
    TooMuch,
    /// The process exceeded its limits or crashed.
    #[error("it exceeded its memory limit, or was nested too deeply")]
    Failed,
    /// The request exceeds `FRAME_BYTES_MAX`.
    #[error("its data is too large")]
    TooLarge,
    /// No slot became free in time, or descriptors, memory or processes ran out.
    #[error("the server is evaluating too much at once: try again in a moment")]
    Busy,
    #[error("it cannot be evaluated on this server; see the server's log")]
    Unavailable,
}

/// The kind of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Template,
    Schema,
}

impl Task {
    fn byte(self) -> u8 {
        match self {
            Self::Template => b't',
            Self::Schema => b's',
        }
    }
}

/// A validation error: the first mismatch between a value and a schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misfit {
    /// A JSON pointer to the value that does not match.
    pub place: String,
    pub message: String,
}

/// Checks a value if that takes a bounded number of steps. `Err`: it would take more.
fn bounded_misfit(schema: &Value, value: &Value) -> Result<Option<Misfit>, ()> {
    errand_core::schema::work(schema, value).map_err(drop)?;
    Ok(misfit(schema, value))
}

/// The first validation error of a value. `None` if the value is valid, or if the schema itself is invalid.
#[must_use]
pub fn misfit(schema: &Value, value: &Value) -> Option<Misfit> {
    let validator = jsonschema::validator_for(schema).ok()?;
    first_misfit(&validator, value)
}

/// Same as [`misfit`] with a compiled schema.
#[must_use]
pub fn first_misfit(validator: &jsonschema::Validator, value: &Value) -> Option<Misfit> {
    let error = validator.iter_errors(value).next()?;
    Some(Misfit {
        place: error.instance_path().to_string(),
        // The message repeats the value, which may be a whole file.
        message: error.to_string().chars().take(MISFIT_CHARS_MAX).collect(),
    })
}

/// Maximum length of a validation message.
const MISFIT_CHARS_MAX: usize = 1_000;

/// Starts, limits and reuses evaluator processes. Cheap to clone.
#[derive(Clone)]
pub struct Evaluators(Arc<Inner>);

struct Inner {
    program: Option<PathBuf>,
    time_max: Duration,
    places: Semaphore,
    /// Limits the playbook turns that are computed on blocking threads.
    walks: Arc<Semaphore>,
    teams: Mutex<HashMap<TeamId, Weak<Share>>>,
    idle: Mutex<Vec<Process>>,
    /// Counts evaluations, to detect when the idle processes are no longer needed.
    uses: AtomicU64,
}

/// An idle process.
struct Process {
    started: Started,
    jobs: u32,
}

impl Evaluators {
    /// `program`: the path of this program, whose `main` must first call [`run_evaluator`]. `None` evaluates in this
    /// process, for tests that have no program.
    #[must_use]
    pub fn new(program: Option<PathBuf>) -> Self {
        Self::with_time(program, TIME_MAX)
    }

    /// Same as [`Evaluators::new`] with another time limit, for tests.
    #[must_use]
    pub fn with_time(program: Option<PathBuf>, time_max: Duration) -> Self {
        Self(Arc::new(Inner {
            program,
            time_max,
            places: Semaphore::new(PLACES),
            walks: Arc::new(Semaphore::new(2 * team_walks())),
            teams: Mutex::default(),
            idle: Mutex::default(),
            uses: AtomicU64::new(0),
        }))
    }

    /// The evaluators with the limits of a team.
    #[must_use]
    pub fn of(&self, team: TeamId) -> TeamEvaluators {
        let mut teams = self.0.teams.lock().unwrap_or_else(PoisonError::into_inner);
        teams.retain(|_, share| share.strong_count() > 0);
        let share = teams.get(&team).and_then(Weak::upgrade);
        let share = share.unwrap_or_else(|| {
            let share = Arc::new(Share {
                places: Semaphore::new(TEAM_PLACES),
                walks: Arc::new(Semaphore::new(team_walks())),
            });
            teams.insert(team, Arc::downgrade(&share));
            share
        });
        TeamEvaluators {
            all: self.clone(),
            share,
        }
    }
}

/// The evaluators as one team may use them. Cheap to clone.
#[derive(Clone)]
pub struct TeamEvaluators {
    all: Evaluators,
    share: Arc<Share>,
}

/// The permits of a team.
struct Share {
    places: Semaphore,
    walks: Arc<Semaphore>,
}

/// Maximum number of a team's turns on blocking threads: one per processor, so that a single team gets full speed.
fn team_walks() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .max(2)
}

impl TeamEvaluators {
    /// Evaluates a template. The inner error is the template's own. Dropping the future kills the process.
    ///
    /// # Errors
    /// [`EvaluateError`] if there was no evaluation.
    pub async fn template(&self, job: Job) -> Result<Result<Evaluated, Failed>, EvaluateError> {
        if self.all.0.program.is_none() {
            return Ok(job.evaluate());
        }
        let reply = self.run(Task::Template, &encode_job(&job)).await?;
        decode_reply(&reply).ok_or(EvaluateError::Failed)
    }

    /// Validates a value against a schema in a child process.
    ///
    /// # Errors
    /// [`EvaluateError`] if there was no validation.
    pub async fn misfit(
        &self,
        schema: &Value,
        value: &Value,
    ) -> Result<Option<Misfit>, EvaluateError> {
        if self.all.0.program.is_none() {
            return bounded_misfit(schema, value).map_err(|()| EvaluateError::TooMuch);
        }
        let lines = format!("{schema}\n{value}");
        let reply = self.run(Task::Schema, lines.as_bytes()).await?;
        let checked: Result<Option<Misfit>, ()> =
            serde_json::from_slice(&reply).map_err(|_| EvaluateError::Failed)?;
        checked.map_err(|()| EvaluateError::TooMuch)
    }

    /// Waits for the permits to compute a turn on a blocking thread.
    pub(crate) async fn place_to_walk(&self) -> [Option<OwnedSemaphorePermit>; 2] {
        let own = Arc::clone(&self.share.walks).acquire_owned().await.ok();
        let all = Arc::clone(&self.all.0.walks).acquire_owned().await.ok();
        [own, all]
    }

    async fn run(&self, task: Task, work: &[u8]) -> Result<Vec<u8>, EvaluateError> {
        let all = &self.all.0;
        let size = u32::try_from(work.len()).unwrap_or(u32::MAX);
        if work.len() > FRAME_BYTES_MAX {
            return Err(EvaluateError::TooLarge);
        }
        let turn = async {
            // The team's permit comes first, so that a waiting team does not occupy a global permit.
            let own = self.share.places.acquire().await.ok();
            (own, all.places.acquire().await.ok())
        };
        let Ok(_places) = timeout(PATIENCE, turn).await else {
            return Err(EvaluateError::Busy);
        };
        let kept = lock(&all.idle).pop();
        let was_kept = kept.is_some();
        let mut process = match kept {
            Some(process) => process,
            None => start(all.program.as_deref())?,
        };
        let mut done = timeout(all.time_max, ask(&mut process, task, size, work)).await;
        if was_kept && matches!(done, Ok(None)) {
            // A reused process may have died from its earlier work, so try once more with a fresh one.
            process = start(all.program.as_deref())?;
            done = timeout(all.time_max, ask(&mut process, task, size, work)).await;
        }
        // A process that is not kept is killed on drop.
        match done {
            Ok(Some(reply)) => {
                process.jobs += 1;
                if process.jobs < JOBS_MAX {
                    self.all.keep(process);
                }
                Ok(reply)
            }
            Ok(None) => Err(EvaluateError::Failed),
            Err(_) => Err(EvaluateError::TooSlow),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Evaluators {
    /// Keeps a process for reuse, and starts the task that ends idle processes.
    fn keep(&self, process: Process) {
        let uses = self.0.uses.fetch_add(1, Ordering::Relaxed) + 1;
        let first = {
            let mut idle = lock(&self.0.idle);
            idle.push(process);
            idle.len() == 1
        };
        if first {
            // A weak reference, so that this task does not keep the processes alive after the server was dropped.
            tokio::spawn(end_idle(Arc::downgrade(&self.0), uses));
        }
    }
}

async fn end_idle(all: Weak<Inner>, mut uses: u64) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(all) = all.upgrade() else { return };
        let now = all.uses.load(Ordering::Relaxed);
        if now == uses {
            lock(&all.idle).clear();
            return;
        }
        uses = now;
        if lock(&all.idle).is_empty() {
            return;
        }
    }
}

fn start(program: Option<&Path>) -> Result<Process, EvaluateError> {
    let arguments = [child::EVALUATOR_ARGUMENT];
    let started = subprocess::start(program, &arguments, "evaluates templates");
    let started = started.map_err(|error| match error {
        StartError::Exhausted => EvaluateError::Busy,
        StartError::Unavailable => EvaluateError::Unavailable,
    })?;
    Ok(Process { started, jobs: 0 })
}

/// Sends a request to a process and reads the reply. `None` if the process ended.
async fn ask(process: &mut Process, task: Task, size: u32, work: &[u8]) -> Option<Vec<u8>> {
    let Started { stdin, stdout, .. } = &mut process.started;
    stdin.write_all(&[task.byte()]).await.ok()?;
    stdin.write_all(&size.to_le_bytes()).await.ok()?;
    stdin.write_all(work).await.ok()?;
    stdin.flush().await.ok()?;
    let mut size = [0; 4];
    stdout.read_exact(&mut size).await.ok()?;
    let size = usize::try_from(u32::from_le_bytes(size)).ok()?;
    if size > FRAME_BYTES_MAX {
        return None;
    }
    let mut reply = vec![0; size];
    stdout.read_exact(&mut reply).await.ok()?;
    Some(reply)
}

/// The [`Evaluator`] for a playbook turn on a blocking thread. Stops when the turn is cancelled.
pub(crate) struct Blocking {
    pub(crate) evaluators: TeamEvaluators,
    pub(crate) runtime: Handle,
    pub(crate) cancel: CancellationToken,
}

const NOBODY_WAITS: &str = "the turn was cancelled";

impl Evaluator for Blocking {
    fn evaluate(&self, job: Job) -> Result<Result<Evaluated, Failed>, String> {
        self.runtime.block_on(async {
            tokio::select! {
                // Checked first, so that a cancelled turn starts no evaluation.
                biased;
                () = self.cancel.cancelled() => Err(NOBODY_WAITS.to_owned()),
                done = self.evaluators.template(job) => {
                    done.map_err(|error| format!("the template was not evaluated: {error}"))
                }
            }
        })
    }

    fn go_on(&self) -> Result<(), String> {
        if self.cancel.is_cancelled() {
            return Err(NOBODY_WAITS.to_owned());
        }
        Ok(())
    }
}
