//! A parsed response.

use std::fmt;
use std::ops::Deref;

/// A parsed response. Dereferences to the value.
#[derive(Clone)]
#[non_exhaustive]
pub struct Reply<T> {
    /// The parsed value.
    pub value: T,
    /// The body as the server sent it. It may have fields that this version of the crate does not know.
    pub text: String,
    /// The id under which the server's log has the request.
    pub request_id: Option<String>,
    /// Whether the server returned the recorded response of an earlier request with the same idempotency key. Secrets
    /// that are shown once are missing from it.
    pub is_replay: bool,
}

impl<T> Reply<T> {
    /// The value without the rest of the response.
    #[must_use]
    pub fn into_value(self) -> T {
        self.value
    }

    pub(crate) fn map<U>(self, map: impl FnOnce(T) -> U) -> Reply<U> {
        Reply {
            value: map(self.value),
            text: self.text,
            request_id: self.request_id,
            is_replay: self.is_replay,
        }
    }
}

impl<T> Deref for Reply<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Reply<T> {
    /// Leaves out the text, which may contain a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("value", &self.value)
            .field("request_id", &self.request_id)
            .field("is_replay", &self.is_replay)
            .finish_non_exhaustive()
    }
}
