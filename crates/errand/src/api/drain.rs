//! The rest of a body that nobody read.
//!
//! A server that answers and closes while the client still sends makes the client see a broken connection in place of
//! the answer. So what is left of a body is read and dropped, within bounds, while the answer is on its way. A client
//! that waits for `100 Continue` before it sends is told the answer at once, and sends nothing.
//!
//! The pace of a body is watched here too, since every body that anybody reads passes through: one that comes too slowly
//! ([`super::body_pace`]) ends with 408, whoever reads it, and its rest is not waited for.

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

use super::AppState;
use super::body_pace::Pace;
use super::error::{ApiError, ErrorCode};

/// How long it goes on. The contract's number.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Reads what is left of the body once there is an answer.
pub(crate) async fn middleware(
    State(app): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(app.body_memory.clone());
    let waits = parts
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let left = Left::default();
    let version = parts.version;
    let held = Held {
        stream: Some(body.into_data_stream()),
        was_polled: false,
        pace: Pace::new(app.settings.idle_timeout),
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
        // Ends by itself, within its bounds or with the connection, and holds nothing but that.
        tokio::spawn(tokio::time::timeout(DRAIN_TIME_MAX, discard(rest.stream)));
    }
    response
}

/// The answer to a body that came too slowly, in place of whatever its reader made of it.
fn too_slow(response: Response, version: Version) -> Response {
    if !response.status().is_client_error() && !response.status().is_server_error() {
        return response;
    }
    let message =
        "the body stopped coming, or came too slowly: nothing was kept; send the request again";
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

/// Where a body that was not read to its end is left.
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

/// A body that is left behind, and not lost, when it is dropped.
struct Held {
    stream: Option<BodyDataStream>,
    was_polled: bool,
    pace: Pace,
    left: Left,
}

/// What the reader of a body is told that came too slowly.
#[derive(Debug, thiserror::Error)]
#[error("it came too slowly")]
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
