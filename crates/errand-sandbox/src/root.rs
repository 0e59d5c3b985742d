//! [`Root`]: one sandbox's directory, opened once.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::SandboxId;
use errand_core::path::SandboxPath;
use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::beneath::{How, file_type};
use crate::changes::{Change, ChangeKind, Changes};
use crate::error::FileError;
use crate::quota::Charged;
use crate::room::{Room, Rooms};

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
    /// Where it is noted whether the directory itself is on disk yet. None: it is.
    fresh: Option<(Fresh, Arc<PathBuf>)>,
    /// How much more may be written. None: as much as the disk takes.
    room: Option<Arc<Room>>,
    /// Where its changes are announced, and whose they are. None: nobody makes a backup of it meanwhile.
    changes: Option<(Changes, SandboxId)>,
}

/// Sandboxes' directories that were made a moment ago, and may not be on disk yet: the first write to one sees to that.
/// A sandbox that was never written to has nothing to lose. Cheap to clone: a clone is the same list.
#[derive(Clone, Debug, Default)]
pub struct Fresh(Arc<Mutex<HashSet<PathBuf>>>);

impl Fresh {
    fn list(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the directory's name on disk, unless it is there.
    fn settle(&self, dir: &Path) -> Result<(), Errno> {
        if !self.list().contains(dir) {
            return Ok(());
        }
        sync_above(dir)?;
        self.list().remove(dir);
        Ok(())
    }

    /// Forgets a directory that was moved or removed.
    pub fn forget(&self, dir: &Path) {
        self.list().remove(dir);
    }
}

fn sync_above(dir: &Path) -> Result<(), Errno> {
    let above = dir
        .parent()
        .filter(|above| !above.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(above, flags, Mode::empty()).and_then(rustix::fs::fsync)
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
        make(dir).map_err(not_made)?;
        let root = Self::open(dir)?;
        sync_above(dir).map_err(not_made)?;
        Ok(root)
    }

    /// The same, but for the directory's name: that is on disk when the first file in it is. `fresh` is the same for all
    /// who may write there.
    ///
    /// # Errors
    /// As [`Root::create`].
    pub fn create_fresh(dir: &Path, fresh: &Fresh) -> Result<Self, FileError> {
        // Noted before it is there: whoever finds it there finds it noted.
        if rustix::fs::access(dir, rustix::fs::Access::EXISTS).is_err() {
            fresh.list().insert(dir.to_owned());
        }
        make(dir).map_err(not_made)?;
        let fresh = Some((fresh.clone(), Arc::new(dir.to_owned())));
        Ok(Self {
            fresh,
            ..Self::open(dir)?
        })
    }

    /// Puts the name of the sandbox's own directory on disk, unless it is there: after what is in it.
    pub(crate) fn settle(&self) -> Result<(), Errno> {
        match &self.fresh {
            Some((fresh, dir)) => fresh.settle(dir),
            None => Ok(()),
        }
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
            fresh: None,
            room: None,
            changes: None,
        })
    }

    /// The same sandbox, which holds no more than `rooms` allows. `dir`: the directory that it was opened by. `charged`: whose
    /// quota it counts for.
    #[must_use]
    pub fn with_room(self, rooms: &Rooms, dir: &Path, charged: Charged) -> Self {
        let is_empty = self
            .fresh
            .as_ref()
            .is_some_and(|(fresh, dir)| fresh.list().contains(&**dir));
        Self {
            room: Some(rooms.of(dir, is_empty, charged)),
            ..self
        }
    }

    /// The same sandbox, whose changes are announced before they begin, so that a backup sees none of them.
    #[must_use]
    pub fn with_changes(self, changes: &Changes, id: &SandboxId) -> Self {
        Self {
            changes: Some((changes.clone(), id.clone())),
            ..self
        }
    }

    /// Something else than a write through this has changed the files: what they take is measured again when that is needed.
    pub fn has_changed(&self) {
        if let Some(room) = &self.room {
            room.is_unknown();
        }
    }

    /// Measures what the sandbox holds, if that is not known. Blocking.
    ///
    /// # Errors
    /// Of the measuring.
    pub fn measure(&self) -> Result<(), FileError> {
        match &self.room {
            Some(room) => room.held(self).map(drop),
            None => Ok(()),
        }
    }

    /// The same where the quota of the team leaves the sandbox little room: what is stopped for taking too much then depends
    /// on what it held before.
    ///
    /// # Errors
    /// Of the measuring.
    pub fn measure_where_tight(&self) -> Result<(), FileError> {
        if self.is_tight() {
            self.measure()
        } else {
            Ok(())
        }
    }

    /// Whether the quota of the team leaves the sandbox little room.
    pub(crate) fn is_tight(&self) -> bool {
        const LITTLE_BYTES: u64 = 64 << 20;
        self.room.as_ref().is_some_and(|room| {
            room.team_allows()
                .is_some_and(|allowed| allowed < room.counted().saturating_add(LITTLE_BYTES))
        })
    }

    pub(crate) fn room(&self) -> Option<&Arc<Room>> {
        self.room.as_ref()
    }

    /// Announces a change of the sandbox's files, which lasts until what this gives is dropped. Blocking, while a backup
    /// saves the sandbox. None: nobody is to be told.
    pub fn begin_change(&self, kind: ChangeKind) -> Option<Change> {
        let (changes, id) = self.changes.as_ref()?;
        Some(changes.begin(id, kind))
    }

    /// The same where it need not wait; none where it would have to.
    pub fn try_begin_change(&self, kind: ChangeKind) -> Option<Option<Change>> {
        match &self.changes {
            None => Some(None),
            Some((changes, id)) => changes.try_begin(id, kind).map(Some),
        }
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

/// Makes a sandbox's directory, or finds it.
fn make(dir: &Path) -> Result<(), Errno> {
    match rustix::fs::mkdir(dir, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn not_made(errno: Errno) -> FileError {
    FileError::from_errno(
        errno,
        "make the directory of the sandbox,",
        &SandboxPath::root(),
    )
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
