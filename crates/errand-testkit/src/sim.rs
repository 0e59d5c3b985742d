//! Seeded simulation: the real store and the real engine on one thread, in a world where everything that can fail does,
//! at moments that a seed decides.
//!
//! # Guarantees
//!
//! The same seed and options always do exactly the same, so that a finding can be reproduced. Time is a manual clock,
//! ids and randomness come from the seed, every store operation runs on its caller's task, and the runtime has one
//! thread. Commits, crashes, a full disk, slow and failing models, tools and receivers, and clients that lose their
//! responses are all actions of one loop. [`Invariant`]s compare what the world knows with what the program reports. At
//! the end all faults stop, and every run must come to its end. Each invariant has a [`Sabotage`] that violates it, so
//! that every check has been seen to fail.
//!
//! # Non-goals
//!
//! The API, the files of sandboxes, real networks, threads, and fsync.

/// Declares an enum and the list of its members.
macro_rules! listed {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$of:meta])* $member:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$of])* $member),* }

        impl $name {
            /// All members, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$member),*];
        }
    };
}

mod actions;
mod clients;
mod disk;
mod end;
mod family;
mod forks;
mod invariants;
mod model;
mod network;
mod program;
mod random;
mod receivers;
mod sabotage;
mod tools;
mod world;

pub use invariants::{Invariant, Violation};
pub use sabotage::Sabotage;

use std::collections::BTreeMap;

use actions::Simulation;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything random.
    pub seed: u64,
    /// Number of actions before all faults stop.
    pub actions: u32,
    /// A deliberate defect, to verify that the checks find it.
    pub sabotage: Option<Sabotage>,
}

/// The result of a simulation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Number of commits of the store.
    pub steps: u64,
    /// Number of runs started.
    pub runs: u64,
    /// Number of crashes and other ends of the process.
    pub crashes: u64,
    /// How often each situation occurred. A situation that never occurs is not tested.
    pub seen: BTreeMap<&'static str, u64>,
    /// Digest of the log of everything that happened. Equal digests mean equal simulations.
    pub digest: String,
    /// The first violation found.
    pub violation: Option<Violation>,
}

/// Simulates one seed on the calling thread.
///
/// # Panics
/// If the machine cannot provide a temporary directory or a runtime.
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
