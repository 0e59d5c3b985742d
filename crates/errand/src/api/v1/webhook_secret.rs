//! The secret that a team's webhooks are signed with.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use errand_core::time::Timestamp;
use errand_store::{Answer, NewSecret, RetiredSecret, Rolled, StoredAnswer};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::NoBody;
use crate::api::error::ApiError;
use crate::api::idempotency::{IdempotencyKey, rendered, replayed};
use crate::secret_key::webhook_secret;

/// The secret, as libraries for Standard Webhooks take it.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookSecretResponse {
    #[schema(example = "whsec_…")]
    secret: String,
    /// The secrets that it replaced and that still sign beside it, the newest first.
    retired: Vec<RetiredSecretBody>,
}

/// A secret that was replaced.
#[derive(Serialize, ToSchema)]
pub(crate) struct RetiredSecretBody {
    /// Until when it signs.
    #[schema(value_type = String, format = DateTime)]
    valid_until: Timestamp,
}

/// The new secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct RolledSecretResponse {
    /// Null in a replay: `GET /v1/webhook-secret` has it.
    #[schema(required, example = "whsec_…")]
    secret: Option<String>,
    /// The secrets that it replaced and that still sign beside it, the newest first.
    retired: Vec<RetiredSecretBody>,
}

/// The secret that signs the team's webhooks.
#[utoipa::path(get, path = "/v1/webhook-secret", tag = "Webhooks",
    responses((status = 200, description = "The secret.", body = WebhookSecretResponse)))]
pub(crate) async fn get_webhook_secret(
    caller: Caller,
    State(app): State<AppState>,
) -> Result<Answered<WebhookSecretResponse>, ApiError> {
    let secrets = app
        .store
        .signing_secrets(caller.team(), app.clock.now())
        .await?;
    let retired = |secret: &RetiredSecret| RetiredSecretBody {
        valid_until: secret.valid_until,
    };
    Ok(Answered(WebhookSecretResponse {
        retired: secrets.retired.iter().map(retired).collect(),
        secret: secrets.present,
    }))
}

/// Puts a new secret in the place of the present one, which signs for 24 hours more: until then `webhook-signature` has
/// a signature of each, separated by a blank, and a receiver may know either.
#[utoipa::path(post, path = "/v1/webhook-secret/roll", tag = "Webhooks",
    responses((status = 200, description = "The new secret.", body = RolledSecretResponse)))]
pub(crate) async fn roll_webhook_secret(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let secret = webhook_secret().map_err(ApiError::internal)?;
    let new = NewSecret {
        team: caller.team(),
        secret: secret.clone(),
        now: app.clock.now(),
    };
    let once = key.once(&caller, body.sha256, render_recorded);
    Ok(match app.store.roll_webhook_secret(new, once).await? {
        Answer::Fresh(rolled) => Answered(rolled_response(&rolled, Some(secret))).into_response(),
        Answer::Replayed(stored) => replayed(stored),
    })
}

fn rolled_response(rolled: &Rolled, secret: Option<String>) -> RolledSecretResponse {
    let retired = rolled.retired_until.iter().map(|until| RetiredSecretBody {
        valid_until: *until,
    });
    RolledSecretResponse {
        secret,
        retired: retired.collect(),
    }
}

/// What a replay gets: without the secret, which is kept sealed and nowhere else.
fn render_recorded(rolled: &Rolled) -> StoredAnswer {
    rendered(StatusCode::OK, &rolled_response(rolled, None))
}
