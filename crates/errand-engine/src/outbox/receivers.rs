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
//! An attempt that waits for its answer for a second gives its slot back and waits beside the slots, as do all attempts
//! on receivers that did not answer before. So dead receivers, however many a team has, hold its slots for a second at
//! most, and one that answers gets one within a second or two, even if nothing is known of it yet. Four times as many
//! attempts as there are slots can wait beside them; when these are used up, receivers that did not answer before get
//! none, and the other attempts keep their slots.
//!
//! Any status is an answer, because a receiver that refuses is quick and does not hold its slot.

use std::collections::HashMap;
use std::sync::Arc;

use errand_core::fair::reserve_of;
use errand_store::{DeliverySlots, Receiver};

use crate::webhook::Attempt;

/// Number of timeouts in a row after which a receiver gets one probe at a time.
const TIMEOUTS_MAX: u32 = 3;
/// This many times the slots can wait for their answers beside them.
const BESIDE_TIMES: usize = 4;
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
    /// Attempts that wait beside the slots.
    beside: DeliverySlots,
    /// Most more at once, for each that is not unknown or has attempts beside the slots. Shared with the reads that are
    /// under way.
    most: Arc<HashMap<Receiver, usize>>,
    /// Equal to `most`, but 0 for silent receivers, for use while nothing more can wait beside the slots.
    most_if_full: Arc<HashMap<Receiver, usize>>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    has_answered: bool,
    /// Timeouts in a row, up to the last attempt.
    timeouts: u32,
}

impl Receivers {
    pub(super) fn new(slots: usize) -> Self {
        let slots = slots.max(1);
        Self {
            slots,
            seen: HashMap::new(),
            beside: DeliverySlots::new(slots.saturating_mul(BESIDE_TIMES)),
            most: Arc::default(),
            most_if_full: Arc::default(),
        }
    }

    /// Maximum number of attempts in flight for a receiver that has not answered yet.
    pub(super) fn unknown_max(&self) -> usize {
        (self.slots / 8).max(1)
    }

    /// Maximum number of further attempts in the slots for each known receiver.
    pub(super) fn known(&self) -> Arc<HashMap<Receiver, usize>> {
        // What is left is kept for attempts that hold a slot and want to give it back.
        let kept = reserve_of(self.slots.saturating_mul(BESIDE_TIMES));
        let is_full = self.beside.free() <= kept;
        Arc::clone(if is_full {
            &self.most_if_full
        } else {
            &self.most
        })
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

    /// Whether another attempt can wait beside the slots.
    pub(super) fn may_wait(&self, (team, name): &Receiver) -> bool {
        self.beside.may_take(team, name)
    }

    /// Whether it did not answer when it was asked last, or does not answer now.
    pub(super) fn is_silent(&self, receiver: &Receiver) -> bool {
        let seen = self.seen.get(receiver).copied().unwrap_or_default();
        seen.timeouts > 0 || (!seen.has_answered && self.beside.held(&receiver.0, &receiver.1) > 0)
    }

    /// An attempt waits beside the slots from now on.
    pub(super) fn waits(&mut self, receiver: &Receiver) {
        self.beside.take(&receiver.0, &receiver.1);
        self.count(receiver);
    }

    /// An attempt that waited beside the slots has ended.
    pub(super) fn waited(&mut self, receiver: &Receiver) {
        self.beside.release(&receiver.0, &receiver.1);
        self.count(receiver);
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
        self.seen.insert(receiver.clone(), seen);
        self.count(&receiver);
    }

    /// Counts anew how many more a receiver may have.
    fn count(&mut self, receiver: &Receiver) {
        let beside = self.beside.held(&receiver.0, &receiver.1);
        let most = match self.seen.get(receiver) {
            None if beside == 0 => None,
            seen => {
                let most = self.most_of(seen.copied().unwrap_or_default());
                Some(most.saturating_sub(beside))
            }
        };
        let if_full = most.map(|most| if self.is_silent(receiver) { 0 } else { most });
        set(&mut self.most, receiver, most);
        set(&mut self.most_if_full, receiver, if_full);
    }

    fn forget(&mut self) {
        self.seen.retain(|_, seen| seen.timeouts > 0);
        if self.seen.len() >= REMEMBERED_MAX {
            self.seen.clear();
        }
        for receiver in self.most.keys().cloned().collect::<Vec<_>>() {
            self.count(&receiver);
        }
    }
}

fn set(map: &mut Arc<HashMap<Receiver, usize>>, receiver: &Receiver, most: Option<usize>) {
    if map.get(receiver).copied() == most {
        return;
    }
    let map = Arc::make_mut(map);
    match most {
        Some(most) => map.insert(receiver.clone(), most),
        None => map.remove(receiver),
    };
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
    fn waiting_attempts_count_and_silence_bars_when_full() {
        let mut receivers = Receivers::new(8);
        let (silent, slow) = (receiver("https://silent"), receiver("https://slow"));
        let most = |receivers: &Receivers, of: &Receiver| receivers.known().get(of).copied();
        receivers.record(slow.clone(), Sign::Answered);
        assert!(!receivers.is_silent(&silent));
        receivers.waits(&silent);
        assert!(receivers.is_silent(&silent));
        assert_eq!(most(&receivers, &silent), Some(0));
        receivers.waits(&slow);
        assert!(!receivers.is_silent(&slow));
        assert_eq!(most(&receivers, &slow), Some(7));
        receivers.waited(&silent);
        assert_eq!(most(&receivers, &silent), None);
        receivers.record(silent.clone(), Sign::TimedOut);
        assert_eq!(most(&receivers, &silent), Some(1));
        for n in 0..27 {
            let other = receiver(&n.to_string());
            assert!(receivers.may_wait(&other), "{n}");
            receivers.waits(&other);
        }
        assert_eq!(most(&receivers, &silent), Some(0));
        assert_eq!(most(&receivers, &slow), Some(7));
        for n in 0..27 {
            receivers.waited(&receiver(&n.to_string()));
        }
        assert_eq!(most(&receivers, &silent), Some(1));
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
