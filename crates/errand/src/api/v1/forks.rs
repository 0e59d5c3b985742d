//! Forks a run.

use axum::extract::State;
use axum::response::Response;
use errand_core::id::{BuildId, MessageId, RunId};
use errand_core::run::RunSource;
use serde::Deserialize;
use utoipa::ToSchema;

use super::runs::{RunResponse, render_started};
use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody};
use crate::api::idempotency::{IdempotencyKey, replayed, response};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;
use crate::usecase::fork_run::{self, NewFork};
use crate::usecase::start_run::checked_message;
use crate::usecase::webhook_url::webhook_url;

/// The request to fork a run.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ForkRunRequest {
    /// The last message to copy. Default: all messages.
    #[schema(value_type = Option<Uuid>)]
    after_message: Option<MessageId>,
    /// Another build of the run's agent. Default: the run's own build.
    #[schema(value_type = Option<Uuid>)]
    build: Option<BuildId>,
    /// A message after the copied ones. Required if the run had ended with the last copied message.
    #[schema(min_length = 1)]
    message: Option<String>,
    /// Whether strangers may have written `message`, for example an email that a program forwards. Tools with the
    /// policy `guard` then ask a person. Permitted only with a `message`.
    #[schema(default = false)]
    untrusted: Option<bool>,
    /// Whether the fork gets a copy of the run's current files. If false, it starts with an empty sandbox.
    #[schema(default = true)]
    files: Option<bool>,
    /// Receives all webhooks of the fork. The run's own addresses are not copied.
    #[schema(example = "https://example.com/hook")]
    webhook_url: Option<String>,
    /// Receives only `human_request` webhooks.
    human_request_webhook_url: Option<String>,
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
    let new = checked(&app, &caller, run, body.value)?;
    if let Some(idem) = key.idem(&caller, body.sha256)
        && let Some(stored) = app.store.lookup_idempotent(idem, now).await?
    {
        return Ok(replayed(stored));
    }
    let once = key.once(&caller, body.sha256, render_started);
    let answer = fork_run::fork_run(&app, new, once).await?;
    Ok(response(answer, render_started))
}

fn checked(
    app: &AppState,
    caller: &Caller,
    run: RunId,
    request: ForkRunRequest,
) -> Result<NewFork, ApiError> {
    let private = app.settings.allow_private_networks;
    Ok(NewFork {
        team: caller.team(),
        run,
        after_message: request.after_message,
        build: request.build,
        message: checked_message(request.message, request.untrusted.unwrap_or(false))?,
        files: request.files.unwrap_or(true),
        webhook_url: webhook_url("webhook_url", request.webhook_url, private)?,
        human_request_webhook_url: webhook_url(
            "human_request_webhook_url",
            request.human_request_webhook_url,
            private,
        )?,
        sandbox_ttl_ms: app.settings.sandbox_ttl_ms,
        by: caller.by(),
        api_key: Some(caller.api_key()),
        source: RunSource::Api,
    })
}
