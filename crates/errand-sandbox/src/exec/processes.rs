//! The processes inside a sandbox, as the server sees them: found by following the first one's children, and signaled
//! such that a reused process id never hits another process.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};

/// Maximum number of processes examined; more than a sandbox may have.
const PROCESSES_MAX: usize = 20_000;
/// Maximum number of open files examined per process.
const FILES_MAX: usize = 4096;

/// Descriptors per process that are not counted: the smallest table that the kernel allocates has room for them.
const DESCRIPTORS_FREE: u64 = 64;
/// Memory counted per descriptor above that: half of a pipe with two pages, the most that a user with many pipes
/// gets.
const DESCRIPTOR_BYTES: u64 = 4096;
/// Kernel memory per mapping, in bytes: its `vm_area_struct`, and its share of the tree that contains it.
const MAPPING_BYTES: u64 = 256;
/// Size of the smallest mapping, in KiB.
const MAPPING_SIZE_MIN_KIB: u64 = 4;
/// The kernel's default for `vm.max_map_count`, used if it cannot be read.
const MAPPINGS_MAX: u64 = 65_530;
/// The kernel's default for `net.core.wmem_default`, used if it cannot be read.
const SOCKET_BUFFER_BYTES: u64 = 212_992;
/// Number of TCP sockets up to which their queues are ignored, because reading the kernel's table takes milliseconds.
const TCP_SOCKETS_FREE: u64 = 16;

/// All descendants of a process, without the process itself.
pub(super) fn descendants(first: u32) -> Vec<u32> {
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

/// The children of a process, no matter which of its threads started them.
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

/// Opens a pidfd. Signals sent through it reach this process or none, even if its id is reused.
pub(super) fn open_pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

pub(super) fn signal(process: &OwnedFd, signal: Signal) {
    // The process may be gone, which is fine.
    let _ = rustix::process::pidfd_send_signal(process, signal);
}

/// Waits until a process has reacted to SIGSTOP, for at most 50 ms.
pub(super) fn wait_until_stopped(pid: u32) {
    for _ in 0..50 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The process name before it is in parentheses and may itself contain any characters, including parentheses.
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        if !matches!(state, Some('R' | 'S' | 'D')) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The PID namespace that a process is in.
fn namespace_of(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
    link.into_os_string().into_string().ok()
}

/// Signals every process inside except the first, which holds the namespace. `first` must be held by a pidfd, so that
/// its id cannot be reused.
pub(super) fn signal_descendants(first: u32, with: Signal) {
    let Some(inside) = namespace_of(first) else {
        return;
    };
    for pid in descendants(first) {
        // Opened first, examined second: what was examined is then what gets the signal.
        if let Some(process) = open_pidfd(pid)
            && namespace_of(pid).as_ref() == Some(&inside)
        {
            signal(&process, with);
        }
    }
}

/// Resources that processes use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessUsage {
    /// Memory in bytes, without pages shared with files.
    pub(super) memory_bytes: u64,
    /// Upper bound of the kernel memory for their mappings. Not included in `memory_bytes`: [`mapping_bytes`] counts it.
    pub(super) mapping_bytes_max: u64,
    pub(super) threads: u64,
}

/// Measures what the processes inside use now, including kernel memory. For machines without cgroups.
///
/// Memory that belongs to no process is counted with the maximum it can be, so that nothing can hide in it: sockets
/// (also those in transit through another socket), page tables, pipes and other descriptors, and files in memory.
pub(super) fn usage(first: u32) -> ProcessUsage {
    let mut usage = ProcessUsage {
        memory_bytes: socket_bytes(first).saturating_add(file_bytes(first)),
        mapping_bytes_max: 0,
        threads: 0,
    };
    let mappings_max = mappings_max();
    for pid in descendants(first) {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        // Memory shared between processes is counted for each of them: too much rather than too little.
        let kib = field("RssAnon:") + field("RssShmem:") + field("VmSwap:") + field("VmPTE:");
        let descriptors = field("FDSize:").saturating_sub(DESCRIPTORS_FREE);
        usage.memory_bytes += kib * 1024 + descriptors * DESCRIPTOR_BYTES;
        let mappings = (field("VmSize:") / MAPPING_SIZE_MIN_KIB).min(mappings_max);
        usage.mapping_bytes_max += mappings * MAPPING_BYTES;
        usage.threads += field("Threads:").max(1);
    }
    usage
}

/// Maximum number of mappings of one process.
fn mappings_max() -> u64 {
    let most = fs::read_to_string("/proc/sys/vm/max_map_count");
    let most = most.ok().and_then(|text| text.trim().parse().ok());
    most.unwrap_or(MAPPINGS_MAX)
}

/// Kernel memory for the mappings of the processes inside, in bytes. Reads a line for each mapping, which takes about a
/// millisecond per 2,000 mappings, and stops once the result exceeds `enough`.
pub(super) fn mapping_bytes(first: u32, enough: u64) -> u64 {
    let mut bytes: u64 = 0;
    for pid in descendants(first) {
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
        // A table that cannot be read counts as the maximum, so that nothing can hide there.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return mappings_max(),
        Err(_) => return 0,
    };
    let (mut lines, mut buffer) = (0, vec![0; 64 * 1024]);
    // If the process ends in the meantime, this is the end of the file or an error.
    while let Ok(count @ 1..) = table.read(&mut buffer) {
        let read = buffer.get(..count).unwrap_or_default();
        lines += read.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    lines
}

/// Maximum memory held by the sockets in the network namespace of a process, including those that no process has open
/// because they are in transit through another socket.
fn socket_bytes(of: u32) -> u64 {
    let read = |name: &str| fs::read_to_string(format!("/proc/{of}/net/{name}"));
    let (Ok(v4), v6) = (read("sockstat"), read("sockstat6").unwrap_or_default()) else {
        return 0;
    };
    let sockets = read_counter(&v4, "sockets:", "used");
    if sockets == 0 {
        return 0;
    }
    let default = fs::read_to_string("/proc/sys/net/core/wmem_default");
    let buffer = default
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(SOCKET_BUFFER_BYTES);
    // A full buffer accepts one more piece of at most half its size (see unix_stream_sendmsg in the kernel).
    let mut bytes = sockets.saturating_mul(buffer + buffer / 2);
    // TCP buffers grow on their own, so their content is read. Doubled, because the kernel may keep a small piece in
    // a large page.
    let tcp = read_counter(&v4, "TCP:", "inuse") + read_counter(&v6, "TCP6:", "inuse");
    if tcp > TCP_SOCKETS_FREE {
        for name in ["tcp", "tcp6"] {
            let queued = queued_bytes(&read(name).unwrap_or_default());
            bytes = bytes.saturating_add(queued.saturating_mul(2));
        }
    }
    bytes
}

/// Bytes used in the in-memory file systems. Before bubblewrap has changed the root, these paths lead to other file
/// systems, so only those with the exact size are counted.
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

/// Reads a number from `/proc/net/sockstat`: the field after `word` in the line that starts with `line`.
fn read_counter(text: &str, line: &str, word: &str) -> u64 {
    let fields = text.lines().find_map(|found| found.strip_prefix(line));
    let mut fields = fields.unwrap_or_default().split_ascii_whitespace();
    fields.find(|field| *field == word);
    fields
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// Sums the queues in `/proc/net/tcp`: the fifth field of each line is `sent:received`, in hexadecimal.
fn queued_bytes(table: &str) -> u64 {
    let of_line = |line: &str| {
        let (sent, received) = line.split_ascii_whitespace().nth(4)?.split_once(':')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(number(sent)?.saturating_add(number(received)?))
    };
    let lines = table.lines().skip(1).filter_map(of_line);
    lines.fold(0, u64::saturating_add)
}

/// Number of pseudoterminals open inside. They count against a limit of the whole machine (kernel.pty.max).
pub(super) fn open_terminals(first: u32) -> usize {
    let place = PathBuf::from(format!("/proc/{first}/root")).join("dev/pts");
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    // Before bubblewrap has changed the root, this is the machine's directory.
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

/// Bytes on a device in deleted files that processes inside still have open or mapped.
pub(super) fn deleted_bytes(first: u32, device: u64) -> u64 {
    let mut seen = HashSet::new();
    let mut bytes: u64 = 0;
    for pid in descendants(first) {
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
            if let Some((inode, size)) = parse_deleted_mapping(line, device)
                && seen.insert(inode)
            {
                bytes = bytes.saturating_add(size);
            }
        }
    }
    bytes
}

/// Parses a line of `maps`: returns the inode and the mapped size, if the file is on the device.
fn parse_deleted_mapping(line: &str, device: u64) -> Option<(u64, u64)> {
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

/// Bytes that processes inside have written to disk so far, including those that have ended.
pub(super) fn written_bytes(first: u32) -> u64 {
    let of = |pid: u32| -> u64 {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let line = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        line.and_then(|number| number.trim().parse().ok())
            .unwrap_or(0)
    };
    // The kernel adds the counts of an ended process to the process that waited for it, in the end to the first.
    descendants(first)
        .into_iter()
        .map(of)
        .fold(of(first), u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn sockets_count_with_the_most_they_can_hold() {
        let stat =
            "sockets: used 24\nTCP: inuse 5 orphan 0 tw 0 alloc 5 mem 210\nUDP: inuse 0 mem 0\n";
        assert_eq!(read_counter(stat, "sockets:", "used"), 24);
        assert_eq!(read_counter(stat, "TCP:", "alloc"), 5);
        assert_eq!(read_counter(stat, "RAW:", "inuse"), 0);
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr\n   0: 0100007F:1F90 00000000:0000 0A 00000010:00000002 00:00000000\n   1: broken\n";
        assert_eq!(queued_bytes(table), 18);
        let (own, socket) = (std::process::id(), std::os::unix::net::UnixStream::pair());
        assert!(socket.is_ok() && socket_bytes(own) >= 2 * 4096);
    }

    #[test]
    fn mappings_are_counted_and_bounded_by_the_process_size() {
        let piped = std::process::Stdio::piped;
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", "cat; true"])
            .stdin(piped())
            .stdout(piped())
            .spawn()
            .unwrap();
        // When it answers, its child is running.
        let mut answer = [0];
        shell.stdin.as_ref().unwrap().write_all(b"x").unwrap();
        let mut out = shell.stdout.take().unwrap();
        out.read_exact(&mut answer).unwrap();
        let counted = mapping_bytes(shell.id(), u64::MAX);
        let most = usage(shell.id()).mapping_bytes_max;
        assert!(counted >= 5 * MAPPING_BYTES, "{counted}");
        assert!(counted <= most, "{counted} {most}");
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(mapping_bytes(shell.id(), u64::MAX), 0);
    }

    #[test]
    fn a_line_of_maps_is_parsed() {
        let line = "7f0000000000-7f0000002000 rw-s 00000000 fe:00 4711 /workspace/x (deleted)";
        let device = rustix::fs::makedev(0xfe, 0);
        assert_eq!(parse_deleted_mapping(line, device), Some((4711, 0x2000)));
        assert_eq!(parse_deleted_mapping(line, device + 1), None);
    }
}
