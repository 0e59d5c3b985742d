//! The store's data as other crates see it: domain types instead of rows, words and JSON.

use std::sync::Arc;

use errand_core::author::By;
use errand_core::budget::Used;
use errand_core::config::{BadConfig, BuildConfig, Left};
use errand_core::content::Content;
use errand_core::effective::CallerPolicies;
use errand_core::event::EventKind;
use errand_core::human::{Answer as HumanAnswer, HumanRequest};
use errand_core::id::{
    AgentId, ApiKeyId, BuildId, ClaimToken, DeliveryId, HumanRequestId, MessageId, RunId,
    SandboxId, TeamId, UserId, WebhookId,
};
use errand_core::role::{Permission, Role};
use errand_core::run::{RunError, RunSource, Status, WaitReason};
use errand_core::time::Timestamp;
use errand_core::transcript::{AttemptOutcome, Entry, ModelCall, NewEntry, Outcome};
use errand_core::warning::Warning;
use errand_core::webhook::DeliveryState;
use errand_core::wire::RunBody;
use serde_json::Value;

pub use crate::agents::BuildChange;
use crate::notify::RevocationListener;
pub use crate::runs::principal::{Principal, RunSlots};
pub use crate::sandboxes::Sandbox;

/// The authenticated caller of an API key, with the role that the key's creator has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub team: TeamId,
    /// Creator of the key.
    pub user: UserId,
    pub api_key: ApiKeyId,
    pub api_key_name: String,
    /// The creator's current role in the team.
    pub role: Role,
    /// When the key expires.
    pub expires_at: Option<Timestamp>,
    /// When the key was last used.
    pub last_used_at: Option<Timestamp>,
}

impl Caller {
    /// Whether the role has this permission.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.role.may(permission)
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Number of items on all pages.
    pub total: u64,
}

/// Limit and offset of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageQuery {
    /// Maximum number of items.
    pub limit: u32,
    /// Number of items to skip.
    pub offset: u64,
}

/// An assignment: a named, versioned configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub id: AgentId,
    pub name: String,
    pub created_at: Timestamp,
    /// When the agent or its live build last changed.
    pub updated_at: Timestamp,
    pub team_id: TeamId,
    /// `None` if it is older than this column.
    pub created_by: Option<Person>,
    /// The last person who changed it or one of its builds.
    pub updated_by: Option<Person>,
}

/// A user, as shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub id: UserId,
    /// `None` for an operator without an address.
    pub email: Option<String>,
}

/// An agent in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentRow {
    pub agent: Agent,
    /// Its newest build, in any state.
    pub latest: Option<Build>,
    /// When its newest run was created.
    pub last_run_at: Option<Timestamp>,
}

/// Whether new runs use a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildState {
    /// New runs use it.
    Live,
    /// It was live before.
    Historic,
    /// It was never live. Promoting makes it live.
    Draft,
}

impl BuildState {
    /// Name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Historic => "historic",
            Self::Draft => "draft",
        }
    }
}

/// An immutable, numbered snapshot of an agent's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Build {
    pub id: BuildId,
    pub agent_id: AgentId,
    /// 1 for the agent's first build.
    pub number: u64,
    pub name: String,
    pub description: Option<String>,
    /// The configuration as it was submitted.
    pub config: Value,
    pub created_by: Option<UserId>,
    pub created_at: Timestamp,
    /// Email address of the creator.
    pub created_by_name: Option<String>,
    pub state: BuildState,
    /// The build that this one was derived from.
    pub parent: Option<BuildId>,
    /// When its name, description or state last changed.
    pub updated_at: Timestamp,
    /// Advice for its author. Not stored: only the operation that creates a build returns it.
    pub warnings: Vec<Warning>,
}

/// A build before it has a number.
#[derive(Clone, Debug, PartialEq)]
pub struct NewBuild {
    pub id: BuildId,
    pub name: String,
    pub description: Option<String>,
    /// Already checked by `BuildConfig::parse`.
    pub config: Value,
    pub created_by: UserId,
    /// Whether new runs use it only after it was promoted.
    pub draft: bool,
    /// Advice for its author; see [`Build::warnings`].
    pub warnings: Vec<Warning>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct NewAgent {
    pub team: TeamId,
    pub id: AgentId,
    pub name: String,
    /// Its first build.
    pub build: Option<NewBuild>,
    pub created_by: UserId,
    pub now: Timestamp,
}

/// An API key, without the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub name: String,
    /// Its first characters, to recognize it.
    pub prefix: String,
    /// The key has this user's role.
    pub created_by: UserId,
    pub created_at: Timestamp,
    /// Accurate to the minute.
    pub last_used_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
}

/// A run with its pending request, as `GET` returns it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunView {
    pub run: RunBody,
    pub pending: Option<HumanRequest>,
}

/// Filter of a list of runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Any of these; empty means all.
    pub statuses: Vec<Status>,
    pub agent: Option<AgentId>,
    pub source: Option<RunSource>,
    /// Created at or after this time.
    pub since: Option<Timestamp>,
    /// Created before this time.
    pub until: Option<Timestamp>,
    /// A part of the title or of the id. Only the newest 10,000 matches count.
    pub q: Option<String>,
    /// Oldest first.
    pub ascending: bool,
    /// Started by this user, directly or with an API key.
    pub user: Option<UserId>,
    /// No run matches.
    pub none: bool,
}

/// A run in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedRun {
    pub run: RunBody,
    /// The agent's current name.
    pub agent_name: String,
    /// 1 for the agent's first run.
    pub number: u64,
    /// The person who started it.
    pub user: Option<UserId>,
}

/// A bulk operation: selects the runs to stop or retry.
#[derive(Clone, Debug)]
pub struct ManyRuns {
    pub team: TeamId,
    /// Any of these; empty means all that the operation applies to.
    pub statuses: Vec<Status>,
    pub agent: Option<AgentId>,
    pub source: Option<RunSource>,
    /// Created at or after this time.
    pub since: Option<Timestamp>,
    /// Created before this time.
    pub until: Option<Timestamp>,
    /// Maximum number of runs; the oldest come first.
    pub limit: u32,
    /// Only list the matching runs.
    pub dry_run: bool,
    pub by: By,
    pub now: Timestamp,
}

/// Result of [`ManyRuns`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManyRunsDone {
    /// Number of matching runs, at most the limit.
    pub matched: u64,
    pub changed: u64,
    /// Whether more runs match than the limit allows.
    pub more: bool,
    /// The changed runs, or the matching ones for a dry run; oldest first.
    pub runs: Vec<RunId>,
}

/// A build to check.
#[derive(Clone)]
pub struct BuildToCheck {
    pub id: BuildId,
    pub config: Arc<BuildConfig>,
}

impl BuildToCheck {
    /// For callers that need no check.
    #[must_use]
    pub fn usable(&self) -> CheckedBuild {
        CheckedBuild {
            id: self.id,
            problem: None,
        }
    }
}

/// A build that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedBuild {
    pub id: BuildId,
    /// Why its model cannot be used, as a sentence for people. `None`: it can be used.
    pub problem: Option<String>,
}

#[derive(Clone, Debug)]
pub struct StartRun {
    pub team: TeamId,
    pub id: RunId,
    pub agent: AgentId,
    pub source: RunSource,
    /// An existing sandbox to use.
    pub sandbox: Option<SandboxId>,
    /// Receives all events.
    pub webhook_url: Option<String>,
    /// Receives `human_request` events only.
    pub human_request_webhook_url: Option<String>,
    /// First message.
    pub message: Option<(MessageId, String)>,
    /// Whether the first message may contain text from untrusted sources.
    pub untrusted: bool,
    pub by: By,
    pub api_key: Option<ApiKeyId>,
    /// Lifetime of the sandbox, from the setting `sandbox.ttl`.
    pub sandbox_ttl_ms: u64,
    /// The live build as the caller has checked it. `None`: the caller found none.
    pub expected_build: Option<CheckedBuild>,
    pub now: Timestamp,
}

/// A message for a run.
#[derive(Clone, Debug)]
pub struct PostMessage {
    pub team: TeamId,
    pub run: RunId,
    pub id: MessageId,
    /// At least one character.
    pub text: String,
    /// Whether it may contain text from untrusted sources.
    pub untrusted: bool,
    pub by: By,
    pub now: Timestamp,
}

/// A response to a human request.
#[derive(Clone, Debug)]
pub struct Respond {
    pub team: TeamId,
    pub run: RunId,
    pub request: HumanRequestId,
    pub answer: HumanAnswer,
    pub by: By,
    pub now: Timestamp,
}

/// An event of a run's stream.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// Sequence number within the run.
    pub seq: u64,
    pub kind: EventKind,
    pub created_at: Timestamp,
    /// The object as `GET` returns it.
    pub data: Value,
}

/// A page of a run's event stream.
#[derive(Clone, Debug, PartialEq)]
pub struct EventPage {
    /// In ascending order.
    pub events: Vec<EventRow>,
    /// The highest sequence number of the run.
    pub last: u64,
    pub ended: bool,
    /// The page is empty because the next event alone exceeds its size. That event is returned with `whole`.
    pub large: bool,
}

/// A run that was claimed for a driver.
pub struct Claimed {
    pub ready: ReadyRun,
    /// The token of this claim.
    pub claim: ClaimToken,
    /// Notified when the run is taken from its driver, from the commit of the claim on.
    pub revocation: RevocationListener,
    /// The run's data for the driver. `None` if the transcript is long; the driver then reads it itself.
    pub run: Option<DrivenRun>,
}

/// Result of a claim.
#[derive(Default)]
pub struct Claims {
    /// In the order in which they were claimed.
    pub runs: Vec<Claimed>,
    /// Whether no other run wants a driver.
    pub all: bool,
    /// Runs that need to be driven alone, with no other run at the same time; see [`crate::Store::claim_alone`].
    pub suspects: Vec<ReadyRun>,
    /// Whether other runs want a driver but may not use the free slots, which are reserved for other principals.
    pub held_back: bool,
    /// The next deadline; see [`crate::Store::next_moment`].
    pub moment: Option<Timestamp>,
}

/// A run's data for its driver.
#[derive(Clone)]
pub struct DrivenRun {
    pub id: RunId,
    pub team: TeamId,
    /// Its build, or why that cannot be used.
    pub build: Result<Arc<BuildConfig>, BadConfig>,
    /// Number of the last committed step.
    pub step: u64,
    pub sandbox: Option<SandboxId>,
    /// Bytes that the sandbox has on record. None: it has expired.
    pub sandbox_bytes: Option<u64>,
    /// Model and tool calls so far.
    pub steps: u64,
    /// Input and output tokens so far.
    pub tokens: u64,
    /// US dollars so far.
    pub cost_usd: f64,
    /// Usage of all runs below it so far, at all depths.
    pub below: Used,
    /// The whole transcript.
    pub entries: Vec<Entry>,
}

/// How a step ends.
#[derive(Clone, Debug)]
pub enum StepEnd {
    /// The run continues with a model or tool call.
    Go {
        /// The reason to wait: its model or a tool.
        doing: WaitReason,
        /// Name of the tool.
        who: Option<String>,
    },
    /// The run asks a person. The entry of the request is among the step's entries.
    Ask(Box<HumanRequest>),
    /// The run releases its slot and sleeps until this time.
    Sleep(Timestamp),
    /// The run releases its slot and waits until its model can be asked again.
    Retry {
        /// When to ask again.
        until: Timestamp,
        /// The model.
        who: String,
    },
    /// The run starts a child run for a call, releases its slot and waits. If the child has already ended, the run
    /// continues with its result.
    Child(Box<StartChild>),
    /// The run is completed, unless a user's message arrived after `read_to`: then it continues.
    Complete {
        /// Position of the last entry that the last model call has seen.
        read_to: u64,
    },
    /// The run fails. The entry of the error is among the step's entries.
    Fail(RunError),
    /// The driver stops, for example because the server does. Another driver continues.
    Release,
}

/// A child run to start for a call.
#[derive(Clone, Debug)]
pub struct StartChild {
    pub call_id: String,
    /// Id for the child run, unless the call has already started one.
    pub id: RunId,
    /// Id or name of the assignment.
    pub assignment: String,
    /// Assignments that the caller's build may start.
    pub allowed: Vec<AgentId>,
    /// First message.
    pub message: Option<(MessageId, String)>,
    /// Content that the caller has read so far. Untrusted content may have shaped everything that the caller says from then
    /// on.
    pub content: Content,
    /// Policies of the caller's tools.
    pub policies: CallerPolicies,
    /// The remaining part of the caller's limits.
    pub left: Left,
    /// The assignment's live build, limited by `left`, as the caller has checked it. `None`: the caller found none.
    pub expected_build: Option<CheckedBuild>,
    /// Whether people may be asked. The caller's own requirement applies to its child runs too.
    pub human_in_the_loop: bool,
}

/// One step of a run, committed in one transaction.
#[derive(Clone, Debug)]
pub struct StepCommit {
    pub run: RunId,
    /// The driver's claim.
    pub claim: ClaimToken,
    /// Number of this step: the last one plus one.
    pub step: u64,
    /// Position of the last entry that the driver knows.
    pub known: u64,
    /// Entries to append.
    pub entries: Vec<NewEntry>,
    /// How the step ends.
    pub end: StepEnd,
    /// Usage of the step.
    pub usage: Usage,
    /// A new sandbox that the run takes with this step.
    pub sandbox: Option<SandboxId>,
    /// Bytes that the run's sandbox holds, where they are to be recorded.
    pub sandbox_bytes: Option<u64>,
    /// Whether the entries are a model's turn. The search for open calls begins here.
    pub turn: bool,
    /// Deadline of the following step.
    pub step_deadline: Timestamp,
    pub now: Timestamp,
}

/// Resources that a step used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub model_calls: u64,
    pub tool_calls: u64,
    /// Tokens sent to the model.
    pub input_tokens: u64,
    /// The part of `input_tokens` that came from the provider's cache.
    pub cached_tokens: u64,
    /// Tokens received from the model.
    pub output_tokens: u64,
    /// US dollars, as far as prices are known.
    pub cost_usd: f64,
    /// Tokens without a known price.
    pub unpriced_tokens: u64,
    /// Tokens of calls that the provider did not count, or not completely.
    pub estimated_tokens: u64,
    /// Milliseconds spent waiting for network models.
    pub model_ms: u64,
}

impl Usage {
    /// Usage of a model call. `answered`: it gave an answer. A call without an answer is not counted as a call, but
    /// its tokens are.
    #[must_use]
    pub fn of_call(call: &ModelCall, answered: bool) -> Self {
        let all = call.input_tokens.saturating_add(call.output_tokens);
        Self {
            model_calls: u64::from(answered),
            input_tokens: call.input_tokens,
            cached_tokens: call.cached_tokens,
            output_tokens: call.output_tokens,
            cost_usd: call.cost_usd,
            unpriced_tokens: if call.unpriced { all } else { 0 },
            estimated_tokens: if call.estimated { all } else { 0 },
            model_ms: call.ms,
            ..Self::default()
        }
    }

    /// Adds another usage to this one.
    pub fn add(&mut self, more: &Self) {
        self.model_calls += more.model_calls;
        self.tool_calls += more.tool_calls;
        self.input_tokens += more.input_tokens;
        self.cached_tokens += more.cached_tokens;
        self.output_tokens += more.output_tokens;
        self.cost_usd += more.cost_usd;
        self.unpriced_tokens += more.unpriced_tokens;
        self.estimated_tokens += more.estimated_tokens;
        self.model_ms += more.model_ms;
    }
}

/// Unrecorded results of a driver whose run was taken from it.
#[derive(Clone, Debug, Default)]
pub struct LateResults {
    /// Outcomes of calls that it had begun, by call id.
    pub outcomes: Vec<(String, Outcome)>,
    /// Model calls that cost money and are not recorded yet.
    pub model_calls: Vec<ModelCall>,
}

impl From<Vec<(String, Outcome)>> for LateResults {
    fn from(outcomes: Vec<(String, Outcome)>) -> Self {
        Self {
            outcomes,
            ..Self::default()
        }
    }
}

/// Result of a committed step.
#[derive(Clone, Debug)]
pub struct Committed {
    /// All entries after the driver's `known`, including its own, in order.
    pub entries: Vec<Entry>,
    /// Whether the run continues under this claim.
    pub goes_on: bool,
}

/// A run that is queued for a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyRun {
    pub team: TeamId,
    /// On whose behalf it runs. Slots are shared fairly among principals.
    pub principal: Principal,
    pub run: RunId,
}

/// Serializes deliveries: at most one of a lane is in flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// A run's events to one URL: those to another URL do not wait for it.
    Run(RunId, String),
    /// A test's only delivery, by its number.
    Alone(i64),
}

/// A delivery that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueDelivery {
    pub number: i64,
    pub delivery: DeliveryId,
    /// Id of the event, sent as `webhook-id`.
    pub id: uuid::Uuid,
    /// `None` for a test delivery.
    pub run: Option<RunId>,
    pub team: TeamId,
    /// Scheme, host and port of the URL.
    pub receiver: String,
    pub url: String,
    /// The body, fixed when the event was committed.
    pub body: Vec<u8>,
    /// When the current schedule began: with the event, or when the delivery was sent again.
    pub begun_at: Timestamp,
    /// Attempts so far.
    pub attempts: u32,
    /// The part of `attempts` that was made before the current schedule.
    pub attempts_before: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRow {
    /// 1 for the first attempt.
    pub attempt: u32,
    pub at: Timestamp,
    pub duration_ms: u64,
    /// Status code of the receiver's response.
    pub status: Option<u16>,
    /// Why there was no response, or what was wrong with it.
    pub error: Option<String>,
    /// The first bytes of the response, as text.
    pub answer: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    pub delivery: DeliveryId,
    /// Id of the event, sent as `webhook-id`.
    pub id: uuid::Uuid,
    /// Name of the event.
    pub event: String,
    /// `None` for a test delivery.
    pub run: Option<RunId>,
    /// The team's webhook that it goes to. `None`: it goes to the run's own URL.
    pub webhook: Option<WebhookId>,
    /// Sequence number of the event in the run.
    pub sequence: u64,
    pub url: String,
    /// The exact body: JSON.
    pub body: Vec<u8>,
    /// When the event happened.
    pub created_at: Timestamp,
    pub state: DeliveryState,
    /// When the next attempt is due.
    pub due_at: Option<Timestamp>,
    pub attempts: Vec<AttemptRow>,
}

/// Result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryEnd {
    Delivered,
    /// The receiver wants no more deliveries (status 410). If it is a team's webhook, it is disabled.
    Gone,
    /// Try again at this time.
    Again(Timestamp),
    /// The three days for retries have passed.
    Exhausted,
}

/// A call of a network model in a run's transcript.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCallRow {
    /// Position in the transcript.
    pub position: u64,
    /// When it was committed.
    pub at: Timestamp,
    pub call: ModelCall,
    /// How and why it failed, if it did.
    pub failed: Option<(AttemptOutcome, String)>,
}

/// A team's settings of a model provider, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderRow {
    /// The provider's name in model names.
    pub name: String,
    /// Which protocol it speaks.
    pub kind: String,
    /// `None`: the provider's default address.
    pub base_url: Option<String>,
    pub has_key: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A team's settings of a model provider, with the key. Deliberately without `Debug`.
#[derive(Clone)]
pub struct ProviderSetting {
    /// Which protocol it speaks.
    pub kind: String,
    /// `None`: the provider's default address.
    pub base_url: Option<String>,
    pub key: Option<String>,
}

/// Provider settings to store. Deliberately without `Debug`, because it contains a key.
#[derive(Clone)]
pub struct PutProvider {
    pub team: TeamId,
    /// The provider's name in model names.
    pub name: String,
    /// `anthropic`, `openai`, `gemini` or `openai_compatible`.
    pub kind: String,
    /// `None`: the provider's default address.
    pub base_url: Option<String>,
    /// `None`: keep the stored key.
    pub key: Option<String>,
    pub now: Timestamp,
}
