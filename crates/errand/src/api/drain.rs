//! The rest of a body that nobody read.
//!
//! A server that answers and closes while the client still sends makes the client see a broken connection in place of
//! the answer. So what is left of a body is read and dropped, within bounds, while the answer is on its way. A client
//! that waits for `100 Continue` before it sends is told the answer at once, and sends nothing.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody as _};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use errand_core::limits::REFUSED_BODY_DRAINED_BYTES_MAX;
use futures::{Stream, StreamExt as _};
use http::header;

/// How long it goes on. The contract's number.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Reads what is left of the body once there is an answer.
pub(crate) async fn middleware(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let waits = parts
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let left = Left::default();
    let held = Held {
        stream: Some(body.into_data_stream()),
        was_polled: false,
        left: left.clone(),
    };
    let response = next
        .run(Request::from_parts(parts, Body::from_stream(held)))
        .await;
    let rest = left.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(rest) = rest.filter(|rest| rest.was_polled || !waits) {
        // Ends by itself, within its bounds or with the connection, and holds nothing but that.
        tokio::spawn(tokio::time::timeout(DRAIN_TIME_MAX, discard(rest.stream)));
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
struct Left(Arc<Mutex<Option<Rest>>>);

struct Rest {
    stream: BodyDataStream,
    was_polled: bool,
}

/// A body that is left behind, and not lost, when it is dropped.
struct Held {
    stream: Option<BodyDataStream>,
    was_polled: bool,
    left: Left,
}

impl Stream for Held {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.was_polled = true;
        let Some(stream) = self.stream.as_mut() else {
            return Poll::Ready(None);
        };
        let polled = stream.poll_next_unpin(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.stream = None;
        }
        polled
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            let rest = Rest {
                stream,
                was_polled: self.was_polled,
            };
            *self.left.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(rest);
        }
    }
}
