//! Backups of a data directory: rows and files as they were at one point in time.
//!
//! A backup is a directory:
//!
//! | file | what |
//! |---|---|
//! | `errand.db` | the database, as SQLite copies it from one snapshot |
//! | `sandboxes/ID.tar` | the files of a sandbox that has some: an archive as GNU tar reads it |
//! | `manifest.json` | [`Manifest`]: what is in it, with the SHA-256 of each file |
//! | `manifest.json.sha256` | the SHA-256 of the manifest, written last: without it the backup is not whole |
//!
//! Promised: a backup that is whole is what a crash at its point in time would have left, so that a restore goes on like a
//! start after a crash. A sandbox is saved as it was at that point: whoever wants to change its files afterwards waits
//! until it is saved ([`errand_sandbox::Changes`]). Where a command that began before still runs after
//! [`COMMANDS_WAIT`], its sandbox is saved while it runs, and the manifest says so; its outcome is unknown after a restore
//! anyway.
//!
//! Left out: the master key, which must not be where the secrets are that it seals; the trash; unfinished uploads.

mod archive;
mod make;
mod restore;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use errand_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use make::{Made, Source, make};
pub use restore::{Restored, restore, verify};

/// How long commands that began before the point in time are waited for, all of them together.
pub const COMMANDS_WAIT: Duration = Duration::from_secs(30);
/// The version of the layout.
const FORMAT: u32 = 1;
/// The manifest's name.
const MANIFEST: &str = "manifest.json";
/// The name of what is written last.
const MANIFEST_SUM: &str = "manifest.json.sha256";
/// The directory of the archives.
const SANDBOXES: &str = "sandboxes";
/// The largest manifest that is read: millions of sandboxes.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the layout: 1.
    pub format: u32,
    /// The version of errand that made it.
    pub errand_version: String,
    /// The schema of its database.
    pub schema: i64,
    /// The point in time that it is of.
    pub taken_at: Timestamp,
    /// When it was whole.
    pub finished_at: Timestamp,
    /// The ids of the master keys that its secrets are sealed under. Empty: there is none.
    pub master_key_ids: Vec<String>,
    /// The database.
    pub database: FileLine,
    /// The sandboxes that have files.
    pub sandboxes: Vec<SandboxLine>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLine {
    /// Its path in the backup.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// The archive of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLine {
    /// The sandbox's id.
    pub id: String,
    /// Its archive.
    #[serde(flatten)]
    pub file: FileLine,
    /// The user to whom its directory belongs.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// How many files, directories and links are in it.
    pub entries: u64,
    /// How many things were left out: pipes, sockets, devices, unfinished writes, paths that are too long.
    pub left_out: u64,
    /// Whether a command ran in it while it was saved.
    pub command_was_running: bool,
}

/// How far a backup or a restore has come, and whether it is to go on.
#[derive(Debug, Default)]
pub struct Progress {
    pages: AtomicU64,
    pages_all: AtomicU64,
    files: AtomicU64,
    files_all: AtomicU64,
    bytes: AtomicU64,
    called_off: AtomicBool,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressLine {
    /// Pages of the database that are copied.
    pub pages: u64,
    /// Pages that it has.
    pub pages_all: u64,
    /// Files (sandboxes of a backup, files of a restore) that are done.
    pub files: u64,
    /// How many there are.
    pub files_all: u64,
    /// Bytes that were written or read.
    pub bytes: u64,
}

impl Progress {
    /// How far it has come.
    #[must_use]
    pub fn line(&self) -> ProgressLine {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        ProgressLine {
            pages: of(&self.pages),
            pages_all: of(&self.pages_all),
            files: of(&self.files),
            files_all: of(&self.files_all),
            bytes: of(&self.bytes),
        }
    }

    /// It ends as soon as it can.
    pub fn call_off(&self) {
        self.called_off.store(true, Ordering::Relaxed);
    }

    fn is_called_off(&self) -> bool {
        self.called_off.load(Ordering::Relaxed)
    }

    /// Counts bytes.
    ///
    /// # Errors
    /// Where it was called off.
    fn pass(&self, bytes: usize) -> io::Result<()> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.is_called_off() {
            return Err(io::Error::other("called off"));
        }
        Ok(())
    }
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// SHA-256 of a file, and its size.
fn digest(path: &Path, progress: &Progress) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer)?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else {
            return Ok((hex(hasher.finalize()), bytes));
        };
        hasher.update(read);
        bytes += count as u64;
        progress.pass(count)?;
    }
}

/// Reads the manifest of a backup that is whole.
fn read_manifest(dir: &Path) -> Result<Manifest> {
    let not_whole = || {
        format!(
            "{} holds no whole backup: it has no {MANIFEST_SUM}, which is written last. The backup was cut off, or this \
             is another directory; take another backup",
            dir.display()
        )
    };
    let sum = match std::fs::read_to_string(dir.join(MANIFEST_SUM)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(not_whole()),
        sum => sum.with_context(|| format!("{MANIFEST_SUM} cannot be read"))?,
    };
    let mut text = Vec::new();
    File::open(dir.join(MANIFEST))
        .and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text))
        .with_context(|| format!("{MANIFEST} cannot be read"))?;
    ensure!(
        sum == sum_line(&text),
        "{MANIFEST} is not the one that this backup was made with: its SHA-256 is not that of {MANIFEST_SUM}. The backup \
         was changed or is damaged; take another one"
    );
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("{MANIFEST} cannot be read"))?;
    ensure!(
        manifest.format == FORMAT,
        "the backup has the layout {}, and this program knows {FORMAT}: restore it with the errand that made it ({})",
        manifest.format,
        manifest.errand_version
    );
    Ok(manifest)
}

/// As `sha256sum` writes it, so that `sha256sum -c` reads it.
fn sum_line(manifest: &[u8]) -> String {
    format!("{}  {MANIFEST}\n", hex(Sha256::digest(manifest)))
}

#[cfg(test)]
mod tests;
