//! Restores a backup into a data directory.
//!
//! # Guarantees
//!
//! - Everything is verified before anything is written.
//! - A directory that is not empty, or that a server uses, is refused.
//! - The data is written to a subdirectory, synced, and then moved into place, the database last. An interrupted
//!   restore leaves no database, so no server starts on it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail, ensure};
use errand_core::id::SandboxId;
use errand_store::{DATABASE_FILE, Store, database_facts};

use super::make::is_harmless;
use super::{FileLine, Manifest, Progress, SANDBOXES, archive, digest, read_manifest};

/// The subdirectory of the data directory for an unfinished restore.
const UNFINISHED: &str = ".restoring";
/// Free space that must remain in addition.
const ROOM_BYTES_MIN: u64 = 64 << 20;

/// A completed restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The manifest of the backup.
    pub manifest: Manifest,
}

/// Verifies that a backup is complete and that no byte of it has changed. Blocking.
///
/// # Errors
/// Any failure; the message describes the problem.
pub fn verify(from: &Path, progress: &Progress) -> Result<Manifest> {
    let manifest = read_manifest(from)?;
    let known = Store::schema_known();
    ensure!(
        manifest.schema <= known,
        "the backup was made by a newer errand ({}): its schema version is {}, but this program supports {known}; restore it with that version",
        manifest.errand_version,
        manifest.schema
    );
    let files: Vec<&FileLine> = std::iter::once(&manifest.database)
        .chain(manifest.sandboxes.iter().map(|line| &line.file))
        .collect();
    progress
        .files_all
        .store(files.len() as u64, Ordering::Relaxed);
    for file in files {
        check(from, file, progress)?;
        progress.files.fetch_add(1, Ordering::Relaxed);
    }
    let facts = database_facts(&from.join(DATABASE_FILE))?;
    ensure!(
        facts.schema == manifest.schema,
        "the database of the backup has schema version {}, but its manifest says {}",
        facts.schema,
        manifest.schema
    );
    Ok(manifest)
}

fn check(from: &Path, file: &FileLine, progress: &Progress) -> Result<()> {
    let path = Path::new(&file.path);
    let is_plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    ensure!(is_plain, "{:?} is not a path of a backup", file.path);
    let (sha256, bytes) = digest(&from.join(path), progress)
        .with_context(|| format!("{} cannot be read: the backup is incomplete", file.path))?;
    ensure!(
        sha256 == file.sha256 && bytes == file.bytes,
        "{} was changed after the backup was made, or is damaged: its SHA-256 differs from the manifest. \
         Nothing was restored; use another backup",
        file.path
    );
    Ok(())
}

/// Restores a backup into a data directory, which must not exist or must contain nothing but a master key. Blocking.
///
/// # Errors
/// Any failure; the message describes the problem. The data directory then has no database.
pub fn restore(from: &Path, data_dir: &Path, progress: &Progress) -> Result<Restored> {
    let from = from
        .canonicalize()
        .with_context(|| format!("{} cannot be opened", from.display()))?;
    let manifest = verify(&from, progress)?;
    let made = !data_dir.exists();
    let lock = Store::lock(data_dir)?;
    let real = data_dir.canonicalize()?;
    ensure!(
        !real.starts_with(&from) && !from.starts_with(&real),
        "the backup and the data directory contain each other: choose another --data-dir"
    );
    refuse_what_is_there(&real)?;
    require_room(&real, &manifest)?;
    fs::set_permissions(&real, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("{} cannot be made private", real.display()))?;
    let unfinished = real.join(UNFINISHED);
    let filled = fill(&from, &unfinished, &manifest, progress);
    if let Err(error) = filled {
        // Best effort: what remains has no database, so no server starts on it.
        let _ = fs::remove_dir_all(&unfinished);
        if made {
            let _ = fs::remove_file(real.join("lock"));
            let _ = fs::remove_dir(&real);
        }
        return Err(error);
    }
    let moved = || {
        rustix::fs::syncfs(&File::open(&real)?)?;
        fs::rename(unfinished.join(SANDBOXES), real.join(SANDBOXES))?;
        File::open(&real)?.sync_all()?;
        fs::rename(unfinished.join(DATABASE_FILE), real.join(DATABASE_FILE))?;
        Store::mark_restored(&real, &lock)?;
        fs::remove_dir(&unfinished)?;
        File::open(&real)?.sync_all()
    };
    moved().with_context(|| format!("{} cannot be written", real.display()))?;
    Ok(Restored { manifest })
}

fn refuse_what_is_there(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if is_harmless(&name) {
            continue;
        }
        if name == UNFINISHED {
            bail!(
                "{} contains the remains of an interrupted restore: remove {UNFINISHED} and {SANDBOXES} in it, and try again",
                dir.display()
            );
        }
        bail!(
            "{} is not empty (it contains {:?}): a restore requires a new directory, so that nothing is lost. Move the \
             contents away, or choose another --data-dir",
            dir.display(),
            name
        );
    }
    Ok(())
}

fn require_room(dir: &Path, manifest: &Manifest) -> Result<()> {
    let files: u64 = manifest.sandboxes.iter().map(|line| line.file.bytes).sum();
    let needed = manifest
        .database
        .bytes
        .saturating_add(files)
        .saturating_add(ROOM_BYTES_MIN);
    let found = rustix::fs::statvfs(dir).map_err(io::Error::from)?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    ensure!(
        free >= needed,
        "there is not enough space: the backup needs {} MiB, but {} MiB are free",
        needed.div_ceil(1 << 20),
        free >> 20
    );
    Ok(())
}

fn fill(from: &Path, to: &Path, manifest: &Manifest, progress: &Progress) -> Result<()> {
    let private = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
    private(to).and_then(|()| private(&to.join(SANDBOXES)))?;
    let database = to.join(DATABASE_FILE);
    fs::copy(from.join(DATABASE_FILE), &database).context("the database cannot be written")?;
    fs::set_permissions(&database, fs::Permissions::from_mode(0o600))?;
    for line in &manifest.sandboxes {
        let id = SandboxId::parse(&line.id)
            .with_context(|| format!("{:?} is not a sandbox id", line.id))?;
        archive::unpack(
            &from.join(&line.file.path),
            line,
            &to.join(SANDBOXES).join(id.as_str()),
        )
        .with_context(|| format!("the files of {id} cannot be written"))?;
        progress.pass(0)?;
    }
    Ok(())
}
