//! Requests to addresses that a team gave: through the address guard, bounded in time and size.
//!
//! Promised by [`GuardedClient`]: each request is judged anew (no connection is kept from an earlier one); no redirect
//! is followed; no proxy is taken from the environment; it ends within the time given; of the answer's body no more
//! than asked for is kept. No error holds the address's path, query or password.
//!
//! Left out: retries, and requests to addresses that the operator gave, which need no guard.

mod guard;

use errand_core::cause::chain;
use std::error::Error as StdError;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use reqwest::redirect;
use url::Url;

pub use guard::{Blocked, Guard, is_global};

/// How long a request may take, and how much of its answer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Name resolution, connection and TLS.
    pub connect: Duration,
    /// All of it: connection, request, and the answer with its body.
    pub total: Duration,
    /// Most bytes of the answer's body that are kept; the rest is not read.
    pub body_bytes_max: usize,
}

impl Bounds {
    /// For webhooks: 15 s as the contract says, of which connecting may take 10; 16 KiB, enough for any message of a
    /// receiver, and too little for one to cost memory.
    pub const WEBHOOK: Self = Self {
        connect: Duration::from_secs(10),
        total: Duration::from_secs(15),
        body_bytes_max: 16 * 1024,
    };
}

/// How long a connection for answers that stream may take to come about.
const STREAM_CONNECT: Duration = Duration::from_secs(10);

/// Why there is no answer to a guarded request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The address may not be called.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// The time ran out before the answer's status came.
    #[error("{host} gave no answer within {within_ms} ms")]
    TimedOut {
        /// The address's host.
        host: String,
        /// The bound that was set.
        within_ms: u64,
    },
    /// The host's name could not be resolved.
    #[error("the name {host} could not be resolved")]
    Resolve {
        /// The address's host.
        host: String,
        /// Without the URL.
        source: reqwest::Error,
    },
    /// No connection, TLS included.
    #[error("no connection to {host}")]
    Connect {
        /// The address's host.
        host: String,
        /// Without the URL.
        source: reqwest::Error,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the request to {host} failed")]
    Send {
        /// The address's host.
        host: String,
        /// Without the URL.
        source: reqwest::Error,
    },
}

/// The client's parts could not be put together: TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the HTTP client for outgoing requests")]
pub struct ClientError(#[source] reqwest::Error);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Any, also 3xx.
    pub status: StatusCode,
    /// As received.
    pub headers: HeaderMap,
    /// The first bytes of the body, at most [`Bounds::body_bytes_max`].
    pub body: Bytes,
    /// Whether there was more of the body, or it broke off.
    pub body_is_cut: bool,
}

/// A client that calls only what its [`Guard`] permits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GuardedClient {
    http: reqwest::Client,
    guard: Guard,
    bounds: Bounds,
}

/// Makes `ring` the process's provider of cryptography for TLS. The program calls it first thing; where one is set
/// already it does nothing.
pub fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster, which serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

/// Where the certificates come from that an `https` server is judged by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Roots {
    System,
    None,
}

impl Guard {
    /// A client behind this guard.
    ///
    /// On a machine without certificates of authorities (a bare container) it works all the same, for `http`; `https`
    /// then fails with an error of certificates, and a warning says so here.
    ///
    /// # Errors
    /// [`ClientError`] if TLS cannot be set up at all.
    pub fn client(&self, bounds: Bounds) -> Result<GuardedClient, ClientError> {
        let http = self.build(bounds, Roots::System, self.resolver()).or_else(|error| {
            tracing::warn!(
                error = chain(&error),
                "no certificates of authorities on this machine: requests to https addresses will fail; install the \
                 package ca-certificates"
            );
            self.build(bounds, Roots::None, self.resolver())
        });
        Ok(GuardedClient {
            http: http.map_err(ClientError)?,
            guard: *self,
            bounds,
        })
    }

    /// A client behind this guard for answers that stream for as long as they like: who uses it keeps the time. A literal
    /// address in a URL does not come to the resolver: [`Guard::check_url`] judges it, before each use.
    ///
    /// # Errors
    /// [`ClientError`] if TLS cannot be set up at all.
    pub fn streaming_client(&self) -> Result<reqwest::Client, ClientError> {
        let build = |roots| self.build(None, roots, self.resolver());
        build(Roots::System)
            .or_else(|_| build(Roots::None))
            .map_err(ClientError)
    }

    fn build(
        &self,
        bounds: impl Into<Option<Bounds>>,
        roots: Roots,
        resolver: std::sync::Arc<dyn reqwest::dns::Resolve>,
    ) -> Result<reqwest::Client, reqwest::Error> {
        install_crypto_provider();
        let bounds = bounds.into();
        let mut builder = reqwest::Client::builder()
            .dns_resolver(resolver)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            // A kept connection would go to an address that was judged some other time.
            .pool_max_idle_per_host(0)
            .connect_timeout(bounds.map_or(STREAM_CONNECT, |bounds| bounds.connect))
            .user_agent(concat!("errand/", env!("CARGO_PKG_VERSION")));
        if let Some(bounds) = bounds {
            builder = builder.timeout(bounds.total);
        }
        match roots {
            Roots::System => builder.build(),
            Roots::None => builder.tls_certs_only([]).build(),
        }
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
    /// The bounds that it was made with.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Sends one request. A user name and password in `url` become basic authentication.
    ///
    /// An answer counts once its status and headers are here: a body that breaks off after that is kept as far as it
    /// came.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, RequestError> {
        // `reqwest` connects to literal addresses without asking the resolver: this is where they are judged.
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

/// The first error of type `E` in an error's chain of causes.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&e| e.source()).find_map(|e| e.downcast_ref())
}

#[cfg(test)]
mod tests;
