//! Fault injection and simulation: a store whose commits fail on request, or that works on its callers' tasks.

use std::path::Path;
use std::sync::Arc;

use super::open::{OpenError, connect, migrations};

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

    /// For simulations: how many times a writer yields to other tasks between submitting a write and committing what
    /// waits, and before it receives the result.
    fn gives_way(&self) -> (u32, u32) {
        (0, 0)
    }

    /// For simulations: which of the waiting writes a batch takes next, as an index below `waiting`. Writes of one task
    /// keep their order.
    fn next_write(&self, _waiting: usize) -> usize {
        0
    }
}

/// How a store under test differs from the program's.
#[derive(Clone, Default)]
pub struct Trial {
    /// Called before each commit.
    pub faults: Option<Arc<dyn Faults>>,
    /// Do not sync. After a crash of the program the result is the same; only a crash of the machine needs it.
    pub unsynced: bool,
    /// One pooled reader, regardless of the options, because each costs an opening of the database.
    pub one_reader: bool,
    /// No threads and no syncs: every operation runs on its caller's task, so that the same order of calls gives the
    /// same order of everything.
    pub simulated: bool,
}

impl Trial {
    /// Creates the empty database of an older version, for tests of upgrades.
    ///
    /// # Errors
    /// [`OpenError::Database`], [`OpenError::Migration`].
    pub fn create_older_database(dir: &Path, schema: i32) -> Result<(), OpenError> {
        let mut conn = connect(dir, false, 256).map_err(|source| OpenError::Database {
            dir: dir.to_owned(),
            source,
        })?;
        migrations::runner()
            .set_target(refinery::Target::Version(schema))
            .run(&mut conn)
            .map(drop)
            .map_err(|source| OpenError::Migration {
                dir: dir.to_owned(),
                source: Box::new(source),
            })
    }
}
