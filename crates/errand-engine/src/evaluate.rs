//! Work that could overflow a stack or never end, done by processes that can be killed: templates of playbooks that are not
//! cheap, and schemas of connections' tools that are not light.
//!
//! Guarantees: whatever a template or a schema is, it costs its own move or call. A process has bounds of processor time
//! and memory before it reads a byte, no environment, no descriptor of the server and no privilege; it is killed when its
//! time is over or nobody waits any more. A bounded number are at work at once, and a team has half of them at most.
//! A process that has done its work is kept for the next, so that most cost no start.
//!
//! Non-goals: what is cheap. That is evaluated where it is asked for.

mod child;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use errand_core::id::TeamId;
use errand_core::playbook::{Evaluated, Evaluator, Failed, Job, decode_reply, encode_job};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::subprocess::{self, StartError, Started};

pub use child::run_evaluator;

/// How long one evaluation may take.
const TIME_MAX: Duration = Duration::from_secs(10);
/// How long one waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Evaluations at once.
const PLACES: usize = 4;
/// The same for one team: half of them are left to the others.
const TEAM_PLACES: usize = PLACES / 2;
/// Most bytes of what a process is given, and of what it answers.
const FRAME_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Evaluations after which a process is not kept: its processor time is bounded over all of them.
const JOBS_MAX: u32 = 200;
/// How long a process without work is kept.
const IDLE: Duration = Duration::from_secs(30);

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// It did not end in time.
    #[error("it took longer than {} s", TIME_MAX.as_secs())]
    TooSlow,
    /// The process was ended by its bounds, or failed.
    #[error("it needed more memory than it may have, or was nested too deeply")]
    Failed,
    /// It is larger than what a process is given.
    #[error("it takes more data than it may")]
    TooLarge,
    /// No turn came, or descriptors, memory or processes have run out.
    #[error("the server evaluates too much at once: try again in a moment")]
    Busy,
    /// No process can be started.
    #[error("it cannot be evaluated on this server: the log of the server says why")]
    Unavailable,
}

/// What a process is to do.
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

/// What is wrong with a value, by a schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misfit {
    /// Where: a JSON pointer.
    pub place: String,
    /// What, in words.
    pub message: String,
}

/// The first thing that is wrong with a value, by a schema. `None` also if the schema is none.
#[must_use]
pub fn misfit(schema: &Value, value: &Value) -> Option<Misfit> {
    let validator = jsonschema::validator_for(schema).ok()?;
    first_misfit(&validator, value)
}

/// The same with a schema that was compiled before.
#[must_use]
pub fn first_misfit(validator: &jsonschema::Validator, value: &Value) -> Option<Misfit> {
    let error = validator.iter_errors(value).next()?;
    Some(Misfit {
        place: error.instance_path().to_string(),
        // It repeats the value, which may be a whole file.
        message: error.to_string().chars().take(MISFIT_CHARS_MAX).collect(),
    })
}

/// Most characters of what is wrong with a value.
const MISFIT_CHARS_MAX: usize = 1_000;

/// Starts and keeps the processes. Cheap to clone.
#[derive(Clone)]
pub struct Evaluators(Arc<Inner>);

struct Inner {
    program: Option<PathBuf>,
    time_max: Duration,
    places: Semaphore,
    /// Walks that are on a thread at once.
    walks: Arc<Semaphore>,
    teams: Mutex<HashMap<TeamId, Weak<Share>>>,
    idle: Mutex<Vec<Process>>,
    /// Counts evaluations, so that what is kept without work is noticed.
    uses: AtomicU64,
}

/// A process without work.
struct Process {
    started: Started,
    jobs: u32,
}

impl Evaluators {
    /// `program`: this one, which must call [`run_evaluator`] first of all. `None` evaluates in this process, for tests
    /// that have no program.
    #[must_use]
    pub fn new(program: Option<PathBuf>) -> Self {
        Self::with_time(program, TIME_MAX)
    }

    /// The same with another time limit.
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

    /// For a team, which has its share.
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

/// A team's share of them.
#[derive(Clone)]
pub struct TeamEvaluators {
    all: Evaluators,
    share: Arc<Share>,
}

/// What a team has at once.
struct Share {
    places: Semaphore,
    walks: Arc<Semaphore>,
}

/// Walks of one team that are on a thread at once: as many as there are processors, so that a team alone keeps its speed.
fn team_walks() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .max(2)
}

impl TeamEvaluators {
    /// Evaluates a template. The inner error is the template's own. Who stops waiting ends the process.
    ///
    /// # Errors
    /// See [`EvaluateError`].
    pub async fn template(&self, job: Job) -> Result<Result<Evaluated, Failed>, EvaluateError> {
        if self.all.0.program.is_none() {
            return Ok(job.evaluate());
        }
        let reply = self.run(Task::Template, &encode_job(&job)).await?;
        decode_reply(&reply).ok_or(EvaluateError::Failed)
    }

    /// What is wrong with a value, by a schema.
    ///
    /// # Errors
    /// See [`EvaluateError`].
    pub async fn misfit(
        &self,
        schema: &Value,
        value: &Value,
    ) -> Result<Option<Misfit>, EvaluateError> {
        if self.all.0.program.is_none() {
            return Ok(misfit(schema, value));
        }
        let lines = format!("{schema}\n{value}");
        let reply = self.run(Task::Schema, lines.as_bytes()).await?;
        serde_json::from_slice(&reply).map_err(|_| EvaluateError::Failed)
    }

    /// Waits for a place to decide a move on a thread.
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
            // The team's own first: who waits for it takes nobody else's place.
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
            // It may have been ended by what it did before.
            process = start(all.program.as_deref())?;
            done = timeout(all.time_max, ask(&mut process, task, size, work)).await;
        }
        // A process that is not kept is killed when it is dropped.
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
    /// Keeps a process for the next work, and ends all that are kept once there was none for a while.
    fn keep(&self, process: Process) {
        let uses = self.0.uses.fetch_add(1, Ordering::Relaxed) + 1;
        let first = {
            let mut idle = lock(&self.0.idle);
            idle.push(process);
            idle.len() == 1
        };
        if first {
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

/// Gives a process its work and takes the answer. `None` where it ended.
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

/// Evaluates for a walk, on a thread that may block. Stops when nobody waits for the walk any more.
pub(crate) struct Blocking {
    pub(crate) evaluators: TeamEvaluators,
    pub(crate) runtime: Handle,
    pub(crate) cancel: CancellationToken,
}

const NOBODY_WAITS: &str = "nobody waits for the move any more";

impl Evaluator for Blocking {
    fn evaluate(&self, job: Job) -> Result<Result<Evaluated, Failed>, String> {
        self.runtime.block_on(async {
            tokio::select! {
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
