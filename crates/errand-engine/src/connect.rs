//! Connections: MCP servers whose tools runs can call.
//!
//! # Guarantees
//!
//! - A session serves one run and one connection, so that no data of one run reaches another. It is closed when it is
//!   idle, when its run has ended, and when the connection was changed. If a server was lost, the next call opens a new
//!   session.
//! - A tool is called only if its description is the same as when the connection was probed: a server cannot replace a
//!   tool by another under the same name.
//! - Everything from a server is untrusted data ([`form`], [`handler`]). Its hints only set the defaults that an admin
//!   confirmed with the probe.
//! - A call ends with its result, at its time limit, or with its run. If it is cut off, its outcome is unknown and is
//!   settled as after a crash ([`CallResult::Lost`]).
//!
//! # Non-goals
//!
//! Policies and settling calls (`errand_core::next`), and filling in and masking the secrets of a call's arguments
//! (`drive`).

mod call;
mod form;
mod handler;
mod offer;
mod open;
mod probe;
mod sign_in;
mod why;

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use errand_core::id::{ClaimToken, ConnectionId, RunId};
use errand_core::time::Timestamp;
use errand_sandbox::exec::SandboxExec;
use errand_store::{Connection, Store};
use rmcp::service::{Peer, RoleClient};
use tokio_util::sync::CancellationToken;

pub use call::ConnectionTool;
pub use offer::{Offer, OfferFor};
pub use sign_in::{BegunBy, SignIn, SignInUnderWay};

use crate::clock::Clock;
use crate::net::Guard;
use crate::progress::{Note, Progress};
use crate::secrets::Secrets;
use call::Parked;
use handler::{Handler, Inbox};
use open::Reached;
use sign_in::SignIns;

/// How a program is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Like commands in a sandbox, but with network access.
    Sandbox,
    /// Not at all: the program runs with the server's own rights, by the operator's choice.
    None,
}

/// A program that the operator has declared as an MCP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StdioServer {
    /// The path of the program.
    pub command: String,
    pub args: Vec<String>,
    /// Environment variables, in addition to a minimal environment.
    pub env: BTreeMap<String, String>,
    /// The only variables that a team may set. Many programs can be made to run other code through a variable.
    pub team_env: Vec<String>,
    pub isolation: Isolation,
    /// Host paths that an isolated program can read.
    pub read_only: Vec<String>,
}

/// The parameters of [`Connections::new`].
pub struct ConnectionsSetup {
    pub store: Store,
    pub clock: Clock,
    /// Checks the addresses of servers.
    pub guard: Guard,
    /// The programs that may be started, by name.
    pub declared: BTreeMap<String, StdioServer>,
    /// Isolates programs. The error is the reason why isolation is unavailable.
    pub exec: Result<Arc<dyn SandboxExec>, String>,
    /// The time limit of a call.
    pub call_time: Duration,
    /// How long an unused session is kept.
    pub idle: Duration,
    /// Receives progress notes of calls.
    pub progress: Progress,
}

/// All sessions of all connections. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

/// The shared state of [`Connections`].
pub struct Inner {
    store: Store,
    clock: Clock,
    guard: Guard,
    client: OnceLock<reqwest::Client>,
    declared: BTreeMap<String, StdioServer>,
    exec: Result<Arc<dyn SandboxExec>, String>,
    call_time: Duration,
    idle: Duration,
    progress: Progress,
    sessions: Mutex<HashMap<(RunId, ConnectionId), Arc<Slot>>>,
    /// The current claim of each driven run, so that an old driver that finishes late does not close the new driver's
    /// sessions.
    drivers: Mutex<HashMap<RunId, ClaimToken>>,
    sign_ins: SignIns,
    /// Cancelled when the server stops or crashes.
    ended: CancellationToken,
}

/// Holds the session of one run with one connection. The lock ensures that only one is opened at a time.
#[derive(Default)]
struct Slot {
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    /// Consecutive calls during which the server was lost.
    lost: std::sync::atomic::AtomicU32,
}

/// A session with an MCP server.
struct Session {
    peer: Peer<RoleClient>,
    /// `None` after the session was closed.
    reached: tokio::sync::Mutex<Option<Reached>>,
    inbox: Arc<Inbox>,
    /// The `updated_at` of the connection when the session was opened.
    version: Timestamp,
    /// The digests of the tools that the server offers now, by offered name.
    offers: Mutex<BTreeMap<String, String>>,
    /// The call id for each progress token.
    tokens: Arc<Mutex<HashMap<String, String>>>,
    /// Calls for which the server waits for a person's answer, by call id.
    parked: Mutex<HashMap<String, Parked>>,
    used_at: Mutex<Timestamp>,
    secrets: Arc<Secrets>,
}

impl Deref for Connections {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    #[must_use]
    pub fn new(setup: ConnectionsSetup) -> Self {
        Self(Arc::new(Inner {
            client: OnceLock::new(),
            store: setup.store,
            clock: setup.clock,
            guard: setup.guard,
            declared: setup.declared,
            exec: setup.exec,
            call_time: setup.call_time,
            idle: setup.idle,
            progress: setup.progress,
            sessions: Mutex::default(),
            drivers: Mutex::default(),
            sign_ins: SignIns::default(),
            ended: CancellationToken::new(),
        }))
    }

    /// Connections without declared programs and private networks, for programs that do not configure any.
    #[must_use]
    pub fn none(store: Store, clock: Clock) -> Self {
        Self::new(ConnectionsSetup {
            store,
            clock,
            guard: Guard::new(false, "connections.allow_private_networks"),
            declared: BTreeMap::new(),
            exec: Err("no isolation was looked for".to_owned()),
            call_time: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            progress: Progress::default(),
        })
    }

    pub fn declared(&self) -> impl Iterator<Item = &str> {
        self.declared.keys().map(String::as_str)
    }

    /// The first of these variables that a team may not set for a program. For an undeclared program, no variable may
    /// be set.
    #[must_use]
    pub fn not_for_teams<'e>(
        &self,
        command: &str,
        env: &'e BTreeMap<String, String>,
    ) -> Option<&'e str> {
        let server = self.declared.get(command);
        let may = |name: &String| {
            server.is_some_and(|s| s.team_env.contains(name) && !s.env.contains_key(name))
        };
        env.keys().find(|name| !may(name)).map(String::as_str)
    }

    /// The HTTP client, created on first use.
    fn client(&self) -> Result<reqwest::Client, String> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let made = self.guard.streaming_client();
        let made = made.map_err(|error| errand_core::error_chain::error_chain(&error))?;
        Ok(self.client.get_or_init(|| made).clone())
    }

    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    fn exec(&self) -> Result<&Arc<dyn SandboxExec>, &str> {
        self.exec.as_ref().map_err(String::as_str)
    }

    fn slot(&self, run: RunId, connection: ConnectionId) -> Arc<Slot> {
        let mut sessions = locked(&self.sessions);
        Arc::clone(sessions.entry((run, connection)).or_default())
    }

    /// Returns the session of a run with a connection, and opens one if there is no usable one.
    async fn session(
        &self,
        run: RunId,
        connection: &Connection,
    ) -> Result<(Arc<Session>, Arc<Slot>), String> {
        let slot = self.slot(run, connection.id);
        let mut held = slot.session.lock().await;
        if let Some(session) = held.as_ref() {
            let usable =
                session.version == connection.updated_at && !session.peer.is_transport_closed();
            if usable {
                return Ok((Arc::clone(session), Arc::clone(&slot)));
            }
            // The connection was changed. The old server must not receive what is meant for the new one.
            let waits = !locked(&session.parked).is_empty();
            if waits && !session.peer.is_transport_closed() {
                return Err("it was changed while another of its calls waits for a person's answer; answer that first".to_owned());
            }
        }
        if let Some(old) = held.take() {
            // Closed in the background: a server that does not respond must not delay the new session.
            tokio::spawn(async move { old.close().await });
        }
        let opened = Arc::new(self.reach(Some(run), connection).await?);
        *held = Some(Arc::clone(&opened));
        drop(held);
        Ok((opened, slot))
    }

    /// Opens a session. `run`: the run whose subscribers receive progress notes.
    async fn reach(&self, run: Option<RunId>, connection: &Connection) -> Result<Session, String> {
        let secrets = Secrets::of(&self.store, connection.team).await;
        let secrets = Arc::new(secrets.map_err(|error| {
            tracing::error!(connection.id = %connection.id, error = &error as &dyn std::error::Error, "the team's secrets cannot be opened");
            "the team's secrets cannot be opened; the log of the server says why".to_owned()
        })?);
        let (inbox, tokens) = (
            Arc::<Inbox>::default(),
            Arc::<Mutex<HashMap<_, _>>>::default(),
        );
        let handler = Handler {
            inbox: Arc::clone(&inbox),
            hears: self.hears(run, &tokens, &secrets),
        };
        let reached = open::open(self, connection, &secrets, handler).await?;
        Ok(Session {
            peer: reached.running.peer().clone(),
            reached: tokio::sync::Mutex::new(Some(reached)),
            inbox,
            version: connection.updated_at,
            offers: Mutex::default(),
            tokens,
            parked: Mutex::default(),
            used_at: Mutex::new(self.clock.now()),
            secrets,
        })
    }

    fn hears(
        &self,
        run: Option<RunId>,
        tokens: &Arc<Mutex<HashMap<String, String>>>,
        secrets: &Arc<Secrets>,
    ) -> handler::Hears {
        let (progress, clock) = (self.progress.clone(), self.clock.clone());
        let (tokens, secrets) = (Arc::clone(tokens), Arc::clone(secrets));
        Arc::new(move |note: handler::Progress| {
            let call = locked(&tokens).get(&note.token.0.to_string()).cloned();
            if let (Some(run), Some(call_id)) = (run, call) {
                progress.publish(run, || Note {
                    call_id,
                    at: clock.now(),
                    progress: note.progress,
                    total: note.total,
                    message: note.message.map(|text| secrets.mask(&text)),
                });
            }
        })
    }

    /// Closes the sessions of a run that has ended or was taken from its driver. Calls that wait for a person's answer
    /// are cancelled.
    pub fn close_run(&self, run: RunId) {
        let mut sessions = locked(&self.sessions);
        let of_run: Vec<_> = sessions
            .keys()
            .filter(|(of, _)| *of == run)
            .copied()
            .collect();
        for key in of_run {
            if let Some(slot) = sessions.remove(&key) {
                // Closed in the background, because closing waits for the server and this function must not.
                tokio::spawn(close(slot));
            }
        }
    }

    /// Registers a new driver as the owner of the run's sessions. Cancels calls that wait for a person's answer but
    /// were closed in the meantime. `open`: whether a call of the run is still open.
    pub async fn begin_drive(&self, run: RunId, claim: ClaimToken, open: impl Fn(&str) -> bool) {
        locked(&self.drivers).insert(run, claim);
        self.keep_only(run, open).await;
    }

    /// Unregisters a driver. `closes`: also close the run's sessions, unless a newer driver has taken them over.
    pub fn end_drive(&self, run: RunId, claim: ClaimToken, closes: bool) {
        let is_anothers = {
            let mut drivers = locked(&self.drivers);
            let driver = drivers.get(&run).copied();
            if driver == Some(claim) {
                drivers.remove(&run);
            }
            driver.is_some_and(|driver| driver != claim)
        };
        if closes && !is_anothers {
            self.close_run(run);
        }
    }

    async fn keep_only(&self, run: RunId, open: impl Fn(&str) -> bool) {
        let slots: Vec<_> = {
            let sessions = locked(&self.sessions);
            let of_run = sessions.iter().filter(|((of, _), _)| *of == run);
            of_run.map(|(_, slot)| Arc::clone(slot)).collect()
        };
        for slot in slots {
            let session = slot.session.lock().await.clone();
            let Some(session) = session else { continue };
            let closed: Vec<Parked> = {
                let mut parked = locked(&session.parked);
                let ids: Vec<_> = parked.keys().filter(|id| !open(id)).cloned().collect();
                ids.iter().filter_map(|id| parked.remove(id)).collect()
            };
            for parked in closed {
                parked
                    .call_off(&session, "the run went on without an answer")
                    .await;
            }
        }
    }

    /// Closes idle sessions periodically. Never returns; runs beside the engine.
    pub async fn close_idle(self) {
        // Half of the idle time, but at least a second, so that a session is closed after at most one and a half times
        // the idle time.
        let pause_ms = u64::try_from(self.idle.as_millis())
            .unwrap_or(u64::MAX)
            .max(2_000)
            / 2;
        loop {
            self.clock.sleep_ms(pause_ms).await;
            self.close_idle_now();
        }
    }

    fn close_idle_now(&self) {
        let now = self.clock.now();
        let idle_ms = u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX);
        let mut sessions = locked(&self.sessions);
        let idle: Vec<_> = sessions
            .iter()
            .filter(|(_, slot)| {
                // A locked slot is in use.
                slot.session.try_lock().is_ok_and(|held| {
                    held.as_ref()
                        .is_none_or(|session| session.is_idle(now, idle_ms))
                })
            })
            .map(|(key, _)| *key)
            .collect();
        for key in idle {
            if let Some(slot) = sessions.remove(&key) {
                tokio::spawn(close(slot));
            }
        }
    }

    #[must_use]
    pub fn open_sessions(&self) -> usize {
        locked(&self.sessions).len()
    }

    /// Ends immediately without closing sessions, to simulate a crash.
    pub(crate) fn abort(&self) {
        self.ended.cancel();
        locked(&self.sessions).clear();
    }

    /// Closes all sessions, for an orderly shutdown.
    pub async fn shut_down(&self) {
        self.ended.cancel();
        let all: Vec<_> = locked(&self.sessions)
            .drain()
            .map(|(_, slot)| slot)
            .collect();
        futures::future::join_all(all.into_iter().map(close)).await;
    }
}

async fn close(slot: Arc<Slot>) {
    let session = slot.session.lock().await.take();
    if let Some(session) = session {
        let parked: Vec<Parked> = locked(&session.parked).drain().map(|(_, p)| p).collect();
        for parked in parked {
            parked.call_off(&session, "the run has ended").await;
        }
        session.close().await;
    }
}

impl Session {
    fn is_idle(&self, now: Timestamp, idle_ms: u64) -> bool {
        !self.inbox.is_calling()
            && locked(&self.parked).is_empty()
            && now.ms_since(*locked(&self.used_at)) >= idle_ms
    }

    async fn close(&self) {
        let reached = self.reached.lock().await.take();
        if let Some(reached) = reached {
            reached.close().await;
        }
    }
}

#[cfg(test)]
#[path = "connect/tests.rs"]
mod tests;
