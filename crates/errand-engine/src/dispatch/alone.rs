//! Drives a run alone if it is suspected of crashing the server, so that a crash affects no other run.
//!
//! # Guarantees
//!
//! A suspect is claimed when no other run is driven. Until it has committed a step, no other run is claimed. Both waits
//! are bounded, so that a long command does not block other runs for long.

use std::collections::VecDeque;

use errand_core::time::Timestamp;
use errand_store::model::ReadyRun;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Maximum time that other runs delay a suspect, and that a suspect delays other runs, in milliseconds. Most steps are
/// shorter.
const WAIT_MS_MAX: u64 = 30_000;

/// The suspects that wait, and the one that is driven.
#[derive(Default)]
pub(super) struct Alone {
    waiting: VecDeque<ReadyRun>,
    /// When to stop waiting for the runs that are driven now.
    drains_until: Option<Timestamp>,
    driven: Option<Driven>,
}

struct Driven {
    /// Canceled when the run has committed a step, or its driver has ended.
    committed: CancellationToken,
    until: Timestamp,
}

impl Alone {
    /// Adds runs that must be driven alone.
    pub(super) fn wait_for(&mut self, suspects: Vec<ReadyRun>, now: Timestamp) {
        for suspect in suspects {
            if !self.waiting.iter().any(|run| run.run == suspect.run) {
                self.waiting.push_back(suspect);
            }
        }
        if !self.waiting.is_empty() && self.drains_until.is_none() {
            self.drains_until = Some(now.plus_ms(WAIT_MS_MAX));
        }
    }

    /// Whether the next suspect may be claimed now. `idle`: no run is driven.
    pub(super) fn take_turn(&mut self, idle: bool, now: Timestamp) -> bool {
        let is_over = |driven: &Driven| driven.committed.is_cancelled() || driven.until <= now;
        if self.driven.as_ref().is_some_and(is_over) {
            self.driven = None;
            self.drains_until = (!self.waiting.is_empty()).then(|| now.plus_ms(WAIT_MS_MAX));
        }
        let drained = idle || self.drains_until.is_some_and(|until| until <= now);
        self.driven.is_none() && !self.waiting.is_empty() && drained
    }

    /// Whether other runs must not be claimed.
    pub(super) fn blocks_others(&self) -> bool {
        self.driven.is_some() || !self.waiting.is_empty()
    }

    /// Removes and returns the suspect that has waited the longest.
    pub(super) fn next(&mut self) -> Option<ReadyRun> {
        let next = self.waiting.pop_front();
        if self.waiting.is_empty() {
            self.drains_until = None;
        }
        next
    }

    /// Records that a suspect is driven from now on. The caller cancels the returned token once the run has committed a
    /// step, or its driver has ended.
    pub(super) fn begin(&mut self, now: Timestamp) -> CancellationToken {
        let committed = CancellationToken::new();
        self.driven = Some(Driven {
            committed: committed.clone(),
            until: now.plus_ms(WAIT_MS_MAX),
        });
        committed
    }

    /// Waits until one of the two waits is over.
    pub(super) async fn changes(&self, clock: &Clock) {
        match (&self.driven, self.drains_until) {
            (Some(driven), _) => tokio::select! {
                () = driven.committed.cancelled() => {}
                () = clock.sleep_until(driven.until) => {}
            },
            (None, Some(until)) => clock.sleep_until(until).await,
            (None, None) => std::future::pending().await,
        }
    }
}
