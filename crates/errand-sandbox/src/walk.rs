//! Visits everything in a sandbox, for backups.
//!
//! # Guarantees
//!
//! Nothing outside the sandbox is opened, and no link is followed, even while a command moves files around. The depth
//! of a tree costs time and nothing else: only a few files are open at any moment. If the permissions of a file or
//! directory lock out the server's own user, they are widened for the moment and then restored.
//!
//! # Non-goals
//!
//! These are skipped and counted: pipes, sockets and devices, anything on another file system, unfinished writes, and
//! paths longer than [`PATH_BYTES_MAX`], which no program could open by name.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::beneath::{file_type, scan, size_bytes, stat_name};
use crate::root::Root;
use crate::write::TEMP_PREFIX;

/// Longest path that is visited, relative to `/workspace`, in bytes. Together with the directory that it is restored
/// to, it must stay below the kernel's limit of 4,096.
pub const PATH_BYTES_MAX: usize = 3_000;
/// Maximum number of names in one directory; more than a sandbox may hold.
const NAMES_MAX: usize = 10_000_000;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// A file, directory or link in a sandbox.
#[derive(Debug)]
pub struct Visited<'a> {
    /// Path relative to `/workspace`: plain names separated by slashes, in any encoding. Empty for `/workspace`
    /// itself.
    pub path: &'a [u8],
    /// Permission bits, without set-user-id, set-group-id and the sticky bit.
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Group id of the owner.
    pub gid: u32,
    /// Time of the last modification, in seconds since 1970. 0 if it was before.
    pub modified_s: u64,
    pub what: What,
}

/// Type of a visited item, with its content.
#[derive(Debug)]
pub enum What {
    /// A directory. Its entries are visited after it.
    Directory,
    /// A regular file, opened for reading.
    File {
        file: File,
        /// Size at the moment of opening, in bytes.
        size_bytes: u64,
        /// Whether the file has holes: it uses less disk space than its size.
        is_sparse: bool,
    },
    /// A symbolic link and its target.
    Link(Vec<u8>),
}

/// Summary of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Number of items that were skipped.
    pub left_out: u64,
    /// Whether something was moved or removed during the walk, so that items may be missing. A command is at work
    /// then.
    pub moved: bool,
}

/// A directory that was entered, with the entries that remain to be visited.
struct Level {
    id: (u64, u64),
    todo: Vec<CString>,
    /// Length of the parent directory's path.
    above: usize,
    /// The permissions to restore when the walk leaves it, if they were widened.
    mode: Option<Mode>,
}

struct Walk<'a> {
    root: &'a Root,
    visit: &'a mut dyn FnMut(Visited<'_>) -> io::Result<()>,
    path: Vec<u8>,
    walked: Walked,
}

impl Root {
    /// Visits `/workspace` and everything in it. A directory comes before its entries.
    ///
    /// # Errors
    /// The first error that `visit` or the system returns.
    pub fn walk(&self, visit: &mut dyn FnMut(Visited<'_>) -> io::Result<()>) -> io::Result<Walked> {
        let mut walk = Walk {
            root: self,
            visit,
            path: Vec::new(),
            walked: Walked::default(),
        };
        let top = self.strategy().open(self.dir(), b"", DIRECTORY)?;
        walk.visit_directory(&rustix::fs::fstat(&top)?)?;
        let levels = vec![level(top.as_fd(), 0, None)?];
        walk.run(top, levels)?;
        Ok(walk.walked)
    }
}

impl Walk<'_> {
    fn run(&mut self, mut at: OwnedFd, mut levels: Vec<Level>) -> io::Result<()> {
        while let Some(here) = levels.last_mut() {
            if let Some(name) = here.todo.pop() {
                let above = self.path.len();
                self.push(&name);
                match self.visit_entry(at.as_fd(), &name)? {
                    // The path keeps this name until the directory is left.
                    Some((inner, mode)) => {
                        levels.push(level(inner.as_fd(), above, mode)?);
                        at = inner;
                    }
                    None => self.path.truncate(above),
                }
                continue;
            }
            let Some(left) = levels.pop() else { break };
            self.path.truncate(left.above);
            // The parent is opened before the permissions are restored, because they may forbid "..".
            let up = levels.last().map(|above| up(at.as_fd(), above.id));
            if let Some(mode) = left.mode {
                rustix::fs::fchmod(&at, mode)?;
            }
            match up {
                None => break,
                Some(Some(up)) => at = up,
                Some(None) => {
                    self.walked.moved = true;
                    break;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, name: &CStr) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
    }

    /// Visits one entry. Returns a directory that is to be entered, and the permissions to restore when it is left.
    fn visit_entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
    ) -> io::Result<Option<(OwnedFd, Option<Mode>)>> {
        if name.to_bytes().starts_with(TEMP_PREFIX.as_bytes()) || self.path.len() > PATH_BYTES_MAX {
            self.walked.left_out += 1;
            return Ok(None);
        }
        let stat = match stat_name(dir, name) {
            Ok(stat) => stat,
            Err(errno) => return self.not_opened(errno),
        };
        match file_type(&stat) {
            FileType::Directory => {
                let (inner, mode) = match self.open(dir, name, DIRECTORY, Mode::RWXU) {
                    Ok(opened) => opened,
                    Err(errno) => return self.not_opened(errno),
                };
                self.visit_directory(&stat)?;
                Ok(Some((inner, mode)))
            }
            FileType::RegularFile => {
                let (file, mode) = match self.open(dir, name, OFlags::RDONLY, Mode::RUSR) {
                    Ok(opened) => opened,
                    Err(errno) => return self.not_opened(errno),
                };
                if let Some(mode) = mode {
                    rustix::fs::fchmod(&file, mode)?;
                }
                self.visit_file(&stat, file)?;
                Ok(None)
            }
            FileType::Symlink => {
                match rustix::fs::readlinkat(dir, name, Vec::new()) {
                    Ok(target) => self.visit(&stat, What::Link(target.into_bytes()))?,
                    Err(errno) => return self.not_opened(errno),
                }
                Ok(None)
            }
            _ => {
                self.walked.left_out += 1;
                Ok(None)
            }
        }
    }

    /// Handles an entry that could not be opened because it was removed or replaced in the meantime.
    fn not_opened<T>(&mut self, errno: Errno) -> io::Result<Option<T>> {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => self.walked.moved = true,
            Errno::XDEV => self.walked.left_out += 1,
            errno => return Err(errno.into()),
        }
        Ok(None)
    }

    /// Opens an entry, widening its permissions if they forbid it. Returns the original permissions if they were
    /// changed.
    fn open(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        flags: OFlags,
        needs: Mode,
    ) -> Result<(OwnedFd, Option<Mode>), Errno> {
        let strategy = self.root.strategy();
        let is_open_to_server = |mode: Mode| needs.contains(Mode::RUSR) && mode.contains(needs);
        match strategy.open(dir, name.to_bytes(), flags) {
            Err(Errno::ACCESS) => {}
            Ok(fd) if flags.contains(OFlags::DIRECTORY) => {
                // Read permission alone allows listing, but not opening the entries.
                let mode = permissions(&rustix::fs::fstat(&fd)?);
                if is_open_to_server(mode) || rustix::process::geteuid().is_root() {
                    return Ok((fd, None));
                }
                rustix::fs::fchmod(&fd, mode | needs)?;
                return Ok((fd, Some(mode)));
            }
            opened => return opened.map(|fd| (fd, None)),
        }
        // Without read permission only an O_PATH descriptor can be opened, and /proc is the only way to change the
        // mode through one.
        let held = strategy.open(dir, name.to_bytes(), OFlags::PATH)?;
        let mode = permissions(&rustix::fs::fstat(&held)?);
        let proc_path = format!("/proc/self/fd/{}", held.as_raw_fd());
        rustix::fs::chmodat(CWD, proc_path, mode | needs, AtFlags::empty())?;
        Ok((strategy.open(dir, name.to_bytes(), flags)?, Some(mode)))
    }

    fn visit_directory(&mut self, stat: &Stat) -> io::Result<()> {
        self.visit(stat, What::Directory)
    }

    fn visit_file(&mut self, seen: &Stat, file: OwnedFd) -> io::Result<()> {
        let stat = rustix::fs::fstat(&file)?;
        if file_type(&stat) != FileType::RegularFile {
            self.walked.moved = true;
            return Ok(());
        }
        let size_bytes = size_bytes(&stat);
        let on_disk = u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        let what = What::File {
            file: File::from(file),
            size_bytes,
            is_sparse: on_disk < size_bytes,
        };
        self.visit(seen, what)
    }

    fn visit(&mut self, stat: &Stat, what: What) -> io::Result<()> {
        (self.visit)(Visited {
            path: &self.path,
            mode: permissions(stat).as_raw_mode(),
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified_s: u64::try_from(stat.st_mtime).unwrap_or(0),
            what,
        })
    }
}

fn level(dir: BorrowedFd<'_>, above: usize, mode: Option<Mode>) -> io::Result<Level> {
    let stat = rustix::fs::fstat(dir)?;
    let names = scan(dir, NAMES_MAX)?.names;
    Ok(Level {
        id: (stat.st_dev, stat.st_ino),
        todo: names.into_iter().map(|(name, _)| name).collect(),
        above,
        mode,
    })
}

/// Opens the parent through `..`, and accepts it only if it is the directory that the walk came from: a command may
/// have moved the current one.
fn up(at: BorrowedFd<'_>, above: (u64, u64)) -> Option<OwnedFd> {
    let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let up = rustix::fs::openat(at, c"..", flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&up).ok()?;
    ((stat.st_dev, stat.st_ino) == above).then_some(up)
}

fn permissions(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode) & Mode::from_raw_mode(0o777)
}
