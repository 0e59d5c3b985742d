//! `[sandbox]`: lifetime of sandboxes, and limits of their commands.

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
    /// Lifetime of sandboxes, and limits of their commands.
    pub struct SandboxConfig["sandbox"] {
        /// How long a sandbox and its files are kept after the last upload or run.
        ttl: Duration = duration(30 * DAY, MINUTE..=3_650 * DAY),
        /// Root directory whose programs commands see, read-only, instead of this machine's; `scripts/root-image`
        /// creates one.
        root: Option<PathBuf> = optional_path(),
        /// Maximum memory of a command, including its child processes and its files in memory.
        memory_bytes_max: u64 = size(GIB, 16 * MIB..=TIB),
        /// Maximum number of processes and threads of a command.
        processes_max: u32 = whole(256, 16..=30_000).unit("processes"),
        /// Maximum processor time of a command, in percent of one processor.
        cpu_percent_max: u32 = whole(100, 5..=100_000).unit("percent"),
        /// Maximum disk space of a sandbox; a command that exceeds it is stopped.
        disk_bytes_max: u64 = size(5 * GIB, MIB..=100 * TIB),
        /// Maximum disk space of all sandboxes of a team; 0 means no limit.
        team_disk_bytes_max: u64 = size(100 * GIB, 0..=1000 * TIB),
        /// Maximum number of files and directories in a sandbox; a command that exceeds it is stopped.
        files_max: u32 = whole(100_000, 100..=1_000_000).unit("files"),
        /// Maximum size of a file that a command writes.
        file_bytes_max: u64 = size(2 * GIB, MIB..=100 * TIB),
        /// First user ID for sandboxes if the server runs as root, one per sandbox; nothing else on the machine may use
        /// these users.
        uid_base: u32 = whole(1_900_000_000, 1_000..=2_000_000_000),
        /// Number of these user IDs; fewer if a user namespace maps fewer.
        uid_count: u32 = whole(1_000_000, 2..=100_000_000).unit("users"),
    }
}
