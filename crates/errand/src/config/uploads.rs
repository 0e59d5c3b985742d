//! `[uploads]`: how large uploads may be, and how many at once.

use std::time::Duration;

use super::kinds::{duration, size, whole};
use super::reader::section;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const HOUR: Duration = Duration::from_secs(3_600);

section! {
    /// How large uploads may be, and how many at once.
    pub struct UploadsConfig["uploads"] {
        /// How large a file may be that is uploaded directly.
        direct_bytes_max: u64 = size(10 * MIB, 1..=GIB),
        /// How large a file may be that is sent to an upload URL.
        url_bytes_max: u64 = size(5 * GIB, 1..=5 * TIB),
        /// How long an upload URL is good; the upload must begin by then.
        url_ttl: Duration = duration(HOUR, Duration::from_secs(1)..=7 * 24 * HOUR),
        /// How many uploads of one API key, or of one person in the web interface, may be under way at once.
        concurrent_per_key: u32 = whole(16, 1..=10_000),
        /// How many uploads to one upload URL may be under way at once.
        concurrent_per_url: u32 = whole(4, 1..=10_000),
        /// How many uploads may be under way at once in total; one team takes at most half of them.
        concurrent_max: u32 = whole(256, 1..=100_000),
    }
}
