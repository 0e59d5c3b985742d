//! Whether the program lives, and whether it takes requests.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use errand_store::{Store, Trouble};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::error::{ApiError, ErrorResponse};

/// `{"status": "ok"}`.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// Always `ok`.
    #[schema(value_type = String, example = "ok")]
    status: &'static str,
}

pub(crate) fn alive() -> axum::Json<Health> {
    axum::Json(Health { status: "ok" })
}

/// Whether the program lives. Says nothing of whether it can work.
#[utoipa::path(get, path = "/healthz", tag = "Health", security(()), responses((status = 200, description = "It lives.", body = Health)))]
pub(crate) async fn healthz() -> axum::Json<Health> {
    alive()
}

/// Whether the program takes requests: migrations and recovery are done, and it is not stopping.
#[utoipa::path(get, path = "/readyz", tag = "Health", security(()), responses(
    (status = 200, description = "It takes requests.", body = Health),
    (status = 503, description = "It is starting or stopping, or cannot write: the message says why.", body = ErrorResponse),
))]
pub(crate) async fn readyz(State(app): State<AppState>) -> Response {
    if app.draining.is_cancelled() {
        return ApiError::unavailable("the server is stopping").into_response();
    }
    if let Some(why) = store_trouble(&app.store).await {
        return ApiError::unavailable(why).into_response();
    }
    alive().into_response()
}

/// Why the store cannot take what requests bring. None: it can.
async fn store_trouble(store: &Store) -> Option<String> {
    if let Some(why) = store.condition().why_not_ready() {
        return Some(why);
    }
    // A disk that no write has met yet.
    let dir = store.dir().to_owned();
    let is_full = tokio::task::spawn_blocking(move || crate::watch::is_full(&dir));
    let is_full = is_full.await.unwrap_or(false);
    is_full.then(|| Trouble::Full.to_string())
}
