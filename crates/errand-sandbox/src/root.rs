//! [`Root`]: one sandbox's directory, opened once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use errand_core::path::SandboxPath;
use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::beneath::{How, file_type};
use crate::error::FileError;

/// The directory of one sandbox. All access goes beneath it; the crate's document says what that promises.
///
/// Cheap to open and to clone (a clone is the same directory). The directory is held open: should it be moved, access
/// follows it; should it be removed, there is nothing in it, and what is written is refused.
#[derive(Clone, Debug)]
pub struct Root {
    dir: Arc<OwnedFd>,
    /// Where unfinished writes have their names. None: in the directory itself.
    temps: Option<Arc<OwnedFd>>,
    how: How,
    unnamed_temps: bool,
    /// The user to whom what is written is given. None: the server's own.
    user: Option<(Uid, Gid)>,
}

impl Root {
    /// Makes the sandbox's directory, readable by the server's user alone, and opens it. One that is there is opened
    /// as it is, so that a creation that a crash cut short can be repeated. The directory above must exist.
    ///
    /// When this returns the directory is on disk.
    ///
    /// # Errors
    /// [`FileError::Io`] and [`FileError::NoSpace`] from the system; [`FileError::NotADirectory`] and
    /// [`FileError::LinkInTheWay`] where something else has its name.
    pub fn create(dir: &Path) -> Result<Self, FileError> {
        let failed = |errno| {
            FileError::from_errno(
                errno,
                "make the directory of the sandbox,",
                &SandboxPath::root(),
            )
        };
        match rustix::fs::mkdir(dir, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let root = Self::open(dir)?;
        let above = dir
            .parent()
            .filter(|above| !above.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        rustix::fs::open(
            above,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(rustix::fs::fsync)
        .map_err(failed)?;
        Ok(root)
    }

    /// Opens the directory of a sandbox. `dir` is the server's own path: links above its last name are followed.
    ///
    /// # Errors
    /// [`FileError::SandboxMissing`] where nothing is there; otherwise as [`Root::create`].
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => FileError::SandboxMissing,
            errno => FileError::from_errno(
                errno,
                "open the directory of the sandbox,",
                &SandboxPath::root(),
            ),
        })?;
        let how = How::probe(dir.as_fd());
        let user = user_of(&dir).map_err(|errno| {
            FileError::from_errno(
                errno,
                "look at the directory of the sandbox,",
                &SandboxPath::root(),
            )
        })?;
        Ok(Self {
            dir: Arc::new(dir),
            temps: None,
            how,
            unnamed_temps: true,
            user,
        })
    }

    /// The same sandbox, whose unfinished writes have their names in `temps`: one place for all sandboxes, so that what
    /// a crash leaves is found without a search. It must exist, and be on the sandboxes' file system, since a finished
    /// file is moved from there to its place.
    ///
    /// # Errors
    /// [`FileError::Io`] where `temps` cannot be opened.
    pub fn with_temps(self, temps: &Path) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let temps = rustix::fs::open(temps, flags, Mode::empty()).map_err(|errno| {
            FileError::from_errno(
                errno,
                "open the directory of unfinished writes beside",
                &SandboxPath::root(),
            )
        })?;
        Ok(Self {
            temps: Some(Arc::new(temps)),
            ..self
        })
    }

    /// The same directory as on a system that lacks `openat2`, or a file system that lacks unnamed files.
    #[cfg(test)]
    pub(crate) fn with(self, how: How, unnamed_temps: bool) -> Self {
        Self {
            how,
            unnamed_temps,
            ..self
        }
    }

    /// The user to whom the sandbox's directory belongs.
    ///
    /// # Errors
    /// Of the system.
    pub fn owner(&self) -> std::io::Result<u32> {
        Ok(rustix::fs::fstat(self.dir())?.st_uid)
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Where unfinished writes have their names.
    pub(crate) fn temps(&self) -> BorrowedFd<'_> {
        self.temps.as_ref().unwrap_or(&self.dir).as_fd()
    }

    /// The user to whom what is written is given, where that is not the server's own.
    pub(crate) fn user(&self) -> Option<(Uid, Gid)> {
        self.user
    }

    pub(crate) fn set_user(&mut self, user: (Uid, Gid)) {
        self.user = Some(user);
    }

    pub(crate) fn how(&self) -> How {
        self.how
    }

    /// Whether files without a name are worth a try.
    pub(crate) fn tries_unnamed_temps(&self) -> bool {
        self.unnamed_temps
    }

    /// Opens what `path` names, whatever it is.
    pub(crate) fn open_any(&self, path: &SandboxPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.how.open(self.dir(), path.relative().as_bytes(), flags)
    }

    /// Whether there is a directory at `path`.
    ///
    /// # Errors
    /// Why there is none: as [`Root::list`].
    pub fn check_directory(&self, path: &SandboxPath) -> Result<(), FileError> {
        self.open_dir(path).map(drop)
    }

    /// Opens a directory for reading its names.
    pub(crate) fn open_dir(&self, path: &SandboxPath) -> Result<OwnedFd, FileError> {
        self.open_any(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|errno| FileError::from_errno(errno, "open the directory", path))
    }

    /// Opens a regular file for reading, and refuses all else.
    pub(crate) fn open_regular(&self, path: &SandboxPath) -> Result<(OwnedFd, Stat), FileError> {
        let failed = |errno| FileError::from_errno(errno, "open", path);
        let fd = self.open_any(path, OFlags::RDONLY).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        match file_type(&stat) {
            FileType::RegularFile => Ok((fd, stat)),
            FileType::Directory => Err(FileError::IsADirectory { path: path.clone() }),
            _ => Err(FileError::NotARegularFile { path: path.clone() }),
        }
    }
}

/// To whom a sandbox belongs, where the server is root and it belongs to another: files that the server writes are then
/// given to that user, so that commands can work on them.
fn user_of(dir: &OwnedFd) -> Result<Option<(Uid, Gid)>, Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let stat = rustix::fs::fstat(dir)?;
    let user = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok((stat.st_uid != 0).then_some(user))
}
