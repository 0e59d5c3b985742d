//! Health endpoints: whether the program is alive, and whether it is ready for requests.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::{ApiError, ErrorResponse};
use crate::state::AppState;

/// The response of a healthy server.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// Always `ok`.
    #[schema(value_type = String, example = "ok")]
    status: &'static str,
}

pub(crate) fn alive() -> axum::Json<Health> {
    axum::Json(Health { status: "ok" })
}

/// Reports whether the program is alive.
///
/// It does not check whether the program can serve requests.
#[utoipa::path(get, path = "/healthz", tag = "Health", security(()), responses((status = 200, description = "The program is alive.", body = Health)))]
pub(crate) async fn healthz() -> axum::Json<Health> {
    alive()
}

/// Reports whether the server is ready for requests.
///
/// It is ready if migrations and recovery are complete, the database answers reads and writes, threads are free, and
/// the server is not stopping. The message of a 503 says what is missing.
#[utoipa::path(get, path = "/readyz", tag = "Health", security(()), responses(
    (status = 200, description = "The server is ready.", body = Health),
    (status = 503, description = "The server is starting or stopping, or cannot serve requests.", body = ErrorResponse),
))]
pub(crate) async fn readyz(State(app): State<AppState>) -> Response {
    match app.readiness.check(&app).await {
        Ok(()) => alive().into_response(),
        Err(why) => ApiError::unavailable(why).into_response(),
    }
}
