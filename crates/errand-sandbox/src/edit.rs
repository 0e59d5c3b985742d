//! Edits text by replacing one passage with another, such that after a crash it is known whether the edit was made.
//!
//! [`Root::plan_edit`] computes an edit, including the digests of the file before and after. A caller that stores
//! both before writing [`Edit::text`] can compare them with [`Root::digest_of`] after a crash: the digest after means
//! done, the digest before means not done.

use std::fs::File;
use std::io::Read;

use errand_core::limits::WRITE_FILE_BYTES_MAX;
use errand_core::path::SandboxPath;
use sha2::{Digest, Sha256};

use crate::error::FileError;
use crate::root::Root;

/// A computed edit, not written yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The whole text after the edit.
    pub text: String,
    /// Number of passages replaced; at least 1.
    pub replaced: usize,
    /// SHA-256 of the file before the edit, in hexadecimal.
    pub digest_before: String,
    /// SHA-256 of [`Edit::text`]. Equal to `digest_before` if `old` and `new` are equal.
    pub digest_after: String,
}

/// Why an edit does not match a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("`old` is empty: give the text to replace")]
    EmptyOld,
    /// `old` is not in the text.
    #[error(
        "`old` does not occur in the file: read the file and give the text exactly, with its spaces and line breaks"
    )]
    NotFound,
    /// `old` is in the text more than once, and `all` is not set.
    #[error(
        "`old` occurs more than once in the file: include more of the surrounding text, or set `all`"
    )]
    NotUnique,
    /// The text would become larger than a file may be.
    #[error("the file would be larger than {limit_bytes} bytes after the edit: replace less")]
    TooLarge {
        /// In bytes.
        limit_bytes: u64,
    },
}

/// Replaces `old` with `new` and returns the text and the number of replacements.
///
/// Without `all`, `old` must occur exactly once, and overlapping occurrences count. With `all`, it must occur at
/// least once, and occurrences that do not overlap are replaced from the front.
///
/// # Errors
/// [`EditError`], also if the result would be larger than [`WRITE_FILE_BYTES_MAX`].
pub fn apply_edit(
    text: &str,
    old: &str,
    new: &str,
    all: bool,
) -> Result<(String, usize), EditError> {
    let step = old.chars().next().ok_or(EditError::EmptyOld)?.len_utf8();
    let first = text.find(old).ok_or(EditError::NotFound)?;
    let replaced = if all {
        text.matches(old).count()
    } else {
        if text
            .get(first + step..)
            .is_some_and(|rest| rest.contains(old))
        {
            return Err(EditError::NotUnique);
        }
        1
    };
    // Computed before the text is built: replacing a letter by a megabyte, a million times, must not even be tried.
    let added = new.len().checked_mul(replaced);
    let size = added.and_then(|added| (text.len() - old.len() * replaced).checked_add(added));
    if size
        .and_then(|size| u64::try_from(size).ok())
        .is_none_or(|size| size > WRITE_FILE_BYTES_MAX)
    {
        return Err(EditError::TooLarge {
            limit_bytes: WRITE_FILE_BYTES_MAX,
        });
    }
    Ok((text.replace(old, new), replaced))
}

/// SHA-256 in hexadecimal, as edits record it.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Root {
    /// Computes an edit of `path` without writing it. The file may have up to [`WRITE_FILE_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`FileError::Edit`] if the edit does not match the text; otherwise as [`Root::read_to_string`].
    pub fn plan_edit(
        &self,
        path: &SandboxPath,
        old: &str,
        new: &str,
        all: bool,
    ) -> Result<Edit, FileError> {
        let before = self.read_to_string(path, WRITE_FILE_BYTES_MAX)?;
        let (text, replaced) =
            apply_edit(&before, old, new, all).map_err(|source| FileError::Edit {
                path: path.clone(),
                source,
            })?;
        Ok(Edit {
            digest_before: sha256_hex(before.as_bytes()),
            digest_after: sha256_hex(text.as_bytes()),
            text,
            replaced,
        })
    }

    /// Edits a file and returns the number of replacements. The file is on disk when this returns.
    ///
    /// A change that another writer makes between the reading and the writing is lost: the caller must ensure that
    /// there is one writer at a time.
    ///
    /// # Errors
    /// As [`Root::plan_edit`] and [`Root::write`].
    pub fn edit(
        &self,
        path: &SandboxPath,
        old: &str,
        new: &str,
        all: bool,
    ) -> Result<usize, FileError> {
        let edit = self.plan_edit(path, old, new, all)?;
        self.write(path, edit.text.as_bytes())?;
        Ok(edit.replaced)
    }

    /// SHA-256 of a file's bytes, in hexadecimal. Reads the file in chunks.
    ///
    /// The file may have up to [`WRITE_FILE_BYTES_MAX`] bytes. No edit makes a larger one, and hashing a sparse file
    /// of a terabyte would occupy the server for an hour.
    ///
    /// # Errors
    /// As [`Root::open_file`], and `TooLarge`.
    pub fn digest_of(&self, path: &SandboxPath) -> Result<String, FileError> {
        let open = self.open_file(path)?;
        if open.size_bytes > WRITE_FILE_BYTES_MAX {
            return Err(FileError::TooLarge {
                path: path.clone(),
                limit_bytes: WRITE_FILE_BYTES_MAX,
            });
        }
        digest(&open.file, open.size_bytes).map_err(|e| FileError::from_io(e, "read", path))
    }
}

/// Stops at the size that was measured, so that a file to which a command keeps appending is not read forever.
fn digest(file: &File, size_bytes: u64) -> std::io::Result<String> {
    const PART_BYTES: usize = 64 * 1024;
    let mut part = vec![0; PART_BYTES];
    let mut digest = Sha256::new();
    let mut rest = file.take(size_bytes);
    loop {
        match rest.read(&mut part) {
            Ok(0) => return Ok(hex::encode(digest.finalize())),
            Ok(read) => digest.update(part.get(..read).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
