//! Editing text: replacing one passage by another, so that a repeat after a crash can be told from the first time.
//!
//! [`Root::plan_edit`] says what an edit would do, with the digests of the file before and after. Whoever stores both
//! before [`Edit::text`] is written can ask [`Root::digest_of`] after a crash: the digest after means done, the digest
//! before means not done.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;

use errand_core::limits::WRITE_FILE_BYTES_MAX;
use errand_core::path::SandboxPath;
use sha2::{Digest, Sha256};

use crate::error::FileError;
use crate::root::Root;

/// An edit that was worked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The whole text after the edit.
    pub text: String,
    /// Passages replaced; at least 1.
    pub replaced: usize,
    /// SHA-256 of the file before, in hexadecimal.
    pub digest_before: String,
    /// SHA-256 of the text after. The same as before where `old` and `new` are.
    pub digest_after: String,
}

/// Why an edit does not fit a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Nothing to look for.
    #[error("`old` is empty: give the text to replace")]
    EmptyOld,
    /// `old` is not in the text.
    #[error(
        "`old` does not occur in the file: read the file and give the text exactly, with its spaces and line ends"
    )]
    NotFound,
    /// `old` is in the text more than once, and one place was meant.
    #[error(
        "`old` occurs more than once in the file: give more of the text around the one that is meant, or set `all`"
    )]
    NotUnique,
    /// The text would grow beyond what may be written.
    #[error("the file would be larger than {limit_bytes} bytes after the edit: replace less")]
    TooLarge {
        /// The most that is allowed.
        limit_bytes: u64,
    },
}

/// The text with `old` replaced by `new`, and how many times. `old` must occur exactly once, counting also places that
/// overlap; with `all` at least once, and those that do not overlap are replaced, from the front.
///
/// # Errors
/// [`EditError`], also where the result would be larger than [`WRITE_FILE_BYTES_MAX`].
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
    // Computed before anything is built: a letter replaced by a megabyte, a million times, must not be tried.
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
    hex(&Sha256::digest(bytes))
}

impl Root {
    /// What an edit of `path` would do; changes nothing. Files up to [`WRITE_FILE_BYTES_MAX`].
    ///
    /// # Errors
    /// [`FileError::Edit`] where it does not fit the text; otherwise as [`Root::read_to_string`].
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

    /// Edits a file, and returns how many passages were replaced. The file is on disk when this returns. What another
    /// writer puts there between the reading and the writing is lost: one writer at a time is the caller's business.
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

    /// SHA-256 of a file's bytes, in hexadecimal. Reads the file in parts. Files up to [`WRITE_FILE_BYTES_MAX`]: no edit
    /// makes a larger one, and a sparse one of a terabyte would hold the server up for an hour.
    ///
    /// # Errors
    /// As [`Root::open_file`]; `TooLarge`.
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

/// Ends at the size that was measured, so that a file that somebody goes on appending to does not hold it up.
fn digest(file: &File, size_bytes: u64) -> std::io::Result<String> {
    const PART_BYTES: usize = 64 * 1024;
    let mut part = vec![0; PART_BYTES];
    let mut digest = Sha256::new();
    let mut rest = file.take(size_bytes);
    loop {
        match rest.read(&mut part) {
            Ok(0) => return Ok(hex(&digest.finalize())),
            Ok(read) => digest.update(part.get(..read).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
