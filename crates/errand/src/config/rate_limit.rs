//! `[rate_limit]`: limits on the number of requests.

use super::kinds::whole;
use super::reader::section;

section! {
    /// Limits on the number of requests.
    pub struct RateLimitConfig["rate_limit"] {
        /// Maximum number of requests per minute with one API key.
        requests_per_minute: u32 = whole(300, 1..=1_000_000_000).unit("requests"),
        /// Maximum number of failed authentications per minute from one address.
        failed_authentications_per_minute: u32 = whole(20, 1..=1_000_000).unit("requests"),
    }
}
