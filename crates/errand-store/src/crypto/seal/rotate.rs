//! The master key's file when the key is replaced.
//!
//! Promised: a crash at any moment loses no secret. The new key is on disk, beside the old one (`master.key.next`), before
//! anything is sealed under it; the old one is replaced only when nothing is sealed under it any more. A start that finds
//! both goes on where the rotation was cut off ([`MasterKey::take_next`]).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{KEY_ID_BYTES, MasterKey, SealError, random, to_hex, write_private};

/// The file of a key that is about to replace `file`.
fn next_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".next");
    PathBuf::from(name)
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

impl MasterKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`SealError::Randomness`].
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self::from_bytes(random()?))
    }

    /// The file that the key was read from; none where it was given in another way.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the key from a file, with the one that a rotation was bringing in. None where there is no such file.
    ///
    /// # Errors
    /// As [`MasterKey::load_or_create`].
    pub fn read(file: &Path) -> Result<Option<Self>, SealError> {
        Self::load(file)?.map(|key| key.with_next(file)).transpose()
    }

    /// The ids of the keys that open what this one's store holds: its own, and that of a rotation that was cut off.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let next = self.next.as_ref().map(|next| next.id());
        std::iter::once(self.id()).chain(next).collect()
    }

    /// The key that a rotation was bringing in when it was cut off.
    pub(crate) fn take_next(&mut self) -> Option<Self> {
        self.next.take().map(|next| *next)
    }

    /// Looks for the key of a rotation that was cut off.
    pub(super) fn with_next(mut self, file: &Path) -> Result<Self, SealError> {
        self.next = Self::load(&next_of(file))?.map(Box::new);
        if let Some(next) = &mut self.next {
            next.file = Some(file.to_owned());
        }
        self.file = Some(file.to_owned());
        Ok(self)
    }

    /// Whether a rotation was begun and has not been ended.
    pub(crate) fn is_brought_in(file: &Path) -> bool {
        next_of(file).exists()
    }

    /// The id of the key that something was sealed under. None: it is not sealed.
    pub(crate) fn id_in(sealed: &[u8]) -> Option<String> {
        let id = sealed.get(1..)?.first_chunk::<KEY_ID_BYTES>()?;
        Some(to_hex(id))
    }

    /// Whether something was sealed under this key.
    pub(crate) fn sealed(&self, sealed: &[u8]) -> bool {
        sealed
            .get(1..)
            .is_some_and(|rest| rest.starts_with(&self.id_bytes()))
    }

    /// Writes a new key beside `file`, on disk when this returns.
    pub(crate) fn bring_in(file: &Path) -> Result<Self, SealError> {
        let next = next_of(file);
        let failed = |source| SealError::KeyFile {
            act: "make",
            path: next.clone(),
            source,
        };
        let mut key = Self::generate()?;
        // Whole or not at all, as the first one: a half-written key would be in the next start's way.
        let mut beside = next.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        write_private(&beside, &key).map_err(failed)?;
        fs::rename(&beside, &next).map_err(failed)?;
        sync_directory_of(&next).map_err(failed)?;
        key.file = Some(file.to_owned());
        Ok(key)
    }

    /// Puts the key of [`MasterKey::bring_in`] in the old one's place: nothing is sealed under that any more.
    pub(crate) fn take_over(file: &Path) -> Result<(), SealError> {
        let failed = |source| SealError::KeyFile {
            act: "replace",
            path: file.to_owned(),
            source,
        };
        fs::rename(next_of(file), file).map_err(failed)?;
        sync_directory_of(file).map_err(failed)
    }
}
