//! Tidies up, at the start and every minute: sandboxes that have expired, and what a crash left on disk that the store
//! does not know.
//!
//! Promised: nothing is removed at once. It is moved to the trash whole, and goes from there a day later. Of what the
//! store does not know, nothing is touched that is in use, that is younger than an hour, that was changed since this
//! start of the program, or that is older than the store itself, since another store left that ([`is_left_over`]). A crash between any two steps leaves what a later round finishes: the row
//! of a sandbox is deleted first, and a directory whose row is deleted is moved whenever it is found.
//!
//! Cheap by where things are: directories of sandboxes are one listing, unfinished writes another. No sandbox is looked
//! into for that. How many bytes sandboxes hold is measured and recorded in bounded portions; see [`bytes`].

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

/// How often it looks: expiry is counted in days.
const ROUND_MS: u64 = 60_000;
/// Most sandboxes of one round's transaction.
const BATCH: u32 = 100;
/// Most sandboxes that are looked up in one read.
const LOOK_UP_MAX: usize = 500;
/// Nothing younger is taken for a leftover. Unit: milliseconds.
const YOUNG_MS: u64 = 3_600_000;

/// Works until the server drains. `started`: when this start of the program began, before it took any request.
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
                "what has expired or was left over could not be moved to the trash; trying again later"
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

/// Why a round was not finished.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("the data directory could not be tidied up")]
    Disk(#[from] io::Error),
}

/// How many things were moved to the trash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moved {
    expired: u64,
    deleted: u64,
    unknown: u64,
    unfinished: u64,
}

impl Janitor {
    /// Each part is tried, whatever became of the others; the first failure is told.
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
                "leftovers were moved to the trash, for a day"
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
                // Used since it was listed: it stays.
                let Some(row) = self.engine.store.mark_sandbox_deleted(&id, now).await? else {
                    continue;
                };
                moved.expired += 1;
                let sandboxes = self.engine.sandboxes.clone();
                let charged = Charged {
                    team: row.team,
                    bytes: row.bytes,
                };
                // Where it fails the next round does it: the row is deleted.
                let discarded = blocking(move || sandboxes.discard(&id, Some(charged), now)).await;
                failed = failed.and(discarded.map(drop));
            }
            if !more || self.engine.draining.is_cancelled() {
                return Ok(failed?);
            }
        }
    }

    /// Directories of sandboxes whose row is deleted, or that never had one. They are listed before their rows are
    /// looked up, and rows come before directories: one that is in use has its row by then.
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

    /// Files of writes and uploads that were cut off. Those under way were begun since this start.
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

/// What the age of a thing is compared with.
#[derive(Clone, Copy)]
struct Ages {
    /// When the store was made.
    store: Timestamp,
    /// When this start of the program began.
    start: Timestamp,
    now: Timestamp,
}

/// Whether a thing that the store does not know was left by an earlier start: it is no younger than an hour, was not
/// changed since this start, and is not older than the store. `changed`: its modification time. By a clock that was set
/// back it looks younger, and stays.
fn is_left_over(changed: Timestamp, ages: Ages) -> bool {
    let Ages { store, start, now } = ages;
    changed >= store && changed < start && changed < now && now.ms_since(changed) >= YOUNG_MS
}

/// When a thing was last modified. None where it is gone.
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

/// A master key that was being made when the program ended: `master.key.….new` in the data directory.
fn is_unfinished_key(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("master.key.") && name.ends_with(".new"))
}

/// Does file work on a thread for that.
async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(act)
        .await
        .unwrap_or_else(|ended| Err(io::Error::other(ended)))
}

#[cfg(test)]
mod tests;
