//! Endpoints for the API reference that the program serves.
//!
//! The content is the same for everyone and does not change while the program runs, so it is generated once and has an
//! `ETag`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::api::{openapi, page};
use crate::http::compress::PublicPage;
use crate::http::range::is_known;
use crate::state::AppState;

/// Returns the API reference as a web page.
#[utoipa::path(get, path = "/v1/documentation", tag = "Documentation", security(()),
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` of a known version. If it is current, the response is 304.")),
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html"),
        (status = 304, description = "The client's version is current."),
    ))]
pub(crate) async fn documentation_page(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Response {
    let page = app
        .document_page
        .get_or_init(|| page::of(&document(&app)).into())
        .clone();
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    let mut response = unless_known(&headers, page, "text/html; charset=utf-8");
    response
        .headers_mut()
        .insert(header::CONTENT_SECURITY_POLICY, policy);
    response.extensions_mut().insert(PublicPage);
    response
}

/// Returns the API reference as an OpenAPI 3.1 document.
#[utoipa::path(get, path = "/v1/documentation/json", tag = "Documentation", security(()),
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` of a known version. If it is current, the response is 304.")),
    responses(
        (status = 200, description = "The document.", body = Object),
        (status = 304, description = "The client's version is current."),
    ))]
pub(crate) async fn documentation_json(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Response {
    let body = app
        .document
        .get_or_init(|| document(&app).to_string().into())
        .clone();
    unless_known(&headers, body, "application/json")
}

fn document(app: &AppState) -> Value {
    let settings = &app.settings;
    openapi::document(&settings.public_url, settings.unknown_fields_refused)
}

/// The body with its `ETag`, or 304 for a client that has this version. The tag is weak, because it is the same for
/// each content encoding.
fn unless_known(headers: &HeaderMap, body: Bytes, kind: &'static str) -> Response {
    let digest = hex::encode(Sha256::digest(&body));
    let etag = format!("W/\"{}\"", digest.get(..32).unwrap_or_default());
    let etag = HeaderValue::from_str(&etag).unwrap_or(HeaderValue::from_static("W/\"-\""));
    let tag = [(header::ETAG, etag.clone())];
    if is_known(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
    (tag, kind, body).into_response()
}
