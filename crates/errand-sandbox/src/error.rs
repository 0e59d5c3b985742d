//! [`FileError`]: why a file operation failed, in words for the caller who supplied the path.

use std::io;

use errand_core::path::SandboxPath;
use rustix::io::Errno;

use crate::edit::EditError;

/// Why a file operation failed. Unless a variant says otherwise, nothing was changed.
///
/// The messages contain paths as a run sees them, never those of the machine. They may be shown to callers and
/// models.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Nothing exists at this path.
    #[error("there is nothing at {path}: list the directory that it should be in")]
    NotFound { path: SandboxPath },
    /// A directory was expected at the path or above it, and something else is there.
    #[error(
        "{path} is not a directory, or one of the names above it is not: list the directories above it"
    )]
    NotADirectory { path: SandboxPath },
    /// A file was expected, and a directory is there.
    #[error("{path} is a directory: name a file in it")]
    IsADirectory { path: SandboxPath },
    /// A pipe, a socket or a device is there.
    #[error(
        "{path} is neither a file nor a directory (a pipe, a socket or a device): use another path"
    )]
    NotARegularFile { path: SandboxPath },
    /// The path, or one of the names above it, is a symbolic link.
    #[error(
        "{path} is or contains a symbolic link, and links are not followed: use the path that the link points to"
    )]
    LinkInTheWay { path: SandboxPath },
    /// The path crosses a mount point.
    #[error(
        "{path} is on a different file system than the sandbox, which is not allowed: use another path"
    )]
    OtherFileSystem { path: SandboxPath },
    /// The file is, or would become, larger than allowed.
    #[error(
        "{path} exceeds the limit of {limit_bytes} bytes: make it smaller, or process it in parts"
    )]
    TooLarge {
        path: SandboxPath,
        /// In bytes.
        limit_bytes: u64,
    },
    /// The sandbox has reached its maximum size or number of files.
    #[error(
        "{path} does not fit: a sandbox may hold {disk_bytes_max} bytes on disk (sandbox.disk_bytes_max) in {files_max} files and directories (sandbox.files_max). Delete files, or use another sandbox"
    )]
    SandboxFull {
        path: SandboxPath,
        /// Maximum bytes on disk.
        disk_bytes_max: u64,
        /// Maximum number of files and directories.
        files_max: u64,
    },
    /// The team's sandboxes together have reached the team's quota.
    #[error(
        "{path} does not fit: the sandboxes of this team may hold {disk_bytes_max} bytes on disk together (sandbox.team_disk_bytes_max). Delete files or sandboxes that are no longer needed, or ask the operator to raise the quota"
    )]
    TeamFull {
        path: SandboxPath,
        /// Maximum bytes on disk.
        disk_bytes_max: u64,
    },
    /// Text was expected, and the file contains bytes that are not UTF-8.
    #[error("{path} is not UTF-8 text: it cannot be read or edited as text")]
    NotUtf8 { path: SandboxPath },
    /// The path uses a name that is reserved for unfinished writes.
    #[error("{path} contains a name that begins with {prefix}, which is reserved for unfinished writes: use another name", prefix = crate::write::TEMP_PREFIX)]
    ReservedName { path: SandboxPath },
    /// The permissions of the file, or of a directory above it, lock out the server.
    #[error(
        "the permissions of {path}, or of a directory above it, do not allow this: change them, or use another path"
    )]
    NoPermission { path: SandboxPath },
    /// The disk is full, or its quota is used up.
    #[error(
        "there is no disk space left for {path}: the operator must free space on the server's disk"
    )]
    NoSpace { path: SandboxPath },
    /// The server has run out of file descriptors or memory for now; trying again later may work. Nothing was
    /// changed, except that directories above the path may have been created.
    #[error(
        "the server has run out of open files or memory and could not {op} {path}: try again later"
    )]
    Exhausted {
        /// The operation, as a verb such as `read`.
        op: &'static str,
        path: SandboxPath,
        #[source]
        source: io::Error,
    },
    /// The upload was continued after one of its parts had been refused.
    #[error(
        "the upload of {path} failed earlier and nothing was kept: start it again from the beginning"
    )]
    UploadBroken { path: SandboxPath },
    /// The sandbox's directory was removed, or never created.
    #[error("the directory of the sandbox does not exist on the server")]
    SandboxMissing,
    /// The sandbox held files, and its directory does not exist any more.
    #[error(
        "the files of this sandbox are missing on the server: the operator must restore the directory of the sandbox from a backup (`errand doctor` names it), or use another sandbox"
    )]
    SandboxLost,
    /// The pattern is not a valid regular expression, or too large when compiled.
    #[error(
        "the pattern is not a valid regular expression, or is too large: correct or simplify it"
    )]
    BadPattern {
        #[source]
        source: Box<regex::Error>,
    },
    /// The edit does not match the text of the file.
    #[error("{path} was not edited")]
    Edit {
        path: SandboxPath,
        /// Why it does not match.
        #[source]
        source: EditError,
    },
    /// The system failed. If `op` is a sync or a rename, a write may or may not have taken effect; repeating it is
    /// harmless.
    #[error("the server could not {op} {path}")]
    Io {
        /// The operation, as a verb such as `read`.
        op: &'static str,
        path: SandboxPath,
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Maps an error number to the error for `path`. `op` is the verb that was tried.
    pub(crate) fn from_errno(errno: Errno, op: &'static str, path: &SandboxPath) -> Self {
        let path = path.clone();
        match errno {
            Errno::NOENT => Self::NotFound { path },
            Errno::NOTDIR => Self::NotADirectory { path },
            Errno::ISDIR => Self::IsADirectory { path },
            Errno::LOOP => Self::LinkInTheWay { path },
            // Opening a socket, or a device without a driver, fails with these.
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

    /// Maps an error of the standard library.
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
