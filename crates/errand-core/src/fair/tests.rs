use proptest::prelude::*;

use super::*;

/// The number of waiting requests of each member.
type Waiting = BTreeMap<(u8, u8), usize>;

/// Grants slots until no waiting member may take one. Returns the receivers in order.
fn fill(fair: &mut Fair<u8, u8>, waiting: &mut Waiting) -> Vec<(u8, u8)> {
    let mut got = Vec::new();
    loop {
        let members: Vec<(u8, u8)> = waiting.keys().copied().collect();
        let Some(index) = fair.choose(members.iter().map(|(g, m)| (g, m))) else {
            return got;
        };
        let (group, member) = members[index];
        fair.take(&group, &member);
        got.push((group, member));
        let left = waiting.get_mut(&(group, member)).unwrap();
        *left -= 1;
        if *left == 0 {
            waiting.remove(&(group, member));
        }
    }
}

fn held_by(fair: &Fair<u8, u8>, group: u8) -> usize {
    fair.groups.get(&group).map_or(0, |group| group.held)
}

#[test]
fn one_member_leaves_an_eighth_to_others() {
    for (slots, most) in [(1, 1), (2, 2), (3, 3), (4, 3), (8, 7), (64, 56), (100, 88)] {
        let mut fair = Fair::new(slots);
        let got = fill(&mut fair, &mut Waiting::from([((1, 1), 1_000)]));
        assert_eq!(got.len(), most, "{slots} slots");
        if slots >= 4 {
            assert_eq!(fill(&mut fair, &mut Waiting::from([((1, 2), 1)])).len(), 1);
        }
    }
}

#[test]
fn a_group_leaves_slots_to_another_regardless_of_its_size() {
    let mut fair = Fair::new(64);
    let mut crowd: Waiting = (0..100).map(|member| ((1, member), 100)).collect();
    assert_eq!(fill(&mut fair, &mut crowd).len(), 60);
    assert_eq!(fill(&mut fair, &mut Waiting::from([((2, 1), 1)])).len(), 1);
}

#[test]
fn groups_and_members_take_turns() {
    // One slot, returned at once: all always hold zero, and still they are served in turn.
    let mut fair = Fair::new(1);
    let members = [(1, 1), (1, 2), (1, 3), (2, 1)];
    let mut served = Vec::new();
    for _ in 0..6 {
        let index = fair.choose(members.iter().map(|(g, m)| (g, m))).unwrap();
        let (group, member) = members[index];
        fair.take(&group, &member);
        fair.release(&group, &member);
        served.push((group, member));
    }
    assert_eq!(served, [(1, 1), (2, 1), (1, 2), (2, 1), (1, 3), (2, 1)]);
}

#[derive(Clone, Debug)]
enum Act {
    Wants(u8, u8, usize),
    /// The holder of the nth slot returns it.
    Ends(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u8..4, 0u8..5, 1usize..80).prop_map(|(g, m, n)| Act::Wants(g, m, n)),
        any::<usize>().prop_map(Act::Ends),
        any::<usize>().prop_map(Act::Ends),
    ]
}

proptest! {
    #[test]
    fn slots_are_shared_fairly(slots in 1usize..100, acts in proptest::collection::vec(act(), 1..150)) {
        let reserve = reserve_of(slots);
        let mut fair = Fair::new(slots);
        let (mut waiting, mut holders) = (Waiting::new(), Vec::new());
        for act in acts {
            match act {
                Act::Wants(group, member, count) => *waiting.entry((group, member)).or_default() += count,
                Act::Ends(nth) if !holders.is_empty() => {
                    let (group, member) = holders.swap_remove(nth % holders.len());
                    fair.release(&group, &member);
                }
                Act::Ends(_) => {}
            }
            // Each slot goes to the least served of those that may take one.
            loop {
                let members: Vec<(u8, u8)> = waiting.keys().copied().collect();
                let Some(index) = fair.choose(members.iter().map(|(g, m)| (g, m))) else { break };
                let (group, member) = members[index];
                let least = members.iter().filter(|(g, m)| fair.may_take(g, m)).map(|(g, _)| held_by(&fair, *g)).min();
                prop_assert_eq!(Some(held_by(&fair, group)), least);
                let least = members.iter().filter(|(g, m)| *g == group && fair.may_take(g, m)).map(|(g, m)| fair.held(g, m)).min();
                prop_assert_eq!(Some(fair.held(&group, &member)), least);
                fair.take(&group, &member);
                holders.push((group, member));
                let left = waiting.get_mut(&(group, member)).unwrap();
                *left -= 1;
                if *left == 0 { waiting.remove(&(group, member)); }
            }
            prop_assert_eq!(fair.free() + holders.len(), slots, "every slot is counted once");
            // Work-conserving: while a request waits, at most the reserve is free.
            prop_assert!(waiting.is_empty() || fair.free() <= reserve);
            // While slots are free beyond the groups' part of the reserve, no member without a slot waits.
            if fair.free() > reserve / 2 {
                prop_assert!(waiting.keys().all(|(g, m)| fair.held(g, m) > 0));
            }
            for (group, member) in &holders {
                prop_assert!(fair.held(group, member) <= slots - reserve);
            }
        }
    }

    #[test]
    fn two_members_with_endless_demand_share_equally(slots in 2usize..100, first in 1usize..100) {
        let mut fair = Fair::new(slots);
        let mut holders = fill(&mut fair, &mut Waiting::from([((1, 1), first)]));
        // Slots become free in random order: in the end both hold the same, except for the reserve.
        let both = || Waiting::from([((1, 1), slots), ((1, 2), slots)]);
        let mut draw: u64 = 1;
        for _ in 0..2_000 {
            holders.extend(fill(&mut fair, &mut both()));
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (group, member) = holders.swap_remove((draw >> 33) as usize % holders.len());
            fair.release(&group, &member);
        }
        fill(&mut fair, &mut both());
        let (one, two) = (fair.held(&1, &1), fair.held(&1, &2));
        prop_assert!(one.abs_diff(two) <= 1 + slots / 8, "{one} and {two} of {slots}");
    }
}
