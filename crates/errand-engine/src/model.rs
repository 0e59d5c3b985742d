//! Models: who decides what a run does next.
//!
//! A model sees a build and a transcript and returns a turn of moves. `builtin/playbook` is a model like any other; those
//! of providers on the network are in [`network`].

pub mod network;
pub mod playbook;

use std::sync::Arc;

use crate::parse::Parsers;
use async_trait::async_trait;
use errand_core::config::{BuildConfig, ModelName};
use errand_core::id::{IdGen, MessageId, RunId, TeamId};
use errand_core::playbook::RunFacts;
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry, ModelCall};
use errand_core::turn::MarkedMove;
use errand_store::Store;
use errand_store::model::Usage;
use serde_json::Value;

use crate::clock::Clock;
use crate::deltas::Deltas;
use crate::sandboxes::Workspace;
use network::Network;

/// What a model decided.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// What is noted before the moves.
    pub notes: Vec<Body>,
    /// None only where there are notes: then the model is asked anew, once they are on disk.
    pub moves: Vec<MarkedMove>,
    /// Calls among the moves, by their index, that are not to be carried out, with the error that each gets.
    pub refused: Vec<(usize, String)>,
    /// The id that the turn's first message shall have.
    pub message: Option<MessageId>,
    /// What it used up.
    pub usage: Usage,
}

impl Turn {
    /// A turn that is nothing but moves.
    #[must_use]
    pub fn of(moves: Vec<MarkedMove>, usage: Usage) -> Self {
        Self {
            moves,
            usage,
            ..Self::default()
        }
    }
}

/// Why a model gave no turn and will not give one.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    /// A stable code for the run's error.
    pub code: &'static str,
    /// What happened, and what to do.
    pub message: String,
}

/// Why a model gave no turn.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// It will not give one: the run fails.
    #[error(transparent)]
    Fails(#[from] ModelError),
    /// This attempt failed on the way. The run waits, without a driver, and asks again.
    #[error("{error}")]
    Again {
        /// What happened.
        error: String,
        /// Which attempt it was, from 1.
        attempt: u32,
        /// How long until the next one, in milliseconds.
        pause_ms: u64,
    },
    /// The provider has as many calls under way as it is given at once. The run waits, without a driver, until it is
    /// woken, or until it looks again.
    #[error("the provider has as many calls under way as it is given at once")]
    Full {
        /// How long until it looks again, in milliseconds.
        pause_ms: u64,
    },
}

/// A tool as a model is told of it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Its name.
    pub name: String,
    /// A sentence or two.
    pub description: String,
    /// The JSON schema of its arguments.
    pub schema: Value,
}

/// What a session is made for.
pub struct Setup<'a> {
    /// The run.
    pub run: RunId,
    /// Whose.
    pub team: TeamId,
    /// Its build.
    pub build: &'a BuildConfig,
    /// The tools that the run has: made when a model asks, since some need none.
    pub tools: &'a (dyn Fn() -> Vec<Offer> + Sync),
}

/// What a model has to work with during a turn.
pub struct TurnContext<'a> {
    /// What templates may know of the run.
    pub facts: &'a RunFacts,
    /// The run's sandbox, where [`Session::needs_workspace`] asked for it; its row is on disk.
    pub workspace: Option<Workspace>,
    /// Attempts in a row, up to now, that gave no answer.
    pub failures: u32,
    /// The position of the last entry that the turn can rest on, as the store has it.
    pub read_to: u64,
    /// What time it is.
    pub clock: &'a Clock,
    /// Makes ids.
    pub ids: &'a IdGen,
    /// What is kept.
    pub store: &'a Store,
    /// Who hears of a text while it comes.
    pub deltas: &'a Deltas,
    /// Whose the run is.
    pub team: TeamId,
    /// Evaluates for the team what is not cheap.
    pub parsers: &'a Parsers,
}

/// Whether a turn needs the run's sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It does not.
    Never,
    /// Where the run has one already.
    IfThere,
    /// The run gets one.
    Always,
}

/// A model, shared by all runs.
pub trait Model: Send + Sync {
    /// A session for one drive of one run. It is fed the transcript from the beginning.
    ///
    /// # Errors
    /// Where the build lacks what the model needs.
    fn session(&self, setup: Setup<'_>) -> Result<Box<dyn Session>, ModelError>;
}

/// A model at work on one run.
#[async_trait]
pub trait Session: Send + Sync {
    /// Takes the next entry of the transcript; each once, in order.
    fn feed(&mut self, entry: &Entry);

    /// Whether a turn is a pure function of what was fed: then it may be asked for before the last step is on disk,
    /// since asking again costs nothing and gives the same.
    fn is_pure(&self) -> bool;

    /// Whether asking it costs the team money: then the team's limit is looked at before.
    fn costs(&self) -> bool {
        false
    }

    /// Whether the next turn reads or writes files of the run's sandbox.
    fn needs_workspace(&self) -> Need {
        Need::Never
    }

    /// The tools that the run has are others from now on.
    fn offer(&mut self, _tools: Vec<Offer>) {}

    /// Whether the price of what it costs is known.
    fn is_priced(&self) -> bool {
        true
    }

    /// The last call, where it gave no turn: [`Session::turn`] failed, or was dropped. Each is given once.
    fn unanswered(&mut self, _now: Timestamp) -> Option<ModelCall> {
        None
    }

    /// The next turn. Called only when no call is open, no request pending, no timer running. May be dropped at any
    /// await when the run is taken from its driver.
    ///
    /// # Errors
    /// [`TurnError`] ends the run as failed, or lets it wait for another attempt.
    async fn turn(&mut self, context: &TurnContext<'_>) -> Result<Turn, TurnError>;
}

/// The models of this program, by provider.
#[derive(Clone, Default)]
pub struct Models {
    extra: Vec<(String, Arc<dyn Model>)>,
    network: Option<Arc<Network>>,
}

impl Models {
    /// One more provider. A later one of the same name is found first.
    #[must_use]
    pub fn with(mut self, provider: &str, model: Arc<dyn Model>) -> Self {
        self.extra.insert(0, (provider.to_owned(), model));
        self
    }

    /// With those of providers on the network.
    #[must_use]
    pub fn with_network(mut self, network: Network) -> Self {
        self.network = Some(Arc::new(network));
        self
    }

    /// The providers on the network.
    #[must_use]
    pub fn network(&self) -> Option<&Arc<Network>> {
        self.network.as_ref()
    }

    /// The model that a build names.
    ///
    /// # Errors
    /// A sentence that says what to set.
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
            "the model {name} is not there; the built-in one is builtin/playbook"
        ))
    }

    /// Whether a run of this build can be started. `own`: the providers that the team has settings of its own for.
    ///
    /// # Errors
    /// A sentence that says what to set.
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
