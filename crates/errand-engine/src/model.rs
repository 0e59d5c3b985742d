//! Models: who decides what a run does next.
//!
//! A model sees a build and a transcript and returns a turn of moves. `builtin/playbook` is a model like any other.

pub mod playbook;

use std::sync::Arc;

use async_trait::async_trait;
use errand_core::config::{BuildConfig, ModelName};
use errand_core::playbook::RunFacts;
use errand_core::transcript::Entry;
use errand_core::turn::MarkedMove;
use errand_store::model::Usage;

/// What a model decided.
#[derive(Clone, Debug)]
pub struct Turn {
    /// At least one move.
    pub moves: Vec<MarkedMove>,
    /// What it used up.
    pub usage: Usage,
}

/// Why a model gave no turn, after its own retries.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    /// A stable code for the run's error.
    pub code: &'static str,
    /// What happened, and what to do.
    pub message: String,
}

/// A model, shared by all runs.
pub trait Model: Send + Sync {
    /// A session for one drive of one run. It is fed the transcript from the beginning.
    ///
    /// # Errors
    /// Where the build lacks what the model needs.
    fn session(&self, build: &BuildConfig) -> Result<Box<dyn Session>, ModelError>;
}

/// A model at work on one run.
#[async_trait]
pub trait Session: Send + Sync {
    /// Takes the next entry of the transcript; each once, in order.
    fn feed(&mut self, entry: &Entry);

    /// Whether a turn is a pure function of what was fed: then it may be asked for before the last step is on disk,
    /// since asking again costs nothing and gives the same.
    fn is_pure(&self) -> bool;

    /// The next turn. Called only when no call is open, no request pending, no timer running. May be dropped at any
    /// await when the run is taken from its driver.
    ///
    /// # Errors
    /// [`ModelError`] ends the run as failed.
    async fn turn(&mut self, run: &RunFacts) -> Result<Turn, ModelError>;
}

/// The models of this program, by provider.
#[derive(Clone, Default)]
pub struct Models {
    extra: Vec<(String, Arc<dyn Model>)>,
}

impl Models {
    /// One more provider. A later one of the same name is found first.
    #[must_use]
    pub fn with(mut self, provider: &str, model: Arc<dyn Model>) -> Self {
        self.extra.insert(0, (provider.to_owned(), model));
        self
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
        Err(format!(
            "the model {name} cannot be run here: this version has builtin/playbook only; name it in data.models.agent.model"
        ))
    }
}
