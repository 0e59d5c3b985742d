//! What a page answers when it cannot do what was asked.
//!
//! A handler returns a [`Failure`]; the guard, which knows who is logged in, makes a page of it. Faults inside go the
//! API's way, which logs their cause and shows the request's id.

use axum::response::{IntoResponse, Response};
use errand_sandbox::FileError;
use errand_store::StoreError;
use http::StatusCode;
use maud::html;

use super::guard::Person;
use super::layout::{Section, lone_page, page_with_status};
use crate::api::error::ApiError;

/// A page that says what was wrong.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    status: StatusCode,
    title: &'static str,
    message: String,
}

/// Why a handler has no page.
pub(super) enum PageError {
    /// The person can do something about it.
    Told(Failure),
    /// The server failed.
    Inside(ApiError),
}

/// What handlers return.
pub(super) type Shown = Result<Response, PageError>;

impl Failure {
    pub(super) fn new(status: StatusCode, title: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            title,
            message: message.into(),
        }
    }

    /// The whole page.
    pub(super) fn into_page(self, person: &Person) -> Response {
        let body = html! {
            div.head { h1 { (self.title) } }
            div.alert role="alert" { (sentence(&self.message)) }
            p { a href="/" { "Go to Home" } }
        };
        page_with_status(self.status, person, self.title, Section::None, &body)
    }

    /// The page for somebody who is not logged in.
    pub(super) fn into_lone_page(self) -> Response {
        let body = html! {
            h1 { (self.title) }
            p role="alert" { (sentence(&self.message)) }
            p { a href="/log-in" { "Log in" } }
        };
        lone_page(self.status, self.title, &body)
    }
}

impl PageError {
    /// There is nothing here, or it is another team's.
    pub(super) fn not_found() -> Self {
        Self::Told(Failure::new(
            StatusCode::NOT_FOUND,
            "Not found",
            "There is no such thing, or it belongs to another team.",
        ))
    }

    /// The person, or others, have the server do as much as it does at once.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self::Told(Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            "Too much at once",
            message,
        ))
    }

    /// What was sent does not fit.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::Told(Failure::new(
            StatusCode::BAD_REQUEST,
            "That did not work",
            message,
        ))
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        match self {
            Self::Told(failure) => {
                let mut response = failure.status.into_response();
                response.extensions_mut().insert(failure);
                response
            }
            Self::Inside(error) => error.into_response(),
        }
    }
}

impl From<StoreError> for PageError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::not_found(),
            StoreError::Refused(message) | StoreError::Invalid { message, .. } => {
                Self::bad(message)
            }
            StoreError::Forbidden(message) => {
                Self::Told(Failure::new(StatusCode::FORBIDDEN, "Not allowed", message))
            }
            StoreError::Conflict(message) => Self::Told(Failure::new(
                StatusCode::CONFLICT,
                "That did not work",
                message,
            )),
            other => Self::Inside(other.into()),
        }
    }
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> Self {
        Self::Inside(error)
    }
}

impl From<FileError> for PageError {
    fn from(error: FileError) -> Self {
        match &error {
            FileError::NotFound { .. }
            | FileError::SandboxMissing
            | FileError::NotADirectory { .. } => Self::Told(Failure::new(
                StatusCode::NOT_FOUND,
                "Not found",
                error.to_string(),
            )),
            FileError::NoSpace { .. } | FileError::UploadBroken { .. } | FileError::Io { .. } => {
                Self::Inside(error.into())
            }
            _ => Self::bad(error.to_string()),
        }
    }
}

/// What the person can read of an error, for a form that is shown again; a fault inside stays one.
pub(super) fn told(error: PageError) -> Result<String, PageError> {
    match error {
        PageError::Told(failure) => Ok(sentence(&failure.message)),
        PageError::Inside(error) => Err(PageError::Inside(error)),
    }
}

/// With a capital letter at its beginning and a full stop at its end.
pub(super) fn sentence(text: &str) -> String {
    let mut chars = text.trim().chars();
    let mut sentence: String = chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default();
    if !sentence.ends_with(['.', '!', '?', '…']) {
        sentence.push('.');
    }
    sentence
}
