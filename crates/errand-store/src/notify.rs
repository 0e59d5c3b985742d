//! Notifications within the process: "there may be more". They carry no data; the receiver reads the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::RunId;
use tokio::sync::watch;

/// Notifies those who watch runs, and the engine.
#[derive(Clone, Default)]
pub struct Bell {
    watched: Arc<Mutex<HashMap<RunId, Watched>>>,
    work: Arc<tokio::sync::Notify>,
    outbox: Arc<tokio::sync::Notify>,
    driven: Arc<Mutex<HashMap<RunId, Arc<tokio::sync::Notify>>>>,
}

/// Number of notifications of a run.
#[derive(Clone, Copy, Default)]
struct Rung {
    times: u64,
    /// Notifications at which the run was at rest.
    at_rest: u64,
}

struct Watched {
    sender: watch::Sender<Rung>,
    /// Number of watches on it.
    watches: usize,
}

/// Tells a driver that its run was taken from it (by a stop or a limit). Created by the claim, and registered by the
/// writer in commit order: it receives a stop that comes right after the claim, but none from before.
pub struct RevocationListener {
    run: RunId,
    bell: Bell,
    notify: Arc<tokio::sync::Notify>,
}

/// A subscription to the changes of a run.
pub struct Watch {
    run: RunId,
    bell: Bell,
    receiver: watch::Receiver<Rung>,
    /// Value of `Rung::at_rest` when it was last received.
    at_rest: u64,
}

impl Bell {
    /// Watches a run. Earlier notifications are not received, so read the store after calling this.
    #[must_use]
    pub fn watch(&self, run: RunId) -> Watch {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let of_run = watched.entry(run).or_insert_with(|| Watched {
            sender: watch::Sender::new(Rung::default()),
            watches: 0,
        });
        of_run.watches += 1;
        let receiver = of_run.sender.subscribe();
        let at_rest = receiver.borrow().at_rest;
        Watch {
            run,
            bell: self.clone(),
            receiver,
            at_rest,
        }
    }

    /// Number of watched runs.
    #[must_use]
    pub fn watched(&self) -> usize {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.len()
    }

    /// Notifies of a change of a run. `at_rest`: it has ended, or waits for a person.
    pub(crate) fn ring(&self, run: RunId, at_rest: bool) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_run) = watched.get(&run) {
            of_run.sender.send_modify(|rung| {
                rung.times = rung.times.wrapping_add(1);
                rung.at_rest = rung.at_rest.wrapping_add(u64::from(at_rest));
            });
        }
    }

    /// Notifies all watchers, for example because an API key has ended.
    pub(crate) fn ring_all(&self) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for of_run in watched.values() {
            of_run
                .sender
                .send_modify(|rung| rung.times = rung.times.wrapping_add(1));
        }
    }

    /// Creates a listener for the fencing of a run. It receives nothing until [`Bell::listen`] has registered it.
    pub(crate) fn revocation_listener(&self, run: RunId) -> RevocationListener {
        RevocationListener {
            run,
            bell: self.clone(),
            notify: Arc::new(tokio::sync::Notify::new()),
        }
    }

    /// Registers a listener for the fencing of a run. There is one per run: it replaces that of an earlier driver.
    pub(crate) fn listen(&self, run: RunId, ear: Arc<tokio::sync::Notify>) {
        let mut driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        driven.insert(run, ear);
    }

    /// Whether a driver has the run, or has just received it.
    pub(crate) fn is_driven(&self, run: RunId) -> bool {
        let driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        driven.contains_key(&run)
    }

    /// Tells the driver that its run was taken from it.
    pub(crate) fn ring_fence(&self, run: RunId) {
        let driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = driven.get(&run) {
            notify.notify_one();
        }
    }

    /// Notifies the engine of runs that want a driver, or of requests that may expire at a different time than
    /// before.
    pub(crate) fn ring_work(&self) {
        self.work.notify_one();
    }

    /// Notifies the outbox of new deliveries.
    pub(crate) fn ring_outbox(&self) {
        self.outbox.notify_one();
    }

    /// Waits until there may be work for the engine. Only one task may wait.
    pub async fn work(&self) {
        self.work.notified().await;
    }

    /// Waits until there may be deliveries. Only one task may wait.
    pub async fn outbox(&self) {
        self.outbox.notified().await;
    }
}

impl Watch {
    /// Waits until something has changed since the last call.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the run has come to rest (ended, or waiting for a person) since the watch began, or since the last
    /// call. Changes in between are skipped without reading the store. When this returns, the run may already have
    /// continued.
    pub async fn came_to_rest(&mut self) {
        let heard = self.at_rest;
        let rung = self
            .receiver
            .wait_for(|rung| rung.at_rest != heard)
            .await
            .map(|rung| rung.at_rest);
        match rung {
            Ok(at_rest) => self.at_rest = at_rest,
            Err(_) => std::future::pending().await,
        }
    }
}

impl RevocationListener {
    /// The listener to register with [`Bell::listen`].
    pub(crate) fn ear(&self) -> Arc<tokio::sync::Notify> {
        Arc::clone(&self.notify)
    }

    /// Waits until the run was taken from its driver.
    pub async fn revoked(&self) {
        self.notify.notified().await;
    }
}

impl Drop for RevocationListener {
    fn drop(&mut self) {
        let mut driven = self
            .bell
            .driven
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A later driver of the same run may have registered its own listener.
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
        // Counted explicitly: two watches that are dropped at once would each still see the other's receiver.
        if let Some(of_run) = watched.get_mut(&self.run) {
            of_run.watches -= 1;
            if of_run.watches == 0 {
                watched.remove(&self.run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use errand_core::id::IdGen;
    use errand_core::time::Timestamp;

    use super::*;

    /// Whether the future completes without waiting.
    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future)
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    fn run() -> RunId {
        IdGen::new([1; 32]).run(Timestamp::from_millis(0))
    }

    #[test]
    fn a_watch_for_rest_receives_each_rest_once() {
        let (bell, run) = (Bell::default(), run());
        let mut early = bell.watch(run);
        bell.ring(run, true);
        let mut watch = bell.watch(run);
        bell.ring(run, false);
        bell.ring_all();
        assert!(is_ready(early.came_to_rest()));
        assert!(!is_ready(early.came_to_rest()));
        assert!(is_ready(watch.changed()));
        assert!(
            !is_ready(watch.came_to_rest()),
            "earlier notifications are not received"
        );
        bell.ring(run, true);
        bell.ring(run, true);
        bell.ring(run, false);
        assert!(is_ready(watch.came_to_rest()));
        assert!(!is_ready(watch.came_to_rest()), "several count as one");
    }

    #[test]
    fn a_dropped_watch_leaves_no_entry() {
        let (bell, run) = (Bell::default(), run());
        let (first, second) = (bell.watch(run), bell.watch(run));
        assert_eq!(bell.watched(), 1);
        drop(first);
        assert_eq!(bell.watched(), 1);
        drop(second);
        assert_eq!(bell.watched(), 0);
    }

    #[test]
    fn watches_dropped_at_once_leave_no_entry() {
        let (bell, run) = (Bell::default(), run());
        for _ in 0..500 {
            let (one, other) = (bell.watch(run), bell.watch(run));
            std::thread::scope(|scope| {
                scope.spawn(|| drop(one));
                scope.spawn(|| drop(other));
            });
            assert_eq!(bell.watched(), 0);
        }
    }
}
