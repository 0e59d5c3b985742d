//! The master keys that a running store knows: one that seals, and those that still open.
//!
//! Promised: what is sealed inside a write is sealed under the key that is current when the writer comes to it, so that
//! after a rotation's own write nothing new is under an old key.

use std::sync::{Arc, PoisonError, RwLock};

use super::{MasterKey, SealError};

/// See the module's document.
pub(crate) struct Keyring {
    current: RwLock<Arc<MasterKey>>,
    /// Those before it, the newest first: what was read before a rotation is opened after it.
    earlier: RwLock<Vec<Arc<MasterKey>>>,
    /// Held by the one rotation that is under way.
    pub(crate) rotating: tokio::sync::Mutex<()>,
}

impl Keyring {
    pub(crate) fn new(key: MasterKey) -> Self {
        Self {
            current: RwLock::new(Arc::new(key)),
            earlier: RwLock::default(),
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
