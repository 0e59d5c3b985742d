//! Watches a command for limits that the kernel does not enforce by itself, or enforces silently.
//!
//! Memory and processes: read from the cgroup's counters, or, without cgroups, from the processes. Disk and files:
//! the workspace is measured. That takes time in proportion to its files, so it only happens when the file system as
//! a whole has grown enough to matter, and otherwise at intervals. Deleted files count while a process holds them
//! open.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cgroup::{Group, Keeper};
use super::processes::ProcessUsage;
use super::{Bound, Limits, processes};
use crate::room::Held;
use crate::root::Root;

/// Time between two checks.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);
/// A measurement stays valid for at least this many times the time it took. Measuring then uses at most about a
/// twentieth of a processor.
const VALIDITY_PER_COST: u32 = 20;
/// Minimum validity of a measurement, unless the file system has grown much.
const VALIDITY_MIN: Duration = Duration::from_secs(1);
/// Growth of the file system above which deleted files that are still open are searched for.
const UNEXPLAINED_BYTES: u64 = 64 << 20;
/// Maximum open pseudoterminals of one command. All of a machine usually share a limit of 4,096.
const TERMINALS_MAX: usize = 64;
/// A count of mappings stays valid for this many times the time it took. Counting then uses at most a fifth of a processor.
const MAPPINGS_VALIDITY_PER_COST: u32 = 4;
/// Growth of the file system from which the workspace is measured when a command has ended, if its team has a quota.
const TEAM_GROWTH_BYTES: u64 = 1 << 20;
/// Bytes read of one command's outputs before it is stopped.
const OUTPUT_READ_BYTES_MAX: u64 = 1 << 30;

/// Sandboxes that exceeded a limit when their last command ended, by device and inode, with what they held. The next
/// command may hold that much but not more; otherwise it could never run to delete files.
pub(super) type OverLimit = Arc<Mutex<HashMap<(u64, u64), Held>>>;

/// Used part of a file system.
#[derive(Clone, Copy, Debug)]
struct Filled {
    bytes: u64,
    files: u64,
}

/// State of watching one command.
pub(super) struct Watch {
    workspace: Root,
    id: (u64, u64),
    limits: Limits,
    /// Maximum size of the workspace: the limits, or its earlier size if that was larger.
    allowed: Held,
    /// Bytes that it may keep even if its team's quota is used up: its size before the command.
    kept_bytes: u64,
    over: OverLimit,
    group: Arc<Group>,
    keepers: (Keeper, Keeper),
    /// Bytes of output read so far.
    output: Arc<AtomicU64>,
    filled_at_start: Option<Filled>,
    measured: Option<Measured>,
    mappings: Option<Mappings>,
}

/// The last count of the kernel memory for mappings.
struct Mappings {
    at: Instant,
    took: Duration,
    bytes: u64,
}

struct Measured {
    at: Instant,
    took: Duration,
    held: Held,
    filled: Option<Filled>,
}

impl Watch {
    pub(super) fn new(
        workspace: Root,
        limits: Limits,
        over: OverLimit,
        group: Arc<Group>,
        keepers: (Keeper, Keeper),
        output: Arc<AtomicU64>,
    ) -> Self {
        let id =
            rustix::fs::fstat(workspace.dir()).map_or((0, 0), |stat| (stat.st_dev, stat.st_ino));
        let known = over
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .copied();
        let known = known.unwrap_or_default();
        let allowed = Held {
            bytes: limits.disk_bytes_max.max(known.bytes),
            files: limits.files_max.max(known.files),
        };
        let counted = workspace.room().map_or(0, |room| room.counted());
        let mut watch = Self {
            kept_bytes: known.bytes.max(counted),
            workspace,
            id,
            limits,
            allowed,
            over,
            group,
            keepers,
            output,
            filled_at_start: None,
            measured: None,
            mappings: None,
        };
        watch.filled_at_start = watch.filled();
        watch
    }

    pub(super) fn workspace(&self) -> &Root {
        &self.workspace
    }

    /// Checks all limits. `first` is the first process inside. Blocking.
    pub(super) fn check(&mut self, first: Option<u32>) -> Option<Bound> {
        if let Some(bound) = self.cgroup_bound() {
            return Some(bound);
        }
        if self.output.load(Ordering::Relaxed) > OUTPUT_READ_BYTES_MAX {
            return Some(Bound::Output);
        }
        let first = first?;
        if processes::open_terminals(first) > TERMINALS_MAX {
            return Some(Bound::Terminals);
        }
        if matches!(self.keepers, (Keeper::Watcher, _) | (_, Keeper::Watcher)) {
            let taken = processes::usage(first);
            if self.keepers.0 == Keeper::Watcher && self.is_over_memory(taken, first) {
                return Some(Bound::Memory);
            }
            if self.keepers.1 == Keeper::Watcher
                && taken.threads > u64::from(self.limits.processes_max)
            {
                return Some(Bound::Processes);
            }
        }
        if !self.is_measurement_due() {
            return None;
        }
        let held = self.measure();
        self.exceeded(held, self.deleted_bytes(held, first))
    }

    /// Whether the memory limit is exceeded. Mappings are counted only if they could make the difference, because that takes
    /// milliseconds for each process with many mappings.
    fn is_over_memory(&mut self, taken: ProcessUsage, first: u32) -> bool {
        let Some(room) = self.limits.memory_bytes_max.checked_sub(taken.memory_bytes) else {
            return true;
        };
        if taken.mapping_bytes_max <= room {
            return false;
        }
        let is_valid =
            |last: &&Mappings| last.at.elapsed() < last.took * MAPPINGS_VALIDITY_PER_COST;
        if let Some(last) = self.mappings.as_ref().filter(is_valid) {
            return last.bytes > room;
        }
        let began = Instant::now();
        let bytes = processes::mapping_bytes(first, room);
        self.mappings = Some(Mappings {
            at: Instant::now(),
            took: began.elapsed(),
            bytes,
        });
        bytes > room
    }

    /// The limit that the kernel enforced, judging by counters and the exit code, after all processes are gone.
    pub(super) fn kernel_bound(&self, exit_code: i32) -> Option<Bound> {
        const FILE_SIZE_SIGNAL: i32 = 128 + libc::SIGXFSZ;
        self.cgroup_bound()
            .or_else(|| (exit_code == FILE_SIZE_SIGNAL).then_some(Bound::FileSize))
    }

    /// Whether the workspace must be measured after all processes are gone.
    pub(super) fn must_measure(&self) -> bool {
        self.measured.is_some()
            || self.has_grown_much()
            // Every change counts toward the team's quota.
            || self.workspace.is_tight()
            || self.team_allows().is_some() && self.growth().0 > TEAM_GROWTH_BYTES
    }

    /// Measures a last time, after the command has ended. Blocking.
    pub(super) fn check_after_exit(&mut self) -> Option<Bound> {
        let held = self.measure();
        let bound = self.exceeded(held, 0);
        self.record(held);
        bound
    }

    /// Records what the workspace holds after its command was stopped for it. The next command may hold that much.
    pub(super) fn record_after_stop(&mut self) {
        let held = self.measure();
        self.record(held);
    }

    fn cgroup_bound(&self) -> Option<Bound> {
        if self.group.was_out_of_memory() {
            Some(Bound::Memory)
        } else if self.group.was_out_of_processes() {
            Some(Bound::Processes)
        } else {
            None
        }
    }

    fn record(&self, held: Held) {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over_quota = self
            .team_allows()
            .is_some_and(|allowed| held.bytes > allowed);
        if held.bytes > self.limits.disk_bytes_max
            || held.files > self.limits.files_max
            || is_over_quota
        {
            over.insert(self.id, held);
        } else {
            over.remove(&self.id);
        }
    }

    /// Maximum bytes of the workspace under its team's quota. `None` if the team has no quota.
    fn team_allows(&self) -> Option<u64> {
        self.workspace.room().and_then(|room| room.team_allows())
    }

    /// Maximum bytes of the workspace that the command may reach.
    fn bytes_max(&self) -> u64 {
        self.team_allows().map_or(self.allowed.bytes, |allowed| {
            self.allowed.bytes.min(allowed.max(self.kept_bytes))
        })
    }

    fn exceeded(&self, held: Held, deleted_bytes: u64) -> Option<Bound> {
        let bytes = held.bytes.saturating_add(deleted_bytes);
        if bytes > self.allowed.bytes {
            Some(Bound::Disk)
        } else if bytes > self.bytes_max() {
            Some(Bound::TeamDisk)
        } else if held.files > self.allowed.files {
            Some(Bound::Files)
        } else {
            None
        }
    }

    /// Whether the workspace must be measured now.
    fn is_measurement_due(&self) -> bool {
        let Some(last) = &self.measured else {
            return self.filled_at_start.is_none()
                || self.has_grown_much()
                || self.growth() > (0, 0);
        };
        let valid_for = (last.took * VALIDITY_PER_COST).max(VALIDITY_MIN);
        last.at.elapsed() >= valid_for || self.has_grown_much()
    }

    /// Whether the file system has used up half of what the workspace may still grow, since the last measurement. It
    /// does not matter which process used it.
    fn has_grown_much(&self) -> bool {
        let held = self
            .measured
            .as_ref()
            .map(|last| last.held)
            .unwrap_or_default();
        let (bytes, files) = self.growth();
        bytes > self.bytes_max().saturating_sub(held.bytes) / 2
            || files > self.allowed.files.saturating_sub(held.files) / 2
    }

    /// Growth of the file system since the last measurement, or since the command began: bytes and files.
    fn growth(&self) -> (u64, u64) {
        let before = self
            .measured
            .as_ref()
            .and_then(|last| last.filled)
            .or(self.filled_at_start);
        match (self.filled(), before) {
            (Some(now), Some(before)) => (
                now.bytes.saturating_sub(before.bytes),
                now.files.saturating_sub(before.files),
            ),
            _ => (0, 0),
        }
    }

    fn filled(&self) -> Option<Filled> {
        let found = rustix::fs::fstatvfs(self.workspace.dir().as_fd()).ok()?;
        Some(Filled {
            bytes: found
                .f_blocks
                .saturating_sub(found.f_bfree)
                .saturating_mul(found.f_frsize),
            files: found.f_files.saturating_sub(found.f_ffree),
        })
    }

    fn measure(&mut self) -> Held {
        let (at, filled) = (Instant::now(), self.filled());
        let room = self
            .workspace
            .room()
            .map(|room| (room, room.begin_measure()));
        let held = self.workspace.usage().map_or_else(
            |_| Held::default(),
            |usage| {
                let held = Held {
                    bytes: usage.disk_bytes,
                    files: usage.files.saturating_add(usage.directories),
                };
                if let Some((room, begun)) = room {
                    room.is_measured(begun, held);
                }
                held
            },
        );
        self.measured = Some(Measured {
            at,
            took: at.elapsed(),
            held,
            filled,
        });
        held
    }

    /// Bytes in deleted files that are still open, if there is a reason to search for them.
    fn deleted_bytes(&self, held: Held, first: u32) -> u64 {
        let (Some(now), Some(start)) = (self.filled(), self.filled_at_start) else {
            return 0;
        };
        let grown = now.bytes.saturating_sub(start.bytes);
        if grown < UNEXPLAINED_BYTES.min(self.limits.disk_bytes_max / 2) {
            return 0;
        }
        let deleted_bytes = processes::deleted_bytes(first, self.id.0);
        // Files held where nobody can look (a descriptor in transit through a socket) are found by their effect: the
        // file system has grown by more than can be explained, and this command has written that much.
        let unseen = grown
            .saturating_sub(held.bytes)
            .saturating_sub(deleted_bytes);
        if unseen > self.allowed.bytes && processes::written_bytes(first) > self.allowed.bytes {
            return unseen.max(deleted_bytes);
        }
        deleted_bytes
    }
}
