//! Whole trees: removing a sandbox's directory, and measuring one.
//!
//! Neither recurses, nor builds long paths, nor holds more than a few files open, so that the depth of a tree, which
//! is up to whoever made it, costs time and nothing else.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use errand_core::path::SandboxPath;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::beneath::{How, file_type, scan, size_bytes, stat_name};
use crate::error::FileError;
use crate::root::Root;

/// Names read at a time: removing while reading may skip some, so that directories are read anew until empty.
const BATCH: usize = 1024;
/// Names looked at when measuring; minutes of work on a slow disk.
const USAGE_NAMES_MAX: usize = 2_000_000;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Removes the directory of a sandbox and all that is in it. One that is not there is removed already.
///
/// `dir` is the server's own path: links above its last name are followed, none below. Directories whose modes forbid
/// it are opened up first. A mount point stays, and so does what is above it. For a sandbox in which nothing runs any
/// more: what others put there meanwhile is removed too, but may make the call fail.
///
/// # Errors
/// [`FileError`] of the first thing that could not be removed; all that could be is gone. May be repeated.
pub fn remove_tree(dir: &Path) -> Result<(), FileError> {
    let failed = |errno| {
        FileError::from_errno(
            errno,
            "remove the directory of the sandbox,",
            &SandboxPath::root(),
        )
    };
    let Some(name) = dir.file_name() else {
        return Err(failed(Errno::INVAL));
    };
    let name = CString::new(name.as_bytes()).map_err(|_| failed(Errno::INVAL))?;
    let above = dir
        .parent()
        .filter(|above| !above.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let above = match rustix::fs::open(above, DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        result => result.map_err(failed)?,
    };
    remove_at(above.as_fd(), &name).map_err(failed)?;
    rustix::fs::fsync(above).map_err(failed)
}

fn remove_at(above: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
    match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let how = How::probe(above);
    let top = open_to_empty(how, above, name)?;
    let remover = Remover {
        how,
        device: rustix::fs::fstat(&top)?.st_dev,
        top,
    };
    remover.empty_top()?;
    rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)
}

/// Empties a tree by flattening it: a directory that is not empty is moved up, next to the topmost ones, and emptied
/// when its turn comes. At no time are more than two directories open, nor is one ever left through `..`.
struct Remover {
    how: How,
    device: u64,
    top: OwnedFd,
}

impl Remover {
    fn empty_top(&self) -> Result<(), Errno> {
        let mut moved = 0;
        until_empty(self.top.as_fd(), |name| {
            self.remove_from_top(name, &mut moved)
        })
    }

    fn remove_from_top(&self, name: &CString, moved: &mut u64) -> Result<(), Errno> {
        if remove_simple(self.top.as_fd(), name)? {
            return Ok(());
        }
        let dir = self.open(self.top.as_fd(), name)?;
        until_empty(dir.as_fd(), |inner| {
            if remove_simple(dir.as_fd(), inner)? {
                return Ok(());
            }
            // Its own ".." changes when it moves, so that it must be writable itself. Opening sees to that, and
            // refuses what is on another device.
            drop(self.open(dir.as_fd(), inner)?);
            self.move_up(dir.as_fd(), inner, moved)
        })?;
        rustix::fs::unlinkat(&self.top, name, AtFlags::REMOVEDIR)
    }

    fn move_up(&self, from: BorrowedFd<'_>, name: &CString, moved: &mut u64) -> Result<(), Errno> {
        // Each name in the way is one of finitely many, and is passed once.
        loop {
            let up = format!(".errand-removed-{moved}");
            *moved += 1;
            match rustix::fs::renameat(from, name, &self.top, up) {
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                result => return result,
            }
        }
    }

    fn open(&self, dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
        let fd = open_to_empty(self.how, dir, name)?;
        if rustix::fs::fstat(&fd)?.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        Ok(fd)
    }
}

/// Removes each name in `dir`, until none is left or a whole round removed none.
fn until_empty(
    dir: BorrowedFd<'_>,
    mut remove: impl FnMut(&CString) -> Result<(), Errno>,
) -> Result<(), Errno> {
    loop {
        let batch = scan(dir, BATCH)?.names;
        if batch.is_empty() {
            return Ok(());
        }
        let mut first_error = None;
        let mut removed = false;
        for (name, _) in &batch {
            match remove(name) {
                Ok(()) => removed = true,
                Err(errno) => first_error = first_error.or(Some(errno)),
            }
        }
        if let (false, Some(errno)) = (removed, first_error) {
            return Err(errno);
        }
    }
}

/// Removes all but a directory that is not empty: then `false`.
fn remove_simple(dir: BorrowedFd<'_>, name: &CString) -> Result<bool, Errno> {
    let refused = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(refused @ (Errno::ISDIR | Errno::PERM)) => refused,
        Err(errno) => return Err(errno),
    };
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // It was no directory: the first answer is the one that tells.
        Err(Errno::NOTDIR) => Err(refused),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory so that what is in it can be removed, whatever its mode was.
fn open_to_empty(how: How, dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let fd = match how.open(dir, name.as_bytes(), DIRECTORY) {
        Err(Errno::ACCESS) => {
            // An O_PATH descriptor needs no permission, and holds on to the directory; its mode can be changed only
            // by way of /proc.
            let path = how.open(dir, name.as_bytes(), OFlags::PATH | OFlags::DIRECTORY)?;
            rustix::fs::chmodat(
                CWD,
                format!("/proc/self/fd/{}", path.as_raw_fd()),
                Mode::RWXU,
                AtFlags::empty(),
            )?;
            how.open(path.as_fd(), b"", DIRECTORY)?
        }
        result => result?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(&fd, mode | Mode::RWXU)?;
    }
    Ok(fd)
}

/// What a sandbox holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The sizes of all regular files, in bytes. A file with two names counts twice.
    pub size_bytes: u64,
    /// What all of it takes on disk, in bytes: less than the size for sparse files, more for many small ones.
    pub disk_bytes: u64,
    /// Regular files, unfinished writes with a name among them.
    pub files: u64,
    /// Directories, without `/workspace` itself.
    pub directories: u64,
    /// Whether all was seen. It was not where a directory forbids it, or changed meanwhile, or beyond 2,000,000
    /// names.
    pub is_complete: bool,
}

/// One directory that is being measured, with the directories in it that are still to be entered.
struct Level {
    id: (u64, u64),
    todo: Vec<CString>,
}

impl Root {
    /// Measures the sandbox. Takes time in proportion to the number of names in it.
    ///
    /// # Errors
    /// Those of opening `/workspace` itself; below it, see [`Usage::is_complete`].
    pub fn usage(&self) -> Result<Usage, FileError> {
        let path = SandboxPath::root();
        let failed = |errno| FileError::from_errno(errno, "measure", &path);
        let mut measure = Measure {
            usage: Usage {
                is_complete: true,
                ..Usage::default()
            },
            names_left: USAGE_NAMES_MAX,
        };
        let mut at = self.open_dir(&path)?;
        let mut levels = vec![measure.enter(at.as_fd()).map_err(failed)?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.todo.pop() {
                let inner = self.how().open(at.as_fd(), name.as_bytes(), DIRECTORY);
                match inner.and_then(|inner| Ok((measure.enter(inner.as_fd())?, inner))) {
                    Ok((level, inner)) => {
                        levels.push(level);
                        at = inner;
                    }
                    Err(_) => measure.usage.is_complete = false,
                }
                continue;
            }
            levels.pop();
            let Some(above) = levels.last() else { break };
            // Back up through "..", which is believed only where it is the directory that we came from.
            let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&at, c"..", flags, Mode::empty()) {
                Ok(up) if rustix::fs::fstat(&up).is_ok_and(|stat| id(&stat) == above.id) => at = up,
                _ => {
                    measure.usage.is_complete = false;
                    break;
                }
            }
        }
        Ok(measure.usage)
    }
}

/// A measuring under way.
struct Measure {
    usage: Usage,
    names_left: usize,
}

impl Measure {
    /// Counts what is in one directory, and notes the directories in it.
    fn enter(&mut self, dir: BorrowedFd<'_>) -> Result<Level, Errno> {
        let mut level = Level {
            id: id(&rustix::fs::fstat(dir)?),
            todo: Vec::new(),
        };
        let names = scan(dir, self.names_left)?;
        self.names_left -= names.names.len();
        let usage = &mut self.usage;
        usage.is_complete &= !names.truncated;
        for (name, _) in names.names {
            let Ok(stat) = stat_name(dir, &name) else {
                usage.is_complete = false;
                continue;
            };
            // The unit of the field is 512 bytes, whatever the file system's own is.
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            usage.disk_bytes = usage.disk_bytes.saturating_add(blocks.saturating_mul(512));
            match file_type(&stat) {
                FileType::RegularFile => {
                    usage.files += 1;
                    usage.size_bytes = usage.size_bytes.saturating_add(size_bytes(&stat));
                }
                FileType::Directory => {
                    usage.directories += 1;
                    level.todo.push(name);
                }
                _ => {}
            }
        }
        Ok(level)
    }
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
