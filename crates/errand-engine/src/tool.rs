//! Tools: typed functions with a schema and hints.
//!
//! # Non-goals
//!
//! Policies. The driver checks the policy of a call; a tool never does.

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

/// The source of a result, if the tool's name and arguments do not determine it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// For people, such as the address of a page or the name of a connection.
    pub from: String,
    /// Whether the content comes from the team's own people and programs.
    pub trusted: bool,
    /// Whether the content must not leave the team.
    pub private: bool,
}

/// The end of a call, or its interruption.
#[derive(Clone, Debug)]
pub enum CallResult {
    Done {
        outcome: Outcome,
        /// `None` if the tool's name and arguments determine it.
        source: Option<Source>,
        /// Entries that are recorded before the result.
        notes: Vec<Body>,
    },
    /// The server that executes the call asks a person and waits for the answer; see [`Tool::reply`].
    Asks(Box<RequestDraft>),
    /// The server that executes the call was lost. Whether the call took effect is unknown, so it is settled as after a
    /// crash.
    Lost,
}

impl CallResult {
    /// A call that has ended, with a source that the tool's name and arguments determine.
    #[must_use]
    pub fn of(outcome: Outcome) -> Self {
        Self::Done {
            outcome,
            source: None,
            notes: Vec::new(),
        }
    }

    /// The outcome alone, for callers that cannot wait any longer.
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

/// The surroundings of a call.
#[derive(Clone)]
pub struct ToolContext {
    pub run: RunId,
    /// Together with the run's id, the idempotency key of the call: `run_id:call_id`.
    pub call_id: String,
    /// The arguments as they are in the transcript, with marks in place of secrets.
    pub arguments: Map<String, Value>,
    /// `None` if the build cannot be read.
    pub build: Option<Arc<BuildConfig>>,
    /// Set for tools that work in the sandbox.
    pub workspace: Option<Workspace>,
    /// Document parsers within the team's limits.
    pub parsers: TeamParsers,
    /// Canceled when the run was taken from its driver or the server stops. The tool must end soon.
    pub cancel: CancellationToken,
    /// Canceled when the server shuts down. Long work may continue for a part of the grace period.
    pub draining: CancellationToken,
}

impl ToolContext {
    /// The hosts that `fetch_url` may request; `None` means every public host.
    fn hosts(&self) -> Option<&[HostPattern]> {
        self.build.as_ref()?.reach.hosts.as_deref()
    }
}

/// What a look-up found about a call that was in progress when the server died.
#[derive(Clone, Debug, PartialEq)]
pub enum LookedUp {
    /// The call was done, with this result.
    Done(Value),
    /// The call was not done and may run now.
    NotDone,
    /// The look-up cannot tell. The call gets this error.
    Unknown(ToolError),
}

/// A tool that a model can call.
#[async_trait]
pub trait Tool: Send + Sync {
    /// The name by which builds and calls refer to the tool.
    fn name(&self) -> &str;

    /// One or two sentences for the model.
    fn description(&self) -> &str;

    /// Declares what the tool does to the world; policies depend on it.
    fn hints(&self) -> Hints;

    /// A digest of the destination of its calls, if that can change. An approval is valid for one destination.
    fn target(&self) -> Option<String> {
        None
    }

    /// Whether the tool works on the run's files. A run gets its sandbox when such a tool is first called.
    fn in_sandbox(&self) -> bool {
        false
    }

    /// Why the tool does not work on this server, and how to change that. `None` if it works.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// Whether marks in its arguments are replaced by secrets. Secrets are then masked in its results.
    fn takes_secrets(&self) -> bool {
        false
    }

    /// The JSON schema of the arguments.
    fn schema(&self) -> Value;

    /// Collects the evidence that is stored with the intent, so that [`Tool::look_up`] can settle the call later. Changes
    /// nothing; called only for tools that are settled by look-up.
    ///
    /// # Errors
    ///
    /// The error that the call gets. The call does not begin.
    async fn evidence(
        &self,
        _context: &ToolContext,
        _arguments: &Map<String, Value>,
    ) -> Result<Option<Value>, ToolError> {
        Ok(None)
    }

    /// Executes the call. The error for an invalid argument names the argument.
    async fn run(&self, context: &ToolContext, arguments: Map<String, Value>) -> Outcome;

    /// Executes the call and reports the source of the result.
    async fn call(&self, context: &ToolContext, arguments: Map<String, Value>) -> CallResult {
        CallResult::of(self.run(context, arguments).await)
    }

    /// Gives a person's answer to the server that asked during this call, and waits for the call again.
    async fn reply(&self, _context: &ToolContext, _resolution: &Resolution) -> CallResult {
        CallResult::Lost
    }

    /// Checks whether a call was done. Only for tools whose hints say [`errand_core::policy::Settle::LookUp`].
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

/// The built-in tools, by name.
#[derive(Clone)]
pub struct Tools {
    by_name: Arc<BTreeMap<String, Arc<dyn Tool>>>,
}

impl Tools {
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

    /// Adds tools. One with the same name replaces an earlier one.
    #[must_use]
    pub fn with(&self, more: Vec<Arc<dyn Tool>>) -> Self {
        let mut by_name = (*self.by_name).clone();
        by_name.extend(more.into_iter().map(|tool| (tool.name().to_owned(), tool)));
        Self {
            by_name: Arc::new(by_name),
        }
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.by_name.get(name)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Tool>> {
        self.by_name.values()
    }
}
