//! How often runs have lost their claim in a row, in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::RunId;

/// Losses in a row after which a run is driven alone.
const SUSPECT: i64 = 2;

/// The counts above zero. Cheap to clone: a clone is the same table.
#[derive(Clone, Debug, Default)]
pub(crate) struct LossCounts(Arc<Mutex<HashMap<RunId, i64>>>);

impl LossCounts {
    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces all counts.
    pub(crate) fn replace(&self, counts: impl IntoIterator<Item = (RunId, i64)>) {
        *self.lock() = counts.into_iter().collect();
    }

    pub(crate) fn set(&self, run: RunId, lost: i64) {
        self.lock().insert(run, lost);
    }

    /// Whether the run must be driven alone.
    pub(crate) fn suspects(&self, run: RunId) -> bool {
        self.lock().get(&run).is_some_and(|lost| *lost >= SUSPECT)
    }

    /// Whether a step of the run resets a count. Stays true for the following steps, because the transaction may be
    /// rolled back.
    pub(crate) fn counts(&self, run: RunId) -> bool {
        let mut counts = self.lock();
        match counts.get_mut(&run) {
            Some(lost) => {
                *lost = 0;
                true
            }
            None => false,
        }
    }
}
