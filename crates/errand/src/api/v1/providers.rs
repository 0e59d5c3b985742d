//! Endpoints for a team's own model providers. A key can be set but never read.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::TeamId;
use errand_core::time::Timestamp;
use errand_engine::model::network::{Kind, OwnProviders};
use errand_store::model::{ProviderRow, PutProvider};
use errand_store::{Once, Store, StoreError};
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::idempotency::{IdempotencyKey, no_content, response};
use crate::http::error::ApiError;
use crate::http::path::{Path, ProviderName};

/// Maximum length of a key or an address.
const TEXT_CHARS_MAX: usize = 2_000;

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
    pub(crate) kind: Option<String>,
    /// The base address: without a version for Anthropic and Gemini, with it for OpenAI and compatible servers.
    #[schema(example = "https://models.example.com/v1")]
    pub(crate) base_url: Option<String>,
    /// The API key. If omitted, the stored key is kept, unless the kind or the address changes.
    #[schema(write_only)]
    pub(crate) api_key: Option<String>,
}

impl RequestBody for PutProviderRequest {}

/// The provider settings of a team.
pub(crate) async fn own_providers(store: &Store, team: TeamId) -> Result<OwnProviders, StoreError> {
    OwnProviders::of(store, team).await
}

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
    let put = checked_provider(&app, caller.team(), name, body.value)?;
    let row = app.store.put_provider(put, Once::not_recorded()).await?;
    let provider = row.fresh()?;
    Ok(Answered(ProviderResponse {
        provider: provider.into(),
    }))
}

/// Validates provider settings.
pub(crate) fn checked_provider(
    app: &AppState,
    team: TeamId,
    name: String,
    request: PutProviderRequest,
) -> Result<PutProvider, ApiError> {
    let kinds = Kind::ALL.map(Kind::as_str).join(", ");
    let kind = match &request.kind {
        Some(text) => Kind::parse(text),
        None => Kind::well_known(&name),
    };
    let kind = kind.ok_or_else(|| ApiError::invalid("kind", format!("must be one of {kinds}")))?;
    if let Some(text) = &request.base_url {
        check_base_url(app, text)?;
    } else if kind == Kind::OpenAiCompatible {
        return Err(ApiError::invalid(
            "base_url",
            "it is missing: send an http or https address",
        ));
    }
    if let Some(key) = &request.api_key {
        let fits =
            (1..=TEXT_CHARS_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        if !fits {
            return Err(ApiError::invalid(
                "api_key",
                "must have 1 to 2000 visible ASCII characters",
            ));
        }
    }
    Ok(PutProvider {
        team,
        name,
        kind: kind.as_str().to_owned(),
        base_url: request.base_url,
        key: request.api_key,
        now: app.clock.now(),
    })
}

fn check_base_url(app: &AppState, text: &str) -> Result<(), ApiError> {
    let wrong = |message: String| ApiError::invalid("base_url", message);
    let url = Url::parse(text).map_err(|e| wrong(format!("it is not a valid address: {e}")))?;
    if url.query().is_some() || url.fragment().is_some() || text.len() > TEXT_CHARS_MAX {
        return Err(wrong("must not have a query".to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "must not contain a user name or password: every member of the team can read it. Put the \
             provider's key into api_key"
                .to_owned(),
        ));
    }
    match app.models.network() {
        Some(network) => network
            .check_base_url(&url)
            .map_err(|e| wrong(e.to_string())),
        None => Ok(()),
    }
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
