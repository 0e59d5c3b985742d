//! Copies a whole sandbox, for a run that continues from another one.
//!
//! Regular files and directories are copied with their permissions. Links, pipes, sockets and devices are left out,
//! as in listings. Each file is copied as it was at one moment, but different files at different moments. The copy is
//! on disk when the call returns; nobody may use it before.
//!
//! Two directories are open for each level of depth, which is why the depth is limited.

use std::ffi::CString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};

use errand_core::path::SandboxPath;
use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::beneath::{OpenStrategy, file_type, scan, size_bytes};
use crate::changes::ChangeKind;
use crate::error::FileError;
use crate::room::Reservation;
use crate::root::Root;
use crate::write::{TEMP_PREFIX, sandbox_full};

/// Maximum depth of copied directories. Each level needs two open directories.
const DEPTH_MAX: usize = 100;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Maximum size of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyLimits {
    /// Sum of the sizes of all files.
    pub bytes_max: u64,
    /// Files and directories together.
    pub names_max: usize,
}

/// Result of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub files: u64,
    /// Sum of the sizes of all files.
    pub bytes: u64,
}

/// Why a copy failed. A partial copy may exist and is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The sandbox is larger than the limits allow.
    #[error(
        "the sandbox is too large to copy: at most {bytes_max} bytes in {names_max} files and directories, nested at most {DEPTH_MAX} levels deep",
        bytes_max = .0.bytes_max, names_max = .0.names_max
    )]
    TooMuch(CopyLimits),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Root {
    /// Copies everything in this sandbox into another one, which must be empty and unused.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn copy_into(&self, to: &Self, limits: CopyLimits) -> Result<Copied, CopyError> {
        let _change = to.begin_change(ChangeKind::Write);
        let root = SandboxPath::root();
        let failed = |errno| FileError::from_errno(errno, "copy the files of the sandbox,", &root);
        let reservation = match to.room() {
            Some(room) => Some(
                room.begin(to, false)?
                    .map_err(|full| sandbox_full(&root, &full))?,
            ),
            None => None,
        };
        let mut copier = Copier {
            to,
            reservation,
            strategy: self.strategy(),
            limits,
            names_left: limits.names_max,
            user: to.user(),
            copied: Copied::default(),
        };
        let source = self.open_dir(&root)?;
        let target = to.open_dir(&root)?;
        let mut levels = vec![copier.enter(source, target)?];
        while let Some(level) = levels.last_mut() {
            let Some((name, mode)) = level.todo.pop() else {
                levels.pop();
                continue;
            };
            if levels.len() > DEPTH_MAX {
                return Err(CopyError::TooMuch(limits));
            }
            let Some(level) = levels.last() else { break };
            let inner = copier
                .strategy
                .open(level.source.as_fd(), name.as_bytes(), DIRECTORY);
            let source = match inner {
                Ok(source) => source,
                // It was removed or replaced in the meantime.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
                Err(errno) => return Err(failed(errno).into()),
            };
            let made = rustix::fs::mkdirat(&level.target, &name, mode | Mode::RWXU);
            made.map_err(failed)?;
            let target = rustix::fs::openat(
                &level.target,
                &name,
                DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            );
            let target = target.map_err(failed)?;
            copier.chown(&target).map_err(failed)?;
            levels.push(copier.enter(source, target)?);
        }
        to.has_changed();
        // Measured before the space that was reserved for the copy is returned.
        to.measure()?;
        // One call for all files: syncing thousands of small files one by one would take much longer.
        rustix::fs::syncfs(to.dir())
            .and_then(|()| to.sync_parent())
            .map_err(failed)?;
        Ok(copier.copied)
    }
}

/// A directory whose files are copied and whose subdirectories remain to be copied.
struct Level {
    source: OwnedFd,
    target: OwnedFd,
    todo: Vec<(CString, Mode)>,
}

struct Copier<'a> {
    to: &'a Root,
    /// Space reserved for the copy, if the size of the target is limited.
    reservation: Option<Reservation>,
    strategy: OpenStrategy,
    limits: CopyLimits,
    names_left: usize,
    /// Owner of the copied files, if the target has a user of its own.
    user: Option<(Uid, Gid)>,
    copied: Copied,
}

impl Copier<'_> {
    fn enter(&mut self, source: OwnedFd, target: OwnedFd) -> Result<Level, CopyError> {
        let root = SandboxPath::root();
        let failed = |errno| FileError::from_errno(errno, "copy the files of the sandbox,", &root);
        let names = scan(source.as_fd(), self.names_left).map_err(failed)?;
        if names.truncated {
            return Err(CopyError::TooMuch(self.limits));
        }
        self.names_left -= names.names.len();
        let mut level = Level {
            source,
            target,
            todo: Vec::new(),
        };
        for (name, _) in names.names {
            if name.to_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
                continue;
            }
            // The type is read from the opened file, not from the name. A name that was removed or cannot be opened
            // is left out, as in listings.
            let flags = OFlags::PATH;
            let Ok(fd) = self
                .strategy
                .open(level.source.as_fd(), name.as_bytes(), flags)
            else {
                continue;
            };
            let stat = rustix::fs::fstat(&fd).map_err(failed)?;
            match file_type(&stat) {
                FileType::RegularFile => self.file(&level, &name).map_err(|error| match error {
                    CopyFailure::TooMuch => CopyError::TooMuch(self.limits),
                    CopyFailure::File(error) => CopyError::File(error),
                    CopyFailure::Io(error) => FileError::from_errno(
                        Errno::from_io_error(&error).unwrap_or(Errno::IO),
                        "copy a file of",
                        &root,
                    )
                    .into(),
                })?,
                FileType::Directory => level.todo.push((name, mode_of(&stat))),
                _ => {}
            }
        }
        Ok(level)
    }

    fn chown(&self, made: &OwnedFd) -> Result<(), Errno> {
        let Some((uid, gid)) = self.user else {
            return Ok(());
        };
        rustix::fs::fchown(made, Some(uid), Some(gid))
    }

    fn file(&mut self, level: &Level, name: &CString) -> Result<(), CopyFailure> {
        let source = self
            .strategy
            .open(level.source.as_fd(), name.as_bytes(), OFlags::RDONLY)
            .map_err(io::Error::from)?;
        let stat = rustix::fs::fstat(&source).map_err(io::Error::from)?;
        if file_type(&stat) != FileType::RegularFile {
            return Ok(());
        }
        let left = self.limits.bytes_max.saturating_sub(self.copied.bytes);
        if size_bytes(&stat) > left {
            return Err(CopyFailure::TooMuch);
        }
        if let Some(reservation) = &mut self.reservation {
            // A sparse file uses less than its size here, but all of it in the copy.
            reservation
                .reserve(self.to, size_bytes(&stat))
                .map_err(CopyFailure::File)?
                .map_err(|full| CopyFailure::File(sandbox_full(&SandboxPath::root(), &full)))?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = mode_of(&stat) | Mode::RUSR | Mode::WUSR;
        let target = rustix::fs::openat(&level.target, name, flags, mode);
        let target = target.map_err(io::Error::from)?;
        self.chown(&target).map_err(io::Error::from)?;
        let mut target = std::fs::File::from(target);
        // The file may grow while it is read. Read at most one byte more than allowed, to notice it.
        let mut source = std::fs::File::from(source).take(left.saturating_add(1));
        let copied = io::copy(&mut source, &mut target)?;
        if copied > left {
            return Err(CopyFailure::TooMuch);
        }
        self.copied.files += 1;
        self.copied.bytes += copied;
        Ok(())
    }
}

enum CopyFailure {
    TooMuch,
    File(FileError),
    Io(io::Error),
}

impl From<io::Error> for CopyFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Permissions without set-user-id, set-group-id and the sticky bit.
fn mode_of(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode) & Mode::from_raw_mode(0o777)
}
