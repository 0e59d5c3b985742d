//! The secret that a team's webhooks are signed with.

use axum::Json as Answered;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;

/// The secret, as libraries for Standard Webhooks take it.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookSecretResponse {
    #[schema(example = "whsec_…")]
    secret: String,
}

/// The secret that signs the team's webhooks.
#[utoipa::path(get, path = "/v1/webhook-secret", tag = "Webhooks",
    responses((status = 200, description = "The secret.", body = WebhookSecretResponse)))]
pub(crate) async fn get_webhook_secret(
    caller: Caller,
    State(app): State<AppState>,
) -> Result<Answered<WebhookSecretResponse>, ApiError> {
    Ok(Answered(WebhookSecretResponse {
        secret: app.store.webhook_secret(caller.team()).await?,
    }))
}
