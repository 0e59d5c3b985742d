//! Checks of the data directory: its size, free space, and the kind of its file system.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::{fs, io};

use errand_core::id::SandboxId;
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use errand_engine::sandboxes::Sandboxes;
use errand_sandbox::{Root, Usage};
use errand_store::{SandboxFate, Store};

use super::{CLOCK_APART_MS, Check, bytes, duration};

/// Less free space is a problem: the next writes may fail.
const FREE_PROBLEM: u64 = 100 << 20;
/// Less free space is worth a warning, and so is less than [`FREE_PERCENT`].
const FREE_WARNING: u64 = 1 << 30;
/// A smaller free share of space or inodes is worth a warning, in percent.
const FREE_PERCENT: u64 = 5;
/// A larger WAL file was not checkpointed for a long time. Its normal size is 32 MiB.
const LOG_LARGE: u64 = 1 << 30;
/// Maximum number of unknown sandboxes that are measured.
const MEASURED_MAX: usize = 100;
/// The database and its WAL file.
const DATABASE: [&str; 2] = ["errand.db", "errand.db-wal"];

/// Free and total space of a file system, in bytes and inodes. 0 total inodes: the file system does not count them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) free_inodes: u64,
    pub(super) total_inodes: u64,
}

/// The space that an unprivileged program can use on the file system of `dir`.
pub(super) fn space(dir: &Path) -> io::Result<Space> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(Space {
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_inodes: found.f_favail,
        total_inodes: found.f_files,
    })
}

/// Checks of the file system on which `dir` is, or will be once it is created.
pub(super) fn machine(dir: &Path) -> Vec<Check> {
    let there = dir
        .ancestors()
        .map(|path| {
            if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            }
        })
        .find(|path| path.is_dir());
    let Some(there) = there else {
        return vec![Check::problem(
            "disk",
            format!("{} does not exist", dir.display()),
            "choose another --data-dir",
        )];
    };
    let mut checks = vec![match space(there) {
        Ok(space) => judge_space(space),
        Err(error) => unreadable("disk", there, &error),
    }];
    checks.push(file_system(there));
    if there == dir {
        checks.push(file_clock(there));
        checks.push(access(there));
    }
    checks
}

/// Judges the free space.
pub(super) fn judge_space(space: Space) -> Check {
    const CHECK: &str = "disk";
    const ADVICE: &str = "free space: delete sandboxes that are no longer needed, or move the data directory to a larger disk";
    let Space {
        free_bytes,
        total_bytes,
        free_inodes,
        total_inodes,
    } = space;
    let scarce = |free: u64, total: u64| {
        u128::from(free) * 100 < u128::from(total) * u128::from(FREE_PERCENT)
    };
    let found = format!("{} of {} are free", bytes(free_bytes), bytes(total_bytes));
    if free_bytes < FREE_PROBLEM {
        return Check::problem(CHECK, format!("{found}: writes will soon fail"), ADVICE);
    }
    if total_inodes > 0 && free_inodes == 0 {
        return Check::problem(
            CHECK,
            format!("{found}, but no file can be created: no inode is free"),
            ADVICE,
        );
    }
    if free_bytes < FREE_WARNING || scarce(free_bytes, total_bytes) {
        return Check::warning(CHECK, found, ADVICE);
    }
    if total_inodes > 0 && scarce(free_inodes, total_inodes) {
        let found = format!("{found}, but only {free_inodes} of {total_inodes} inodes");
        return Check::warning(CHECK, found, ADVICE);
    }
    Check::ok(CHECK, found)
}

/// A message about permissions that are too open. `None` if only the owner can access the data directory.
pub(crate) fn open_to_others(dir: &Path) -> io::Result<Option<String>> {
    let mode = fs::metadata(dir)?.mode() & 0o777;
    let is_open = mode & 0o077 != 0;
    Ok(is_open.then(|| {
        format!(
            "other users of this machine can access {} (its mode is {mode:o})",
            dir.display()
        )
    }))
}

fn access(dir: &Path) -> Check {
    const CHECK: &str = "data directory";
    match open_to_others(dir) {
        Ok(None) => Check::ok(CHECK, "only its owner can access it"),
        Ok(Some(found)) => Check::warning(
            CHECK,
            found,
            "restrict it: chmod 700 DIRECTORY; the files in it are private anyway, but their names and sizes reveal something",
        ),
        Err(error) => unreadable(CHECK, dir, &error),
    }
}

fn file_system(dir: &Path) -> Check {
    const CHECK: &str = "file system";
    match rustix::fs::statfs(dir) {
        Ok(found) => judge_file_system(found.f_type as u64 & 0xffff_ffff),
        Err(error) => unreadable(CHECK, dir, &error.into()),
    }
}

/// Judges a file system by the number that Linux assigns to its kind.
pub(super) fn judge_file_system(kind: u64) -> Check {
    const CHECK: &str = "file system";
    const MEMORY: [(u64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];
    const NETWORK: [(u64, &str); 7] = [
        (0x6969, "NFS"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB"),
        (0x517b, "SMB"),
        (0x0102_1997, "9p"),
        (0x00c3_6400, "Ceph"),
        (0x5346_414f, "AFS"),
    ];
    let named = |list: &[(u64, &'static str)]| {
        list.iter()
            .find(|(number, _)| *number == kind)
            .map(|(_, name)| *name)
    };
    if let Some(name) = named(&MEMORY) {
        return Check::warning(
            CHECK,
            format!(
                "the data directory is in memory ({name}): all data is lost when the machine restarts"
            ),
            "move the data directory to a disk",
        );
    }
    if let Some(name) = named(&NETWORK) {
        return Check::warning(
            CHECK,
            format!(
                "the data directory is on a network file system ({name}), whose locks and syncs are not reliable for SQLite"
            ),
            "move the data directory to a local disk",
        );
    }
    Check::ok(CHECK, "the data directory is on a local file system")
}

/// Whether new files get the current time. If not, another machine stores the files.
fn file_clock(dir: &Path) -> Check {
    const CHECK: &str = "time of files";
    // An unnamed file. Creating it also shows whether files can be created.
    let written = tempfile::tempfile_in(dir).and_then(|mut file| {
        io::Write::write_all(&mut file, b"errand")?;
        file.metadata()
    });
    let now = Clock::System.now();
    match written {
        Ok(found) => {
            let at = Timestamp::from_millis(
                found
                    .mtime()
                    .saturating_mul(1000)
                    .saturating_add(found.mtime_nsec() / 1_000_000),
            );
            judge_file_clock(at, now)
        }
        Err(error) => Check::problem(
            CHECK,
            format!("no file can be created in {}: {error}", dir.display()),
            "make sure that the server's user may write there, and that there is free space",
        ),
    }
}

pub(super) fn judge_file_clock(file: Timestamp, now: Timestamp) -> Check {
    const CHECK: &str = "time of files";
    let apart = file.ms_since(now).max(now.ms_since(file));
    if apart > CLOCK_APART_MS {
        return Check::warning(
            CHECK,
            format!(
                "a new file has the time {file} while the clock shows {now}, {} apart: another machine stores the files",
                duration(apart)
            ),
            "synchronize both clocks with the same source, or move the data directory to a local disk",
        );
    }
    Check::ok(CHECK, "new files have the time of the clock")
}

/// The sizes of the parts of the data directory.
pub(super) fn sizes(dir: &Path, sandboxes: &Sandboxes) -> Vec<Check> {
    const CHECK: &str = "sizes";
    let size = |name: &str| fs::metadata(dir.join(name)).map_or(0, |found| found.len());
    let [database, log] = DATABASE.map(size);
    let (files, trash) = (usage(sandboxes.dir()), usage(sandboxes.trash().dir()));
    let found = format!(
        "sizes: database {}, its log {}, sandboxes {}, trash {}",
        bytes(database),
        bytes(log),
        describe(files),
        describe(trash)
    );
    if log > LOG_LARGE {
        return vec![Check::warning(
            CHECK,
            format!("{found}: the log was not written back for a long time"),
            "restart the server, which writes it back; a reader that never ends prevents that",
        )];
    }
    vec![Check::ok(CHECK, found)]
}

fn describe(usage: Usage) -> String {
    let at_least = if usage.is_complete { "" } else { "at least " };
    format!(
        "{at_least}{} in {} files",
        bytes(usage.disk_bytes),
        usage.files
    )
}

/// The size of a directory. A missing directory is empty.
fn usage(dir: &Path) -> Usage {
    if !dir.exists() {
        return Usage {
            is_complete: true,
            ..Usage::default()
        };
    }
    Root::open(dir)
        .and_then(|root| root.usage())
        .unwrap_or_default()
}

/// Directories without a database row, and sandboxes without a directory.
pub(super) async fn sandboxes(store: &Store, sandboxes: &Sandboxes) -> Vec<Check> {
    const CHECK: &str = "sandboxes";
    let listing = sandboxes.clone();
    let on_disk = match tokio::task::spawn_blocking(move || listing.list()).await {
        Ok(Ok(on_disk)) => on_disk,
        Ok(Err(error)) => return vec![unreadable(CHECK, sandboxes.dir(), &error)],
        Err(ended) => return vec![unreadable(CHECK, sandboxes.dir(), &io::Error::other(ended))],
    };
    let looked_up = async {
        let there: HashSet<SandboxId> = on_disk.iter().cloned().collect();
        let fates = store.sandbox_fates(on_disk).await?;
        let kept = store.kept_sandboxes().await?;
        let without = kept.into_iter().filter(|id| !there.contains(id)).collect();
        Ok((fates, store.written_sandboxes(without).await?))
    };
    let (fates, lost) = match looked_up.await {
        Ok(found) => found,
        Err(error) => return vec![Check::failed(CHECK, &error)],
    };
    let known = fates.len();
    let unknown: Vec<SandboxId> = fates
        .into_iter()
        .filter(|(_, fate)| *fate != SandboxFate::Kept)
        .map(|(id, _)| id)
        .collect();
    let mut checks = Vec::new();
    if !unknown.is_empty() {
        checks.push(strangers(sandboxes.clone(), unknown).await);
    }
    if !lost.is_empty() {
        let names: Vec<String> = lost.iter().map(ToString::to_string).collect();
        checks.push(Check::problem(
            CHECK,
            format!(
                "runs have written to {} sandboxes whose directory is missing: {}",
                lost.len(),
                super::listed(&names)
            ),
            "restore their directories from a backup; the trash in the data directory contains what was removed in the last day",
        ));
    }
    if checks.is_empty() {
        checks.push(Check::ok(
            CHECK,
            format!("{known} sandboxes have files, and all are in the database"),
        ));
    }
    checks
}

async fn strangers(sandboxes: Sandboxes, unknown: Vec<SandboxId>) -> Check {
    let count = unknown.len();
    let measured = tokio::task::spawn_blocking(move || {
        let some = unknown.iter().take(MEASURED_MAX);
        some.map(|id| usage(&sandboxes.path_of(id)).disk_bytes)
            .fold(0, u64::saturating_add)
    });
    let size = bytes(measured.await.unwrap_or(0));
    let at_least = if count > MEASURED_MAX {
        "at least "
    } else {
        ""
    };
    Check::warning(
        "sandboxes",
        format!("{count} sandbox directories are not in the database, with {at_least}{size}"),
        "nothing, unless you miss them: the server moves them to the trash when they are an hour old and from an earlier \
         start, and removes them a day later",
    )
}

fn unreadable(check: &str, path: &Path, error: &io::Error) -> Check {
    Check::problem(
        check,
        format!("{} cannot be checked: {error}", path.display()),
        "make sure that the server's user may read and write there",
    )
}
