//! Streams a run's events, and resumes where the connection broke off.
//!
//! # Guarantees
//!
//! - Each numbered event is returned once and in order, even if the connection breaks.
//! - The end of the run is distinguished from a broken connection.
//!
//! # Non-goals
//!
//! Interpreting events (the caller reads [`ServerEvent::data`]).

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{Method, StatusCode};
use serde_json::Value;

use super::{Client, ClientError, path};

/// Maximum number of consecutive connection attempts without an event.
const TRIES: u32 = 8;
/// The delay before the first repeated attempt. It doubles with each attempt.
const PAUSE: Duration = Duration::from_millis(250);
/// Maximum size of an event, larger than any body of the API.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An event of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerEvent {
    /// The number of the event within the run. `None` for events that are not repeated.
    pub id: Option<u64>,
    /// The event's name, such as `message.created`.
    pub kind: String,
    /// The data object. Null if it is not JSON.
    pub data: Value,
}

/// The event stream of a run.
pub struct Events {
    client: Client,
    run: String,
    last: Option<u64>,
    body: Option<Body>,
    parser: Parser,
    tries: u32,
}

type Body = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

impl Events {
    pub(super) fn new(client: Client, run: String) -> Self {
        Self {
            client,
            run,
            last: None,
            body: None,
            parser: Parser::default(),
            tries: 0,
        }
    }

    /// Returns the next event. `None` after the last event of an ended run.
    ///
    /// # Errors
    /// As for any call, if the error is not temporary or persists for all attempts.
    pub async fn next(&mut self) -> Result<Option<ServerEvent>, ClientError> {
        loop {
            if let Some(event) = self.parser.ready.pop_front() {
                if event.kind == "end" {
                    return Ok(None);
                }
                self.tries = 0;
                self.last = event.id.or(self.last);
                return Ok(Some(event));
            }
            let Some(body) = &mut self.body else {
                if !self.connect().await? {
                    return Ok(None);
                }
                continue;
            };
            match body.next().await {
                Some(Ok(bytes)) if self.parser.held() + bytes.len() <= EVENT_BYTES_MAX => {
                    self.parser.feed(&bytes);
                }
                Some(Ok(_)) => {
                    return Err(self.client.strange("an event without an end".to_owned()));
                }
                Some(Err(error)) => self.broke(ClientError::Broken(error.without_url())).await?,
                None => {
                    let error = self
                        .client
                        .strange("the stream ended before the run".to_owned());
                    self.broke(error).await?;
                }
            }
        }
    }

    /// Connects. Returns false if there are no more events.
    async fn connect(&mut self) -> Result<bool, ClientError> {
        let events = path(&["runs", &self.run, "events"]);
        let mut request = self.client.request(Method::GET, &events);
        if let Some(last) = self.last {
            request = request.header("last-event-id", last);
        }
        match self.client.send(request).await {
            Ok(response) if response.status() == StatusCode::NO_CONTENT => Ok(false),
            Ok(response) => {
                self.parser = Parser::default();
                self.body = Some(Box::pin(response.bytes_stream()));
                Ok(true)
            }
            Err(error) => {
                self.broke(error).await?;
                Ok(true)
            }
        }
    }

    /// Waits before the next attempt. Returns the error if another attempt is useless.
    async fn broke(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.body = None;
        let passing = match &error {
            ClientError::Api { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            // If the first connection fails, the address may be wrong, so that error is not retried.
            ClientError::Unreachable { .. } => self.last.is_some(),
            _ => true,
        };
        if !passing || self.tries >= TRIES {
            return Err(error);
        }
        tokio::time::sleep(PAUSE * 2_u32.pow(self.tries)).await;
        self.tries += 1;
        Ok(())
    }
}

/// Parses server-sent events from pieces of any size.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    id: Option<u64>,
    kind: String,
    data: String,
    ready: VecDeque<ServerEvent>,
}

impl Parser {
    /// The number of buffered bytes of an unfinished event.
    fn held(&self) -> usize {
        self.line.len() + self.data.len()
    }

    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // A lone `\r` does not end a line here, although the format permits it: our server never sends one.
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.take(String::from_utf8_lossy(&line).trim_end_matches('\r'));
                }
                byte => self.line.push(*byte),
            }
        }
    }

    fn take(&mut self, line: &str) {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = value.parse().ok(),
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // Comments (an empty field name), `retry`, and unknown fields.
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let (id, kind, data) = (
            self.id.take(),
            std::mem::take(&mut self.kind),
            std::mem::take(&mut self.data),
        );
        if kind.is_empty() && data.is_empty() {
            return;
        }
        let data = serde_json::from_str(&data).unwrap_or(Value::Null);
        self.ready.push_back(ServerEvent { id, kind, data });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STREAM: &str = ": hello\n\nid: 1\nevent: run.updated\ndata: {\"status\":\n\
                          data: \"running\"}\n\n:\n\nevent: message.delta\ndata: {\"text\": \"é\"}\n\n\
                          event: end\ndata: {}\n\n";

    fn all(pieces: &[&[u8]]) -> Vec<ServerEvent> {
        let mut parser = Parser::default();
        pieces.iter().for_each(|piece| parser.feed(piece));
        parser.ready.into()
    }

    #[test]
    fn events_are_parsed_from_pieces_of_any_size() {
        let whole = all(&[STREAM.as_bytes()]);
        let event = |id, kind: &str, data| ServerEvent {
            id,
            kind: kind.to_owned(),
            data,
        };
        assert_eq!(
            whole,
            [
                event(Some(1), "run.updated", json!({"status": "running"})),
                event(None, "message.delta", json!({"text": "é"})),
                event(None, "end", json!({})),
            ]
        );
        for cut in 0..STREAM.len() {
            let (before, after) = STREAM.as_bytes().split_at(cut);
            assert_eq!(all(&[before, after]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_incomplete_event_is_not_returned() {
        assert!(all(&[b"id: 1\nevent: run.updated\ndata: {}\n"]).is_empty());
    }
}
