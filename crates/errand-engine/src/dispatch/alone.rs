//! Which run is driven alone: one that may be what ends the program, so that it takes no other down with it.
//!
//! Guarantees: while such a run is driven and has not committed a step, no other run is claimed, and it is claimed when no
//! other is driven. Both waits are bounded, so that a long command holds nobody up for long.

use std::collections::VecDeque;

use errand_core::time::Timestamp;
use errand_store::model::ReadyRun;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// How long the others may hold a suspect run up, and it them. Unit: milliseconds.
const WAIT_MS_MAX: u64 = 30_000;

/// See the module's document.
#[derive(Default)]
pub(super) struct Alone {
    waiting: VecDeque<ReadyRun>,
    /// Until when the runs that are driven are waited for.
    drains_until: Option<Timestamp>,
    driven: Option<Driven>,
}

/// A run that is driven alone.
struct Driven {
    /// Cancelled when it has committed a step, or its driver has ended.
    committed: CancellationToken,
    until: Timestamp,
}

impl Alone {
    /// These are to be driven alone.
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

    /// Whether the next one's turn has come. `idle`: no run is driven.
    pub(super) fn take_turn(&mut self, idle: bool, now: Timestamp) -> bool {
        let is_over = |driven: &Driven| driven.committed.is_cancelled() || driven.until <= now;
        if self.driven.as_ref().is_some_and(is_over) {
            self.driven = None;
            self.drains_until = (!self.waiting.is_empty()).then(|| now.plus_ms(WAIT_MS_MAX));
        }
        let drained = idle || self.drains_until.is_some_and(|until| until <= now);
        self.driven.is_none() && !self.waiting.is_empty() && drained
    }

    /// Whether no other run is claimed.
    pub(super) fn keeps_others(&self) -> bool {
        self.driven.is_some() || !self.waiting.is_empty()
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<ReadyRun> {
        let next = self.waiting.pop_front();
        if self.waiting.is_empty() {
            self.drains_until = None;
        }
        next
    }

    /// It is driven from now on. What is returned is to be cancelled once it has committed a step, or has ended.
    pub(super) fn begin(&mut self, now: Timestamp) -> CancellationToken {
        let committed = CancellationToken::new();
        self.driven = Some(Driven {
            committed: committed.clone(),
            until: now.plus_ms(WAIT_MS_MAX),
        });
        committed
    }

    /// Until a wait is over.
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
