//! Makes a backup of a running server's data, or of a stopped one's.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use errand_core::id::SandboxId;
use errand_engine::clock::Clock;
use errand_sandbox::{Backup, Changes};
use errand_store::{DATABASE_FILE, DatabaseFacts, Snapshot};

use super::{
    COMMANDS_WAIT, FORMAT, FileLine, MANIFEST, MANIFEST_SUM, Manifest, Progress, SANDBOXES,
    SandboxLine, archive, digest, sum_line,
};

/// The source of a backup.
#[derive(Clone)]
pub struct Source {
    /// The data directory. This program must hold its lock.
    pub data_dir: PathBuf,
    /// Coordinates with changes of files during the backup.
    pub changes: Changes,
    pub clock: Clock,
}

/// A complete backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub dir: PathBuf,
    pub manifest: Manifest,
}

/// The sandboxes that are saved so far, by the backup itself or by threads that wanted to change files.
#[derive(Default)]
struct Saved {
    lines: HashMap<SandboxId, SandboxLine>,
    failed: Option<io::Error>,
}

fn lock(saved: &Mutex<Saved>) -> MutexGuard<'_, Saved> {
    saved.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a backup in `target`, which must not exist or must be empty. Blocking.
///
/// # Errors
/// Any failure; the message describes the problem. Everything that was written is removed.
pub fn make(source: &Source, target: &Path, progress: &Arc<Progress>) -> Result<Made> {
    let target = std::path::absolute(target).context("the target path is invalid")?;
    let made_here = prepare(&source.data_dir, &target)?;
    let made = fill(source, &target, progress);
    if made.is_err() {
        // If something cannot be removed, the missing manifest shows that the backup is incomplete.
        for name in [DATABASE_FILE, MANIFEST, MANIFEST_SUM] {
            let _ = fs::remove_file(target.join(name));
        }
        let _ = fs::remove_dir_all(target.join(SANDBOXES));
        if made_here {
            let _ = fs::remove_dir(&target);
        }
    }
    made
}

/// Prepares the target directory. Returns whether it was created.
fn prepare(data_dir: &Path, target: &Path) -> Result<bool> {
    let shown = target.display();
    let data_dir = data_dir
        .canonicalize()
        .with_context(|| format!("{} cannot be opened", data_dir.display()))?;
    let made = match fs::DirBuilder::new().mode(0o700).create(target) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => {
            return Err(error).with_context(|| format!("{shown} cannot be created by this user"));
        }
    };
    let checked = || {
        let real = target.canonicalize()?;
        ensure!(
            !real.starts_with(&data_dir) && !data_dir.starts_with(&real),
            "{shown} is inside the data directory, or contains it: choose another directory, preferably on another disk"
        );
        ensure!(
            fs::read_dir(&real)
                .with_context(|| format!("{shown} cannot be opened"))?
                .next()
                .is_none(),
            "{shown} is not empty: a backup needs its own directory, such as {shown}/DATE"
        );
        // Anybody who can read the backup can read everything except the secrets.
        fs::set_permissions(&real, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("{shown} cannot be made private"))
    };
    let checked = checked();
    if checked.is_err() && made {
        let _ = fs::remove_dir(target);
    }
    checked.map(|()| made)
}

fn fill(source: &Source, target: &Path, progress: &Arc<Progress>) -> Result<Made> {
    private_dir(&target.join(SANDBOXES))?;
    let armed = source
        .changes
        .arm()
        .context("another backup is in progress; wait for its end")?;
    // Between these two statements no file changes. Changes that are blocked here wait for milliseconds.
    let snapshot = Snapshot::of(&source.data_dir)?;
    let taken_at = source.clock.now();
    let saved = Arc::new(Mutex::new(Saved::default()));
    let sandboxes = source.data_dir.join(SANDBOXES);
    armed.open({
        let (saved, target, progress) =
            (Arc::clone(&saved), target.to_owned(), Arc::clone(progress));
        Arc::new(move |id: &SandboxId, command_runs: bool| {
            let path = format!("{SANDBOXES}/{id}.tar");
            let from = sandboxes.join(id.as_str());
            let line = archive::save(&from, id.as_str(), (&target, path), command_runs, &progress);
            let mut saved = lock(&saved);
            match line {
                Ok(Some(line)) => drop(saved.lines.insert(id.clone(), line)),
                Ok(None) => {}
                Err(error) => {
                    saved.failed.get_or_insert(error);
                }
            }
        })
    });
    let database = target.join(DATABASE_FILE);
    let facts = snapshot.write_to(&database, &mut |pages, all| {
        progress.pages.store(pages, Ordering::Relaxed);
        progress.pages_all.store(all, Ordering::Relaxed);
        !progress.is_called_off()
    })?;
    save_all(&armed, &facts, &saved, progress)?;
    drop(armed);
    finish(source, target, (taken_at, facts), &saved, progress)
}

/// Saves the sandboxes. Those with running commands come last.
fn save_all(
    armed: &Backup,
    facts: &DatabaseFacts,
    saved: &Mutex<Saved>,
    progress: &Progress,
) -> Result<()> {
    progress
        .files_all
        .store(facts.sandboxes.len() as u64, Ordering::Relaxed);
    let failed = || match lock(saved).failed.take() {
        Some(error) => Err(error).context("the files of a sandbox cannot be copied"),
        None => Ok(()),
    };
    let (busy, quiet): (Vec<_>, Vec<_>) = facts.sandboxes.iter().partition(|id| armed.is_busy(id));
    let now = Instant::now();
    for id in quiet {
        armed.save(id, now);
        progress.files.fetch_add(1, Ordering::Relaxed);
        failed()?;
    }
    let deadline = Instant::now() + COMMANDS_WAIT;
    for id in busy {
        armed.save(id, deadline);
        progress.files.fetch_add(1, Ordering::Relaxed);
        failed()?;
    }
    if progress.is_called_off() {
        bail!("the backup was canceled");
    }
    Ok(())
}

fn finish(
    source: &Source,
    target: &Path,
    (taken_at, facts): (errand_core::time::Timestamp, DatabaseFacts),
    saved: &Mutex<Saved>,
    progress: &Progress,
) -> Result<Made> {
    let mut lines = std::mem::take(&mut lock(saved).lines);
    let of_snapshot: HashSet<&SandboxId> = facts.sandboxes.iter().collect();
    // Sandboxes that were created after the point in time.
    for later in lines.keys().filter(|id| !of_snapshot.contains(id)) {
        fs::remove_file(target.join(format!("{SANDBOXES}/{later}.tar")))?;
    }
    let sandboxes = facts
        .sandboxes
        .iter()
        .filter_map(|id| lines.remove(id))
        .collect();
    let (sha256, bytes) = digest(&target.join(DATABASE_FILE), progress)?;
    let manifest = Manifest {
        format: FORMAT,
        errand_version: env!("CARGO_PKG_VERSION").to_owned(),
        schema: facts.schema,
        taken_at,
        finished_at: source.clock.now(),
        master_key_ids: facts.key_ids,
        database: FileLine {
            path: DATABASE_FILE.to_owned(),
            bytes,
            sha256,
        },
        sandboxes,
    };
    let synced = || {
        let dir = File::open(target)?;
        // One call syncs all files, instead of one per file.
        rustix::fs::syncfs(&dir)?;
        let mut text = serde_json::to_vec_pretty(&manifest)?;
        text.push(b'\n');
        write_synced(&target.join(MANIFEST), &text)?;
        write_synced(&target.join(MANIFEST_SUM), sum_line(&text).as_bytes())?;
        dir.sync_all()?;
        // Sync the directory that contains the backup's name.
        let above = target.parent().unwrap_or(Path::new("/"));
        File::open(above)?.sync_all()
    };
    synced().with_context(|| {
        format!(
            "the backup in {} cannot be synced to disk",
            target.display()
        )
    })?;
    Ok(Made {
        dir: target.to_owned(),
        manifest,
    })
}

fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| format!("{} cannot be created", path.display()))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Whether an existing entry in the target directory does not prevent a restore.
pub(super) fn is_harmless(name: &OsStr) -> bool {
    ["master.key", "lock", "lost+found"]
        .iter()
        .any(|harmless| name == *harmless)
}
