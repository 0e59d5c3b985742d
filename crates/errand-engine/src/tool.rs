//! Tools: typed functions with a schema and hints. The policy is looked up by the engine, never by the tool.

pub mod asking;
pub mod command;
pub mod files;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use errand_core::id::RunId;
use errand_core::policy::Hints;
use errand_core::transcript::Outcome;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::sandboxes::Workspace;

/// What a call gets to work with.
#[derive(Clone)]
pub struct ToolContext {
    /// The run.
    pub run: RunId,
    /// The call: with the run's id it makes the idempotency key `run_id:call_id`.
    pub call_id: String,
    /// The run's sandbox, for tools that work in it.
    pub workspace: Option<Workspace>,
    /// The run was taken from its driver, or the server stops: end soon.
    pub cancel: CancellationToken,
    /// The server stops: what takes long may go on for a part of the grace period.
    pub draining: CancellationToken,
}

/// What a look-up found of a call that was under way when the server died.
#[derive(Clone, Debug, PartialEq)]
pub enum LookedUp {
    /// It was done; this is its result.
    Done(Value),
    /// It was not done; it may run now.
    NotDone,
    /// The look-up cannot tell: the error that the call gets.
    Unknown(String),
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

    /// Whether it works on the run's files: a run gets its sandbox when such a tool is first called.
    fn in_sandbox(&self) -> bool {
        false
    }

    /// Why it can do nothing on this server, and what would change that. None: it can.
    fn unavailable(&self) -> Option<String> {
        None
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
    ) -> Result<Option<Value>, String> {
        Ok(None)
    }

    /// Carries the call out. Arguments that do not fit are an error that names the argument.
    async fn run(&self, context: &ToolContext, arguments: Map<String, Value>) -> Outcome;

    /// Looks whether a call was done. Only for tools whose hints say [`errand_core::policy::Settle::LookUp`].
    async fn look_up(
        &self,
        _context: &ToolContext,
        _arguments: &Map<String, Value>,
        _evidence: Option<&Value>,
    ) -> LookedUp {
        LookedUp::Unknown(
            "outcome_unknown: the tool cannot look whether the call was done".to_owned(),
        )
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
