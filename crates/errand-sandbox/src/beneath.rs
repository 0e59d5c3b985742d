//! Opens files beneath a directory without following a link and without leaving the file system.
//!
//! `openat2` does this in one call that no race can defeat. Where it is missing (Linux before 5.6, or the system call
//! filter of an old container), [`OpenStrategy::Walk`] opens one path component at a time with `O_NOFOLLOW`. That is
//! as safe, because the components are plain names (no `..`, no slash) and *every* link is refused, so nothing is
//! left to resolve.
//!
//! A library that resolves links inside the root, such as cap-std, would do more than we want here.

use std::ffi::{CStr, CString};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Maximum number of tries of an `openat2` that fails because of a concurrent rename. Each try is an independent
/// lookup, so a few are enough. The bound exists so that renames in a loop cannot stall the server.
const OPEN_TRIES_MAX: u32 = 64;

/// How paths are opened. Probed once for each root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenStrategy {
    /// One `openat2` with `RESOLVE_BENEATH` and no links.
    Openat2,
    /// One path component at a time, each with `O_NOFOLLOW`.
    Walk,
}

impl OpenStrategy {
    /// Probes what the system allows, using an open directory.
    pub(crate) fn probe(dir: BorrowedFd<'_>) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat2(dir, c".", flags, Mode::empty(), RESOLVE) {
            // A seccomp filter answers EPERM or ENOSYS. Any other error will show up again at the real open.
            Err(Errno::NOSYS | Errno::PERM) => Self::Walk,
            _ => Self::Openat2,
        }
    }

    /// Opens `path`, which consists of plain names and is relative to `dir`. An empty path is `dir` itself.
    ///
    /// Never blocks on a pipe or a device, and never follows a link: fails with `ELOOP` if a link is in the way, and
    /// with `EXDEV` if a mount point is.
    pub(crate) fn open(
        self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        // O_PATH opens nothing that could block, and the kernel refuses it together with these two flags.
        let nonblocking = if flags.contains(OFlags::PATH) {
            OFlags::empty()
        } else {
            OFlags::NONBLOCK | OFlags::NOCTTY
        };
        let flags = flags | nonblocking | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        match self {
            Self::Openat2 => open_with_openat2(dir, path, flags),
            Self::Walk => open_by_walking(dir, path, flags),
        }
    }
}

fn open_with_openat2(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    for _ in 1..OPEN_TRIES_MAX {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), RESOLVE) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    rustix::fs::openat2(dir, path, flags, Mode::empty(), RESOLVE)
}

fn open_by_walking(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    // Checked on each directory below: without openat2, nothing else keeps us on this file system.
    let device = rustix::fs::fstat(dir)?.st_dev;
    let mut at: Option<OwnedFd> = None;
    let mut names = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        let here = at.as_ref().map_or(dir, AsFd::as_fd);
        let flags = if names.peek().is_none() {
            flags | OFlags::NOFOLLOW
        } else {
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
        };
        let fd = rustix::io::retry_on_intr(|| rustix::fs::openat(here, name, flags, Mode::empty()))
            // With O_DIRECTORY, a link fails with ENOTDIR as a file does. Look again to report the right error.
            .map_err(|errno| {
                if errno == Errno::NOTDIR && is_link(here, name) {
                    Errno::LOOP
                } else {
                    errno
                }
            })?;
        let stat = rustix::fs::fstat(&fd)?;
        match file_type(&stat) {
            FileType::Symlink => return Err(Errno::LOOP),
            // Only directories are compared: overlay file systems give files device numbers of their own.
            FileType::Directory if stat.st_dev != device => return Err(Errno::XDEV),
            _ => {}
        }
        at = Some(fd);
    }
    at.ok_or(Errno::INVAL)
}

fn is_link(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| file_type(&stat) == FileType::Symlink)
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The size in bytes that a `stat` reports. 0 if it reports a negative one.
pub(crate) fn size_bytes(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Directory entries that [`scan`] read.
pub(crate) struct Names {
    /// Names without `.` and `..`, in the order of the disk. The type is `Unknown` if the file system does not report
    /// it with the directory entry.
    pub(crate) names: Vec<(CString, FileType)>,
    /// Whether the directory has more entries.
    pub(crate) truncated: bool,
}

/// Reads the names in an open directory, at most `max` of them.
pub(crate) fn scan(dir: BorrowedFd<'_>, max: usize) -> Result<Names, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if is_dots(entry.file_name()) {
            continue;
        }
        if names.len() == max {
            return Ok(Names {
                names,
                truncated: true,
            });
        }
        names.push((entry.file_name().to_owned(), entry.file_type()));
    }
    Ok(Names {
        names,
        truncated: false,
    })
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Stats `name` itself: for a link, the link and not its target.
pub(crate) fn stat_name(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}
