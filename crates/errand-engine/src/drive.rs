//! Drives one run: read, decide (`errand-core`), act, commit, until the run waits, ends, or is taken away.
//!
//! # Guarantees
//!
//! The intent of a call that changes something is on disk before the call begins. A model on the network receives
//! nothing that is not on disk.
//!
//! Entries gather in a buffer until the next act, and each commit is one transaction. A commit that is refused as fenced
//! ends the drive at once, because the run was stopped or has another driver.
//!
//! # Non-goals
//!
//! Whether a run may be driven (the store's claims), and how many at once (`dispatch`).

mod calls;
mod spending;
mod turn;

use std::sync::Arc;

use errand_core::budget::Verdict;
use errand_core::config::BuildConfig;
use errand_core::connection::is_tool;
use errand_core::human::{HumanRequest, OnExpire};
use errand_core::id::{ClaimToken, MessageId, SandboxId};
use errand_core::ledger::Ledger;
use errand_core::next::{Next, Rules, next};
use errand_core::policy::{Hints, Policy};
use errand_core::run::{RunError, WaitReason};
use errand_core::time::Timestamp;
use errand_core::tool_error::ToolErrorCode;
use errand_core::transcript::{Body, Entry, NewEntry, Outcome, ToolCall};
use errand_sandbox::Charged;
use errand_store::RevocationListener;
use errand_store::StoreError;
use errand_store::model::{
    CheckedBuild, Claimed, Committed, DrivenRun, LateResults, StepCommit, StepEnd, Usage,
};
use futures::FutureExt as _;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::checked_start::CHECKS_MAX;
use crate::connect::{Offer, OfferFor};
use crate::context::EngineContext;
use crate::model::{self, ModelError, Session, Setup};
use crate::sandboxes::Workspace;
use crate::store_retry::retry_while_unavailable;
use crate::tool::{CallResult, ToolContext, assignment};
use calls::{call_tool, known};

/// Maximum number of entries of pure turns that gather before a commit.
const BUFFERED_ENTRIES_MAX: usize = 64;
/// Maximum time that entries gather, in milliseconds. People see a run's progress with at most this delay.
const BUFFERED_MS_MAX: u64 = 100;
/// The reason for refusing a child run whose build could not be checked in time.
const CHANGES_TOO_OFTEN: &str = "its build changes faster than it can be checked; try again later";

/// Why a drive ended although its run neither waits nor has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    /// The claim is no longer held. Holds the outcomes of tool calls and model calls that had begun.
    #[error("the run was taken from its driver")]
    Fenced(LateResults),
    /// The run cannot continue and fails with this error.
    #[error("{}", .0.message)]
    Fails(RunError),
    /// The driver's task panicked.
    #[error("the driver failed")]
    Panicked,
    #[error("the store failed")]
    Store(#[source] StoreError),
}

impl From<StoreError> for DriveError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Fenced => Self::Fenced(LateResults::default()),
            other => Self::Store(other),
        }
    }
}

impl From<ModelError> for DriveError {
    fn from(error: ModelError) -> Self {
        Self::Fails(RunError::new(error.code, error.message))
    }
}

/// Drives a claimed run until it waits, ends, is taken away, or the server drains.
///
/// `step_ms_max`: maximum duration of a step; after that, the dispatcher takes the run away. `first_commit` is canceled
/// after the first commit.
pub(crate) async fn drive(
    engine: &EngineContext,
    claimed: Claimed,
    step_ms_max: u64,
    (cancel, first_commit): (&CancellationToken, &CancellationToken),
) -> Result<(), DriveError> {
    let (run, claim, revocation) = (claimed.ready.run, claimed.claim, claimed.revocation);
    let run = match claimed.run {
        Some(run) => run,
        None => retry_while_unavailable(engine, || engine.store.driven_run(run, claim)).await?,
    };
    let build = match &run.build {
        Ok(build) => Arc::clone(build),
        Err(bad) => {
            let error = RunError::new("build_unreadable", bad.to_string());
            return Err(DriveError::Fails(error));
        }
    };
    let model = engine
        .models
        .find(&build.model)
        .map_err(|message| DriveError::Fails(RunError::new("model_unavailable", message)))?;
    let Some(sandbox_bytes) = run.sandbox_bytes else {
        let message =
            "the sandbox of the run has expired; start a new run and upload the files again";
        return Err(DriveError::Fails(RunError::new("sandbox_expired", message)));
    };
    let caller = run.entries.first().and_then(|entry| match &entry.body {
        Body::Caller { policies, .. } => Some(policies),
        _ => None,
    });
    let offer_for = OfferFor {
        team: run.team,
        build: &build,
        caller,
        own: &engine.tools,
    };
    let offer = Offer::of(&engine.connections, offer_for).await?;
    let mut session = model.session(Setup {
        run: run.id,
        team: run.team,
        build: &build,
        tools: &|| offers(engine, &offer),
    })?;
    let mut ledger = Ledger::default();
    for entry in &run.entries {
        session.feed(entry);
        ledger.feed(entry);
    }
    let is_open = |id: &str| ledger.open.iter().any(|open| open.call.id == id);
    engine.connections.begin_drive(run.id, claim, is_open).await;
    let mut driver = Driver {
        engine,
        offer,
        offer_for,
        claim,
        step_ms_max,
        cancel,
        first_commit,
        revocation,
        known: ledger.position,
        ledger,
        session,
        build: &build,
        buffer: Buffer::default(),
        workspace: None,
        step: run.step,
        sandbox: run.sandbox.clone(),
        sandbox_bytes,
        run: &run,
        steps: run.steps,
        tokens: run.tokens + run.below.tokens,
        cost_usd: run.cost_usd + run.below.cost_usd,
    };
    match driver.go().await {
        // The buffer holds work that is not on disk yet; it is committed together with the failure.
        Err(DriveError::Fails(error)) => driver.fail(error).await,
        Err(DriveError::Fenced(mut left)) => {
            let calls = spending::model_calls(&driver.buffer.entries);
            left.model_calls.extend(calls);
            Err(DriveError::Fenced(left))
        }
        ended => ended,
    }
}

/// Entries and counts for the next commit.
#[derive(Default)]
struct Buffer {
    entries: Vec<NewEntry>,
    /// When the first entry was added.
    since: Option<Timestamp>,
    usage: Usage,
    turn: bool,
    sandbox: Option<SandboxId>,
}

impl Buffer {
    /// Whether the buffer must be committed now, because of its age or its size.
    fn is_full(&self, now: Timestamp) -> bool {
        self.entries.len() >= BUFFERED_ENTRIES_MAX
            || self
                .since
                .is_some_and(|since| now.ms_since(since) >= BUFFERED_MS_MAX)
    }
}

/// The tools that the model is offered: those of the build first, then those of its connections.
fn offers(engine: &EngineContext, offer: &Offer) -> Vec<model::Offer> {
    let (of_connections, own): (Vec<_>, Vec<_>) = offer.names().partition(|name| is_tool(name));
    let own = own.into_iter().filter_map(|name| engine.tools.get(name));
    let of_connections = of_connections
        .into_iter()
        .filter_map(|name| offer.get(name));
    own.chain(of_connections)
        .map(|tool| model::Offer {
            name: tool.name().to_owned(),
            description: tool.description().to_owned(),
            schema: tool.schema(),
        })
        .collect()
}

struct Driver<'a> {
    engine: &'a EngineContext,
    run: &'a DrivenRun,
    build: &'a BuildConfig,
    claim: ClaimToken,
    step_ms_max: u64,
    cancel: &'a CancellationToken,
    /// Canceled by the first commit. A run that is driven alone then no longer blocks other runs.
    first_commit: &'a CancellationToken,
    revocation: RevocationListener,
    session: Box<dyn Session>,
    /// The tools that the run can call.
    offer: Offer,
    offer_for: OfferFor<'a>,
    ledger: Ledger,
    /// Position of the last entry on disk that this driver knows.
    known: u64,
    step: u64,
    buffer: Buffer,
    sandbox: Option<SandboxId>,
    /// Recorded size of the sandbox when the run was claimed.
    sandbox_bytes: u64,
    workspace: Option<Workspace>,
    steps: u64,
    /// Including child runs.
    tokens: u64,
    /// Including child runs.
    cost_usd: f64,
}

impl Driver<'_> {
    async fn go(&mut self) -> Result<(), DriveError> {
        loop {
            if self.engine.draining.is_cancelled() {
                return self.commit(StepEnd::Release).await.map(drop);
            }
            // A connection's floor that was raised applies from the next call on.
            let connections = &self.engine.connections;
            let refresh = self.offer.refresh(connections, self.offer_for);
            if refresh.await? {
                let offered = offers(self.engine, &self.offer);
                self.session.offer(offered);
            }
            let mut what = self.decide();
            if let (Next::Calls(calls), Some(most)) = (&mut what, self.build.limits.steps) {
                let used =
                    self.steps + self.buffer.usage.model_calls + self.buffer.usage.tool_calls;
                let room = usize::try_from(most.saturating_sub(used)).unwrap_or(usize::MAX);
                calls.truncate(room.max(1));
            }
            // Checked before the step that would exceed a limit, not after the money is spent.
            match self.room_for(&what).await? {
                Verdict::Within => {}
                Verdict::Ask(draft) => {
                    // A limit request that nobody answers is denied, even if the build's `on_expire` is `continue`.
                    let expires = self.build.human_requests.expires_in_ms;
                    what = Next::Ask(Box::new(draft.or_defaults(expires, OnExpire::Deny)));
                }
                Verdict::Fail(error) => return self.fail(error).await,
            }
            let goes_on = match what {
                Next::Model => {
                    let span = self.turn_span();
                    self.model_turn().instrument(span).await?
                }
                Next::Calls(calls) => self.execute_calls(calls).await?,
                Next::LookUp(open) => self.look_up(open).await?,
                Next::Answer(body) => {
                    self.push(body);
                    true
                }
                Next::Ask(draft) => {
                    let now = self.now();
                    let request =
                        HumanRequest::new(self.engine.ids.human_request(now), *draft, now);
                    self.push(Body::HumanRequest {
                        request: request.clone(),
                        mark: None,
                    });
                    self.commit(StepEnd::Ask(Box::new(request))).await?
                }
                Next::Timer(until) if until <= self.now() => {
                    self.push(Body::Woke { until });
                    true
                }
                Next::Timer(until) => self.commit(self.sleep(until)).await?,
                Next::Reply(open, resolution) => self.reply(&open, &resolution).await?,
                // Not reached: the store does not let a run that waits for a person be claimed.
                Next::Person => self.commit(StepEnd::Release).await?,
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.engine.clock.now()
    }

    fn decide(&self) -> Next {
        next(
            &self.ledger,
            &Rules {
                hints: &|name| {
                    let of_connection = self.offer.get(name);
                    let own = || {
                        let tool = self.engine.tools.get(name);
                        tool.filter(|_| self.policy(name).is_some())
                    };
                    of_connection.or_else(own).map(|tool| tool.hints())
                },
                policy: &|name| self.policy(name).unwrap_or(Policy::Deny),
                target: &|name| self.tool(name).and_then(|tool| tool.target()),
                human_in_the_loop: self.build.human_in_the_loop,
                claim: self.claim,
                expires_in_ms: self.build.human_requests.expires_in_ms,
                on_expire: self.build.human_requests.on_expire,
            },
        )
    }

    /// The policy of a tool of the run. If people cannot be asked, asking tools are not offered, but still have a policy,
    /// so that a call gets an error that says why.
    fn policy(&self, name: &str) -> Option<Policy> {
        let named = || self.build.tools.get(name).copied();
        self.offer.policy(name).or_else(named)
    }

    /// The end of a step that waits for a timer, or for the next attempt of a model call.
    fn sleep(&self, until: Timestamp) -> StepEnd {
        if self.ledger.failures == 0 {
            return StepEnd::Sleep(until);
        }
        self.ask_again(until)
    }

    fn ask_again(&self, until: Timestamp) -> StepEnd {
        StepEnd::Retry {
            until,
            who: self.build.model.to_string(),
        }
    }

    /// Adds an entry to the buffer, the ledger and the model's session.
    fn push(&mut self, body: Body) {
        let id = self.engine.ids.message(self.now());
        self.push_as(id, body);
    }

    /// Like [`Driver::push`], with an id that was announced before.
    fn push_as(&mut self, id: MessageId, body: Body) {
        let now = self.now();
        let new = NewEntry { id, body };
        // The store assigns the position, and this one is provisional. The code that relies on positions (which message
        // a model has seen) uses only those of messages from outside, which are on disk when they are fed.
        let position = self.ledger.position + 1;
        self.feed(&Entry {
            position,
            id: new.id,
            at: now,
            body: new.body.clone(),
        });
        self.buffer.since = self.buffer.since.or(Some(now));
        self.buffer.entries.push(new);
    }

    fn feed(&mut self, entry: &Entry) {
        let position = self.ledger.position.max(entry.position);
        self.ledger.feed(entry);
        self.ledger.position = position;
        self.session.feed(entry);
    }

    /// Commits the buffer together with the end of the step. Returns whether this driver continues.
    async fn commit(&mut self, end: StepEnd) -> Result<bool, DriveError> {
        let buffer = std::mem::take(&mut self.buffer);
        let own: Vec<_> = buffer.entries.iter().map(|e| e.id).collect();
        self.steps += buffer.usage.model_calls + buffer.usage.tool_calls;
        self.tokens += buffer.usage.input_tokens + buffer.usage.output_tokens;
        self.cost_usd += buffer.usage.cost_usd;
        let now = self.now();
        let workspace = self.workspace.as_ref();
        let mut step = StepCommit {
            run: self.run.id,
            claim: self.claim,
            step: self.step + 1,
            known: self.known,
            entries: buffer.entries,
            end,
            usage: buffer.usage,
            sandbox: buffer.sandbox,
            sandbox_bytes: workspace.and_then(Workspace::bytes_to_record),
            turn: buffer.turn,
            step_deadline: now.plus_ms(self.step_ms_max),
            now,
        };
        let committed = match self.commit_checked(&mut step).await {
            Err(StoreError::Fenced) => return Err(DriveError::Fenced(self.late(&step.entries))),
            answer => answer?,
        };
        if self.step == self.run.step {
            self.first_commit.cancel();
        }
        self.step += 1;
        if let (Some(workspace), Some(bytes)) = (&self.workspace, step.sandbox_bytes) {
            workspace.has_recorded(bytes);
        }
        for entry in &committed.entries {
            self.known = self.known.max(entry.position);
            if !own.contains(&entry.id) {
                self.feed(entry);
            }
        }
        self.ledger.position = self.known;
        if !committed.goes_on && matches!(step.end, StepEnd::Complete { .. } | StepEnd::Fail(_)) {
            self.engine
                .connections
                .end_drive(self.run.id, self.claim, true);
        }
        Ok(committed.goes_on)
    }

    /// Commits a step. If it starts a child run of another build than the one that was checked, checks again, and in the end
    /// refuses the child run, which is a result of the call.
    async fn commit_checked(&self, step: &mut StepCommit) -> Result<Committed, StoreError> {
        let mut checks = 1;
        loop {
            let commit = || self.engine.store.commit_step(step.clone());
            let committed = retry_while_unavailable(self.engine, commit).await;
            match (&mut step.end, &committed) {
                (StepEnd::Child(start), Err(StoreError::BuildChanged { build }))
                    if checks <= CHECKS_MAX =>
                {
                    start.expected_build = if checks < CHECKS_MAX {
                        self.checked_child(start).await?
                    } else {
                        Some(CheckedBuild {
                            id: *build,
                            problem: Some(CHANGES_TOO_OFTEN.to_owned()),
                        })
                    };
                    checks += 1;
                }
                _ => return committed,
            }
        }
    }

    async fn fail(&mut self, error: RunError) -> Result<(), DriveError> {
        for body in self.ledger.close_open("the run failed") {
            self.push(body);
        }
        self.push(Body::Error {
            error: error.clone(),
            mark: None,
        });
        self.commit(StepEnd::Fail(error)).await.map(drop)
    }

    /// The run's sandbox. A run without one gets one with the next commit. Its row is written before its directory is
    /// created, so that a crash leaves no directory without a row.
    fn workspace(&mut self) -> Workspace {
        if let Some(workspace) = &self.workspace {
            return workspace.clone();
        }
        let id = self.sandbox.clone().unwrap_or_else(|| {
            let id = self.engine.ids.sandbox(self.now());
            self.buffer.sandbox = Some(id.clone());
            self.sandbox = Some(id.clone());
            id
        });
        let charged = Charged {
            team: self.run.team,
            bytes: self.sandbox_bytes,
        };
        let workspace = Workspace::new(self.engine.sandboxes.clone(), id, charged);
        self.workspace = Some(workspace.clone());
        workspace
    }

    fn context(&mut self, call: &ToolCall) -> ToolContext {
        let tool = self.tool(&call.name);
        let workspace = tool
            .is_some_and(|tool| tool.in_sandbox())
            .then(|| self.workspace());
        ToolContext {
            arguments: call.arguments.clone(),
            build: self.run.build.as_ref().ok().cloned(),
            run: self.run.id,
            call_id: call.id.clone(),
            workspace,
            parsers: self.engine.parsers.of(self.run.team),
            cancel: self.cancel.child_token(),
            draining: self.engine.draining.clone(),
        }
    }

    fn hints(&self, call: &ToolCall) -> Option<Hints> {
        self.tool(&call.name).map(|tool| tool.hints())
    }

    /// Executes calls. The intent of a call that changes something is committed first.
    async fn execute_calls(&mut self, calls: Vec<ToolCall>) -> Result<bool, DriveError> {
        let contexts: Vec<ToolContext> = calls.iter().map(|call| self.context(call)).collect();
        let (Some(first), Some(context)) = (calls.first(), contexts.first()) else {
            return Ok(true);
        };
        let reads = calls
            .iter()
            .all(|call| self.hints(call).is_some_and(|hints| hints.read_only));
        if first.name == assignment::NAME {
            return self.start_child(first).await;
        }
        // Before the intent is recorded: a call whose secret does not exist has not begun.
        let filled = self.fill(&calls).await;
        if !reads && let Some(Err(error)) = filled.arguments.first() {
            self.push(result_of(first, Outcome::Error(error.clone())));
            return Ok(true);
        }
        if !reads && let Err(error) = self.intend(first, context).await? {
            self.push(result_of(first, Outcome::Error(error)));
            return Ok(true);
        }
        if !reads || self.buffer.sandbox.is_some() {
            self.commit(StepEnd::Go {
                doing: WaitReason::Tool,
                who: Some(first.name.clone()),
            })
            .await?;
        }
        // The run may have been stopped during that commit. The stop has given its caller an answer already, so no call
        // may begin now.
        if self.revocation.revoked().now_or_never().is_some() {
            let not_run = Outcome::error(
                ToolErrorCode::NotRun,
                "the run was taken from its driver before the call began",
            );
            let ids = calls.iter().map(|call| call.id.clone());
            let late = ids.map(|id| (id, not_run.clone()));
            let late = if reads { Vec::new() } else { late.collect() };
            return Err(DriveError::Fenced(late.into()));
        }
        let executions = calls.iter().zip(&contexts).zip(&filled.arguments).map(
            |((call, context), arguments)| {
                let tool = self.tool(&call.name).cloned();
                let secrets = filled.secrets.as_deref();
                let clock = &self.engine.clock;
                let span = calls::span(context.run, tool.as_deref());
                call_tool(clock, call, context, arguments.clone(), tool, secrets).instrument(span)
            },
        );
        let in_progress = join_all(executions);
        tokio::pin!(in_progress);
        let results = tokio::select! {
            biased;
            results = &mut in_progress => results,
            () = self.revocation.revoked() => {
                contexts.iter().for_each(|c| c.cancel.cancel());
                // A call that has begun is awaited: its outcome is recorded, and the sandbox stays reserved until then.
                let outcomes = in_progress.await.into_iter().map(CallResult::into_outcome);
                let ids = calls.iter().map(|call| call.id.clone());
                let late = if reads { Vec::new() } else { ids.zip(outcomes).collect() };
                // A canceled call of a connection may have taken effect at its server.
                let reaches = calls.iter().any(|call| is_tool(&call.name));
                let late = if reaches { known(late) } else { late };
                return Err(DriveError::Fenced(late.into()));
            }
        };
        self.record(calls.iter().cloned().zip(results)).await
    }

    /// The late outcomes in entries that cannot be committed, because the run was taken away.
    fn late(&self, entries: &[NewEntry]) -> LateResults {
        let changes = |name: &str| self.tool(name).is_some_and(|tool| !tool.hints().read_only);
        let results = entries.iter().filter_map(|entry| match &entry.body {
            Body::ToolResult {
                call_id,
                name,
                outcome,
            } if changes(name) => Some((call_id.clone(), outcome.clone())),
            _ => None,
        });
        LateResults {
            outcomes: results.collect(),
            model_calls: spending::model_calls(entries).collect(),
        }
    }
}

/// Whether a tool stopped early because it was canceled.
fn was_canceled(outcome: &Outcome) -> bool {
    let codes = [ToolErrorCode::NotRun, ToolErrorCode::Interrupted];
    matches!(outcome, Outcome::Error(error) if codes.contains(&error.code()))
}

fn result_of(call: &ToolCall, outcome: Outcome) -> Body {
    Body::ToolResult {
        call_id: call.id.clone(),
        name: call.name.clone(),
        outcome,
    }
}
