//! Where sandboxes are on disk: `DATA_DIR/sandboxes/ID`. Rows come first, directories after, when they are first needed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::{fs, io};

use errand_core::id::SandboxId;
use errand_core::path::SandboxPath;
use errand_sandbox::{FileError, Root, remove_tree};

/// The directory of all sandboxes.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    dir: PathBuf,
    trash: PathBuf,
}

impl Sandboxes {
    /// Below a data directory.
    #[must_use]
    pub fn beneath(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("sandboxes"),
            trash: data_dir.join("trash"),
        }
    }

    /// A sandbox's root, made if it is not there. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn root(&self, id: &SandboxId) -> Result<Root, FileError> {
        make_private(&self.dir).map_err(|source| FileError::Io {
            op: "make",
            path: SandboxPath::root(),
            source,
        })?;
        // The id's form has no slash and no dot: it cannot name another directory.
        Root::create(&self.dir.join(id.as_str()))
    }

    /// Removes a sandbox whose row is gone: moved aside at once, so that it is never seen half removed. One that never
    /// had a directory is no error. Blocking.
    ///
    /// # Errors
    /// Of the file system; what is left in the trash is removed by the next call for it, or by a start.
    pub fn remove(&self, id: &SandboxId) -> io::Result<()> {
        make_private(&self.trash)?;
        let aside = self.trash.join(id.as_str());
        match fs::rename(self.dir.join(id.as_str()), &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if aside.exists() {
            remove_tree(&aside).map_err(io::Error::other)
        } else {
            Ok(())
        }
    }

    /// The sandboxes that have a directory. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn list(&self) -> io::Result<Vec<SandboxId>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            found.extend(entry?.file_name().to_str().and_then(SandboxId::parse));
        }
        Ok(found)
    }

    /// Removes what an earlier removal left in the trash. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn empty_trash(&self) -> io::Result<()> {
        let left = match fs::read_dir(&self.trash) {
            Ok(left) => left,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in left {
            remove_tree(&entry?.path()).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// A run's sandbox, opened when a tool first needs it. Cheap to clone.
#[derive(Clone)]
pub struct Workspace {
    shared: Arc<Shared>,
}

struct Shared {
    sandboxes: Sandboxes,
    id: SandboxId,
    root: OnceLock<Root>,
}

impl Workspace {
    /// Of a sandbox whose row is on disk before anything is done in it.
    #[must_use]
    pub fn new(sandboxes: Sandboxes, id: SandboxId) -> Self {
        Self {
            shared: Arc::new(Shared {
                sandboxes,
                id,
                root: OnceLock::new(),
            }),
        }
    }

    /// Its root; the directory is made if it is not there. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn root(&self) -> Result<&Root, FileError> {
        if let Some(root) = self.shared.root.get() {
            return Ok(root);
        }
        let opened = self.shared.sandboxes.root(&self.shared.id)?;
        Ok(self.shared.root.get_or_init(|| opened))
    }
}

/// Makes a directory that others cannot look into.
fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}
