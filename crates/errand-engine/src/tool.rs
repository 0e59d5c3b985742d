//! Tools: typed functions with a schema and hints. The policy is looked up by the engine, never by the tool.

pub mod asking;
pub mod assignment;
pub mod command;
pub mod fetch;
pub mod files;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use errand_core::config::{BuildConfig, HostPattern};
use errand_core::human::{RequestDraft, Resolution};
use errand_core::id::RunId;
use errand_core::policy::Hints;
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::{Body, Outcome};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::parse::TeamParsers;
use crate::sandboxes::Workspace;

/// Where what a call gave comes from, where the tool's name and arguments do not say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Such as a page's address, or a connection's name.
    pub from: String,
    /// Whether it comes from the team's own people and programs.
    pub trusted: bool,
    /// Whether it must not leave the team.
    pub private: bool,
}

/// What a call came to.
#[derive(Clone, Debug)]
pub enum CallResult {
    /// It has ended.
    Done {
        /// How.
        outcome: Outcome,
        /// Where what it gave comes from.
        source: Option<Source>,
        /// What is noted before its result.
        notes: Vec<Body>,
    },
    /// The server that carries it out asks a person, and waits for the answer: see [`Tool::reply`].
    Asks(Box<RequestDraft>),
    /// Who carried it out was lost. Whether it took effect is not known: it is settled as after a crash.
    Lost,
}

impl CallResult {
    /// It has ended, and what it gave comes from the engine, or from where the tool's name says.
    #[must_use]
    pub fn of(outcome: Outcome) -> Self {
        Self::Done {
            outcome,
            source: None,
            notes: Vec::new(),
        }
    }

    /// The outcome alone, for who cannot wait any longer.
    #[must_use]
    pub fn into_outcome(self) -> Outcome {
        match self {
            Self::Done { outcome, .. } => outcome,
            Self::Asks(_) | Self::Lost => Outcome::error(
                ToolErrorCode::Interrupted,
                "the call was cut off; whether it took effect is unknown",
            ),
        }
    }
}

/// What a call gets to work with.
#[derive(Clone)]
pub struct ToolContext {
    /// The run.
    pub run: RunId,
    /// The call: with the run's id it makes the idempotency key `run_id:call_id`.
    pub call_id: String,
    /// The call's arguments as the transcript has them: with marks.
    pub arguments: Map<String, Value>,
    /// The run's build.
    pub build: Option<Arc<BuildConfig>>,
    /// The run's sandbox, for tools that work in it.
    pub workspace: Option<Workspace>,
    /// Parsers of documents, as the run's team has them.
    pub parsers: TeamParsers,
    /// The run was taken from its driver, or the server stops: end soon.
    pub cancel: CancellationToken,
    /// The server stops: what takes long may go on for a part of the grace period.
    pub draining: CancellationToken,
}

impl ToolContext {
    /// The hosts that the build lets `fetch_url` ask; none: every public one.
    fn hosts(&self) -> Option<&[HostPattern]> {
        self.build.as_ref()?.reach.hosts.as_deref()
    }
}

/// What a look-up found of a call that was under way when the server died.
#[derive(Clone, Debug, PartialEq)]
pub enum LookedUp {
    /// It was done; this is its result.
    Done(Value),
    /// It was not done; it may run now.
    NotDone,
    /// The look-up cannot tell: the error that the call gets.
    Unknown(ToolError),
}

/// One tool.
#[async_trait]
pub trait Tool: Send + Sync {
    /// Its name, as a build names it.
    fn name(&self) -> &str;

    /// A sentence or two for the model.
    fn description(&self) -> &str;

    /// What it is.
    fn hints(&self) -> Hints;

    /// Where its calls go, where that can change: a digest, which an approval is bound to.
    fn target(&self) -> Option<String> {
        None
    }

    /// Whether it works on the run's files: a run gets its sandbox when such a tool is first called.
    fn in_sandbox(&self) -> bool {
        false
    }

    /// Why it can do nothing on this server, and what would change that. None: it can.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// Whether secrets are put in for marks in its arguments, and taken out of what it gives.
    fn takes_secrets(&self) -> bool {
        false
    }

    /// The JSON schema of its arguments, made from their Rust type.
    fn schema(&self) -> Value;

    /// What the intent must hold so that [`Tool::look_up`] can settle the call later. Read-only; asked only of tools that
    /// are settled by look-up.
    ///
    /// # Errors
    /// The error that the call gets, without being begun.
    async fn evidence(
        &self,
        _context: &ToolContext,
        _arguments: &Map<String, Value>,
    ) -> Result<Option<Value>, ToolError> {
        Ok(None)
    }

    /// Carries the call out. Arguments that do not fit are an error that names the argument.
    async fn run(&self, context: &ToolContext, arguments: Map<String, Value>) -> Outcome;

    /// Carries the call out, and says where what it gave comes from.
    async fn call(&self, context: &ToolContext, arguments: Map<String, Value>) -> CallResult {
        CallResult::of(self.run(context, arguments).await)
    }

    /// Gives a person's answer to the server that asked during this call, and goes on waiting for the call.
    async fn reply(&self, _context: &ToolContext, _resolution: &Resolution) -> CallResult {
        CallResult::Lost
    }

    /// Looks whether a call was done. Only for tools whose hints say [`errand_core::policy::Settle::LookUp`].
    async fn look_up(
        &self,
        _context: &ToolContext,
        _arguments: &Map<String, Value>,
        _evidence: Option<&Value>,
    ) -> LookedUp {
        LookedUp::Unknown(ToolError::new(
            ToolErrorCode::OutcomeUnknown,
            "the tool cannot look whether the call was done",
        ))
    }
}

/// The tools of this program, by name.
#[derive(Clone)]
pub struct Tools {
    by_name: Arc<BTreeMap<String, Arc<dyn Tool>>>,
}

impl Tools {
    /// The built-in ones.
    #[must_use]
    pub fn builtin() -> Self {
        Self {
            by_name: Arc::new(BTreeMap::new()),
        }
        .with(files::tools())
        .with(vec![Arc::new(command::RunCommand::not_set_up())])
        .with(asking::tools())
        .with(vec![Arc::new(assignment::RunAssignment)])
    }

    /// These too.
    #[must_use]
    pub fn with(&self, more: Vec<Arc<dyn Tool>>) -> Self {
        let mut by_name = (*self.by_name).clone();
        by_name.extend(more.into_iter().map(|tool| (tool.name().to_owned(), tool)));
        Self {
            by_name: Arc::new(by_name),
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.by_name.get(name)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Tool>> {
        self.by_name.values()
    }
}
