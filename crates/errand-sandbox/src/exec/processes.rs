//! The processes inside a sandbox, as the server sees them: found from the first one on, signalled without ever meeting
//! another process that took over a number.

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Most processes that are looked at; more than a sandbox may have.
const PROCESSES_MAX: usize = 20_000;
/// Most open files of one process that are looked at.
const FILES_MAX: usize = 4096;

/// All processes below this one, without it.
pub(super) fn below(first: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut seen = HashSet::from([first]);
    let mut next = vec![first];
    while let Some(pid) = next.pop() {
        for child in children_of(pid) {
            if found.len() < PROCESSES_MAX && seen.insert(child) {
                found.push(child);
                next.push(child);
            }
        }
    }
    found
}

/// The children of a process, whichever of its threads has them.
pub(super) fn children_of(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// A hold on a process: what is done through it concerns this process, or nothing.
pub(super) fn hold(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

pub(super) fn signal(process: &OwnedFd, signal: Signal) {
    // One that is gone needs none.
    let _ = rustix::process::pidfd_send_signal(process, signal);
}

/// Until a process that was told to stop stands, or a short while: a millisecond at a time.
pub(super) fn until_stopped(pid: u32) {
    for _ in 0..50 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name before it may hold anything, brackets too.
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        if !matches!(state, Some('R' | 'S' | 'D')) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The namespace of process numbers that a process is in.
fn namespace_of(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    link.into_os_string().into_string().ok()
}

/// Signals everything inside, but the first process, which holds the namespace. `first`: that one, which is held, so that
/// its number is not taken by another.
pub(super) fn signal_below(first: u32, with: Signal) {
    let Some(inside) = namespace_of(first) else {
        return;
    };
    for pid in below(first) {
        // Held first and looked at after: then what was looked at is what is signalled.
        if let Some(process) = hold(pid)
            && namespace_of(pid).as_ref() == Some(&inside)
        {
            signal(&process, with);
        }
    }
}

/// What the processes take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Memory, in bytes, as far as it is not shared with files.
    pub(super) memory_bytes: u64,
    /// Threads.
    pub(super) threads: u64,
}

/// What the processes inside take now. For machines without cgroups.
pub(super) fn taken(first: u32) -> Taken {
    let mut taken = Taken::default();
    for pid in below(first) {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        // Each counts in full what it shares with others: rather too much than too little.
        let kib = field("RssAnon:") + field("RssShmem:") + field("VmSwap:");
        taken.memory_bytes += kib * 1024;
        taken.threads += field("Threads:").max(1);
    }
    taken
}

/// Bytes on a device in files that have no name any more and that processes inside hold open, or mapped.
pub(super) fn nameless_bytes(first: u32, device: u64) -> u64 {
    let mut seen = HashSet::new();
    let mut bytes: u64 = 0;
    for pid in below(first) {
        let open = fs::read_dir(format!("/proc/{pid}/fd"));
        for entry in open.into_iter().flatten().flatten().take(FILES_MAX) {
            if let Ok(file) = fs::metadata(entry.path())
                && file.nlink() == 0
                && file.dev() == device
                && seen.insert(file.ino())
            {
                bytes = bytes.saturating_add(file.blocks().saturating_mul(512));
            }
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        for line in maps.lines().filter(|line| line.ends_with(" (deleted)")) {
            if let Some((inode, size)) = mapped(line, device)
                && seen.insert(inode)
            {
                bytes = bytes.saturating_add(size);
            }
        }
    }
    bytes
}

/// A mapping of a file on the device: its inode, and how much is mapped.
fn mapped(line: &str, device: u64) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let size = number(to)?.checked_sub(number(from)?)?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    let found = rustix::fs::makedev(
        u32::try_from(number(major)?).ok()?,
        u32::try_from(number(minor)?).ok()?,
    );
    let inode = fields.next()?.parse().ok()?;
    (found == device).then_some((inode, size))
}

/// All bytes that processes inside have had written to disks so far, those that have ended among them.
pub(super) fn written_bytes(first: u32) -> u64 {
    let of = |pid: u32| -> u64 {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let line = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        line.and_then(|number| number.trim().parse().ok())
            .unwrap_or(0)
    };
    // Whoever ends is added to whoever waited for it: in the end the first.
    below(first)
        .into_iter()
        .map(of)
        .fold(of(first), u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read() {
        let line = "7f0000000000-7f0000002000 rw-s 00000000 fe:00 4711 /workspace/x (deleted)";
        let device = rustix::fs::makedev(0xfe, 0);
        assert_eq!(mapped(line, device), Some((4711, 0x2000)));
        assert_eq!(mapped(line, device + 1), None);
    }
}
