//! Error pages.
//!
//! Handlers return a [`PageError`]. The guard, which knows who is logged in, renders a page for a [`Failure`]. Internal
//! errors take the API's path, which logs their cause and shows the request ID.

use axum::response::{IntoResponse, Response};
use errand_sandbox::FileError;
use errand_store::StoreError;
use http::StatusCode;
use maud::html;
use tokio::task::JoinError;

use super::guard::Person;
use super::layout::{Section, lone_page, page_with_status};
use crate::http::error::ApiError;
use crate::usecase::UseCaseError;

/// An error page that tells the person what is wrong.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    status: StatusCode,
    title: &'static str,
    message: String,
}

/// Why a handler cannot show its page.
pub(super) enum PageError {
    /// An error that the person can do something about.
    Failure(Failure),
    /// An internal error. The person sees the request ID, and the log has the cause.
    Internal(ApiError),
}

/// The result of page handlers.
pub(super) type PageResult = Result<Response, PageError>;

impl Failure {
    pub(super) fn new(status: StatusCode, title: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            title,
            message: message.into(),
        }
    }

    /// The page for a logged-in person, with navigation.
    pub(super) fn into_page(self, person: &Person) -> Response {
        let body = html! {
            div.head { h1 { (self.title) } }
            div.alert role="alert" { (sentence(&self.message)) }
            p { a href="/" { "Go to Home" } }
        };
        page_with_status(self.status, person, self.title, Section::None, &body)
    }

    /// The page for someone who is not logged in.
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
    /// The page does not exist or belongs to another team; the answer does not reveal which.
    pub(super) fn not_found() -> Self {
        Self::Failure(Failure::new(
            StatusCode::NOT_FOUND,
            "Not found",
            "This page does not exist, or you do not have access to it.",
        ))
    }

    /// A limit on concurrent work is reached, by this person or by all.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self::Failure(Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            "Too many requests",
            message,
        ))
    }

    /// Invalid input.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::Failure(Failure::new(
            StatusCode::BAD_REQUEST,
            "Something went wrong",
            message,
        ))
    }

    /// The message for a form that is displayed again.
    ///
    /// # Errors
    /// Internal errors are passed on.
    pub(super) fn into_message(self) -> Result<String, Self> {
        match self {
            Self::Failure(failure) => Ok(sentence(&failure.message)),
            Self::Internal(error) => Err(Self::Internal(error)),
        }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        match self {
            Self::Failure(failure) => {
                let mut response = failure.status.into_response();
                response.extensions_mut().insert(failure);
                response
            }
            Self::Internal(error) => error.into_response(),
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
                Self::Failure(Failure::new(StatusCode::FORBIDDEN, "Not allowed", message))
            }
            StoreError::Conflict(message) => Self::Failure(Failure::new(
                StatusCode::CONFLICT,
                "Something went wrong",
                message,
            )),
            other => Self::Internal(other.into()),
        }
    }
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> Self {
        Self::Internal(error)
    }
}

impl From<UseCaseError> for PageError {
    fn from(error: UseCaseError) -> Self {
        match error {
            UseCaseError::Invalid { message, .. } | UseCaseError::Refused(message) => {
                Self::bad(message)
            }
            UseCaseError::Store(error) => error.into(),
            UseCaseError::File(error) => error.into(),
            UseCaseError::Internal(_) => Self::Internal(error.into()),
        }
    }
}

impl From<JoinError> for PageError {
    fn from(error: JoinError) -> Self {
        Self::Internal(error.into())
    }
}

impl From<FileError> for PageError {
    fn from(error: FileError) -> Self {
        match &error {
            FileError::NotFound { .. }
            | FileError::SandboxMissing
            | FileError::NotADirectory { .. } => Self::Failure(Failure::new(
                StatusCode::NOT_FOUND,
                "Not found",
                error.to_string(),
            )),
            FileError::NoSpace { .. }
            | FileError::SandboxLost
            | FileError::UploadBroken { .. }
            | FileError::Io { .. } => Self::Internal(error.into()),
            _ => Self::bad(error.to_string()),
        }
    }
}

/// Starts a text with a capital letter and ends it with a period.
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
