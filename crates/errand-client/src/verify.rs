//! Verifies webhooks.

use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use crate::human_requests::HumanRequest;
use crate::id::{AgentId, RunId, WebhookId};
use crate::run::Run;
use crate::time::Timestamp;
use crate::webhooks::WebhookEvent;

/// Verifies that webhooks come from your team's server, and parses them.
///
/// Webhooks are signed as [Standard Webhooks](https://www.standardwebhooks.com) describes. The timestamp must be within
/// five minutes of this machine's clock. A receiver gets an event again if its response was lost: remember the `id`.
///
/// ```
/// use errand_client::{WebhookPayload, WebhookVerifier};
/// # use http::HeaderMap;
///
/// fn receive(verifier: &WebhookVerifier, headers: &HeaderMap, body: &[u8]) -> http::StatusCode {
///     match verifier.verify(headers, body) {
///         Ok(WebhookPayload::Run(webhook)) => println!("run {}: {}", webhook.run_id, webhook.event),
///         Ok(_) => {}
///         Err(_) => return http::StatusCode::BAD_REQUEST,
///     }
///     http::StatusCode::NO_CONTENT
/// }
/// ```
pub struct WebhookVerifier {
    secrets: Vec<standardwebhooks::Webhook>,
}

/// A verified webhook.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum WebhookPayload {
    /// A run asks a person, or has ended.
    Run(Box<RunWebhook>),
    /// Somebody tests the webhook.
    Test(TestWebhook),
    /// An event that this version of the crate does not know: the body as JSON.
    Other(Value),
}

/// A webhook about a run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct RunWebhook {
    /// The id of the event, the same at every attempt.
    pub id: String,
    /// The event.
    pub event: WebhookEvent,
    /// The number of the event, which rises within the run.
    pub sequence: u64,
    /// When it happened.
    pub created_at: Timestamp,
    /// The run.
    pub run_id: RunId,
    /// The run's agent.
    pub agent_id: AgentId,
    /// The run as it was then.
    pub run: Run,
    /// The request that waits for an answer, for [`WebhookEvent::HumanRequest`].
    pub human_request: Option<HumanRequest>,
    /// The address to which the answer is sent, for [`WebhookEvent::HumanRequest`].
    pub respond_url: Option<String>,
}

/// A webhook that somebody tests.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct TestWebhook {
    /// The id of the event, the same at every attempt.
    pub id: String,
    /// When the test was requested.
    pub created_at: Timestamp,
    /// The webhook that is tested.
    pub webhook_id: WebhookId,
    /// A sentence for people.
    pub message: String,
}

/// Why a webhook is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebhookError {
    /// The secret does not have the form of one.
    #[error("a webhook secret must be `whsec_` and base64")]
    Secret(#[source] standardwebhooks::WebhookError),
    /// No secret fits the signature, or a header is missing, or the timestamp is too old or too new. Do nothing that
    /// the body says.
    #[error("the signature does not verify")]
    Signature(#[source] standardwebhooks::WebhookError),
    /// The signature is right, but the body cannot be parsed.
    #[error("the body is not a webhook")]
    Body(#[source] serde_json::Error),
}

impl WebhookVerifier {
    /// `secret`: the team's signing secret, `whsec_…`.
    ///
    /// # Errors
    /// [`WebhookError::Secret`].
    pub fn new(secret: &str) -> Result<Self, WebhookError> {
        Ok(Self {
            secrets: vec![parse(secret)?],
        })
    }

    /// Accepts a second secret as well. While you replace a secret, accept the old one and the new one.
    ///
    /// # Errors
    /// [`WebhookError::Secret`].
    pub fn or(mut self, secret: &str) -> Result<Self, WebhookError> {
        self.secrets.push(parse(secret)?);
        Ok(self)
    }

    /// Verifies and parses a webhook. `body`: the bytes as they arrived, because the signature covers each of them.
    ///
    /// # Errors
    /// [`WebhookError::Signature`], [`WebhookError::Body`].
    pub fn verify(&self, headers: &HeaderMap, body: &[u8]) -> Result<WebhookPayload, WebhookError> {
        let mut refused = standardwebhooks::WebhookError::InvalidSignature;
        for secret in &self.secrets {
            match secret.verify(body, headers) {
                Ok(()) => return payload(body).map_err(WebhookError::Body),
                Err(error) => refused = error,
            }
        }
        Err(WebhookError::Signature(refused))
    }
}

impl std::fmt::Debug for WebhookVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookVerifier").finish_non_exhaustive()
    }
}

fn parse(secret: &str) -> Result<standardwebhooks::Webhook, WebhookError> {
    standardwebhooks::Webhook::new(secret).map_err(WebhookError::Secret)
}

#[derive(Deserialize)]
struct Outline {
    event: WebhookEvent,
}

fn payload(body: &[u8]) -> Result<WebhookPayload, serde_json::Error> {
    let Outline { event } = serde_json::from_slice(body)?;
    match event {
        WebhookEvent::Test => serde_json::from_slice(body).map(WebhookPayload::Test),
        WebhookEvent::Other(_) => serde_json::from_slice(body).map(WebhookPayload::Other),
        _ => serde_json::from_slice(body).map(WebhookPayload::Run),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const ID: &str = "0193b0e2-0000-7000-8000-000000000000";
    const AT: &str = "2026-11-23T09:30:00.123Z";

    fn test_body() -> String {
        json!({"id": ID, "event": "webhook_test", "created_at": AT, "webhook_id": ID, "message": "A test."}).to_string()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the library compares with the system's clock"
    )]
    fn now() -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(now.as_secs()).unwrap()
    }

    fn signed(secret: &str, at: i64, body: &str) -> HeaderMap {
        let signature = parse(secret)
            .unwrap()
            .sign("id", at, body.as_bytes())
            .unwrap();
        [
            ("webhook-id", "id".to_owned()),
            ("webhook-timestamp", at.to_string()),
            ("webhook-signature", signature),
        ]
        .into_iter()
        .map(|(name, value)| {
            let value = HeaderValue::try_from(value).unwrap();
            (HeaderName::from_static(name), value)
        })
        .collect()
    }

    #[test]
    fn each_accepted_secret_verifies() {
        let verifier = WebhookVerifier::new(NEW).unwrap().or(OLD).unwrap();
        let body = test_body();
        for secret in [OLD, NEW] {
            let payload = verifier.verify(&signed(secret, now(), &body), body.as_bytes());
            assert!(
                matches!(payload.unwrap(), WebhookPayload::Test(test) if test.message == "A test.")
            );
        }
        assert_eq!(format!("{verifier:?}"), "WebhookVerifier { .. }");
    }

    #[test]
    fn a_foreign_changed_or_old_webhook_is_refused() {
        let verifier = WebhookVerifier::new(NEW).unwrap();
        let body = test_body();
        let refused = |headers: &HeaderMap, body: &str| {
            let error = verifier.verify(headers, body.as_bytes()).unwrap_err();
            matches!(error, WebhookError::Signature(_))
        };
        assert!(refused(&signed(OLD, now(), &body), &body));
        assert!(refused(
            &signed(NEW, now(), &body),
            &body.replace("A test", "An order")
        ));
        assert!(refused(&signed(NEW, now() - 3600, &body), &body));
        assert!(refused(&signed(NEW, now() + 3600, &body), &body));
        assert!(refused(&HeaderMap::new(), &body));
        assert!(matches!(
            WebhookVerifier::new("no secret"),
            Err(WebhookError::Secret(_))
        ));
    }

    #[test]
    fn the_body_is_parsed_as_its_event_says() {
        let verifier = WebhookVerifier::new(NEW).unwrap();
        let verify = |body: &str| verifier.verify(&signed(NEW, now(), body), body.as_bytes());
        let run = json!({
            "id": ID, "agent_id": ID, "build_id": ID, "status": "failed", "source": "api", "sandbox_id": null,
            "started_at": AT, "completed_at": AT, "created_at": AT, "updated_at": AT, "human_in_the_loop_enabled": true,
            "title": null, "error": {"code": "limit_exceeded", "message": "Too many steps."},
        });
        let body = json!({
            "id": ID, "event": "run_failed", "sequence": 2, "created_at": AT, "run_id": ID, "agent_id": ID, "run": run,
        });
        let WebhookPayload::Run(webhook) = verify(&body.to_string()).unwrap() else {
            panic!("it is about a run");
        };
        assert_eq!(webhook.event, WebhookEvent::RunFailed);
        assert_eq!(webhook.run.error.unwrap().code, "limit_exceeded");
        let new = json!({"event": "agent_renamed"});
        assert_eq!(
            verify(&new.to_string()).unwrap(),
            WebhookPayload::Other(new)
        );
        for body in ["{}", r#"{"event": "run_failed"}"#, "no JSON"] {
            assert!(matches!(verify(body), Err(WebhookError::Body(_))), "{body}");
        }
    }
}
