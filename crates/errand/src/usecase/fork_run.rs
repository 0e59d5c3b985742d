//! Forks: new runs that start with a copy of another run's transcript and files.
//!
//! The files are copied first, into a directory without a database row. The transaction that creates the run also
//! creates the row. A crash in between leaves a directory that the janitor removes.

use errand_core::author::By;
use errand_core::id::{ApiKeyId, BuildId, MessageId, RunId, SandboxId, TeamId};
use errand_core::limits::{FORK_COPY_BYTES_MAX, FORK_COPY_NAMES_MAX};
use errand_core::run::RunSource;
use errand_engine::{EngineContext, checked_start};
use errand_sandbox::{Charged, CopyError, CopyLimits, FileError, Root};
use errand_store::model::RunView;
use errand_store::{ForkRun, Idempotent, Outcome, StoreError};

use super::UseCaseError;
use super::blocking::blocking;
use super::sandbox_files::charged;
use super::start_run::FirstMessage;

/// The parameters of a fork.
pub(crate) struct NewFork {
    pub(crate) team: TeamId,
    /// The run whose transcript the fork begins with.
    pub(crate) run: RunId,
    /// The last message that is copied. Default: the run's last message.
    pub(crate) after_message: Option<MessageId>,
    /// Another build of the run's agent. Default: the build of the run.
    pub(crate) build: Option<BuildId>,
    /// A message after the copied ones.
    pub(crate) message: Option<FirstMessage>,
    /// Whether the fork gets a copy of the run's files, as they are now.
    pub(crate) files: bool,
    pub(crate) webhook_url: Option<String>,
    pub(crate) human_request_webhook_url: Option<String>,
    /// How long the fork's sandbox is kept after its last use, in milliseconds.
    pub(crate) sandbox_ttl_ms: u64,
    pub(crate) by: By,
    pub(crate) api_key: Option<ApiKeyId>,
    /// The source of the request.
    pub(crate) source: RunSource,
}

/// Creates a fork: copies the files, then creates the run.
pub(crate) async fn fork_run(
    engine: &EngineContext,
    new: NewFork,
    once: Idempotent<RunView>,
) -> Result<Outcome<RunView>, UseCaseError> {
    let now = engine.clock.now();
    let sandbox = if new.files {
        copied_files(engine, new.team, new.run).await?
    } else {
        None
    };
    let fork = ForkRun {
        team: new.team,
        run: new.run,
        id: engine.ids.run(now),
        after: new.after_message,
        build: new.build,
        source: new.source,
        webhook_url: new.webhook_url,
        human_request_webhook_url: new.human_request_webhook_url,
        untrusted: new
            .message
            .as_ref()
            .is_some_and(|message| message.untrusted),
        message: new
            .message
            .map(|message| (engine.ids.message(now), message.text)),
        by: new.by,
        api_key: new.api_key,
        sandbox: sandbox.clone(),
        sandbox_ttl_ms: new.sandbox_ttl_ms,
        expected_build: None,
        now,
    };
    let answer = checked_start::fork_run(&engine.store, &engine.models, fork, once).await;
    // It is unknown whether the transaction was committed, so the copy may belong to the new run. If not, the janitor
    // finds it.
    let is_unknown = matches!(
        answer,
        Err(StoreError::Unavailable(_) | StoreError::Trouble { .. } | StoreError::Sql(_))
    );
    if !matches!(answer, Ok(Outcome::Executed(_)))
        && !is_unknown
        && let Some(copy) = sandbox
    {
        discard(engine, copy).await;
    }
    Ok(answer?)
}

/// Copies the run's files into a new directory. `None` if the run has no files, or they have expired.
async fn copied_files(
    engine: &EngineContext,
    team: TeamId,
    run: RunId,
) -> Result<Option<SandboxId>, UseCaseError> {
    let now = engine.clock.now();
    let view = engine.store.run(team, run).await?;
    let Some(old) = view.run.sandbox_id.as_deref().and_then(SandboxId::parse) else {
        return Ok(None);
    };
    let recorded = match engine.store.sandbox(team, &old, now).await {
        Ok(row) => charged(&row),
        Err(StoreError::NotFound) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (sandboxes, new) = (engine.sandboxes.clone(), engine.ids.sandbox(now));
    blocking(move || {
        if sandboxes.is_lost(&old, recorded) {
            return Err(FileError::SandboxLost.into());
        }
        let from = match Root::open(&sandboxes.path_of(&old)) {
            Ok(from) => from,
            // The sandbox exists, but no file was ever written.
            Err(FileError::SandboxMissing) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let limits = CopyLimits {
            bytes_max: FORK_COPY_BYTES_MAX,
            names_max: FORK_COPY_NAMES_MAX,
        };
        // The directory has no row yet, but its size counts already, so that nothing else takes the space.
        let charged = Charged { team, bytes: 0 };
        let copied = sandboxes
            .root(&new, charged)
            .map_err(CopyError::from)
            .and_then(|to| from.copy_into(&to, limits));
        match copied {
            Ok(_) => Ok(Some(new)),
            Err(error) => {
                // A partial copy is useless. If it cannot be removed now, the janitor finds it.
                drop(sandboxes.remove(&new, None, now));
                Err(match error {
                    CopyError::TooMuch(_) => UseCaseError::invalid(
                        "files",
                        format!("{error}; send \"files\": false to start without the files"),
                    ),
                    CopyError::File(error) => error.into(),
                })
            }
        }
    })
    .await
}

/// Removes a copy that belongs to no run. If this fails, the janitor finds it later.
async fn discard(engine: &EngineContext, copy: SandboxId) {
    let (sandboxes, now) = (engine.sandboxes.clone(), engine.clock.now());
    let removed = blocking(move || Ok::<_, UseCaseError>(sandboxes.remove(&copy, None, now))).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(
            error = errand_core::error_chain::error_chain(&error),
            "a copy of files without a run could not be removed yet"
        );
    }
}
