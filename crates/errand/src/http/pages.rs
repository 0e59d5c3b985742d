//! Pages that a browser sees although their address is in no table of pages: errors, and the end of a sign-in.
//!
//! The web interface has the layout and draws them; it is handed over when the server is put together.

use axum::response::Response;
use http::StatusCode;

use crate::usecase::sign_in::ConfirmSignIn;

/// Draws an error for a browser, from its status and message.
pub(crate) type ErrorPage = fn(StatusCode, &str) -> Response;

/// Draws these pages.
#[derive(Clone, Copy)]
pub(crate) struct Pages {
    pub(crate) error: ErrorPage,
    /// The connection is signed in.
    pub(crate) signed_in: fn() -> Response,
    /// Asks whether the person means to sign somebody else's connection in.
    pub(crate) confirm_sign_in: fn(&ConfirmSignIn<'_>) -> Response,
}
