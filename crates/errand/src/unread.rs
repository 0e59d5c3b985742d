//! Closes connections whose client reads nothing.
//!
//! Guarantees: a connection that has data to send, and whose client reads no byte of it for the timeout
//! (`server.unread_timeout`), is closed, and its memory is freed. An idle connection without data to send is not
//! affected. This covers every response (streams, pages, downloads) in all protocol versions.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Applies the timeout to each accepted connection.
#[derive(Clone)]
pub(crate) struct UnreadAcceptor<A> {
    inner: A,
    timeout: Duration,
}

impl<A> UnreadAcceptor<A> {
    pub(crate) fn new(inner: A, timeout: Duration) -> Self {
        Self { inner, timeout }
    }
}

impl<A, I, S> Accept<I, S> for UnreadAcceptor<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
{
    type Stream = Bounded<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let (accepting, timeout) = (self.inner.accept(stream, service), self.timeout);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            Ok((Bounded::new(stream, timeout), service))
        })
    }
}

/// A connection that fails once its client has read nothing for the timeout.
pub(crate) struct Bounded<I> {
    io: I,
    timeout: Duration,
    /// Runs while data waits to be read.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<I> Bounded<I> {
    fn new(io: I, timeout: Duration) -> Self {
        Self {
            io,
            timeout,
            waiting: None,
        }
    }

    fn watch<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let timeout = self.timeout;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read the response",
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Bounded<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Bounded<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.watch(polled, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(context);
        self.watch(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(context);
        self.watch(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.watch(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_and_a_slow_one_is_not() {
        let timeout = Duration::from_secs(60);
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Bounded::new(near, timeout);
        let writing = tokio::spawn(async move { near.write_all(&[7; 64]).await });
        let mut byte = [0];
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(59)).await;
            far.read_exact(&mut byte).await.unwrap();
        }
        let cut = writing.await.unwrap().unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_nothing_to_take_is_left_alone() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Bounded::new(near, Duration::from_secs(60));
        near.write_all(&[1; 8]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let mut taken = [0; 8];
        far.read_exact(&mut taken).await.unwrap();
        near.write_all(&[2; 8]).await.unwrap();
    }
}
