//! HTTP/2 connections whose client does no more than the protocol requires.

use std::time::Duration;

use errand_testkit::TestApp;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than any timeout of these servers, so only a faulty server makes the test wait this long.
const PATIENCE: Duration = Duration::from_secs(60);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// On DATA and HEADERS: the end of the stream. On SETTINGS and PING: an acknowledgment.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A client that writes raw frames, and acknowledges settings and pings.
struct Client {
    stream: TcpStream,
    host: String,
    /// Whether it acknowledges pings after a GOAWAY.
    ends_in_order: bool,
    pings: usize,
    goaways: usize,
    ended_streams: usize,
}

impl Client {
    async fn connect(app: &TestApp) -> Self {
        let host = app.url().strip_prefix("http://").unwrap().to_owned();
        let stream = TcpStream::connect(&host).await.unwrap();
        let mut client = Self {
            stream,
            host,
            ends_in_order: true,
            pings: 0,
            goaways: 0,
            ended_streams: 0,
        };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        client.stream.write_all(preface).await.unwrap();
        client.send(SETTINGS, 0, 0, &[]).await;
        client
    }

    /// Sends a frame. Errors are ignored, because reading detects that the server has closed the connection.
    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await.ok();
    }

    async fn get(&mut self, stream: u32, path: &str, key: &str) {
        let mut block = Vec::new();
        let host = self.host.clone();
        for (name, value) in [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", path),
            (":authority", &host),
            ("authorization", &format!("Bearer {key}")),
        ] {
            // A literal that is not added to the table.
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        let flags = END_STREAM | END_HEADERS;
        self.send(HEADERS, flags, stream, &block).await;
    }

    /// Reads a frame and acknowledges it. Returns `false` if the server has closed the connection.
    async fn read(&mut self) -> bool {
        let mut head = [0; 9];
        if self.stream.read_exact(&mut head).await.is_err() {
            return false;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        if self.stream.read_exact(&mut payload).await.is_err() {
            return false;
        }
        let (kind, flags) = (head[3], head[4]);
        match kind {
            SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
            PING if flags & ACK == 0 => {
                self.pings += 1;
                if self.goaways == 0 || self.ends_in_order {
                    self.send(PING, ACK, 0, &payload).await;
                }
            }
            GOAWAY => self.goaways += 1,
            DATA | HEADERS if flags & END_STREAM != 0 => self.ended_streams += 1,
            _ => {}
        }
        true
    }

    /// Reads until a condition holds.
    async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        let reading = async {
            while !holds(self) {
                assert!(self.read().await, "the server has closed the connection");
            }
        };
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("what was awaited comes");
    }

    /// Reads until the server closes the connection.
    async fn until_closed(&mut self) {
        let reading = async { while self.read().await {} };
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("the server closes the connection");
    }
}

async fn start() -> TestApp {
    TestApp::with_settings(&[("ERRAND_SERVER__IDLE_TIMEOUT", "300ms")]).await
}

#[tokio::test]
async fn a_connection_that_only_answers_pings_is_closed() {
    let app = start().await;
    let team = app.team("acme").await;
    for ends_in_order in [true, false] {
        let mut client = Client::connect(&app).await;
        client.ends_in_order = ends_in_order;
        for request in 0..2 {
            client.get(2 * request + 1, "/v1/agents", &team.key).await;
        }
        client.until(|client| client.ended_streams == 2).await;
        client.until_closed().await;
        assert!(client.goaways > 0, "it is told before");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let app = start().await;
    let mut client = Client::connect(&app).await;
    client.until_closed().await;
    assert_eq!(client.ended_streams, 0);
    app.finish().await;
}

#[tokio::test]
async fn a_response_that_lasts_keeps_its_connection_open() {
    let app = start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"wait": "1h"}])).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    let mut client = Client::connect(&app).await;
    let events = format!("/v1/runs/{run}/events");
    client.get(1, &events, &team.key).await;
    // After each idle timeout, the server checks whether the client is still there.
    client.until(|client| client.pings >= 5).await;
    assert_eq!((client.goaways, client.ended_streams), (0, 0));
    client.send(RST_STREAM, 0, 1, &8u32.to_be_bytes()).await;
    client.until_closed().await;
    assert!(client.goaways > 0);
    app.finish().await;
}
