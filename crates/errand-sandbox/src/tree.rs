//! Whole trees: removing a sandbox's directory, and measuring one.
//!
//! Neither recurses, builds long paths, or holds more than a few files open. The depth of a tree, which is up to
//! whoever created it, therefore costs time and nothing else.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use errand_core::path::SandboxPath;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::beneath::{OpenStrategy, file_type, scan, size_bytes, stat_name};
use crate::error::FileError;
use crate::root::Root;

/// Names read at a time. Removing entries while reading a directory may skip some, so directories are read again
/// until they are empty.
const BATCH: usize = 1024;
/// Maximum number of names that a measurement looks at; minutes of work on a slow disk.
const USAGE_NAMES_MAX: usize = 2_000_000;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Removes the directory of a sandbox and everything in it. Succeeds if it does not exist.
///
/// `dir` is the server's own path: links in its parent directories are followed, links in the sandbox are not.
/// Directories whose permissions forbid the removal are opened up first. A mount point stays, and so do the
/// directories above it.
///
/// Nothing may be running in the sandbox any more. Files that others create at the same time are removed too, but may
/// make the call fail.
///
/// # Errors
/// The first [`FileError`]; everything that could be removed is gone. The call can be repeated.
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
    let strategy = OpenStrategy::probe(above);
    let top = open_for_removal(strategy, above, name)?;
    let remover = Remover {
        strategy,
        device: rustix::fs::fstat(&top)?.st_dev,
        top,
    };
    remover.empty_top()?;
    rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)
}

/// Empties a tree by flattening it: a directory that is not empty is moved up next to the topmost ones and emptied
/// when its turn comes. At most two directories are open at a time, and none is ever left through `..`, which a
/// concurrent rename could redirect.
struct Remover {
    strategy: OpenStrategy,
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
        if remove_file_or_empty_dir(self.top.as_fd(), name)? {
            return Ok(());
        }
        let dir = self.open(self.top.as_fd(), name)?;
        until_empty(dir.as_fd(), |inner| {
            if remove_file_or_empty_dir(dir.as_fd(), inner)? {
                return Ok(());
            }
            // Moving a directory rewrites its own "..", so it must be writable itself. Opening it ensures that, and
            // refuses other devices.
            drop(self.open(dir.as_fd(), inner)?);
            self.move_up(dir.as_fd(), inner, moved)
        })?;
        rustix::fs::unlinkat(&self.top, name, AtFlags::REMOVEDIR)
    }

    fn move_up(&self, from: BorrowedFd<'_>, name: &CString, moved: &mut u64) -> Result<(), Errno> {
        // Terminates: only finitely many names are in the way, and each is passed once.
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
        let fd = open_for_removal(self.strategy, dir, name)?;
        if rustix::fs::fstat(&fd)?.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        Ok(fd)
    }
}

/// Removes the names in `dir` until none is left, or until a whole round removed none.
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

/// Removes a file or an empty directory. Returns `false` for a directory that is not empty.
fn remove_file_or_empty_dir(dir: BorrowedFd<'_>, name: &CString) -> Result<bool, Errno> {
    let refused = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(refused @ (Errno::ISDIR | Errno::PERM)) => refused,
        Err(errno) => return Err(errno),
    };
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // It was not a directory, so the first error is the meaningful one.
        Err(Errno::NOTDIR) => Err(refused),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory so that its entries can be removed, regardless of its permissions.
fn open_for_removal(
    strategy: OpenStrategy,
    dir: BorrowedFd<'_>,
    name: &CString,
) -> Result<OwnedFd, Errno> {
    let fd = match strategy.open(dir, name.as_bytes(), DIRECTORY) {
        Err(Errno::ACCESS) => {
            // An O_PATH descriptor needs no permission and pins the directory. Its mode can only be changed through
            // /proc.
            let path = strategy.open(dir, name.as_bytes(), OFlags::PATH | OFlags::DIRECTORY)?;
            rustix::fs::chmodat(
                CWD,
                format!("/proc/self/fd/{}", path.as_raw_fd()),
                Mode::RWXU,
                AtFlags::empty(),
            )?;
            strategy.open(path.as_fd(), b"", DIRECTORY)?
        }
        result => result?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(&fd, mode | Mode::RWXU)?;
    }
    Ok(fd)
}

/// Space and number of files that a sandbox uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of the sizes of all regular files, in bytes. A file with two names counts twice.
    pub size_bytes: u64,
    /// Space used on disk, in bytes: less than the size for sparse files, more for many small files.
    pub disk_bytes: u64,
    /// Regular files, including unfinished writes that have a name.
    pub files: u64,
    /// Directories, without `/workspace` itself.
    pub directories: u64,
    /// Whether everything was measured. `false` if a directory could not be read, changed in the meantime, or the
    /// sandbox has more than 2,000,000 names.
    pub is_complete: bool,
}

/// A directory being measured, with the subdirectories that remain to be entered.
struct Level {
    id: (u64, u64),
    todo: Vec<CString>,
}

impl Root {
    /// Measures the sandbox. Takes time in proportion to the number of names in it.
    ///
    /// # Errors
    /// The errors of opening `/workspace` itself. Problems below it only clear [`Usage::is_complete`].
    pub fn usage(&self) -> Result<Usage, FileError> {
        let path = SandboxPath::root();
        let failed = |errno| FileError::from_errno(errno, "measure", &path);
        let mut measurement = Measurement {
            usage: Usage {
                is_complete: true,
                ..Usage::default()
            },
            names_left: USAGE_NAMES_MAX,
        };
        let mut at = self.open_dir(&path)?;
        let mut levels = vec![measurement.enter(at.as_fd()).map_err(failed)?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.todo.pop() {
                let inner = self.strategy().open(at.as_fd(), name.as_bytes(), DIRECTORY);
                match inner.and_then(|inner| Ok((measurement.enter(inner.as_fd())?, inner))) {
                    Ok((level, inner)) => {
                        levels.push(level);
                        at = inner;
                    }
                    Err(_) => measurement.usage.is_complete = false,
                }
                continue;
            }
            levels.pop();
            let Some(above) = levels.last() else { break };
            // Go back up through "..", but accept it only if it is the directory that we came from: a command may
            // have moved this one.
            let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&at, c"..", flags, Mode::empty()) {
                Ok(up) if rustix::fs::fstat(&up).is_ok_and(|stat| id(&stat) == above.id) => at = up,
                _ => {
                    measurement.usage.is_complete = false;
                    break;
                }
            }
        }
        Ok(measurement.usage)
    }
}

/// State of a measurement.
struct Measurement {
    usage: Usage,
    names_left: usize,
}

impl Measurement {
    /// Counts the entries of one directory and remembers its subdirectories.
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
            // st_blocks counts units of 512 bytes, regardless of the file system's block size.
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
