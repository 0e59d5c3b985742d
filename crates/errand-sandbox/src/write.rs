//! Writes files: whole or not at all, and on disk when the call returns.
//!
//! The bytes go into a file without a name. When they are complete and on disk, the file gets a temporary name and is
//! renamed over its target, so a reader sees either the old file or the new one. A crash before that leaves nothing;
//! a crash between the two steps leaves a temporary name. Where the file system has no unnamed files (some overlay
//! and network file systems), the bytes go into a file with a temporary name from the beginning.
//!
//! All temporary names are in one place, where leftovers of crashes are easy to find: in the directory that
//! [`Root::with_temps`] names, otherwise in the sandbox's top directory, where listings hide them. They are never
//! next to the target, because its directory may not exist yet, and a failed upload must not leave directories
//! behind.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use errand_core::path::SandboxPath;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::beneath::file_type;
use crate::changes::ChangeKind;
use crate::error::FileError;
use crate::room::{Full, Reservation};
use crate::root::Root;

/// Prefix of the names of unfinished writes. Such names are not listed, not searched, and cannot be written to.
pub const TEMP_PREFIX: &str = ".errand-tmp-";

/// Maximum number of temporary names tried. Names that are taken are leftovers of crashes, or were created by a
/// command.
const TEMP_TRIES_MAX: u32 = 1000;

const NEW_FILE: Mode = Mode::from_raw_mode(0o644);
const NEW_DIRECTORY: Mode = Mode::from_raw_mode(0o755);

/// Makes temporary names unique in this process. They need not be secret: whoever could create one in advance could
/// also write the target.
static TEMP_COUNTER: AtomicU64 = AtomicU64::new(0);

pub(crate) fn is_temp(name: &[u8]) -> bool {
    name.starts_with(TEMP_PREFIX.as_bytes())
}

/// A file being received. Nothing of it is visible before [`Upload::finish`]; dropping it removes it.
#[derive(Debug)]
pub struct Upload {
    root: Root,
    path: SandboxPath,
    file: File,
    /// Its temporary name, if the file system has no unnamed files.
    named: Option<String>,
    written_bytes: u64,
    limit_bytes: u64,
    is_broken: bool,
    /// Space reserved for it, if the size of the sandbox is limited.
    reservation: Option<Reservation>,
}

impl Root {
    /// Writes a file with these bytes to `path`, replacing an existing one but keeping its permissions. Creates
    /// missing parent directories. When this returns, the file is on disk.
    ///
    /// # Errors
    /// `IsADirectory`, `NotARegularFile` and `LinkInTheWay` if such a thing is at `path`; `NotADirectory`,
    /// `LinkInTheWay` and `OtherFileSystem` for the directories above; `ReservedName`, `SandboxFull`, `NoPermission`,
    /// `NoSpace`, `Io`.
    ///
    /// After an error the file is unchanged, except after an `Io` error of the last sync. Parent directories may have
    /// been created.
    pub fn write(&self, path: &SandboxPath, bytes: &[u8]) -> Result<(), FileError> {
        let mut upload = self.begin_upload(path, u64::MAX)?;
        upload.write(bytes)?;
        upload.finish()?;
        Ok(())
    }

    /// Begins to receive a file of at most `limit_bytes` bytes in parts. The path is checked now, before the parts
    /// arrive, and again at the end in case it has changed.
    ///
    /// # Errors
    /// As [`Root::write`].
    pub fn begin_upload(&self, path: &SandboxPath, limit_bytes: u64) -> Result<Upload, FileError> {
        if path
            .relative()
            .split('/')
            .any(|name| is_temp(name.as_bytes()))
        {
            return Err(FileError::ReservedName { path: path.clone() });
        }
        let failed = |errno| self.write_error(errno, "begin to write", path);
        let mode = match self.open_any(path, OFlags::PATH) {
            Ok(target) => Some(mode_of_target(
                path,
                &rustix::fs::fstat(target).map_err(failed)?,
            )?),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed(errno)),
        };
        // The temporary file may be outside the sandbox, so creating it does not prove that the sandbox still exists.
        if rustix::fs::fstat(self.dir()).map_err(failed)?.st_nlink == 0 {
            return Err(FileError::SandboxMissing);
        }
        let reservation = match self.room() {
            Some(room) => Some(
                room.begin(self, mode.is_none())?
                    .map_err(|full| sandbox_full(path, &full))?,
            ),
            None => None,
        };
        let (file, named) = self.temp_file().map_err(failed)?;
        // From here on, dropping the upload removes the temporary file.
        let upload = Upload {
            root: self.clone(),
            path: path.clone(),
            file: File::from(file),
            named,
            written_bytes: 0,
            limit_bytes,
            is_broken: false,
            reservation,
        };
        if let Some((uid, gid)) = self.user() {
            rustix::fs::fchown(&upload.file, Some(uid), Some(gid)).map_err(failed)?;
        }
        if let Some(mode) = mode {
            rustix::fs::fchmod(&upload.file, mode).map_err(failed)?;
        }
        Ok(upload)
    }

    /// Maps an error number of a write. Creating a file in a removed directory fails with different errors on
    /// different file systems (EPERM on ext4), so that case is checked separately.
    fn write_error(&self, errno: Errno, op: &'static str, path: &SandboxPath) -> FileError {
        match rustix::fs::fstat(self.dir()) {
            Ok(dir) if dir.st_nlink == 0 => FileError::SandboxMissing,
            _ => FileError::from_errno(errno, op, path),
        }
    }

    fn temp_file(&self) -> Result<(OwnedFd, Option<String>), Errno> {
        if self.tries_unnamed_temps() {
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            match rustix::fs::openat(self.dir(), c".", flags, NEW_FILE) {
                // An unnamed file gets its name through /proc, which some containers lack.
                Ok(file) if is_reachable(&file) => return Ok((file, None)),
                Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {}
                Err(errno) => return Err(errno),
            }
        }
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (file, name) =
            with_temp_name(|name| rustix::fs::openat(self.temps(), name, flags, NEW_FILE))?;
        Ok((file, Some(name)))
    }

    /// Opens the parent directory of `path`, creating missing directories. Each is on disk before this returns.
    ///
    /// Existing directories are synced too: a command, or another write that is still in progress, may have created
    /// them a moment ago.
    fn make_parents(&self, path: &SandboxPath) -> Result<OwnedFd, Errno> {
        let parents = path.parent().unwrap_or_else(SandboxPath::root);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = self.strategy().open(self.dir(), b"", flags)?;
        for name in parents
            .relative()
            .split('/')
            .filter(|name| !name.is_empty())
        {
            let inner = match self.strategy().open(at.as_fd(), name.as_bytes(), flags) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&at, name, NEW_DIRECTORY) {
                        Ok(()) => self.has_changed(),
                        // A concurrent write created it first.
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                    let made = self.strategy().open(at.as_fd(), name.as_bytes(), flags)?;
                    // If a command has replaced the directory in the meantime, it already owns the new one, so this
                    // is harmless.
                    if let Some((uid, gid)) = self.user() {
                        rustix::fs::fchown(&made, Some(uid), Some(gid))?;
                    }
                    made
                }
                result => result?,
            };
            rustix::fs::fsync(&at)?;
            at = inner;
        }
        Ok(at)
    }
}

impl Upload {
    #[must_use]
    pub fn path(&self) -> &SandboxPath {
        &self.path
    }

    /// Bytes received so far.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Appends the next part.
    ///
    /// # Errors
    /// `TooLarge` if the file would exceed its limit; nothing of this part is kept. Also `SandboxFull`, `NoSpace` and
    /// `Io`. After any error the upload can only be dropped: further calls fail with `UploadBroken`.
    pub fn write(&mut self, part: &[u8]) -> Result<(), FileError> {
        if self.is_broken {
            return Err(FileError::UploadBroken {
                path: self.path.clone(),
            });
        }
        let total = u64::try_from(part.len())
            .ok()
            .and_then(|len| self.written_bytes.checked_add(len));
        let Some(total) = total.filter(|total| *total <= self.limit_bytes) else {
            self.is_broken = true;
            return Err(FileError::TooLarge {
                path: self.path.clone(),
                limit_bytes: self.limit_bytes,
            });
        };
        if let Some(reservation) = &mut self.reservation {
            let length = total - self.written_bytes;
            let fits = reservation.reserve(&self.root, length);
            if let Err(error) =
                fits.and_then(|fits| fits.map_err(|full| sandbox_full(&self.path, &full)))
            {
                self.is_broken = true;
                return Err(error);
            }
        }
        if let Err(e) = self.file.write_all(part) {
            self.is_broken = true;
            return Err(FileError::from_io(e, "write", &self.path));
        }
        self.written_bytes = total;
        Ok(())
    }

    /// Puts the file in its place and returns its size in bytes. When this returns, the file is on disk, with the
    /// directories that lead to it.
    ///
    /// # Errors
    /// As [`Root::write`], and `UploadBroken` if a part was refused.
    pub fn finish(mut self) -> Result<u64, FileError> {
        if self.is_broken {
            return Err(FileError::UploadBroken {
                path: self.path.clone(),
            });
        }
        let _change = self.root.begin_change(ChangeKind::Write);
        self.place()?;
        Ok(self.written_bytes)
    }

    fn place(&mut self) -> Result<(), FileError> {
        let path = &self.path;
        let root = &self.root;
        let failed = |op| move |errno| root.write_error(errno, op, path);
        let Some(name) = path.file_name() else {
            return Err(FileError::IsADirectory { path: path.clone() });
        };
        rustix::fs::fsync(&self.file).map_err(failed("sync"))?;
        let dir = self
            .root
            .make_parents(path)
            .map_err(failed("make the directories above"))?;
        let before = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(target) => {
                mode_of_target(path, &target)?;
                Some(disk_bytes(&target))
            }
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed("write")(errno)),
        };
        // If a link or a pipe takes the name now, the rename replaces it: a rename does not follow links.
        match &self.named {
            None => {
                let temps = self.root.temps();
                let temp = link_temp(&self.file, temps).map_err(failed("write"))?;
                rustix::fs::renameat(temps, &temp, &dir, name).map_err(|errno| {
                    remove_temp(temps, &temp);
                    failed("rename")(errno)
                })?;
            }
            Some(temp) => rustix::fs::renameat(self.root.temps(), temp, &dir, name)
                .map_err(failed("rename"))?,
        }
        let synced = rustix::fs::fsync(&dir)
            .and_then(|()| retry_while_exhausted(|| root.sync_parent()))
            .map_err(failed("sync the directory of"));
        self.named = None;
        if let Some(reservation) = self.reservation.take() {
            let bytes =
                rustix::fs::fstat(&self.file).map_or(self.written_bytes, |made| disk_bytes(&made));
            reservation.commit(bytes, before);
        }
        synced
    }
}

/// `st_blocks` counts units of 512 bytes, regardless of the file system's block size.
fn disk_bytes(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

pub(crate) fn sandbox_full(path: &SandboxPath, full: &Full) -> FileError {
    let path = path.clone();
    match full {
        Full::Sandbox(limits) => FileError::SandboxFull {
            path,
            disk_bytes_max: limits.disk_bytes_max,
            files_max: limits.files_max,
        },
        Full::Team(limits) => FileError::TeamFull {
            path,
            disk_bytes_max: limits.team_disk_bytes_max,
        },
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(temp) = &self.named {
            remove_temp(self.root.temps(), temp);
        }
    }
}

/// Repeats an action that must succeed once the file is in its place, while the system is short of descriptors or
/// memory. Returning that error would claim that nothing was changed. Gives up after five minutes.
fn retry_while_exhausted(act: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
    const TRIES_MAX: u32 = 15_000;
    for _ in 0..TRIES_MAX {
        match act() {
            Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
    // Not one of the errors that promise that nothing was changed.
    Err(Errno::IO)
}

/// Permissions for a file that replaces `target`: the same, but always readable and writable for the server, and
/// without set-user-id and set-group-id. Refuses anything but a regular file.
fn mode_of_target(path: &SandboxPath, target: &Stat) -> Result<Mode, FileError> {
    let path = path.clone();
    match file_type(target) {
        FileType::RegularFile => Ok((Mode::from_raw_mode(target.st_mode)
            & Mode::from_raw_mode(0o777))
            | Mode::RUSR
            | Mode::WUSR),
        FileType::Directory => Err(FileError::IsADirectory { path }),
        FileType::Symlink => Err(FileError::LinkInTheWay { path }),
        _ => Err(FileError::NotARegularFile { path }),
    }
}

fn proc_name(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn is_reachable(file: &OwnedFd) -> bool {
    let seen = rustix::fs::stat(proc_name(file));
    let own = rustix::fs::fstat(file);
    matches!((seen, own), (Ok(seen), Ok(own)) if (seen.st_dev, seen.st_ino) == (own.st_dev, own.st_ino))
}

/// Gives an unnamed file a temporary name in `dir`.
fn link_temp(file: &File, dir: BorrowedFd<'_>) -> Result<String, Errno> {
    let from = proc_name(file);
    with_temp_name(|name| rustix::fs::linkat(CWD, &from, dir, name, AtFlags::SYMLINK_FOLLOW))
        .map(|((), name)| name)
}

/// Calls `make` with new names until one is free.
fn with_temp_name<T>(mut make: impl FnMut(&str) -> Result<T, Errno>) -> Result<(T, String), Errno> {
    for _ in 0..TEMP_TRIES_MAX {
        let number = TEMP_COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMP_PREFIX}{}-{number}", std::process::id());
        match make(&name) {
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
            Ok(made) => return Ok((made, name)),
        }
    }
    Err(Errno::EXIST)
}

/// Removes a temporary name. If that fails, the name stays in the place where leftovers are searched.
fn remove_temp(dir: BorrowedFd<'_>, temp: &str) {
    let _ = rustix::fs::unlinkat(dir, temp, AtFlags::empty());
}
