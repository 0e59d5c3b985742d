//! What every request and response has in common, whether it belongs to the API or to a page.
//!
//! Guarantees: nothing here knows an endpoint or a page.
//!
//! Non-goals: who the caller is and what they may do (`api::auth`, `web::guard`).

pub(crate) mod body_memory;
mod body_pace;
pub(crate) mod compress;
pub mod cors;
pub(crate) mod drain;
pub mod error;
pub(crate) mod host;
pub(crate) mod limiter;
pub(crate) mod path;
pub(crate) mod range;
pub(crate) mod receive;
pub(crate) mod request;
pub(crate) mod slots;
pub(crate) mod streaming;

/// Whether a path belongs to the API, even if it has no endpoint there.
pub(crate) fn is_api(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}
