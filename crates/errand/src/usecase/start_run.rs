//! Starts a run.

use errand_core::author::By;
use errand_core::id::{AgentId, ApiKeyId, SandboxId, TeamId};
use errand_core::run::RunSource;
use errand_engine::{EngineContext, checked_start};
use errand_store::model::{RunView, StartRun};
use errand_store::{Idempotent, Outcome, StoreError};

use super::UseCaseError;

/// The first message of a run.
#[derive(Clone)]
pub(crate) struct FirstMessage {
    pub(crate) text: String,
    /// Whether someone outside the team may have written it.
    pub(crate) untrusted: bool,
}

/// The parameters of a run.
pub(crate) struct NewRun {
    pub(crate) team: TeamId,
    /// The agent whose live build is run.
    pub(crate) agent: AgentId,
    /// The source of the request.
    pub(crate) source: RunSource,
    /// `None`: the run gets its own sandbox when it needs one.
    pub(crate) sandbox: Option<SandboxId>,
    /// How long the sandbox is kept after its last use, in milliseconds.
    pub(crate) sandbox_ttl_ms: u64,
    pub(crate) webhook_url: Option<String>,
    pub(crate) human_request_webhook_url: Option<String>,
    pub(crate) message: Option<FirstMessage>,
    pub(crate) by: By,
    pub(crate) api_key: Option<ApiKeyId>,
}

/// Starts a run of the agent's live build.
///
/// # Errors
/// The store's errors: which field is invalid, or why the build cannot run.
pub(crate) async fn start_run(
    engine: &EngineContext,
    new: NewRun,
    once: Idempotent<RunView>,
) -> Result<Outcome<RunView>, StoreError> {
    let now = engine.clock.now();
    let start = StartRun {
        team: new.team,
        id: engine.ids.run(now),
        agent: new.agent,
        source: new.source,
        sandbox: new.sandbox,
        webhook_url: new.webhook_url,
        human_request_webhook_url: new.human_request_webhook_url,
        untrusted: new.message.as_ref().is_some_and(|first| first.untrusted),
        message: new
            .message
            .map(|first| (engine.ids.message(now), first.text)),
        by: new.by,
        api_key: new.api_key,
        sandbox_ttl_ms: new.sandbox_ttl_ms,
        expected_build: None,
        now,
    };
    checked_start::start_run(&engine.store, &engine.models, start, once).await
}

/// Checks the first message of a request: it is not empty, and only a message can be marked as untrusted.
pub(crate) fn checked_message(
    text: Option<String>,
    untrusted: bool,
) -> Result<Option<FirstMessage>, UseCaseError> {
    match text {
        Some(text) if text.is_empty() => Err(UseCaseError::invalid("message", "must not be empty")),
        Some(text) => Ok(Some(FirstMessage { text, untrusted })),
        None if untrusted => Err(UseCaseError::invalid(
            "untrusted",
            "it says that strangers may have written `message`, but there is no message; send both, or neither",
        )),
        None => Ok(None),
    }
}
