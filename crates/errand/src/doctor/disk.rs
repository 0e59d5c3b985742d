//! The data directory: what it takes, what is left, and what kind of file system it is on.

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

/// Less free space than this is a problem: the next writes may fail.
const FREE_PROBLEM: u64 = 100 << 20;
/// Less than this is worth a warning; so is less than [`FREE_PERCENT`].
const FREE_WARNING: u64 = 1 << 30;
/// Less of the space or of the inodes is worth a warning. Unit: percent.
const FREE_PERCENT: u64 = 5;
/// A log of the database above this was not written back for long; ordinarily it has 32 MiB.
const LOG_LARGE: u64 = 1 << 30;
/// How many unknown sandboxes are measured.
const MEASURED_MAX: usize = 100;
/// The database, and its log.
const DATABASE: [&str; 2] = ["errand.db", "errand.db-wal"];

/// What a file system has left. Bytes and inodes; 0 inodes in all: it does not count them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) free_inodes: u64,
    pub(super) total_inodes: u64,
}

/// What an unprivileged program may still use of the file system that `dir` is on.
pub(super) fn space(dir: &Path) -> io::Result<Space> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(Space {
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_inodes: found.f_favail,
        total_inodes: found.f_files,
    })
}

/// The file system that `dir` is on, or will be on once it is made.
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
            format!("nothing is at {}", dir.display()),
            "take another --data-dir",
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

/// What follows from what is left.
pub(super) fn judge_space(space: Space) -> Check {
    const CHECK: &str = "disk";
    const ADVICE: &str =
        "make room: delete sandboxes that nobody needs, or give the data directory a larger disk";
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
        return Check::problem(CHECK, format!("{found}: writes will fail soon"), ADVICE);
    }
    if total_inodes > 0 && free_inodes == 0 {
        return Check::problem(
            CHECK,
            format!("{found}, and no file can be made: no inode is free"),
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

/// What is wrong with who may look into the data directory; none if it is its owner alone.
pub(crate) fn open_to_others(dir: &Path) -> io::Result<Option<String>> {
    let mode = fs::metadata(dir)?.mode() & 0o777;
    let is_open = mode & 0o077 != 0;
    Ok(is_open.then(|| {
        format!(
            "other users of this machine can look into {} (its mode is {mode:o})",
            dir.display()
        )
    }))
}

fn access(dir: &Path) -> Check {
    const CHECK: &str = "data directory";
    match open_to_others(dir) {
        Ok(None) => Check::ok(CHECK, "only its owner can look into it"),
        Ok(Some(found)) => Check::warning(
            CHECK,
            found,
            "close it: chmod 700 DIRECTORY; its files are the server's alone, but their names and sizes tell something",
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

/// What follows from the number that Linux gives a kind of file system.
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
                "the data directory is in memory ({name}): all is lost when the machine restarts"
            ),
            "put the data directory on a disk",
        );
    }
    if let Some(name) = named(&NETWORK) {
        return Check::warning(
            CHECK,
            format!(
                "the data directory is on a network file system ({name}), whose locks and syncs SQLite cannot rely on"
            ),
            "put the data directory on a disk of this machine",
        );
    }
    Check::ok(
        CHECK,
        "the data directory is on a file system of this machine",
    )
}

/// Whether files get the time that the clock shows, as they do not where another machine keeps them.
fn file_clock(dir: &Path) -> Check {
    const CHECK: &str = "time of files";
    // A file without a name; making it tells as well whether one can be made.
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
            format!("no file can be written in {}: {error}", dir.display()),
            "see to it that the server's user may write there, and that there is room",
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
                "a new file is of {file} while the clock shows {now}, {} apart: another machine keeps the files",
                duration(apart)
            ),
            "set both clocks by the same source, or put the data directory on a disk of this machine",
        );
    }
    Check::ok(CHECK, "new files get the time that the clock shows")
}

/// What the parts of the data directory take.
pub(super) fn sizes(dir: &Path, sandboxes: &Sandboxes) -> Vec<Check> {
    const CHECK: &str = "sizes";
    let size = |name: &str| fs::metadata(dir.join(name)).map_or(0, |found| found.len());
    let [database, log] = DATABASE.map(size);
    let (files, trash) = (usage(sandboxes.dir()), usage(sandboxes.trash().dir()));
    let found = format!(
        "the database has {}, its log {}, the sandboxes {}, the trash {}",
        bytes(database),
        bytes(log),
        told(files),
        told(trash)
    );
    if log > LOG_LARGE {
        return vec![Check::warning(
            CHECK,
            format!("{found}: the log was not written back for long"),
            "restart the server, which writes it back; a reader that never ends keeps it from that",
        )];
    }
    vec![Check::ok(CHECK, found)]
}

fn told(usage: Usage) -> String {
    let at_least = if usage.is_complete { "" } else { "at least " };
    format!(
        "{at_least}{} in {} files",
        bytes(usage.disk_bytes),
        usage.files
    )
}

/// What is beneath a directory; nothing where it is not there.
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

/// Directories that the store does not know, and sandboxes whose directory is gone.
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
                "runs have written to {} sandboxes whose directory is not there: {}",
                lost.len(),
                super::listed(&names)
            ),
            "restore their directories from a backup; the trash in the data directory has what was moved in the last day",
        ));
    }
    if checks.is_empty() {
        checks.push(Check::ok(
            CHECK,
            format!("{known} sandboxes have files, and all of them are known"),
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
        format!(
            "{count} directories of sandboxes are not known to the store, with {at_least}{size}"
        ),
        "nothing, unless they are missed: the server moves them to the trash when they are an hour old and of an earlier \
         start, and removes them a day later",
    )
}

fn unreadable(check: &str, path: &Path, error: &io::Error) -> Check {
    Check::problem(
        check,
        format!("{} cannot be looked at: {error}", path.display()),
        "see to it that the server's user may read and write there",
    )
}
