//! Whether the store can do its work now, and if not, why: one place for readiness, figures, `errand doctor` and the log.
//!
//! Promised: each trouble is logged once when it comes, then with a count as often as [`Condition::remind`] is called, and
//! once when it is over. A damaged or lost database never becomes whole by itself: only a start with another file does
//! that.
//!
//! Left out: when a full disk has room again without a write that shows it (the program looks), and what is done about
//! any of it.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::ErrorCode;

use crate::error::StoreError;

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// SQLite found that its file is not what it wrote.
    Damaged,
    /// The disk has no room.
    Full,
    /// Another program holds a lock on the database.
    Locked,
    /// The process has no memory left.
    Memory,
}

impl Trouble {
    /// All.
    pub const ALL: [Self; 4] = [Self::Damaged, Self::Full, Self::Locked, Self::Memory];

    /// What an error of SQLite says.
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

    /// The word for it, as figures have it.
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
            Self::Full => "the disk is full; make room and try again",
            Self::Locked => {
                "another program holds a lock on the database; `errand doctor` says which one, and it must end"
            }
            Self::Memory => "the server is out of memory; try again later",
        })
    }
}

/// See the module's document. Cheap to clone.
#[derive(Clone, Default)]
pub struct Condition {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Whether a commit that succeeds ends something.
    passing: AtomicBool,
    /// Whether nothing may be written any more.
    refuses: AtomicBool,
    met: [AtomicU64; 4],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: [Option<Current>; 4],
    /// What was logged since the last reminder: what comes and goes is not logged each time.
    logged: [bool; 4],
    /// Why the file that is open is not the data directory's any more.
    lost: Option<String>,
}

#[derive(Clone)]
struct Current {
    detail: String,
    /// How often it was met since it began, and how often when it was last logged.
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

    /// An operation failed.
    pub(crate) fn failed(&self, error: &StoreError) {
        if let StoreError::Trouble { what, source } = error {
            self.met(*what, &source.to_string());
        }
    }

    /// Something was met.
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

    /// A commit succeeded. `wrote`: it had something to write, so that there is room.
    pub(crate) fn committed(&self, wrote: bool) {
        if self.inner.passing.load(Ordering::Acquire) {
            self.is_over(Trouble::Locked);
            self.is_over(Trouble::Memory);
            if wrote {
                self.is_over(Trouble::Full);
            }
        }
    }

    /// Something that passes is over.
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

    /// Logs what goes on, with how often it was met since it was last told.
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

    /// The file that is open is not the data directory's any more. Said once.
    pub fn lose(&self, why: &str) {
        let mut state = self.state();
        if state.lost.is_none() {
            state.lost = Some(why.to_owned());
            drop(state);
            self.inner.refuses.store(true, Ordering::Release);
            tracing::error!(
                "{why}: the server ends, since nothing that it writes would be found again"
            );
        }
    }

    /// Why nothing may be written any more. None: it may.
    pub(crate) fn refusal(&self) -> Option<StoreError> {
        if !self.inner.refuses.load(Ordering::Acquire) {
            return None;
        }
        if let Some(lost) = &self.state().lost {
            return Some(StoreError::Unavailable(Cow::Owned(lost.clone())));
        }
        // Nothing is written to a database that is damaged: it would become worse.
        let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Some(rusqlite::Error::SqliteFailure(corrupt, None).into())
    }

    /// Whether this is in the way now.
    #[must_use]
    pub fn has(&self, what: Trouble) -> bool {
        self.state()
            .now
            .get(what.index())
            .is_some_and(Option::is_some)
    }

    /// What SQLite said when this was first met. None: it is not in the way.
    #[must_use]
    pub fn detail(&self, what: Trouble) -> Option<String> {
        let state = self.state();
        let current = state.now.get(what.index())?.as_ref()?;
        Some(current.detail.clone())
    }

    /// How often something was met since the start.
    #[must_use]
    pub fn times(&self, what: Trouble) -> u64 {
        self.inner
            .met
            .get(what.index())
            .map_or(0, |met| met.load(Ordering::Relaxed))
    }

    /// Why the file that is open is not the data directory's any more. None: it is, as far as is known.
    #[must_use]
    pub fn why_lost(&self) -> Option<String> {
        self.state().lost.clone()
    }

    /// Why no request that writes can be served now, in a sentence. None: it can.
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
            "the disk is full and the store cannot take a write: it is tried again until there is room; runs can still be stopped"
        ),
        Trouble::Locked => tracing::error!(
            found,
            "the database is locked by another program: writes are tried again until it lets go; `errand doctor` says which one"
        ),
        Trouble::Memory => tracing::error!(
            found,
            "the server is out of memory: what needed it is tried again"
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
