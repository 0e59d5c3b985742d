//! How far a call of a connection's tool has come: told to whoever watches the run now, and kept nowhere.
//!
//! Promised: what is published is heard, in order, by those who listen then, unless they are so slow that it is dropped
//! for them. Left out: those who come later, and other nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use errand_core::id::RunId;
use errand_core::time::Timestamp;
use tokio::sync::broadcast;

/// Notes that wait for a slow listener.
const NOTES_MAX: usize = 16;

/// One note.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Of which call.
    pub call_id: String,
    /// When it came.
    pub at: Timestamp,
    /// How far it is; of what, the server knows.
    pub progress: f64,
    /// Where it ends, if the server knows that.
    pub total: Option<f64>,
    /// The server's words, without secrets.
    pub message: Option<String>,
}

/// Where notes are published and heard. Cheap to clone.
#[derive(Clone, Default)]
pub struct Progress {
    heard: Arc<Mutex<HashMap<RunId, broadcast::Sender<Note>>>>,
}

/// Somebody who listens to a run.
pub struct ProgressListener {
    run: RunId,
    progress: Progress,
    notes: broadcast::Receiver<Note>,
}

impl Progress {
    fn heard(&self) -> MutexGuard<'_, HashMap<RunId, broadcast::Sender<Note>>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to a run from now on.
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

    /// Tells those who listen.
    pub fn publish(&self, run: RunId, note: impl FnOnce() -> Note) {
        if let Some(sender) = self.heard().get(&run) {
            // Nobody is left to hear it.
            let _ = sender.send(note());
        }
    }
}

impl ProgressListener {
    /// The next note.
    pub async fn next(&mut self) -> Note {
        loop {
            match self.notes.recv().await {
                Ok(note) => return note,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // The sender is kept as long as somebody listens.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Drop for ProgressListener {
    fn drop(&mut self) {
        let mut heard = self.progress.heard();
        // This one still counts.
        if heard
            .get(&self.run)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            heard.remove(&self.run);
        }
    }
}
