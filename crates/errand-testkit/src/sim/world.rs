//! The knowledge of the outside world: what was sent and answered, which tools began, what receivers got.
//!
//! It survives every crash of the program. The invariants compare the program with it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use errand_core::human::HumanRequest;
use errand_core::id::{HumanRequestId, RunId, SandboxId, TeamId, UserId};
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use url::Url;

use super::clients::Request;
use super::invariants::{Invariant, Violation};
use super::model::Script;
use super::random::Random;
use super::receivers::{Mode, Receipt};
use super::{Options, Sabotage};

/// How many log lines a report of a violation contains.
const RECENT_MAX: usize = 60;

/// The world, shared by tools, models, receivers, clients and the disk.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    state: Mutex<State>,
}

/// A team and its owner.
#[derive(Clone, Copy)]
pub(crate) struct Team {
    pub(crate) id: TeamId,
    pub(crate) owner: UserId,
    pub(crate) key: errand_core::id::ApiKeyId,
}

/// An agent with the facts that invariants need.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) id: errand_core::id::AgentId,
    pub(crate) team: usize,
    pub(crate) script: Script,
    /// Policies by tool. A tool without an entry is denied.
    pub(crate) policies: BTreeMap<&'static str, &'static str>,
    /// The outcome of requests that expire without their own setting.
    pub(crate) on_expire: &'static str,
    /// The limit of active time.
    pub(crate) seconds: u64,
    /// The limit of tokens, which a run shares with those that it starts.
    pub(crate) tokens: Option<u64>,
}

/// A run with the facts that invariants need.
pub(crate) struct Run {
    pub(crate) agent: usize,
    pub(crate) origin: Origin,
    /// The run that started it, or that started the run of which it is a fork.
    pub(crate) caller: Option<RunId>,
    /// A stop was answered, and nothing that could resume the run was sent since.
    pub(crate) halted: bool,
    /// Messages and retries that were sent, and those of them in progress.
    pub(crate) wakes_sent: u64,
    pub(crate) wakes_open: u64,
}

/// The creator of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client's request.
    Request(usize),
    /// A call of another run.
    Call,
}

/// The calls of one tool with the same arguments in a run.
#[derive(Default)]
pub(crate) struct Call {
    /// How often it began.
    pub(crate) begun: u32,
    /// How often its tool looked it up and found it not done.
    pub(crate) found_undone: u32,
    /// Whether it has taken effect.
    pub(crate) done: bool,
    /// The ids of these calls.
    pub(crate) ids: Vec<String>,
}

/// The state of the disk.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) full: bool,
    /// The number of commits until one breaks the store, and whether that one is written nevertheless.
    pub(crate) breaks: Option<(u64, bool)>,
}

/// The world's state, behind a lock.
pub(crate) struct State {
    pub(crate) random: Random,
    pub(crate) healed: bool,
    pub(crate) disk: Disk,
    pub(crate) commits: u64,
    /// Increases with everything that happens, to detect rest.
    pub(crate) activity: u64,
    /// The latest time that the clock has shown.
    pub(crate) latest: Timestamp,
    pub(crate) teams: Vec<Team>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) sandboxes: Vec<(usize, SandboxId)>,
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) requests: Vec<Request>,
    /// Human requests that a client has seen.
    pub(crate) asks: BTreeMap<HumanRequestId, (RunId, HumanRequest)>,
    /// Those about a call, by the call.
    pub(crate) asks_by_call: BTreeMap<(RunId, String), Vec<HumanRequestId>>,
    /// Clients' requests that answer a human request.
    pub(crate) answers: BTreeMap<HumanRequestId, Vec<usize>>,
    pub(crate) calls: BTreeMap<(RunId, String), Call>,
    /// Tokens of all calls of models, by run.
    pub(crate) tokens: BTreeMap<RunId, u64>,
    pub(crate) receivers: Vec<Mode>,
    pub(crate) receipts: Vec<Receipt>,
    /// Webhooks that a defect of the network holds back: URL, id and body.
    pub(crate) delayed: Vec<(Url, String, Bytes)>,
    /// The digest of each webhook's body, by URL and id.
    pub(crate) bodies: BTreeMap<(String, String), [u8; 32]>,
    /// The number of the last event whose first attempt arrived, by URL and run.
    pub(crate) first_attempts: BTreeMap<(String, String), u64>,
    pub(crate) violation: Option<Violation>,
    /// How often each situation occurred.
    pub(crate) seen: BTreeMap<&'static str, u64>,
    holds: BTreeMap<u64, oneshot::Sender<()>>,
    held: u64,
    trace: Sha256,
    recent: VecDeque<String>,
}

impl World {
    pub(crate) fn new(options: Options, clock: Clock) -> Arc<Self> {
        let latest = clock.now();
        Arc::new(Self {
            state: Mutex::new(State {
                random: Random::new(options.seed),
                healed: false,
                disk: Disk::default(),
                commits: 0,
                activity: 0,
                latest,
                teams: Vec::new(),
                agents: Vec::new(),
                sandboxes: Vec::new(),
                runs: BTreeMap::new(),
                requests: Vec::new(),
                asks: BTreeMap::new(),
                asks_by_call: BTreeMap::new(),
                answers: BTreeMap::new(),
                calls: BTreeMap::new(),
                tokens: BTreeMap::new(),
                receivers: Vec::new(),
                receipts: Vec::new(),
                delayed: Vec::new(),
                bodies: BTreeMap::new(),
                first_attempts: BTreeMap::new(),
                violation: None,
                seen: BTreeMap::new(),
                holds: BTreeMap::new(),
                held: 0,
                trace: Sha256::new(),
                recent: VecDeque::new(),
            }),
            options,
            clock,
        })
    }

    /// The lock must not be held across an await or a call of the store.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn sabotages(&self, what: Sabotage) -> bool {
        self.options.sabotage == Some(what)
    }

    /// Adds a line to the trace and to the log for reports.
    pub(crate) fn note(&self, what: &str) {
        let now = self.now();
        self.state().note(now, what);
    }

    /// Reports a violation of an invariant.
    pub(crate) fn broken(&self, invariant: Invariant, detail: impl Into<String>) {
        let now = self.now();
        self.state().broken(now, invariant, detail.into());
    }

    /// Sets the clock, forward or back.
    pub(crate) fn set_clock(&self, to: Timestamp) {
        {
            let mut state = self.state();
            state.latest = state.latest.max(to);
        }
        self.clock.set(to);
    }

    /// Waits until [`World::release_one`] chooses this task, or faults stop.
    pub(crate) async fn hold(&self) {
        let released = {
            let mut state = self.state();
            if state.healed {
                return;
            }
            let (release, released) = oneshot::channel();
            state.holds.retain(|_, hold| !hold.is_closed());
            state.held += 1;
            let number = state.held;
            state.holds.insert(number, release);
            released
        };
        // Dropping the sender releases the task, too.
        let _ = released.await;
    }

    /// Releases a random waiting task; returns false if there is none.
    pub(crate) fn release_one(&self) -> bool {
        let mut state = self.state();
        state.holds.retain(|_, hold| !hold.is_closed());
        if state.holds.is_empty() {
            return false;
        }
        let keys: Vec<u64> = state.holds.keys().copied().collect();
        let number = *state.random.pick(&keys);
        state
            .holds
            .remove(&number)
            .is_some_and(|hold| hold.send(()).is_ok())
    }

    /// Stops all faults and delays from now on.
    pub(crate) fn heal(&self) {
        let holds = {
            let mut state = self.state();
            state.healed = true;
            state.disk = Disk::default();
            for mode in &mut state.receivers {
                *mode = Mode::Answers(200);
            }
            std::mem::take(&mut state.holds)
        };
        drop(holds);
    }

    /// Waits for a time by the clock, or until faults stop.
    pub(crate) async fn linger(&self, ms: u64) {
        tokio::select! {
            biased;
            () = self.clock.sleep_ms(ms) => {}
            () = self.hold() => {}
        }
    }

    /// Yields to other tasks a random number of times.
    pub(crate) async fn give_way(&self) {
        let times = {
            let mut state = self.state();
            state.random.below(4)
        };
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    }
}

impl State {
    pub(crate) fn note(&mut self, now: Timestamp, what: &str) {
        self.activity += 1;
        let line = format!("{now} {what}");
        self.trace(&line);
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    /// Counts a situation.
    pub(crate) fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Adds a line to the trace only.
    pub(crate) fn trace(&mut self, line: &str) {
        self.trace.update(line.as_bytes());
        self.trace.update(b"\n");
    }

    pub(crate) fn broken(&mut self, now: Timestamp, invariant: Invariant, detail: String) {
        self.note(now, &format!("BROKEN {invariant:?}: {detail}"));
        if self.violation.is_none() {
            self.violation = Some(Violation {
                invariant,
                detail,
                last: self.recent.iter().cloned().collect(),
            });
        }
    }

    /// The digest of the trace, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        hex::encode(self.trace.clone().finalize())
    }
}

/// The last characters of an id, enough to recognize it in a log.
pub(crate) fn short(id: impl ToString) -> String {
    let text = id.to_string();
    text[text.len().saturating_sub(6)..].to_owned()
}
