//! Simulations of fixed seeds: the program holds its promises in them, a seed repeats exactly, and the checks find what
//! is wrong on purpose.

use std::collections::BTreeMap;

use errand_testkit::sim::{Invariant, Options, Outcome, Sabotage, simulate};

/// Actions before the world is healed: few enough for a build without optimisation.
const ACTIONS: u32 = 250;

/// What must come about in the worlds that are tried; otherwise nothing is checked there.
const SITUATIONS: [&str; 24] = [
    "answer lost",
    "answer refused",
    "approved",
    "asked about a call in doubt",
    "call begun again",
    "call broken off",
    "call denied",
    "call not run",
    "call with an unknown outcome",
    "denied",
    "drained",
    "failed commit",
    "full disk",
    "late driver: gave back",
    "late driver: refused",
    "look-up: done",
    "look-up: not done",
    "question answered",
    "request closed by a message",
    "request closed by a stop",
    "request lapsed",
    "run at its limit",
    "start replayed",
    "webhook tried again",
];

fn of(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    simulate(Options {
        seed,
        actions: ACTIONS,
        sabotage,
    })
}

/// Simulates seeds on two threads, in their order.
fn all(seeds: std::ops::Range<u64>, sabotage: Option<Sabotage>) -> Vec<(u64, Outcome)> {
    let half = seeds.start + (seeds.end - seeds.start) / 2;
    let part = |seeds: std::ops::Range<u64>| {
        move || {
            seeds
                .map(|seed| (seed, of(seed, sabotage)))
                .collect::<Vec<_>>()
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(part(half..seeds.end));
        let mut all = part(seeds.start..half)();
        all.extend(other.join().unwrap());
        all
    })
}

#[test]
fn in_every_simulated_world_the_promises_hold() {
    let (mut runs, mut crashes, mut steps) = (0, 0, 0);
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for (seed, outcome) in all(1..31, None) {
        if let Some(violation) = &outcome.violation {
            panic!(
                "seed {seed}: this did not hold: {}\n{:?}: {}\n{}",
                violation.invariant.sentence(),
                violation.invariant,
                violation.detail,
                violation.last.join("\n")
            );
        }
        runs += outcome.runs;
        crashes += outcome.crashes;
        steps += outcome.steps;
        for (what, count) in outcome.seen {
            *seen.entry(what).or_default() += count;
        }
    }
    // A simulation in which nothing happens finds nothing.
    assert!(runs > 300, "{runs} runs");
    assert!(crashes > 60, "{crashes} crashes");
    assert!(steps > 10_000, "{steps} steps");
    for what in SITUATIONS {
        assert!(seen.contains_key(what), "{what} never came about: {seen:?}");
    }
}

#[test]
fn a_seed_does_the_same_again() {
    let digests = |outcomes: Vec<(u64, Outcome)>| -> Vec<(u64, u64, String)> {
        let of = |(seed, outcome): (u64, Outcome)| (seed, outcome.steps, outcome.digest);
        outcomes.into_iter().map(of).collect()
    };
    let first = digests(all(100..112, None));
    assert_eq!(first, digests(all(100..112, None)));
    assert!(first.windows(2).all(|pair| pair[0].2 != pair[1].2));
}

/// What is found in the first worlds in which something is wrong on purpose.
fn found_with(sabotage: Sabotage) -> Vec<Invariant> {
    let outcomes = all(200..206, Some(sabotage));
    let violations = outcomes.into_iter().filter_map(|(_, o)| o.violation);
    violations.map(|violation| violation.invariant).collect()
}

#[test]
fn what_is_wrong_on_purpose_is_found() {
    for (sabotage, invariant) in [
        (Sabotage::RepeatsPayments, Invariant::NoSilentRepeat),
        (Sabotage::DropsMessages, Invariant::MessageKept),
        (Sabotage::SwallowsWebhooks, Invariant::Delivered),
        (Sabotage::BeginsAfterStop, Invariant::StopHolds),
        (Sabotage::FinishesUnread, Invariant::MessageRead),
    ] {
        let found = found_with(sabotage);
        assert!(
            found.contains(&invariant),
            "{sabotage:?} was to break {invariant:?}, found was {found:?}"
        );
    }
}
