//! Looks whether a command passes a bound that the kernel does not hold by itself, or holds without a word.
//!
//! Memory and processes: the cgroup's own counts, or, without cgroups, those of the processes. Disk and files: the
//! workspace is measured. That takes time in proportion to its files, so that it is done when the file system as a whole
//! has taken up enough for it to matter, and else now and then. Files that have no name any more count while a process
//! holds them open.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cgroup::{Group, Keeper};
use super::processes::Taken;
use super::{Bound, Limits, processes};
use crate::room::Held;
use crate::root::Root;

/// How often it is looked.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);
/// How long a measuring is good at least, in parts of the time that it took: a hundredth of a processor goes into it.
const REST_PER_WORK: u32 = 20;
/// How long a measuring is good where the file system has not changed much.
const REST_MIN: Duration = Duration::from_secs(1);
/// Growth of the file system that is not the workspace's before files without a name are looked for.
const UNEXPLAINED_BYTES: u64 = 64 << 20;
/// Pseudo terminals of one command. All on a machine come from one limit, 4,096 as a rule.
const TERMINALS_MAX: usize = 64;
/// How long a count of mappings is good, in parts of the time that it took: counting takes a fifth of a processor at most.
const MAPPINGS_REST_PER_WORK: u32 = 4;
/// Growth of the file system after which a command that ended is measured at once, where its team has a quota.
const TEAM_GROWTH_BYTES: u64 = 1 << 20;
/// What is read of an output before nobody reads on.
const OUTPUT_READ_BYTES_MAX: u64 = 1 << 30;

/// Sandboxes that were over a bound when their last command ended, by device and inode, with what they held: they may
/// hold so much, so that a command can remove it, and not more.
pub(super) type Over = Arc<Mutex<HashMap<(u64, u64), Held>>>;

/// How much of a file system is taken.
#[derive(Clone, Copy, Debug)]
struct Filled {
    bytes: u64,
    files: u64,
}

/// What is watched of one command.
pub(super) struct Watch {
    workspace: Root,
    id: (u64, u64),
    limits: Limits,
    /// What it may hold.
    may: Held,
    /// Bytes that it may hold however full its team's quota is: what it held before.
    may_keep_bytes: u64,
    over: Over,
    group: Arc<Group>,
    keepers: (Keeper, Keeper),
    /// Bytes of output so far.
    output: Arc<AtomicU64>,
    at_start: Option<Filled>,
    measured: Option<Measured>,
    mappings: Option<Mappings>,
}

/// What the mappings of all processes took when they were counted.
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
        over: Over,
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
        let may = Held {
            bytes: limits.disk_bytes_max.max(known.bytes),
            files: limits.files_max.max(known.files),
        };
        let counted = workspace.room().map_or(0, |room| room.counted());
        let mut watch = Self {
            may_keep_bytes: known.bytes.max(counted),
            workspace,
            id,
            limits,
            may,
            over,
            group,
            keepers,
            output,
            at_start: None,
            measured: None,
            mappings: None,
        };
        watch.at_start = watch.filled();
        watch
    }

    pub(super) fn workspace(&self) -> &Root {
        &self.workspace
    }

    /// Looks. `first`: the first process inside. Blocking.
    pub(super) fn look(&mut self, first: Option<u32>) -> Option<Bound> {
        if let Some(bound) = self.counted() {
            return Some(bound);
        }
        if self.output.load(Ordering::Relaxed) > OUTPUT_READ_BYTES_MAX {
            return Some(Bound::Output);
        }
        let first = first?;
        if processes::terminals(first) > TERMINALS_MAX {
            return Some(Bound::Terminals);
        }
        if matches!(self.keepers, (Keeper::Watcher, _) | (_, Keeper::Watcher)) {
            let taken = processes::taken(first);
            if self.keepers.0 == Keeper::Watcher && self.is_over_memory(taken, first) {
                return Some(Bound::Memory);
            }
            if self.keepers.1 == Keeper::Watcher
                && taken.threads > u64::from(self.limits.processes_max)
            {
                return Some(Bound::Processes);
            }
        }
        if !self.is_due() {
            return None;
        }
        let held = self.measure();
        self.judge(held, self.nameless(held, first))
    }

    /// Mappings are counted only where they could make the difference: that takes milliseconds for each process that has
    /// many.
    fn is_over_memory(&mut self, taken: Taken, first: u32) -> bool {
        let Some(room) = self.limits.memory_bytes_max.checked_sub(taken.memory_bytes) else {
            return true;
        };
        if taken.mapping_bytes_max <= room {
            return false;
        }
        let is_good = |last: &&Mappings| last.at.elapsed() < last.took * MAPPINGS_REST_PER_WORK;
        if let Some(last) = self.mappings.as_ref().filter(is_good) {
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

    /// What the kernel says of a command whose processes are all gone.
    pub(super) fn told(&self, exit_code: i32) -> Option<Bound> {
        const FILE_SIZE_SIGNAL: i32 = 128 + libc::SIGXFSZ;
        self.counted()
            .or_else(|| (exit_code == FILE_SIZE_SIGNAL).then_some(Bound::FileSize))
    }

    /// Whether the workspace is to be measured when all processes are gone.
    pub(super) fn is_to_be_measured(&self) -> bool {
        self.measured.is_some()
            || self.has_grown_much()
            // What was taken or removed there counts for the whole team.
            || self.workspace.is_tight()
            || self.team_allows().is_some() && self.growth().0 > TEAM_GROWTH_BYTES
    }

    /// Measures a last time. Blocking.
    pub(super) fn look_back(&mut self) -> Option<Bound> {
        let held = self.measure();
        let bound = self.judge(held, 0);
        self.note(held);
        bound
    }

    /// What the workspace holds when a command was stopped for it: the next one may hold as much.
    pub(super) fn look_after_stop(&mut self) {
        let held = self.measure();
        self.note(held);
    }

    fn counted(&self) -> Option<Bound> {
        if self.group.was_out_of_memory() {
            Some(Bound::Memory)
        } else if self.group.was_out_of_processes() {
            Some(Bound::Processes)
        } else {
            None
        }
    }

    fn note(&self, held: Held) {
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

    /// Bytes that the workspace may hold by its team's quota. None: the team has none.
    fn team_allows(&self) -> Option<u64> {
        self.workspace.room().and_then(|room| room.team_allows())
    }

    /// Bytes that the command may bring the workspace to.
    fn bytes_max(&self) -> u64 {
        self.team_allows().map_or(self.may.bytes, |allowed| {
            self.may.bytes.min(allowed.max(self.may_keep_bytes))
        })
    }

    fn judge(&self, held: Held, nameless_bytes: u64) -> Option<Bound> {
        let bytes = held.bytes.saturating_add(nameless_bytes);
        if bytes > self.may.bytes {
            Some(Bound::Disk)
        } else if bytes > self.bytes_max() {
            Some(Bound::TeamDisk)
        } else if held.files > self.may.files {
            Some(Bound::Files)
        } else {
            None
        }
    }

    /// Whether the workspace is to be measured now.
    fn is_due(&self) -> bool {
        let Some(last) = &self.measured else {
            return self.at_start.is_none() || self.has_grown_much() || self.growth() > (0, 0);
        };
        let rest = (last.took * REST_PER_WORK).max(REST_MIN);
        last.at.elapsed() >= rest || self.has_grown_much()
    }

    /// Whether the file system has taken up half of what the workspace may still take, since it was measured last: by
    /// whomever.
    fn has_grown_much(&self) -> bool {
        let held = self
            .measured
            .as_ref()
            .map(|last| last.held)
            .unwrap_or_default();
        let (bytes, files) = self.growth();
        bytes > self.bytes_max().saturating_sub(held.bytes) / 2
            || files > self.may.files.saturating_sub(held.files) / 2
    }

    /// By how much the file system has grown since the workspace was measured last, or the command began.
    fn growth(&self) -> (u64, u64) {
        let before = self
            .measured
            .as_ref()
            .and_then(|last| last.filled)
            .or(self.at_start);
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

    /// Bytes in files without a name, where there is a reason to look for them.
    fn nameless(&self, held: Held, first: u32) -> u64 {
        let (Some(now), Some(start)) = (self.filled(), self.at_start) else {
            return 0;
        };
        let grown = now.bytes.saturating_sub(start.bytes);
        if grown < UNEXPLAINED_BYTES.min(self.limits.disk_bytes_max / 2) {
            return 0;
        }
        let nameless = processes::nameless_bytes(first, self.id.0);
        // What is held where nobody can look (a descriptor on its way through a socket) is found by its effect: the
        // file system has grown by more than is seen, and this command has written as much.
        let unseen = grown.saturating_sub(held.bytes).saturating_sub(nameless);
        if unseen > self.may.bytes && processes::written_bytes(first) > self.may.bytes {
            return unseen.max(nameless);
        }
        nameless
    }
}
