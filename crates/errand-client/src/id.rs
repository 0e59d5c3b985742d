//! Ids, one type for each kind of object, so that a run's id is not taken for an agent's.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! ids { ($($(#[$doc:meta])* $name:ident,)*) => { $(
    $(#[$doc])*
    ///
    /// The text is not checked here: the server answers 400 or 404 to an id that it cannot use.
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct $name(String);

    impl $name {
        /// The id as the API writes it.
        #[must_use]
        pub fn as_str(&self) -> &str {
            &self.0
        }
    }

    impl From<String> for $name {
        fn from(id: String) -> Self {
            Self(id)
        }
    }

    impl From<&str> for $name {
        fn from(id: &str) -> Self {
            Self(id.to_owned())
        }
    }

    impl From<$name> for String {
        fn from(id: $name) -> Self {
            id.0
        }
    }

    impl AsRef<str> for $name {
        fn as_ref(&self) -> &str {
            &self.0
        }
    }

    impl fmt::Display for $name {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.pad(&self.0)
        }
    }
)* } }

ids! {
    /// The id of an agent.
    AgentId,
    /// The id of a build.
    BuildId,
    /// The id of a run.
    RunId,
    /// The id of a message.
    MessageId,
    /// The id of a human request.
    HumanRequestId,
    /// The id of a sandbox.
    SandboxId,
    /// The id of a connection.
    ConnectionId,
    /// The id of a webhook.
    WebhookId,
    /// The id of a delivery.
    DeliveryId,
}
