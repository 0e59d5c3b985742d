//! The reasons why a call has no result.

use std::time::Duration;

use http::StatusCode;

use crate::names::names;

/// The reason why a call has no result. `Display` leaves the cause out; `source` has it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server's address is invalid.
    #[error("{url:?} is not the address of a server")]
    Address {
        /// The address as it was given.
        url: String,
    },
    /// The key does not have the form of an API key.
    #[error("the API key must be `dv_` and 32 letters or digits")]
    ApiKey,
    /// The idempotency key has fewer than 1 or more than 255 characters, or one that a header cannot contain.
    #[error("an idempotency key must have 1 to 255 printable ASCII characters")]
    IdempotencyKey,
    /// The text cannot be a part of a path: it is empty, `.` or `..`, which would lead to another endpoint.
    #[error("{part:?} cannot be a part of a path of the API")]
    Path {
        /// The part of the path, for example an id.
        part: String,
    },
    /// The HTTP client cannot be created.
    #[error("the HTTP client cannot be created")]
    SetUp(#[source] reqwest::Error),
    /// The operating system gave no random bytes for an idempotency key.
    #[error("the system provides no random bytes")]
    Random(#[source] getrandom::Error),
    /// The body of the request cannot be written as JSON.
    #[error("the request cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The server did not respond: no connection, or no response within the time limit.
    #[error("{base} does not respond")]
    Unreachable {
        /// The server's address.
        base: String,
        /// Without the URL.
        #[source]
        source: reqwest::Error,
    },
    /// A transfer stood still: an upload, a download or a stream of events.
    #[error("no data was transferred to or from {base} for {} s", .after.as_secs())]
    Stalled {
        /// The server's address.
        base: String,
        /// The time limit.
        after: Duration,
    },
    /// The connection broke off after the response had begun.
    #[error("the connection broke off during the response")]
    Broken(#[source] reqwest::Error),
    /// The server answered with an error.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// The response does not come from the API, for example because a proxy answered, or the address is another
    /// server's.
    #[error("the response of {base} does not come from the API ({what})")]
    UnexpectedResponse {
        /// The server's address.
        base: String,
        /// A description of the problem.
        what: String,
        /// The status, unless it is one of success.
        status: Option<StatusCode>,
        /// The time that the `Retry-After` header names.
        retry_after: Option<Duration>,
    },
    /// The data of an event does not have the form that its name requires.
    #[error("event {name} cannot be parsed")]
    Event {
        /// The event's name.
        name: String,
        /// The mismatch.
        #[source]
        source: serde_json::Error,
    },
}

/// An error response of the API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
#[non_exhaustive]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A stable word for programs.
    pub code: ErrorCode,
    /// A description of the problem and the remedy, for people.
    pub message: String,
    /// The time after which the server permits another attempt.
    pub retry_after: Option<Duration>,
    /// The id under which the server's log has the request.
    pub request_id: Option<String>,
}

names! {
    /// The code of an error response.
    ErrorCode {
        /// A parameter is invalid.
        BadRequest = "bad_request",
        /// The API key is missing, unknown, expired or revoked.
        Unauthorized = "unauthorized",
        /// The key's creator lacks the permission.
        Forbidden = "forbidden",
        /// The object does not exist, or belongs to another team.
        NotFound = "not_found",
        /// The path has no such method.
        MethodNotAllowed = "method_not_allowed",
        /// The request did not arrive in time.
        RequestTimeout = "request_timeout",
        /// The object is in use, or the idempotency key was used with another body.
        Conflict = "conflict",
        /// The body or the file is too large, or a quota is used up.
        PayloadTooLarge = "payload_too_large",
        /// The endpoint does not read bodies of this type.
        UnsupportedMediaType = "unsupported_media_type",
        /// The range is outside the file.
        RangeNotSatisfiable = "range_not_satisfiable",
        /// There were too many requests.
        RateLimited = "rate_limited",
        /// The server has a defect.
        Internal = "internal",
        /// A component behind the API does not respond.
        UpstreamUnavailable = "upstream_unavailable",
        /// The server is starting, stopping, or out of disk space.
        Unavailable = "unavailable",
    }
}

impl Error {
    /// The error response, if the API sent one.
    #[must_use]
    pub fn as_api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the API answered with this code.
    #[must_use]
    pub fn is_code(&self, code: &ErrorCode) -> bool {
        self.as_api().is_some_and(|error| error.code == *code)
    }

    /// Whether the API answered that the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.is_code(&ErrorCode::NotFound)
    }

    /// The status of the response, if it was not one of success.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Api(error) => Some(error.status),
            Self::UnexpectedResponse { status, .. } => *status,
            _ => None,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api(error) => error.retry_after,
            Self::UnexpectedResponse { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
