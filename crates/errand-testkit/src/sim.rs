//! A simulation by seed: the real store and the real engine on one thread, in a world where everything that can fail
//! does, at moments that a seed decides.
//!
//! Promised: the same seed and options do exactly the same, so that what is found once can be looked at again. Time is
//! a manual clock, ids and chance come from the seed, every operation of the store is done on its caller's task, and
//! the runtime has one thread. Commits, crashes, a full disk, slow and failing models, tools and receivers, clients
//! that lose their answers: all are as many actions of a loop. What the world knows is held against what the program
//! says, by [`Invariant`]s; at the end the world is healed, and every run must come to its end.
//!
//! Left out: the API, the files of sandboxes, real networks, threads, and syncs.

mod actions;
mod clients;
mod disk;
mod end;
mod invariants;
mod model;
mod program;
mod random;
mod receivers;
mod tools;
mod world;

pub use invariants::{Invariant, Violation};

use std::collections::BTreeMap;

use actions::Simulation;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Actions before the world is healed.
    pub actions: u32,
    /// Something that is wrong on purpose, to see that the checks find it.
    pub sabotage: Option<Sabotage>,
}

/// What may be wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Payments say of themselves that they may be repeated.
    RepeatsPayments,
    /// Some messages are accepted and not kept.
    DropsMessages,
    /// Some webhooks are answered for a receiver that never got them.
    SwallowsWebhooks,
    /// Tools begin although the run was stopped.
    BeginsAfterStop,
    /// A model says that it has read what it has not.
    FinishesUnread,
}

/// What came of a simulation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Commits of the store.
    pub steps: u64,
    /// Runs that were started.
    pub runs: u64,
    /// Crashes, and other ends of the program.
    pub crashes: u64,
    /// Situations that came about, and how often: a simulation that never gets into one checks nothing there.
    pub seen: BTreeMap<&'static str, u64>,
    /// The digest of all that happened, in order.
    pub digest: String,
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
}

/// Simulates a seed, on the calling thread.
///
/// # Panics
/// Where the machine gives no directory or no runtime.
#[must_use]
pub fn simulate(options: Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut simulation = Simulation::new(options).await;
        simulation.act().await;
        simulation.end().await;
        simulation.outcome()
    })
}
