//! Metrics of the process and its disk. A value that the system does not provide is omitted; it is never reported as 0.

use std::fs;
use std::path::Path;

use super::text::Text;

#[derive(Default)]
pub(super) struct Process {
    resident_bytes: Option<u64>,
    open_fds: Option<u64>,
    disk_free_bytes: Option<u64>,
}

/// Reads the values. Blocking. `dir`: the data directory.
pub(super) fn read(dir: &Path) -> Process {
    Process {
        resident_bytes: fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| resident(&status)),
        // Reading the directory opens one descriptor itself.
        open_fds: fs::read_dir("/proc/self/fd")
            .ok()
            .map(|names| (names.count() as u64).saturating_sub(1)),
        disk_free_bytes: rustix::fs::statvfs(dir)
            .ok()
            .map(|found| found.f_bavail.saturating_mul(found.f_frsize)),
    }
}

/// Parses a line such as `VmRSS:     1234 kB` to bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

impl Process {
    pub(super) fn write(self, text: &mut Text) {
        for (name, help, value) in [
            (
                "errand_process_resident_bytes",
                "Resident memory of the process.",
                self.resident_bytes,
            ),
            (
                "errand_process_open_fds",
                "Open file descriptors of the process.",
                self.open_fds,
            ),
            (
                "errand_disk_free_bytes",
                "Free space on the file system of the data directory.",
                self.disk_free_bytes,
            ),
        ] {
            if let Some(value) = value {
                text.gauge(name, help).plain(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_value_is_not_invented() {
        assert_eq!(
            resident("Name:\terrand\nVmRSS:\t   52340 kB\nThreads:\t9\n"),
            Some(52340 * 1024)
        );
        assert_eq!(resident("VmRSS:\tmuch\n"), None);
        assert_eq!(resident(""), None);
    }
}
