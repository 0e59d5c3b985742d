//! Endpoints for a team's own model providers. A key can be set but never read.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::time::Timestamp;
use errand_store::Idempotent;
use errand_store::model::ProviderRow;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::idempotency::{IdempotencyKey, no_content, response};
use crate::http::error::ApiError;
use crate::http::path::{Path, ProviderName};
use crate::state::AppState;
use crate::usecase::provider_checks::{NewProvider, checked_provider};

/// A team's own settings for a provider, without the key.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProviderBody {
    /// The name in model names: `<name>/<model>`.
    #[schema(example = "anthropic")]
    name: String,
    /// `anthropic`, `openai`, `gemini` or `openai_compatible`.
    kind: String,
    /// Null for the provider's own address, or the operator's.
    #[schema(required)]
    base_url: Option<String>,
    /// Whether a key is set.
    has_key: bool,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<ProviderRow> for ProviderBody {
    fn from(row: ProviderRow) -> Self {
        Self {
            name: row.name,
            kind: row.kind,
            base_url: row.base_url,
            has_key: row.has_key,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// The providers of a team.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProviderListResponse {
    providers: Vec<ProviderBody>,
}

/// A provider of a team.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProviderResponse {
    provider: ProviderBody,
}

/// The settings of a provider. Omitted settings are removed, except the key.
#[derive(Deserialize, ToSchema)]
pub(crate) struct PutProviderRequest {
    /// The protocol: `anthropic`, `openai`, `gemini` or `openai_compatible`. It can be omitted if the name is one of
    /// the first three.
    kind: Option<String>,
    /// The base address: without a version for Anthropic and Gemini, with it for OpenAI and compatible servers.
    #[schema(example = "https://models.example.com/v1")]
    base_url: Option<String>,
    /// The API key. If omitted, the stored key is kept, unless the kind or the address changes.
    #[schema(write_only)]
    api_key: Option<String>,
}

impl RequestBody for PutProviderRequest {}

/// Lists the team's own provider settings, sorted by name.
///
/// For other providers, the operator's settings apply.
#[utoipa::path(get, path = "/v1/providers", tag = "Models",
    responses((status = 200, description = "The providers.", body = ProviderListResponse)))]
pub(crate) async fn list_providers(
    caller: Caller,
    State(app): State<AppState>,
) -> Result<Answered<ProviderListResponse>, ApiError> {
    let rows = app.store.providers(caller.team()).await?;
    Ok(Answered(ProviderListResponse {
        providers: rows.into_iter().map(ProviderBody::from).collect(),
    }))
}

/// Creates or replaces the team's settings for a provider.
///
/// The key is stored encrypted and is never shown.
#[utoipa::path(put, path = "/v1/providers/{provider}", tag = "Models", request_body = PutProviderRequest,
    params(("provider" = String, Path, description = "The name: lower-case letters, digits, `_` and `-`.")),
    responses((status = 200, description = "The stored settings.", body = ProviderResponse)))]
pub(crate) async fn put_provider(
    caller: Caller,
    State(app): State<AppState>,
    Path(ProviderName(name)): Path<ProviderName>,
    body: Json<PutProviderRequest>,
) -> Result<Answered<ProviderResponse>, ApiError> {
    let PutProviderRequest {
        kind,
        base_url,
        api_key,
    } = body.value;
    let new = NewProvider {
        team: caller.team(),
        name,
        kind,
        base_url,
        api_key,
    };
    let put = checked_provider(&app, new)?;
    let row = app
        .store
        .put_provider(put, Idempotent::not_recorded())
        .await?;
    let provider = row.executed()?;
    Ok(Answered(ProviderResponse {
        provider: provider.into(),
    }))
}

/// Removes the team's own settings for a provider, including the key.
///
/// The operator's settings apply again.
#[utoipa::path(delete, path = "/v1/providers/{provider}", tag = "Models",
    params(("provider" = String, Path, description = "The name of the provider.")),
    responses((status = 204, description = "Removed.")))]
pub(crate) async fn delete_provider(
    caller: Caller,
    State(app): State<AppState>,
    Path(ProviderName(name)): Path<ProviderName>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app
        .store
        .delete_provider(caller.team(), name, app.clock.now(), once)
        .await?;
    Ok(response(answer, no_content))
}
