//! Forks: new runs that start with a copy of another run's transcript and files.
//!
//! The files are copied first, into a directory without a database row. The transaction that creates the run also
//! creates the row. A crash in between leaves a directory that the janitor removes.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use errand_core::author::By;
use errand_core::id::{ApiKeyId, BuildId, MessageId, RunId, SandboxId, TeamId};
use errand_core::limits::{FORK_COPY_BYTES_MAX, FORK_COPY_NAMES_MAX};
use errand_sandbox::{Charged, CopyError, CopyLimits, FileError, Root};
use errand_store::model::{RunView, Runnable};
use errand_store::{Answer, ForkRun, Once, StoreError};
use serde::Deserialize;
use utoipa::ToSchema;

use super::files::charged;
use super::name::webhook_url;
use super::providers::own_providers;
use super::runs::{RunResponse, render_started, unmarked_message};
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody};
use crate::api::idempotency::{IdempotencyKey, replayed, response};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::http::receive::blocking;

/// The request to fork a run.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct ForkRunRequest {
    /// The last message to copy. Default: all messages.
    #[schema(value_type = Option<Uuid>)]
    pub(crate) after_message: Option<MessageId>,
    /// Another build of the run's agent. Default: the run's own build.
    #[schema(value_type = Option<Uuid>)]
    pub(crate) build: Option<BuildId>,
    /// A message after the copied ones. Required if the run had ended with the last copied message.
    #[schema(min_length = 1)]
    pub(crate) message: Option<String>,
    /// Whether strangers may have written `message`, for example an email that a program forwards. Tools with the
    /// policy `guard` then ask a person. Permitted only with a `message`.
    #[schema(default = false)]
    pub(crate) untrusted: Option<bool>,
    /// Whether the fork gets a copy of the run's current files. If false, it starts with an empty sandbox.
    #[schema(default = true)]
    pub(crate) files: Option<bool>,
    /// Receives all webhooks of the fork. The run's own addresses are not copied.
    #[schema(example = "https://example.com/hook")]
    pub(crate) webhook_url: Option<String>,
    /// Receives only `human_request` webhooks.
    pub(crate) human_request_webhook_url: Option<String>,
}

impl RequestBody for ForkRunRequest {}

/// Starts a new run with a copy of this run's transcript up to a message.
///
/// What the run did after that message is not copied, and may be done again. Calls and requests that are open at the
/// cut are closed in the copy, and the fork makes them again. This run is not changed. The fork works on a copy of its
/// current files, of at most 1 GiB in 20,000 files and directories.
#[utoipa::path(post, path = "/v1/runs/{run_id}/fork", tag = "Runs", params(("run_id" = Uuid, Path, description = "The run.")),
    request_body = ForkRunRequest,
    responses((status = 201, description = "The new run is queued.", body = RunResponse)))]
pub(crate) async fn fork_run(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
    key: IdempotencyKey,
    body: Json<ForkRunRequest>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let wanted = checked(&app, body.value)?;
    if let Some(idem) = key.idem(&caller, body.sha256)
        && let Some(stored) = app.store.recall(idem, now).await?
    {
        return Ok(replayed(stored));
    }
    let by = Forking {
        team: caller.team(),
        by: caller.by(),
        api_key: Some(caller.api_key()),
        source: "api",
    };
    let once = key.once(&caller, body.sha256, render_started);
    let answer = make(&app, &by, run, wanted, once).await?;
    Ok(response(answer?, render_started))
}

/// The author and the source of a fork.
pub(crate) struct Forking {
    pub(crate) team: TeamId,
    pub(crate) by: By,
    pub(crate) api_key: Option<ApiKeyId>,
    pub(crate) source: &'static str,
}

/// Creates a fork: copies the files, then creates the run. The inner error is the store's.
pub(crate) async fn make(
    app: &AppState,
    by: &Forking,
    run: RunId,
    wanted: ForkRunRequest,
    once: Once<RunView>,
) -> Result<Result<Answer<RunView>, StoreError>, ApiError> {
    let now = app.clock.now();
    let sandbox = if wanted.files.unwrap_or(true) {
        copied_files(app, by.team, run).await?
    } else {
        None
    };
    let models = app.models.clone();
    let own = own_providers(&app.store, by.team).await?;
    let fork = ForkRun {
        team: by.team,
        run,
        id: app.ids.run(now),
        after: wanted.after_message,
        build: wanted.build,
        source: by.source,
        webhook_url: wanted.webhook_url,
        human_request_webhook_url: wanted.human_request_webhook_url,
        message: wanted.message.map(|text| (app.ids.message(now), text)),
        untrusted: wanted.untrusted.unwrap_or(false),
        by: by.by.clone(),
        api_key: by.api_key,
        sandbox: sandbox.clone(),
        sandbox_ttl_ms: app.settings.sandbox_ttl_ms,
        runnable: Runnable(Arc::new(move |build| models.check(build, &own))),
        now,
    };
    let answer = app.store.fork(fork, once).await;
    // It is unknown whether the transaction was committed, so the copy may belong to the new run. If not, the janitor
    // finds it.
    let is_unknown = matches!(
        answer,
        Err(StoreError::Unavailable(_) | StoreError::Trouble { .. } | StoreError::Sql(_))
    );
    if !matches!(answer, Ok(Answer::Fresh(_)))
        && !is_unknown
        && let Some(copy) = sandbox
    {
        discard(app, copy).await;
    }
    Ok(answer)
}

fn checked(app: &AppState, request: ForkRunRequest) -> Result<ForkRunRequest, ApiError> {
    if request.message.as_ref().is_some_and(String::is_empty) {
        return Err(ApiError::invalid("message", "must not be empty"));
    }
    if request.untrusted == Some(true) && request.message.is_none() {
        return Err(unmarked_message());
    }
    let private = app.settings.allow_private_networks;
    Ok(ForkRunRequest {
        webhook_url: webhook_url("webhook_url", request.webhook_url, private)?,
        human_request_webhook_url: webhook_url(
            "human_request_webhook_url",
            request.human_request_webhook_url,
            private,
        )?,
        ..request
    })
}

/// Copies the run's files into a new directory. `None` if the run has no files, or they have expired.
async fn copied_files(
    app: &AppState,
    team: TeamId,
    run: RunId,
) -> Result<Option<SandboxId>, ApiError> {
    let now = app.clock.now();
    let view = app.store.run(team, run).await?;
    let Some(old) = view.run.sandbox_id.as_deref().and_then(SandboxId::parse) else {
        return Ok(None);
    };
    let recorded = match app.store.sandbox(team, &old, now).await {
        Ok(row) => charged(&row),
        Err(StoreError::NotFound) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (sandboxes, new) = (app.sandboxes.clone(), app.ids.sandbox(now));
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
                    CopyError::TooMuch(_) => ApiError::invalid(
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
async fn discard(app: &AppState, copy: SandboxId) {
    let (sandboxes, now) = (app.sandboxes.clone(), app.clock.now());
    let removed = blocking(move || Ok(sandboxes.remove(&copy, None, now))).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(
            error = errand_core::error_chain::error_chain(&error),
            "a copy of files without a run could not be removed yet"
        );
    }
}
