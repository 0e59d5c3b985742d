//! The master keys of a running store: the current one, which seals, and earlier ones, which still open.
//!
//! # Guarantees
//!
//! A secret that is sealed within a write is sealed under the key that is current when the writer executes it. After
//! the write of a rotation, nothing new is therefore sealed under an old key.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::{MasterKey, SealError};

/// The master keys of a running store.
pub(crate) struct Keyring {
    current: RwLock<Arc<MasterKey>>,
    /// Earlier keys, newest first. They open what was read before a rotation.
    earlier: RwLock<Vec<Arc<MasterKey>>>,
    /// Purposes for which a warning about an unreadable secret was already logged.
    told: Mutex<HashSet<String>>,
    /// Held by the rotation in progress. There is at most one.
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

    /// Makes another key the current one. Earlier keys still open.
    pub(crate) fn add(&self, key: Arc<MasterKey>) {
        // Added to the list first, so that a key is never missing from both places.
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

    /// Returns `true` the first time it is called for a purpose, to log a warning only once.
    pub(crate) fn is_news(&self, purpose: &str) -> bool {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(purpose.to_owned())
    }

    /// Opens a secret with whichever key it was sealed under.
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
