//! A model's text while it comes: told to whoever watches the run now, and kept nowhere.
//!
//! Promised: what is published is heard, in order, by those who listen then, unless they are so slow that it is dropped
//! for them; the offset in each piece tells. What counts is the finished message, which is stored. Left out: those who come
//! later, and other nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::{MessageId, RunId};
use tokio::sync::broadcast;

/// Pieces that wait for a slow listener. Room for them is made for each run that is watched, whether its model speaks or not.
const PIECES_MAX: usize = 64;

/// A piece of a message's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The id that the message will have.
    pub message: MessageId,
    /// Which attempt to have it, from 1: the text of a new one replaces that of the last.
    pub attempt: u32,
    /// How many bytes of this attempt's text came before.
    pub offset: usize,
    /// The piece.
    pub text: String,
}

/// Where pieces are published and heard. Cheap to clone.
#[derive(Clone, Default)]
pub struct Deltas {
    heard: Arc<Mutex<HashMap<RunId, broadcast::Sender<Delta>>>>,
}

/// Somebody who listens to a run.
pub struct Listener {
    run: RunId,
    deltas: Deltas,
    pieces: broadcast::Receiver<Delta>,
}

impl Deltas {
    fn heard(&self) -> MutexGuard<'_, HashMap<RunId, broadcast::Sender<Delta>>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to a run from now on.
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

    /// Tells those who listen.
    pub fn publish(&self, run: RunId, delta: impl FnOnce() -> Delta) {
        if let Some(sender) = self.heard().get(&run) {
            // Nobody is left to hear it.
            let _ = sender.send(delta());
        }
    }
}

impl Listener {
    /// The next piece.
    pub async fn next(&mut self) -> Delta {
        loop {
            match self.pieces.recv().await {
                Ok(delta) => return delta,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // The sender is kept as long as somebody listens.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// The next piece, if there is one already.
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
        // This one still counts.
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
    fn those_who_listen_hear_and_nothing_is_left_behind() {
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
