//! Checks the limits of the process.

use rustix::process::{Resource, getrlimit};

use super::Check;
use crate::descriptors::ENOUGH;

/// The limit of open files. A server raises its soft limit to the hard limit.
pub(super) fn file_descriptors() -> Check {
    judge_descriptors(getrlimit(Resource::Nofile).maximum)
}

/// `limit`: `None` if there is no limit.
pub(super) fn judge_descriptors(limit: Option<u64>) -> Check {
    const CHECK: &str = "open files";
    match limit {
        Some(limit) if limit < ENOUGH => Check::warning(
            CHECK,
            format!("at most {limit} files and connections can be open at once"),
            "operations beyond this limit wait; raise the hard limit to 4096 or more: `ulimit -Hn 65536` before the start, or LimitNOFILE= of the service",
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
