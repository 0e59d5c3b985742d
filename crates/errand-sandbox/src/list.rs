//! Lists directories.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use errand_core::path::SandboxPath;
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::beneath::{file_type, scan, size_bytes, stat_name};
use crate::error::FileError;
use crate::root::Root;
use crate::write::is_temp;

/// Maximum number of names of one directory that are read; far more than a person reads.
pub const LIST_ENTRIES_MAX: usize = 100_000;
/// Maximum bytes of names and paths in one listing. [`LIST_ENTRIES_MAX`] entries usually fit; a hundred thousand
/// paths of four thousand bytes do not.
const LIST_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Type of a listed entry. Other types are never listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
}

/// One file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// File name. Bytes that are not UTF-8 are replaced with `�` and their hexadecimal value.
    pub name: String,
    /// The directory's path and the name, as [`SandboxPath::parse`] accepts it. For a name that is not UTF-8, the
    /// path does not open anything; a path that is too long to be opened is refused by `parse`.
    pub path: String,
    pub kind: Kind,
    /// Size of a file, in bytes; 0 for a directory.
    pub size_bytes: u64,
}

/// Content of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Sorted by name.
    pub entries: Vec<Entry>,
    /// Whether the directory has more than [`LIST_ENTRIES_MAX`] names, or more text than fits into one listing (32
    /// MiB). Which entries are listed then depends on the disk.
    pub truncated: bool,
}

impl Root {
    /// Lists the files and directories in the directory `path`. Links, pipes, sockets, devices, unfinished writes,
    /// and entries that disappear in the meantime are left out.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `LinkInTheWay`, `OtherFileSystem`, `NoPermission`, `Io`.
    pub fn list(&self, path: &SandboxPath) -> Result<Listing, FileError> {
        let failed = |errno| FileError::from_errno(errno, "list", path);
        let dir = self.open_dir(path)?;
        let found = scan(dir.as_fd(), LIST_ENTRIES_MAX).map_err(failed)?;
        let mut entries = Vec::new();
        let mut truncated = found.truncated;
        let mut bytes = 0;
        for (name, kind) in found.names {
            if is_temp(name.to_bytes()) {
                continue;
            }
            let Some((kind, size_bytes)) =
                kind_and_size(dir.as_fd(), &name, kind).map_err(failed)?
            else {
                continue;
            };
            let name = match name.into_string() {
                Ok(name) => name,
                Err(not_utf8) => lossy_name(dir.as_fd(), not_utf8.into_cstring().to_bytes()),
            };
            let entry = Entry {
                path: format!("{path}/{name}"),
                name,
                kind,
                size_bytes,
            };
            bytes += entry.path.len() + entry.name.len();
            if bytes > LIST_BYTES_MAX {
                truncated = true;
                break;
            }
            entries.push(entry);
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Listing { entries, truncated })
    }
}

/// Returns `None` if the entry is neither a file nor a directory, or was removed.
fn kind_and_size(
    dir: BorrowedFd<'_>,
    name: &CStr,
    entry_type: FileType,
) -> Result<Option<(Kind, u64)>, Errno> {
    match entry_type {
        FileType::Directory => return Ok(Some((Kind::Dir, 0))),
        // A file's size is not in the directory entry, and some file systems do not report the type there.
        FileType::RegularFile | FileType::Unknown => {}
        _ => return Ok(None),
    }
    match stat_name(dir, name) {
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
        Ok(stat) => Ok(match file_type(&stat) {
            FileType::RegularFile => Some((Kind::File, size_bytes(&stat))),
            FileType::Directory => Some((Kind::Dir, 0)),
            _ => None,
        }),
    }
}

/// A printable name that no other file in the directory has. Otherwise, opening it could open a file that a command
/// placed under that name.
fn lossy_name(dir: BorrowedFd<'_>, bytes: &[u8]) -> String {
    let mut name = String::new();
    for chunk in bytes.utf8_chunks() {
        name.push_str(chunk.valid());
        for byte in chunk.invalid() {
            name.push_str(&format!("\u{fffd}{byte:02X}"));
        }
    }
    // Ends at the latest when the name is longer than any name on disk can be.
    while rustix::fs::statat(dir, name.as_str(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        name.push('\u{fffd}');
    }
    name
}
