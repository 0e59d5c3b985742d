//! A small HTTP/1.1 client on one persistent connection.
//!
//! It shares the processors with the server that it measures, so it does as little as possible: a request is a slice
//! of bytes, and an answer is a status and a body in a reused buffer. It understands the answers of errand
//! (`content-length`), and event streams, in which it only searches for a word.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A connection that was idle for longer is replaced, because the server closes idle connections.
const SILENT_MAX: Duration = Duration::from_secs(5);

/// A connection, and the API key that it uses.
pub(crate) struct Client {
    stream: TcpStream,
    used: Instant,
    address: SocketAddr,
    key: String,
    received: Vec<u8>,
}

/// A response of the server.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a str,
}

/// The parsed head of a response.
struct Head {
    status: u16,
    /// Offset at which the body begins.
    body: usize,
    length: usize,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, key: &str) -> Result<Self> {
        Ok(Self {
            stream: connection(address).await?,
            used: Instant::now(),
            address,
            key: key.to_owned(),
            received: Vec::with_capacity(16 * 1024),
        })
    }

    /// Builds a request.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let (address, key) = (self.address, &self.key);
        let content = if body.is_empty() {
            String::new()
        } else {
            format!(
                "content-type: application/json\r\ncontent-length: {}\r\n",
                body.len()
            )
        };
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n{content}\r\n{body}")
            .into_bytes()
    }

    /// Sends a request and reads its response, with any status.
    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        if self.used.elapsed() > SILENT_MAX {
            self.stream = connection(self.address).await?;
        }
        self.stream.write_all(request).await?;
        self.answer().await
    }

    /// Writes a part of a request. The response is read with [`Client::answer`].
    pub(crate) async fn write(&mut self, piece: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(piece).await?)
    }

    /// Reads a response.
    pub(crate) async fn answer(&mut self) -> Result<Answer<'_>> {
        self.received.clear();
        let head = loop {
            self.read().await?;
            if let Some(head) = Head::parse(&self.received)? {
                break head;
            }
        };
        while self.received.len() < head.body + head.length {
            self.read().await?;
        }
        self.used = Instant::now();
        let body = self
            .received
            .get(head.body..head.body + head.length)
            .unwrap_or_default();
        Ok(Answer {
            status: head.status,
            body: std::str::from_utf8(body)?,
        })
    }

    /// A header of the last response.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let end = find(&self.received, b"\r\n\r\n")?;
        let head = std::str::from_utf8(self.received.get(..end)?).ok()?;
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    async fn read(&mut self) -> Result<()> {
        let n = self.stream.read_buf(&mut self.received).await?;
        anyhow::ensure!(n > 0, "the server closed the connection");
        Ok(())
    }

    /// Sends a request, requires a 2xx status, and returns the body.
    pub(crate) async fn call(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        let request = self.request(method, path, body);
        let answer = self.send(&request).await?;
        anyhow::ensure!(
            (200..300).contains(&answer.status),
            "{method} {path}: {} {}",
            answer.status,
            answer.body
        );
        serde_json::from_str(answer.body).with_context(|| format!("{method} {path}"))
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Value> {
        self.call("GET", path, "").await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", path, &body.to_string()).await
    }

    /// Reads an event stream until `word` has arrived.
    pub(crate) async fn until(&mut self, word: &str) -> Result<()> {
        loop {
            if find(&self.received, word.as_bytes()).is_some() {
                self.received.clear();
                return Ok(());
            }
            self.read().await?;
        }
    }
}

async fn connection(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Head {
    /// Returns `None` if the head is not complete yet.
    fn parse(received: &[u8]) -> Result<Option<Self>> {
        let Some(end) = find(received, b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = std::str::from_utf8(received.get(..end).unwrap_or_default())?;
        let status = head
            .get(9..12)
            .and_then(|digits| digits.parse().ok())
            .with_context(|| format!("not an answer: {head}"))?;
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map(|(_, value)| value.trim().parse())
            .transpose()?;
        anyhow::ensure!(
            length.is_some() || status == 204,
            "an answer without content-length: {head}"
        );
        Ok(Some(Self {
            status,
            body: end + 4,
            length: length.unwrap_or(0),
        }))
    }
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}

/// The text between `mark` and the next quotation mark. Enough to extract ids and statuses.
pub(crate) fn text_after<'a>(body: &'a str, mark: &str) -> Result<&'a str> {
    body.split_once(mark)
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(text, _)| text)
        .with_context(|| format!("no {mark} in {body}"))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn responses_that_arrive_in_pieces_are_read_whole() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            for pieces in [
                [
                    "HTTP/1.1 201 Created\r\nContent-Le",
                    "ngth: 12\r\n\r\n{\"id\":\"ab",
                    "c\"}",
                ],
                ["HTTP/1.1 204 No Content\r\n", "x: y\r\n", "\r\n"],
            ] {
                assert!(stream.read(&mut asked).await.unwrap() > 0);
                for piece in pieces {
                    stream.write_all(piece.as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut client = Client::connect(address, "dv_key").await.unwrap();
        let request = client.request("POST", "/v1/things", "{}");
        assert!(request.ends_with(b"content-length: 2\r\n\r\n{}"));
        let answer = client.send(&request).await.unwrap();
        assert_eq!((answer.status, answer.body), (201, "{\"id\":\"abc\"}"));
        assert_eq!(text_after(answer.body, "\"id\":\"").unwrap(), "abc");
        let answer = client.send(&request).await.unwrap();
        assert_eq!((answer.status, answer.body), (204, ""));
        server.await.unwrap();
        assert!(client.send(&request).await.is_err());
    }
}
