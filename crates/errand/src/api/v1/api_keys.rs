//! Endpoints for API keys. The secret key is shown once, when it is created. It is not stored, so a replayed response
//! does not contain it.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use errand_core::id::ApiKeyId;
use errand_core::time::Timestamp;
use errand_store::model::{ApiKey, PageQuery};
use errand_store::{NewApiKey, Outcome, StoredAnswer};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::name::Name;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, replayed, response};
use crate::api::query::{ListPage, PageParams, Query};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::secret_key::ApiKeySecret;
use crate::state::AppState;

/// An API key, without the secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct ApiKeyBody {
    id: Uuid,
    name: String,
    /// The first characters of the key, to identify it.
    #[schema(example = "dv_4fGh1k")]
    prefix: String,
    /// The user whose role the key has.
    created_by: Uuid,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Accurate to the minute.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    last_used_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    expires_at: Option<Timestamp>,
}

impl From<&ApiKey> for ApiKeyBody {
    fn from(key: &ApiKey) -> Self {
        Self {
            id: key.id.as_uuid(),
            name: key.name.clone(),
            prefix: key.prefix.clone(),
            created_by: key.created_by.as_uuid(),
            created_at: key.created_at,
            last_used_at: key.last_used_at,
            expires_at: key.expires_at,
        }
    }
}

/// A page of keys.
#[derive(Serialize, ToSchema)]
pub(crate) struct ApiKeyListResponse {
    api_keys: Vec<ApiKeyBody>,
    /// The total number of keys.
    total: u64,
    limit: u32,
    offset: u64,
}

/// The request to create an API key.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateApiKeyRequest {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    /// The time when the key expires. It must not be later than the expiry of the key that creates it.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

impl RequestBody for CreateApiKeyRequest {}

/// A new API key, with the secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct NewApiKeyResponse {
    #[serde(flatten)]
    about: ApiKeyBody,
    /// The secret key, shown only in this response. Null if the response is a replay.
    #[schema(required, example = "dv_…")]
    key: Option<String>,
    /// True if the response is a replay: the key was shown before and is not stored.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    shown_once: bool,
}

/// Lists the team's API keys, newest first, including expired ones.
#[utoipa::path(get, path = "/v1/api-keys", tag = "API keys", params(PageParams),
    responses((status = 200, description = "A page of keys.", body = ApiKeyListResponse)))]
pub(crate) async fn list_api_keys(
    caller: Caller,
    State(app): State<AppState>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<ApiKeyListResponse>, ApiError> {
    let page = app.store.list_api_keys(caller.team(), query).await?;
    let api_keys = page.items.iter().map(ApiKeyBody::from).collect();
    let PageQuery { limit, offset } = query;
    Ok(Answered(ApiKeyListResponse {
        api_keys,
        total: page.total,
        limit,
        offset,
    }))
}

/// Creates an API key with the caller's role.
///
/// The secret key is only in this response and cannot be shown again.
#[utoipa::path(post, path = "/v1/api-keys", tag = "API keys", request_body = CreateApiKeyRequest,
    responses((status = 201, description = "The key.", body = NewApiKeyResponse)))]
pub(crate) async fn create_api_key(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<CreateApiKeyRequest>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let secret = ApiKeySecret::generate().map_err(ApiError::internal)?;
    let new = NewApiKey {
        id: app.ids.api_key(now),
        team: caller.team(),
        created_by: caller.user(),
        name: body.value.name.0,
        prefix: secret.prefix().to_owned(),
        hash: secret.hash(),
        expires_at: body.value.expires_at,
        not_after: caller.expires_at(),
        now,
    };
    Ok(
        match app
            .store
            .create_api_key(new, key.once(&caller, body.sha256, render_recorded))
            .await?
        {
            Outcome::Executed(made) => {
                let body = NewApiKeyResponse {
                    about: (&made).into(),
                    key: Some(secret.expose().to_owned()),
                    shown_once: false,
                };
                (StatusCode::CREATED, Answered(body)).into_response()
            }
            Outcome::Replayed(stored) => replayed(stored),
        },
    )
}

/// The stored response for replays, without the secret key.
fn render_recorded(key: &ApiKey) -> StoredAnswer {
    rendered(
        StatusCode::CREATED,
        &NewApiKeyResponse {
            about: key.into(),
            key: None,
            shown_once: true,
        },
    )
}

/// Deletes an API key.
///
/// Requests with it are refused from now on, and its open streams end.
#[utoipa::path(delete, path = "/v1/api-keys/{key_id}", tag = "API keys", params(("key_id" = Uuid, Path, description = "The key's id.")),
    responses((status = 204, description = "Deleted.")))]
pub(crate) async fn delete_api_key(
    caller: Caller,
    State(app): State<AppState>,
    Path(id): Path<ApiKeyId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app
        .store
        .delete_api_key(caller.team(), id, app.clock.now(), once)
        .await?;
    Ok(response(answer, no_content))
}
