//! Endpoints for the secret that signs a team's webhooks.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use errand_core::time::Timestamp;
use errand_store::{NewSecret, Outcome, RetiredSecret, Rolled, StoredAnswer};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::auth::Caller;
use crate::api::body::NoBody;
use crate::api::idempotency::{IdempotencyKey, rendered, replayed};
use crate::http::error::ApiError;
use crate::secret_key::webhook_secret;
use crate::state::AppState;

/// The signing secret, in the form that Standard Webhooks libraries accept.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookSecretResponse {
    #[schema(example = "whsec_…")]
    secret: String,
    /// Replaced secrets that still sign too, newest first.
    retired: Vec<RetiredSecretBody>,
}

/// A replaced secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct RetiredSecretBody {
    /// The time until which it signs.
    #[schema(value_type = String, format = DateTime)]
    valid_until: Timestamp,
}

/// A new signing secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct RolledSecretResponse {
    /// Null if the response is a replay: read it with `GET /v1/webhook-secret`.
    #[schema(required, example = "whsec_…")]
    secret: Option<String>,
    /// Replaced secrets that still sign too, newest first.
    retired: Vec<RetiredSecretBody>,
}

/// Returns the secret that signs the team's webhooks.
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

/// Replaces the signing secret.
///
/// The previous secret signs for 24 more hours: until then, `webhook-signature` contains one signature per secret,
/// separated by a space, and a receiver may verify with either one.
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
        Outcome::Executed(rolled) => {
            Answered(rolled_response(&rolled, Some(secret))).into_response()
        }
        Outcome::Replayed(stored) => replayed(stored),
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

/// The stored response for replays, without the secret.
fn render_recorded(rolled: &Rolled) -> StoredAnswer {
    rendered(StatusCode::OK, &rolled_response(rolled, None))
}
