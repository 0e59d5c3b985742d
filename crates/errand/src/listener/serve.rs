//! The loop that takes connections and serves them.
//!
//! Guarantees: a connection without a request for the idle timeout is closed, whatever else its client sends: HTTP/2
//! pings keep none open. One that has never had a request is cut; any other is shut down gracefully (over HTTP/2 with
//! GOAWAY, so that the client knows which requests were not begun), and cut if it is idle for as long again. A request
//! in flight, and a response that is still being sent, keep their connection open.
//!
//! Non-goals: how long a request's head or body may take. Those have bounds of their own ([`crate::api`], and the HTTP
//! builder).

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

/// Most requests at once on one HTTP/2 connection.
const HTTP_2_STREAMS_MAX: u32 = 128;
/// The pause after the listener could not take a connection, such as when no descriptor is left.
const PAUSE: Duration = Duration::from_millis(50);

/// What answers on a connection: the routes, and who called.
pub type Peer = AddExtension<Router, ConnectInfo<SocketAddr>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Stops a server.
#[derive(Clone, Default)]
pub struct Handle {
    graceful: CancellationToken,
    now: CancellationToken,
    grace: Arc<Mutex<Duration>>,
}

impl Handle {
    /// Takes no new connections; those that are open end with their last request, and are cut after `grace`.
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

/// Serves `router` on every connection that `acceptor` takes, until `handle` stops it.
///
/// # Errors
/// Where the listener cannot be used at all. What goes wrong with one connection ends that one only.
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
            // That a client broke its connection off is no news.
            if let Ok((stream, service)) = accepted {
                connection(&builder, stream, service, idle, &handle).await;
            }
        });
    }
    // From here on, who connects is refused at once.
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

/// One connection, to its end.
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
        // A client that does not do its part of the shutdown.
        () = activity.idle_for(idle) => {}
    }
}

/// The next connection.
async fn taken(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(taken) => return taken,
            Err(error) => {
                tracing::debug!(%error, "the listener takes no connection now, and tries again");
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
