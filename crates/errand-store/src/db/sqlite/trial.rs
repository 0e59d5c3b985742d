//! Fault injection and simulation: a store whose commits fail on request, or that works on its callers' tasks.

use std::sync::Arc;

/// Outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing unusual.
    None,
    /// The disk is full: the commit is rolled back.
    Full,
    /// The disk fails, or the program dies: the store is closed for everyone, as after a failed sync.
    Broken {
        /// Whether the commit is on disk anyway. Its callers do not learn that.
        written: bool,
    },
}

/// Decides what happens to commits.
pub trait Faults: Send + Sync {
    /// Called once before each commit.
    fn at_commit(&self) -> Fault;

    /// For simulations: how many times a writer yields to other tasks before the write, and before it receives the
    /// result.
    fn gives_way(&self) -> (u32, u32) {
        (0, 0)
    }
}

/// How a store under test differs from the program's.
#[derive(Clone, Default)]
pub struct Trial {
    /// Called before each commit.
    pub faults: Option<Arc<dyn Faults>>,
    /// Do not sync. After a crash of the program the result is the same; only a crash of the machine needs it.
    pub unsynced: bool,
    /// No threads and no syncs: every operation runs on its caller's task, so that the same order of calls gives the
    /// same order of everything.
    pub simulated: bool,
}
