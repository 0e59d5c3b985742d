//! For tests and simulations: a store that fails to order, and one that works on its caller's task.

use std::sync::Arc;

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing out of the ordinary.
    None,
    /// The disk has no room: it is taken back.
    Full,
    /// The disk fails, or the program dies: the store is closed to all, as after a failed sync.
    Broken {
        /// Whether it is on disk all the same: its callers do not hear so.
        written: bool,
    },
}

/// Says what becomes of commits.
pub trait Faults: Send + Sync {
    /// Asked once for each commit, before it.
    fn at_commit(&self) -> Fault;

    /// Simulated: how often a write's caller gives way to other tasks before the write, and before it hears of it.
    fn gives_way(&self) -> (u32, u32) {
        (0, 0)
    }
}

/// How a store on trial differs from the program's.
#[derive(Clone, Default)]
pub struct Trial {
    /// Asked before each commit.
    pub faults: Option<Arc<dyn Faults>>,
    /// No sync: what a crash of the program leaves is the same without it, and only a crash of the machine asks for it.
    pub unsynced: bool,
    /// No threads, and no sync: every operation is done on its caller's task, so that the same order of calls gives the
    /// same order of everything.
    pub simulated: bool,
}
