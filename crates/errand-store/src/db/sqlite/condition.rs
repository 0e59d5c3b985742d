//! Whether the store can work now, and if not, why. Used for readiness, metrics, `errand doctor` and the log.
//!
//! # Guarantees
//!
//! Each problem is logged once when it begins, then with a count whenever [`Condition::remind`] is called, and once
//! when it is over. A damaged or lost database never becomes usable by itself: only a start with another file fixes
//! that.
//!
//! # Non-goals
//!
//! Noticing that a full disk has space again without a write (the program checks), and fixing any of these problems.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::ErrorCode;

use crate::error::StoreError;

/// A problem that keeps the store from working.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// SQLite has found that its file is damaged.
    Damaged,
    /// The disk is full.
    Full,
    /// Another program holds a lock on the database.
    Locked,
    /// The process is out of memory.
    Memory,
}

impl Trouble {
    /// All problems.
    pub const ALL: [Self; 4] = [Self::Damaged, Self::Full, Self::Locked, Self::Memory];

    /// The problem that an SQLite error stands for, if any.
    #[must_use]
    pub fn of(error: &rusqlite::Error) -> Option<Self> {
        match error.sqlite_error_code()? {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(Self::Damaged),
            ErrorCode::DiskFull => Some(Self::Full),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Some(Self::Locked),
            ErrorCode::OutOfMemory => Some(Self::Memory),
            _ => None,
        }
    }

    /// Name of the problem in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Full => "full",
            Self::Locked => "locked",
            Self::Memory => "memory",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Damaged => 0,
            Self::Full => 1,
            Self::Locked => 2,
            Self::Memory => 3,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Damaged => {
                "the database is damaged: the operator must stop the server and restore a backup"
            }
            Self::Full => "the disk is full; free some space and try again",
            Self::Locked => {
                "another program holds a lock on the database; `errand doctor` says which one, and it must end"
            }
            Self::Memory => "the server is out of memory; try again later",
        })
    }
}

/// The current problems of a store. Cheap to clone: a clone is the same state.
#[derive(Clone, Default)]
pub struct Condition {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Whether a successful commit ends a problem.
    passing: AtomicBool,
    /// Whether all writes are refused.
    refuses: AtomicBool,
    met: [AtomicU64; 4],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: [Option<Current>; 4],
    /// Problems that were logged since the last reminder. A problem that comes and goes is not logged each time.
    logged: [bool; 4],
    /// Why the open file is no longer that of the data directory.
    lost: Option<String>,
}

#[derive(Clone)]
struct Current {
    detail: String,
    /// Number of occurrences since it began, and at the last log message.
    met: u64,
    told: u64,
    /// Whether its beginning was logged.
    is_logged: bool,
}

impl Condition {
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a failed operation.
    pub(crate) fn failed(&self, error: &StoreError) {
        if let StoreError::Trouble { what, source } = error {
            self.met(*what, &source.to_string());
        }
    }

    /// Records an occurrence of a problem.
    pub fn met(&self, what: Trouble, detail: &str) {
        let index = what.index();
        if let Some(met) = self.inner.met.get(index) {
            met.fetch_add(1, Ordering::Relaxed);
        }
        let mut state = self.state();
        let State { now, logged, .. } = &mut *state;
        let (Some(now), Some(logged)) = (now.get_mut(index), logged.get_mut(index)) else {
            return;
        };
        if let Some(current) = now {
            current.met += 1;
            return;
        }
        let is_logged = !std::mem::replace(logged, true);
        *now = Some(Current {
            detail: detail.to_owned(),
            met: 1,
            told: u64::from(is_logged),
            is_logged,
        });
        if what == Trouble::Damaged {
            self.inner.refuses.store(true, Ordering::Release);
        } else {
            self.inner.passing.store(true, Ordering::Release);
        }
        drop(state);
        if is_logged {
            tell(what, detail);
        }
    }

    /// Records a successful commit. `wrote`: it wrote something, which proves that the disk has space.
    pub(crate) fn committed(&self, wrote: bool) {
        if self.inner.passing.load(Ordering::Acquire) {
            self.is_over(Trouble::Locked);
            self.is_over(Trouble::Memory);
            if wrote {
                self.is_over(Trouble::Full);
            }
        }
    }

    /// Records that a temporary problem is over.
    pub fn is_over(&self, what: Trouble) {
        let mut state = self.state();
        let Some(over) = state.now.get_mut(what.index()).and_then(Option::take) else {
            return;
        };
        let passing = [Trouble::Full, Trouble::Locked, Trouble::Memory]
            .iter()
            .any(|what| state.now.get(what.index()).is_some_and(Option::is_some));
        self.inner.passing.store(passing, Ordering::Release);
        drop(state);
        if over.is_logged {
            tracing::info!(
                trouble = what.as_str(),
                times = over.met,
                "the store can write again"
            );
        }
    }

    /// Logs the current problems, with the number of occurrences since the last message.
    pub fn remind(&self) {
        for what in Trouble::ALL {
            let mut state = self.state();
            let State { now, logged, .. } = &mut *state;
            if let Some(logged) = logged.get_mut(what.index()) {
                *logged = false;
            }
            let Some(current) = now.get_mut(what.index()).and_then(Option::as_mut) else {
                continue;
            };
            let more = current.met - current.told;
            current.told = current.met;
            current.is_logged = true;
            drop(state);
            if more > 0 {
                tracing::error!(
                    trouble = what.as_str(),
                    times = more,
                    "the store still cannot take writes: {what}"
                );
            }
        }
    }

    /// Records that the open file is no longer that of the data directory. Logged once.
    pub fn lose(&self, why: &str) {
        let mut state = self.state();
        if state.lost.is_none() {
            state.lost = Some(why.to_owned());
            drop(state);
            self.inner.refuses.store(true, Ordering::Release);
            tracing::error!(
                "{why}: the server ends, because nothing that it writes would be found again"
            );
        }
    }

    /// Why all writes are refused. `None` if they are not.
    pub(crate) fn refusal(&self) -> Option<StoreError> {
        if !self.inner.refuses.load(Ordering::Acquire) {
            return None;
        }
        if let Some(lost) = &self.state().lost {
            return Some(StoreError::Unavailable(Cow::Owned(lost.clone())));
        }
        // Writing to a damaged database would make it worse.
        let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Some(rusqlite::Error::SqliteFailure(corrupt, None).into())
    }

    /// Whether this problem exists now.
    #[must_use]
    pub fn has(&self, what: Trouble) -> bool {
        self.state()
            .now
            .get(what.index())
            .is_some_and(Option::is_some)
    }

    /// SQLite's message at the first occurrence. `None` if the problem does not exist.
    #[must_use]
    pub fn detail(&self, what: Trouble) -> Option<String> {
        let state = self.state();
        let current = state.now.get(what.index())?.as_ref()?;
        Some(current.detail.clone())
    }

    /// Number of occurrences since the start.
    #[must_use]
    pub fn times(&self, what: Trouble) -> u64 {
        self.inner
            .met
            .get(what.index())
            .map_or(0, |met| met.load(Ordering::Relaxed))
    }

    /// Why the open file is no longer that of the data directory. `None` as far as is known.
    #[must_use]
    pub fn why_lost(&self) -> Option<String> {
        self.state().lost.clone()
    }

    /// Why writes cannot be served now, as a sentence. `None` if they can.
    #[must_use]
    pub fn why_not_ready(&self) -> Option<String> {
        if let Some(lost) = &self.state().lost {
            return Some(lost.clone());
        }
        Trouble::ALL
            .into_iter()
            .find(|what| self.has(*what))
            .map(|what| what.to_string())
    }
}

fn tell(what: Trouble, found: &str) {
    match what {
        Trouble::Damaged => tracing::error!(
            found,
            "the database is damaged: nothing is written any more, and the server is not ready. \
             Stop it, keep a copy of the data directory, and restore a backup; `errand doctor` says more"
        ),
        Trouble::Full => tracing::error!(
            found,
            "the disk is full and the store cannot take a write: writes are tried again until there is space; runs can still be stopped"
        ),
        Trouble::Locked => tracing::error!(
            found,
            "the database is locked by another program: writes are tried again until it releases the lock; `errand doctor` says which program it is"
        ),
        Trouble::Memory => tracing::error!(
            found,
            "the server is out of memory: operations that failed are tried again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: i32) -> StoreError {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None).into()
    }

    #[test]
    fn what_passes_is_over_with_the_next_commit_and_damage_is_not() {
        let condition = Condition::default();
        for code in [
            rusqlite::ffi::SQLITE_FULL,
            rusqlite::ffi::SQLITE_FULL,
            rusqlite::ffi::SQLITE_BUSY,
            rusqlite::ffi::SQLITE_NOMEM,
        ] {
            condition.failed(&failure(code));
        }
        assert_eq!(condition.times(Trouble::Full), 2);
        assert!(condition.why_not_ready().unwrap().contains("disk is full"));
        condition.committed(true);
        assert_eq!(condition.why_not_ready(), None);
        for code in [
            rusqlite::ffi::SQLITE_CORRUPT,
            rusqlite::ffi::SQLITE_CORRUPT_INDEX,
            rusqlite::ffi::SQLITE_NOTADB,
        ] {
            let condition = Condition::default();
            condition.failed(&failure(code));
            condition.committed(true);
            assert!(condition.refusal().is_some(), "{code}");
            assert!(
                condition
                    .why_not_ready()
                    .unwrap()
                    .contains("restore a backup")
            );
        }
    }

    #[test]
    fn what_a_caller_did_wrong_is_no_trouble() {
        let condition = Condition::default();
        condition.failed(&failure(rusqlite::ffi::SQLITE_CONSTRAINT));
        condition.failed(&StoreError::NotFound);
        assert_eq!(condition.why_not_ready(), None);
    }
}
