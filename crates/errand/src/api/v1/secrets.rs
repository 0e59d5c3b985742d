//! Endpoints for secrets. Values can be set and deleted, but no response contains them.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::time::Timestamp;
use errand_store::model::PageQuery;
use errand_store::{Secret, SetSecret, StoredAnswer};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, response};
use crate::api::query::{ListPage, PageParams, Query};
use crate::http::error::ApiError;
use crate::http::path::{Path, SecretName};
use crate::state::AppState;
use crate::usecase::secret_checks::check_secret;

/// A secret, without its value.
#[derive(Serialize, ToSchema)]
pub(crate) struct SecretBody {
    #[schema(example = "MAIL_TOKEN")]
    name: String,
    /// The user who last set the value.
    #[schema(required)]
    created_by: Option<Uuid>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The time when the value was last set.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<&Secret> for SecretBody {
    fn from(secret: &Secret) -> Self {
        Self {
            name: secret.name.clone(),
            created_by: secret.created_by.map(|user| user.as_uuid()),
            created_at: secret.created_at,
            updated_at: secret.updated_at,
        }
    }
}

/// A secret that was set.
#[derive(Serialize, ToSchema)]
pub(crate) struct SecretResponse {
    secret: SecretBody,
}

/// A page of secrets.
#[derive(Serialize, ToSchema)]
pub(crate) struct SecretListResponse {
    secrets: Vec<SecretBody>,
    /// The total number of secrets.
    total: u64,
    limit: u32,
    offset: u64,
}

/// The request to set a secret.
#[derive(Deserialize, ToSchema)]
pub(crate) struct SetSecretRequest {
    /// Letters, digits and `_`, not beginning with a digit. An existing secret of this name gets the new value.
    #[schema(min_length = 1, max_length = 64, example = "MAIL_TOKEN")]
    name: String,
    /// At least 12 characters. The value is never returned.
    #[schema(value_type = String, min_length = 12, write_only)]
    value: Value,
}

impl RequestBody for SetSecretRequest {}

/// A secret value. No error message repeats it, even if it has the wrong type.
struct Value(Option<String>);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Deserialize any type first, because serde's own type error would quote the value.
        let any = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(match any {
            serde_json::Value::String(text) => Some(text),
            _ => None,
        }))
    }
}

/// Lists the team's secrets by name, without their values.
#[utoipa::path(get, path = "/v1/secrets", tag = "Secrets", params(PageParams),
    responses((status = 200, description = "A page of secrets.", body = SecretListResponse)))]
pub(crate) async fn list_secrets(
    caller: Caller,
    State(app): State<AppState>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<SecretListResponse>, ApiError> {
    let page = app.store.list_secrets(caller.team(), query).await?;
    let PageQuery { limit, offset } = query;
    Ok(Answered(SecretListResponse {
        secrets: page.items.iter().map(SecretBody::from).collect(),
        total: page.total,
        limit,
        offset,
    }))
}

/// Creates a secret or replaces its value.
///
/// Builds refer to it as `{{ secret.NAME }}`. The value is never returned.
#[utoipa::path(post, path = "/v1/secrets", tag = "Secrets", request_body = SetSecretRequest,
    responses((status = 201, description = "The stored secret, without its value.", body = SecretResponse)))]
pub(crate) async fn set_secret(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<SetSecretRequest>,
) -> Result<Response, ApiError> {
    let SetSecretRequest { name, value } = body.value;
    let value = value
        .0
        .ok_or_else(|| ApiError::invalid("value", "must be a string".to_owned()))?;
    check_secret(&name, &value)?;
    let new = SetSecret {
        team: caller.team(),
        name,
        value,
        by: caller.user(),
        now: app.clock.now(),
    };
    let once = key.once(&caller, keyed(&app, body.sha256), render_set);
    let answer = app.store.set_secret(new, once).await?;
    Ok(response(answer, render_set))
}

fn render_set(secret: &Secret) -> StoredAnswer {
    rendered(
        StatusCode::CREATED,
        &SecretResponse {
            secret: secret.into(),
        },
    )
}

/// A keyed hash of a body with a secret, for idempotency. With a plain hash, a reader of the database could test
/// guesses.
fn keyed(app: &AppState, sha256: [u8; 32]) -> [u8; 32] {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&app.upload_key) else {
        return sha256;
    };
    mac.update(b"secret body\0");
    mac.update(&sha256);
    mac.finalize().into_bytes().into()
}

/// Deletes a secret.
///
/// Calls that refer to it fail from now on.
#[utoipa::path(delete, path = "/v1/secrets/{secret_name}", tag = "Secrets", params(("secret_name" = String, Path, description = "The secret's name.")),
    responses((status = 204, description = "Deleted.")))]
pub(crate) async fn delete_secret(
    caller: Caller,
    State(app): State<AppState>,
    Path(SecretName(name)): Path<SecretName>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app
        .store
        .delete_secret(caller.team(), name, app.clock.now(), once)
        .await?;
    Ok(response(answer, no_content))
}
