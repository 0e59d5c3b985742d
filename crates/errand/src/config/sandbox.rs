//! `[sandbox]`: how long a sandbox lives, and how much its commands may take.

use std::path::PathBuf;
use std::time::Duration;

use super::kinds::{duration, optional_path, size, whole};
use super::reader::section;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

section! {
    /// How long a sandbox lives, and how much its commands may take.
    pub struct SandboxConfig["sandbox"] {
        /// How long a sandbox and its files are kept after the last upload or run.
        ttl: Duration = duration(30 * DAY, MINUTE..=3_650 * DAY),
        /// Another root directory whose programs commands see, read-only, in place of the machine's; `errand sandbox build-root` makes one.
        root: Option<PathBuf> = optional_path(),
        /// How much memory a command may take, with all that it starts and with its files in memory.
        memory_bytes_max: u64 = size(GIB, 16 * MIB..=TIB),
        /// How many processes and threads a command may have at once.
        processes_max: u32 = whole(256, 16..=30_000).unit("processes"),
        /// How much processor time a command may take, in percent of one processor.
        cpu_percent_max: u32 = whole(100, 5..=100_000).unit("percent"),
        /// How much disk a sandbox may take before a command in it is stopped.
        disk_bytes_max: u64 = size(5 * GIB, MIB..=100 * TIB),
        /// How much disk the sandboxes of a team may take together; 0: no limit.
        team_disk_bytes_max: u64 = size(100 * GIB, 0..=1000 * TIB),
        /// How many files and directories a sandbox may hold before a command in it is stopped.
        files_max: u32 = whole(100_000, 100..=1_000_000).unit("files"),
        /// How large one file may be that a command writes.
        file_bytes_max: u64 = size(2 * GIB, MIB..=100 * TIB),
        /// How many shells may wait, started ahead, for the next command of their run.
        waiting_shells_max: u32 = whole(32, 0..=10_000).unit("shells"),
        /// The first of the users that sandboxes are, one each, where the server is root; nothing else on the machine may use them.
        uid_base: u32 = whole(1_900_000_000, 1_000..=2_000_000_000),
        /// How many such users there are.
        uid_count: u32 = whole(1_000_000, 2..=100_000_000).unit("users"),
    }
}
