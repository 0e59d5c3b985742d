//! API calls of a careful client: calls without a response are repeated with the same `Idempotency-Key`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use serde_json::Value;
use tokio::sync::watch;

use super::progress::PATIENCE;

/// Time limit for the first attempt of a call. It is shorter than a pause of the server, so that clients notice pauses.
/// Each further attempt has twice the time, so that slow machines succeed in the end.
pub(super) const FIRST_TRY_MAX: Duration = Duration::from_secs(2);
/// Pause before a call is repeated.
const PAUSE: Duration = Duration::from_millis(5);

/// Why a call has no result, as a sentence.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{why}")]
pub(super) struct Refused {
    pub(super) why: String,
    /// The status code, if the server responded.
    pub(super) status: Option<StatusCode>,
}

impl Refused {
    pub(super) fn new(why: String) -> Self {
        Self { why, status: None }
    }
}

#[derive(Clone)]
pub(super) struct Call {
    method: Method,
    path: String,
    body: Bytes,
    kind: &'static str,
    idempotency_key: Option<String>,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: Bytes::new(),
            kind: "",
            idempotency_key: None,
        }
    }

    pub(super) fn post(path: impl Into<String>, body: &Value, key: impl Into<String>) -> Self {
        Self {
            method: Method::POST,
            path: path.into(),
            body: body.to_string().into(),
            kind: "application/json",
            idempotency_key: Some(key.into()),
        }
    }

    pub(super) fn file(
        method: Method,
        path: impl Into<String>,
        bytes: Vec<u8>,
        key: Option<String>,
    ) -> Self {
        Self {
            method,
            path: path.into(),
            body: bytes.into(),
            kind: "application/octet-stream",
            idempotency_key: key,
        }
    }
}

/// A client for the loopback interface: no proxy, no certificates, no redirects.
pub(super) fn http_client() -> Result<reqwest::Client> {
    errand_engine::net::install_crypto_provider();
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("the HTTP client cannot be set up")
}

/// Sends calls. The server's URL changes if another program took its port in the meantime.
pub(super) struct Caller {
    http: reqwest::Client,
    base: watch::Receiver<String>,
    key: String,
    repeated: AtomicU64,
}

impl Caller {
    pub(super) fn new(base: watch::Receiver<String>, key: String) -> Result<Self> {
        let http = http_client()?;
        Ok(Self {
            http,
            base,
            key,
            repeated: AtomicU64::new(0),
        })
    }

    /// Number of repeated attempts.
    pub(super) fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// The body of the first successful response.
    pub(super) async fn bytes(&self, call: &Call) -> Result<Bytes, Refused> {
        let (began, mut try_max) = (Instant::now(), FIRST_TRY_MAX);
        loop {
            let why = match self.try_once(call, try_max).await {
                Ok((status, body)) if status.is_success() => return Ok(body),
                Ok((status, body)) if !status.is_server_error() => {
                    let body = String::from_utf8_lossy(&body);
                    let Call { method, path, .. } = call;
                    return Err(Refused {
                        why: format!("{method} {path}: {status}: {body}"),
                        status: Some(status),
                    });
                }
                Ok((status, _)) => status.to_string(),
                Err(error) => {
                    if error.is_timeout() {
                        try_max *= 2;
                    }
                    errand_core::error_chain::error_chain(&error.without_url())
                }
            };
            if began.elapsed() > PATIENCE {
                let Call { method, path, .. } = call;
                return Err(Refused::new(format!(
                    "{method} {path}: no response within {} s: {why}",
                    PATIENCE.as_secs()
                )));
            }
            self.repeated.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Like [`Caller::bytes`], parsed as JSON.
    pub(super) async fn json(&self, call: &Call) -> Result<Value, Refused> {
        let body = self.bytes(call).await?;
        serde_json::from_slice(&body).map_err(|error| {
            let Call { method, path, .. } = call;
            Refused::new(format!(
                "{method} {path}: the response is not JSON: {error}"
            ))
        })
    }

    async fn try_once(
        &self,
        call: &Call,
        time_max: Duration,
    ) -> reqwest::Result<(StatusCode, Bytes)> {
        let url = format!("{}{}", self.base.borrow().as_str(), call.path);
        let mut request = self
            .http
            .request(call.method.clone(), url)
            .timeout(time_max)
            .bearer_auth(&self.key);
        if !call.kind.is_empty() {
            request = request
                .header(header::CONTENT_TYPE, call.kind)
                .body(call.body.clone());
        }
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let response = request.send().await?;
        let status = response.status();
        Ok((status, response.bytes().await?))
    }
}
