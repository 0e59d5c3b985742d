//! Server-sent events, as a response whose memory is bounded.
//!
//! Guarantees: an event is made only once the client has taken the one before it; of a stream that is not read, the
//! server holds one event and a piece of it. A client that takes nothing for `server.unread_timeout` is cut: everything
//! that its stream held is freed, and it resumes with `Last-Event-ID`. A stream ends when the server stops, also while it
//! waits for its client. One holder (an API key or a person) has at most `api.event_streams_per_key` streams, and of its
//! events that are larger than a page at most [`LARGE_PER_HOLDER`] are in memory at once; the others wait for their turn.

pub(crate) mod follow;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::header::{self, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::api::AppState;
use crate::api::slots::{Holder, Slot};

/// How much of an event is handed to the connection at once, in bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// How many events that are larger than a page one holder may have in memory.
const LARGE_PER_HOLDER: usize = 4;
/// How many there may be in all: each may have some megabytes.
const LARGE_MAX: usize = 32;

/// One event in the form of the wire.
pub(crate) struct Event(String);

impl Event {
    /// `data` may have several lines.
    pub(crate) fn new(id: Option<u64>, name: &str, data: &str) -> Self {
        let mut text = String::with_capacity(data.len() + name.len() + 40);
        if let Some(id) = id {
            // Writing to a string does not fail.
            let _ = writeln!(text, "id: {id}");
        }
        let _ = writeln!(text, "event: {name}");
        for line in data.split('\n') {
            let _ = writeln!(text, "data: {}", line.trim_end_matches('\r'));
        }
        text.push('\n');
        Self(text)
    }

    /// A sign of life, which clients pass over.
    pub(crate) fn comment() -> Self {
        Self(":\n\n".to_owned())
    }
}

/// Where the events of a stream come from.
pub(crate) trait Events: Send + 'static {
    /// The next event, as soon as there is one. None ends the stream. It may be dropped at any `await`.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

/// The response that streams `events`. The slot is held until the stream has ended.
pub(crate) fn respond(app: &AppState, events: impl Events, slot: Slot) -> Response {
    let (pieces, taken) = mpsc::channel(1);
    tokio::spawn(feed(app.clone(), events, pieces, slot));
    let body = stream::unfold(taken, async |mut taken| {
        taken
            .recv()
            .await
            .map(|piece: Bytes| (Ok::<_, Infallible>(piece), taken))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    let said = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in said {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Proxies that collect a response before they send it would hold the stream back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Hands events over, a piece at a time, as fast as the client takes them.
async fn feed(app: AppState, mut events: impl Events, pieces: mpsc::Sender<Bytes>, slot: Slot) {
    let _slot = slot;
    let unread = app.settings.unread_timeout;
    // The client has taken what came before, or the stream ends.
    let room = async || {
        tokio::select! {
            biased;
            room = tokio::time::timeout(unread, pieces.reserve()) => room.ok()?.ok(),
            () = app.draining.cancelled() => None,
        }
    };
    loop {
        let Some(mut place) = room().await else {
            return;
        };
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            // The client has gone.
            () = pieces.closed() => None,
        };
        let Some(Event(text)) = event else {
            return;
        };
        if text.len() <= PIECE_BYTES {
            place.send(text.into());
            continue;
        }
        // Copied, so that what the connection still holds of an event does not hold the whole of it.
        let mut rest = text.as_bytes().chunks(PIECE_BYTES).peekable();
        while let Some(piece) = rest.next() {
            place.send(Bytes::copy_from_slice(piece));
            if rest.peek().is_none() {
                break;
            }
            match room().await {
                Some(next) => place = next,
                None => return,
            }
        }
    }
}

/// Bounds how many events that are larger than a page are in memory.
#[derive(Clone)]
pub(crate) struct LargeEvents {
    all: Arc<Semaphore>,
    by_holder: Arc<Mutex<HashMap<Holder, Weak<Semaphore>>>>,
}

impl Default for LargeEvents {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(LARGE_MAX)),
            by_holder: Arc::default(),
        }
    }
}

/// One large event may be in memory, as long as this lives.
pub(crate) struct LargeEvent {
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl LargeEvents {
    /// Waits until one more large event of this holder may be in memory. None: the server ends.
    pub(crate) async fn enter(self, holder: Holder) -> Option<LargeEvent> {
        let own = self.of(holder);
        // The holder's own first: whoever waits for itself is not in the way of others.
        let own = own.acquire_owned().await.ok()?;
        let all = self.all.acquire_owned().await.ok()?;
        Some(LargeEvent {
            _permits: (own, all),
        })
    }

    fn of(&self, holder: Holder) -> Arc<Semaphore> {
        let mut by_holder = self
            .by_holder
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by_holder.get(&holder).and_then(Weak::upgrade) {
            return own;
        }
        by_holder.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(LARGE_PER_HOLDER));
        by_holder.insert(holder, Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_form_of_the_wire() {
        let event = Event::new(Some(3), "entry", "one\r\ntwo\n");
        assert_eq!(
            event.0,
            "id: 3\nevent: entry\ndata: one\ndata: two\ndata: \n\n"
        );
        assert_eq!(Event::new(None, "end", "x").0, "event: end\ndata: x\n\n");
    }

    #[tokio::test]
    async fn a_holder_has_few_large_events_in_memory() {
        let large = LargeEvents::default();
        let (a, b) = (Holder::Url([1; 32]), Holder::Url([2; 32]));
        let mut held = Vec::new();
        for _ in 0..LARGE_PER_HOLDER {
            held.push(large.clone().enter(a).await);
        }
        let mut waiting = Box::pin(large.clone().enter(a));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        assert!(large.clone().enter(b).await.is_some());
        held.pop();
        assert!(futures::poll!(waiting.as_mut()).is_ready());
    }
}
