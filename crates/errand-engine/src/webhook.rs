//! One attempt to deliver a webhook: sign, send, judge.
//!
//! Promised: a request as the Standard Webhooks specification has it (`webhook-id`, `webhook-timestamp`,
//! `webhook-signature: v1,<base64 HMAC-SHA256 of id.timestamp.body>`), through the address guard, and an [`Attempt`]
//! to be recorded whatever happened. Neither the log nor an attempt's text holds the secret, or of the address more
//! than its host.
//!
//! Left out: what is due and when (the store's deliveries, and `errand_core::retry` for the pauses), and unsealing the
//! team's secret.

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

use errand_core::cause::chain;
use errand_core::limits::ANSWER_KEPT_BYTES_MAX;

use crate::exhausted;
use crate::net::{Answer, GuardedClient, RequestError};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

const SECRET_PREFIX: &str = "whsec_";
/// What the specification allows as a key.
const SECRET_BYTES_MIN: usize = 24;
const SECRET_BYTES_MAX: usize = 64;

/// A team's signing secret, with those that it replaced and that still sign. It can be neither printed nor logged by
/// accident; [`WebhookSecret::expose`] gives its text.
#[derive(Clone)]
pub struct WebhookSecret {
    key: Vec<u8>,
    retired: Vec<Vec<u8>>,
}

/// A text that is no webhook secret. The message does not repeat it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a webhook secret is `whsec_` and then 24 to 64 bytes in base64")]
pub struct BadSecret;

/// An id that cannot be signed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a webhook's id is of visible ASCII characters without a dot")]
pub struct BadId;

impl WebhookSecret {
    /// A new secret of 32 random bytes that the caller drew.
    pub fn generate(random: [u8; 32]) -> Self {
        Self {
            key: random.into(),
            retired: Vec::new(),
        }
    }

    /// The same, for a while signing with an older one as well: each has a signature of its own in the header.
    #[must_use]
    pub fn and_with(mut self, older: Self) -> Self {
        self.retired.push(older.key);
        self.retired.extend(older.retired);
        self
    }

    /// Reads the form that [`WebhookSecret::expose`] gives.
    ///
    /// # Errors
    /// [`BadSecret`].
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

    /// The secret as receivers enter it: `whsec_` and base64.
    pub fn expose(&self) -> String {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(&self.key))
    }

    /// `v1,…` for each secret, the present one first, separated by blanks.
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
        // HMAC fills a key of up to 64 bytes up with zeros to 64; done here, there is no length that could be refused.
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
        let mut mac = Hmac::<Sha256>::new(&block);
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }
}

/// The three headers of a signed webhook, with a signature for each of the secrets.
///
/// `id`: the event's id, the same at each attempt. `timestamp_s`: the attempt's time in seconds since the epoch;
/// receivers refuse one that is more than some minutes off.
///
/// # Errors
/// [`BadId`]: a header could not hold it, or its dot would make two messages look alike to the signature.
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

/// What is to be done after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has it.
    Delivered,
    /// It may have it or not: to be sent again, under the same id.
    Retry,
    /// The receiver wants no more of it (410): never to be sent again.
    Gone,
}

/// What became of one attempt, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The receiver's HTTP status, if it answered.
    pub status: Option<u16>,
    /// Why it is not delivered, one line for the team to read; `None` if it is.
    pub error: Option<String>,
    /// The first bytes of the receiver's answer as text, where it had any.
    pub answer: Option<String>,
    /// From the start of the attempt to the end of the answer, by the monotonic clock. For people and metrics only.
    pub duration_ms: u64,
    /// What is to be done now.
    pub verdict: Verdict,
    /// Whether the receiver held the attempt until its time was over.
    pub timed_out: bool,
}

/// Who takes a request to a receiver.
#[async_trait]
pub trait Post: Send + Sync {
    /// Posts `body`. Through the address guard, within the client's time.
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

/// Sends a webhook once and says what came of it. Never fails: whatever goes wrong is in the attempt.
///
/// `url`: as the team gave it, judged anew at each attempt. `id`, `timestamp_s`: see [`sign`]. `body`: JSON, as fixed
/// when the event was committed.
///
/// Delivered is what was answered with a 2xx within the client's time; a redirect is not followed and counts as a
/// failure. An address that the guard refuses is tried again as well, since names and settings change.
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
                    // Who waits for more of what has run out sends it again, and records nothing.
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
                    Some(format!("the webhook's address is no URL: {error}")),
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

/// What of an answer's body is kept for people: its first bytes, as text without control characters.
fn shown(answer: &Answer) -> Option<String> {
    let most = answer.body.len().min(ANSWER_KEPT_BYTES_MAX);
    let is_cut = answer.body_is_cut || most < answer.body.len();
    let text = String::from_utf8_lossy(answer.body.get(..most)?);
    let mut kept: String = text
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect();
    if is_cut {
        // A character that the cut went through.
        kept.truncate(kept.trim_end_matches('\u{fffd}').len());
        kept.push('…');
    }
    (!kept.trim().is_empty()).then_some(kept)
}

fn judge(answer: Result<Answer, RequestError>) -> (Option<u16>, Verdict, Option<String>) {
    let status = match answer {
        Ok(answer) => answer.status,
        Err(error) => return (None, Verdict::Retry, Some(chain(&error))),
    };
    let (verdict, error) = if status.is_success() {
        (Verdict::Delivered, None)
    } else if status == StatusCode::GONE {
        (
            Verdict::Gone,
            Some(answered(status, "it wants no more of this webhook")),
        )
    } else if status.is_redirection() {
        (
            Verdict::Retry,
            Some(answered(
                status,
                "redirects are not followed; give the address it leads to",
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

/// The one place where the monotonic clock is read: for what people see, never for a decision.
fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
