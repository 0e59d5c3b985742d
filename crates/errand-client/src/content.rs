//! The content of files: uploads from memory or from a stream, downloads as a stream.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use futures::{Stream, TryStream};

use crate::error::Error;

/// Size of the pieces in which content from memory is sent.
const PIECE_BYTES: usize = 256 * 1024;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The content of a file to upload.
///
/// Content from memory can be sent again if the connection breaks. A stream can be read only once, so its upload is not
/// repeated.
pub struct FileContent {
    size_bytes: u64,
    source: Source,
}

enum Source {
    Memory(Bytes),
    Stream(BoxStream<'static, Result<Bytes, Cause>>),
}

impl FileContent {
    /// Content that is read while it is sent. `size_bytes`: its exact size.
    pub fn stream<S>(size_bytes: u64, pieces: S) -> Self
    where
        S: TryStream + Send + 'static,
        S::Ok: Into<Bytes>,
        S::Error: Into<Cause>,
    {
        let pieces = pieces.map_ok(Into::into).map_err(Into::into);
        Self {
            size_bytes,
            source: Source::Stream(pieces.boxed()),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The content, if it is in memory.
    pub(crate) fn in_memory(&self) -> Option<Bytes> {
        match &self.source {
            Source::Memory(bytes) => Some(bytes.clone()),
            Source::Stream(_) => None,
        }
    }

    /// The content as a body that counts what was sent.
    pub(crate) fn into_body(self) -> (reqwest::Body, Progress) {
        let progress = Progress::default();
        let counted = progress.clone();
        let pieces = match self.source {
            Source::Memory(bytes) => pieces_of(bytes).map(Ok).boxed(),
            Source::Stream(pieces) => pieces,
        };
        let pieces = pieces.inspect_ok(move |piece: &Bytes| counted.add(piece.len()));
        (reqwest::Body::wrap_stream(pieces), progress)
    }
}

fn pieces_of(mut bytes: Bytes) -> impl Stream<Item = Bytes> + Send + use<> {
    stream::iter(std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some(piece)
    }))
}

impl<B: Into<Bytes>> From<B> for FileContent {
    fn from(bytes: B) -> Self {
        let bytes = bytes.into();
        Self {
            size_bytes: bytes.len() as u64,
            source: Source::Memory(bytes),
        }
    }
}

impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileContent")
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

/// How many bytes of an upload were handed to the connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The content of a file that is downloaded: a stream of its bytes as they arrive.
pub struct Download {
    size_bytes: Option<u64>,
    pieces: BoxStream<'static, Result<Bytes, Error>>,
}

impl Download {
    pub(crate) fn new(
        size_bytes: Option<u64>,
        pieces: BoxStream<'static, Result<Bytes, Error>>,
    ) -> Self {
        Self { size_bytes, pieces }
    }

    /// The file's size, if the server says it.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// Downloads the file into memory.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn into_bytes(self) -> Result<Vec<u8>, Error> {
        let append = |mut all: Vec<u8>, piece: Bytes| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        };
        self.pieces.try_fold(Vec::new(), append).await
    }
}

impl Stream for Download {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.poll_next_unpin(context)
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn content_from_memory_is_sent_in_pieces_and_can_be_sent_again() {
        let content = FileContent::from(vec![7; PIECE_BYTES + 1]);
        assert_eq!(content.size_bytes(), PIECE_BYTES as u64 + 1);
        let bytes = content.in_memory().unwrap();
        let sizes = pieces_of(bytes)
            .map(|piece| piece.len())
            .collect::<Vec<_>>();
        assert_eq!(block_on(sizes), [PIECE_BYTES, 1]);

        let pieces = stream::iter([Ok::<_, std::io::Error>("abc")]);
        assert!(FileContent::stream(3, pieces).in_memory().is_none());
    }
}
