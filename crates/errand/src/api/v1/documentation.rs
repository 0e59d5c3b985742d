//! The documentation that the program itself serves.

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::header::{self, HeaderValue};

use crate::api::{AppState, openapi, page};

/// All endpoints, on a page for people.
#[utoipa::path(get, path = "/v1/documentation", tag = "Documentation", security(()),
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
pub(crate) async fn documentation_page(State(app): State<AppState>) -> Response {
    let page = page::of(&openapi::document(&app.settings.public_url));
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(page)).into_response()
}

/// All endpoints, as an OpenAPI 3.1 document.
#[utoipa::path(get, path = "/v1/documentation/json", tag = "Documentation", security(()),
    responses((status = 200, description = "The document.", body = Object)))]
pub(crate) async fn documentation_json(State(app): State<AppState>) -> Response {
    let document = app
        .document
        .get_or_init(|| {
            openapi::document(&app.settings.public_url)
                .to_string()
                .into()
        })
        .clone();
    (
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        document,
    )
        .into_response()
}
