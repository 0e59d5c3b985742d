//! Which receivers answer: a circuit breaker for each receiver of each team, in memory.
//!
//! Guarantees: a receiver that let [`TIMEOUTS_MAX`] attempts in a row time out gets one probe at a time until it answers;
//! one that has not answered since the start gets an eighth of the places, so that a start with many dead receivers does
//! not fill them all; one that answers gets what its turn gives it. A receiver is a team's own: what one team's address
//! does says nothing of another team's deliveries to the same host.
//!
//! An answer is any status: a receiver that refuses is quick, and holds no place for long.

use std::collections::HashMap;
use std::sync::Arc;

use errand_store::Receiver;

use crate::webhook::Attempt;

/// After so many attempts in a row that timed out, a receiver gets one probe at a time.
const TIMEOUTS_MAX: u32 = 3;
/// Most receivers that are remembered. Beyond, those that answer are forgotten first: they count as unknown again.
const REMEMBERED_MAX: usize = 4_096;

/// What an attempt says of its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// It answered, with whatever status.
    Answered,
    /// It held its place until the time was over.
    TimedOut,
    /// There was no connection, or none of its own accord: no place was held for long.
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

/// How receivers have done since the start.
pub(super) struct Receivers {
    places: usize,
    seen: HashMap<Receiver, Seen>,
    /// Most at once for each that was seen, shared with the reads that are under way.
    most: Arc<HashMap<Receiver, usize>>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    has_answered: bool,
    /// In a row, up to now.
    timeouts: u32,
}

impl Receivers {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: places.max(1),
            seen: HashMap::new(),
            most: Arc::default(),
        }
    }

    /// Most at once for a receiver that has not answered yet.
    pub(super) fn unknown_max(&self) -> usize {
        (self.places / 8).max(1)
    }

    /// Most at once for those of which more is known.
    pub(super) fn known(&self) -> Arc<HashMap<Receiver, usize>> {
        Arc::clone(&self.most)
    }

    fn most_of(&self, seen: Seen) -> usize {
        if seen.timeouts >= TIMEOUTS_MAX {
            1
        } else if seen.has_answered {
            self.places
        } else {
            self.unknown_max()
        }
    }

    /// An attempt has ended.
    pub(super) fn heard(&mut self, receiver: Receiver, sign: Sign) {
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
    fn a_receiver_that_keeps_timing_out_gets_one_probe_until_it_answers() {
        let mut receivers = Receivers::new(32);
        let dead = receiver("https://dead.example");
        let most = |receivers: &Receivers| receivers.known().get(&dead).copied();
        assert_eq!((most(&receivers), receivers.unknown_max()), (None, 4));
        for most_now in [4, 4, 1, 1] {
            receivers.heard(dead.clone(), Sign::TimedOut);
            assert_eq!(most(&receivers), Some(most_now));
        }
        receivers.heard(dead.clone(), Sign::Answered);
        assert_eq!(most(&receivers), Some(32));
        receivers.heard(dead.clone(), Sign::TimedOut);
        assert_eq!(most(&receivers), Some(32));
    }

    #[test]
    fn memory_is_bounded() {
        let mut receivers = Receivers::new(32);
        for sign in [Sign::Answered, Sign::TimedOut] {
            for n in 0..2 * REMEMBERED_MAX {
                receivers.heard(receiver(&format!("{sign:?}{n}")), sign);
                assert!(receivers.seen.len() <= REMEMBERED_MAX);
            }
        }
    }
}
