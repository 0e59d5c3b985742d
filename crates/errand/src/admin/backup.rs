//! Backups by the running server, requested by an operator on its machine.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::time::Timestamp;
use errand_sandbox::Changes;
use serde::{Deserialize, Serialize};

use super::{Admin, AdminAnswer, AdminError};
use crate::backup::{Made, Progress, Source, make};

/// Maximum number of sandboxes with running commands that are listed.
const NAMED_MAX: usize = 20;

/// The state of a server for backups.
#[derive(Default)]
pub(super) struct Backups {
    /// Coordinates with changes of files. `None` if no server runs on the store.
    pub(super) changes: Option<Changes>,
    /// The progress of the running backup.
    pub(super) under_way: Mutex<Option<Arc<Progress>>>,
}

/// A complete backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupLine {
    pub dir: PathBuf,
    /// The point in time of the backup.
    pub taken_at: Timestamp,
    /// Schema version of its database.
    pub schema: i64,
    /// Number of sandboxes with files.
    pub sandboxes: u64,
    /// Total size.
    pub bytes: u64,
    /// Number of sandbox entries that were left out: pipes, sockets, devices, paths that are too long.
    pub left_out: u64,
    /// The first sandboxes in which a command was running while they were saved.
    pub command_was_running: Vec<String>,
    /// Ids of the master keys that are required to use it.
    pub master_key_ids: Vec<String>,
}

impl From<Made> for BackupLine {
    fn from(made: Made) -> Self {
        let Made { dir, manifest } = made;
        let lines = &manifest.sandboxes;
        let files: u64 = lines.iter().map(|line| line.file.bytes).sum();
        Self {
            dir,
            taken_at: manifest.taken_at,
            schema: manifest.schema,
            sandboxes: lines.len() as u64,
            bytes: manifest.database.bytes + files,
            left_out: lines.iter().map(|line| line.left_out).sum(),
            command_was_running: lines
                .iter()
                .filter(|line| line.command_was_running)
                .map(|line| line.id.clone())
                .take(NAMED_MAX)
                .collect(),
            master_key_ids: manifest.master_key_ids,
        }
    }
}

/// Cancels a backup when its caller disconnects.
struct UnderWay<'a> {
    backups: &'a Backups,
    progress: Arc<Progress>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.progress.call_off();
        *self.backups.lock() = None;
    }
}

impl Backups {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Progress>>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admin {
    pub(super) async fn back_up(&self, dir: PathBuf) -> Result<AdminAnswer, AdminError> {
        let bad = |text: String| AdminError::Bad(text);
        let Some(changes) = self.backups.changes.clone() else {
            return Err(bad("no server runs on this store".to_owned()));
        };
        if !dir.is_absolute() {
            return Err(bad(
                "the path of the backup's directory must be absolute".to_owned()
            ));
        }
        let progress = Arc::new(Progress::default());
        {
            let mut under_way = self.backups.lock();
            if under_way.is_some() {
                return Err(bad(
                    "another backup is in progress; wait for its end".to_owned()
                ));
            }
            *under_way = Some(Arc::clone(&progress));
        }
        let under_way = UnderWay {
            backups: &self.backups,
            progress: Arc::clone(&progress),
        };
        let source = Source {
            data_dir: self.store.dir().to_owned(),
            changes,
            clock: self.clock.clone(),
        };
        let shown = dir.clone();
        tracing::info!(dir = %shown.display(), "a backup has started");
        let made = tokio::task::spawn_blocking(move || make(&source, &dir, &progress)).await;
        drop(under_way);
        match made {
            Ok(Ok(made)) => {
                tracing::info!(dir = %shown.display(), taken_at = %made.manifest.taken_at, "a backup is complete");
                Ok(AdminAnswer::BackedUp {
                    backup: made.into(),
                })
            }
            Ok(Err(error)) => {
                let error = format!("{error:#}");
                tracing::warn!(dir = %shown.display(), error, "a backup has failed");
                Err(bad(error))
            }
            Err(_) => Err(bad("the backup was interrupted".to_owned())),
        }
    }

    pub(super) fn backup_progress(&self) -> AdminAnswer {
        let under_way = self.backups.lock();
        AdminAnswer::BackupProgress {
            progress: under_way.as_ref().map(|progress| progress.line()),
        }
    }
}
