//! How requests reach the server: one attempt at a time, each with time limits.
//!
//! # Guarantees
//!
//! - Each request ends: after its own time limit, or when nothing was transferred for a while.
//! - No more of a response is kept in memory than [`BODY_BYTES_MAX`].
//! - No error contains the API key or the query of an address.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use reqwest::{RequestBuilder, Response, Url};
use serde::Deserialize;
use tokio::time::timeout;

use crate::backoff::{Repeat, RetryPolicy, retry_after};
use crate::error::{ApiError, Error, ErrorCode};
use crate::reply::Reply;

/// Maximum size of a response that is not a file. The largest of the API are pages of messages, which end at 8 MiB and
/// one message.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The parts that all calls of a client share.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) http: reqwest::Client,
    /// Its last segment may be empty.
    pub(crate) base: Url,
    /// Marked as sensitive, so that no `Debug` shows it.
    pub(crate) authorization: HeaderValue,
    pub(crate) retry: RetryPolicy,
    /// Time limit of an attempt without a file or a stream.
    pub(crate) timeout: Duration,
    /// How long an upload, a download or a stream may stand still.
    pub(crate) stall_timeout: Duration,
}

/// The text of a successful response, and what its headers say of it.
pub(crate) struct Received {
    pub(crate) text: String,
    pub(crate) request_id: Option<String>,
    pub(crate) is_replay: bool,
}

impl Received {
    pub(crate) fn reply<T>(self, value: T) -> Reply<T> {
        Reply {
            value,
            text: self.text,
            request_id: self.request_id,
            is_replay: self.is_replay,
        }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
    message: String,
}

impl Transport {
    /// The server's address, without a trailing slash.
    pub(crate) fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// An address below `/v1`. Each part is escaped, so that it stays one part.
    pub(crate) fn url<'p>(&self, parts: impl IntoIterator<Item = &'p str>) -> Result<Url, Error> {
        let mut url = self.base.clone();
        let Ok(mut segments) = url.path_segments_mut() else {
            return Err(Error::Address {
                url: self.base.to_string(),
            });
        };
        segments.pop_if_empty().push("v1");
        for part in parts {
            // An empty id would address the list instead of the object, and dots would lead out of the path.
            if matches!(part, "" | "." | "..") {
                return Err(Error::Path {
                    part: part.to_owned(),
                });
            }
            segments.push(part);
        }
        drop(segments);
        Ok(url)
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http
            .request(method, url)
            .header(header::AUTHORIZATION, self.authorization.clone())
    }

    /// Repeats an attempt as the policy says.
    pub(crate) async fn repeat<T, F>(
        &self,
        repeat: Repeat,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut done = 0;
        loop {
            let error = match attempt().await {
                Ok(result) => return Ok(result),
                Err(error) => error,
            };
            let Some(pause) = self.retry.pause_after(&error, done, repeat) else {
                return Err(error);
            };
            tokio::time::sleep(pause).await;
            done += 1;
        }
    }

    /// Sends a request that has a time limit of its own, and reads the response.
    pub(crate) async fn exchange(&self, request: RequestBuilder) -> Result<Received, Error> {
        let response = self.checked(request.send().await).await?;
        self.received(response).await
    }

    /// Sends a request whose response is a stream or a file, and returns when the response begins.
    pub(crate) async fn open(&self, request: RequestBuilder) -> Result<Response, Error> {
        match timeout(self.stall_timeout, request.send()).await {
            Ok(sent) => self.checked(sent).await,
            Err(_) => Err(self.stalled()),
        }
    }

    /// Turns a response that is not one of success into its error.
    pub(crate) async fn checked(&self, sent: reqwest::Result<Response>) -> Result<Response, Error> {
        let response = sent.map_err(|error| Error::Unreachable {
            base: self.base().to_owned(),
            source: error.without_url(),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        let request_id = request_id(response.headers());
        // If the body is missing, the status alone describes the error.
        let body = match timeout(self.timeout, read(response)).await {
            Ok(Ok(Some(body))) => body,
            _ => Vec::new(),
        };
        Err(match serde_json::from_slice(&body) {
            Ok(ErrorBody { error, message }) => Error::Api(Box::new(ApiError {
                status,
                code: ErrorCode::from(error),
                message,
                retry_after,
                request_id,
            })),
            Err(_) => self.foreign(status, retry_after),
        })
    }

    /// Reads the rest of a response. The caller, or the request, limits the time.
    pub(crate) async fn received(&self, response: Response) -> Result<Received, Error> {
        let headers = response.headers();
        let is_replay = headers
            .get("idempotency-replayed")
            .is_some_and(|value| value == "true");
        let request_id = request_id(headers);
        let body = read(response).await.map_err(broken)?;
        let body = body.ok_or_else(|| self.unexpected("it is larger than any of the API"))?;
        let text = String::from_utf8(body).map_err(|_| self.unexpected("it is not UTF-8"))?;
        Ok(Received {
            text,
            request_id,
            is_replay,
        })
    }

    /// The bytes of a response as they arrive.
    pub(crate) fn pieces(
        self: &Arc<Self>,
        response: Response,
    ) -> BoxStream<'static, Result<Bytes, Error>> {
        let bytes = response.bytes_stream().boxed();
        let pieces = stream::try_unfold(
            (Arc::clone(self), bytes),
            |(transport, mut bytes)| async move {
                match timeout(transport.stall_timeout, bytes.next()).await {
                    Ok(Some(Ok(piece))) => Ok(Some((piece, (transport, bytes)))),
                    Ok(Some(Err(error))) => Err(broken(error)),
                    Ok(None) => Ok(None),
                    Err(_) => Err(transport.stalled()),
                }
            },
        );
        pieces.boxed()
    }

    pub(crate) fn unexpected(&self, what: impl Into<String>) -> Error {
        Error::UnexpectedResponse {
            base: self.base().to_owned(),
            what: what.into(),
            status: None,
            retry_after: None,
        }
    }

    fn foreign(&self, status: StatusCode, retry_after: Option<Duration>) -> Error {
        Error::UnexpectedResponse {
            base: self.base().to_owned(),
            what: format!("status {status}"),
            status: Some(status),
            retry_after,
        }
    }

    pub(crate) fn stalled(&self) -> Error {
        Error::Stalled {
            base: self.base().to_owned(),
            after: self.stall_timeout,
        }
    }
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    Some(id.to_owned())
}

/// The whole body. `None` if it is too large.
async fn read(mut response: Response) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > BODY_BYTES_MAX {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}

fn broken(error: reqwest::Error) -> Error {
    Error::Broken(error.without_url())
}
