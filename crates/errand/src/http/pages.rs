//! Pages outside the table of pages: errors, and the end of a sign-in.
//!
//! The web interface renders them, because it has the layout. `app` passes its functions here, so that `http` does not
//! depend on it.

use axum::response::Response;
use http::StatusCode;

use crate::usecase::sign_in::ConfirmSignIn;

/// Renders an error page from a status and a message.
pub(crate) type ErrorPage = fn(StatusCode, &str) -> Response;

/// The functions that render these pages.
#[derive(Clone, Copy)]
pub(crate) struct Pages {
    pub(crate) error: ErrorPage,
    /// The page after a sign-in.
    pub(crate) signed_in: fn() -> Response,
    /// The page on which a person confirms that they sign in another person's connection.
    pub(crate) confirm_sign_in: fn(&ConfirmSignIn<'_>) -> Response,
}
