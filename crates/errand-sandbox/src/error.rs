//! [`FileError`]: what can be wrong with a path of a sandbox, in words for whoever gave it.

use std::io;

use errand_core::path::SandboxPath;
use rustix::io::Errno;

use crate::edit::EditError;

/// Why a file operation did not happen. Unless a variant says otherwise, nothing was changed.
///
/// The messages name paths as a run sees them, never those of the machine, and are fit to be shown to a caller and
/// to a model.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Nothing has this path.
    #[error("there is nothing at {path}: list the directory that it should be in")]
    NotFound {
        /// What was asked for.
        path: SandboxPath,
    },
    /// A directory was wanted, at the path's end or before it, and something else is there.
    #[error(
        "{path} does not lead to a directory, or a name on the way is not one: list the directories above it"
    )]
    NotADirectory {
        /// What was asked for.
        path: SandboxPath,
    },
    /// A file was wanted and a directory is there.
    #[error("{path} is a directory: name a file in it")]
    IsADirectory {
        /// What was asked for.
        path: SandboxPath,
    },
    /// A pipe, a socket or a device.
    #[error(
        "{path} is neither a file nor a directory (a pipe, a socket or a device): use another path"
    )]
    NotARegularFile {
        /// What was asked for.
        path: SandboxPath,
    },
    /// The path, or a name on its way, is a symbolic link.
    #[error(
        "a symbolic link is in the way of {path}, and links are not followed: use the path that it stands for"
    )]
    LinkInTheWay {
        /// What was asked for.
        path: SandboxPath,
    },
    /// The path leads through a mount point.
    #[error(
        "{path} is on another file system than the sandbox, which is not entered: use another path"
    )]
    OtherFileSystem {
        /// What was asked for.
        path: SandboxPath,
    },
    /// More bytes than are allowed.
    #[error(
        "{path} would be, or is, larger than the limit of {limit_bytes} bytes: make it smaller, or take it in parts"
    )]
    TooLarge {
        /// What was asked for.
        path: SandboxPath,
        /// The most that is allowed.
        limit_bytes: u64,
    },
    /// The sandbox may hold no more.
    #[error(
        "{path} does not fit: a sandbox may hold {disk_bytes_max} bytes on disk (sandbox.disk_bytes_max) in {files_max} files and directories (sandbox.files_max). Delete files, or use another sandbox"
    )]
    SandboxFull {
        /// What was to be written.
        path: SandboxPath,
        /// The most bytes.
        disk_bytes_max: u64,
        /// The most files and directories.
        files_max: u64,
    },
    /// The sandboxes of the team may hold no more together.
    #[error(
        "{path} does not fit: the sandboxes of this team may hold {disk_bytes_max} bytes on disk together (sandbox.team_disk_bytes_max). Delete files or sandboxes that are no longer needed, or ask the operator to raise the quota"
    )]
    TeamFull {
        /// What was to be written.
        path: SandboxPath,
        /// The most bytes.
        disk_bytes_max: u64,
    },
    /// Text was wanted, and the file holds other bytes.
    #[error("{path} is not UTF-8 text: it cannot be read or edited as text")]
    NotUtf8 {
        /// What was asked for.
        path: SandboxPath,
    },
    /// A name that is kept for unfinished writes, and not listed.
    #[error("{path} holds a name that begins with {prefix}, which is kept for unfinished writes: use another name", prefix = crate::write::TEMP_PREFIX)]
    ReservedName {
        /// What was asked for.
        path: SandboxPath,
    },
    /// The modes of the file, or of a directory on the way, do not let the server in.
    #[error(
        "the permissions of {path}, or of a directory on the way, do not allow this: change them, or use another path"
    )]
    NoPermission {
        /// What was asked for.
        path: SandboxPath,
    },
    /// The disk, or the quota on it, is full.
    #[error("there is no space left for {path}: the operator must make room on the server's disk")]
    NoSpace {
        /// What was asked for.
        path: SandboxPath,
    },
    /// The server has run out of descriptors or memory for now. Nothing was changed, but directories may have been made
    /// above; later it may go.
    #[error(
        "the server has run out of open files or memory and could not {op} {path}: try again later"
    )]
    Exhausted {
        /// What was being done: a verb, as `read`.
        op: &'static str,
        /// What was asked for.
        path: SandboxPath,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An upload went on after a part of it had been refused.
    #[error(
        "the upload of {path} was refused before its end, and nothing of it was kept: send it anew"
    )]
    UploadBroken {
        /// What was asked for.
        path: SandboxPath,
    },
    /// The directory of the whole sandbox is gone, or was never made.
    #[error("the sandbox has no directory on the server")]
    SandboxMissing,
    /// A pattern that is not a regular expression, or too large a one.
    #[error(
        "the pattern is not a regular expression that can be used here: simplify or correct it"
    )]
    BadPattern {
        /// What is wrong with it.
        #[source]
        source: Box<regex::Error>,
    },
    /// An edit that does not fit the text of the file.
    #[error("{path} was not edited")]
    Edit {
        /// What was asked for.
        path: SandboxPath,
        /// Why it does not fit.
        #[source]
        source: EditError,
    },
    /// The system failed. Whether a write took effect is then unknown where `op` is a sync or a rename; repeating it
    /// is harmless.
    #[error("the server could not {op} {path}")]
    Io {
        /// What was being done: a verb, as `read`.
        op: &'static str,
        /// What was asked for.
        path: SandboxPath,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// What an error number means for `path`, where `op` (a verb) was tried.
    pub(crate) fn from_errno(errno: Errno, op: &'static str, path: &SandboxPath) -> Self {
        let path = path.clone();
        match errno {
            Errno::NOENT => Self::NotFound { path },
            Errno::NOTDIR => Self::NotADirectory { path },
            Errno::ISDIR => Self::IsADirectory { path },
            Errno::LOOP => Self::LinkInTheWay { path },
            // What opening a socket, or a device without a driver, answers.
            Errno::NXIO | Errno::NODEV => Self::NotARegularFile { path },
            Errno::XDEV => Self::OtherFileSystem { path },
            Errno::ACCESS | Errno::PERM => Self::NoPermission { path },
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path },
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS => Self::Exhausted {
                op,
                path,
                source: errno.into(),
            },
            _ => Self::Io {
                op,
                path,
                source: errno.into(),
            },
        }
    }

    /// The same for an error of the standard library.
    pub(crate) fn from_io(source: io::Error, op: &'static str, path: &SandboxPath) -> Self {
        match Errno::from_io_error(&source) {
            Some(errno) => Self::from_errno(errno, op, path),
            None => Self::Io {
                op,
                path: path.clone(),
                source,
            },
        }
    }
}
