//! Calls for runs: start, read, wait, stop, retry, fork.

use std::time::Duration;

use futures::Stream;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::Error;
use crate::human_requests::HumanRequest;
use crate::id::{AgentId, BuildId, MessageId, RunId, SandboxId};
use crate::page::{List, Listed, Page, PageRequest};
use crate::reply::Reply;
use crate::run::{Run, RunSource, RunStatus};
use crate::setters::setters;
use crate::time::Timestamp;

/// How long one request of [`Client::wait`] lets the server wait. Proxies usually close a connection that is silent for
/// a minute.
const WAIT: Duration = Duration::from_secs(30);
/// The pause between two such requests. A server that is stopping answers at once, and would be asked again and again.
const WAIT_PAUSE: Duration = Duration::from_millis(250);

/// A run to start.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NewRun {
    /// The agent whose live build is run.
    pub agent_id: AgentId,
    /// The first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether people outside the team may have written the message, for example an email that your program forwards.
    /// Tools with the policy `guard` then ask a person.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
    /// A sandbox with files for the run. Default: the run gets its own when it needs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<SandboxId>,
    /// The address that receives all webhooks of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// The address that receives only the webhooks about human requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub human_request_webhook_url: Option<String>,
}

impl NewRun {
    /// A run of the agent's live build.
    #[must_use]
    pub fn of(agent: impl Into<AgentId>) -> Self {
        Self {
            agent_id: agent.into(),
            message: None,
            untrusted: false,
            sandbox_id: None,
            webhook_url: None,
            human_request_webhook_url: None,
        }
    }

    /// Sets [`NewRun::untrusted`](field@Self::untrusted).
    #[must_use]
    pub fn untrusted(mut self, untrusted: bool) -> Self {
        self.untrusted = untrusted;
        self
    }
}

setters! { NewRun {
    message: String,
    sandbox_id: SandboxId,
    webhook_url: String,
    human_request_webhook_url: String,
} }

/// A new run that begins with the transcript of another one.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct ForkRun {
    /// The last message that the fork takes over. Default: the run's last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_message: Option<MessageId>,
    /// Another build of the same agent. Default: the run's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildId>,
    /// A message after those that are taken over. Required if the run had ended with the last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether people outside the team may have written the message. See
    /// [`NewRun::untrusted`](field@NewRun::untrusted).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
    /// Whether the fork gets a copy of the files. Default: yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<bool>,
    /// The address that receives all webhooks of the fork.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// The address that receives only the webhooks about human requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub human_request_webhook_url: Option<String>,
}

impl ForkRun {
    /// A fork of the whole run.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`ForkRun::untrusted`](field@Self::untrusted).
    #[must_use]
    pub fn untrusted(mut self, untrusted: bool) -> Self {
        self.untrusted = untrusted;
        self
    }
}

setters! { ForkRun {
    after_message: MessageId,
    build: BuildId,
    message: String,
    files: bool,
    webhook_url: String,
    human_request_webhook_url: String,
} }

/// The runs that a bulk stop or retry changes: those that match every field that is set, oldest first.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct BulkChange {
    /// One of these statuses. Default: all that the change applies to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<RunStatus>,
    /// Runs of this agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Runs with this source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<RunSource>,
    /// Runs created at or after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Runs created before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The maximum number of runs. Default and maximum: 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Required if no other field selects runs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Changes nothing, and returns the runs that would be changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

impl BulkChange {
    /// All runs to which the change applies.
    #[must_use]
    pub fn all() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    /// The runs of an agent.
    #[must_use]
    pub fn of_agent(agent: impl Into<AgentId>) -> Self {
        Self {
            agent_id: Some(agent.into()),
            ..Self::default()
        }
    }

    /// Adds a status. Runs with any of the added statuses match.
    #[must_use]
    pub fn status(mut self, status: RunStatus) -> Self {
        self.status.push(status);
        self
    }

    /// Changes nothing, and returns the runs that would be changed.
    #[must_use]
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

setters! { BulkChange {
    agent_id: AgentId,
    source: RunSource,
    since: Timestamp,
    until: Timestamp,
    limit: u32,
} }

/// The runs of a list: those that match every field that is set.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RunFilter {
    /// One of these statuses. Empty: any.
    pub status: Vec<RunStatus>,
    /// Runs of this agent.
    pub agent_id: Option<AgentId>,
    /// Runs that were started in this way.
    pub source: Option<RunSource>,
    /// Runs created at or after this time.
    pub since: Option<Timestamp>,
    /// Runs created before this time.
    pub until: Option<Timestamp>,
    /// Text in the title, or at least four digits of the id.
    pub search: Option<String>,
}

impl RunFilter {
    /// All runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a status. Runs with any of the added statuses match.
    #[must_use]
    pub fn status(mut self, status: RunStatus) -> Self {
        self.status.push(status);
        self
    }

    fn list(&self) -> List {
        let statuses = self
            .status
            .iter()
            .map(|status| ("status", status.to_string()));
        let rest = [
            ("agent_id", self.agent_id.as_ref().map(AgentId::to_string)),
            ("source", self.source.as_ref().map(RunSource::to_string)),
            ("since", self.since.map(|at| at.to_string())),
            ("until", self.until.map(|at| at.to_string())),
            ("q", self.search.clone()),
        ];
        let rest = rest
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        List::at(["runs"]).filtered(statuses.chain(rest).collect())
    }
}

setters! { RunFilter {
    agent_id: AgentId,
    source: RunSource,
    since: Timestamp,
    until: Timestamp,
    search: String,
} }

/// A run, and the request that it makes to people.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct RunDetails {
    /// The run.
    pub run: Run,
    /// The request that waits for an answer.
    pub pending_human_request: Option<HumanRequest>,
}

impl RunDetails {
    /// Whether the run does nothing more by itself: it has ended, or a person must answer.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.run.status.has_ended() || self.pending_human_request.is_some()
    }
}

/// The result of stopping a run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Stopped {
    /// A sentence for people. Present if the run had already ended and was not changed.
    pub message: Option<String>,
}

/// The result of a bulk stop or retry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct BulkOutcome {
    /// The number of matching runs, at most the limit.
    pub matched: u64,
    /// The number of changed runs.
    pub changed: u64,
    /// Whether more runs match than the limit. Another call changes the next ones.
    pub more: bool,
    /// The changed runs; in a dry run, those that would be changed.
    pub runs: Vec<RunId>,
}

#[derive(Deserialize)]
struct RunBody {
    run: Run,
}

impl Listed for Run {
    const FIELD: &'static str = "runs";
}

impl Client {
    /// Starts a run. The response comes at once; [`Client::wait`] or [`Client::events`] tell how the run goes on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_run(&self, run: &NewRun) -> Result<Reply<Run>, Error> {
        let reply = self.post(["runs"]).json(run).send::<RunBody>().await?;
        Ok(reply.map(|body| body.run))
    }

    /// One page of the runs that match, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn runs(
        &self,
        filter: &RunFilter,
        page: PageRequest,
    ) -> Result<Reply<Page<Run>>, Error> {
        self.page(&filter.list(), page).await
    }

    /// All runs that match, newest first. A run that is created meanwhile moves the others, so that one may come twice.
    pub fn all_runs(
        &self,
        filter: &RunFilter,
    ) -> impl Stream<Item = Result<Run, Error>> + Send + use<> {
        self.all(filter.list())
    }

    /// A run, and the request that waits for an answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(&self, run: &RunId) -> Result<Reply<RunDetails>, Error> {
        self.get(["runs", run.as_str()]).send().await
    }

    /// Waits until the run has ended or a person must answer, however long that takes. Drop the future to stop waiting.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn wait(&self, run: &RunId) -> Result<Reply<RunDetails>, Error> {
        loop {
            let reply = self
                .get(["runs", run.as_str()])
                .query("wait_s", WAIT.as_secs())
                .timeout(WAIT + self.transport.timeout)
                .send::<RunDetails>()
                .await?;
            if reply.is_at_rest() {
                return Ok(reply);
            }
            tokio::time::sleep(WAIT_PAUSE).await;
        }
    }

    /// Stops a run, unless it has already ended.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop_run(&self, run: &RunId) -> Result<Reply<Stopped>, Error> {
        self.post(["runs", run.as_str(), "stop"]).send().await
    }

    /// Continues a failed run from the step that failed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn retry_run(&self, run: &RunId) -> Result<Reply<Run>, Error> {
        let path = ["runs", run.as_str(), "retry"];
        let reply = self.post(path).send::<RunBody>().await?;
        Ok(reply.map(|body| body.run))
    }

    /// Starts a new run that begins with the transcript of this one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fork_run(&self, run: &RunId, fork: &ForkRun) -> Result<Reply<Run>, Error> {
        let path = ["runs", run.as_str(), "fork"];
        let reply = self.post(path).json(fork).send::<RunBody>().await?;
        Ok(reply.map(|body| body.run))
    }

    /// Stops all runs that match.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop_runs(&self, which: &BulkChange) -> Result<Reply<BulkOutcome>, Error> {
        self.post(["runs", "stop"]).json(which).send().await
    }

    /// Continues all failed runs that match.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn retry_runs(&self, which: &BulkChange) -> Result<Reply<BulkOutcome>, Error> {
        self.post(["runs", "retry"]).json(which).send().await
    }
}
