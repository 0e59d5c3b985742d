//! Counts the progress of the work. Kills and timeouts depend on it, so that slow machines behave like fast ones.

use std::time::Duration;

use tokio::sync::watch;

/// Time without any progress after which unfinished runs count as stuck. A webhook that fails twice is retried after
/// half a minute; nothing else takes that long.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Number of completed steps.
pub(super) struct Progress {
    done: watch::Sender<u64>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            done: watch::Sender::new(0),
        }
    }

    pub(super) fn step(&self) {
        self.done.send_modify(|done| *done += 1);
    }

    /// Waits until `steps` steps are done.
    pub(super) async fn reaches(&self, steps: u64) {
        // The sender lives at least as long as this future.
        let _ = self.done.subscribe().wait_for(|done| *done >= steps).await;
    }

    /// Waits until there was no progress for [`PATIENCE`].
    pub(super) async fn stalls(&self) {
        let mut done = self.done.subscribe();
        done.mark_unchanged();
        while tokio::time::timeout(PATIENCE, done.changed()).await.is_ok() {}
    }
}
