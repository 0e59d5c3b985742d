//! Requests to addresses that a team gave, through the address guard and with limits on time and size.
//!
//! # Guarantees
//!
//! - [`GuardedClient`] checks each request anew; no connection is reused.
//! - Redirects are not followed, and proxies from the environment are ignored.
//! - A request ends within its time limit, and at most the requested part of the body is kept.
//! - No error contains the address's path, query or password.
//!
//! # Non-goals
//!
//! Retries, and requests to the operator's addresses, which need no guard.

mod guard;

use errand_core::error_chain::error_chain;
use std::error::Error as StdError;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use reqwest::redirect;
use url::Url;

pub use guard::{Blocked, Guard, is_global};

/// The limits of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Time limit for name resolution, connecting and TLS.
    pub connect: Duration,
    /// Time limit for everything: connection, request, and response with body.
    pub total: Duration,
    /// The part of the response body that is kept; the rest is not read.
    pub body_bytes_max: usize,
}

impl Bounds {
    /// The limits for webhooks: 15 s as documented, of which connecting may take 10. 16 KiB are enough for any message
    /// of a receiver, and too little to cost memory.
    pub const WEBHOOK: Self = Self {
        connect: Duration::from_secs(10),
        total: Duration::from_secs(15),
        body_bytes_max: 16 * 1024,
    };
}

/// Time limit for connecting when the response is a stream.
const STREAM_CONNECT: Duration = Duration::from_secs(10);

/// The reason why a guarded request has no response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The address must not be called.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// The time limit passed before the response's status arrived.
    #[error("{host} did not answer within {within_ms} ms")]
    TimedOut {
        host: String,
        /// The time limit of the request.
        within_ms: u64,
    },
    #[error("the name {host} could not be resolved")]
    Resolve {
        host: String,
        /// The error without the URL.
        source: reqwest::Error,
    },
    /// TCP or TLS failed.
    #[error("cannot connect to {host}")]
    Connect {
        host: String,
        /// The error without the URL.
        source: reqwest::Error,
    },
    /// The connection broke, or the response is not HTTP.
    #[error("the request to {host} failed")]
    Send {
        host: String,
        /// The error without the URL.
        source: reqwest::Error,
    },
}

/// The HTTP client cannot be created, because TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the HTTP client for outgoing requests")]
pub struct ClientError(#[source] Box<dyn StdError + Send + Sync>);

impl ClientError {
    /// An error of a library other than the HTTP client.
    pub(crate) fn other(error: String) -> Self {
        Self(error.into())
    }
}

/// A response, complete or cut.
#[derive(Debug)]
pub struct Answer {
    /// Any status, including 3xx.
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The first bytes of the body, at most [`Bounds::body_bytes_max`].
    pub body: Bytes,
    /// Whether the body was longer, or broke off.
    pub body_is_cut: bool,
}

/// A client that calls only addresses that its [`Guard`] permits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GuardedClient {
    http: reqwest::Client,
    guard: Guard,
    bounds: Bounds,
}

/// Installs `ring` as the process's TLS provider. Must be called first in `main`; does nothing if a provider is
/// installed.
pub fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread has installed one in the meantime.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

/// A client for addresses from the operator, which are not checked. It follows no redirects, ignores proxies from the
/// environment, and sets no time limit for a streaming response.
///
/// # Errors
/// [`ClientError`] if TLS cannot be set up.
pub(crate) fn operator_client(connect: Duration) -> Result<reqwest::Client, ClientError> {
    finish(plain(connect), Roots::System)
        .or_else(|_| finish(plain(connect), Roots::None))
        .map_err(|e| ClientError(e.into()))
}

/// The settings that all clients of this program share.
fn plain(connect: Duration) -> reqwest::ClientBuilder {
    install_crypto_provider();
    reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        // Decompression would bypass the size limits, and delays a stream.
        .no_gzip()
        .referer(false)
        .connect_timeout(connect)
        .user_agent(concat!("errand/", env!("CARGO_PKG_VERSION")))
}

fn finish(
    builder: reqwest::ClientBuilder,
    roots: Roots,
) -> Result<reqwest::Client, reqwest::Error> {
    match roots {
        Roots::System => builder.build(),
        Roots::None => builder.tls_certs_only([]).build(),
    }
}

/// The root certificates for `https` servers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Roots {
    System,
    None,
}

impl Guard {
    /// A client that is restricted by this guard.
    ///
    /// On a machine without root certificates (a bare container) the client is created nevertheless, for `http`.
    /// Requests to `https` addresses then fail with a certificate error, and a warning is logged here.
    ///
    /// # Errors
    /// [`ClientError`] if TLS cannot be set up.
    pub fn client(&self, bounds: Bounds) -> Result<GuardedClient, ClientError> {
        let http = self.build(bounds, Roots::System, self.resolver()).or_else(|error| {
            tracing::warn!(
                error = error_chain(&error),
                "no root certificates on this machine: requests to https addresses will fail; install the \
                 package ca-certificates"
            );
            self.build(bounds, Roots::None, self.resolver())
        });
        Ok(GuardedClient {
            http: http.map_err(|e| ClientError(e.into()))?,
            guard: *self,
            bounds,
        })
    }

    /// A guarded client for streaming responses, without a time limit of its own. Before each use, the caller must
    /// check the URL with [`Guard::check_url`], because a literal IP address never reaches the guarded resolver.
    ///
    /// # Errors
    /// [`ClientError`] if TLS cannot be set up.
    pub fn streaming_client(&self) -> Result<reqwest::Client, ClientError> {
        let build = |roots| finish(self.builder(STREAM_CONNECT, self.resolver()), roots);
        build(Roots::System)
            .or_else(|_| build(Roots::None))
            .map_err(|e| ClientError(e.into()))
    }

    fn build(
        &self,
        bounds: Bounds,
        roots: Roots,
        resolver: std::sync::Arc<dyn reqwest::dns::Resolve>,
    ) -> Result<reqwest::Client, reqwest::Error> {
        let builder = self.builder(bounds.connect, resolver).timeout(bounds.total);
        finish(builder, roots)
    }

    fn builder(
        &self,
        connect: Duration,
        resolver: std::sync::Arc<dyn reqwest::dns::Resolve>,
    ) -> reqwest::ClientBuilder {
        plain(connect)
            .dns_resolver(resolver)
            // A kept connection would go to an address that was judged some other time.
            .pool_max_idle_per_host(0)
    }

    #[cfg(test)]
    pub(crate) fn client_resolving(
        &self,
        bounds: Bounds,
        host: &'static str,
        addresses: Vec<std::net::IpAddr>,
    ) -> GuardedClient {
        let http = self.build(bounds, Roots::None, self.resolver_of(host, addresses));
        GuardedClient {
            http: http.expect("a client"),
            guard: *self,
            bounds,
        }
    }
}

impl GuardedClient {
    /// The limits with which the client was created.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Sends one request. A user name and password in `url` become basic authentication.
    ///
    /// A response counts when its status and headers have arrived. If the body breaks off later, the part that arrived
    /// is returned.
    ///
    /// # Errors
    /// [`RequestError`] if there is no response.
    pub async fn request(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, RequestError> {
        // `reqwest` connects to literal IP addresses without the resolver, so they are checked here.
        self.guard.check_url(url)?;
        let sent = self
            .http
            .request(method, url.clone())
            .headers(headers)
            .body(body)
            .send()
            .await;
        let mut response = sent.map_err(|error| self.explain(url, error))?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let (body, body_is_cut) = self.read(response).await;
        Ok(Answer {
            status,
            headers,
            body,
            body_is_cut,
        })
    }

    async fn read(&self, mut response: reqwest::Response) -> (Bytes, bool) {
        let most = self.bounds.body_bytes_max;
        let mut body = BytesMut::new();
        loop {
            match response.chunk().await {
                Ok(Some(mut part)) => {
                    let fits = part.len() <= most - body.len();
                    part.truncate(most - body.len());
                    body.extend_from_slice(&part);
                    if !fits {
                        return (body.freeze(), true);
                    }
                }
                Ok(None) => return (body.freeze(), false),
                Err(_) => return (body.freeze(), true),
            }
        }
    }

    fn explain(&self, url: &Url, error: reqwest::Error) -> RequestError {
        if let Some(blocked) = find::<Blocked>(&error) {
            return RequestError::Blocked(blocked.clone());
        }
        let source = error.without_url();
        let host = url.host_str().unwrap_or_default().to_owned();
        if source.is_timeout() {
            let within_ms = u64::try_from(self.bounds.total.as_millis()).unwrap_or(u64::MAX);
            RequestError::TimedOut { host, within_ms }
        } else if source.is_dns() {
            RequestError::Resolve { host, source }
        } else if source.is_connect() {
            RequestError::Connect { host, source }
        } else {
            RequestError::Send { host, source }
        }
    }
}

/// The first error of type `E` in an error's chain of sources.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&e| e.source()).find_map(|e| e.downcast_ref())
}

#[cfg(test)]
mod tests;
