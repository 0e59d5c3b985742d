//! Progress notes of calls of connections' tools, for the clients that follow the run now.
//!
//! # Guarantees
//!
//! Subscribers receive published notes in order. A subscriber that is too slow misses notes.
//!
//! # Non-goals
//!
//! Notes are not stored, so later subscribers and other nodes do not receive them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::RunId;
use errand_core::time::Timestamp;
use tokio::sync::broadcast;

/// Maximum number of notes that wait for a slow subscriber.
const NOTES_MAX: usize = 16;

/// One progress note.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub call_id: String,
    pub at: Timestamp,
    /// The progress so far, in a unit that only the server knows.
    pub progress: f64,
    /// The value of `progress` at the end, if the server knows it.
    pub total: Option<f64>,
    /// The server's message, with secrets masked.
    pub message: Option<String>,
}

/// Channels for the notes of runs. Cheap to clone.
#[derive(Clone, Default)]
pub struct Progress {
    heard: Arc<Mutex<HashMap<RunId, broadcast::Sender<Note>>>>,
}

/// A subscription to the notes of a run.
pub struct ProgressListener {
    run: RunId,
    progress: Progress,
    notes: broadcast::Receiver<Note>,
}

impl Progress {
    fn heard(&self) -> MutexGuard<'_, HashMap<RunId, broadcast::Sender<Note>>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes to a run from now on.
    #[must_use]
    pub fn listen(&self, run: RunId) -> ProgressListener {
        let mut heard = self.heard();
        let sender = heard
            .entry(run)
            .or_insert_with(|| broadcast::Sender::new(NOTES_MAX));
        ProgressListener {
            run,
            progress: self.clone(),
            notes: sender.subscribe(),
        }
    }

    /// Sends a note to the subscribers.
    pub fn publish(&self, run: RunId, note: impl FnOnce() -> Note) {
        if let Some(sender) = self.heard().get(&run) {
            // The last subscriber may just have gone.
            let _ = sender.send(note());
        }
    }
}

impl ProgressListener {
    /// Waits for the next note.
    pub async fn next(&mut self) -> Note {
        loop {
            match self.notes.recv().await {
                Ok(note) => return note,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // Not reached: the sender lives as long as a subscriber.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Drop for ProgressListener {
    fn drop(&mut self) {
        let mut heard = self.progress.heard();
        // The count includes this subscriber.
        if heard
            .get(&self.run)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            heard.remove(&self.run);
        }
    }
}
