//! A circuit breaker for each receiver of each team, in memory.
//!
//! # Guarantees
//!
//! After [`TIMEOUTS_MAX`] timeouts in a row, a receiver gets one probe at a time until it answers. A receiver that has not
//! answered since the start gets at most an eighth of the slots, so that dead receivers cannot take all slots after a
//! start. A receiver that answers is limited by its fair share alone.
//!
//! The state is per team: failures of one team's address do not affect another team's deliveries to the same host.
//!
//! Any status is an answer, because a receiver that refuses is quick and does not hold its slot.

use std::collections::HashMap;
use std::sync::Arc;

use errand_store::Receiver;

use crate::webhook::Attempt;

/// Number of timeouts in a row after which a receiver gets one probe at a time.
const TIMEOUTS_MAX: u32 = 3;
/// Maximum number of receivers in memory. Beyond that, those that answer are forgotten first and count as unknown again.
const REMEMBERED_MAX: usize = 4_096;

/// What an attempt shows about its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// It answered, with any status.
    Answered,
    /// It held its slot until the time was over.
    TimedOut,
    /// There was no connection, and the slot was not held for long.
    Neither,
}

impl Sign {
    pub(super) fn of(attempt: &Attempt) -> Self {
        match attempt.status {
            Some(_) => Self::Answered,
            None if attempt.timed_out => Self::TimedOut,
            None => Self::Neither,
        }
    }
}

/// The state of each receiver since the start.
pub(super) struct Receivers {
    slots: usize,
    seen: HashMap<Receiver, Seen>,
    /// Maximum number of attempts in flight for each known receiver; shared with reads in progress.
    most: Arc<HashMap<Receiver, usize>>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    has_answered: bool,
    /// Timeouts in a row, up to the last attempt.
    timeouts: u32,
}

impl Receivers {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots: slots.max(1),
            seen: HashMap::new(),
            most: Arc::default(),
        }
    }

    /// Maximum number of attempts in flight for a receiver that has not answered yet.
    pub(super) fn unknown_max(&self) -> usize {
        (self.slots / 8).max(1)
    }

    /// Maximum number of attempts in flight for each known receiver.
    pub(super) fn known(&self) -> Arc<HashMap<Receiver, usize>> {
        Arc::clone(&self.most)
    }

    fn most_of(&self, seen: Seen) -> usize {
        if seen.timeouts >= TIMEOUTS_MAX {
            1
        } else if seen.has_answered {
            self.slots
        } else {
            self.unknown_max()
        }
    }

    /// Records the end of an attempt.
    pub(super) fn record(&mut self, receiver: Receiver, sign: Sign) {
        if self.seen.len() >= REMEMBERED_MAX && !self.seen.contains_key(&receiver) {
            self.forget();
        }
        let mut seen = self.seen.get(&receiver).copied().unwrap_or_default();
        match sign {
            Sign::Answered => {
                seen = Seen {
                    has_answered: true,
                    timeouts: 0,
                };
            }
            Sign::TimedOut => seen.timeouts = seen.timeouts.saturating_add(1),
            Sign::Neither => seen.timeouts = 0,
        }
        let most = self.most_of(seen);
        if self.most.get(&receiver) != Some(&most) {
            Arc::make_mut(&mut self.most).insert(receiver.clone(), most);
        }
        self.seen.insert(receiver, seen);
    }

    fn forget(&mut self) {
        self.seen.retain(|_, seen| seen.timeouts > 0);
        if self.seen.len() >= REMEMBERED_MAX {
            self.seen.clear();
        }
        let seen = &self.seen;
        Arc::make_mut(&mut self.most).retain(|receiver, _| seen.contains_key(receiver));
    }
}

#[cfg(test)]
mod tests {
    use errand_core::id::IdGen;
    use errand_core::time::Timestamp;

    use super::*;

    fn receiver(name: &str) -> Receiver {
        let team = IdGen::new([1; 32]).team(Timestamp::from_millis(1));
        (team, name.to_owned())
    }

    #[test]
    fn timeouts_in_a_row_leave_one_probe_until_an_answer() {
        let mut receivers = Receivers::new(32);
        let dead = receiver("https://dead.example");
        let most = |receivers: &Receivers| receivers.known().get(&dead).copied();
        assert_eq!((most(&receivers), receivers.unknown_max()), (None, 4));
        for most_now in [4, 4, 1, 1] {
            receivers.record(dead.clone(), Sign::TimedOut);
            assert_eq!(most(&receivers), Some(most_now));
        }
        receivers.record(dead.clone(), Sign::Answered);
        assert_eq!(most(&receivers), Some(32));
        receivers.record(dead.clone(), Sign::TimedOut);
        assert_eq!(most(&receivers), Some(32));
    }

    #[test]
    fn memory_is_bounded() {
        let mut receivers = Receivers::new(32);
        for sign in [Sign::Answered, Sign::TimedOut] {
            for n in 0..2 * REMEMBERED_MAX {
                receivers.record(receiver(&format!("{sign:?}{n}")), sign);
                assert!(receivers.seen.len() <= REMEMBERED_MAX);
            }
        }
    }
}
