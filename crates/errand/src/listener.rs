//! Limits and counts client connections.
//!
//! # Guarantees
//!
//! Clients use at most a part of the file descriptors ([`connections_max`]), so that enough remain for runs, files and
//! the store. A new connection beyond the limit replaces the one that has been idle the longest. If all connections
//! have a request in progress, the new one is closed.
//!
//! [`serve`] accepts connections, and closes idle ones.
//!
//! # Non-goals
//!
//! Limits on the duration of requests and on the connections of one client.

pub mod serve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use axum_server::accept::Accept;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::Service;

/// The limit if the number of descriptors is unknown.
const UNLIMITED: usize = 100_000;
/// Minimum number of descriptors for everything else.
const LEFT_TO_OTHERS: u64 = 40;

/// The maximum number of client connections: half of the descriptors that remain after the store, the log and the
/// listeners.
#[must_use]
pub fn connections_max(descriptors: Option<u64>) -> usize {
    descriptors.map_or(UNLIMITED, |all| {
        let most = usize::try_from(all.saturating_sub(LEFT_TO_OTHERS) / 2);
        most.unwrap_or(UNLIMITED).clamp(4, UNLIMITED)
    })
}

/// All connections of a listener. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    list: Arc<Mutex<List>>,
    max: usize,
}

#[derive(Default)]
struct List {
    /// A counter of state changes. The connection that has been idle the longest has the lowest number.
    next: u64,
    open: BTreeMap<u64, Open>,
    idle: BTreeSet<(u64, u64)>,
    refused: u64,
}

struct Open {
    close: CancellationToken,
    requests: usize,
    /// The counter's value when it became idle.
    idle_since: u64,
    /// The time when its last request ended, or when it was accepted.
    rested_at: Instant,
    has_served: bool,
}

impl Connections {
    /// A limit of `max` connections.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            list: Arc::default(),
            max,
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a new connection. `None` if the limit is reached and none is idle.
    fn open(&self) -> Option<Held> {
        let mut list = self.list();
        if list.open.len() >= self.max {
            let Some((_, number)) = list.idle.pop_first() else {
                list.refused += 1;
                // Logged only at powers of two: a client that fills all connections must not fill the log too.
                if list.refused.is_power_of_two() {
                    tracing::warn!(
                        connections = self.max,
                        refused = list.refused,
                        "all connections that the limit of open files permits have a request in progress: new ones are closed; raise the limit (`ulimit -n`, LimitNOFILE=)"
                    );
                }
                return None;
            };
            if let Some(oldest) = list.open.remove(&number) {
                oldest.close.cancel();
            }
        }
        let (number, since) = (list.next, list.next + 1);
        list.next += 2;
        let close = CancellationToken::new();
        list.open.insert(
            number,
            Open {
                close: close.clone(),
                requests: 0,
                idle_since: since,
                rested_at: Instant::now(),
                has_served: false,
            },
        );
        list.idle.insert((since, number));
        Some(Held {
            connections: self.clone(),
            number,
            close,
        })
    }

    fn begin(&self, number: u64) {
        let mut list = self.list();
        let list = &mut *list;
        if let Some(open) = list.open.get_mut(&number) {
            open.requests += 1;
            open.has_served = true;
            list.idle.remove(&(open.idle_since, number));
        }
    }

    fn end(&self, number: u64) {
        let mut list = self.list();
        let list = &mut *list;
        if let Some(open) = list.open.get_mut(&number) {
            open.requests = open.requests.saturating_sub(1);
            if open.requests == 0 {
                open.rested_at = Instant::now();
                open.idle_since = list.next;
                list.next += 1;
                list.idle.insert((open.idle_since, number));
            }
        }
    }

    fn close(&self, number: u64) {
        let mut list = self.list();
        if let Some(open) = list.open.remove(&number) {
            list.idle.remove(&(open.idle_since, number));
        }
    }

    /// The number of open connections.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list().open.len()
    }
}

/// A registered connection. Dropping it removes it from the list.
struct Held {
    connections: Connections,
    number: u64,
    close: CancellationToken,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connections.close(self.number);
    }
}

/// Observes how long a connection has been idle.
pub struct Activity {
    connections: Connections,
    number: u64,
}

impl Activity {
    /// Completes when the connection has been idle for `timeout`, measured from now at the earliest.
    async fn idle_for(&self, timeout: Duration) {
        let begun_at = Instant::now();
        // While a request is in progress this polls at intervals, so that requests need not notify it.
        while let Some(rest) = self.rest(begun_at, timeout) {
            if rest.is_zero() {
                return;
            }
            tokio::time::sleep(rest).await;
        }
        // The connection was replaced by a new one, whose registration closes it.
        std::future::pending().await
    }

    /// The remaining time until the connection has been idle for `timeout`. `None`: it is no longer registered.
    fn rest(&self, begun_at: Instant, timeout: Duration) -> Option<Duration> {
        let list = self.connections.list();
        let open = list.open.get(&self.number)?;
        if open.requests > 0 {
            return Some(timeout);
        }
        let idle = begun_at.max(open.rested_at).elapsed();
        Some(timeout.saturating_sub(idle))
    }

    /// Whether it has had a request.
    fn has_served(&self) -> bool {
        let list = self.connections.list();
        list.open
            .get(&self.number)
            .is_some_and(|open| open.has_served)
    }
}

/// A request in progress.
struct UnderWay {
    connections: Connections,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.connections.end(self.number);
    }
}

/// An acceptor that registers connections before the inner acceptor runs.
#[derive(Clone)]
pub struct CountingAcceptor<A> {
    inner: A,
    connections: Connections,
}

impl<A> CountingAcceptor<A> {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: A, connections: Connections) -> Self {
        Self { inner, connections }
    }
}

impl<A, I, S> Accept<I, S> for CountingAcceptor<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
    A::Stream: Send,
    A::Service: Send,
{
    type Stream = Closable<A::Stream>;
    type Service = Counted<A::Service>;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        // Register first, because a TLS handshake may take long.
        let held = self.connections.open();
        let accepted = held.is_some().then(|| self.inner.accept(stream, service));
        Box::pin(async move {
            let (Some(held), Some(accepted)) = (held, accepted) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            let close = held.close.clone();
            let (stream, service) = tokio::select! {
                // If the connection was replaced during its handshake, the result of the handshake no longer counts.
                biased;
                () = close.cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
                accepted = accepted => accepted?,
            };
            let counted = Counted {
                inner: service,
                connections: held.connections.clone(),
                number: held.number,
            };
            let closable = Closable {
                stream,
                closed: Box::pin(close.cancelled_owned()),
                _held: held,
            };
            Ok((closable, counted))
        })
    }
}

/// A connection that can be closed from outside while no data is written.
pub struct Closable<S> {
    stream: S,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    _held: Held,
}

impl<S: AsyncRead + Unpin> AsyncRead for Closable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        // Data that has arrived is still read: the client may not know yet that it was idle for too long.
        if read.is_pending() && self.closed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Closable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A service that records when a request begins and when its response has been sent.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    connections: Connections,
    number: u64,
}

impl<S> Counted<S> {
    /// The observer of this connection.
    pub fn activity(&self) -> Activity {
        Activity {
            connections: self.connections.clone(),
            number: self.number,
        }
    }
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: HttpBody + Send + Unpin + 'static,
{
    type Response = Response<CountedBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.connections.begin(self.number);
        let under_way = UnderWay {
            connections: self.connections.clone(),
            number: self.number,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| CountedBody {
                body,
                _under_way: under_way,
            }))
        })
    }
}

/// A response body. Its request is in progress until it is dropped.
pub struct CountedBody<R> {
    body: R,
    _under_way: UnderWay,
}

impl<R: HttpBody + Unpin> HttpBody for CountedBody<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<R::Data>, R::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
