//! Limits concurrent uploads and event streams, counted by client.
//!
//! # Guarantees
//!
//! - A [`Slot`] counts until it is dropped, no matter how its request ends.
//! - A slot is taken for all of its holders or for none.
//! - Memory: one entry per holder with a slot.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::{ApiKeyId, TeamId, UserId};

/// An identity by which slots are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Key(ApiKeyId),
    /// A person in the web interface, with all of their sessions.
    Person(UserId),
    /// An upload URL, by the digest of its token.
    Url([u8; 32]),
    /// A team, with all of its keys and people.
    Team(TeamId),
    /// The address of a client.
    Address(IpAddr),
    /// Attempts to log in to one account from one address, by the digest of both.
    LogIn([u8; 32]),
}

/// Counts slots by holder. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Slots {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_holder: HashMap<Holder, usize>,
}

/// The reason why no slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSlot {
    /// This holder has reached its limit.
    Holder(Holder),
    /// The server's limit is reached.
    Total,
}

impl Slots {
    /// Takes a slot for all holders together, each with its limit.
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

/// A taken slot, released on drop.
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
        // If one holder is at its limit, the others are not counted.
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
