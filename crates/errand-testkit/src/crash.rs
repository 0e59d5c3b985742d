//! A plan is gone through once for each of its commits, and that commit fails: the program dies before it, after it, or
//! the disk has no room for it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use errand_store::{Fault, Faults};

use crate::app::Prepared;
use crate::world::World;

/// Counts commits, and fails one.
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
    /// Counts from here on. The commit of this number, from 1, fails so; none: they are only counted.
    pub fn arm(&self, at: Option<(u64, Fault)>) {
        *self.state() = Counting {
            armed: true,
            at,
            ..Counting::default()
        };
    }

    /// Commits fail no more, and are not counted.
    pub fn disarm(&self) {
        self.state().armed = false;
    }

    /// How the commit has failed, if it has.
    #[must_use]
    pub fn fired(&self) -> Option<Fault> {
        self.state().fired
    }

    /// Commits since it was armed.
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

/// What is gone through again and again.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name, for a failure's report.
    pub name: String,
    /// Commits that it has at least, however they are put together: below, the test would say little.
    pub least: u64,
    /// Settings of its app.
    pub settings: Vec<(&'static str, String)>,
    /// Its settings file.
    pub file: Option<String>,
}

impl Plan {
    /// Of an app with the usual settings.
    #[must_use]
    pub fn new(name: impl Into<String>, least: u64) -> Self {
        Self {
            name: name.into(),
            least,
            settings: Vec::new(),
            file: None,
        }
    }

    /// With one more setting.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.settings.push((name, value.to_owned()));
        self
    }
}

/// Goes through a plan without a failure; then for n = 1, 2, 3, …, in each way in which a commit can fail, with a failure
/// of the n-th commit, until a pass has no n-th commit any more. How many there are differs a little between passes,
/// since writes that wait together are committed together.
pub async fn fail_everywhere(plan: &Plan, act: impl AsyncFn(&mut World)) {
    let prepared = Prepared::new().await;
    let counted = pass(plan, &prepared, None, &act).await;
    assert!(
        counted >= plan.least,
        "{}: {counted} commits, and not {} at least",
        plan.name,
        plan.least
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
            n > plan.least && 2 * n > counted,
            "{}: a pass of {counted} commits ended before its commit {n}",
            plan.name
        );
    }
}

/// One pass; how many commits it had. A failure ends it with a panic, and what was done is named.
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

/// Says which pass it was, where one fails.
struct NamedOnPanic<'a>(&'a Plan, Option<(u64, Fault)>);

impl Drop for NamedOnPanic<'_> {
    #[expect(
        clippy::print_stderr,
        reason = "beside the message of a test's failure"
    )]
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
