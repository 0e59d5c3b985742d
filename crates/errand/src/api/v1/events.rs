//! The event stream of a run.
//!
//! # Guarantees
//!
//! - The stream sends every event after the number that the client gives, in order and once; then new events, until the
//!   run has ended.
//! - Events are always read from the store. The notifier only says that there are more.
//! - The stream ends when its key becomes invalid, when the server stops, and when the client reads nothing for a
//!   minute ([`crate::http::streaming`]). A client resumes from the last number that it received.
//! - Events are read in pages of 256 KiB. A larger event is read alone, and only few of those are in memory at the same
//!   time.

use std::collections::{HashSet, VecDeque};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use errand_core::error_chain::error_chain;
use errand_core::id::RunId;
use errand_core::time::Timestamp;
use errand_engine::deltas::{Delta, Listener};
use errand_engine::progress::{Note, ProgressListener};
use errand_store::model::{EventPage, EventRow};
use errand_store::{PageBounds, Watch};
use http::StatusCode;
use http::header::{HeaderMap, HeaderName};
use serde_json::{Map, Value};
use utoipa::IntoParams;

use crate::api::auth::Caller;
use crate::api::query::{Given, Query, QueryParams};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::http::slots::Holder;
use crate::http::streaming::follow::{Follower, PageRead, Source};
use crate::http::streaming::{Event, respond};
use crate::state::AppState;

/// The size of a page of events.
const PAGE: PageBounds = PageBounds {
    entries: 100,
    bytes: 256 * 1024,
    whole: false,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Query parameters of the event stream.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what After reads")]
pub(crate) struct EventsParams {
    /// The number of the last known event. The `Last-Event-ID` header takes precedence.
    #[param(minimum = 0)]
    after: Option<u64>,
}

pub(crate) struct After(Option<u64>);

impl QueryParams for After {
    fn read(given: &Given) -> Result<Self, ApiError> {
        given.whole("after", 0..=u64::MAX).map(Self)
    }
}

/// Streams the events of a run.
///
/// The events are `run.updated`, `message.created`, `human_request.created`, `human_request.closed`, and `end` after
/// the last event of an ended run. The data is an object with `run_id`, `created_at`, and the object in the same form
/// as `GET` returns it.
///
/// While a network model answers, `message.delta` contains a piece of its text: `message_id`, `attempt`, `offset` (the
/// number of bytes before the piece) and `text`. A new attempt, or an offset of 0, starts the text again. While a call
/// of a connection's tool is in progress, `tool.progress` reports its progress: `tool_call_id`, `progress`, `total`,
/// `message`. These two have no number and are not repeated.
#[utoipa::path(get, path = "/v1/runs/{run_id}/events", tag = "Runs",
    params(
        ("run_id" = Uuid, Path, description = "The run."),
        EventsParams,
        ("Last-Event-ID" = Option<u64>, Header, description = "The number of the last known event."),
    ),
    responses(
        (status = 200, description = "The stream.", body = String, content_type = "text/event-stream"),
        (status = 204, description = "The run has ended, and the client has its last event."),
    ))]
pub(crate) async fn stream_events(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
    Query(After(after)): Query<After>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let known = last_event_id(&headers)?.or(after);
    let holder = Holder::Key(caller.api_key());
    let slot = app.begin_stream(holder)?;
    // Subscribe before reading, so that no event in between is missed.
    let watch = app.store.bell().watch(run);
    let listener = app.deltas.listen(run);
    let progress = app.connections.progress().listen(run);
    let page = app
        .store
        .event_page(caller.team(), run, known.unwrap_or(0), PAGE)
        .await?;
    if let Some(number) = known {
        if number > page.last {
            return Err(ApiError::bad_request(format!(
                "Last-Event-ID: {number} is greater than the number of the run's last event, which is {}",
                page.last
            )));
        }
        if page.ended && number == page.last {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
    }
    let events = RunEvents {
        app: app.clone(),
        caller,
        run,
        after: known.unwrap_or(0),
        last_at: app.clock.now(),
        watch,
        listener,
        progress,
        first: Some(page),
    };
    let follower = Follower::new(app.streams.clone(), holder, PAGE, events, VecDeque::new());
    Ok(respond(&app.streams, follower, slot))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let number = Some(text)
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        ApiError::bad_request("Last-Event-ID: it must be the number of an event from this stream")
    })
}

/// The events of a run, as one caller may see them.
struct RunEvents {
    app: AppState,
    caller: Caller,
    run: RunId,
    after: u64,
    /// The time of the last event that was sent.
    last_at: Timestamp,
    watch: Watch,
    listener: Listener,
    progress: ProgressListener,
    /// The page that was read when the request was validated.
    first: Option<EventPage>,
}

impl Source for RunEvents {
    async fn may_be_read(&mut self) -> bool {
        self.first.is_some() || self.caller.still_counts(&self.app).await
    }

    async fn read(&mut self, bounds: PageBounds, ready: &mut VecDeque<Event>) -> PageRead {
        if let Some(page) = self.first.take() {
            return self.take(page, ready);
        }
        // Pieces of a text precede their message.
        self.hear(ready);
        let page = self
            .app
            .store
            .event_page(self.caller.team(), self.run, self.after, bounds)
            .await;
        match page {
            Ok(page) => self.take_behind_its_pieces(page, ready),
            Err(error) => {
                tracing::warn!(run.id = %self.run, error = error_chain(&error), "an event stream ends early");
                PageRead::Failed
            }
        }
    }

    async fn wait(&mut self, ready: &mut VecDeque<Event>) {
        tokio::select! {
            // Pieces of text come first, because the message that follows contains them.
            biased;
            delta = self.listener.next() => {
                ready.push_back(delta_of(self.run, self.app.clock.now(), &delta));
                self.hear(ready);
            }
            () = self.watch.changed() => {}
            note = self.progress.next() => ready.push_back(progress_of(self.run, note)),
        }
    }
}

impl RunEvents {
    fn take(&mut self, page: EventPage, ready: &mut VecDeque<Event>) -> PageRead {
        if page.large {
            return PageRead::TooLarge;
        }
        let is_last = page.events.is_empty() && page.ended && self.after >= page.last;
        for row in page.events {
            self.after = row.seq;
            self.last_at = row.created_at;
            ready.push_back(event_of(self.run, row));
        }
        if !is_last {
            return PageRead::Whole;
        }
        let data = Value::Object(about(self.run, self.last_at)).to_string();
        ready.push_back(Event::new(None, "end", &data));
        PageRead::Last
    }

    /// Queues a page. Pieces that arrived while the page was read are put before it if they belong to its messages,
    /// otherwise after it.
    fn take_behind_its_pieces(&mut self, page: EventPage, ready: &mut VecDeque<Event>) -> PageRead {
        let messages: HashSet<&str> = page
            .events
            .iter()
            .filter_map(|row| row.data.get("id")?.as_str())
            .collect();
        let mut after = Vec::new();
        while let Some(delta) = self.listener.ready() {
            let is_of_page = messages.contains(delta.message.to_string().as_str());
            let event = delta_of(self.run, self.app.clock.now(), &delta);
            if is_of_page || messages.is_empty() {
                ready.push_back(event);
            } else {
                after.push(event);
            }
        }
        let read = self.take(page, ready);
        ready.extend(after);
        read
    }

    /// Queues the pieces of text that have arrived.
    fn hear(&mut self, ready: &mut VecDeque<Event>) {
        while let Some(delta) = self.listener.ready() {
            ready.push_back(delta_of(self.run, self.app.clock.now(), &delta));
        }
    }
}

/// The fields that are common to all events.
fn about(run: RunId, created_at: Timestamp) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert("run_id".to_owned(), Value::String(run.to_string()));
    data.insert(
        "created_at".to_owned(),
        Value::String(created_at.to_string()),
    );
    data
}

/// A piece of an unfinished message. It has no number, because it is not repeated.
fn delta_of(run: RunId, now: Timestamp, delta: &Delta) -> Event {
    let mut data = about(run, now);
    let fields = [
        ("message_id", Value::String(delta.message.to_string())),
        ("attempt", Value::from(delta.attempt)),
        ("offset", Value::from(delta.offset)),
        ("text", Value::String(delta.text.clone())),
    ];
    data.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    Event::new(None, "message.delta", &Value::Object(data).to_string())
}

/// The progress of a call of a connection's tool. It has no number, because it is not repeated.
fn progress_of(run: RunId, note: Note) -> Event {
    let mut data = about(run, note.at);
    let fields = [
        ("tool_call_id", Value::String(note.call_id)),
        ("progress", Value::from(note.progress)),
        ("total", Value::from(note.total)),
        ("message", Value::from(note.message)),
    ];
    data.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    Event::new(None, "tool.progress", &Value::Object(data).to_string())
}

fn event_of(run: RunId, row: EventRow) -> Event {
    let mut data = about(run, row.created_at);
    // The object's fields come last: if it has its own `created_at`, that one is returned, as with `GET`.
    if let Value::Object(object) = row.data {
        data.extend(object);
    }
    let data = Value::Object(data).to_string();
    Event::new(Some(row.seq), row.kind.as_str(), &data)
}
