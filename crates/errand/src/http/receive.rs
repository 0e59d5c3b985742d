//! Streams files from request bodies to a sandbox, without holding them in memory.
//!
//! # Guarantees
//!
//! - A received file is invisible until [`Received::place`] is called. A body that breaks off or is too large leaves
//!   nothing behind.
//! - A slow client occupies a buffer but no thread: bytes are collected in the buffer, and a blocking thread writes
//!   each full buffer.
//! - A body is read no faster than the disk can write it.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};

use axum::body::Body;
use bytes::Bytes;
use errand_core::path::SandboxPath;
use errand_engine::sandboxes::Sandboxes;
use errand_sandbox::{FileError, Root, Upload};
use futures::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};

use super::bodies::cut_off;
use super::error::ApiError;
use crate::usecase::blocking::blocking;

/// The size of the buffer that is written at once.
const WRITE_BYTES: usize = 256 * 1024;
/// The size of the buffer for copying a file.
const COPY_BYTES: usize = 64 * 1024;

/// A completely received file that was not placed yet.
pub(crate) struct Received {
    upload: Upload,
    sha256: [u8; 32],
}

impl Received {
    /// The destination.
    pub(crate) fn path(&self) -> &SandboxPath {
        self.upload.path()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.upload.written_bytes()
    }

    /// The digest of the path and the content. Two uploads with the same digest are equal.
    pub(crate) fn digest(&self) -> [u8; 32] {
        Sha256::new()
            .chain_update(self.path().as_str())
            .chain_update([0])
            .chain_update(self.sha256)
            .finalize()
            .into()
    }

    /// Moves the file to its destination. It is on disk when this returns.
    pub(crate) async fn place(self) -> Result<(), ApiError> {
        blocking(move || self.upload.finish().map(drop).map_err(ApiError::from)).await
    }
}

/// Receives a body that consists of one file.
pub(crate) async fn receive(
    root: Root,
    path: SandboxPath,
    limit_bytes: u64,
    body: Body,
) -> Result<Received, ApiError> {
    let upload = blocking(move || {
        root.begin_upload(&path, limit_bytes)
            .map_err(ApiError::from)
    })
    .await?;
    let sink = Sink::Upload(upload);
    match pump(
        body.into_data_stream()
            .map(|part| part.map_err(|error| cut_off(&error))),
        sink,
    )
    .await?
    {
        (Sink::Upload(upload), sha256) => Ok(Received { upload, sha256 }),
        (Sink::Spool(_), _) => Err(ApiError::internal("an upload turned into a spool")),
    }
}

/// A received file without a destination: in a form, the path may follow the file.
pub(crate) struct Spooled {
    file: File,
    sha256: [u8; 32],
}

impl Spooled {
    /// Receives a file into an unnamed temporary file on the data disk.
    pub(crate) async fn receive(
        sandboxes: &Sandboxes,
        limit_bytes: u64,
        parts: impl Stream<Item = Result<Bytes, ApiError>> + Unpin,
    ) -> Result<Self, ApiError> {
        let sandboxes = sandboxes.clone();
        let file = blocking(move || {
            let dir = sandboxes.unfinished().map_err(of_io)?;
            tempfile::tempfile_in(dir).map_err(of_io)
        })
        .await?;
        match pump(
            parts,
            Sink::Spool(Spool {
                file,
                written_bytes: 0,
                limit_bytes,
            }),
        )
        .await?
        {
            (Sink::Spool(spool), sha256) => Ok(Self {
                file: spool.file,
                sha256,
            }),
            (Sink::Upload(_), _) => Err(ApiError::internal("a spool turned into an upload")),
        }
    }

    /// Copies the file into the sandbox that is now known.
    pub(crate) async fn into_received(
        mut self,
        root: Root,
        path: SandboxPath,
        limit_bytes: u64,
    ) -> Result<Received, ApiError> {
        blocking(move || {
            let mut upload = root.begin_upload(&path, limit_bytes)?;
            self.file.rewind().map_err(of_io)?;
            let mut buffer = vec![0; COPY_BYTES];
            loop {
                let read = self.file.read(&mut buffer).map_err(of_io)?;
                match buffer.get(..read) {
                    None | Some([]) => {
                        return Ok(Received {
                            upload,
                            sha256: self.sha256,
                        });
                    }
                    Some(part) => upload.write(part)?,
                }
            }
        })
        .await
    }
}

struct Spool {
    file: File,
    written_bytes: u64,
    limit_bytes: u64,
}

/// The destination of a body's bytes.
enum Sink {
    Upload(Upload),
    Spool(Spool),
}

impl Sink {
    fn write(&mut self, part: &[u8]) -> Result<(), ApiError> {
        match self {
            Self::Upload(upload) => Ok(upload.write(part)?),
            Self::Spool(spool) => {
                spool.written_bytes = spool.written_bytes.saturating_add(part.len() as u64);
                if spool.written_bytes > spool.limit_bytes {
                    return Err(ApiError::too_large(
                        "a directly uploaded file",
                        spool.limit_bytes,
                    ));
                }
                spool.file.write_all(part).map_err(of_io)
            }
        }
    }
}

/// Writes a body to the sink, one buffer at a time. Returns the sink and the digest only if the body is complete;
/// otherwise the written part is removed.
async fn pump(
    mut parts: impl Stream<Item = Result<Bytes, ApiError>> + Unpin,
    sink: Sink,
) -> Result<(Sink, [u8; 32]), ApiError> {
    let mut writing = Writing {
        sink,
        digest: Sha256::new(),
    };
    // The bytes are copied, because a small chunk may keep a much larger buffer alive.
    let mut gathered = Vec::new();
    let end = loop {
        match parts.next().await {
            Some(Ok(part)) => {
                gathered.extend_from_slice(&part);
                if gathered.len() >= WRITE_BYTES {
                    writing = writing.write(std::mem::take(&mut gathered)).await?;
                }
            }
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    match end {
        Ok(()) => {
            let Writing { sink, digest } = writing.write(gathered).await?;
            Ok((sink, digest.finalize().into()))
        }
        Err(error) => {
            // Removing the written part is a blocking file operation too.
            blocking(move || {
                drop(writing);
                Ok::<_, ApiError>(())
            })
            .await?;
            Err(error)
        }
    }
}

struct Writing {
    sink: Sink,
    digest: Sha256,
}

impl Writing {
    /// Writes a buffer on a blocking thread, which is occupied only for this write.
    async fn write(mut self, bytes: Vec<u8>) -> Result<Self, ApiError> {
        blocking(move || {
            self.digest.update(&bytes);
            self.sink.write(&bytes)?;
            Ok(self)
        })
        .await
    }
}

fn of_io(source: std::io::Error) -> ApiError {
    if matches!(
        source.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    ) {
        return FileError::NoSpace {
            path: SandboxPath::root(),
        }
        .into();
    }
    ApiError::internal(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::create(&dir.path().join("s")).unwrap();
        (dir, root)
    }

    fn path() -> SandboxPath {
        SandboxPath::parse("a/b.txt").unwrap()
    }

    fn body(parts: Vec<Result<&'static str, std::io::Error>>) -> Body {
        Body::from_stream(stream::iter(parts))
    }

    #[tokio::test]
    async fn a_complete_file_is_placed() {
        let (_dir, root) = root();
        let received = receive(
            root.clone(),
            path(),
            10,
            body(vec![Ok("hello"), Ok("world")]),
        )
        .await
        .unwrap();
        assert_eq!(received.size_bytes(), 10);
        assert!(root.open_file(&path()).is_err(), "it is visible too early");
        received.place().await.unwrap();
        assert_eq!(root.read_to_string(&path(), 100).unwrap(), "helloworld");
    }

    #[tokio::test]
    async fn an_incomplete_or_large_file_leaves_nothing() {
        let (_dir, root) = root();
        let cut = receive(
            root.clone(),
            path(),
            100,
            body(vec![Ok("hello"), Err(std::io::Error::other("gone"))]),
        )
        .await;
        assert!(cut.is_err());
        let large = receive(
            root.clone(),
            path(),
            9,
            body(vec![Ok("hello"), Ok("world")]),
        )
        .await;
        assert_eq!(
            axum::response::IntoResponse::into_response(large.err().unwrap()).status(),
            413
        );
        assert!(root.list(&SandboxPath::root()).unwrap().entries.is_empty());
    }

    #[tokio::test]
    async fn the_digest_is_of_path_and_bytes() {
        let (_dir, root) = root();
        let of = async |path: &str, parts| {
            receive(
                root.clone(),
                SandboxPath::parse(path).unwrap(),
                10,
                body(parts),
            )
            .await
            .unwrap()
            .digest()
        };
        let first = of("a", vec![Ok("hello"), Ok("world")]).await;
        assert_eq!(first, of("/workspace/a", vec![Ok("helloworld")]).await);
        assert_ne!(first, of("b", vec![Ok("helloworld")]).await);
        assert_ne!(first, of("a", vec![Ok("helloworl")]).await);
    }
}
