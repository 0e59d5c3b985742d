//! Saves the files of one sandbox as an archive, and restores them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use errand_sandbox::{FileError, Root, Visited, Walked, What};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use super::{FileLine, Progress, SandboxLine};

/// Maximum number of attempts to save a sandbox whose files change.
const TRIES_MAX: u32 = 3;
/// The setuid, setgid and sticky bits, which are not restored.
const SPECIAL_BITS: u32 = 0o7000;

/// A writer that counts and digests the bytes, and stops if the backup is canceled.
struct Digesting<'a> {
    to: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
    progress: &'a Progress,
}

impl Write for Digesting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        self.progress.pass(count)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A reader that returns exactly the expected number of bytes, even if the file changes its size: missing bytes are
/// zeros.
struct Exactly<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let mut count = self.from.read(buffer)?;
        if count == 0 {
            buffer.fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// The result of writing an archive.
struct Written {
    walked: Walked,
    entries: u64,
    left_out: u64,
    bytes: u64,
    sha256: String,
}

/// A sparse file changed while it was read, so the archive is invalid.
#[derive(Debug, thiserror::Error)]
#[error("a sparse file changed while it was read")]
struct Torn;

fn is_torn(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Torn>())
}

/// Writes the archive of the sandbox at `from` to the new file `DIR/PATH`, without syncing it. Returns `None` if the
/// sandbox has no directory. `command_runs`: a command is running in the sandbox.
pub(super) fn save(
    from: &Path,
    id: &str,
    (dir, path): (&Path, String),
    command_runs: bool,
    progress: &Progress,
) -> io::Result<Option<SandboxLine>> {
    open_up(from)?;
    let root = match Root::open(from) {
        Err(FileError::SandboxMissing) => return Ok(None),
        root => root.map_err(io::Error::other)?,
    };
    let owner = fs::symlink_metadata(from)?;
    let to = dir.join(&path);
    let mut tries = 1;
    let written = loop {
        // If a running command never pauses, sparse files that change are left out in the last attempt.
        let with_holes = tries < TRIES_MAX || !command_runs;
        match write(&root, &to, with_holes, progress) {
            Ok(written) if !written.walked.moved || tries == TRIES_MAX => break written,
            Err(error) if !is_torn(&error) || tries == TRIES_MAX => return Err(error),
            Ok(_) | Err(_) => tries += 1,
        }
    };
    Ok(Some(SandboxLine {
        id: id.to_owned(),
        file: FileLine {
            path,
            bytes: written.bytes,
            sha256: written.sha256,
        },
        uid: owner.uid(),
        gid: owner.gid(),
        entries: written.entries,
        left_out: written.walked.left_out + written.left_out,
        command_was_running: command_runs || written.walked.moved,
    }))
}

fn write(root: &Root, to: &Path, with_holes: bool, progress: &Progress) -> io::Result<Written> {
    let file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(to)?;
    let digesting = Digesting {
        to: BufWriter::with_capacity(256 * 1024, file),
        hasher: Sha256::new(),
        bytes: 0,
        progress,
    };
    let mut builder = Builder::new(digesting);
    let (mut entries, mut left_out) = (0, 0);
    let walked = root.walk(&mut |visited| {
        if visited.path.is_empty() {
            return Ok(());
        }
        if matches!(&visited.what, What::File { is_sparse: true, .. } if !with_holes) {
            left_out += 1;
            return Ok(());
        }
        entries += 1;
        append(&mut builder, visited)
    })?;
    let mut digesting = builder.into_inner()?;
    digesting.flush()?;
    Ok(Written {
        walked,
        entries,
        left_out,
        bytes: digesting.bytes,
        sha256: hex::encode(digesting.hasher.finalize()),
    })
}

fn append<W: Write>(builder: &mut Builder<W>, visited: Visited<'_>) -> io::Result<()> {
    let path = Path::new(OsStr::from_bytes(visited.path));
    let mut header = Header::new_gnu();
    header.set_mode(visited.mode);
    header.set_uid(visited.uid.into());
    header.set_gid(visited.gid.into());
    header.set_mtime(visited.modified_s);
    header.set_size(0);
    match visited.what {
        What::Directory => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, path, io::empty())?;
        }
        What::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, path, OsStr::from_bytes(&target))?;
        }
        What::File {
            mut file,
            size_bytes: _,
            is_sparse: true,
        } => {
            let before = file.metadata()?;
            builder.append_file(path, &mut file)?;
            let after = file.metadata()?;
            let seen = |of: &fs::Metadata| (of.len(), of.mtime(), of.mtime_nsec(), of.blocks());
            if seen(&before) != seen(&after) {
                return Err(io::Error::other(Torn));
            }
        }
        What::File {
            file, size_bytes, ..
        } => {
            header.set_size(size_bytes);
            let exactly = Exactly {
                from: file,
                left: size_bytes,
            };
            builder.append_data(&mut header, path, exactly)?;
        }
    }
    Ok(())
}

/// Restores read access to the sandbox's own directory. The server created it readable, but a command may have changed
/// that.
fn open_up(dir: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let mode = found.permissions().mode() & 0o777;
    if found.is_dir() && mode & 0o700 != 0o700 {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o700))?;
    }
    Ok(())
}

/// Extracts an archive into the new directory `to`.
pub(super) fn unpack(archive: &Path, line: &SandboxLine, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().mode(0o700).create(to)?;
    let is_root = rustix::process::geteuid().is_root();
    let mut archive = Archive::new(BufReader::with_capacity(256 * 1024, File::open(archive)?));
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(is_root);
    archive.set_unpack_xattrs(false);
    archive.set_mask(SPECIAL_BITS);
    archive.unpack(to)?;
    if is_root {
        std::os::unix::fs::chown(to, Some(line.uid), Some(line.gid))?;
    }
    Ok(())
}
