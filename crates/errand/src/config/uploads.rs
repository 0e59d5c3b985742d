//! `[uploads]`: maximum sizes and numbers of uploads.

use std::time::Duration;

use super::kinds::{duration, size, whole};
use super::reader::section;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const HOUR: Duration = Duration::from_secs(3_600);

section! {
    /// Maximum sizes and numbers of uploads.
    pub struct UploadsConfig["uploads"] {
        /// Maximum size of a file that is uploaded directly.
        direct_bytes_max: u64 = size(10 * MIB, 1..=GIB),
        /// Maximum size of a file that is sent to an upload URL.
        url_bytes_max: u64 = size(5 * GIB, 1..=5 * TIB),
        /// How long an upload URL is valid; the upload must begin in this time.
        url_ttl: Duration = duration(HOUR, Duration::from_secs(1)..=7 * 24 * HOUR),
        /// Maximum number of concurrent uploads per API key, and per user in the web interface.
        concurrent_per_key: u32 = whole(16, 1..=10_000),
        /// Maximum number of concurrent uploads to one upload URL.
        concurrent_per_url: u32 = whole(4, 1..=10_000),
        /// Maximum number of concurrent uploads in total; one team can use at most half of them.
        concurrent_max: u32 = whole(256, 1..=100_000),
    }
}
