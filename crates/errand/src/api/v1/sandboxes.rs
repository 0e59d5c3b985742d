//! Endpoints for creating and deleting sandboxes. See [`super::files`] and [`super::uploads`] for their files.

use axum::extract::State;
use axum::response::Response;
use errand_core::id::SandboxId;
use errand_core::time::Timestamp;
use errand_sandbox::Charged;
use errand_store::model::Sandbox;
use errand_store::{Outcome, StoredAnswer};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::auth::Caller;
use crate::api::body::NoBody;
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, response};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;
use crate::usecase::blocking::blocking;
use crate::usecase::sandbox_files::charged;
use errand_core::error_chain::error_chain;

/// A new sandbox.
#[derive(Serialize, ToSchema)]
pub(crate) struct SandboxResponse {
    /// An opaque id.
    #[schema(example = "sb_0198f2a47c1e70008000000000000001")]
    sandbox_id: String,
    /// The time when the sandbox and its files are deleted, unless it is used before then.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Creates a sandbox, a directory for files that runs work on.
#[utoipa::path(post, path = "/v1/sandboxes", tag = "Sandboxes",
    responses((status = 201, description = "The sandbox.", body = SandboxResponse)))]
pub(crate) async fn create_sandbox(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let expires_at = now.plus_ms(app.settings.sandbox_ttl_ms);
    let once = key.once(&caller, body.sha256, render);
    let answer = app
        .store
        .create_sandbox(caller.team(), app.ids.sandbox(now), expires_at, now, once)
        .await?;
    Ok(response(answer, render))
}

fn render(sandbox: &Sandbox) -> StoredAnswer {
    let body = SandboxResponse {
        sandbox_id: sandbox.id.as_str().to_owned(),
        expires_at: sandbox.expires_at,
    };
    rendered(StatusCode::CREATED, &body)
}

/// Deletes a sandbox and its files.
///
/// The response is 409 while a run that uses it has not ended.
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox_id}", tag = "Sandboxes",
    params(("sandbox_id" = String, Path, description = "The sandbox.")),
    responses((status = 204, description = "Deleted.")))]
pub(crate) async fn delete_sandbox(
    caller: Caller,
    State(app): State<AppState>,
    Path(sandbox): Path<SandboxId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let now = app.clock.now();
    // The row is read first, because after the deletion its size could no longer be returned to the team's quota.
    let row = app.store.sandbox(caller.team(), &sandbox, now).await.ok();
    let answer = app
        .store
        .delete_sandbox(caller.team(), &sandbox, now, once)
        .await?;
    if let Outcome::Executed(()) = answer {
        remove_files(&app, sandbox, row.as_ref().map(charged)).await;
    }
    Ok(response(answer, no_content))
}

/// Removes the files after the row was deleted. If this fails, the janitor removes them later.
async fn remove_files(app: &AppState, sandbox: SandboxId, charged: Option<Charged>) {
    let sandboxes = app.sandboxes.clone();
    let name = sandbox.clone();
    let now = app.clock.now();
    let removed = blocking(move || Ok::<_, ApiError>(sandboxes.remove(&name, charged, now))).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(
            error = error_chain(&error),
            "the files of sandbox {sandbox} could not be removed yet"
        );
    }
}
