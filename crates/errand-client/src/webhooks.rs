//! The team's webhooks, their deliveries, and the secret that signs them.

use std::fmt;

use futures::Stream;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::error::Error;
use crate::id::{DeliveryId, RunId, WebhookId};
use crate::names::names;
use crate::page::{List, Listed, Page, PageRequest};
use crate::reply::Reply;
use crate::setters::setters;
use crate::time::Timestamp;

names! {
    /// The events of webhooks.
    WebhookEvent {
        /// A run asks a person.
        HumanRequest = "human_request",
        /// A run ended successfully.
        RunCompleted = "run_completed",
        /// A run ended with an error.
        RunFailed = "run_failed",
        /// A run was stopped.
        RunInterrupted = "run_interrupted",
        /// Somebody tests the webhook. Webhooks cannot subscribe to it.
        Test = "webhook_test",
    }

    /// How far a delivery is.
    DeliveryState {
        /// Further attempts follow.
        Pending = "pending",
        /// The receiver accepted it.
        Delivered = "delivered",
        /// The receiver answered 410.
        Gone = "gone",
        /// All attempts of three days failed.
        Exhausted = "exhausted",
        /// The webhook was deleted.
        Dropped = "dropped",
    }
}

/// An address that receives the events of all runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Webhook {
    /// The webhook's id.
    pub id: WebhookId,
    /// The address of the receiver.
    pub url: String,
    /// The events that it receives.
    pub events: Vec<WebhookEvent>,
    /// A note about it.
    pub description: Option<String>,
    /// Whether it receives events.
    pub enabled: bool,
    /// Why the server disabled it.
    pub disabled_reason: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
}

impl Listed for Webhook {
    const FIELD: &'static str = "webhooks";
}

/// An event on its way to an address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Delivery {
    /// The delivery's id.
    pub id: DeliveryId,
    /// The id of the event: the same for each attempt and address, and in the request as `webhook-id`.
    pub event_id: String,
    /// The kind of event.
    pub event: WebhookEvent,
    /// The run that it is about. `None` for a test.
    pub run_id: Option<RunId>,
    /// The webhook that receives it. `None` if the run was started with the address.
    pub webhook_id: Option<WebhookId>,
    /// The address of the receiver.
    pub url: String,
    /// How far it is.
    pub state: DeliveryState,
    /// When the event happened.
    pub created_at: Timestamp,
    /// When the next attempt is made, if it is pending.
    pub next_attempt_at: Option<Timestamp>,
    /// All attempts, oldest first.
    pub attempts: Vec<Attempt>,
}

impl Listed for Delivery {
    const FIELD: &'static str = "deliveries";
}

/// One request to a receiver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Attempt {
    /// Counted from 1.
    pub attempt: u32,
    /// When it was made.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The HTTP status, if the receiver answered.
    pub status: Option<u16>,
    /// Why it does not count as delivered.
    pub error: Option<String>,
    /// The beginning of the response.
    pub answer: Option<String>,
}

/// A webhook to create.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NewWebhook {
    /// The address of the receiver.
    pub url: String,
    /// The events that it receives. Empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<WebhookEvent>,
    /// A note about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

impl NewWebhook {
    /// A webhook that receives all events.
    #[must_use]
    pub fn of(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            events: Vec::new(),
            description: None,
        }
    }

    /// Adds an event. The webhook receives only the added ones.
    #[must_use]
    pub fn event(mut self, event: WebhookEvent) -> Self {
        self.events.push(event);
        self
    }
}

setters! { NewWebhook { description: String, } }

/// The secret that signs deliveries.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct WebhookSecret {
    /// `whsec_…`.
    pub secret: String,
    /// Replaced secrets that still sign, newest first.
    pub retired: Vec<RetiredSecret>,
}

/// The result of replacing the secret that signs deliveries.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct RolledSecret {
    /// `whsec_…`. `None` if the response is a replay: [`Client::webhook_secret`] returns it.
    pub secret: Option<String>,
    /// Replaced secrets that still sign, newest first.
    pub retired: Vec<RetiredSecret>,
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSecret")
            .field("retired", &self.retired)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RolledSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RolledSecret")
            .field("retired", &self.retired)
            .finish_non_exhaustive()
    }
}

/// A replaced secret. Its text is not shown again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct RetiredSecret {
    /// Until when it signs.
    pub valid_until: Timestamp,
}

/// Selects the deliveries of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveriesOf<'a> {
    /// The deliveries to a webhook, newest first.
    Webhook(&'a WebhookId),
    /// The deliveries of a run, to all addresses, oldest first.
    Run(&'a RunId),
}

impl DeliveriesOf<'_> {
    fn list(self) -> List {
        match self {
            Self::Webhook(id) => List::at(["webhooks", id.as_str(), "deliveries"]),
            Self::Run(id) => List::at(["runs", id.as_str(), "deliveries"]),
        }
    }
}

#[derive(Deserialize)]
struct WebhookBody {
    webhook: Webhook,
}

#[derive(Deserialize)]
struct DeliveryBody {
    delivery: Delivery,
}

impl Client {
    /// One page of the webhooks, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn webhooks(&self, page: PageRequest) -> Result<Reply<Page<Webhook>>, Error> {
        self.page(&List::at(["webhooks"]), page).await
    }

    /// All webhooks, newest first.
    pub fn all_webhooks(&self) -> impl Stream<Item = Result<Webhook, Error>> + Send + use<> {
        self.all(List::at(["webhooks"]))
    }

    /// Creates a webhook for the events of all runs.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_webhook(&self, webhook: &NewWebhook) -> Result<Reply<Webhook>, Error> {
        let reply = self.post(["webhooks"]).json(webhook).send::<WebhookBody>();
        Ok(reply.await?.map(|body| body.webhook))
    }

    /// Deletes a webhook. Its pending deliveries are dropped.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_webhook(&self, webhook: &WebhookId) -> Result<(), Error> {
        self.delete(["webhooks", webhook.as_str()])
            .send_empty()
            .await?;
        Ok(())
    }

    /// Sends a test event to a webhook.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn test_webhook(&self, webhook: &WebhookId) -> Result<Reply<Delivery>, Error> {
        let path = ["webhooks", webhook.as_str(), "test"];
        let reply = self.post(path).send::<DeliveryBody>().await?;
        Ok(reply.map(|body| body.delivery))
    }

    /// One page of the deliveries to a webhook or of a run.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn deliveries(
        &self,
        of: DeliveriesOf<'_>,
        page: PageRequest,
    ) -> Result<Reply<Page<Delivery>>, Error> {
        self.page(&of.list(), page).await
    }

    /// All deliveries to a webhook or of a run.
    pub fn all_deliveries(
        &self,
        of: DeliveriesOf<'_>,
    ) -> impl Stream<Item = Result<Delivery, Error>> + Send + use<> {
        self.all(of.list())
    }

    /// Sends a delivery again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resend_delivery(&self, delivery: &DeliveryId) -> Result<Reply<Delivery>, Error> {
        let path = ["deliveries", delivery.as_str(), "resend"];
        let reply = self.post(path).send::<DeliveryBody>().await?;
        Ok(reply.map(|body| body.delivery))
    }

    /// The secret that signs deliveries. Only for admins and owners.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn webhook_secret(&self) -> Result<Reply<WebhookSecret>, Error> {
        self.get(["webhook-secret"]).send().await
    }

    /// Replaces the secret that signs deliveries. For a day, the old one signs as well.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn roll_webhook_secret(&self) -> Result<Reply<RolledSecret>, Error> {
        self.post(["webhook-secret", "roll"]).send().await
    }
}
