//! The settings of a client.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use http::header::HeaderValue;
use reqwest::Url;

use crate::backoff::RetryPolicy;
use crate::client::Client;
use crate::error::Error;
use crate::transport::Transport;

/// Time limit for name resolution, connecting and TLS.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// How long an upload, a download or a stream may stand still. The server sends a comment every 15 s.
const STALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// An API key: this, and random letters and digits.
const KEY_PREFIX: &str = "dv_";
const KEY_RANDOM_CHARS: usize = 32;

/// Makes a [`Client`] with settings other than the default ones.
#[must_use = "a builder does nothing until `build` is called"]
pub struct ClientBuilder {
    base: String,
    key: String,
    retry: RetryPolicy,
    timeout: Duration,
    stall_timeout: Duration,
    user_agent: String,
    http: Option<reqwest::Client>,
}

impl Client {
    /// `base`: the server's address, such as `http://127.0.0.1:8700`. `key`: an API key, `dv_…`.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::ApiKey`], [`Error::SetUp`].
    pub fn new(base: &str, key: &str) -> Result<Self, Error> {
        Self::builder(base, key).build()
    }

    /// Begins like [`Client::new`], for settings other than the default ones.
    pub fn builder(base: &str, key: &str) -> ClientBuilder {
        ClientBuilder {
            base: base.to_owned(),
            key: key.to_owned(),
            retry: RetryPolicy::default(),
            timeout: TIMEOUT_DEFAULT,
            stall_timeout: STALL_TIMEOUT_DEFAULT,
            user_agent: concat!("errand-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            http: None,
        }
    }
}

impl ClientBuilder {
    /// Sets when calls are repeated. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Sets the time limit of each attempt of a call. Default: a minute. It does not hold for transfers of files and
    /// streams of events, which last as long as data is transferred.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long an upload, a download or a stream of events may stand still. Default: a minute. The server sends
    /// something on an idle stream every 15 s.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.stall_timeout = timeout;
        self
    }

    /// Sets the `User-Agent` of all requests. Default: the name and version of this crate.
    pub fn user_agent(mut self, text: impl Into<String>) -> Self {
        self.user_agent = text.into();
        self
    }

    /// Uses an HTTP client of your own, for example one that trusts a private certificate authority. It should follow
    /// no redirects. The `User-Agent` is the client's own.
    pub fn http_client(mut self, http: reqwest::Client) -> Self {
        self.http = Some(http);
        self
    }

    /// Makes the client. No request is sent.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::ApiKey`], [`Error::SetUp`].
    pub fn build(self) -> Result<Client, Error> {
        let base = address(&self.base)?;
        let authorization = authorization(self.key.trim())?;
        let http = match self.http {
            Some(http) => http,
            None => http_client(&base, &self.user_agent)?,
        };
        Ok(Client::of(Transport {
            http,
            base,
            authorization,
            retry: self.retry,
            timeout: self.timeout,
            stall_timeout: self.stall_timeout,
        }))
    }
}

impl fmt::Debug for ClientBuilder {
    /// Leaves out the API key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("base", &self.base)
            .field("retry", &self.retry)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

fn address(base: &str) -> Result<Url, Error> {
    Url::parse(base.trim())
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| Error::Address {
            url: base.to_owned(),
        })
}

fn authorization(key: &str) -> Result<HeaderValue, Error> {
    let random = key.strip_prefix(KEY_PREFIX).ok_or(Error::ApiKey)?;
    if random.len() != KEY_RANDOM_CHARS || !random.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Error::ApiKey);
    }
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| Error::ApiKey)?;
    value.set_sensitive(true);
    Ok(value)
}

fn http_client(base: &Url, user_agent: &str) -> Result<reqwest::Client, Error> {
    install_crypto_provider();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIME_MAX)
        .user_agent(user_agent);
    let host = base.host_str().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    if host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback()) {
        // A proxy could not reach the loopback address of this machine.
        builder = builder.no_proxy();
    }
    if base.scheme() == "http" {
        // Plain HTTP needs no root certificates, and the machine may have none.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(Error::SetUp)
}

/// TLS needs a provider of cryptography for the whole process. One that is already installed serves as well.
fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread has installed one in the meantime.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}
