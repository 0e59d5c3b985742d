//! The bell: "there is more". It carries nothing; who hears it reads the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::RunId;
use tokio::sync::watch;

/// Rings for runs that somebody watches, and for the engine.
#[derive(Clone, Default)]
pub struct Bell {
    watched: Arc<Mutex<HashMap<RunId, watch::Sender<u64>>>>,
    work: Arc<tokio::sync::Notify>,
    outbox: Arc<tokio::sync::Notify>,
    driven: Arc<Mutex<HashMap<RunId, Arc<tokio::sync::Notify>>>>,
}

/// A driver's ear: hears when its run was taken from it (a stop, a limit).
pub struct Fence {
    run: RunId,
    bell: Bell,
    notify: Arc<tokio::sync::Notify>,
}

/// Somebody's watch on a run.
pub struct Watch {
    run: RunId,
    bell: Bell,
    receiver: watch::Receiver<u64>,
}

impl Bell {
    /// Watches a run. What rang before is not heard: read first.
    #[must_use]
    pub fn watch(&self, run: RunId) -> Watch {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = watched.entry(run).or_insert_with(|| watch::Sender::new(0));
        Watch {
            run,
            bell: self.clone(),
            receiver: sender.subscribe(),
        }
    }

    /// Something happened to a run.
    pub(crate) fn ring(&self, run: RunId) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watched.get(&run) {
            sender.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Something happened that may concern every watcher, such as the end of a key.
    pub(crate) fn ring_all(&self) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in watched.values() {
            sender.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Listens for the fencing of a run that the caller drives. One listener for each run.
    #[must_use]
    pub fn fence(&self, run: RunId) -> Fence {
        let notify = Arc::new(tokio::sync::Notify::new());
        let mut driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        driven.insert(run, Arc::clone(&notify));
        Fence {
            run,
            bell: self.clone(),
            notify,
        }
    }

    /// Whether somebody listens for the fencing of the run: a driver is at work on it, or has just been given it.
    pub(crate) fn is_driven(&self, run: RunId) -> bool {
        let driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        driven.contains_key(&run)
    }

    /// A run was taken from its driver.
    pub(crate) fn ring_fence(&self, run: RunId) {
        let driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = driven.get(&run) {
            notify.notify_one();
        }
    }

    /// There are runs that want a driver, or requests that may lapse at another time than before.
    pub(crate) fn ring_work(&self) {
        self.work.notify_one();
    }

    /// There are deliveries.
    pub(crate) fn ring_outbox(&self) {
        self.outbox.notify_one();
    }

    /// Until there may be work for the engine. One listener.
    pub async fn work(&self) {
        self.work.notified().await;
    }

    /// Until there may be deliveries. One listener.
    pub async fn outbox(&self) {
        self.outbox.notified().await;
    }
}

impl Watch {
    /// Until something happened since the last call.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Fence {
    /// Until the run was taken from its driver.
    pub async fn fenced(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let mut driven = self
            .bell
            .driven
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A later driver of the same run may have put its own ear there.
        if driven
            .get(&self.run)
            .is_some_and(|notify| Arc::ptr_eq(notify, &self.notify))
        {
            driven.remove(&self.run);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self
            .bell
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if watched
            .get(&self.run)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            watched.remove(&self.run);
        }
    }
}
