//! How far the work has come. Kills and patience go by it, never by time alone: a slow machine does the same as a fast
//! one.

use std::time::Duration;

use tokio::sync::watch;

/// How long nothing may move before what has not ended counts as stuck. A webhook that fails twice is tried again after
/// half a minute; nothing else takes that long.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Steps that are done.
pub(super) struct Progress {
    done: watch::Sender<u64>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            done: watch::Sender::new(0),
        }
    }

    /// One step more.
    pub(super) fn step(&self) {
        self.done.send_modify(|done| *done += 1);
    }

    /// Until so many steps are done.
    pub(super) async fn reaches(&self, steps: u64) {
        // The sender is at hand as long as this waits.
        let _ = self.done.subscribe().wait_for(|done| *done >= steps).await;
    }

    /// Until nothing has moved for [`PATIENCE`].
    pub(super) async fn stands_still(&self) {
        let mut done = self.done.subscribe();
        done.mark_unchanged();
        while tokio::time::timeout(PATIENCE, done.changed()).await.is_ok() {}
    }
}
