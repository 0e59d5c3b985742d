//! One attempt to deliver a webhook: signs, sends and judges the response.
//!
//! # Guarantees
//!
//! - A request follows the Standard Webhooks specification (`webhook-id`, `webhook-timestamp`,
//!   `webhook-signature: v1,<base64 HMAC-SHA256 of id.timestamp.body>`) and passes the address guard.
//! - Every attempt yields an [`Attempt`] to record.
//! - Neither the log nor an attempt contains the secret, or more of the address than its host.
//!
//! # Non-goals
//!
//! Choosing due deliveries (the store), delays between attempts (`errand_core::retry`), and decrypting the team's
//! secret.

use std::fmt::Write;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use sha2::Sha256;
use tokio::time::Instant;
use url::Url;

use errand_core::error_chain::error_chain;
use errand_core::limits::ANSWER_KEPT_BYTES_MAX;

use crate::exhausted;
use crate::net::{Answer, GuardedClient, RequestError};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

const SECRET_PREFIX: &str = "whsec_";
/// Permitted key lengths according to the specification.
const SECRET_BYTES_MIN: usize = 24;
const SECRET_BYTES_MAX: usize = 64;

/// A team's signing secret, with retired secrets that still sign. It cannot be printed or logged by accident;
/// [`WebhookSecret::expose`] returns its text.
#[derive(Clone)]
pub struct WebhookSecret {
    key: Vec<u8>,
    retired: Vec<Vec<u8>>,
}

/// A text is not a webhook secret. The message does not repeat the text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a webhook secret must be `whsec_` followed by 24 to 64 bytes in base64")]
pub struct BadSecret;

/// An id contains characters that cannot be signed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a webhook id must consist of visible ASCII characters without a dot")]
pub struct BadId;

impl WebhookSecret {
    /// A new secret from 32 random bytes.
    pub fn generate(random: [u8; 32]) -> Self {
        Self {
            key: random.into(),
            retired: Vec::new(),
        }
    }

    /// Adds a retired secret, which signs too for a while: each secret has its own signature in the header.
    #[must_use]
    pub fn and_with(mut self, older: Self) -> Self {
        self.retired.push(older.key);
        self.retired.extend(older.retired);
        self
    }

    /// Parses the form that [`WebhookSecret::expose`] returns.
    ///
    /// # Errors
    /// [`BadSecret`] if the prefix, the encoding or the length is wrong.
    pub fn parse(text: &str) -> Result<Self, BadSecret> {
        let encoded = text.strip_prefix(SECRET_PREFIX).ok_or(BadSecret)?;
        let key = STANDARD.decode(encoded).map_err(|_| BadSecret)?;
        (SECRET_BYTES_MIN..=SECRET_BYTES_MAX)
            .contains(&key.len())
            .then(|| Self {
                key,
                retired: Vec::new(),
            })
            .ok_or(BadSecret)
    }

    /// The text that receivers configure: `whsec_` and base64.
    pub fn expose(&self) -> String {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(&self.key))
    }

    /// The signatures `v1,…` of all secrets, separated by spaces, the current secret first.
    fn signatures(&self, parts: &[&[u8]]) -> String {
        let mut signatures = String::new();
        for key in std::iter::once(&self.key).chain(&self.retired) {
            let blank = if signatures.is_empty() { "" } else { " " };
            // Writing to a string does not fail.
            let _ = write!(
                signatures,
                "{blank}v1,{}",
                STANDARD.encode(Self::mac(key, parts))
            );
        }
        signatures
    }

    fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        // HMAC pads keys of up to 64 bytes with zeros. Doing it here makes the constructor infallible.
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
        let mut mac = Hmac::<Sha256>::new(&block);
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }
}

/// The three headers of a signed webhook, with one signature per secret.
///
/// `id`: the event's id, the same for each attempt. `timestamp_s`: the time of the attempt in seconds since the epoch.
/// Receivers refuse a timestamp that is off by more than a few minutes.
///
/// # Errors
/// [`BadId`] if the id does not fit in a header, or contains a dot, which would make the signed text ambiguous.
pub fn sign(
    secret: &WebhookSecret,
    id: &str,
    timestamp_s: i64,
    body: &[u8],
) -> Result<HeaderMap, BadId> {
    if id.is_empty()
        || !id
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'.')
    {
        return Err(BadId);
    }
    let timestamp = timestamp_s.to_string();
    let signature = secret.signatures(&[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);

    let mut headers = HeaderMap::new();
    for (name, value) in [(ID, id), (TIMESTAMP, &timestamp), (SIGNATURE, &signature)] {
        headers.insert(name, HeaderValue::from_str(value).map_err(|_| BadId)?);
    }
    Ok(headers)
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver confirmed the delivery.
    Delivered,
    /// The receiver may or may not have it. Send it again, with the same id.
    Retry,
    /// The receiver unsubscribed (410). Do not send it again.
    Gone,
}

/// The result of one attempt, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The HTTP status of the answer, if there was one.
    pub status: Option<u16>,
    /// The reason why it was not delivered, as one line for the team. `None` if it was delivered.
    pub error: Option<String>,
    /// The beginning of the response body as text, if there was one.
    pub answer: Option<String>,
    /// From the start of the attempt to the end of the response, by the monotonic clock. For people and metrics only.
    pub duration_ms: u64,
    pub verdict: Verdict,
    /// Whether the attempt ended at its time limit.
    pub timed_out: bool,
}

/// Sends requests to receivers. A trait, so that tests can simulate receivers.
#[async_trait]
pub trait Post: Send + Sync {
    /// Sends a POST request, through the address guard and within the client's time limit.
    async fn post(
        &self,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, RequestError>;
}

#[async_trait]
impl Post for GuardedClient {
    async fn post(
        &self,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, RequestError> {
        self.request(Method::POST, url, headers, body).await
    }
}

/// Sends a webhook once. Never fails: every problem is recorded in the [`Attempt`].
///
/// `url`: as the team set it, checked again for each attempt. `id`, `timestamp_s`: see [`sign`]. `body`: the JSON that
/// was fixed when the event was committed.
///
/// A 2xx status within the time limit counts as delivered. Redirects are not followed and count as failures. An address
/// that the guard refuses is retried too, because names and settings change.
pub async fn send(
    client: &dyn Post,
    url: &str,
    id: &str,
    timestamp_s: i64,
    body: Bytes,
    secret: &WebhookSecret,
) -> Attempt {
    let began = Instant::now();
    let mut answer = None;
    let mut timed_out = false;
    let (host, (status, verdict, error)) =
        match (Url::parse(url), sign(secret, id, timestamp_s, &body)) {
            (Ok(url), Ok(mut headers)) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                let answered = client.post(&url, headers, body).await;
                if let Err(error) = &answered {
                    // For a shortage of resources, the caller repeats the attempt without recording it.
                    exhausted::note(error);
                }
                answer = answered.as_ref().ok().and_then(shown);
                timed_out = matches!(&answered, Err(RequestError::TimedOut { .. }));
                (url.host_str().map(str::to_owned), judge(answered))
            }
            (Err(error), _) => (
                None,
                (
                    None,
                    Verdict::Retry,
                    Some(format!("the webhook's address is not a URL: {error}")),
                ),
            ),
            (_, Err(error)) => (None, (None, Verdict::Retry, Some(error.to_string()))),
        };
    let attempt = Attempt {
        status,
        error,
        answer,
        duration_ms: elapsed_ms(began),
        verdict,
        timed_out,
    };
    tracing::debug!(
        webhook.id = id,
        server.address = host,
        http.response.status_code = attempt.status,
        duration_ms = attempt.duration_ms,
        error = attempt.error,
        "webhook {id}: {:?} after {} ms",
        attempt.verdict,
        attempt.duration_ms
    );
    attempt
}

/// The beginning of a response body for people, as text without control characters.
fn shown(answer: &Answer) -> Option<String> {
    let most = answer.body.len().min(ANSWER_KEPT_BYTES_MAX);
    let is_cut = answer.body_is_cut || most < answer.body.len();
    let text = String::from_utf8_lossy(answer.body.get(..most)?);
    let mut kept: String = text
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect();
    if is_cut {
        // The cut may have gone through a character.
        kept.truncate(kept.trim_end_matches('\u{fffd}').len());
        kept.push('…');
    }
    (!kept.trim().is_empty()).then_some(kept)
}

fn judge(answer: Result<Answer, RequestError>) -> (Option<u16>, Verdict, Option<String>) {
    let status = match answer {
        Ok(answer) => answer.status,
        Err(error) => return (None, Verdict::Retry, Some(error_chain(&error))),
    };
    let (verdict, error) = if status.is_success() {
        (Verdict::Delivered, None)
    } else if status == StatusCode::GONE {
        (
            Verdict::Gone,
            Some(answered(status, "it does not want this webhook any more")),
        )
    } else if status.is_redirection() {
        (
            Verdict::Retry,
            Some(answered(
                status,
                "redirects are not followed; set the address to which it redirects",
            )),
        )
    } else {
        (
            Verdict::Retry,
            Some(answered(status, "only a 2xx counts as delivered")),
        )
    };
    (Some(status.as_u16()), verdict, error)
}

fn answered(status: StatusCode, note: &str) -> String {
    let mut text = format!("the receiver answered {}", status.as_u16());
    if let Some(reason) = status.canonical_reason() {
        // Writing to a string does not fail.
        let _ = write!(text, " {reason}");
    }
    text + ": " + note
}

/// The monotonic clock is read only here, for people and never for a decision.
fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
