//! Reads files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use errand_core::path::SandboxPath;
use errand_core::time::Timestamp;
use rustix::fs::Stat;

use crate::beneath::size_bytes;
use crate::error::FileError;
use crate::root::Root;

/// A regular file, open for reading.
#[derive(Debug)]
pub struct OpenFile {
    /// The file, positioned at its beginning. A write through [`Root`] puts a new file in its place and leaves this
    /// one unchanged; a command in the sandbox may still change or truncate it.
    pub file: File,
    /// Size when it was opened, in bytes.
    pub size_bytes: u64,
    /// Time of the last change, by the machine's clock.
    pub modified_at: Timestamp,
}

impl Root {
    /// Opens a file for reading, for example for downloads and ranges.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, `NotARegularFile`, `LinkInTheWay`, `NotADirectory`, `OtherFileSystem`,
    /// `NoPermission`, `Io`.
    pub fn open_file(&self, path: &SandboxPath) -> Result<OpenFile, FileError> {
        let (fd, stat) = self.open_regular(path)?;
        Ok(OpenFile {
            file: File::from(fd),
            size_bytes: size_bytes(&stat),
            modified_at: modified_at(&stat),
        })
    }

    /// Reads at most `limit_bytes` bytes from `offset`. Returns fewer at the end of the file, and none beyond it.
    ///
    /// # Errors
    /// As [`Root::open_file`].
    pub fn read(
        &self,
        path: &SandboxPath,
        offset: u64,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, FileError> {
        let open = self.open_file(path)?;
        if offset >= open.size_bytes {
            return Ok(Vec::new());
        }
        let expected = open.size_bytes.saturating_sub(offset).min(limit_bytes);
        read_at_most(&open.file, offset, limit_bytes, expected)
            .map_err(|e| FileError::from_io(e, "read", path))
    }

    /// Reads the whole file as text.
    ///
    /// # Errors
    /// `TooLarge` above `bytes_max`. `NotUtf8` for other bytes, because text with replacement characters could not be
    /// written back without damage. Otherwise as [`Root::open_file`].
    pub fn read_to_string(&self, path: &SandboxPath, bytes_max: u64) -> Result<String, FileError> {
        let too_large = || FileError::TooLarge {
            path: path.clone(),
            limit_bytes: bytes_max,
        };
        let open = self.open_file(path)?;
        if open.size_bytes > bytes_max {
            return Err(too_large());
        }
        // Read one byte more than allowed: the file may have grown since it was measured.
        let bytes = read_at_most(&open.file, 0, bytes_max.saturating_add(1), open.size_bytes)
            .map_err(|e| FileError::from_io(e, "read", path))?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > bytes_max) {
            return Err(too_large());
        }
        String::from_utf8(bytes).map_err(|_| FileError::NotUtf8 { path: path.clone() })
    }
}

/// Reads until `limit_bytes` or the end of the file. `expected` only sizes the buffer and is trusted up to a
/// megabyte: a sparse file of a terabyte costs nothing to create.
pub(crate) fn read_at_most(
    file: &File,
    offset: u64,
    limit_bytes: u64,
    expected: u64,
) -> io::Result<Vec<u8>> {
    const PART_BYTES: usize = 64 * 1024;
    let mut bytes = Vec::with_capacity(usize::try_from(expected.min(1024 * 1024)).unwrap_or(0));
    let mut part = vec![0; PART_BYTES];
    let mut at = offset;
    let mut left = limit_bytes;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(PART_BYTES).min(PART_BYTES);
        let Some(buffer) = part.get_mut(..want) else {
            break;
        };
        let read = match file.read_at(buffer, at) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let read = u64::try_from(read).unwrap_or(left);
        at = at.saturating_add(read);
        left = left.saturating_sub(read);
    }
    Ok(bytes)
}

fn modified_at(stat: &Stat) -> Timestamp {
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Timestamp::from_millis(
        stat.st_mtime
            .saturating_mul(1000)
            .saturating_add(nanos / 1_000_000),
    )
}
