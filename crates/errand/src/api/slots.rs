//! How much may go on at once: uploads and event streams, counted by who asks.
//!
//! Guarantees: a [`Slot`] counts from the moment it is given out until it is dropped, however its request ends; a slot is
//! given for all of its holders or for none. Memory: one entry for each holder that has a slot.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::{ApiKeyId, TeamId, UserId};

/// Who holds a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// An API key.
    Key(ApiKeyId),
    /// A person in the web interface, with all of their sessions.
    Person(UserId),
    /// An upload URL, by the digest of its token.
    Url([u8; 32]),
    /// A team, with all of the above.
    Team(TeamId),
    /// A client's address.
    Address(IpAddr),
    /// Attempts to log in to one account from one address, by the digest of both.
    LogIn([u8; 32]),
}

/// Counts slots by holder.
#[derive(Clone, Default)]
pub(crate) struct Slots {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_holder: HashMap<Holder, usize>,
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSlot {
    /// This holder has as many as it may have.
    Holder(Holder),
    /// All are in use.
    Total,
}

impl Slots {
    /// Takes a slot for all holders together, each with the most that it may have.
    pub(crate) fn take(
        &self,
        holders: &[(Holder, usize)],
        total_max: usize,
    ) -> Result<Slot, NoSlot> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (holder, max) in holders {
            if held.by_holder.get(holder).copied().unwrap_or_default() >= *max {
                return Err(NoSlot::Holder(*holder));
            }
        }
        if held.total >= total_max {
            return Err(NoSlot::Total);
        }
        held.total += 1;
        for (holder, _) in holders {
            *held.by_holder.entry(*holder).or_default() += 1;
        }
        Ok(Slot {
            held: Arc::clone(&self.held),
            holders: holders.iter().map(|(holder, _)| *holder).collect(),
        })
    }
}

/// Counts until it is dropped.
pub(crate) struct Slot {
    held: Arc<Mutex<Held>>,
    holders: Vec<Holder>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(1);
        for holder in &self.holders {
            if let Some(count) = held.by_holder.get_mut(holder) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    held.by_holder.remove(holder);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_counted_by_holder_and_given_back() {
        let slots = Slots::default();
        let (a, b) = (Holder::Url([1; 32]), Holder::Url([2; 32]));
        let first = slots.take(&[(a, 2)], 3).ok();
        let second = slots.take(&[(a, 2)], 3).ok();
        assert!(first.is_some() && second.is_some());
        assert_eq!(slots.take(&[(a, 2)], 3).err(), Some(NoSlot::Holder(a)));
        let third = slots.take(&[(b, 2)], 3).ok();
        assert!(third.is_some());
        assert_eq!(slots.take(&[(b, 2)], 3).err(), Some(NoSlot::Total));
        drop(first);
        // Refused for one holder, it counts for none.
        let full = Holder::Url([3; 32]);
        assert_eq!(
            slots.take(&[(a, 2), (full, 0)], 3).err(),
            Some(NoSlot::Holder(full))
        );
        assert!(slots.take(&[(a, 2)], 3).is_ok());
        drop((second, third));
        let held = slots.held.lock().unwrap();
        assert!(held.total == 0 && held.by_holder.is_empty());
    }
}
