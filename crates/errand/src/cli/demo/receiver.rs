//! A webhook receiver as a customer would write it: it verifies the signature before it trusts the body.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use errand_client::{RunId, RunWebhook, WebhookEvent, WebhookPayload, WebhookVerifier};
use http::{HeaderMap, StatusCode};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// How long to wait for the last webhook.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Capacity for unread webhooks, far more than the demo's run sends.
const UNREAD_MAX: usize = 64;

/// Stops when dropped.
pub(super) struct Receiver {
    address: SocketAddr,
    received: mpsc::Receiver<Received>,
    _server: AbortOnDropHandle<()>,
}

/// A verified webhook, or why verification failed.
type Received = Result<WebhookPayload, String>;

struct Inbox {
    verifier: WebhookVerifier,
    received: mpsc::Sender<Received>,
}

impl Receiver {
    pub(super) async fn start(secret: &str) -> Result<Self> {
        let verifier = WebhookVerifier::new(secret)?;
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("no free port for the webhook receiver")?;
        let address = listener.local_addr()?;
        let (sender, received) = mpsc::channel(UNREAD_MAX);
        let inbox = Arc::new(Inbox {
            verifier,
            received: sender,
        });
        let router = Router::new()
            .route("/webhooks", post(receive))
            .with_state(inbox);
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the webhook receiver ended unexpectedly");
            }
        });
        Ok(Self {
            address,
            received,
            _server: AbortOnDropHandle::new(server),
        })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/webhooks", self.address)
    }

    /// Waits for the webhook that reports the run's end.
    pub(super) async fn ended(&mut self, run: &RunId) -> Result<RunWebhook> {
        let ended = async {
            while let Some(received) = self.received.recv().await {
                match received {
                    Ok(WebhookPayload::Run(webhook))
                        if webhook.run_id == *run
                            && webhook.event != WebhookEvent::HumanRequest =>
                    {
                        return Ok(*webhook);
                    }
                    Ok(_) => {}
                    Err(why) => bail!("received a webhook with an invalid signature: {why}"),
                }
            }
            bail!("the webhook receiver ended unexpectedly")
        };
        let ended = tokio::time::timeout(WAIT_MAX, ended).await;
        ended.with_context(|| {
            format!(
                "no webhook reported the run's end within {} s",
                WAIT_MAX.as_secs()
            )
        })?
    }
}

async fn receive(State(inbox): State<Arc<Inbox>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let received = inbox.verifier.verify(&headers, &body).map_err(|error| {
        let cause = std::error::Error::source(&error);
        cause.map_or_else(|| error.to_string(), ToString::to_string)
    });
    let status = if received.is_ok() {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::BAD_REQUEST
    };
    // Sending fails only when the demo has ended.
    drop(inbox.received.send(received).await);
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const RUN: &str = "0193b0e2-0000-7000-8000-000000000000";

    fn body(event: &str) -> String {
        let at = "2026-11-23T09:30:00.123Z";
        json!({
            "id": RUN, "event": event, "sequence": 1, "created_at": at, "run_id": RUN, "agent_id": RUN,
            "run": {
                "id": RUN, "agent_id": RUN, "build_id": RUN, "status": "completed", "source": "api", "sandbox_id": null,
                "started_at": at, "completed_at": at, "created_at": at, "updated_at": at,
                "human_in_the_loop_enabled": true, "title": null, "error": null, "waiting_on": null,
                "usage": {"steps": 1, "model_calls": 1, "tool_calls": 0, "input_tokens": 0, "cached_tokens": 0,
                          "output_tokens": 0, "cost_usd": 0.0, "seconds": 0.0},
            },
        })
        .to_string()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the library that verifies reads the system's clock as well"
    )]
    async fn send(receiver: &Receiver, body: &str, signed: &str) -> StatusCode {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let now = i64::try_from(now.as_secs()).unwrap();
        let signature = standardwebhooks::Webhook::new(SECRET)
            .unwrap()
            .sign("evt", now, signed.as_bytes())
            .unwrap();
        errand_engine::net::install_crypto_provider();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        let request = http.post(receiver.url()).body(body.to_owned());
        let request = request
            .header("webhook-id", "evt")
            .header("webhook-timestamp", now);
        request
            .header("webhook-signature", signature)
            .send()
            .await
            .unwrap()
            .status()
    }

    #[tokio::test]
    async fn the_end_arrives_as_a_webhook_with_a_valid_signature() {
        let mut receiver = Receiver::start(SECRET).await.unwrap();
        for event in ["human_request", "run_completed"] {
            assert_eq!(
                send(&receiver, &body(event), &body(event)).await,
                StatusCode::NO_CONTENT
            );
        }
        let ended = receiver.ended(&RUN.into()).await.unwrap();
        assert_eq!(ended.event, WebhookEvent::RunCompleted);
    }

    #[tokio::test]
    async fn a_body_that_was_changed_is_refused() {
        let mut receiver = Receiver::start(SECRET).await.unwrap();
        assert_eq!(
            send(&receiver, &body("run_completed"), &body("run_failed")).await,
            StatusCode::BAD_REQUEST
        );
        let error = receiver.ended(&RUN.into()).await.unwrap_err().to_string();
        assert!(error.contains("invalid signature"), "{error}");
    }
}
