//! The error of a use case.

use std::error::Error;

use errand_sandbox::FileError;
use errand_store::StoreError;
use tokio::task::JoinError;

/// The error of a use case, in a form that suits programs and people.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UseCaseError {
    /// A field of the request has a wrong value. `field` is its path in the API's request.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// The request as a whole cannot be carried out.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileError),
    /// An internal error.
    #[error("something is wrong inside the server")]
    Internal(#[source] Box<dyn Error + Send + Sync>),
}

impl UseCaseError {
    pub(crate) fn invalid(field: &str, message: impl std::fmt::Display) -> Self {
        Self::Invalid {
            field: field.to_owned(),
            message: message.to_string(),
        }
    }

    pub(crate) fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Internal(source.into())
    }
}

impl From<JoinError> for UseCaseError {
    fn from(error: JoinError) -> Self {
        Self::internal(error)
    }
}
