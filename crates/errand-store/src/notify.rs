//! The bell: "there is more". It carries nothing; who hears it reads the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::RunId;
use tokio::sync::watch;

/// Rings for runs that somebody watches, and for the engine.
#[derive(Clone, Default)]
pub struct Bell {
    watched: Arc<Mutex<HashMap<RunId, Watched>>>,
    work: Arc<tokio::sync::Notify>,
    outbox: Arc<tokio::sync::Notify>,
    driven: Arc<Mutex<HashMap<RunId, Arc<tokio::sync::Notify>>>>,
}

/// What rang for a run.
#[derive(Clone, Copy, Default)]
struct Rung {
    /// How often.
    times: u64,
    /// How often when the run had come to rest.
    at_rest: u64,
}

/// A run that somebody watches.
struct Watched {
    sender: watch::Sender<Rung>,
    /// How many do.
    watches: usize,
}

/// A driver's ear: hears when its run was taken from it (a stop, a limit). Made by the claim, and put in place by the
/// writer in the order of what was committed: a stop that comes right after the claim is heard, one from before is not.
pub struct Fence {
    run: RunId,
    bell: Bell,
    notify: Arc<tokio::sync::Notify>,
}

/// Somebody's watch on a run.
pub struct Watch {
    run: RunId,
    bell: Bell,
    receiver: watch::Receiver<Rung>,
    /// How often the run had come to rest when that was last heard.
    at_rest: u64,
}

impl Bell {
    /// Watches a run. What rang before is not heard: read first.
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

    /// How many runs are watched now.
    #[must_use]
    pub fn watched(&self) -> usize {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.len()
    }

    /// Something happened to a run. `at_rest`: it has ended, or waits for a person.
    pub(crate) fn ring(&self, run: RunId, at_rest: bool) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_run) = watched.get(&run) {
            of_run.sender.send_modify(|rung| {
                rung.times = rung.times.wrapping_add(1);
                rung.at_rest = rung.at_rest.wrapping_add(u64::from(at_rest));
            });
        }
    }

    /// Something happened that may concern every watcher, such as the end of a key.
    pub(crate) fn ring_all(&self) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for of_run in watched.values() {
            of_run
                .sender
                .send_modify(|rung| rung.times = rung.times.wrapping_add(1));
        }
    }

    /// An ear for the fencing of a run, which hears once [`Bell::listen`] has put it in place.
    pub(crate) fn fence(&self, run: RunId) -> Fence {
        Fence {
            run,
            bell: self.clone(),
            notify: Arc::new(tokio::sync::Notify::new()),
        }
    }

    /// From here on this ear hears when the run is taken from its driver. One for each run: it takes the place of an
    /// earlier driver's.
    pub(crate) fn listen(&self, run: RunId, ear: Arc<tokio::sync::Notify>) {
        let mut driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        driven.insert(run, ear);
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

    /// Until the run came to rest (it ended, or waits for a person) since the watch began, or since the last call. What
    /// happens to it on the way is passed over without a look at the store; by now it may be on its way again.
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

impl Fence {
    /// What [`Bell::listen`] puts in place.
    pub(crate) fn ear(&self) -> Arc<tokio::sync::Notify> {
        Arc::clone(&self.notify)
    }

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
        // Counted by hand: two that go at once would each see the other's receiver still there.
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

    /// Whether it is done without having to wait.
    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future)
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    fn run() -> RunId {
        IdGen::new([1; 32]).run(Timestamp::from_millis(0))
    }

    #[test]
    fn a_watch_for_rest_hears_nothing_else_and_each_rest_once() {
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
            "what rang before is not heard"
        );
        bell.ring(run, true);
        bell.ring(run, true);
        bell.ring(run, false);
        assert!(is_ready(watch.came_to_rest()));
        assert!(!is_ready(watch.came_to_rest()), "several are heard as one");
    }

    #[test]
    fn a_watch_that_is_dropped_leaves_nothing() {
        let (bell, run) = (Bell::default(), run());
        let (first, second) = (bell.watch(run), bell.watch(run));
        assert_eq!(bell.watched(), 1);
        drop(first);
        assert_eq!(bell.watched(), 1);
        drop(second);
        assert_eq!(bell.watched(), 0);
    }

    #[test]
    fn watches_that_go_at_once_leave_nothing() {
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
