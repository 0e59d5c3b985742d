//! Why a store operation did not do what was asked.

use std::borrow::Cow;

use errand_core::id::{BuildId, RunId};

use crate::db::sqlite::Trouble;

/// One variant for each case that callers handle differently.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It does not exist, or belongs to another team. The two are indistinguishable on purpose.
    #[error("no such thing")]
    NotFound,
    /// A parameter does not fit what is stored.
    #[error("{field}: {message}")]
    Invalid {
        /// The parameter's name in the API.
        field: &'static str,
        /// The problem, and how to fix it.
        message: String,
    },
    /// Something else uses what was asked for.
    #[error("{0}")]
    Conflict(String),
    /// The state does not allow the operation. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The caller's role does not allow the operation. Nothing was changed.
    #[error("{0}")]
    Forbidden(String),
    /// The caller has checked another build than the one that the run would use. Nothing was changed; check this one and
    /// try again.
    #[error("the live build has changed to {build}")]
    BuildChanged { build: BuildId },
    /// The run has changed between reading and writing, although one transaction does both. A defect of the server; nothing
    /// was changed.
    #[error("the run {run} was written twice in one change")]
    Raced { run: RunId },
    /// The claim is not held any more. The driver must stop and write nothing.
    #[error("the claim on the run is not held any more")]
    Fenced,
    /// The idempotency key was used with another body.
    #[error("this Idempotency-Key was used with another body; use a new key for a new request")]
    KeyReused,
    /// Nothing was done, or the result is unknown. Repeat with the same idempotency key.
    #[error("the store cannot take the write now: {0}")]
    Unavailable(Cow<'static, str>),
    /// Nothing was done, because of a problem that an operator must fix or that passes by itself. Repeat with the
    /// same idempotency key.
    #[error("the store cannot do this now: {what}")]
    Trouble {
        what: Trouble,
        /// SQLite's error.
        #[source]
        source: rusqlite::Error,
    },
    /// A row that cannot be parsed. It is never replaced with a default.
    #[error("{table}.{column} cannot be read: {message}")]
    Corrupt {
        table: &'static str,
        column: &'static str,
        /// The problem with the value.
        message: String,
    },
    /// SQLite refused a statement.
    #[error("a statement failed")]
    Sql(#[source] rusqlite::Error),
    /// A secret could not be encrypted or decrypted.
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
    /// Whether the request itself is fine and may succeed later. Such an error must not fail a run.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Trouble { .. })
    }

    /// Whether the operation was understood and refused without writing anything, so that other operations in the
    /// same batch are unaffected.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::NotFound
            | Self::Invalid { .. }
            | Self::Conflict(_)
            | Self::Refused(_)
            | Self::Forbidden(_)
            | Self::BuildChanged { .. }
            | Self::Fenced
            | Self::KeyReused => true,
            Self::Unavailable(_)
            | Self::Trouble { .. }
            | Self::Raced { .. }
            | Self::Corrupt { .. }
            | Self::Sql(_)
            | Self::Seal(_) => false,
        }
    }
}

pub type Result<T> = std::result::Result<T, StoreError>;
