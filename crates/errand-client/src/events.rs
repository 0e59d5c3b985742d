//! The events of a run, as they happen.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::{Method, StatusCode, header};
use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;
use sse_stream::{Sse, SseByteStream};

use crate::client::Client;
use crate::error::Error;
use crate::human_requests::{AnsweredRequest, HumanRequest};
use crate::id::{MessageId, RunId};
use crate::messages::Message;
use crate::run::Run;
use crate::transport::Transport;

/// Maximum number of connections in a row that bring no event. With doubling pauses, they span about half a minute.
const FAILURES_MAX: u32 = 8;
/// Maximum size of an event, larger than any body of the API.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The name of the event after the last one of a run.
const END: &str = "end";

/// An event of a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// The number of the event within the run. `None` for events that are not repeated.
    pub id: Option<u64>,
    /// The event's name, such as `message.created`.
    pub name: String,
    /// The data. Null if it is not JSON.
    pub data: Value,
}

/// The parsed data of an event.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EventBody {
    /// `run.updated`: the run as it was then.
    RunUpdated(Box<Run>),
    /// `message.created`: a new message.
    MessageCreated(Box<Message>),
    /// `human_request.created`: the run asks a person.
    HumanRequestCreated(Box<HumanRequest>),
    /// `human_request.closed`: the request was answered, or needs no answer any more.
    HumanRequestClosed(Box<AnsweredRequest>),
    /// `message.delta`: a piece of a model's text while it arrives.
    MessageDelta(MessageDelta),
    /// `tool.progress`: how far a call of a connection's tool is.
    ToolProgress(ToolProgress),
    /// An event that this version of the crate does not know.
    Other,
}

/// A piece of a model's text. A new attempt, or an offset of 0, begins the text anew.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct MessageDelta {
    /// The id that the finished message will have.
    pub message_id: MessageId,
    /// Counted from 1.
    pub attempt: u32,
    /// The number of bytes of the text before this piece.
    pub offset: u64,
    /// The piece.
    pub text: String,
}

/// How far a call of a connection's tool is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct ToolProgress {
    /// The id of the call, among the run's messages.
    pub tool_call_id: String,
    /// A number that rises.
    pub progress: f64,
    /// The number that `progress` reaches, if the server of the tool knows it.
    pub total: Option<f64>,
    /// A note from the server of the tool. It comes from outside: show it as a quotation.
    pub message: Option<String>,
}

impl Event {
    /// Parses the data as the event's name says.
    ///
    /// # Errors
    /// [`Error::Event`] if the data does not have the form that the name requires.
    pub fn body(&self) -> Result<EventBody, Error> {
        let data = &self.data;
        let body = match self.name.as_str() {
            "run.updated" => Run::deserialize(data).map(|run| EventBody::RunUpdated(run.into())),
            "message.created" => {
                Message::deserialize(data).map(|message| EventBody::MessageCreated(message.into()))
            }
            "human_request.created" => HumanRequest::deserialize(data)
                .map(|request| EventBody::HumanRequestCreated(request.into())),
            "human_request.closed" => AnsweredRequest::deserialize(data)
                .map(|request| EventBody::HumanRequestClosed(request.into())),
            "message.delta" => MessageDelta::deserialize(data).map(EventBody::MessageDelta),
            "tool.progress" => ToolProgress::deserialize(data).map(EventBody::ToolProgress),
            _ => Ok(EventBody::Other),
        };
        body.map_err(|source| Error::Event {
            name: self.name.clone(),
            source,
        })
    }
}

impl From<Sse> for Event {
    fn from(event: Sse) -> Self {
        let data = event.data.unwrap_or_default();
        Self {
            id: event.id.and_then(|id| id.parse().ok()),
            name: event.event.unwrap_or_default(),
            data: serde_json::from_str(&data).unwrap_or(Value::Null),
        }
    }
}

/// The stream of a run's events.
///
/// # Guarantees
///
/// - Each numbered event is returned once and in order, even if the connection breaks.
/// - The stream ends with the last event of a run that has ended, and not when a connection breaks. If a message
///   resumes the run later, [`Client::events_after`] continues.
/// - An event that is too large, or a response that is no stream of events, ends the stream with an error.
pub struct Events {
    client: Client,
    run: RunId,
    /// The number of the last event that was returned.
    last: Option<u64>,
    connection: Option<Connection>,
    /// Whether a connection has ever come about, so that the address is right.
    has_connected: bool,
    /// Connections in a row that brought no event.
    failures: u32,
    has_ended: bool,
}

/// A response, and how many of its bytes belong to no complete event yet.
struct Connection {
    events: BoxStream<'static, Result<Sse, sse_stream::Error>>,
    pending_bytes: Arc<AtomicUsize>,
}

impl Connection {
    fn new(transport: &Arc<Transport>, response: Response) -> Self {
        let pending_bytes = Arc::new(AtomicUsize::new(0));
        let (count, limit) = (Arc::clone(&pending_bytes), Arc::clone(transport));
        let pieces = transport.pieces(response).map(move |piece| {
            let piece: Bytes = piece?;
            let before = count.fetch_add(piece.len(), Ordering::Relaxed);
            if before + piece.len() > EVENT_BYTES_MAX {
                return Err(limit.unexpected("an event without an end"));
            }
            Ok(piece)
        });
        Self {
            events: SseByteStream::new(pieces).boxed(),
            pending_bytes,
        }
    }

    async fn next(&mut self) -> Option<Result<Sse, sse_stream::Error>> {
        let event = self.events.next().await?;
        self.pending_bytes.store(0, Ordering::Relaxed);
        Some(event)
    }
}

impl Client {
    /// The events of a run, from the first on.
    #[must_use]
    pub fn events(&self, run: &RunId) -> Events {
        Events::new(self.clone(), run.clone(), None)
    }

    /// The events of a run after the one with this number, which a program has stored to continue after a restart.
    #[must_use]
    pub fn events_after(&self, run: &RunId, last: u64) -> Events {
        Events::new(self.clone(), run.clone(), Some(last))
    }
}

impl Events {
    fn new(client: Client, run: RunId, last: Option<u64>) -> Self {
        Self {
            client,
            run,
            last,
            connection: None,
            has_connected: false,
            failures: 0,
            has_ended: false,
        }
    }

    /// The number of the last numbered event that was returned: [`Client::events_after`] continues there.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// Waits for the next event. `None` after the last event of an ended run.
    ///
    /// # Errors
    /// See [`Error`]. Temporary errors are returned only if they persist.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        while !self.has_ended {
            let Some(connection) = &mut self.connection else {
                self.connect().await?;
                continue;
            };
            let error = match connection.next().await {
                // A block that has neither, for example only `retry`, is no event.
                Some(Ok(Sse {
                    event: None,
                    data: None,
                    ..
                })) => continue,
                Some(Ok(event)) => {
                    let event = Event::from(event);
                    self.failures = 0;
                    if event.name == END {
                        self.has_ended = true;
                        continue;
                    }
                    self.last = event.id.or(self.last);
                    return Ok(Some(event));
                }
                Some(Err(error)) => self.broken(error)?,
                None => self
                    .client
                    .transport
                    .unexpected("the stream ended before the run"),
            };
            self.connection = None;
            self.pause(error, FAILURES_MAX).await?;
        }
        self.connection = None;
        Ok(None)
    }

    /// The events as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, Error>> + Send + use<> {
        stream::try_unfold(self, |mut events| async move {
            let event = events.next().await?;
            Ok(event.map(|event| (event, events)))
        })
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let transport = &self.client.transport;
        let url = transport.url(["runs", self.run.as_str(), "events"])?;
        let mut request = transport.request(Method::GET, url);
        if let Some(last) = self.last {
            request = request.header("last-event-id", last);
        }
        match transport.open(request).await {
            Ok(response) if response.status() == StatusCode::NO_CONTENT => {
                self.has_ended = true;
                Ok(())
            }
            Ok(response) if is_event_stream(&response) => {
                self.has_connected = true;
                self.connection = Some(Connection::new(transport, response));
                Ok(())
            }
            Ok(_) => Err(transport.unexpected("not a stream of events")),
            Err(error) => match failures_max(&error, self) {
                Some(most) => self.pause(error, most).await,
                None => Err(error),
            },
        }
    }

    /// Returns the reason why a connection broke. Fails with it if another connection would not help.
    fn broken(&mut self, error: sse_stream::Error) -> Result<Error, Error> {
        self.connection = None;
        let transport = &self.client.transport;
        let sse_stream::Error::Body(cause) = error else {
            return Err(transport.unexpected("not a stream of events"));
        };
        match cause.downcast::<Error>().map(|error| *error) {
            Ok(error @ (Error::Broken(_) | Error::Stalled { .. })) => Ok(error),
            Ok(error) => Err(error),
            Err(_) => Err(transport.unexpected("the stream cannot be read")),
        }
    }

    /// Waits before the next connection. Returns the error if there were too many without an event.
    async fn pause(&mut self, error: Error, failures_max: u32) -> Result<(), Error> {
        let retry = self.client.transport.retry;
        let pause = retry
            .backoff(&error, self.failures)
            .filter(|_| self.failures < failures_max);
        let Some(pause) = pause else {
            return Err(error);
        };
        tokio::time::sleep(pause).await;
        self.failures += 1;
        Ok(())
    }
}

/// How many failures in a row are accepted if a connection did not come about. `None`: another attempt is useless.
fn failures_max(error: &Error, events: &Events) -> Option<u32> {
    match (error, error.status()) {
        (_, Some(status)) => {
            let is_temporary = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            is_temporary.then_some(FAILURES_MAX)
        }
        // Until there was a connection, the address may be wrong.
        (Error::Unreachable { .. } | Error::Stalled { .. }, _) if !events.has_connected => {
            Some(events.client.transport.retry.most())
        }
        (Error::Unreachable { .. } | Error::Stalled { .. }, _) => Some(FAILURES_MAX),
        _ => None,
    }
}

fn is_event_stream(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("run", &self.run)
            .field("last", &self.last)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}
