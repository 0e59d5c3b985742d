//! Whether the program lives, and whether it takes requests.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
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

/// Whether the program can do what a request needs: migrations and recovery are done, the database answers reads and
/// takes writes, threads are free, and it is not stopping. The message of a 503 says what is missing.
#[utoipa::path(get, path = "/readyz", tag = "Health", security(()), responses(
    (status = 200, description = "It takes requests.", body = Health),
    (status = 503, description = "It is starting or stopping, or cannot do what requests need.", body = ErrorResponse),
))]
pub(crate) async fn readyz(State(app): State<AppState>) -> Response {
    match app.readiness.check(&app).await {
        Ok(()) => alive().into_response(),
        Err(why) => ApiError::unavailable(why).into_response(),
    }
}
