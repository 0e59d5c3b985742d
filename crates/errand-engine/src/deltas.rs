//! Publishes a model's text while it is streamed, to current subscribers of the run.
//!
//! # Guarantees
//!
//! Subscribers receive the pieces in order. A subscriber that is too slow misses pieces, which it detects by the
//! offsets.
//!
//! # Non-goals
//!
//! Storage, late subscribers, and other nodes. The finished message is stored and delivered as an event.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::{MessageId, RunId};
use tokio::sync::broadcast;

/// Buffered pieces per run. The buffer is allocated for each run with a subscriber, even if its model is silent.
const PIECES_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The id that the finished message will have.
    pub message: MessageId,
    /// The number of the attempt, starting at 1. The text of a new attempt replaces that of the previous one.
    pub attempt: u32,
    /// The number of bytes of this attempt's text before this piece.
    pub offset: usize,
    pub text: String,
}

/// The channel for pieces of text, by run. Cheap to clone.
#[derive(Clone, Default)]
pub struct Deltas {
    heard: Arc<Mutex<HashMap<RunId, broadcast::Sender<Delta>>>>,
}

/// A subscription to a run.
pub struct Listener {
    run: RunId,
    deltas: Deltas,
    pieces: broadcast::Receiver<Delta>,
}

impl Deltas {
    fn heard(&self) -> MutexGuard<'_, HashMap<RunId, broadcast::Sender<Delta>>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes to a run from now on.
    #[must_use]
    pub fn listen(&self, run: RunId) -> Listener {
        let mut heard = self.heard();
        let sender = heard
            .entry(run)
            .or_insert_with(|| broadcast::Sender::new(PIECES_MAX));
        Listener {
            run,
            deltas: self.clone(),
            pieces: sender.subscribe(),
        }
    }

    /// Publishes a piece. `delta` is not called if there is no subscriber.
    pub fn publish(&self, run: RunId, delta: impl FnOnce() -> Delta) {
        if let Some(sender) = self.heard().get(&run) {
            // An error means that the last subscriber is gone.
            let _ = sender.send(delta());
        }
    }
}

impl Listener {
    /// Waits for the next piece.
    pub async fn next(&mut self) -> Delta {
        loop {
            match self.pieces.recv().await {
                Ok(delta) => return delta,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // Unreachable: the sender is kept as long as there is a subscriber. Waiting is the safe reaction.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// The next piece, if one has already arrived.
    pub fn ready(&mut self) -> Option<Delta> {
        loop {
            match self.pieces.try_recv() {
                Ok(delta) => return Some(delta),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(
                    broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed,
                ) => return None,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut heard = self.deltas.heard();
        // This subscriber is still counted.
        if heard
            .get(&self.run)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            heard.remove(&self.run);
        }
    }
}

#[cfg(test)]
mod tests {
    use errand_core::id::IdGen;
    use errand_core::time::Timestamp;

    use super::*;

    #[test]
    fn subscribers_hear_and_leave_nothing_behind() {
        let ids = IdGen::new([4; 32]);
        let now = Timestamp::from_millis(1);
        let (run, other) = (ids.run(now), ids.run(now));
        let message = ids.message(now);
        let delta = |offset: usize| Delta {
            message,
            attempt: 1,
            offset,
            text: "piece".to_owned(),
        };
        let deltas = Deltas::default();
        deltas.publish(run, || panic!("nobody listens"));
        let (mut one, mut two) = (deltas.listen(run), deltas.listen(run));
        deltas.publish(other, || panic!("nobody listens to this one"));
        deltas.publish(run, || delta(0));
        deltas.publish(run, || delta(5));
        for listener in [&mut one, &mut two] {
            assert_eq!(listener.ready(), Some(delta(0)));
            assert_eq!(listener.ready(), Some(delta(5)));
            assert_eq!(listener.ready(), None);
        }
        drop(one);
        assert_eq!(deltas.heard().len(), 1);
        drop(two);
        assert!(deltas.heard().is_empty());
    }
}
