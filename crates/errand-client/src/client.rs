//! The client, which all calls begin with.

use std::sync::Arc;

use http::Method;
use http::header::HeaderValue;

use crate::error::Error;
use crate::request::Request;
use crate::transport::Transport;

/// Characters of an idempotency key that the server accepts.
const KEY_CHARS_MAX: usize = 255;

/// A client of one server, with one API key. Cheap to clone; clones share their connections.
///
/// # Guarantees
///
/// - Redirects are not followed, so that the API key is never sent elsewhere, and no `Debug` form shows it.
/// - Each attempt of a call has a time limit, and the number of attempts is bounded ([`RetryPolicy`]).
/// - All attempts of a call that changes something carry the same `Idempotency-Key`, so that it takes effect once.
///
/// [`RetryPolicy`]: crate::RetryPolicy
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) transport: Arc<Transport>,
    /// The key that the caller gave. Without it, each call gets a key of its own.
    idempotency_key: Option<HeaderValue>,
}

impl Client {
    pub(crate) fn of(transport: Transport) -> Self {
        Self {
            transport: Arc::new(transport),
            idempotency_key: None,
        }
    }

    /// The server's address, without a trailing slash.
    #[must_use]
    pub fn base(&self) -> &str {
        self.transport.base()
    }

    /// A client that sends this `Idempotency-Key` with the call that changes something.
    ///
    /// Store the key before the call, and your program can repeat the call after a restart: the server returns the
    /// first response again, for 24 hours. Use the client for one call only: the server answers 409 to another call of
    /// the same endpoint with the same key. Without such a key, each call gets a random one, which its retries share.
    ///
    /// # Errors
    /// [`Error::IdempotencyKey`] if the key does not have 1 to 255 printable ASCII characters.
    pub fn with_idempotency_key(&self, key: &str) -> Result<Self, Error> {
        let is_printable = key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let key = HeaderValue::from_str(key)
            .ok()
            .filter(|_| is_printable && (1..=KEY_CHARS_MAX).contains(&key.len()))
            .ok_or(Error::IdempotencyKey)?;
        Ok(Self {
            transport: Arc::clone(&self.transport),
            idempotency_key: Some(key),
        })
    }

    /// A call of an endpoint for which there is no method. `path`: the path after `/v1/`, not escaped, such as
    /// `agents/0193b0e2-0000-7000-8000-000000000000/schedules`.
    pub fn request(&self, method: Method, path: &str) -> Request<'_> {
        self.call(method, path.split('/'))
    }

    /// `path`: the parts of the path after `/v1/`.
    pub(crate) fn call<'p>(
        &self,
        method: Method,
        path: impl IntoIterator<Item = &'p str>,
    ) -> Request<'_> {
        Request::new(&self.transport, self.idempotency_key.as_ref(), method, path)
    }

    pub(crate) fn get<const N: usize>(&self, path: [&str; N]) -> Request<'_> {
        self.call(Method::GET, path)
    }

    pub(crate) fn post<const N: usize>(&self, path: [&str; N]) -> Request<'_> {
        self.call(Method::POST, path)
    }

    pub(crate) fn delete<const N: usize>(&self, path: [&str; N]) -> Request<'_> {
        self.call(Method::DELETE, path)
    }
}
