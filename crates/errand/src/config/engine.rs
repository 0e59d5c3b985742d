//! `[engine]`: how runs are executed.

use super::kinds::whole;
use super::reader::section;

section! {
    /// How runs are executed.
    pub struct EngineConfig["engine"] {
        /// Maximum number of runs that execute at the same time; further runs stay pending, in order, and waiting runs
        /// do not count.
        max_concurrent_runs: u32 = whole(64, 1..=10_000).unit("runs"),
        /// Time limit for one step of a run (a model call, a tool call); a run that exceeds it fails with
        /// `step_timeout` and can be retried.
        step_seconds_max: u32 = whole(3600, 1..=86_400).unit("seconds"),
    }
}
