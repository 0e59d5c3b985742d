//! Reads and discards the rest of a request body that its handler did not read.
//!
//! If a server responds and closes the connection while the client is still sending, the client sees a broken
//! connection instead of the response. Therefore the rest of the body is discarded, within limits, while the response
//! is sent. A client that waits for `100 Continue` gets the response immediately and sends nothing.
//!
//! The pace of a body is enforced here too, because every body passes through this layer: a body that arrives too
//! slowly ([`super::body_pace`]) ends with 408, and its rest is not awaited.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody as _};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use errand_core::limits::REFUSED_BODY_DRAINED_BYTES_MAX;
use futures::{Stream, StreamExt as _};
use http::Version;
use http::header::{self, HeaderValue};

use super::body_memory::BodyMemory;
use super::body_pace::Pace;
use super::error::{ApiError, ErrorCode};

/// Maximum time for discarding. Part of the API contract.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// The state that the bodies of all requests share.
#[derive(Clone)]
pub(super) struct Bodies {
    memory: BodyMemory,
    /// The time after which a body without new bytes ends.
    idle_timeout: Duration,
}

impl Bodies {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self {
            memory: BodyMemory::default(),
            idle_timeout,
        }
    }
}

/// The layer: discards the rest of the body after the handler has responded.
pub(super) async fn middleware(
    State(bodies): State<Bodies>,
    request: Request,
    next: Next,
) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(bodies.memory);
    let waits = parts
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let left = Left::default();
    let version = parts.version;
    let held = Held {
        stream: Some(body.into_data_stream()),
        was_polled: false,
        pace: Pace::new(bodies.idle_timeout),
        left: left.clone(),
    };
    let response = next
        .run(Request::from_parts(parts, Body::from_stream(held)))
        .await;
    let rest = match left.take() {
        Kept::Nothing => None,
        Kept::Rest(rest) => Some(rest),
        Kept::TooSlow => return too_slow(response, version),
    };
    if let Some(rest) = rest.filter(|rest| rest.was_polled || !waits) {
        // The task is not tracked: it ends by its own limits or with the connection, and holds nothing else.
        tokio::spawn(tokio::time::timeout(DRAIN_TIME_MAX, discard(rest.stream)));
    }
    response
}

/// The response to a body that was too slow. It replaces the response of the handler, which only saw a broken body.
fn too_slow(response: Response, version: Version) -> Response {
    if !response.status().is_client_error() && !response.status().is_server_error() {
        return response;
    }
    let message =
        "the body stopped or arrived too slowly, and nothing was stored; send the request again";
    let mut response = ApiError::new(ErrorCode::RequestTimeout, message).into_response();
    if version < Version::HTTP_2 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

async fn discard(mut stream: BodyDataStream) {
    let mut bytes: u64 = 0;
    while let Some(Ok(part)) = stream.next().await {
        bytes = bytes.saturating_add(part.len() as u64);
        if bytes > REFUSED_BODY_DRAINED_BYTES_MAX {
            return;
        }
    }
}

/// Receives a body that was dropped before its end.
#[derive(Clone, Default)]
struct Left(Arc<Mutex<Kept>>);

impl Left {
    fn take(&self) -> Kept {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self, kept: Kept) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }
}

#[derive(Default)]
enum Kept {
    /// The body was read to its end, or broke off.
    #[default]
    Nothing,
    Rest(Rest),
    TooSlow,
}

struct Rest {
    stream: BodyDataStream,
    was_polled: bool,
}

/// A body that is handed over to [`Left`] when it is dropped.
struct Held {
    stream: Option<BodyDataStream>,
    was_polled: bool,
    pace: Pace,
    left: Left,
}

/// The error that the reader of a slow body gets.
#[derive(Debug, thiserror::Error)]
#[error("the body arrived too slowly")]
struct TooSlow;

impl Stream for Held {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.was_polled = true;
        let Some(stream) = self.stream.as_mut() else {
            return Poll::Ready(None);
        };
        let polled = stream.poll_next_unpin(context);
        match &polled {
            Poll::Ready(Some(Ok(part))) => self.pace.came(part.len()),
            Poll::Ready(None | Some(Err(_))) => self.stream = None,
            Poll::Pending => {
                if self.pace.poll_too_slow(context).is_ready() {
                    self.stream = None;
                    self.left.keep(Kept::TooSlow);
                    return Poll::Ready(Some(Err(axum::Error::new(TooSlow))));
                }
            }
        }
        polled
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.left.keep(Kept::Rest(Rest {
                stream,
                was_polled: self.was_polled,
            }));
        }
    }
}
