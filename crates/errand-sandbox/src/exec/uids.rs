//! Which user a sandbox is, where the server is root: one for each, so that commands of two cannot reach each other.
//!
//! Nothing is written down: a sandbox's user is the owner of its directory.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The users that are in use, out of a range that nothing else on the machine may use.
#[derive(Debug)]
pub struct Uids {
    base: u32,
    count: u32,
    state: Mutex<State>,
    assigning: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    used: HashSet<u32>,
    next: u32,
}

impl Uids {
    /// `count` users from `base` on, none of them used yet. `base`: 1 or more, so that root is never among them. The last is
    /// that of trials, so that `count` should be 2 or more.
    #[must_use]
    pub fn new(base: u32, count: u32) -> Self {
        Self {
            base: base.max(1),
            count: count.saturating_sub(1),
            state: Mutex::default(),
            assigning: Mutex::default(),
        }
    }

    /// Whether it is one of the range: whoever may be started, that of trials among them.
    #[must_use]
    pub fn contains(&self, uid: u32) -> bool {
        uid.checked_sub(self.base)
            .is_some_and(|offset| offset <= self.count)
    }

    /// The user of trials, which no sandbox is.
    pub(super) fn of_trials(&self) -> u32 {
        self.base + self.count
    }

    /// Notes that it is used. False where it was noted already, or is not of the range.
    pub fn claim(&self, uid: u32) -> bool {
        self.contains(uid) && uid != self.of_trials() && self.lock().used.insert(uid)
    }

    /// One that nobody uses. None where all are used.
    pub fn take(&self) -> Option<u32> {
        let mut state = self.lock();
        for _ in 0..self.count {
            let uid = self.base + state.next;
            // The next in order, not the one given back last: what a dead one left is then not met at once.
            state.next = (state.next + 1) % self.count;
            if state.used.insert(uid) {
                return Some(uid);
            }
        }
        None
    }

    /// Nobody uses it any more.
    pub fn give_back(&self, uid: u32) {
        self.lock().used.remove(&uid);
    }

    /// Held by whoever gives a sandbox its user, so that two do not give it two.
    pub(crate) fn assigning(&self) -> MutexGuard<'_, ()> {
        self.assigning
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A set is whole whatever its holder did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_once_and_again_when_it_is_given_back() {
        let uids = Uids::new(100, 4);
        assert!(uids.claim(101) && !uids.claim(101) && !uids.claim(103) && !uids.claim(0));
        assert_eq!(
            (uids.take(), uids.take(), uids.take()),
            (Some(100), Some(102), None)
        );
        uids.give_back(101);
        assert_eq!((uids.take(), uids.take()), (Some(101), None));
        assert!(!Uids::new(0, 5).contains(0));
    }
}
