//! Webhooks of the team and their deliveries, as the command line calls them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, ClientError, Reply, page, path};

/// A webhook of the team.
#[derive(Clone, Debug, Deserialize)]
pub struct WebhookReply {
    /// The webhook.
    pub webhook: WebhookLine,
}

/// What is shown of a webhook.
#[derive(Clone, Debug, Deserialize)]
pub struct WebhookLine {
    /// Its id.
    pub id: String,
    /// Where its events go.
    pub url: String,
    /// What it is told of.
    pub events: Vec<String>,
    /// Whether it is told of what happens.
    pub enabled: bool,
    /// Why not, where the server disabled it.
    pub disabled_reason: Option<String>,
    /// What it is for.
    pub description: Option<String>,
}

/// A page of webhooks.
#[derive(Clone, Debug, Deserialize)]
pub struct WebhookList {
    /// The webhooks.
    pub webhooks: Vec<WebhookLine>,
    /// How many there are in all.
    pub total: u64,
}

/// One delivery.
#[derive(Clone, Debug, Deserialize)]
pub struct DeliveryReply {
    /// The delivery.
    pub delivery: DeliveryLine,
}

/// What is shown of a delivery.
#[derive(Clone, Debug, Deserialize)]
pub struct DeliveryLine {
    /// Its id.
    pub id: String,
    /// The event.
    pub event: String,
    /// Of which run.
    pub run_id: Option<String>,
    /// Where it goes.
    pub url: String,
    /// What became of it.
    pub state: String,
    /// When the event happened.
    pub created_at: String,
    /// When it is tried next.
    pub next_attempt_at: Option<String>,
    /// All attempts.
    pub attempts: Vec<AttemptLine>,
}

/// What is shown of an attempt.
#[derive(Clone, Debug, Deserialize)]
pub struct AttemptLine {
    /// The receiver's status.
    pub status: Option<u16>,
    /// Why it does not count as delivered.
    pub error: Option<String>,
}

/// A page of deliveries.
#[derive(Clone, Debug, Deserialize)]
pub struct DeliveryList {
    /// The deliveries.
    pub deliveries: Vec<DeliveryLine>,
    /// How many there are in all.
    pub total: u64,
}

/// The new secret.
#[derive(Clone, Debug, Deserialize)]
pub struct RolledReply {
    /// The secret.
    pub secret: Option<String>,
}

impl Client {
    /// `GET /v1/webhooks`, one page.
    ///
    /// # Errors
    /// Those of any call.
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
    /// Those of any call.
    pub async fn create_webhook(&self, body: &Value) -> Result<Reply<WebhookReply>, ClientError> {
        self.post("/v1/webhooks", body).await
    }

    /// `DELETE /v1/webhooks/{webhook_id}`.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn delete_webhook(&self, webhook: &str) -> Result<(), ClientError> {
        self.delete(&path(&["webhooks", webhook])).await
    }

    /// `POST /v1/webhooks/{webhook_id}/test`.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn test_webhook(&self, webhook: &str) -> Result<Reply<DeliveryReply>, ClientError> {
        self.post(&path(&["webhooks", webhook, "test"]), &json!({}))
            .await
    }

    /// `GET /v1/webhooks/{webhook_id}/deliveries` or `GET /v1/runs/{run_id}/deliveries`, one page. `of`: `webhooks` or
    /// `runs`.
    ///
    /// # Errors
    /// Those of any call.
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
    /// Those of any call.
    pub async fn resend(&self, delivery: &str) -> Result<Reply<DeliveryReply>, ClientError> {
        self.post(&path(&["deliveries", delivery, "resend"]), &json!({}))
            .await
    }

    /// `POST /v1/webhook-secret/roll`.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn roll_webhook_secret(&self) -> Result<Reply<RolledReply>, ClientError> {
        self.post("/v1/webhook-secret/roll", &json!({})).await
    }
}
