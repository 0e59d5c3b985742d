//! Detects time that this process missed: it was stopped, the machine slept, or the clock was set forward.
//!
//! Deadlines of steps are wall-clock times, so that they survive a restart. Time that no driver could use must not count
//! toward them. A task reads the clock every second and sees the gap; the dispatcher then moves the deadlines of running
//! steps by the gap, before it fails any run. A gap of a few seconds only means that the machine is busy, and is ignored.

use std::sync::{Arc, Mutex, PoisonError};

use errand_core::time::Timestamp;

use crate::clock::Clock;

/// Interval between two readings of the clock, in milliseconds.
const INTERVAL_MS: u64 = 1_000;
/// Maximum delay of a reading that is still normal, in milliseconds.
const SLACK_MS: u64 = 5_000;

/// Missed time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missed {
    /// The last reading before the gap.
    pub(crate) since: Timestamp,
    pub(crate) ms: u64,
}

/// The readings of the clock. Cheap to clone.
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

    /// Reads the clock at each interval. Never returns.
    pub(crate) async fn run(&self, clock: &Clock) {
        loop {
            clock.sleep_ms(INTERVAL_MS).await;
            self.read(clock.now());
        }
    }

    fn read(&self, now: Timestamp) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.ms_since(state.last);
        if passed > INTERVAL_MS + SLACK_MS {
            let before = state.missed;
            state.missed = Some(Missed {
                since: before.map_or(state.last, |missed| missed.since),
                ms: before.map_or(0, |missed| missed.ms) + passed - INTERVAL_MS,
            });
        }
        state.last = now;
    }

    /// Takes the time that was missed since the last call.
    pub(crate) fn missed(&self, now: Timestamp) -> Option<Missed> {
        self.read(now);
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
    fn a_gap_is_reported_once() {
        let jumps = ClockJumps::new(at(10_000));
        jumps.read(at(11_000));
        // Late, but not a gap.
        assert_eq!(jumps.missed(at(16_000)), None);
        jumps.read(at(17_000));
        jumps.read(at(617_000));
        // A second gap before the first was taken.
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
