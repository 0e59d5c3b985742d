//! `[webhooks]`: delivery of webhooks.

use super::kinds::{boolean, whole};
use super::reader::section;

section! {
    /// Delivery of webhooks.
    pub struct WebhookConfig["webhooks"] {
        /// Whether webhooks can be sent to addresses that are not globally routable, such as 127.0.0.1 and 10.0.0.0/8.
        allow_private_networks: bool = boolean(false),
        /// Time limit for one attempt, from connecting to the end of the response.
        timeout_s: u32 = whole(15, 1..=300).unit("seconds"),
        /// Maximum number of delivery attempts at the same time.
        max_concurrent_deliveries: u32 = whole(32, 1..=1_000).unit("deliveries"),
    }
}
