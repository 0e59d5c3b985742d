//! Files beneath a root: the one way to what a run sees as `/workspace`. And, in [`exec`], commands that are shut off
//! from everything else.
//!
//! Promised, for every operation of [`Root`], also while commands of the same sandbox move things about:
//!
//! * Nothing outside the sandbox's directory is read, written, listed or removed. Links are not followed, not even
//!   those that point inside; a mount point is not crossed.
//! * A pipe, a socket or a device is refused and blocks nobody.
//! * A file that was written is on disk, with the directories that lead to it, when the call returns. It appears
//!   whole or not at all; a write or an upload that fails or is dropped changes nothing that can be seen.
//! * Every loop has a bound, and says so where it was reached.
//!
//! Left out: who may do what (the callers' business), the making of ids, and anything that waits but for a backup, which
//! saves a sandbox's files before they change ([`Changes`]). All calls block: asynchronous callers put them on a thread for
//! that. No program is started on a sandbox's files, and no lock is taken there. (All of this is said of files; [`exec`] has a document of its own, and is asynchronous.)
//!
//! In reading order.

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
