//! [`Root`]: one sandbox's directory, opened once.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::SandboxId;
use errand_core::path::SandboxPath;
use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::beneath::{OpenStrategy, file_type};
use crate::changes::{Change, ChangeKind, Changes};
use crate::error::FileError;
use crate::quota::Charged;
use crate::room::{Room, Rooms};

/// The directory of one sandbox. All access goes beneath it; the crate documentation lists the guarantees.
///
/// Cheap to open and to clone (a clone is the same directory). The directory is held open: if it is moved, access
/// follows it; if it is removed, reads find nothing and writes are refused.
#[derive(Clone, Debug)]
pub struct Root {
    dir: Arc<OwnedFd>,
    /// Where unfinished writes have their names. `None`: in the sandbox's directory itself.
    temps: Option<Arc<OwnedFd>>,
    strategy: OpenStrategy,
    unnamed_temps: bool,
    /// Owner of newly written files. `None`: the server's own user.
    user: Option<(Uid, Gid)>,
    /// The list of directories that may not be on disk yet, and this directory's path. `None`: it is on disk.
    fresh: Option<(Fresh, Arc<PathBuf>)>,
    /// How much more may be written. `None`: only the disk limits it.
    room: Option<Arc<Room>>,
    /// Where changes are announced, and for which sandbox. `None`: no backup can run at the same time.
    changes: Option<(Changes, SandboxId)>,
}

/// Sandbox directories that were created without syncing their parent, so that they may not be on disk yet. The first
/// write to one syncs it; a sandbox that was never written to has nothing to lose.
///
/// Cheap to clone: a clone is the same list.
#[derive(Clone, Debug, Default)]
pub struct Fresh(Arc<Mutex<HashSet<PathBuf>>>);

impl Fresh {
    fn list(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the directory's name on disk if it is still listed here.
    fn sync_parent(&self, dir: &Path) -> Result<(), Errno> {
        if !self.list().contains(dir) {
            return Ok(());
        }
        sync_parent_of(dir)?;
        self.list().remove(dir);
        Ok(())
    }

    /// Forgets a directory that was moved or removed.
    pub fn forget(&self, dir: &Path) {
        self.list().remove(dir);
    }
}

fn sync_parent_of(dir: &Path) -> Result<(), Errno> {
    let parent = dir
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(parent, flags, Mode::empty()).and_then(rustix::fs::fsync)
}

impl Root {
    /// Creates the sandbox's directory, readable only by the server's user, and opens it. A directory that already
    /// exists is opened unchanged, so that a creation that a crash interrupted can be repeated. The parent directory
    /// must exist.
    ///
    /// When this returns, the directory is on disk.
    ///
    /// # Errors
    /// [`FileError::Io`] and [`FileError::NoSpace`] from the system; [`FileError::NotADirectory`] and
    /// [`FileError::LinkInTheWay`] if something else has this name.
    pub fn create(dir: &Path) -> Result<Self, FileError> {
        create_dir(dir).map_err(create_failed)?;
        let root = Self::open(dir)?;
        sync_parent_of(dir).map_err(create_failed)?;
        Ok(root)
    }

    /// Like [`Root::create`], but the directory's name is only on disk once the first file in it is. That saves a
    /// sync for each new sandbox. Everyone who may write there must use the same `fresh` list.
    ///
    /// # Errors
    /// As [`Root::create`].
    pub fn create_fresh(dir: &Path, fresh: &Fresh) -> Result<Self, FileError> {
        // Listed before it exists, so that whoever sees the directory also sees that it is not synced.
        if rustix::fs::access(dir, rustix::fs::Access::EXISTS).is_err() {
            fresh.list().insert(dir.to_owned());
        }
        create_dir(dir).map_err(create_failed)?;
        let fresh = Some((fresh.clone(), Arc::new(dir.to_owned())));
        Ok(Self {
            fresh,
            ..Self::open(dir)?
        })
    }

    /// Puts the name of the sandbox's own directory on disk if that has not happened yet. To be called after its
    /// content is synced.
    pub(crate) fn sync_parent(&self) -> Result<(), Errno> {
        match &self.fresh {
            Some((fresh, dir)) => fresh.sync_parent(dir),
            None => Ok(()),
        }
    }

    /// Opens the directory of a sandbox. `dir` is the server's own path: links in its parent directories are
    /// followed, a link as its last name is not.
    ///
    /// # Errors
    /// [`FileError::SandboxMissing`] if nothing is there; otherwise as [`Root::create`].
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
        let strategy = OpenStrategy::probe(dir.as_fd());
        let user = owner_to_assign(&dir).map_err(|errno| {
            FileError::from_errno(
                errno,
                "look at the directory of the sandbox,",
                &SandboxPath::root(),
            )
        })?;
        Ok(Self {
            dir: Arc::new(dir),
            temps: None,
            strategy,
            unnamed_temps: true,
            user,
            fresh: None,
            room: None,
            changes: None,
        })
    }

    /// Limits the total size of the sandbox to what `rooms` allows. `dir` is the directory by which this root was opened;
    /// `charged` is the team whose quota it counts toward.
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

    /// Announces changes of this sandbox before they begin, so that a backup does not copy half of one.
    #[must_use]
    pub fn with_changes(self, changes: &Changes, id: &SandboxId) -> Self {
        Self {
            changes: Some((changes.clone(), id.clone())),
            ..self
        }
    }

    /// Records that the files were changed by something other than a write through this root. The used space is
    /// measured again when it is next needed.
    pub fn has_changed(&self) {
        if let Some(room) = &self.room {
            room.mark_unknown();
        }
    }

    /// Measures the sandbox, unless its size is known. Blocking.
    ///
    /// # Errors
    /// If the measurement fails.
    pub fn measure(&self) -> Result<(), FileError> {
        match &self.room {
            Some(room) => room.held(self).map(drop),
            None => Ok(()),
        }
    }

    /// Measures the sandbox if its team's quota leaves it little space. Whether a command is stopped then depends on the
    /// size of the sandbox before it.
    ///
    /// # Errors
    /// If the measurement fails.
    pub fn measure_where_tight(&self) -> Result<(), FileError> {
        if self.is_tight() {
            self.measure()
        } else {
            Ok(())
        }
    }

    /// Whether the team's quota leaves the sandbox little space.
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

    /// Announces a change of the sandbox's files, which lasts until the returned value is dropped. Blocks while a
    /// backup saves the sandbox. Returns `None` if changes of this root are not announced.
    pub fn begin_change(&self, kind: ChangeKind) -> Option<Change> {
        let (changes, id) = self.changes.as_ref()?;
        Some(changes.begin(id, kind))
    }

    /// Like [`Root::begin_change`], but returns the outer `None` instead of blocking.
    pub fn try_begin_change(&self, kind: ChangeKind) -> Option<Option<Change>> {
        match &self.changes {
            None => Some(None),
            Some((changes, id)) => changes.try_begin(id, kind).map(Some),
        }
    }

    /// Puts the names of unfinished writes into `temps`, one directory for all sandboxes, so that whatever a crash
    /// leaves is found without a search. It must exist and be on the same file system as the sandboxes, because a
    /// finished file is moved from there by a rename.
    ///
    /// # Errors
    /// [`FileError::Io`] if `temps` cannot be opened.
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

    /// Behaves as on a system without `openat2`, or on a file system without unnamed files.
    #[cfg(test)]
    pub(crate) fn with(self, strategy: OpenStrategy, unnamed_temps: bool) -> Self {
        Self {
            strategy,
            unnamed_temps,
            ..self
        }
    }

    /// The user id that owns the sandbox's directory.
    ///
    /// # Errors
    /// The system's error, if the directory cannot be examined.
    pub fn owner(&self) -> std::io::Result<u32> {
        Ok(rustix::fs::fstat(self.dir())?.st_uid)
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Directory in which unfinished writes have their names.
    pub(crate) fn temps(&self) -> BorrowedFd<'_> {
        self.temps.as_ref().unwrap_or(&self.dir).as_fd()
    }

    /// Owner of newly written files, if it is not the server's own user.
    pub(crate) fn user(&self) -> Option<(Uid, Gid)> {
        self.user
    }

    pub(crate) fn set_user(&mut self, user: (Uid, Gid)) {
        self.user = Some(user);
    }

    pub(crate) fn strategy(&self) -> OpenStrategy {
        self.strategy
    }

    /// Whether to try files without a name (`O_TMPFILE`).
    pub(crate) fn tries_unnamed_temps(&self) -> bool {
        self.unnamed_temps
    }

    /// Opens anything that `path` names: a file, a directory, or anything else that is not a link.
    pub(crate) fn open_any(&self, path: &SandboxPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.strategy
            .open(self.dir(), path.relative().as_bytes(), flags)
    }

    /// Checks that `path` is a directory.
    ///
    /// # Errors
    /// As [`Root::list`].
    pub fn check_directory(&self, path: &SandboxPath) -> Result<(), FileError> {
        self.open_dir(path).map(drop)
    }

    /// Opens a directory to read its entries.
    pub(crate) fn open_dir(&self, path: &SandboxPath) -> Result<OwnedFd, FileError> {
        self.open_any(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|errno| FileError::from_errno(errno, "open the directory", path))
    }

    /// Opens a regular file for reading and refuses everything else.
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

/// Creates the directory. Succeeds if something already has this name; opening it then decides.
fn create_dir(dir: &Path) -> Result<(), Errno> {
    match rustix::fs::mkdir(dir, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn create_failed(errno: Errno) -> FileError {
    FileError::from_errno(
        errno,
        "make the directory of the sandbox,",
        &SandboxPath::root(),
    )
}

/// The owner that new files get: the owner of the directory, if the server is root and the owner is not. Commands run
/// as that user and must be able to change what the server writes.
fn owner_to_assign(dir: &OwnedFd) -> Result<Option<(Uid, Gid)>, Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let stat = rustix::fs::fstat(dir)?;
    let user = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok((stat.st_uid != 0).then_some(user))
}
