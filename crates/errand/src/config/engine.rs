//! `[engine]`: how runs are driven.

use super::kinds::whole;
use super::reader::section;

section! {
    /// How runs are driven.
    pub struct EngineConfig["engine"] {
        /// How many runs work at once; the others stay pending, in order, and waiting runs do not count.
        max_concurrent_runs: u32 = whole(64, 1..=10_000).unit("runs"),
        /// How long one step of a run (a model call, a tool call) may take; the run then fails with `step_timeout`, and can be retried.
        step_seconds_max: u32 = whole(3600, 1..=86_400).unit("seconds"),
    }
}
