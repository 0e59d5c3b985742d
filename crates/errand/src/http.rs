//! The common part of all requests and responses, of the API and of the pages.
//!
//! Guarantees: nothing here calls an endpoint or draws a page ([`pages`] is handed over). [`layered`] adds the middleware
//! of every request, in this order from the outside: id and log line ([`request`]), panics, compression, discarding
//! unread bodies ([`drain`]).
//!
//! Non-goals: authentication and permissions (`api::auth`, `web::guard`).

pub(crate) mod bodies;
pub(crate) mod body_memory;
mod body_pace;
pub(crate) mod client_address;
pub(crate) mod compress;
pub(crate) mod cors;
mod drain;
pub mod error;
pub(crate) mod file_response;
pub(crate) mod host;
pub(crate) mod limiter;
pub(crate) mod pages;
pub(crate) mod path;
pub(crate) mod range;
pub(crate) mod receive;
pub(crate) mod request;
pub(crate) mod session_cookie;
pub(crate) mod slots;
pub(crate) mod streaming;
pub(crate) mod vary;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use errand_engine::EngineContext;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use drain::Bodies;
use pages::ErrorPage;
use request::Requests;

/// Whether a path belongs to the API, even if no endpoint has it.
pub(crate) fn is_api(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// The state of [`layered`].
pub(crate) struct Layers {
    requests: Arc<Requests>,
    bodies: Bodies,
}

impl Layers {
    /// `idle_timeout`: the time after which a body without new bytes ends.
    pub(crate) fn new(
        engine: &EngineContext,
        idle_timeout: Duration,
        error_page: ErrorPage,
    ) -> Self {
        Self {
            requests: Arc::new(Requests {
                ids: Arc::clone(&engine.ids),
                clock: engine.clock.clone(),
                error_page,
            }),
            bodies: Bodies::new(idle_timeout),
        }
    }
}

/// Adds the layers that apply to every request: id, log line, error bodies, panics as 500, discarding unread bodies,
/// compression.
pub(crate) fn layered(router: Router, layers: &Layers) -> Router {
    // One stack, from the outermost layer inward. `Router::layer` boxes every route once for each call, and each
    // middleware clones the boxes below it for each request: with separate calls, that grows with the square of the
    // number of layers.
    router.layer(
        ServiceBuilder::new()
            .layer(from_fn_with_state(
                Arc::clone(&layers.requests),
                request::middleware,
            ))
            .layer(CatchPanicLayer::custom(request::of_panic))
            .layer(from_fn(compress::before))
            .layer(compress::layer())
            .layer(from_fn_with_state(layers.bodies.clone(), drain::middleware))
            // Each extractor of a body enforces its own limit.
            .layer(DefaultBodyLimit::disable()),
    )
}
