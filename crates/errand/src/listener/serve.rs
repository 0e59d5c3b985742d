//! The loop that accepts and serves connections.
//!
//! # Guarantees
//!
//! - A connection without a request for the idle timeout is closed; HTTP/2 pings do not keep it open.
//! - If it has never had a request, it is cut. Otherwise it is shut down gracefully (in HTTP/2 with GOAWAY, so that the
//!   client knows which requests were not started), and cut after another idle timeout.
//! - A request in progress, or a response that is still being sent, keeps its connection open.
//!
//! # Non-goals
//!
//! Time limits for a request's head and body ([`crate::api`] and the HTTP builder have them).

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::middleware::AddExtension;
use axum::{Extension, Router};
use axum_server::accept::Accept;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer as _, Service};

use super::Counted;

/// Maximum number of concurrent requests on one HTTP/2 connection.
const HTTP_2_STREAMS_MAX: u32 = 128;
/// Delay after accepting failed, for example because no descriptor is free.
const PAUSE: Duration = Duration::from_millis(50);

/// The service of a connection: the router, with the client's address.
pub type Peer = AddExtension<Router, ConnectInfo<SocketAddr>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Stops a server. Cheap to clone.
#[derive(Clone, Default)]
pub struct Handle {
    graceful: CancellationToken,
    now: CancellationToken,
    grace: Arc<Mutex<Duration>>,
}

impl Handle {
    /// Stops accepting connections. Open ones end with their last request, and are cut after `grace`.
    pub fn graceful_shutdown(&self, grace: Duration) {
        *self.grace.lock().unwrap_or_else(PoisonError::into_inner) = grace;
        self.graceful.cancel();
    }

    /// Cuts every connection.
    pub fn shutdown(&self) {
        self.now.cancel();
    }

    fn grace(&self) -> Duration {
        *self.grace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves `router` on every connection that `acceptor` accepts, until `handle` stops it.
///
/// # Errors
/// The listener cannot be used. A failure of one connection affects only that connection.
pub async fn serve<A, S, R>(
    listener: std::net::TcpListener,
    acceptor: A,
    router: Router,
    idle: Duration,
    handle: Handle,
) -> io::Result<()>
where
    A: Accept<TcpStream, Peer, Service = Counted<S>>,
    A::Future: Send + 'static,
    A::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    R: Body + Send + Unpin + 'static,
    R::Data: Send,
    R::Error: Into<BoxError>,
{
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let builder = Arc::new(builder(idle));
    let connections = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = handle.now.cancelled() => return Ok(()),
            () = handle.graceful.cancelled() => break,
            taken = taken(&listener) => taken,
        };
        let service = Extension(ConnectInfo(peer)).layer(router.clone());
        let accepting = acceptor.accept(stream, service);
        let (builder, handle) = (Arc::clone(&builder), handle.clone());
        connections.spawn(async move {
            let accepted = tokio::select! {
                biased;
                () = handle.now.cancelled() => return,
                () = handle.graceful.cancelled() => return,
                accepted = accepting => accepted,
            };
            // A client that breaks off its connection is normal and not logged.
            if let Ok((stream, service)) = accepted {
                connection(&builder, stream, service, idle, &handle).await;
            }
        });
    }
    // From now on, new connections are refused immediately.
    drop(listener);
    connections.close();
    tokio::select! {
        biased;
        () = connections.wait() => {}
        () = handle.now.cancelled() => {}
        () = tokio::time::sleep(handle.grace()) => handle.shutdown(),
    }
    Ok(())
}

/// Serves one connection to its end.
async fn connection<I, S, R>(
    builder: &Builder<TokioExecutor>,
    stream: I,
    service: Counted<S>,
    idle: Duration,
    handle: &Handle,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    R: Body + Send + Unpin + 'static,
    R::Data: Send,
    R::Error: Into<BoxError>,
{
    let activity = service.activity();
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(serving);
    tokio::select! {
        biased;
        () = handle.now.cancelled() => return,
        () = handle.graceful.cancelled() => {}
        _ = &mut serving => return,
        () = activity.idle_for(idle) => if !activity.has_served() {
            return;
        },
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        () = handle.now.cancelled() => {}
        _ = &mut serving => {}
        // The client did not complete the graceful shutdown.
        () = activity.idle_for(idle) => {}
    }
}

/// Accepts the next connection.
async fn taken(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(taken) => return taken,
            Err(error) => {
                tracing::debug!(%error, "the listener cannot accept a connection now, and tries again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn builder(idle: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(idle)
        .keep_alive_timeout(idle)
        .max_concurrent_streams(HTTP_2_STREAMS_MAX);
    builder
}
