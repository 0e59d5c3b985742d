//! Calls for the team's webhooks and their deliveries.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, ClientError, Reply, page, path};

#[derive(Clone, Debug, Deserialize)]
pub struct WebhookReply {
    pub webhook: WebhookLine,
}

/// The part of a webhook that the command line displays.
#[derive(Clone, Debug, Deserialize)]
pub struct WebhookLine {
    pub id: String,
    /// The address of the receiver.
    pub url: String,
    /// The names of the selected events.
    pub events: Vec<String>,
    pub enabled: bool,
    /// The reason, if the server disabled it.
    pub disabled_reason: Option<String>,
    pub description: Option<String>,
}

/// A page of webhooks.
#[derive(Clone, Debug, Deserialize)]
pub struct WebhookList {
    pub webhooks: Vec<WebhookLine>,
    /// The total number of webhooks.
    pub total: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct DeliveryReply {
    pub delivery: DeliveryLine,
}

/// The part of a delivery that the command line displays.
#[derive(Clone, Debug, Deserialize)]
pub struct DeliveryLine {
    pub id: String,
    /// The name of the event.
    pub event: String,
    pub run_id: Option<String>,
    /// The address of the receiver.
    pub url: String,
    /// `pending`, `delivered`, `gone`, `exhausted` or `dropped`.
    pub state: String,
    /// The time of the event.
    pub created_at: String,
    /// The time of the next attempt.
    pub next_attempt_at: Option<String>,
    /// Oldest first.
    pub attempts: Vec<AttemptLine>,
}

/// The part of an attempt that the command line displays.
#[derive(Clone, Debug, Deserialize)]
pub struct AttemptLine {
    /// The HTTP status of the receiver.
    pub status: Option<u16>,
    /// The reason why it does not count as delivered.
    pub error: Option<String>,
}

/// A page of deliveries.
#[derive(Clone, Debug, Deserialize)]
pub struct DeliveryList {
    pub deliveries: Vec<DeliveryLine>,
    /// The total number of deliveries.
    pub total: u64,
}

/// The response to replacing the signing secret.
#[derive(Clone, Debug, Deserialize)]
pub struct RolledReply {
    /// `None` if the response is a replay.
    pub secret: Option<String>,
}

impl Client {
    /// `GET /v1/webhooks`, one page.
    ///
    /// # Errors
    /// As for any call.
    pub async fn webhooks(
        &self,
        limit: u32,
        offset: u64,
    ) -> Result<Reply<WebhookList>, ClientError> {
        self.get("/v1/webhooks", &page(limit, offset)).await
    }

    /// `POST /v1/webhooks`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn create_webhook(&self, body: &Value) -> Result<Reply<WebhookReply>, ClientError> {
        self.post("/v1/webhooks", body).await
    }

    /// `DELETE /v1/webhooks/{webhook_id}`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn delete_webhook(&self, webhook: &str) -> Result<(), ClientError> {
        self.delete(&path(&["webhooks", webhook])).await
    }

    /// `POST /v1/webhooks/{webhook_id}/test`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn test_webhook(&self, webhook: &str) -> Result<Reply<DeliveryReply>, ClientError> {
        self.post(&path(&["webhooks", webhook, "test"]), &json!({}))
            .await
    }

    /// `GET /v1/webhooks/{webhook_id}/deliveries` or `GET /v1/runs/{run_id}/deliveries`, one page. `of`: `webhooks` or
    /// `runs`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn deliveries(
        &self,
        of: &'static str,
        id: &str,
        limit: u32,
        offset: u64,
    ) -> Result<Reply<DeliveryList>, ClientError> {
        self.get(&path(&[of, id, "deliveries"]), &page(limit, offset))
            .await
    }

    /// `POST /v1/deliveries/{delivery_id}/resend`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn resend(&self, delivery: &str) -> Result<Reply<DeliveryReply>, ClientError> {
        self.post(&path(&["deliveries", delivery, "resend"]), &json!({}))
            .await
    }

    /// `POST /v1/webhook-secret/roll`.
    ///
    /// # Errors
    /// As for any call.
    pub async fn roll_webhook_secret(&self) -> Result<Reply<RolledReply>, ClientError> {
        self.post("/v1/webhook-secret/roll", &json!({})).await
    }
}
