//! Fair scheduling: decides who gets the next free slot for a run, delivery or command.
//!
//! *Members* of *groups* compete for slots: API keys and people of teams, or receivers of a team's webhooks.
//!
//! # Guarantees
//!
//! For any sequence of [`Fair::take`] and [`Fair::release`]:
//!
//! - **Fair.** The next slot goes to the group that holds the fewest, and within it to the member that holds the
//!   fewest; ties are broken in turn. How many requests a member has waiting does not matter.
//! - **Reserve.** With four slots or more, an eighth (at least one) is reserved: if only *f* slots are free and all of
//!   them belong to the reserve, a member gets one only if it holds fewer than *f*. So one member holds at most seven
//!   eighths, and a member that holds nothing gets a slot at once, unless as many others just did. The last half of the
//!   reserve applies the same rule to groups, so that one group's members together cannot exclude another group.
//! - **Work-conserving above that.** While more slots are free than the reserve, every request gets one.
//!
//! # Non-goals
//!
//! Priorities, and preempting the holder of a slot.

use std::collections::BTreeMap;

/// Shares slots among members of groups. It only counts; the caller keeps the queue of requests.
#[derive(Clone, Debug)]
pub struct Fair<G, M> {
    slots: usize,
    held: usize,
    groups: BTreeMap<G, Group<M>>,
    /// The group served last, for ties.
    last: Option<G>,
}

#[derive(Clone, Debug)]
struct Group<M> {
    held: usize,
    members: BTreeMap<M, usize>,
    /// The member served last, for ties.
    last: Option<M>,
}

/// How many groups that hold nothing are kept, so that their turn is remembered. Bounds the memory.
const IDLE_GROUPS_MAX: usize = 1_024;

impl<G: Ord + Clone, M: Ord + Clone> Fair<G, M> {
    /// `slots`: the total, at least 1.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self {
            slots: slots.max(1),
            held: 0,
            groups: BTreeMap::new(),
            last: None,
        }
    }

    /// The number of free slots.
    #[must_use]
    pub fn free(&self) -> usize {
        self.slots.saturating_sub(self.held)
    }

    /// The number of slots that a member holds.
    #[must_use]
    pub fn held(&self, group: &G, member: &M) -> usize {
        let group = self.groups.get(group);
        group
            .and_then(|group| group.members.get(member).copied())
            .unwrap_or_default()
    }

    /// Whether a member may take another slot now.
    #[must_use]
    pub fn may_take(&self, group: &G, member: &M) -> bool {
        let (free, reserve) = (self.free(), reserve_of(self.slots));
        if free == 0 || free > reserve {
            return free > 0;
        }
        let of_group = self.groups.get(group).map_or(0, |group| group.held);
        self.held(group, member) < free && (free > reserve / 2 || of_group < free)
    }

    /// Returns the index of the request to serve next, or `None` if no member may take a slot. `waiting` may be in any
    /// order and lists each member once.
    #[must_use]
    pub fn choose<'a>(&self, waiting: impl IntoIterator<Item = (&'a G, &'a M)>) -> Option<usize>
    where
        G: 'a,
        M: 'a,
    {
        let mut best = None;
        for (index, (group, member)) in waiting.into_iter().enumerate() {
            if !self.may_take(group, member) {
                continue;
            }
            let of_group = self.groups.get(group);
            let last_member = of_group.and_then(|group| group.last.as_ref());
            let rank = (
                // Compared field by field: fewest slots first; `false` sorts before `true`, so those after the one
                // served last come first, which makes ties go round in order.
                of_group.map_or(0, |group| group.held),
                self.last.as_ref().is_some_and(|last| group <= last),
                group,
                self.held(group, member),
                last_member.is_some_and(|last| member <= last),
                member,
            );
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// Records that a member takes a slot. Does not check [`Fair::may_take`].
    pub fn take(&mut self, group: &G, member: &M) {
        self.held += 1;
        self.last = Some(group.clone());
        let of_group = self.groups.entry(group.clone()).or_insert_with(|| Group {
            held: 0,
            members: BTreeMap::new(),
            last: None,
        });
        of_group.held += 1;
        of_group.last = Some(member.clone());
        *of_group.members.entry(member.clone()).or_default() += 1;
    }

    /// Records that a member returns a slot. Ignored if it holds none.
    pub fn release(&mut self, group: &G, member: &M) {
        let Some(of_group) = self.groups.get_mut(group) else {
            return;
        };
        let Some(held) = of_group.members.get_mut(member) else {
            return;
        };
        *held -= 1;
        if *held == 0 {
            of_group.members.remove(member);
        }
        of_group.held -= 1;
        self.held -= 1;
        if self.groups.len() > IDLE_GROUPS_MAX {
            self.groups.retain(|_, group| group.held > 0);
        }
    }
}

/// The number of reserved slots out of `slots`.
#[must_use]
pub fn reserve_of(slots: usize) -> usize {
    if slots < 4 { 0 } else { (slots / 8).max(1) }
}

#[cfg(test)]
mod tests;
