//! Safe access to the files of a sandbox (what a run sees as `/workspace`), and, in [`exec`], isolated commands.
//!
//! # Guarantees
//!
//! For every operation of [`Root`], even while commands of the same sandbox move files around:
//!
//! * Nothing outside the sandbox's directory is read, written, listed or removed. Symbolic links are never followed,
//!   not even those that point inside, and mount points are not crossed.
//! * Pipes, sockets and devices are refused, and opening one never blocks.
//! * When a write returns, the file and the directories that lead to it are on disk. The file appears whole or not at
//!   all; a write or an upload that fails or is dropped changes nothing visible.
//! * Every loop has a bound, and the result says whether the bound was reached.
//!
//! # Non-goals
//!
//! * Deciding who may do what, and generating ids. That is the caller's business.
//! * Async. All calls block, so asynchronous callers run them on a blocking thread. The only thing that a call waits
//!   for is a backup, which saves a sandbox's files before they change ([`Changes`]).
//! * Starting programs on a sandbox's files, or locking them.
//!
//! [`exec`] is asynchronous and has its own guarantees.

mod beneath;
mod changes;
mod copy;
mod edit;
mod error;
pub mod exec;
mod list;
mod quota;
mod read;
mod room;
mod root;
mod search;
mod tree;
mod user;
mod walk;
mod write;

pub use changes::{Backup, Change, ChangeKind, Changes, Save};
pub use copy::{Copied, CopyError, CopyLimits};
pub use edit::{Edit, EditError, apply_edit, sha256_hex};
pub use error::FileError;
pub use list::{Entry, Kind, LIST_ENTRIES_MAX, Listing};
pub use quota::Charged;
pub use read::OpenFile;
pub use room::{RoomLimits, Rooms};
pub use root::{Fresh, Root};
pub use search::{Found, Match, SearchLimits};
pub use tree::{Usage, remove_tree};
pub use walk::{PATH_BYTES_MAX, Visited, Walked, What};
pub use write::{TEMP_PREFIX, Upload};

#[cfg(test)]
mod tests;
