//! Crash tests: a plan is executed once for each of its commits, and that commit fails. The process dies before the
//! commit or after it, or the disk is full.

use std::sync::{Mutex, MutexGuard, PoisonError};

use errand_store::{Fault, Faults};

use crate::app::Prepared;
use crate::world::World;

/// Counts commits, and makes one of them fail.
#[derive(Default)]
pub struct CrashPoints {
    state: Mutex<Counting>,
}

#[derive(Default)]
struct Counting {
    armed: bool,
    count: u64,
    at: Option<(u64, Fault)>,
    fired: Option<Fault>,
}

impl CrashPoints {
    /// Starts counting at zero. `at`: the number (from 1) of the commit that fails, and how. `None`: only count.
    pub fn arm(&self, at: Option<(u64, Fault)>) {
        *self.state() = Counting {
            armed: true,
            at,
            ..Counting::default()
        };
    }

    /// Stops counting. All commits succeed from now on.
    pub fn disarm(&self) {
        self.state().armed = false;
    }

    /// The fault that has occurred, if any.
    #[must_use]
    pub fn fired(&self) -> Option<Fault> {
        self.state().fired
    }

    /// Commits since [`CrashPoints::arm`].
    #[must_use]
    pub fn count(&self) -> u64 {
        self.state().count
    }

    fn state(&self) -> MutexGuard<'_, Counting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Faults for CrashPoints {
    fn at_commit(&self) -> Fault {
        let mut state = self.state();
        if !state.armed {
            return Fault::None;
        }
        state.count += 1;
        match state.at {
            Some((n, fault)) if n == state.count => {
                state.fired = Some(fault);
                fault
            }
            _ => Fault::None,
        }
    }
}

/// A scenario for [`fail_everywhere`].
#[derive(Clone, Debug)]
pub struct Plan {
    /// For the report of a failure.
    pub name: String,
    /// Minimum number of commits without a failure, however they are grouped. With fewer, the test would prove little.
    pub min_commits: u64,
    /// Settings of the app, as environment variables.
    pub settings: Vec<(&'static str, String)>,
    /// Content of the settings file.
    pub file: Option<String>,
}

impl Plan {
    /// A plan with the default settings.
    #[must_use]
    pub fn new(name: impl Into<String>, min_commits: u64) -> Self {
        Self {
            name: name.into(),
            min_commits,
            settings: Vec::new(),
            file: None,
        }
    }

    /// Adds a setting.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.settings.push((name, value.to_owned()));
        self
    }
}

/// Executes a plan without a failure; then for n = 1, 2, 3, … and each kind of failure, with a failure of the nth
/// commit, until an execution has fewer than n commits. The number of commits varies a little between executions,
/// because writes that wait at the same time share a commit.
pub async fn fail_everywhere(plan: &Plan, act: impl AsyncFn(&mut World)) {
    let prepared = Prepared::new().await;
    let counted = pass(plan, &prepared, None, &act).await;
    assert!(
        counted >= plan.min_commits,
        "{}: {counted} commits, expected at least {}",
        plan.name,
        plan.min_commits
    );
    let ways = [
        Fault::Broken { written: false },
        Fault::Broken { written: true },
        Fault::Full,
    ];
    for fault in ways {
        let mut n = 1;
        while pass(plan, &prepared, Some((n, fault)), &act).await >= n {
            n += 1;
        }
        assert!(
            2 * n > counted,
            "{}: with {counted} commits in total, an execution ended before commit {n}",
            plan.name
        );
    }
}

/// Executes the plan once and returns the number of commits. If it panics, the failure is named on standard error.
async fn pass(
    plan: &Plan,
    prepared: &Prepared,
    failure: Option<(u64, Fault)>,
    act: &impl AsyncFn(&mut World),
) -> u64 {
    let _named = NamedOnPanic(plan, failure);
    let mut world = World::new(prepared, plan, failure).await;
    Box::pin(act(&mut world)).await;
    world.end().await
}

/// Prints which execution it was if a panic unwinds through it.
struct NamedOnPanic<'a>(&'a Plan, Option<(u64, Fault)>);

impl Drop for NamedOnPanic<'_> {
    #[expect(clippy::print_stderr, reason = "printed next to the failure of a test")]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let what = match self.1 {
            None => "no failure".to_owned(),
            Some((n, Fault::Broken { written: false })) => format!("a crash before commit {n}"),
            Some((n, Fault::Broken { written: true })) => format!("a crash after commit {n}"),
            Some((n, _)) => format!("a full disk at commit {n}"),
        };
        eprintln!("the plan {:?} failed with {what}", self.0.name);
    }
}
