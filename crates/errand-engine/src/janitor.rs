//! The janitor: moves expired sandboxes, and what a crash left on disk, to the trash. It runs at the start and every
//! minute.
//!
//! # Guarantees
//!
//! Nothing is removed at once: items go to the trash as a whole, and are removed a day later. An item that the store does
//! not know is touched only if it is at least an hour old, has not changed since this start, and is not older than the
//! store itself, because then another store left it ([`is_left_over`]).
//!
//! A crash between any two steps leaves work that a later round finishes: the row of a sandbox is deleted first, and a
//! directory without a row is moved whenever it is found.
//!
//! A round is cheap. It lists the directory of sandboxes and that of unfinished writes, and looks into no sandbox. Sizes
//! are measured in bounded portions; see [`bytes`].

mod bytes;

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use errand_core::time::Timestamp;
use errand_sandbox::Charged;
use errand_store::{SandboxFate, StoreError};

use self::bytes::Sweep;
use crate::context::EngineContext;
use crate::sandboxes::names_in;

/// Pause between two rounds, in milliseconds. Expiry is counted in days, so a minute is short enough.
const ROUND_MS: u64 = 60_000;
/// Maximum number of expired sandboxes that one query returns.
const BATCH: u32 = 100;
/// Maximum number of sandboxes that one read looks up.
const LOOK_UP_MAX: usize = 500;
/// Minimum age of a leftover, in milliseconds.
const YOUNG_MS: u64 = 3_600_000;

/// Runs until the server drains. `started`: when this process started, before it accepted any request.
pub(crate) async fn run(engine: EngineContext, started: Timestamp) {
    let janitor = Janitor {
        engine,
        started,
        sweep: Sweep::default(),
    };
    while !janitor.engine.draining.is_cancelled() {
        if let Err(error) = janitor.round().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "expired sandboxes or leftovers could not be moved to the trash; trying again later"
            );
        }
        tokio::select! {
            () = janitor.engine.clock.sleep_ms(ROUND_MS) => {}
            () = janitor.engine.draining.cancelled() => {}
        }
    }
}

struct Janitor {
    engine: EngineContext,
    started: Timestamp,
    sweep: Sweep,
}

/// Why a round did not finish.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("the data directory could not be cleaned up")]
    Disk(#[from] io::Error),
}

/// Number of items that a round moved to the trash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moved {
    expired: u64,
    deleted: u64,
    unknown: u64,
    unfinished: u64,
}

impl Janitor {
    /// Tries each part, even if others fail. Returns the first failure.
    async fn round(&self) -> Result<Moved, RoundError> {
        let now = self.engine.clock.now();
        let mut moved = Moved::default();
        let parts = [
            self.expire(now, &mut moved).await,
            self.sandboxes_left_over(now, &mut moved).await,
            self.files_left_over(now, &mut moved).await,
            self.empty_trash(now).await,
            self.count_bytes().await,
        ];
        if moved.unknown + moved.deleted + moved.unfinished > 0 {
            tracing::info!(
                sandboxes_unknown = moved.unknown,
                sandboxes_deleted = moved.deleted,
                writes_unfinished = moved.unfinished,
                "leftovers were moved to the trash for a day"
            );
        }
        parts.into_iter().collect::<Result<(), _>>().map(|()| moved)
    }

    async fn expire(&self, now: Timestamp, moved: &mut Moved) -> Result<(), RoundError> {
        let mut failed = Ok(());
        loop {
            let expired = self.engine.store.expired_sandboxes(now, BATCH).await?;
            let more = expired.len() >= BATCH as usize;
            for id in expired {
                // It was used since it was listed, so it stays.
                let Some(row) = self.engine.store.mark_sandbox_deleted(&id, now).await? else {
                    continue;
                };
                moved.expired += 1;
                let sandboxes = self.engine.sandboxes.clone();
                let charged = Charged {
                    team: row.team,
                    bytes: row.bytes,
                };
                // If this fails, a later round finds the directory without a row.
                let discarded = blocking(move || sandboxes.discard(&id, Some(charged), now)).await;
                failed = failed.and(discarded.map(drop));
            }
            if !more || self.engine.draining.is_cancelled() {
                return Ok(failed?);
            }
        }
    }

    /// Removes directories of sandboxes without a row. Directories are listed before their rows are looked up, and a row is
    /// written before its directory is created. So a sandbox in use has its row by then.
    async fn sandboxes_left_over(
        &self,
        now: Timestamp,
        moved: &mut Moved,
    ) -> Result<(), RoundError> {
        let sandboxes = self.engine.sandboxes.clone();
        let ages = self.ages(now).await?;
        let on_disk = blocking(move || sandboxes.list()).await?;
        let mut failed = Ok(());
        for some in on_disk.chunks(LOOK_UP_MAX) {
            for (id, fate) in self.engine.store.sandbox_fates(some.to_vec()).await? {
                let count = match fate {
                    SandboxFate::Kept => continue,
                    SandboxFate::Deleted => &mut moved.deleted,
                    SandboxFate::Unknown => &mut moved.unknown,
                };
                let sandboxes = self.engine.sandboxes.clone();
                let discarded = blocking(move || {
                    let goes = fate == SandboxFate::Deleted
                        || changed_at(&sandboxes.path_of(&id))?
                            .is_some_and(|changed| is_left_over(changed, ages));
                    Ok(goes && sandboxes.discard(&id, None, now)?)
                });
                match discarded.await {
                    Ok(was_moved) => *count += u64::from(was_moved),
                    Err(error) => failed = failed.and(Err(error)),
                }
            }
            if self.engine.draining.is_cancelled() {
                break;
            }
        }
        Ok(failed?)
    }

    /// Removes files of interrupted writes and uploads. Those in progress began after this start and are younger.
    async fn files_left_over(&self, now: Timestamp, moved: &mut Moved) -> Result<(), RoundError> {
        let (sandboxes, ages) = (self.engine.sandboxes.clone(), self.ages(now).await?);
        let data_dir = self.engine.store.dir().to_owned();
        let (count, failed) = blocking(move || {
            let mut left = sandboxes.list_unfinished()?;
            left.extend(
                names_in(&data_dir)?
                    .into_iter()
                    .filter(|path| is_unfinished_key(path)),
            );
            let (mut count, mut failed) = (0, Ok(()));
            for path in left {
                let taken = changed_at(&path).and_then(|changed| {
                    if !changed.is_some_and(|changed| is_left_over(changed, ages)) {
                        return Ok(false);
                    }
                    Ok(sandboxes.trash().take(&path, now)?.is_some())
                });
                match taken {
                    Ok(was_moved) => count += u64::from(was_moved),
                    Err(error) => failed = failed.and(Err(error)),
                }
            }
            Ok((count, failed))
        })
        .await?;
        moved.unfinished += count;
        Ok(failed?)
    }

    async fn ages(&self, now: Timestamp) -> Result<Ages, RoundError> {
        Ok(Ages {
            store: self.engine.store.created_at().await?,
            start: self.started,
            now,
        })
    }

    async fn empty_trash(&self, now: Timestamp) -> Result<(), RoundError> {
        let (sandboxes, draining) = (self.engine.sandboxes.clone(), self.engine.draining.clone());
        let emptied =
            blocking(move || sandboxes.trash().empty(now, || draining.is_cancelled())).await?;
        if emptied.removed > 0 {
            tracing::info!(removed = emptied.removed, "the trash was emptied");
        }
        emptied.failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The times that the age of an item is compared with.
#[derive(Clone, Copy)]
struct Ages {
    /// When the store was created.
    store: Timestamp,
    /// When this process started.
    start: Timestamp,
    now: Timestamp,
}

/// Whether an item that the store does not know was left behind by an earlier process: it is at least an hour old, has not
/// changed since this start, and is not older than the store. `changed`: its modification time. If the clock was set
/// back, an item looks younger and is kept.
fn is_left_over(changed: Timestamp, ages: Ages) -> bool {
    let Ages { store, start, now } = ages;
    changed >= store && changed < start && changed < now && now.ms_since(changed) >= YOUNG_MS
}

/// The modification time of an item; `None` if it does not exist.
fn changed_at(path: &Path) -> io::Result<Option<Timestamp>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(Timestamp::from_millis(
            found
                .mtime()
                .saturating_mul(1000)
                .saturating_add(found.mtime_nsec() / 1_000_000),
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file is a new master key that was not complete when the process ended: `master.key.….new` in the data
/// directory.
fn is_unfinished_key(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("master.key.") && name.ends_with(".new"))
}

/// Runs file operations on a thread that may block.
async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(operation)
        .await
        .unwrap_or_else(|ended| Err(io::Error::other(ended)))
}

#[cfg(test)]
mod tests;
