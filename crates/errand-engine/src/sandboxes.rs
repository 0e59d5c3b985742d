//! The directories of sandboxes: `DATA_DIR/sandboxes/ID`.
//!
//! # Guarantees
//!
//! The row of a sandbox is written before its directory, which is created when it is first needed.
//!
//! The temporary files of unfinished writes are in one directory beside the sandboxes, so that the janitor finds what a
//! crash leaves behind without looking into every sandbox.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{fs, io};

use errand_core::id::{SandboxId, TeamId};
use errand_core::path::SandboxPath;
use errand_core::time::Timestamp;
use errand_sandbox::exec::{Shell, Uids};
use errand_sandbox::{ChangeKind, Changes, Charged, FileError, Fresh, RoomLimits, Rooms, Root};
use tokio::sync::OwnedSemaphorePermit;

use crate::trash::{self, Trash, make_private};

/// Directory of unfinished writes, within the directory of sandboxes, because a rename must stay on one file system. No
/// sandbox can have this name.
const UNFINISHED: &str = ".unfinished";
/// Smallest change of a sandbox's size that is recorded with the step that made it, in bytes. The janitor records smaller
/// ones, many in one write: with each run they cost a tenth of the bytes that a run writes.
const RECORDED_WITH_STEP_BYTES: u64 = 64 << 10;
/// Maximum number of changed sandboxes that are measured in one round.
const MEASURED_MAX: usize = 500;
/// Maximum number of files and directories that are visited in one round.
const MEASURED_NAMES_MAX: u64 = 50_000;

/// The directory of all sandboxes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    dir: PathBuf,
    unfinished: PathBuf,
    trash: Trash,
    /// Unix users for sandboxes, if the server runs as root and commands can run.
    users: Option<Arc<Uids>>,
    fresh: Fresh,
    /// Limits on the size of each sandbox. `None`: the disk is the limit.
    rooms: Option<Rooms>,
    changes: Changes,
}

impl Sandboxes {
    /// The sandboxes of a data directory.
    #[must_use]
    pub fn beneath(data_dir: &Path) -> Self {
        let dir = data_dir.join("sandboxes");
        Self {
            unfinished: dir.join(UNFINISHED),
            trash: Trash::beneath(data_dir),
            dir,
            users: None,
            fresh: Fresh::default(),
            rooms: None,
            changes: Changes::default(),
        }
    }

    /// Limits the size of each sandbox.
    #[must_use]
    pub fn with_limits(self, limits: RoomLimits) -> Self {
        Self {
            rooms: Some(Rooms::new(limits)),
            ..self
        }
    }

    /// Whether the sizes of sandboxes are measured.
    #[must_use]
    pub fn are_counted(&self) -> bool {
        self.rooms.is_some()
    }

    /// Sets the recorded sizes of the teams' sandboxes. Called once, before any sandbox is used.
    pub fn begin_with(&self, teams: Vec<(TeamId, u64)>) {
        if let Some(rooms) = &self.rooms {
            rooms.begin_with(teams);
        }
    }

    /// Bytes on disk of all sandboxes of a team, as far as they are known.
    #[must_use]
    pub fn team_bytes(&self, team: TeamId) -> u64 {
        self.rooms
            .as_ref()
            .map_or(0, |rooms| rooms.team_bytes(team))
    }

    /// Maximum bytes of all sandboxes of a team; `None` means no limit.
    #[must_use]
    pub fn team_bytes_max(&self) -> Option<u64> {
        self.rooms.as_ref().and_then(Rooms::team_bytes_max)
    }

    /// Bytes on disk of a sandbox, if it was used since the start.
    #[must_use]
    pub fn bytes_of(&self, id: &SandboxId) -> Option<u64> {
        self.rooms.as_ref()?.bytes_of(&self.path_of(id))
    }

    /// Sandboxes whose size differs from the recorded one, with their sizes in bytes.
    #[must_use]
    pub fn unrecorded(&self) -> Vec<(SandboxId, u64)> {
        let found = self.rooms.as_ref().map(|rooms| rooms.unrecorded(0));
        let found = found.unwrap_or_default().into_iter();
        found
            .filter_map(|(path, bytes)| Some((id_of(&path)?, bytes)))
            .collect()
    }

    /// Notes the size that the store has recorded for a sandbox.
    pub fn has_recorded(&self, id: &SandboxId, bytes: u64) {
        if let Some(rooms) = &self.rooms {
            rooms.has_recorded(&self.path_of(id), bytes);
        }
    }

    /// Measures a sandbox, unless its size is known. Returns its number of files and directories. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails.
    pub fn measure(&self, id: &SandboxId, charged: Charged) -> Result<u64, FileError> {
        match &self.rooms {
            Some(rooms) => rooms.measure(&self.path_of(id), charged),
            None => Ok(0),
        }
    }

    /// Measures sandboxes that have changed since their last measurement, up to a bound on the work. Blocks.
    ///
    /// # Errors
    ///
    /// The first failure of the file system. The other sandboxes were measured.
    pub fn measure_changed(&self) -> Result<(), FileError> {
        let Some(rooms) = &self.rooms else {
            return Ok(());
        };
        let (mut names, mut failed) = (0, Ok(()));
        for path in rooms.unmeasured(MEASURED_MAX) {
            if !path.exists() {
                // Its record stays ([`Self::is_lost`]).
                continue;
            }
            match rooms.measure_known(&path) {
                Ok(found) => names += found.unwrap_or(0),
                Err(error) => failed = failed.and(Err(error)),
            }
            if names > MEASURED_NAMES_MAX {
                break;
            }
        }
        failed
    }

    /// Gives each sandbox a Unix user of its own. Sandboxes that have one keep it. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails.
    pub fn with_users(self, users: Arc<Uids>) -> io::Result<Self> {
        for id in self.list()? {
            if let Ok(found) = fs::symlink_metadata(self.path_of(&id)) {
                users.claim(found.uid());
            }
        }
        Ok(Self {
            users: Some(users),
            ..self
        })
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Announces changes of sandboxes to a running backup.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    #[must_use]
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// The directory of a sandbox, whether it exists or not.
    #[must_use]
    pub fn path_of(&self, id: &SandboxId) -> PathBuf {
        // An id contains no slash and no dot, so it cannot name another directory.
        self.dir.join(id.as_str())
    }

    /// The sandboxes of a data directory, at the start of a server. Syncs the directory, because the previous process may
    /// have died after it created a sandbox and before it synced the name. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails.
    pub fn settled(data_dir: &Path) -> io::Result<Self> {
        let sandboxes = Self::beneath(data_dir);
        match fs::File::open(&sandboxes.dir).and_then(|dir| dir.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(sandboxes),
        }
    }

    /// Opens the root of a sandbox and creates it if necessary. `charged`: the team whose quota it counts toward. Blocks.
    ///
    /// # Errors
    ///
    /// [`FileError::SandboxLost`] if it held files and its directory is gone: nothing is made in its place, so that a
    /// directory that was not restored is not taken for an empty sandbox. Others of the file system.
    pub fn root(&self, id: &SandboxId, charged: Charged) -> Result<Root, FileError> {
        let temps = self.unfinished().map_err(|source| FileError::Io {
            op: "make",
            path: SandboxPath::root(),
            source,
        })?;
        let dir = self.path_of(id);
        if self.is_lost(id, charged) {
            return Err(FileError::SandboxLost);
        }
        let mut root = Root::create_fresh(&dir, &self.fresh)?
            .with_temps(&temps)?
            .with_changes(&self.changes, id);
        if let Some(rooms) = &self.rooms {
            root = root.with_room(rooms, &dir, charged);
        }
        match &self.users {
            Some(users) => root.with_user_of_its_own(users),
            None => Ok(root),
        }
    }

    /// Whether a sandbox has files on record and no directory.
    #[must_use]
    pub fn is_lost(&self, id: &SandboxId, recorded: Charged) -> bool {
        recorded.bytes > 0
            && fs::symlink_metadata(self.path_of(id))
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Moves the directory of a sandbox to the trash, and releases its Unix user and its share of the quota.
    fn take(
        &self,
        id: &SandboxId,
        charged: Option<Charged>,
        now: Timestamp,
    ) -> io::Result<Option<PathBuf>> {
        let _change = self.changes.begin(id, ChangeKind::Write);
        let path = self.path_of(id);
        // Even if the directory could not be moved, because no run can use the sandbox any more.
        if let Some(rooms) = &self.rooms {
            rooms.forget(&path, charged);
        }
        let owner = fs::symlink_metadata(&path).map(|found| found.uid());
        let aside = self.trash.take(&path, now)?;
        self.fresh.forget(&path);
        if let (Some(users), Ok(owner), Some(_)) = (&self.users, owner, &aside) {
            users.give_back(owner);
        }
        Ok(aside)
    }

    /// The directory of unfinished writes; created if necessary. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails.
    pub fn unfinished(&self) -> io::Result<PathBuf> {
        make_private(&self.unfinished)?;
        Ok(self.unfinished.clone())
    }

    /// Moves the directory of a sandbox without a row to the trash in one rename. Returns false if there is no directory.
    /// `charged`: the recorded size, if the row was deleted just now. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails; then nothing was moved.
    pub fn discard(
        &self,
        id: &SandboxId,
        charged: Option<Charged>,
        now: Timestamp,
    ) -> io::Result<bool> {
        Ok(self.take(id, charged, now)?.is_some())
    }

    /// Removes a sandbox without a row at once, because a person deleted it on purpose. A missing directory is not an
    /// error. `charged`: the recorded size, if there was a row. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails. The rest is in the trash or at its old place, and the janitor removes it later.
    pub fn remove(
        &self,
        id: &SandboxId,
        charged: Option<Charged>,
        now: Timestamp,
    ) -> io::Result<()> {
        match self.take(id, charged, now)? {
            Some(aside) => trash::remove(&aside),
            None => Ok(()),
        }
    }

    /// Lists the sandboxes that have a directory. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails.
    pub fn list(&self) -> io::Result<Vec<SandboxId>> {
        let names = names_in(&self.dir)?;
        Ok(names.iter().filter_map(|path| id_of(path)).collect())
    }

    /// Lists the directory of unfinished writes. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails.
    pub fn list_unfinished(&self) -> io::Result<Vec<PathBuf>> {
        names_in(&self.unfinished)
    }
}

fn id_of(path: &Path) -> Option<SandboxId> {
    path.file_name()?.to_str().and_then(SandboxId::parse)
}

/// A run's sandbox, opened when a tool first needs it. Cheap to clone.
#[derive(Clone)]
pub struct Workspace {
    shared: Arc<Shared>,
}

struct Shared {
    sandboxes: Sandboxes,
    id: SandboxId,
    charged: Charged,
    root: OnceLock<Root>,
    /// A shell that was started before its command is known. It ends with the run's driver.
    shell: Mutex<Option<WaitingShell>>,
}

/// A shell that waits for a command, and its permit.
pub(crate) struct WaitingShell {
    pub(crate) shell: Box<dyn Shell>,
    pub(crate) _place: OwnedSemaphorePermit,
}

impl Workspace {
    /// The row of the sandbox must be on disk before the workspace is used.
    #[must_use]
    pub fn new(sandboxes: Sandboxes, id: SandboxId, charged: Charged) -> Self {
        Self {
            shared: Arc::new(Shared {
                sandboxes,
                id,
                charged,
                root: OnceLock::new(),
                shell: Mutex::new(None),
            }),
        }
    }

    /// The size of the sandbox, if it has changed so much that the next commit must record it.
    pub(crate) fn bytes_to_record(&self) -> Option<u64> {
        let Shared { sandboxes, id, .. } = &*self.shared;
        let rooms = sandboxes.rooms.as_ref()?;
        let (changed, bytes) = rooms.unrecorded_of(&sandboxes.path_of(id))?;
        (changed >= RECORDED_WITH_STEP_BYTES).then_some(bytes)
    }

    pub(crate) fn has_recorded(&self, bytes: u64) {
        let Shared { sandboxes, id, .. } = &*self.shared;
        sandboxes.has_recorded(id, bytes);
    }

    /// Takes the shell that waits for a command, if there is one.
    pub(crate) fn take_shell(&self) -> Option<WaitingShell> {
        self.shell().take()
    }

    /// Keeps a shell for the next command.
    pub(crate) fn keep_shell(&self, shell: WaitingShell) {
        *self.shell() = Some(shell);
    }

    fn shell(&self) -> std::sync::MutexGuard<'_, Option<WaitingShell>> {
        self.shared
            .shell
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the root of the sandbox and creates it if necessary. Blocks.
    ///
    /// # Errors
    ///
    /// If the file system fails.
    pub fn root(&self) -> Result<&Root, FileError> {
        if let Some(root) = self.shared.root.get() {
            return Ok(root);
        }
        let opened = {
            let Shared {
                sandboxes,
                id,
                charged,
                ..
            } = &*self.shared;
            sandboxes.root(id, *charged)?
        };
        Ok(self.shared.root.get_or_init(|| opened))
    }
}

/// The paths in a directory; none if it does not exist.
pub(crate) fn names_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}
