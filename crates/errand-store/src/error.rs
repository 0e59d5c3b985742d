//! What a store operation answers when it does not do what was asked.

use std::borrow::Cow;

use crate::db::sqlite::Trouble;

/// The cases that callers act on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such thing, or it belongs to another team: the two look the same.
    #[error("no such thing")]
    NotFound,
    /// A parameter does not fit what is stored.
    #[error("{field}: {message}")]
    Invalid {
        /// The parameter's name on the wire.
        field: &'static str,
        /// What was wrong, and what to do.
        message: String,
    },
    /// Something else holds what was asked for.
    #[error("{0}")]
    Conflict(String),
    /// The state does not allow it. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The role of who asks does not allow it. Nothing was changed.
    #[error("{0}")]
    Forbidden(String),
    /// The claim is not held any more: stop, the run is not yours.
    #[error("the claim on the run is not held any more")]
    Fenced,
    /// The idempotency key was used with another body.
    #[error("this Idempotency-Key was used with another body; take a new key for a new request")]
    KeyReused,
    /// Nothing was done, or whether it was done is unknown: repeat with the same idempotency key.
    #[error("the store cannot take the write now: {0}")]
    Unavailable(Cow<'static, str>),
    /// Nothing was done, because of something that an operator sets right, or that passes: repeat it with the same
    /// idempotency key.
    #[error("the store cannot do this now: {what}")]
    Trouble {
        /// What is in the way.
        what: Trouble,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A row that cannot be read. It is never replaced by a default.
    #[error("{table}.{column} holds what cannot be read: {message}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What was found.
        message: String,
    },
    /// SQLite refused a statement.
    #[error("a statement failed")]
    Sql(#[source] rusqlite::Error),
    /// A secret could not be sealed or opened.
    #[error("a sealed secret could not be used")]
    Seal(#[source] crate::crypto::seal::SealError),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match Trouble::of(&error) {
            Some(what) => Self::Trouble {
                what,
                source: error,
            },
            None => Self::Sql(error),
        }
    }
}

impl From<crate::crypto::seal::SealError> for StoreError {
    fn from(error: crate::crypto::seal::SealError) -> Self {
        Self::Seal(error)
    }
}

impl StoreError {
    /// Whether nothing is wrong with what was asked, so that it may succeed later: a run is not failed because of it.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Trouble { .. })
    }

    /// Whether the operation was understood and refused, having written nothing: its neighbours in a batch are not
    /// touched by it.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::NotFound
            | Self::Invalid { .. }
            | Self::Conflict(_)
            | Self::Refused(_)
            | Self::Forbidden(_)
            | Self::Fenced
            | Self::KeyReused => true,
            Self::Unavailable(_)
            | Self::Trouble { .. }
            | Self::Corrupt { .. }
            | Self::Sql(_)
            | Self::Seal(_) => false,
        }
    }
}

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;
