//! The processes inside a sandbox, as the server sees them: found from the first one on, signalled without ever meeting
//! another process that took over a number.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};

/// Most processes that are looked at; more than a sandbox may have.
const PROCESSES_MAX: usize = 20_000;
/// Most open files of one process that are looked at.
const FILES_MAX: usize = 4096;

/// Descriptors of a process that are not counted: the smallest table that the kernel makes has room for them.
const DESCRIPTORS_FREE: u64 = 64;
/// Memory of one more descriptor: half of a pipe of two pages, which is the most that a user has who has many.
const DESCRIPTOR_BYTES: u64 = 4096;
/// Memory of one mapping: its record (`vm_area_struct`), and its share of the tree that holds the records.
const MAPPING_BYTES: u64 = 256;
/// The smallest mapping. Unit: KiB.
const MAPPING_SIZE_MIN_KIB: u64 = 4;
/// The kernel's own default of `vm.max_map_count`, where it cannot be read.
const MAPPINGS_MAX: u64 = 65_530;
/// The kernel's own default of `net.core.wmem_default`, where it cannot be read.
const SOCKET_BUFFER_BYTES: u64 = 212_992;
/// TCP sockets whose queues are not looked at: reading the kernel's table takes milliseconds.
const TCP_SOCKETS_FREE: u64 = 16;

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
    /// What the kernel keeps of their mappings, at most. It is not part of `memory_bytes`: [`mapping_bytes`] counts it.
    pub(super) mapping_bytes_max: u64,
    /// Threads.
    pub(super) threads: u64,
}

/// What the processes inside take now, with what the kernel holds for them. For machines without cgroups.
///
/// Memory that belongs to no process is counted by what it can be at most, so that nothing can be hidden in it: sockets
/// (also those that are on their way through another socket), page tables, pipes and other descriptors, files in memory.
pub(super) fn taken(first: u32) -> Taken {
    let mut taken = Taken {
        memory_bytes: socket_bytes(first).saturating_add(file_bytes(first)),
        mapping_bytes_max: 0,
        threads: 0,
    };
    let mappings_max = mappings_max();
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
        let kib = field("RssAnon:") + field("RssShmem:") + field("VmSwap:") + field("VmPTE:");
        let descriptors = field("FDSize:").saturating_sub(DESCRIPTORS_FREE);
        taken.memory_bytes += kib * 1024 + descriptors * DESCRIPTOR_BYTES;
        let mappings = (field("VmSize:") / MAPPING_SIZE_MIN_KIB).min(mappings_max);
        taken.mapping_bytes_max += mappings * MAPPING_BYTES;
        taken.threads += field("Threads:").max(1);
    }
    taken
}

/// Most mappings of one process.
fn mappings_max() -> u64 {
    let most = fs::read_to_string("/proc/sys/vm/max_map_count");
    let most = most.ok().and_then(|text| text.trim().parse().ok());
    most.unwrap_or(MAPPINGS_MAX)
}

/// What the kernel keeps of the mappings of the processes inside. Reads a line for each mapping, which takes about a
/// millisecond for 2,000 of them, and stops where there is more than `enough`.
pub(super) fn mapping_bytes(first: u32, enough: u64) -> u64 {
    let mut bytes: u64 = 0;
    for pid in below(first) {
        bytes = bytes.saturating_add(mappings_of(pid).saturating_mul(MAPPING_BYTES));
        if bytes > enough {
            break;
        }
    }
    bytes
}

fn mappings_of(pid: u32) -> u64 {
    let mut table = match fs::File::open(format!("/proc/{pid}/maps")) {
        Ok(table) => table,
        // What nobody may look at is taken to be as much as there can be.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return mappings_max(),
        Err(_) => return 0,
    };
    let (mut lines, mut buffer) = (0, vec![0; 64 * 1024]);
    // A process that ends meanwhile has an end, or an error.
    while let Ok(count @ 1..) = table.read(&mut buffer) {
        let read = buffer.get(..count).unwrap_or_default();
        lines += read.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    lines
}

/// Memory that the sockets of the network namespace of a process hold at most, those among them that no process has open
/// because they are on their way through another one.
fn socket_bytes(of: u32) -> u64 {
    let read = |name: &str| fs::read_to_string(format!("/proc/{of}/net/{name}"));
    let (Ok(v4), v6) = (read("sockstat"), read("sockstat6").unwrap_or_default()) else {
        return 0;
    };
    let sockets = count_in(&v4, "sockets:", "used");
    if sockets == 0 {
        return 0;
    }
    let default = fs::read_to_string("/proc/sys/net/core/wmem_default");
    let buffer = default
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(SOCKET_BUFFER_BYTES);
    // A full buffer takes one more piece, of half its size at most (unix_stream_sendmsg).
    let mut bytes = sockets.saturating_mul(buffer + buffer / 2);
    // Buffers of TCP grow by themselves, so that what is in them is read. The kernel keeps a small piece in a large page.
    let tcp = count_in(&v4, "TCP:", "inuse") + count_in(&v6, "TCP6:", "inuse");
    if tcp > TCP_SOCKETS_FREE {
        for name in ["tcp", "tcp6"] {
            let queued = queued_bytes(&read(name).unwrap_or_default());
            bytes = bytes.saturating_add(queued.saturating_mul(2));
        }
    }
    bytes
}

/// What the file systems in memory hold. Until bubblewrap has changed the root, other file systems have these names: only
/// those of the right size are a sandbox's.
fn file_bytes(first: u32) -> u64 {
    let of = |(place, size): &(&str, u64)| {
        let path = format!("/proc/{first}/root{place}");
        let found = rustix::fs::statvfs(path.as_str()).ok()?;
        let is_own = found.f_blocks.saturating_mul(found.f_frsize) == *size;
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        is_own.then(|| used.saturating_mul(found.f_frsize))
    };
    let places = super::profile::IN_MEMORY.iter().filter_map(of);
    places.fold(0, u64::saturating_add)
}

/// A number of `/proc/net/sockstat`: of a line, the one after a word.
fn count_in(text: &str, line: &str, word: &str) -> u64 {
    let fields = text.lines().find_map(|found| found.strip_prefix(line));
    let mut fields = fields.unwrap_or_default().split_ascii_whitespace();
    fields.find(|field| *field == word);
    fields
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// What stands in the queues of `/proc/net/tcp`: the fifth field of each line is `sent:received`, in hexadecimal.
fn queued_bytes(table: &str) -> u64 {
    let of_line = |line: &str| {
        let (sent, received) = line.split_ascii_whitespace().nth(4)?.split_once(':')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(number(sent)?.saturating_add(number(received)?))
    };
    let lines = table.lines().skip(1).filter_map(of_line);
    lines.fold(0, u64::saturating_add)
}

/// Pseudo terminals that are open inside. They come from one limit of the whole machine (kernel.pty.max).
pub(super) fn terminals(first: u32) -> usize {
    let place = PathBuf::from(format!("/proc/{first}/root")).join("dev/pts");
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    // Until bubblewrap has changed the root, these are the machine's.
    if device(&place) == device(Path::new("/dev/pts")) {
        return 0;
    }
    let open = fs::read_dir(place);
    let names = open.into_iter().flatten().flatten();
    names
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
        .take(PROCESSES_MAX)
        .count()
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
    use std::io::Write as _;

    use super::*;

    #[test]
    fn sockets_are_counted_with_what_they_can_hold() {
        let stat =
            "sockets: used 24\nTCP: inuse 5 orphan 0 tw 0 alloc 5 mem 210\nUDP: inuse 0 mem 0\n";
        assert_eq!(count_in(stat, "sockets:", "used"), 24);
        assert_eq!(count_in(stat, "TCP:", "alloc"), 5);
        assert_eq!(count_in(stat, "RAW:", "inuse"), 0);
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr\n   0: 0100007F:1F90 00000000:0000 0A 00000010:00000002 00:00000000\n   1: broken\n";
        assert_eq!(queued_bytes(table), 18);
        let (own, socket) = (std::process::id(), std::os::unix::net::UnixStream::pair());
        assert!(socket.is_ok() && socket_bytes(own) >= 2 * 4096);
    }

    #[test]
    fn mappings_are_counted_and_bounded_by_the_size_of_a_process() {
        let piped = std::process::Stdio::piped;
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "cat; true"])
            .stdin(piped())
            .stdout(piped())
            .spawn()
            .unwrap();
        // Its child is there when it answers.
        let mut answer = [0];
        shell.stdin.as_ref().unwrap().write_all(b"x").unwrap();
        let mut out = shell.stdout.take().unwrap();
        out.read_exact(&mut answer).unwrap();
        let counted = mapping_bytes(shell.id(), u64::MAX);
        let most = taken(shell.id()).mapping_bytes_max;
        assert!(counted >= 5 * MAPPING_BYTES, "{counted}");
        assert!(counted <= most, "{counted} {most}");
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(mapping_bytes(shell.id(), u64::MAX), 0);
    }

    #[test]
    fn a_line_of_maps_is_read() {
        let line = "7f0000000000-7f0000002000 rw-s 00000000 fe:00 4711 /workspace/x (deleted)";
        let device = rustix::fs::makedev(0xfe, 0);
        assert_eq!(mapped(line, device), Some((4711, 0x2000)));
        assert_eq!(mapped(line, device + 1), None);
    }
}
