//! Server-sent events as a response with bounded memory.
//!
//! # Guarantees
//!
//! - An event is produced only after the client has received the previous one. For a stream that is not read, the
//!   server holds one event and one piece of it.
//! - A client that reads nothing for `server.unread_timeout` is disconnected, and everything that its stream held is
//!   freed. It resumes with `Last-Event-ID`.
//! - A stream ends when the server stops, even while it waits for its client.
//! - One holder (an API key or a person) has at most `api.event_streams_per_key` streams. At most [`LARGE_PER_HOLDER`]
//!   of its events that are larger than a page are in memory at the same time; others wait.

pub(crate) mod follow;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use errand_engine::EngineContext;
use errand_engine::clock::Clock;
use futures::stream;
use http::header::{self, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::slots::{Holder, Slot};

/// The size of the pieces in which an event is handed to the connection.
const PIECE_BYTES: usize = 64 * 1024;
/// Maximum number of events larger than a page that are in memory for one holder.
const LARGE_PER_HOLDER: usize = 4;
/// Maximum number in total: each can have several megabytes.
const LARGE_MAX: usize = 32;

/// An event in its wire form.
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

    /// A comment, which clients ignore. It keeps the connection alive.
    pub(crate) fn comment() -> Self {
        Self(":\n\n".to_owned())
    }
}

/// A source of events.
pub(crate) trait Events: Send + 'static {
    /// The next event, as soon as there is one. `None` ends the stream. The future may be dropped at any await point.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

/// The state that the streams of one server share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Streams {
    clock: Clock,
    draining: CancellationToken,
    /// How long a client may read nothing of a stream.
    unread_timeout: Duration,
    large: LargeEvents,
}

impl Streams {
    pub(crate) fn new(engine: &EngineContext, unread_timeout: Duration) -> Self {
        Self {
            clock: engine.clock.clone(),
            draining: engine.draining.clone(),
            unread_timeout,
            large: LargeEvents::default(),
        }
    }
}

/// The response that streams `events`. The slot is held until the stream ends.
pub(crate) fn respond(streams: &Streams, events: impl Events, slot: Slot) -> Response {
    let (pieces, taken) = mpsc::channel(1);
    tokio::spawn(feed(streams.clone(), events, pieces, slot));
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
    // Prevents proxies from buffering the response.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Sends events piece by piece, as fast as the client reads them.
async fn feed(streams: Streams, mut events: impl Events, pieces: mpsc::Sender<Bytes>, slot: Slot) {
    let _slot = slot;
    let unread = streams.unread_timeout;
    // Waits until the client has read the previous piece, or the stream must end.
    let room = async || {
        tokio::select! {
            biased;
            room = tokio::time::timeout(unread, pieces.reserve()) => room.ok()?.ok(),
            () = streams.draining.cancelled() => None,
        }
    };
    loop {
        let Some(mut place) = room().await else {
            return;
        };
        let event = tokio::select! {
            biased;
            event = events.next() => event,
            // The client has disconnected.
            () = pieces.closed() => None,
        };
        let Some(Event(text)) = event else {
            return;
        };
        if text.len() <= PIECE_BYTES {
            place.send(text.into());
            continue;
        }
        // The pieces are copied, so that a piece that the connection still holds does not keep the whole event alive.
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

/// Limits the number of events in memory that are larger than a page.
#[derive(Clone)]
struct LargeEvents {
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

/// A permit to hold one large event in memory.
struct LargeEvent {
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl LargeEvents {
    /// Waits for a permit. `None`: the server is stopping.
    async fn enter(self, holder: Holder) -> Option<LargeEvent> {
        let own = self.of(holder);
        // The holder's permit comes first, so that a holder that waits for itself does not block others.
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
    fn an_event_has_its_wire_form() {
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
