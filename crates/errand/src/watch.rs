//! Looks, as long as the server runs, whether its store can still do its work: the data directory is the one that was
//! opened, a full disk has room again, a foreign lock is gone, the log of the database has not stayed large.
//!
//! Promised: a data directory that was removed or replaced is noticed within [`ROUND`] and some time for the look; what
//! goes on is logged again at most once in [`REMIND`]. Costs a look at two files in a round, and writes nothing while all
//! is well.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use errand_store::{Store, Trouble};
use tokio_util::sync::CancellationToken;

/// How often it looks.
const ROUND: Duration = Duration::from_secs(2);
/// How often something that goes on is logged.
const REMIND: Duration = Duration::from_secs(60);
/// A disk that takes this much has room. Unit: bytes.
const PROBE_BYTES: usize = 256 * 1024;
/// Less than this, and the next commit may fail. Unit: bytes.
const ROOM_MIN: u64 = 128 * 1024;
/// What the disk is probed with; removed at once.
const PROBE: &str = "room.probe";
/// A log above this is cut off once nobody reads it. Unit: bytes.
const LOG_LARGE: u64 = 96 << 20;

/// Looks until the server drains, or the data directory is lost, of which the store's condition tells.
pub(crate) async fn run(store: Store, draining: CancellationToken) {
    let mut since_reminder = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = draining.cancelled() => return,
        }
        if let Some(why) = look_at_file(&store).await {
            store.lose(&why);
            return;
        }
        look_at_troubles(&store).await;
        look_at_log(&store).await;
        since_reminder += ROUND;
        if since_reminder >= REMIND {
            since_reminder = Duration::ZERO;
            store.condition().remind();
        }
    }
}

async fn look_at_file(store: &Store) -> Option<String> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || store.why_lost())
        .await
        .ok()
        .flatten()
}

async fn look_at_troubles(store: &Store) {
    let condition = store.condition();
    if condition.has(Trouble::Full) {
        let dir = store.dir().to_owned();
        let has_room = tokio::task::spawn_blocking(move || probe(&dir)).await;
        if matches!(has_room, Ok(Ok(()))) {
            condition.is_over(Trouble::Full);
        }
    }
    if condition.has(Trouble::Locked) || condition.has(Trouble::Memory) {
        // Says by itself when it succeeds.
        let _ = store.try_to_write().await;
    }
}

async fn look_at_log(store: &Store) {
    let log = store.dir().join("errand.db-wal");
    let length = tokio::task::spawn_blocking(move || std::fs::metadata(log).map(|log| log.len()));
    if !matches!(length.await, Ok(Ok(length)) if length > LOG_LARGE) {
        return;
    }
    let store = store.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.shrink_log()).await {
        tracing::debug!(%error, "a large log of the database could not be cut off yet");
    }
}

/// Whether the disk takes a little: also where a quota, and not the file system, says how much there is.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(PROBE);
    let mut file = File::create(&path)?;
    let written = file
        .write_all(&vec![b'.'; PROBE_BYTES])
        .and_then(|()| file.sync_data());
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

/// Whether the file system of a directory has no room for the next commits. Blocks for a moment.
pub(crate) fn is_full(dir: &Path) -> bool {
    let Ok(found) = rustix::fs::statvfs(dir) else {
        return false;
    };
    // What is reserved for root is room for root.
    let free = if rustix::process::geteuid().is_root() {
        found.f_bfree
    } else {
        found.f_bavail
    };
    found.f_blocks > 0 && free.saturating_mul(found.f_frsize) < ROOM_MIN
}
