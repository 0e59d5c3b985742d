//! A run's events as the server sends them, resumed where the connection broke off.
//!
//! Promised: each numbered event comes once and in order, whatever the connection does; the end is told apart from a
//! break. Left out: what an event means (the caller reads [`ServerEvent::data`]).

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{Method, StatusCode};
use serde_json::Value;

use super::{Client, ClientError, path};

/// How often a connection is tried again without an event in between.
const TRIES: u32 = 8;
/// The pause before the first such try; it doubles with each.
const PAUSE: Duration = Duration::from_millis(250);
/// Most bytes of one event: above the largest body that the API sends.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerEvent {
    /// Its number in the run; none for what is not repeated.
    pub id: Option<u64>,
    /// Such as `message.created`.
    pub kind: String,
    /// The object; null where it is not JSON.
    pub data: Value,
}

/// The stream.
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

    /// The next event; none once the run has ended and all its events were told.
    ///
    /// # Errors
    /// Those of any call, where they are not for the moment only, or last.
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

    /// False where there is nothing more to come.
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

    /// Waits before the next try, unless trying again is of no use.
    async fn broke(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.body = None;
        let passing = match &error {
            ClientError::Api { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            // The first connection of all tells whether the address is right.
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

/// Reads the format of server-sent events, in whatever pieces it comes.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    id: Option<u64>,
    kind: String,
    data: String,
    ready: VecDeque<ServerEvent>,
}

impl Parser {
    /// How many bytes of an unfinished event it holds.
    fn held(&self) -> usize {
        self.line.len() + self.data.len()
    }

    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // `\r\n` gives an empty line after the real one only where `\r` were an end as well; our server sends `\n`.
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
            // A comment (an empty field), `retry`, and what is to come.
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
    fn events_are_read_in_whatever_pieces_they_come() {
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
    fn half_an_event_is_none() {
        assert!(all(&[b"id: 1\nevent: run.updated\ndata: {}\n"]).is_empty());
    }
}
