//! The files of the master key during a rotation.
//!
//! # Guarantees
//!
//! A crash at any moment loses no secret. The new key is on disk, next to the old one (`master.key.next`), before
//! anything is sealed under it. The old key is replaced only when nothing is sealed under it any more. A start that
//! finds both files continues the interrupted rotation ([`MasterKey::take_next`]).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{KEY_ID_BYTES, MasterKey, SealError, random, write_private};

/// Path of the new key that is about to replace the key in `file`.
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
    /// Generates a random key.
    ///
    /// # Errors
    /// [`SealError::Randomness`].
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self::from_bytes(random()?))
    }

    /// The file that the key was read from. `None` if it was supplied in another way.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the key from a file, together with the new key of an interrupted rotation. `None` if there is no such
    /// file.
    ///
    /// # Errors
    /// As [`MasterKey::load_or_create`].
    pub fn read(file: &Path) -> Result<Option<Self>, SealError> {
        Self::load(file)?.map(|key| key.with_next(file)).transpose()
    }

    /// Ids of the keys that open what the store contains: this key, and that of an interrupted rotation.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let next = self.next.as_ref().map(|next| next.id());
        std::iter::once(self.id()).chain(next).collect()
    }

    /// Takes the new key of an interrupted rotation.
    pub(crate) fn take_next(&mut self) -> Option<Self> {
        self.next.take().map(|next| *next)
    }

    /// Loads the new key of an interrupted rotation, if there is one.
    pub(super) fn with_next(mut self, file: &Path) -> Result<Self, SealError> {
        self.next = Self::load(&next_of(file))?.map(Box::new);
        if let Some(next) = &mut self.next {
            next.file = Some(file.to_owned());
        }
        self.file = Some(file.to_owned());
        Ok(self)
    }

    /// Whether a rotation was started and has not finished.
    pub(crate) fn is_brought_in(file: &Path) -> bool {
        next_of(file).exists()
    }

    /// Id of the key that a value is sealed under. `None` if it is not a sealed value.
    pub(crate) fn id_in(sealed: &[u8]) -> Option<String> {
        let id = sealed.get(1..)?.first_chunk::<KEY_ID_BYTES>()?;
        Some(hex::encode(id))
    }

    /// Whether a value is sealed under this key.
    pub(crate) fn sealed(&self, sealed: &[u8]) -> bool {
        sealed
            .get(1..)
            .is_some_and(|rest| rest.starts_with(&self.id_bytes()))
    }

    /// Writes a new key next to `file`. On disk when this returns.
    pub(crate) fn bring_in(file: &Path) -> Result<Self, SealError> {
        let next = next_of(file);
        let failed = |source| SealError::KeyFile {
            act: "create",
            path: next.clone(),
            source,
        };
        let mut key = Self::generate()?;
        // Whole or not at all: a partly written key would make the next start fail.
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

    /// Replaces the old key with the one of [`MasterKey::bring_in`]. To be called when nothing is sealed under the
    /// old one any more.
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
