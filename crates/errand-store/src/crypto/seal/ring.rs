//! The master keys that a running store knows: one that seals, and those that still open.
//!
//! Promised: what is sealed inside a write is sealed under the key that is current when the writer comes to it, so that
//! after a rotation's own write nothing new is under an old key.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::{MasterKey, SealError};

/// See the module's document.
pub(crate) struct Keyring {
    current: RwLock<Arc<MasterKey>>,
    /// Those before it, the newest first: what was read before a rotation is opened after it.
    earlier: RwLock<Vec<Arc<MasterKey>>>,
    /// Purposes whose secrets could not be opened, where that was logged.
    told: Mutex<HashSet<String>>,
    /// Held by the one rotation that is under way.
    pub(crate) rotating: tokio::sync::Mutex<()>,
}

impl Keyring {
    pub(crate) fn new(key: MasterKey) -> Self {
        Self {
            current: RwLock::new(Arc::new(key)),
            earlier: RwLock::default(),
            told: Mutex::default(),
            rotating: tokio::sync::Mutex::default(),
        }
    }

    /// Makes another key the current one. The earlier ones still open.
    pub(crate) fn add(&self, key: Arc<MasterKey>) {
        // Into the list first: at no moment is a key in neither place.
        let before = self.current();
        self.earlier
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(0, before);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// The key that seals.
    pub(crate) fn current(&self) -> Arc<MasterKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether one of the keys has this id.
    pub(crate) fn has(&self, id: &str) -> bool {
        let earlier = self.earlier.read().unwrap_or_else(PoisonError::into_inner);
        self.current().id() == id || earlier.iter().any(|key| key.id() == id)
    }

    /// Whether this was not said of that purpose yet: for lines of the log.
    pub(crate) fn is_news(&self, purpose: &str) -> bool {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(purpose.to_owned())
    }

    /// Opens by whichever key it was sealed under.
    pub(crate) fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let answer = self.current().open(purpose, sealed);
        if !matches!(answer, Err(SealError::OtherKey { .. })) {
            return answer;
        }
        let earlier = self
            .earlier
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        earlier
            .iter()
            .map(|key| key.open(purpose, sealed))
            .find(|opened| !matches!(opened, Err(SealError::OtherKey { .. })))
            .unwrap_or(answer)
    }
}
