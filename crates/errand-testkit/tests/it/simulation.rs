//! Simulations of fixed seeds: all invariants hold, a seed is reproducible, and the checks find deliberate defects.

use std::collections::BTreeMap;

use errand_testkit::sim::{Invariant, Options, Outcome, Sabotage, simulate};

/// Actions before all faults stop: few enough for an unoptimized build.
const ACTIONS: u32 = 250;

/// Situations that must occur in the simulated worlds; otherwise nothing is tested there.
const SITUATIONS: [&str; 35] = [
    "answer lost",
    "answer of a model broken off",
    "answer refused",
    "answered at the caller",
    "approved",
    "asked about a call in doubt",
    "call begun again",
    "call broken off",
    "call denied",
    "call not run",
    "call with an unknown outcome",
    "child run at its caller's limit",
    "child run failed",
    "child run stopped",
    "denied",
    "drained",
    "failed commit",
    "fork",
    "full disk",
    "late driver: gave back",
    "late driver: refused",
    "look-up: done",
    "look-up: not done",
    "model asked again",
    "model given up",
    "provider without room",
    "question answered",
    "request closed by a message",
    "request closed by a stop",
    "request lapsed",
    "run at its limit",
    "start replayed",
    "waited for a child run",
    "webhook tried again",
    "writes of several callers in one commit",
];

fn of(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    simulate(Options {
        seed,
        actions: ACTIONS,
        sabotage,
    })
}

/// Simulates seeds on two threads. The results are in the order of the seeds.
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
fn all_invariants_hold_in_every_simulated_world() {
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
        assert!(seen.contains_key(what), "{what} never occurred: {seen:?}");
    }
}

#[test]
fn a_seed_is_reproducible() {
    let digests = |outcomes: Vec<(u64, Outcome)>| -> Vec<(u64, u64, String)> {
        let of = |(seed, outcome): (u64, Outcome)| (seed, outcome.steps, outcome.digest);
        outcomes.into_iter().map(of).collect()
    };
    let first = digests(all(100..112, None));
    assert_eq!(first, digests(all(100..112, None)));
    assert!(first.windows(2).all(|pair| pair[0].2 != pair[1].2));
}

/// Simulates seeds until the sabotage violates its invariant. The error contains what was found instead.
fn is_found(sabotage: Sabotage) -> Result<(), String> {
    let mut found = Vec::new();
    for seed in 200..230 {
        let violation = of(seed, Some(sabotage)).violation;
        match violation.map(|violation| violation.invariant) {
            Some(invariant) if invariant == sabotage.violates() => return Ok(()),
            other => found.push(other),
        }
    }
    Err(format!(
        "{sabotage:?} should violate {:?}, but found: {found:?}",
        sabotage.violates()
    ))
}

#[test]
fn every_sabotage_is_found() {
    let (first, second) = Sabotage::ALL.split_at(Sabotage::ALL.len() / 2);
    let missed = |all: &'static [Sabotage]| {
        move || {
            let missed = all.iter().filter_map(|sabotage| is_found(*sabotage).err());
            missed.collect::<Vec<_>>()
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(missed(second));
        let mut all = missed(first)();
        all.extend(other.join().unwrap());
        assert!(all.is_empty(), "{}", all.join("\n"));
    });
}

#[test]
fn every_invariant_has_a_sabotage() {
    for invariant in Invariant::ALL {
        let has_one = Sabotage::ALL.iter().any(|s| s.violates() == *invariant);
        assert!(has_one, "{invariant:?} has never been seen to fail");
    }
}
