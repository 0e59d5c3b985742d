//! The machine: limits of the process.

use rustix::process::{Resource, getrlimit};

use super::Check;

/// Fewer open files than this are used up by a few hundred streams and runs.
const DESCRIPTORS: u64 = 4096;

pub(super) fn file_descriptors() -> Check {
    judge_descriptors(getrlimit(Resource::Nofile).current)
}

/// `limit`: none where there is no limit.
pub(super) fn judge_descriptors(limit: Option<u64>) -> Check {
    const CHECK: &str = "open files";
    match limit {
        Some(limit) if limit < DESCRIPTORS => Check::warning(
            CHECK,
            format!("at most {limit} files and connections can be open at once"),
            "raise the limit to 4096 or more: `ulimit -n 65536` before the start, or LimitNOFILE= of the service",
        ),
        Some(limit) => Check::ok(
            CHECK,
            format!("{limit} files and connections can be open at once"),
        ),
        None => Check::ok(
            CHECK,
            "any number of files and connections can be open at once",
        ),
    }
}
