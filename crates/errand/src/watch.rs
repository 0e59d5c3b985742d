//! Checks, while the server runs, whether its store can still work: that the data directory is the one that was opened,
//! and whether a full disk has room again, a foreign lock is gone, and the write-ahead log has stayed large.
//!
//! Guarantees: a removed or replaced data directory is noticed within [`ROUND`] and the duration of a check. A
//! condition that persists is logged again at most once per [`REMIND`]. A round reads the metadata of two files, and
//! writes nothing while all is well.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use errand_store::{Store, Trouble};
use tokio_util::sync::CancellationToken;

/// Interval between checks.
const ROUND: Duration = Duration::from_secs(2);
/// Minimum interval between log lines about the same condition.
const REMIND: Duration = Duration::from_secs(60);
/// Size in bytes of the file that probes whether the disk has room.
const PROBE_BYTES: usize = 256 * 1024;
/// Free space in bytes below which the next commit may fail.
const ROOM_MIN: u64 = 128 * 1024;
/// Name of the probe file, which is removed immediately.
const PROBE: &str = "room.probe";
/// Size in bytes above which the write-ahead log is truncated once nothing reads it.
const LOG_LARGE: u64 = 96 << 20;

/// Checks until the server drains, or until the data directory is lost, which the store's condition reports.
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
        // Logs a success by itself.
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
        tracing::debug!(%error, "the database's large write-ahead log could not be truncated yet");
    }
}

/// Writes a small file to find out whether the disk has room. This also notices quotas, which the file system's free
/// space does not show.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(PROBE);
    let mut file = File::create(&path)?;
    let written = file
        .write_all(&vec![b'.'; PROBE_BYTES])
        .and_then(|()| file.sync_data());
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

/// Whether the file system of a directory has too little room for the next commits. Blocks briefly.
pub(crate) fn is_full(dir: &Path) -> bool {
    let Ok(found) = rustix::fs::statvfs(dir) else {
        return false;
    };
    // Only root can use the reserved blocks.
    let free = if rustix::process::geteuid().is_root() {
        found.f_bfree
    } else {
        found.f_bavail
    };
    found.f_blocks > 0 && free.saturating_mul(found.f_frsize) < ROOM_MIN
}
