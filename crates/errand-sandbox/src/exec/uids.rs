//! Assigns user ids to sandboxes if the server is root: one per sandbox, so that commands of two sandboxes cannot
//! reach each other.
//!
//! Nothing is stored: the user id of a sandbox is the owner of its directory.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The user ids in use, out of a range that nothing else on the machine may use.
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
    /// Manages `count` user ids from `base` on, none of them in use. `base` is raised to 1, so that root is never
    /// among them. The last id is reserved for probes, so `count` should be at least 2.
    #[must_use]
    pub fn new(base: u32, count: u32) -> Self {
        Self {
            base: base.max(1),
            count: count.saturating_sub(1),
            state: Mutex::default(),
            assigning: Mutex::default(),
        }
    }

    /// Whether a user id is in the range, including the one for probes. Only such users may be started.
    #[must_use]
    pub fn contains(&self, uid: u32) -> bool {
        uid.checked_sub(self.base)
            .is_some_and(|offset| offset <= self.count)
    }

    /// User id for probes. It is never assigned to a sandbox.
    pub(super) fn probe_uid(&self) -> u32 {
        self.base + self.count
    }

    /// Marks a user id as used. Returns `false` if it was used already, or may not be assigned.
    pub fn claim(&self, uid: u32) -> bool {
        self.contains(uid) && uid != self.probe_uid() && self.lock().used.insert(uid)
    }

    /// Takes a free user id. Returns `None` if all are used.
    pub fn take(&self) -> Option<u32> {
        let mut state = self.lock();
        for _ in 0..self.count {
            let uid = self.base + state.next;
            // Round robin rather than the most recently released one, which may still own leftovers.
            state.next = (state.next + 1) % self.count;
            if state.used.insert(uid) {
                return Some(uid);
            }
        }
        None
    }

    /// Releases a user id.
    pub fn give_back(&self, uid: u32) {
        self.lock().used.remove(&uid);
    }

    /// Hold this while assigning a user to a sandbox, so that two threads do not assign two.
    pub(crate) fn assigning(&self) -> MutexGuard<'_, ()> {
        self.assigning
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The set is consistent even if a holder of the lock panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_used_once_until_it_is_released() {
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
