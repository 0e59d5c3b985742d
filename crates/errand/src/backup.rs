//! Backups of a data directory: rows and files at one point in time.
//!
//! A backup is a directory:
//!
//! | file | content |
//! |---|---|
//! | `errand.db` | the database, copied by SQLite from one snapshot |
//! | `sandboxes/ID.tar` | the files of a sandbox, as an archive for GNU tar |
//! | `manifest.json` | [`Manifest`]: the list of all files, with their SHA-256 digests |
//! | `manifest.json.sha256` | the SHA-256 of the manifest, written last: without it the backup is incomplete |
//!
//! # Guarantees
//!
//! A complete backup is what a crash at its point in time would have left, so a restored server starts as after a
//! crash. Each sandbox is saved as it was at that point: a change of its files waits until it is saved
//! ([`errand_sandbox::Changes`]). If a command that was started before is still running after [`COMMANDS_WAIT`], its
//! sandbox is saved while it runs, and the manifest says so; the outcome of such a command is unknown after a restore
//! anyway.
//!
//! # Non-goals
//!
//! The master key, which must not be stored together with the secrets that it encrypts; the trash; unfinished uploads.

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

/// Maximum total wait for commands that were started before the point in time.
pub const COMMANDS_WAIT: Duration = Duration::from_secs(30);
/// The version of the directory layout.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
/// Written last; marks a complete backup.
const MANIFEST_SUM: &str = "manifest.json.sha256";
const SANDBOXES: &str = "sandboxes";
/// Maximum size of a manifest that is read, enough for millions of sandboxes.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// The list of a backup's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the directory layout: 1.
    pub format: u32,
    /// Version of errand that made the backup.
    pub errand_version: String,
    /// Schema version of the database.
    pub schema: i64,
    /// The point in time of the backup.
    pub taken_at: Timestamp,
    /// The time when the backup was complete.
    pub finished_at: Timestamp,
    /// Ids of the master keys with which its secrets are encrypted. Empty if there are no secrets.
    pub master_key_ids: Vec<String>,
    pub database: FileLine,
    /// The sandboxes with files.
    pub sandboxes: Vec<SandboxLine>,
}

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLine {
    /// Path relative to the backup's directory.
    pub path: String,
    pub bytes: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

/// The archive of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLine {
    pub id: String,
    #[serde(flatten)]
    pub file: FileLine,
    /// User id of the sandbox's directory.
    pub uid: u32,
    /// Group id of the sandbox's directory.
    pub gid: u32,
    /// Number of files, directories and links in the archive.
    pub entries: u64,
    /// Number of entries that were left out: pipes, sockets, devices, unfinished writes, paths that are too long.
    pub left_out: u64,
    /// Whether a command was running in the sandbox while it was saved.
    pub command_was_running: bool,
}

/// The progress of a backup or a restore, and a flag to cancel it.
#[derive(Debug, Default)]
pub struct Progress {
    pages: AtomicU64,
    pages_all: AtomicU64,
    files: AtomicU64,
    files_all: AtomicU64,
    bytes: AtomicU64,
    called_off: AtomicBool,
}

/// A snapshot of a [`Progress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressLine {
    /// Copied pages of the database.
    pub pages: u64,
    /// Total pages of the database.
    pub pages_all: u64,
    /// Completed files: sandboxes of a backup, or files of a restore.
    pub files: u64,
    /// Total number of files.
    pub files_all: u64,
    /// Bytes written or read.
    pub bytes: u64,
}

impl Progress {
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

    /// Cancels the operation; it ends as soon as it can.
    pub fn call_off(&self) {
        self.called_off.store(true, Ordering::Relaxed);
    }

    fn is_called_off(&self) -> bool {
        self.called_off.load(Ordering::Relaxed)
    }

    /// Counts bytes.
    ///
    /// # Errors
    /// The operation was canceled.
    fn pass(&self, bytes: usize) -> io::Result<()> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.is_called_off() {
            return Err(io::Error::other("canceled"));
        }
        Ok(())
    }
}

/// The SHA-256 digest and the size of a file.
fn digest(path: &Path, progress: &Progress) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer)?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else {
            return Ok((hex::encode(hasher.finalize()), bytes));
        };
        hasher.update(read);
        bytes += count as u64;
        progress.pass(count)?;
    }
}

/// Reads the manifest of a complete backup.
fn read_manifest(dir: &Path) -> Result<Manifest> {
    let not_whole = || {
        format!(
            "{} does not contain a complete backup: {MANIFEST_SUM}, which is written last, is missing. The backup was interrupted, \
             or this is the wrong directory; use another backup",
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
        "the SHA-256 of {MANIFEST} differs from {MANIFEST_SUM}: the backup was changed or is damaged; use another \
         backup"
    );
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("{MANIFEST} cannot be read"))?;
    ensure!(
        manifest.format == FORMAT,
        "the backup has layout {}, but this program supports {FORMAT}: restore it with the errand version that made it ({})",
        manifest.format,
        manifest.errand_version
    );
    Ok(manifest)
}

/// A line in the format of `sha256sum`, so that `sha256sum -c` can verify it.
fn sum_line(manifest: &[u8]) -> String {
    format!("{}  {MANIFEST}\n", hex::encode(Sha256::digest(manifest)))
}

#[cfg(test)]
mod tests;
