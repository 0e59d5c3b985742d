//! Opening beneath a directory, without following a link and without leaving the file system.
//!
//! `openat2` does it in one call that no race can trick. Where it is not to be had (Linux before 5.6, or the system
//! call filter of an old container), [`How::Walk`] opens name by name, each with `O_NOFOLLOW`. That is as safe,
//! because the names are plain (no `..`, no slash) and *every* link is refused: there is nothing left to resolve.
//! A library that follows links inside the root, such as cap-std, would do more than is wanted here.

use std::ffi::{CStr, CString};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// How often an `openat2` that met a rename elsewhere is repeated. Each try is a lookup of its own, so that a few
/// suffice; the bound is there so that nobody can hold the server up.
const OPEN_TRIES_MAX: u32 = 64;

/// How paths are opened: found out once for each root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// One `openat2` with `RESOLVE_BENEATH` and no links.
    Openat2,
    /// Name by name.
    Walk,
}

impl How {
    /// What the system allows, tried on an open directory.
    pub(crate) fn probe(dir: BorrowedFd<'_>) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat2(dir, c".", flags, Mode::empty(), RESOLVE) {
            // A filter answers "not permitted" or "no such call". Any other error will come again at the real open.
            Err(Errno::NOSYS | Errno::PERM) => Self::Walk,
            _ => Self::Openat2,
        }
    }

    /// Opens `path`, which is made of plain names and relative to `dir`; an empty one is `dir` itself.
    ///
    /// Never blocks on a pipe or a device, never follows a link: `ELOOP` where one is in the way, `EXDEV` where a
    /// mount point is.
    pub(crate) fn open(
        self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        // The kernel refuses these two together with O_PATH, which opens nothing that could block.
        let careful = if flags.contains(OFlags::PATH) {
            OFlags::empty()
        } else {
            OFlags::NONBLOCK | OFlags::NOCTTY
        };
        let flags = flags | careful | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        match self {
            Self::Openat2 => open_in_one(dir, path, flags),
            Self::Walk => walk(dir, path, flags),
        }
    }
}

fn open_in_one(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    for _ in 1..OPEN_TRIES_MAX {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), RESOLVE) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    rustix::fs::openat2(dir, path, flags, Mode::empty(), RESOLVE)
}

fn walk(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
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
            // With O_DIRECTORY a link is answered like a file: look again, for the sake of the message.
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
            // Of directories only: overlay file systems give files device numbers of their own.
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

/// The size that a stat tells, in bytes.
pub(crate) fn size_bytes(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// What [`scan`] found.
pub(crate) struct Names {
    /// The names, without `.` and `..`, in the order of the disk. A kind of `Unknown` is one that the file system
    /// does not tell in passing.
    pub(crate) names: Vec<(CString, FileType)>,
    /// Whether there are more.
    pub(crate) truncated: bool,
}

/// The names in an open directory, at most `max` of them.
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

/// A stat of what `name` is, itself: of a link, not of what it points to.
pub(crate) fn stat_name(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}
