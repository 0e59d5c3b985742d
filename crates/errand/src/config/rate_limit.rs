//! `[rate_limit]`: how many requests are let through.

use super::kinds::whole;
use super::reader::section;

section! {
    /// How many requests are let through.
    pub struct RateLimitConfig["rate_limit"] {
        /// How many requests one API key may make in a window of a minute.
        requests_per_minute: u32 = whole(300, 1..=1_000_000_000).unit("requests"),
        /// How many failed authentications one address may make in a window of a minute.
        failed_authentications_per_minute: u32 = whole(20, 1..=1_000_000).unit("requests"),
    }
}
