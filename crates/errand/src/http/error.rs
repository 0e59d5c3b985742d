//! [`ApiError`], the only type that becomes an error response.
//!
//! # Guarantees
//!
//! - Each error has a code from the documented table, a message for the client and, for internal failures, a source for
//!   the log.
//! - Creating the response has no side effects. [`super::request`] logs the source once and adds the request id.

use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use errand_core::path::BadPath;
use errand_sandbox::FileError;
use errand_store::StoreError;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::task::JoinError;
use utoipa::ToSchema;

use crate::usecase::UseCaseError;

/// The body of every response with a status of 400 or above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorResponse {
    /// A stable code for programs.
    #[schema(example = "bad_request")]
    pub error: String,
    /// What is wrong and what to do about it. For people; the wording may change.
    #[schema(example = "limit: must be an integer from 1 to 100, not \"x\"")]
    pub message: String,
}

/// The error codes of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// A parameter is invalid.
    BadRequest,
    /// The key is missing or invalid.
    Unauthorized,
    /// The role lacks the permission.
    Forbidden,
    /// The object does not exist, or belongs to another team.
    NotFound,
    /// The path exists, but not with this method.
    MethodNotAllowed,
    /// The client stopped sending its body, or sent it too slowly.
    RequestTimeout,
    /// The request conflicts with the current state.
    Conflict,
    /// The body is too large.
    PayloadTooLarge,
    /// The content type is not supported.
    UnsupportedMediaType,
    /// The range is outside the file.
    RangeNotSatisfiable,
    /// Too many requests.
    RateLimited,
    /// An internal error.
    Internal,
    /// A component behind the API does not respond.
    UpstreamUnavailable,
    /// The server is starting, stopping, or out of disk space.
    Unavailable,
}

impl ErrorCode {
    /// All codes, in the order of the documented table.
    pub const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::RangeNotSatisfiable,
        Self::RateLimited,
        Self::Internal,
        Self::UpstreamUnavailable,
        Self::Unavailable,
    ];

    /// The HTTP status, and the code as text.
    #[must_use]
    pub fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            Self::Conflict => (StatusCode::CONFLICT, "conflict"),
            Self::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
            }
            Self::RangeNotSatisfiable => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable")
            }
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::UpstreamUnavailable => (StatusCode::BAD_GATEWAY, "upstream_unavailable"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        }
    }

    #[must_use]
    pub fn status(self) -> StatusCode {
        self.parts().0
    }
}

/// An error before it becomes a response. `message` is for the client, the source for the log.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    message: Cow<'static, str>,
    header: Option<(HeaderName, HeaderValue)>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// Response extension with which an error reaches the outermost layer.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    pub(crate) code: ErrorCode,
    pub(crate) message: Cow<'static, str>,
    pub(crate) source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            header: None,
            source: None,
        }
    }

    /// 400 for a parameter: its name, and its permitted values.
    pub(crate) fn invalid(name: &str, what: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("{name}: {what}"))
    }

    pub(crate) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// 401. It never says why.
    pub(crate) fn unauthorized() -> Self {
        Self::new(
            ErrorCode::Unauthorized,
            "a valid API key is required: send `Authorization: Bearer dv_…`",
        )
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// 404. It is the same for a missing object and for another team's.
    pub(crate) fn not_found() -> Self {
        Self::new(
            ErrorCode::NotFound,
            "this does not exist, or it belongs to another team: check the id",
        )
    }

    /// 404 for an unknown path.
    pub(crate) fn no_endpoint() -> Self {
        Self::new(
            ErrorCode::NotFound,
            "this endpoint does not exist: GET /v1/documentation lists all endpoints",
        )
    }

    /// 405. The router adds the `allow` header.
    pub(crate) fn method_not_allowed(method: &Method) -> Self {
        let method = method.as_str().chars().take(16).collect::<String>();
        Self::new(
            ErrorCode::MethodNotAllowed,
            format!("this path does not support {method}: see the header `allow`"),
        )
    }

    pub(crate) fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::Conflict, message)
    }

    pub(crate) fn too_large(what: &str, limit_bytes: u64) -> Self {
        Self::new(
            ErrorCode::PayloadTooLarge,
            format!("{what} must be at most {limit_bytes} bytes long"),
        )
    }

    pub(crate) fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::UnsupportedMediaType, message)
    }

    /// 429. `retry_after_s`: at least 1.
    pub(crate) fn rate_limited(message: impl Into<Cow<'static, str>>, retry_after_s: u64) -> Self {
        Self::new(ErrorCode::RateLimited, message)
            .with_header(header::RETRY_AFTER, HeaderValue::from(retry_after_s.max(1)))
    }

    pub(crate) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
            .with_header(header::RETRY_AFTER, HeaderValue::from(1))
    }

    /// 500. The outermost layer replaces the message by one with the request id.
    pub(crate) fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            source: Some(Arc::from(source.into())),
            ..Self::new(ErrorCode::Internal, "an internal error occurred")
        }
    }

    /// Adds a header to the response.
    pub(crate) fn with_header(self, name: HeaderName, value: HeaderValue) -> Self {
        Self {
            header: Some((name, value)),
            ..self
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// The message for the client.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    fn caused_by(self, source: impl Error + Send + Sync + 'static) -> Self {
        Self {
            source: Some(Arc::new(source)),
            ..self
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = error_response(self.code, &self.message);
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response.extensions_mut().insert(Reported {
            code: self.code,
            message: self.message,
            source: self.source,
        });
        response
    }
}

/// Builds the response of an error.
pub(crate) fn error_response(code: ErrorCode, message: &str) -> Response {
    let (status, word) = code.parts();
    let body = axum::Json(ErrorResponse {
        error: word.to_owned(),
        message: message.to_owned(),
    });
    (status, body).into_response()
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::not_found(),
            StoreError::Invalid { field, message } => Self::invalid(field, message),
            StoreError::Conflict(message) => Self::conflict(message),
            StoreError::Refused(message) => Self::bad_request(message),
            StoreError::Forbidden(message) => Self::new(ErrorCode::Forbidden, message),
            StoreError::KeyReused => Self::conflict(error.to_string()),
            StoreError::Unavailable(ref why) => Self::unavailable(format!(
                "the server cannot do this now ({why}); repeat the request with the same Idempotency-Key"
            ))
            .caused_by(error),
            StoreError::BuildChanged { .. } => Self::conflict(
                "the build changes faster than it can be checked; try again",
            ),
            StoreError::Trouble { what, .. } => Self::unavailable(format!(
                "the server cannot do this now ({what}); repeat the request with the same Idempotency-Key"
            )),
            StoreError::Fenced
            | StoreError::Raced { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Sql(_)
            | StoreError::Seal(_) => Self::internal(error),
        }
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        match &error {
            FileError::NotFound { .. } => Self::new(ErrorCode::NotFound, error.to_string()),
            FileError::SandboxMissing => Self::not_found(),
            FileError::SandboxLost => {
                Self::new(ErrorCode::Unavailable, error.to_string()).caused_by(error)
            }
            FileError::TooLarge { .. }
            | FileError::SandboxFull { .. }
            | FileError::TeamFull { .. } => {
                Self::new(ErrorCode::PayloadTooLarge, error.to_string())
            }
            FileError::NotADirectory { .. }
            | FileError::IsADirectory { .. }
            | FileError::NotARegularFile { .. }
            | FileError::LinkInTheWay { .. }
            | FileError::OtherFileSystem { .. }
            | FileError::NotUtf8 { .. }
            | FileError::ReservedName { .. }
            | FileError::NoPermission { .. }
            | FileError::BadPattern { .. }
            | FileError::Edit { .. } => Self::invalid("path", &error),
            FileError::NoSpace { .. } => {
                Self::unavailable("the server's disk is full: the operator must free space")
                    .caused_by(error)
            }
            FileError::Exhausted { .. } => Self::unavailable(
                "the server has run out of open files or memory: try again in a moment",
            ),
            FileError::UploadBroken { .. } | FileError::Io { .. } => Self::internal(error),
        }
    }
}

impl From<UseCaseError> for ApiError {
    fn from(error: UseCaseError) -> Self {
        match error {
            UseCaseError::Invalid { field, message } => Self::invalid(&field, message),
            UseCaseError::Refused(message) => Self::bad_request(message),
            UseCaseError::Store(error) => error.into(),
            UseCaseError::File(error) => error.into(),
            UseCaseError::Internal(source) => Self::internal(source),
        }
    }
}

impl From<JoinError> for ApiError {
    fn from(error: JoinError) -> Self {
        Self::internal(error)
    }
}

impl From<BadPath> for ApiError {
    fn from(error: BadPath) -> Self {
        Self::invalid("path", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_code_has_the_documented_body() {
        for code in ErrorCode::ALL {
            let (status, word) = code.parts();
            let response = ApiError::new(code, "why").into_response();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["content-type"], "application/json");
            let bytes = axum::body::to_bytes(response.into_body(), 1000)
                .await
                .unwrap();
            let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(body, serde_json::json!({"error": word, "message": "why"}));
        }
    }

    #[test]
    fn internal_details_reach_only_the_log() {
        let error = ApiError::from(StoreError::Corrupt {
            table: "runs",
            column: "status",
            message: "secret".to_owned(),
        });
        assert_eq!(error.code, ErrorCode::Internal);
        assert!(!error.message.contains("secret"));
        assert!(error.source.is_some());
    }

    #[test]
    fn a_full_disk_is_named() {
        let error = ApiError::from(StoreError::Unavailable("the disk is full".into()));
        assert!(error.message.contains("the disk is full"));
    }

    #[test]
    fn store_errors_have_their_codes() {
        let code = |error: StoreError| ApiError::from(error).code;
        assert_eq!(code(StoreError::NotFound), ErrorCode::NotFound);
        assert_eq!(
            code(StoreError::Invalid {
                field: "x",
                message: String::new()
            }),
            ErrorCode::BadRequest
        );
        assert_eq!(
            code(StoreError::Refused(String::new())),
            ErrorCode::BadRequest
        );
        assert_eq!(
            code(StoreError::Conflict(String::new())),
            ErrorCode::Conflict
        );
        assert_eq!(
            code(StoreError::Forbidden(String::new())),
            ErrorCode::Forbidden
        );
        assert_eq!(code(StoreError::KeyReused), ErrorCode::Conflict);
        assert_eq!(
            code(StoreError::Unavailable("x".into())),
            ErrorCode::Unavailable
        );
    }
}
