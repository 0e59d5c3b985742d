//! Models, which decide the next step of a run.
//!
//! A model receives a build and a transcript and returns a [`Turn`]: an ordered list of moves. `builtin/playbook` is a
//! model like any other. The models of network providers are in [`network`].

pub mod network;
pub mod playbook;

use std::sync::Arc;

use crate::parse::Parsers;
use async_trait::async_trait;
use errand_core::config::{BuildConfig, ModelName};
use errand_core::id::{IdGen, MessageId, RunId, TeamId};
use errand_core::playbook::RunFacts;
use errand_core::time::Timestamp;
use errand_core::tool_error::ToolError;
use errand_core::transcript::{Body, Entry, ModelCall};
use errand_core::turn::MarkedMove;
use errand_store::Store;
use errand_store::model::Usage;
use serde_json::Value;

use crate::clock::Clock;
use crate::deltas::Deltas;
use crate::sandboxes::Workspace;
use network::Network;

/// The decision of a model: notes for the transcript, then moves.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Entries that the transcript gets before the moves.
    pub notes: Vec<Body>,
    /// Empty only if there are notes: the model is then asked again after the notes are committed.
    pub moves: Vec<MarkedMove>,
    /// Calls that are not executed: the index into `moves`, and the error that becomes the call's result.
    pub refused: Vec<(usize, ToolError)>,
    /// The id of the turn's first message, if text deltas already announced one.
    pub message: Option<MessageId>,
    /// Tokens, calls and cost of this turn.
    pub usage: Usage,
}

impl Turn {
    /// A turn without notes, refused calls or a message id.
    #[must_use]
    pub fn of(moves: Vec<MarkedMove>, usage: Usage) -> Self {
        Self {
            moves,
            usage,
            ..Self::default()
        }
    }
}

/// A permanent failure: the run fails with this code and message.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    /// A stable code for the `error` of the run.
    pub code: &'static str,
    /// What happened and what to do about it.
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// Permanent: the run fails.
    #[error(transparent)]
    Fails(#[from] ModelError),
    /// Temporary: the run releases its driver and asks the model again later.
    #[error("{error}")]
    Again {
        /// A description of this attempt's failure.
        error: String,
        /// The number of this attempt, starting at 1.
        attempt: u32,
        /// The delay before the next attempt, in milliseconds.
        pause_ms: u64,
    },
    /// The provider's concurrency limit is reached. The run releases its driver and waits until it is woken or
    /// `pause_ms` has passed.
    #[error("the provider has reached its limit of concurrent calls")]
    Full {
        /// The time after which the run tries again even if nothing wakes it, in milliseconds.
        pause_ms: u64,
    },
}

/// The description of a tool that is sent to a model.
#[derive(Clone, Debug)]
pub struct Offer {
    pub name: String,
    /// One or two sentences.
    pub description: String,
    /// The JSON schema of the arguments.
    pub schema: Value,
}

/// Parameters of a new [`Session`].
pub struct Setup<'a> {
    pub run: RunId,
    pub team: TeamId,
    pub build: &'a BuildConfig,
    /// Lists the tools of the run. A closure, because some models never need the list.
    pub tools: &'a (dyn Fn() -> Vec<Offer> + Sync),
}

/// The run's data and the services that a model may use during one turn.
pub struct TurnContext<'a> {
    /// The run's data that templates may use.
    pub facts: &'a RunFacts,
    /// The run's sandbox, if [`Session::needs_workspace`] asked for it. Its row is committed.
    pub workspace: Option<Workspace>,
    /// Consecutive failed attempts before this one.
    pub failures: u32,
    /// The position of the last committed entry that the turn can depend on.
    pub read_to: u64,
    pub clock: &'a Clock,
    pub ids: &'a IdGen,
    pub store: &'a Store,
    /// Receives the text while it is streamed.
    pub deltas: &'a Deltas,
    /// The team that owns the run.
    pub team: TeamId,
    /// Runs expensive evaluations (schemas, templates) within the team's limits.
    pub parsers: &'a Parsers,
}

/// Whether a turn needs the run's sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Never,
    /// Only if the run already has a sandbox.
    IfThere,
    /// The run gets a sandbox if it has none.
    Always,
}

/// A model. One instance serves all runs.
pub trait Model: Send + Sync {
    /// Creates the session for one drive of one run. The caller feeds it the transcript from the beginning.
    ///
    /// # Errors
    /// The build lacks something that the model needs.
    fn session(&self, setup: Setup<'_>) -> Result<Box<dyn Session>, ModelError>;
}

/// A model's state for one drive of one run.
#[async_trait]
pub trait Session: Send + Sync {
    /// Adds the next entry of the transcript. Each entry is fed once, in order.
    fn feed(&mut self, entry: &Entry);

    /// Whether a turn is a pure function of the entries that were fed. A pure turn may be computed before the previous
    /// step is committed, because repeating it costs nothing and gives the same result.
    fn is_pure(&self) -> bool;

    /// Whether a turn costs money. If so, the engine checks the team's spending limit first.
    fn costs(&self) -> bool {
        false
    }

    /// Whether the next turn reads or writes files of the run's sandbox.
    fn needs_workspace(&self) -> Need {
        Need::Never
    }

    /// Replaces the tools that are offered to the model.
    fn offer(&mut self, _tools: Vec<Offer>) {}

    /// Whether the model has a known price.
    fn is_priced(&self) -> bool {
        true
    }

    /// The record of the last call if it produced no turn, because [`Session::turn`] failed or was dropped. Each record
    /// is returned once.
    fn unanswered(&mut self, _now: Timestamp) -> Option<ModelCall> {
        None
    }

    /// Computes the next turn. Called only when the run has no open call, pending request or running timer. The future
    /// may be dropped at any await point when the run is taken away from its driver.
    ///
    /// # Errors
    /// [`TurnError::Fails`] is permanent; the other variants let the run wait for another attempt.
    async fn turn(&mut self, context: &TurnContext<'_>) -> Result<Turn, TurnError>;
}

/// The registry of models, looked up by provider name.
#[derive(Clone, Default)]
pub struct Models {
    extra: Vec<(String, Arc<dyn Model>)>,
    network: Option<Arc<Network>>,
}

impl Models {
    /// Adds a provider. It takes precedence over earlier providers of the same name and over the built-in ones.
    #[must_use]
    pub fn with(mut self, provider: &str, model: Arc<dyn Model>) -> Self {
        self.extra.insert(0, (provider.to_owned(), model));
        self
    }

    /// Adds the network providers.
    #[must_use]
    pub fn with_network(mut self, network: Network) -> Self {
        self.network = Some(Arc::new(network));
        self
    }

    #[must_use]
    pub fn network(&self) -> Option<&Arc<Network>> {
        self.network.as_ref()
    }

    /// The model that a build names.
    ///
    /// # Errors
    /// A message that names the setting to change.
    pub fn find(&self, name: &ModelName) -> Result<Arc<dyn Model>, String> {
        if let Some((_, model)) = self
            .extra
            .iter()
            .find(|(provider, _)| *provider == name.provider)
        {
            return Ok(Arc::clone(model));
        }
        if name.is_playbook() {
            return Ok(Arc::new(playbook::PlaybookModel));
        }
        if let Some(network) = &self.network
            && name.provider != ModelName::PLAYBOOK.0
        {
            return Ok(Arc::new(network::NetworkModel::new(Arc::clone(network))));
        }
        Err(format!(
            "the model {name} does not exist; the built-in one is builtin/playbook"
        ))
    }

    /// Checks whether a run of this build can start. `own`: the provider settings of the team.
    ///
    /// # Errors
    /// A message that names the setting to change.
    pub fn check(&self, build: &BuildConfig, own: &network::OwnProviders) -> Result<(), String> {
        let name = &build.model;
        self.find(name)?;
        let is_extra = self.extra.iter().any(|(p, _)| *p == name.provider);
        match &self.network {
            Some(network) if !is_extra && !name.is_playbook() => network.check(build, own),
            _ => Ok(()),
        }
    }
}
