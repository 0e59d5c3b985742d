//! The machine on which it was measured.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Properties that the figures depend on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// File system and device of the directory for the measures.
    pub(crate) disk: String,
}

impl Machine {
    /// This machine. `dir` is the directory for the measures.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let info = std::fs::read_to_string("/proc/cpuinfo")?;
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_once(':')
                .map(|(_, value)| value.trim().to_owned())
        };
        let kib: u64 = field(&memory, "MemTotal")
            .and_then(|text| text.trim_end_matches(" kB").parse().ok())
            .unwrap_or(0);
        Ok(Self {
            processor: field(&info, "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib * 1024,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            disk: disk_of(dir)?,
        })
    }

    pub(super) fn table(&self) -> String {
        let mut table = "| | |\n|---|---|\n".to_owned();
        let memory = format!("{:.1} GiB", self.memory_bytes as f64 / f64::from(1 << 30));
        let cores = self.cores.to_string();
        for (name, value) in [
            ("Processor", &self.processor),
            ("Cores", &cores),
            ("Memory", &memory),
            ("Kernel", &self.kernel),
            ("Disk", &self.disk),
        ] {
            let _ = writeln!(table, "| {name} | {value} |");
        }
        table
    }
}

/// The file system of a directory, its device, and whether it is a rotating disk.
fn disk_of(dir: &Path) -> Result<String> {
    let dir = dir.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts
        .lines()
        .filter_map(Mount::parse)
        .filter(|mount| dir.starts_with(mount.point))
        // A later mount covers an earlier one.
        .max_by_key(|mount| mount.point.len());
    let Some(mount) = mount else {
        return Ok("unknown".to_owned());
    };
    let Some(device) = mount.source.strip_prefix("/dev/") else {
        return Ok(mount.kind.to_owned());
    };
    let kind = match std::fs::read_to_string(format!("/sys/class/block/{device}/queue/rotational"))
    {
        _ if device.starts_with("vd") => " (virtio)",
        Ok(turns) if turns.trim() == "1" => " (rotating disk)",
        Ok(_) => " (solid state)",
        Err(_) => "",
    };
    Ok(format!("{} on {device}{kind}", mount.kind))
}

struct Mount<'a> {
    point: &'a str,
    kind: &'a str,
    source: &'a str,
}

impl<'a> Mount<'a> {
    /// Parses a line of mountinfo.
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        Some(Self {
            point: before.split(' ').nth(4)?,
            kind: after.next()?,
            source: after.next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_parsed() {
        let line =
            "36 35 98:0 /mnt1 /mnt/two rw,noatime master:1 - ext4 /dev/vda rw,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(
            (mount.point, mount.kind, mount.source),
            ("/mnt/two", "ext4", "/dev/vda")
        );
    }

    #[test]
    fn the_current_machine_is_described() {
        let machine = Machine::of(Path::new("/")).unwrap();
        assert!(machine.cores > 0 && machine.memory_bytes > 0);
        assert!(machine.table().contains(&machine.kernel));
    }
}
