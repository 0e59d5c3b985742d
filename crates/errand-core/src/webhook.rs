//! What a webhook can tell of.

/// An event that a team can subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WebhookEvent {
    /// A run asks a person.
    HumanRequest,
    /// A run ended well.
    RunCompleted,
    /// A run ended with an error.
    RunFailed,
    /// A run was stopped.
    RunInterrupted,
}

/// The event by which an address is tried out. Nobody subscribes to it.
pub const WEBHOOK_TEST: &str = "webhook_test";

impl WebhookEvent {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 4] = [
        Self::HumanRequest,
        Self::RunCompleted,
        Self::RunFailed,
        Self::RunInterrupted,
    ];

    /// As stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HumanRequest => "human_request",
            Self::RunCompleted => "run_completed",
            Self::RunFailed => "run_failed",
            Self::RunInterrupted => "run_interrupted",
        }
    }

    /// Reads [`WebhookEvent::as_str`] back.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == text)
    }
}
