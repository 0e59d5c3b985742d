//! Rows as the rest sees them: domain types, no JSON, no strings for states.

use std::fmt;
use std::sync::Arc;

use errand_core::author::By;
use errand_core::budget::Used;
use errand_core::config::{BadConfig, BuildConfig};
use errand_core::human::{Answer as HumanAnswer, HumanRequest};
use errand_core::id::{
    AgentId, ApiKeyId, BuildId, ClaimToken, DeliveryId, HumanRequestId, MessageId, RunId,
    SandboxId, TeamId, UserId, WebhookId,
};
use errand_core::role::{Permission, Role};
use errand_core::run::{RunError, Status};
use errand_core::time::Timestamp;
use errand_core::transcript::{AttemptOutcome, Entry, ModelCall, NewEntry, Outcome};
use errand_core::warning::Warning;
use errand_core::wire::RunBody;
use serde_json::Value;

pub use crate::agents::BuildChange;
use crate::notify::Fence;
pub use crate::runs::claim_order::{Principal, RunSlots};
pub use crate::sandboxes::Sandbox;

/// Who calls, proved by an API key: with the role that its creator has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The key's team.
    pub team: TeamId,
    /// The key's creator.
    pub user: UserId,
    /// The key.
    pub api_key: ApiKeyId,
    /// The key's name.
    pub api_key_name: String,
    /// The creator's present role in the team.
    pub role: Role,
    /// When the key ends.
    pub expires_at: Option<Timestamp>,
    /// When the key was last seen at work.
    pub last_used_at: Option<Timestamp>,
}

impl Caller {
    /// Whether the role has the right.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.role.may(permission)
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// How many there are in all.
    pub total: u64,
}

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageQuery {
    /// Most entries.
    pub limit: u32,
    /// Entries that are skipped.
    pub offset: u64,
}

/// Configuration by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it, or its live build, last changed.
    pub updated_at: Timestamp,
    /// Whose it is.
    pub team_id: TeamId,
    /// Who made it. None: it is older than this was recorded.
    pub created_by: Option<Person>,
    /// Who last changed it or one of its builds.
    pub updated_by: Option<Person>,
}

/// A user, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The user's id.
    pub id: UserId,
    /// The e-mail address. None: an operator that has none yet.
    pub email: Option<String>,
}

/// An agent as lists have it.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentRow {
    /// The agent.
    pub agent: Agent,
    /// Its newest build, whatever its state.
    pub latest: Option<Build>,
    /// When its newest run was made.
    pub last_run_at: Option<Timestamp>,
}

/// Whether new runs use a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildState {
    /// New runs use it.
    Live,
    /// It was live.
    Historic,
    /// It was never live; promoting it makes it so.
    Draft,
}

impl BuildState {
    /// As the API names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Historic => "historic",
            Self::Draft => "draft",
        }
    }
}

/// An immutable, numbered snapshot of an agent's setup.
#[derive(Clone, Debug, PartialEq)]
pub struct Build {
    /// Its id.
    pub id: BuildId,
    /// Whose.
    pub agent_id: AgentId,
    /// 1 for the agent's first.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// More about it.
    pub description: Option<String>,
    /// As it was given.
    pub config: Value,
    /// By whom.
    pub created_by: Option<UserId>,
    /// When.
    pub created_at: Timestamp,
    /// The e-mail address of who made it.
    pub created_by_name: Option<String>,
    /// Whether new runs use it.
    pub state: BuildState,
    /// The build that it was made of by a change.
    pub parent: Option<BuildId>,
    /// When its name, description or state last changed.
    pub updated_at: Timestamp,
    /// What its author should know. Not stored: only the operation that creates a build gives it back.
    pub warnings: Vec<Warning>,
}

/// A build before it has its number.
#[derive(Clone, Debug, PartialEq)]
pub struct NewBuild {
    /// Its id.
    pub id: BuildId,
    /// Its name.
    pub name: String,
    /// More about it.
    pub description: Option<String>,
    /// Checked by `BuildConfig::parse` before.
    pub config: Value,
    /// By whom.
    pub created_by: UserId,
    /// New runs do not use it until it is promoted.
    pub draft: bool,
    /// What its author should know; see [`Build::warnings`].
    pub warnings: Vec<Warning>,
}

/// An agent before it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NewAgent {
    /// Whose.
    pub team: TeamId,
    /// Its id.
    pub id: AgentId,
    /// Its name.
    pub name: String,
    /// Its first build.
    pub build: Option<NewBuild>,
    /// By whom.
    pub created_by: UserId,
    /// Now.
    pub now: Timestamp,
}

/// An API key, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Its name.
    pub name: String,
    /// Its first characters, to tell it by.
    pub prefix: String,
    /// Whose role it has.
    pub created_by: UserId,
    /// When it was made.
    pub created_at: Timestamp,
    /// To the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// A run as `GET` gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunView {
    /// The run.
    pub run: RunBody,
    /// Its pending request.
    pub pending: Option<HumanRequest>,
}

/// Which runs are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Any of these; empty: all.
    pub statuses: Vec<Status>,
    /// Of this agent.
    pub agent: Option<AgentId>,
    /// From this source.
    pub source: Option<String>,
    /// Made at or after.
    pub since: Option<Timestamp>,
    /// Made before.
    pub until: Option<Timestamp>,
    /// A part of the title, or of the id. Of those that match, the newest 10,000.
    pub q: Option<String>,
    /// Oldest first.
    pub ascending: bool,
    /// Started by this user, by hand or with a key of theirs.
    pub user: Option<UserId>,
    /// No run matches.
    pub none: bool,
}

/// A run as a list has it.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedRun {
    /// The run.
    pub run: RunBody,
    /// The agent's present name.
    pub agent_name: String,
    /// 1 for the agent's first run.
    pub number: u64,
    /// Who started it.
    pub user: Option<UserId>,
}

/// Runs that are stopped, or retried, together.
#[derive(Clone, Debug)]
pub struct ManyRuns {
    /// Whose.
    pub team: TeamId,
    /// Any of these; empty: all that it can concern.
    pub statuses: Vec<Status>,
    /// Of this agent.
    pub agent: Option<AgentId>,
    /// From this source.
    pub source: Option<String>,
    /// Made at or after.
    pub since: Option<Timestamp>,
    /// Made before.
    pub until: Option<Timestamp>,
    /// The oldest so many.
    pub limit: u32,
    /// Only says which they are.
    pub dry_run: bool,
    /// By whom.
    pub by: By,
    /// Now.
    pub now: Timestamp,
}

/// What became of [`ManyRuns`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManyRunsDone {
    /// How many matched, at most the limit.
    pub matched: u64,
    /// How many were changed.
    pub changed: u64,
    /// Whether more match than the limit.
    pub more: bool,
    /// Those that were changed, or would be; the oldest first.
    pub runs: Vec<RunId>,
}

type Check = dyn Fn(&BuildConfig) -> Result<(), String> + Send + Sync;

/// Says whether a build's model can be run here: a sentence where it cannot.
#[derive(Clone)]
pub struct Runnable(pub Arc<Check>);

impl fmt::Debug for Runnable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runnable")
    }
}

/// A run to start.
#[derive(Clone, Debug)]
pub struct StartRun {
    /// Whose.
    pub team: TeamId,
    /// Its id.
    pub id: RunId,
    /// Which agent.
    pub agent: AgentId,
    /// `api`, `web`, `schedule`, `mcp` or `cli`.
    pub source: &'static str,
    /// An existing sandbox.
    pub sandbox: Option<SandboxId>,
    /// Gets all events.
    pub webhook_url: Option<String>,
    /// Gets `human_request` only.
    pub human_request_webhook_url: Option<String>,
    /// A first message.
    pub message: Option<(MessageId, String)>,
    /// Whether strangers may have written it.
    pub untrusted: bool,
    /// By whom.
    pub by: By,
    /// With which API key, if with one.
    pub api_key: Option<ApiKeyId>,
    /// `sandbox.ttl` in milliseconds.
    pub sandbox_ttl_ms: u64,
    /// Whether the build's model can be run here: a sentence where it cannot.
    pub runnable: Runnable,
    /// Now.
    pub now: Timestamp,
}

/// A message to a run.
#[derive(Clone, Debug)]
pub struct PostMessage {
    /// Whose.
    pub team: TeamId,
    /// Which run.
    pub run: RunId,
    /// The message's id.
    pub id: MessageId,
    /// At least one character.
    pub text: String,
    /// Whether strangers may have written it.
    pub untrusted: bool,
    /// By whom.
    pub by: By,
    /// Now.
    pub now: Timestamp,
}

/// An answer to a human request.
#[derive(Clone, Debug)]
pub struct Respond {
    /// Whose.
    pub team: TeamId,
    /// Which run.
    pub run: RunId,
    /// Which request.
    pub request: HumanRequestId,
    /// The answer.
    pub answer: HumanAnswer,
    /// By whom.
    pub by: By,
    /// Now.
    pub now: Timestamp,
}

/// One event of a run's stream.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// Its number in the run.
    pub seq: u64,
    /// `run.updated`, `message.created`, `human_request.created` or `human_request.closed`.
    pub kind: String,
    /// When.
    pub created_at: Timestamp,
    /// The object as `GET` gives it.
    pub data: Value,
}

/// Some events of a run's stream.
#[derive(Clone, Debug, PartialEq)]
pub struct EventPage {
    /// In order.
    pub events: Vec<EventRow>,
    /// The highest number there is.
    pub last: u64,
    /// Whether the run has ended.
    pub ended: bool,
    /// The page is empty because the next event alone is larger than a page: it comes with `whole`.
    pub large: bool,
}

/// A run that was given to a driver.
pub struct Claimed {
    /// Which.
    pub ready: ReadyRun,
    /// The token that its driver has.
    pub claim: ClaimToken,
    /// Hears when the run is taken from its driver, from the claim's commit on.
    pub fence: Fence,
    /// As its driver sees it. None: the transcript is long, and its driver reads it itself.
    pub run: Option<DrivenRun>,
}

/// What a claim gave.
#[derive(Default)]
pub struct Claims {
    /// In the order in which they were taken.
    pub runs: Vec<Claimed>,
    /// Whether these were all that wanted a driver.
    pub all: bool,
    /// Runs that want a driver of their own, with nothing driven beside it; see [`crate::Store::claim_alone`].
    pub suspects: Vec<ReadyRun>,
    /// Whether others want a driver that may not take what is left of the slots: it is kept for others.
    pub held_back: bool,
    /// The next moment at which something happens by the clock; see [`crate::Store::next_moment`].
    pub moment: Option<Timestamp>,
}

/// A run as its driver sees it.
#[derive(Clone)]
pub struct DrivenRun {
    /// Which.
    pub id: RunId,
    /// Whose.
    pub team: TeamId,
    /// Its build; or why that cannot be used.
    pub build: Result<Arc<BuildConfig>, BadConfig>,
    /// The driver's own step number.
    pub step: u64,
    /// Its sandbox, if it has one.
    pub sandbox: Option<SandboxId>,
    /// Bytes that the sandbox has on record. None: it has expired.
    pub sandbox_bytes: Option<u64>,
    /// Steps so far.
    pub steps: u64,
    /// Tokens so far, in and out.
    pub tokens: u64,
    /// US dollars so far.
    pub cost_usd: f64,
    /// What the runs below it have used up so far, all depths together.
    pub below: Used,
    /// The whole transcript.
    pub entries: Vec<Entry>,
}

/// What a step leads to.
#[derive(Clone, Debug)]
pub enum StepEnd {
    /// The run goes on; what it does now.
    Go {
        /// `model` or `tool`.
        doing: &'static str,
        /// The tool's name.
        who: Option<String>,
    },
    /// A person is asked. The request's entry is among the step's entries.
    Ask(Box<HumanRequest>),
    /// It waits for a moment and gives its place back.
    Sleep(Timestamp),
    /// It waits until its model is asked again, and gives its place back.
    Retry {
        /// When.
        until: Timestamp,
        /// The model.
        who: String,
    },
    /// It waits for another run, which is started for a call, and gives its place back; or goes on with what that run
    /// gave, where it has ended.
    Child(Box<crate::runs::children::StartChild>),
    /// It ends well, unless a user's message came after `read_to`: then it goes on.
    Complete {
        /// The position of the last entry that the last model call saw.
        read_to: u64,
    },
    /// It ends with an error. The error's entry is among the step's entries.
    Fail(RunError),
    /// Its driver stops (the server does): another one goes on.
    Release,
}

/// One step of a run: one transaction.
#[derive(Clone, Debug)]
pub struct StepCommit {
    /// Which run.
    pub run: RunId,
    /// Under which claim.
    pub claim: ClaimToken,
    /// The driver's own number of it: one more than the last.
    pub step: u64,
    /// The position of the last entry that the driver knows.
    pub known: u64,
    /// What it appends.
    pub entries: Vec<NewEntry>,
    /// What it leads to.
    pub end: StepEnd,
    /// What it used up.
    pub usage: Usage,
    /// A sandbox that the run takes for its own with this step.
    pub sandbox: Option<SandboxId>,
    /// Bytes that the run's sandbox holds, where they are to be recorded.
    pub sandbox_bytes: Option<u64>,
    /// Whether its entries are a turn of the model: open calls are looked for from here on.
    pub turn: bool,
    /// When the step that follows has taken too long.
    pub step_deadline: Timestamp,
    /// Now.
    pub now: Timestamp,
}

/// What a step used up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Model calls.
    pub model_calls: u64,
    /// Tool calls.
    pub tool_calls: u64,
    /// Tokens sent.
    pub input_tokens: u64,
    /// Of these, from the cache.
    pub cached_tokens: u64,
    /// Tokens that came back.
    pub output_tokens: u64,
    /// US dollars, as far as prices are known.
    pub cost_usd: f64,
    /// Tokens whose price is not known.
    pub unpriced_tokens: u64,
    /// Tokens of calls that the provider did not count, or not all.
    pub estimated_tokens: u64,
    /// Milliseconds spent waiting for network models' answers.
    pub model_ms: u64,
}

impl Usage {
    /// What a model call used up. `answered`: it gave an answer; one that gave none is no call, but counts with its tokens.
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

    /// Adds what something else used up.
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

/// What a driver leaves that a run was taken from.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// What became of calls that it had begun.
    pub outcomes: Vec<(String, Outcome)>,
    /// Model calls that were paid for and are not on record.
    pub model_calls: Vec<ModelCall>,
}

impl From<Vec<(String, Outcome)>> for Left {
    fn from(outcomes: Vec<(String, Outcome)>) -> Self {
        Self {
            outcomes,
            ..Self::default()
        }
    }
}

/// What a committed step gives back.
#[derive(Clone, Debug)]
pub struct Committed {
    /// All entries after the driver's `known`, its own among them, in order.
    pub entries: Vec<Entry>,
    /// Whether the run goes on under this claim.
    pub goes_on: bool,
}

/// A run that wants a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyRun {
    /// Whose.
    pub team: TeamId,
    /// Who started it.
    pub principal: Principal,
    /// Which.
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
    /// Its number.
    pub number: i64,
    /// Its own id.
    pub delivery: DeliveryId,
    /// The event's id: the `webhook-id`.
    pub id: uuid::Uuid,
    /// Of which run. None: a test.
    pub run: Option<RunId>,
    /// Whose.
    pub team: TeamId,
    /// Scheme, host and port of the address: who is called.
    pub receiver: String,
    /// Where to.
    pub url: String,
    /// The body, fixed when the event was committed.
    pub body: Vec<u8>,
    /// When its schedule began: with the event, or when it was sent again.
    pub begun_at: Timestamp,
    /// Attempts so far.
    pub attempts: u32,
    /// Of these, before its present schedule.
    pub attempts_before: u32,
}

/// One attempt of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRow {
    /// 1 for the first.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
    /// How long it took.
    pub duration_ms: u64,
    /// The receiver's status.
    pub status: Option<u16>,
    /// Why there was none, or what was wrong with it.
    pub error: Option<String>,
    /// The first bytes of the receiver's answer, as text.
    pub answer: Option<String>,
}

/// A delivery and its attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its own id.
    pub delivery: DeliveryId,
    /// The event's id: the `webhook-id`.
    pub id: uuid::Uuid,
    /// The event.
    pub event: String,
    /// Of which run. None: a test.
    pub run: Option<RunId>,
    /// To which webhook of the team. None: to the run's own address.
    pub webhook: Option<WebhookId>,
    /// The event's number in the run.
    pub sequence: u64,
    /// Where to.
    pub url: String,
    /// The exact body: JSON.
    pub body: Vec<u8>,
    /// When the event happened.
    pub created_at: Timestamp,
    /// `pending`, `delivered`, `gone`, `exhausted` or `dropped`.
    pub state: String,
    /// When it is due again.
    pub due_at: Option<Timestamp>,
    /// All attempts.
    pub attempts: Vec<AttemptRow>,
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryEnd {
    /// It arrived.
    Delivered,
    /// The receiver wants no more (410). A webhook of the team is disabled with it.
    Gone,
    /// Again at this moment.
    Again(Timestamp),
    /// Three days are over.
    Exhausted,
}

/// A call of a network model, as a run's transcript has it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCallRow {
    /// Its position in the transcript.
    pub position: u64,
    /// When it was committed.
    pub at: Timestamp,
    /// What is known of it.
    pub call: ModelCall,
    /// Why it gave no answer, where it gave none.
    pub failed: Option<(AttemptOutcome, String)>,
}

/// A team's settings of a provider, as people see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderRow {
    /// As models name it.
    pub name: String,
    /// Whose protocol it speaks.
    pub kind: String,
    /// Its address; none: the provider's own.
    pub base_url: Option<String>,
    /// Whether a key is set.
    pub has_key: bool,
    /// When it was set up.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// A team's settings of a provider, with the key. Without `Debug`.
#[derive(Clone)]
pub struct ProviderSetting {
    /// Whose protocol it speaks.
    pub kind: String,
    /// Its address; none: the provider's own.
    pub base_url: Option<String>,
    /// Its key.
    pub key: Option<String>,
}

/// Settings of a provider to store. Without `Debug`: it holds a key.
#[derive(Clone)]
pub struct PutProvider {
    /// Whose.
    pub team: TeamId,
    /// As models name it.
    pub name: String,
    /// `anthropic`, `openai`, `gemini` or `openai_compatible`.
    pub kind: String,
    /// Its address; none: the provider's own.
    pub base_url: Option<String>,
    /// Its key; none: the one that it has.
    pub key: Option<String>,
    /// Now.
    pub now: Timestamp,
}
