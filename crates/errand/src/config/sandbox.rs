//! `[sandbox]`: how long a sandbox lives.

use std::time::Duration;

use super::kinds::duration;
use super::reader::section;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

section! {
    /// How long a sandbox lives.
    pub struct SandboxConfig["sandbox"] {
        /// How long a sandbox and its files are kept after the last upload or run.
        ttl: Duration = duration(30 * DAY, MINUTE..=3_650 * DAY),
    }
}
