//! All that is in a sandbox, one thing after the other: for a backup.
//!
//! Promised: nothing outside the sandbox is opened, and no link is followed, also while a command moves things about. The
//! depth of a tree costs time and nothing else: few files are open at any time. What the modes hide from the server's own
//! user is opened up for the moment and gets its mode back.
//!
//! Left out, and counted: pipes, sockets and devices, what is on another file system, names of unfinished writes, and
//! paths longer than [`PATH_BYTES_MAX`], which no program could open by their name.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::beneath::{file_type, scan, size_bytes, stat_name};
use crate::root::Root;
use crate::write::TEMP_PREFIX;

/// Longest path of what is visited, beneath `/workspace`: with the directory that it is restored to before it, it must
/// stay below the 4,096 bytes that the system takes.
pub const PATH_BYTES_MAX: usize = 3_000;
/// Most names of one directory: more than a sandbox may have.
const NAMES_MAX: usize = 10_000_000;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// One thing in a sandbox.
#[derive(Debug)]
pub struct Visited<'a> {
    /// Where it is, beneath `/workspace`: plain names with slashes between them, in any encoding. Empty: `/workspace`.
    pub path: &'a [u8],
    /// Its permissions, without those that give a program another user's rights.
    pub mode: u32,
    /// The user to whom it belongs.
    pub uid: u32,
    /// The group to which it belongs.
    pub gid: u32,
    /// When it was last modified. Unit: seconds since 1970.
    pub modified_s: u64,
    /// What it is.
    pub what: What,
}

/// What a thing in a sandbox is.
#[derive(Debug)]
pub enum What {
    /// A directory; what is in it is visited after it.
    Directory,
    /// A file, opened for reading.
    File {
        /// The open file.
        file: File,
        /// Its size when it was opened.
        size_bytes: u64,
        /// Whether it takes less on disk than its size says: it has holes.
        is_sparse: bool,
    },
    /// A symbolic link, and what it points to.
    Link(Vec<u8>),
}

/// What became of a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// How many things were left out.
    pub left_out: u64,
    /// Whether something moved meanwhile, so that not all was seen: a command is at work.
    pub moved: bool,
}

/// A directory that was entered, with the names in it that are still to be visited.
struct Level {
    id: (u64, u64),
    todo: Vec<CString>,
    /// How long the path of the directory above is.
    above: usize,
    /// The mode that it gets back when it is left.
    mode: Option<Mode>,
}

struct Walk<'a> {
    root: &'a Root,
    visit: &'a mut dyn FnMut(Visited<'_>) -> io::Result<()>,
    path: Vec<u8>,
    walked: Walked,
}

impl Root {
    /// Visits `/workspace` and all that is in it, a directory before what is in it.
    ///
    /// # Errors
    /// The first one of `visit`, or of the system.
    pub fn walk(&self, visit: &mut dyn FnMut(Visited<'_>) -> io::Result<()>) -> io::Result<Walked> {
        let mut walk = Walk {
            root: self,
            visit,
            path: Vec::new(),
            walked: Walked::default(),
        };
        let top = self.how().open(self.dir(), b"", DIRECTORY)?;
        walk.visit_directory(&rustix::fs::fstat(&top)?)?;
        let levels = vec![level(top.as_fd(), 0, None)?];
        walk.go(top, levels)?;
        Ok(walk.walked)
    }
}

impl Walk<'_> {
    fn go(&mut self, mut at: OwnedFd, mut levels: Vec<Level>) -> io::Result<()> {
        while let Some(here) = levels.last_mut() {
            if let Some(name) = here.todo.pop() {
                let above = self.path.len();
                self.push(&name);
                match self.thing(at.as_fd(), &name)? {
                    // Its path stays until it is left.
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

    /// Visits one thing. Some: a directory that is to be entered, and the mode that it gets back.
    fn thing(
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
            Err(errno) => return self.gone(errno),
        };
        match file_type(&stat) {
            FileType::Directory => {
                let (inner, mode) = match self.open(dir, name, DIRECTORY, Mode::RWXU) {
                    Ok(opened) => opened,
                    Err(errno) => return self.gone(errno),
                };
                self.visit_directory(&stat)?;
                Ok(Some((inner, mode)))
            }
            FileType::RegularFile => {
                let (file, mode) = match self.open(dir, name, OFlags::RDONLY, Mode::RUSR) {
                    Ok(opened) => opened,
                    Err(errno) => return self.gone(errno),
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
                    Err(errno) => return self.gone(errno),
                }
                Ok(None)
            }
            _ => {
                self.walked.left_out += 1;
                Ok(None)
            }
        }
    }

    /// What cannot be opened because it is not there, or is something else, by now.
    fn gone<T>(&mut self, errno: Errno) -> io::Result<Option<T>> {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => self.walked.moved = true,
            Errno::XDEV => self.walked.left_out += 1,
            errno => return Err(errno.into()),
        }
        Ok(None)
    }

    /// Opens what the modes may forbid to open; the mode that it had, where that was so.
    fn open(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        flags: OFlags,
        needs: Mode,
    ) -> Result<(OwnedFd, Option<Mode>), Errno> {
        let how = self.root.how();
        let is_open_to_us = |mode: Mode| needs.contains(Mode::RUSR) && mode.contains(needs);
        match how.open(dir, name.to_bytes(), flags) {
            Err(Errno::ACCESS) => {}
            Ok(fd) if flags.contains(OFlags::DIRECTORY) => {
                // It may be listed, and yet nothing in it be opened.
                let mode = permissions(&rustix::fs::fstat(&fd)?);
                if is_open_to_us(mode) || rustix::process::geteuid().is_root() {
                    return Ok((fd, None));
                }
                rustix::fs::fchmod(&fd, mode | needs)?;
                return Ok((fd, Some(mode)));
            }
            opened => return opened.map(|fd| (fd, None)),
        }
        // Of a file that is held by a descriptor that needs no permission the mode can be changed by way of /proc alone.
        let held = how.open(dir, name.to_bytes(), OFlags::PATH)?;
        let mode = permissions(&rustix::fs::fstat(&held)?);
        let by_proc = format!("/proc/self/fd/{}", held.as_raw_fd());
        rustix::fs::chmodat(CWD, by_proc, mode | needs, AtFlags::empty())?;
        Ok((how.open(dir, name.to_bytes(), flags)?, Some(mode)))
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

/// Back up through `..`, which is believed only where it is the directory that we came from.
fn up(at: BorrowedFd<'_>, above: (u64, u64)) -> Option<OwnedFd> {
    let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let up = rustix::fs::openat(at, c"..", flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&up).ok()?;
    ((stat.st_dev, stat.st_ino) == above).then_some(up)
}

fn permissions(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode) & Mode::from_raw_mode(0o777)
}
