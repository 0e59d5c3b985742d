//! Cross-origin requests from browsers (CORS).
//!
//! # Guarantees
//!
//! - For an origin in `api.allowed_origins`, a preflight request for any path under `/v1` is answered without a key and
//!   does not count toward any limit, and that origin's scripts can read every response, including errors.
//! - Other origins get no permission.
//! - Cookies are never allowed: an API key is the only way to authenticate.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use super::error::{ApiError, ErrorCode};
use super::is_api;

/// The methods in the table of routes.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
/// Request headers that are allowed in addition to those that browsers always permit.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, x-request-id, last-event-id, range, if-range, if-none-match",
);
/// Response headers that scripts can read in addition to those that they always can.
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "x-request-id, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, retry-after, idempotency-replayed, \
     content-range, accept-ranges, content-disposition, etag",
);
/// The time for which a browser may cache a preflight response, in seconds.
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("600");

/// The origins whose scripts may call the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AllowedOrigins(Arc<BTreeSet<String>>);

impl AllowedOrigins {
    /// From the setting: origins such as `https://app.example.com`, with an optional port, or `*` for all.
    pub(crate) fn new(origins: impl IntoIterator<Item = String>) -> Self {
        Self(Arc::new(origins.into_iter().collect()))
    }

    fn allow(&self, origin: &HeaderValue) -> bool {
        self.0.contains("*")
            || origin
                .to_str()
                .is_ok_and(|origin| self.0.contains(&origin.to_ascii_lowercase()))
    }
}

/// The layer around all routes of the API.
pub(crate) async fn middleware(
    State(origins): State<AllowedOrigins>,
    request: Request,
    next: Next,
) -> Response {
    if origins.0.is_empty() || !is_api(request.uri().path()) {
        return next.run(request).await;
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.clone().filter(|origin| origins.allow(origin));
    let is_preflight = is_preflight(request.method(), request.headers());
    let mut response = match (is_preflight, &allowed) {
        (true, Some(_)) => preflight(),
        (true, None) => ApiError::new(
            ErrorCode::Forbidden,
            "this origin is not in the server's api.allowed_origins",
        )
        .into_response(),
        (false, _) => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if !is_preflight {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
        }
    }
    response
}

/// Whether this is a browser's preflight request.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_S),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}
