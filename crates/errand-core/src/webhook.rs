//! The events that webhooks can subscribe to, and the states of their deliveries.

use crate::wire_enum::wire_enum;

wire_enum! {
    /// The state of a delivery.
    DeliveryState {
        /// Another attempt is due.
        Pending = "pending",
        Delivered = "delivered",
        /// The receiver wants no more deliveries (status 410).
        Gone = "gone",
        /// The three days for retries have passed.
        Exhausted = "exhausted",
        /// Its webhook was deleted before it was delivered.
        Dropped = "dropped",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WebhookEvent {
    /// A run made a human request.
    HumanRequest,
    /// A run ended as completed.
    RunCompleted,
    /// A run ended as failed.
    RunFailed,
    /// A run was stopped.
    RunInterrupted,
}

/// The event that tests a webhook's URL. It cannot be subscribed to.
pub const WEBHOOK_TEST: &str = "webhook_test";

impl WebhookEvent {
    /// All events, in the order in which lists show them.
    pub const ALL: [Self; 4] = [
        Self::HumanRequest,
        Self::RunCompleted,
        Self::RunFailed,
        Self::RunInterrupted,
    ];

    /// The name on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HumanRequest => "human_request",
            Self::RunCompleted => "run_completed",
            Self::RunFailed => "run_failed",
            Self::RunInterrupted => "run_interrupted",
        }
    }

    /// The inverse of [`WebhookEvent::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == text)
    }
}
