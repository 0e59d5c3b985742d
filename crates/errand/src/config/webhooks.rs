//! `[webhooks]`: how events are delivered.

use super::kinds::{boolean, whole};
use super::reader::section;

section! {
    /// How events are delivered to webhooks.
    pub struct WebhookConfig["webhooks"] {
        /// Whether webhooks may go to addresses that are not globally routable, such as 127.0.0.1 and 10.0.0.0/8.
        allow_private_networks: bool = boolean(false),
        /// How long one attempt may take, from connecting to the end of the answer.
        timeout_s: u32 = whole(15, 1..=300).unit("seconds"),
        /// How many attempts are under way at once.
        max_concurrent_deliveries: u32 = whole(32, 1..=1_000).unit("deliveries"),
    }
}
