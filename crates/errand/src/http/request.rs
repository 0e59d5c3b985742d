//! The outermost layer for every request: request id, log line, and the final form of errors.
//!
//! # Guarantees
//!
//! - Each response has an `x-request-id`.
//! - Each request is one line in the log, with the documented route but never with its path, query, headers or body.
//! - The source of an error is logged once, here.
//! - A 500 contains the request id and no internal detail. A panic becomes a 500.

use errand_core::error_chain::error_chain;
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use errand_core::id::{IdGen, TeamId};
use errand_engine::clock::Clock;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use tracing::Instrument as _;

use super::error::{ApiError, ErrorCode, Reported, error_response};
use super::host::BadHost;
use super::is_api;
use super::pages::ErrorPage;
use super::vary;

/// The header with the request's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Maximum length of an id from a client.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// The team of a request, put into the response by the layer that authenticates, for the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfTeam(pub(crate) TeamId);

/// The state of the layer.
pub(super) struct Requests {
    pub(super) ids: Arc<IdGen>,
    pub(super) clock: Clock,
    pub(super) error_page: ErrorPage,
}

/// The outermost layer.
pub(super) async fn middleware(
    State(shared): State<Arc<Requests>>,
    request: Request,
    next: Next,
) -> Response {
    let stopwatch = Stopwatch::start();
    let id = kept_id(request.headers()).unwrap_or_else(|| new_id(&shared));
    let about = About::of(&request, shared.error_page);
    let span = tracing::info_span!("request", request.id = id.to_str().unwrap_or_default());
    let response = match request.extensions().get::<BadHost>() {
        Some(BadHost(why)) => ApiError::bad_request(*why).into_response(),
        None => next.run(request).instrument(span).await,
    };
    let mut response = about.finish(response, &id);
    response.headers_mut().insert(REQUEST_ID, id.clone());
    if about.has_page && response.status().as_u16() >= 400 {
        vary::depends_on(&mut response, "accept");
    }
    vary::join(&mut response);
    about.log(&response, &id, stopwatch.elapsed_ms());
    response
}

/// Converts a panic to a response. The program's panic hook has already logged the location.
pub(crate) fn of_panic(panic: Box<dyn Any + Send>) -> Response {
    let what = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "of unknown kind".to_owned());
    ApiError::internal(format!("a panic: {what}")).into_response()
}

/// Measures elapsed time for the log. No decision depends on it.
struct Stopwatch(Instant);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The data of a request that is needed after its end.
struct About {
    method: Method,
    route: Option<MatchedPath>,
    /// Whether errors have a form for people, for clients that accept it.
    has_page: bool,
    /// Renders errors, if the client is a browser that displays a page.
    error_page: Option<ErrorPage>,
    path: String,
}

impl About {
    fn of(request: &Request, error_page: ErrorPage) -> Self {
        let path = request.uri().path();
        let has_page = !is_api(path) || is_for_people(path);
        let wants_page = has_page && accepts_html(request.headers());
        Self {
            method: request.method().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
            has_page,
            error_page: wants_page.then_some(error_page),
            path: path.to_owned(),
        }
    }

    /// Puts the request id into an internal error, and records errors for the log.
    fn finish(&self, response: Response, id: &HeaderValue) -> Response {
        let Some(reported) = response.extensions().get::<Reported>().cloned() else {
            return self.without_foreign_errors(response);
        };
        let id = id.to_str().unwrap_or_default();
        let message = match reported.code {
            ErrorCode::Internal => format!(
                "an internal error occurred; give this request id to the server's operator: {id}"
            ),
            _ => reported.message.to_string(),
        };
        let mut last = match self.error_page {
            Some(error_page) => error_page(reported.code.status(), &message),
            None if reported.code == ErrorCode::Internal => error_response(reported.code, &message),
            None => return response,
        };
        for (name, value) in response.headers() {
            if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
                last.headers_mut().append(name, value.clone());
            }
        }
        *last.extensions_mut() = response.extensions().clone();
        last
    }

    /// Gives errors of libraries the same body as the API's own errors.
    fn without_foreign_errors(&self, response: Response) -> Response {
        let status = response.status();
        if status.as_u16() < 400 || !is_api(&self.path) {
            return response;
        }
        let code = ErrorCode::ALL
            .into_iter()
            .find(|code| code.status() == status);
        error_response(
            code.unwrap_or(ErrorCode::BadRequest),
            "the request is invalid: see GET /v1/documentation",
        )
    }

    fn log(&self, response: &Response, id: &HeaderValue, duration_ms: u64) {
        let request_id = id.to_str().unwrap_or_default();
        let route = self.route.as_ref().map_or("-", MatchedPath::as_str);
        let team = response
            .extensions()
            .get::<OfTeam>()
            .map_or_else(|| "-".to_owned(), |team| team.0.to_string());
        let status = response.status().as_u16();
        let method = self.method.as_str();
        if let Some(reported) = response.extensions().get::<Reported>()
            && let Some(source) = &reported.source
        {
            let error = error_chain(source.as_ref());
            if reported.code == ErrorCode::Unavailable {
                // A temporary condition such as a full disk, not a defect of the program.
                tracing::warn!(
                    request.id = request_id,
                    http.method = method,
                    http.route = route,
                    status,
                    error,
                    "{method} {route} was refused: {error}"
                );
            } else {
                tracing::error!(
                    request.id = request_id,
                    http.method = method,
                    http.route = route,
                    status,
                    error,
                    "{method} {route} failed: {error}"
                );
            }
        }
        tracing::info!(
            request.id = request_id,
            team.id = team,
            http.method = method,
            http.route = route,
            status,
            duration_ms,
            "{method} {route} {status} in {duration_ms} ms"
        );
    }
}

fn kept_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID)?;
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits = (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.as_bytes().iter().all(allowed);
    fits.then(|| id.clone())
}

fn new_id(shared: &Requests) -> HeaderValue {
    let id = shared.ids.event(shared.clock.now()).to_string();
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-"))
}

fn accepts_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/html"))
}

/// Whether a path of the API is opened by a person's browser.
fn is_for_people(path: &str) -> bool {
    path.starts_with("/v1/sign-ins/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_own_id_is_kept_if_it_is_harmless() {
        let kept = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(text).unwrap());
            kept_id(&headers).is_some()
        };
        assert!(kept("a"));
        assert!(kept("A-1.b_2"));
        assert!(kept(&"x".repeat(128)));
        for refused in ["", "a b", "a/b", "a\tb", &"x".repeat(129)] {
            assert!(!kept(refused), "{refused:?}");
        }
        assert!(kept_id(&HeaderMap::new()).is_none());
    }

    #[test]
    fn an_error_is_logged_with_its_sources() {
        let inner = std::io::Error::other("no such disk");
        let outer = errand_sandbox::FileError::Io {
            op: "read",
            path: errand_core::path::SandboxPath::root(),
            source: inner,
        };
        assert_eq!(
            error_chain(&outer),
            "the server could not read /workspace: no such disk"
        );
    }
}
