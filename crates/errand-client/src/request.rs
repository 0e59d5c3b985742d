//! A call: what is sent, and how the response is read.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use http::Method;
use http::header::{self, HeaderValue};
use reqwest::Url;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backoff::Repeat;
use crate::error::Error;
use crate::reply::Reply;
use crate::transport::{Received, Transport};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Random bytes of an idempotency key: enough that no two calls ever share one.
const KEY_BYTES: usize = 16;

/// A call of an endpoint for which [`Client`](crate::Client) has no method of its own.
///
/// It has the same time limits, retries and idempotency keys as every other call.
#[derive(Debug)]
#[must_use = "a request does nothing until it is sent"]
pub struct Request<'c> {
    transport: &'c Transport,
    /// The key that the caller gave.
    key: Option<&'c HeaderValue>,
    method: Method,
    url: Result<Url, Error>,
    body: Result<Option<Vec<u8>>, Error>,
    timeout: Duration,
}

impl<'c> Request<'c> {
    pub(crate) fn new<'p>(
        transport: &'c Transport,
        key: Option<&'c HeaderValue>,
        method: Method,
        path: impl IntoIterator<Item = &'p str>,
    ) -> Self {
        Self {
            transport,
            key,
            method,
            url: transport.url(path),
            body: Ok(None),
            timeout: transport.timeout,
        }
    }

    /// Adds a parameter to the query.
    pub fn query(mut self, name: &str, value: impl Display) -> Self {
        if let Ok(url) = &mut self.url {
            url.query_pairs_mut().append_pair(name, &value.to_string());
        }
        self
    }

    /// Sets the body.
    pub fn json(mut self, body: &(impl Serialize + ?Sized)) -> Self {
        self.body = serde_json::to_vec(body).map(Some).map_err(Error::Encode);
        self
    }

    /// Sets the time limit of each attempt, from the connection to the end of the response. Default: the client's.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends the request, and parses the response as JSON.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send<T: DeserializeOwned>(self) -> Result<Reply<T>, Error> {
        let transport = self.transport;
        let received = self.received().await?;
        let value = serde_json::from_str(&received.text)
            .map_err(|error| transport.unexpected(error.to_string()))?;
        Ok(received.reply(value))
    }

    /// Sends the request, and ignores the body of the response.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send_empty(self) -> Result<Reply<()>, Error> {
        Ok(self.received().await?.reply(()))
    }

    async fn received(self) -> Result<Received, Error> {
        let (url, body) = (self.url?, self.body?);
        let key = key(&self.method, self.key, self.transport.retry.most() > 0)?;
        let repeat = if self.method.is_safe() || key.is_some() {
            Repeat::Always
        } else {
            Repeat::IfNotExecuted
        };
        let attempt = || {
            let mut request = self
                .transport
                .request(self.method.clone(), url.clone())
                .timeout(self.timeout);
            if let Some(body) = &body {
                request = request
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(body.clone());
            }
            if let Some(key) = &key {
                request = request.header(IDEMPOTENCY_KEY, key);
            }
            self.transport.exchange(request)
        };
        self.transport.repeat(repeat, attempt).await
    }
}

/// The idempotency key of a call: the same for all of its attempts. A call that is never repeated needs none.
fn key(
    method: &Method,
    given: Option<&HeaderValue>,
    repeats: bool,
) -> Result<Option<HeaderValue>, Error> {
    if method.is_safe() {
        return Ok(None);
    }
    if given.is_some() || !repeats {
        return Ok(given.cloned());
    }
    let mut random = [0; KEY_BYTES];
    getrandom::fill(&mut random).map_err(Error::Random)?;
    let mut key = String::with_capacity(2 * KEY_BYTES);
    for byte in random {
        // Writing to a string does not fail.
        let _ = write!(key, "{byte:02x}");
    }
    HeaderValue::try_from(key)
        .map(Some)
        .map_err(|_| Error::IdempotencyKey)
}
