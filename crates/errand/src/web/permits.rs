//! A bounded number of permits for processor-intensive work, at most one per person.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::UserId;

/// The people who hold a permit. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Permits {
    people: Arc<Mutex<HashSet<UserId>>>,
    most: usize,
}

/// A permit. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Permit {
    of: Permits,
    person: UserId,
}

impl Permits {
    pub(super) fn new(most: usize) -> Self {
        Self {
            people: Arc::default(),
            most,
        }
    }

    /// Takes a permit. `None` if the person already has one or all are taken.
    pub(super) fn enter(&self, person: UserId) -> Option<Permit> {
        let mut people = self.people.lock().unwrap_or_else(PoisonError::into_inner);
        if people.len() >= self.most || !people.insert(person) {
            return None;
        }
        Some(Permit {
            of: self.clone(),
            person,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let people = &self.of.people;
        let mut people = people.lock().unwrap_or_else(PoisonError::into_inner);
        people.remove(&self.person);
    }
}

#[cfg(test)]
mod tests {
    use errand_core::id::IdGen;
    use errand_core::time::Timestamp;

    use super::*;

    #[test]
    fn a_person_holds_one_permit_and_frees_it() {
        let ids = IdGen::new([1; 32]);
        let [a, b, c] = [(); 3].map(|()| ids.user(Timestamp::from_millis(1)));
        let places = Permits::new(2);
        let first = places.enter(a);
        assert!(first.is_some());
        assert!(places.enter(a).is_none());
        let second = places.enter(b);
        assert!(second.is_some());
        assert!(places.enter(c).is_none());
        drop(first);
        assert!(places.enter(a).is_some());
    }
}
