//! Whether this program has missed time: it was stopped, the machine slept, or somebody set its clock forward.
//!
//! Deadlines of work stand on the clock of the wall, so that they hold over a restart. What no driver could use is
//! nobody's working time: a jumps that beats each second sees the gap, and the deadlines of the runs at work are moved
//! by it before anything is failed for them. A gap of a few seconds is a busy machine, and none.

use std::sync::{Arc, Mutex, PoisonError};

use errand_core::time::Timestamp;

use crate::clock::Clock;

/// How often it beats.
const BEAT_MS: u64 = 1_000;
/// A beat that is later than this was missed.
const SLACK_MS: u64 = 5_000;

/// Time that was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missed {
    /// The last beat before it.
    pub(crate) since: Timestamp,
    /// How much.
    pub(crate) ms: u64,
}

/// See the module's document.
#[derive(Clone)]
pub(crate) struct ClockJumps {
    state: Arc<Mutex<State>>,
}

struct State {
    last: Timestamp,
    missed: Option<Missed>,
}

impl ClockJumps {
    pub(crate) fn new(now: Timestamp) -> Self {
        let state = State {
            last: now,
            missed: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Beats for ever.
    pub(crate) async fn run(&self, clock: &Clock) {
        loop {
            clock.sleep_ms(BEAT_MS).await;
            self.beat(clock.now());
        }
    }

    fn beat(&self, now: Timestamp) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.ms_since(state.last);
        if passed > BEAT_MS + SLACK_MS {
            let before = state.missed;
            state.missed = Some(Missed {
                since: before.map_or(state.last, |missed| missed.since),
                ms: before.map_or(0, |missed| missed.ms) + passed - BEAT_MS,
            });
        }
        state.last = now;
    }

    /// What was missed since it was last asked: once.
    pub(crate) fn missed(&self, now: Timestamp) -> Option<Missed> {
        self.beat(now);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.missed.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn a_gap_is_told_once_and_a_busy_machine_is_none() {
        let jumps = ClockJumps::new(at(10_000));
        jumps.beat(at(11_000));
        // Late, but no pause.
        assert_eq!(jumps.missed(at(16_000)), None);
        jumps.beat(at(17_000));
        jumps.beat(at(617_000));
        // Another one before anybody asked.
        let missed = Missed {
            since: at(17_000),
            ms: 599_000 + 99_000,
        };
        assert_eq!(jumps.missed(at(717_000)), Some(missed));
        assert_eq!(jumps.missed(at(718_000)), None);
    }

    #[test]
    fn a_clock_that_is_set_back_misses_nothing() {
        let jumps = ClockJumps::new(at(10_000_000));
        assert_eq!(jumps.missed(at(1_000)), None);
        assert_eq!(jumps.missed(at(2_000)), None);
    }
}
