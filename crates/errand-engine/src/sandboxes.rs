//! Where sandboxes are on disk: `DATA_DIR/sandboxes/ID`. Rows come first, directories after, when they are first needed.
//!
//! Unfinished writes of all sandboxes have their names in one directory beside them, so that what a crash leaves of them
//! is found without looking through every sandbox.

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

/// Where unfinished writes are, in the directory of sandboxes: on their file system, and not a sandbox's name.
const UNFINISHED: &str = ".unfinished";
/// A change of a sandbox's size that is not recorded before its run ends.
const RECORDED_WITHIN_BYTES: u64 = 1 << 20;
/// Most changed sandboxes that are measured at once.
const MEASURED_MAX: usize = 500;
/// Most files and directories that are looked at for that.
const MEASURED_NAMES_MAX: u64 = 50_000;

/// The directory of all sandboxes.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    dir: PathBuf,
    unfinished: PathBuf,
    trash: Trash,
    /// The users that sandboxes are given, where the server is root and commands can run.
    users: Option<Arc<Uids>>,
    fresh: Fresh,
    /// How much each may hold. None: as much as the disk takes.
    rooms: Option<Rooms>,
    changes: Changes,
}

impl Sandboxes {
    /// Below a data directory.
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

    /// The same, where each holds no more than this.
    #[must_use]
    pub fn with_limits(self, limits: RoomLimits) -> Self {
        Self {
            rooms: Some(Rooms::new(limits)),
            ..self
        }
    }

    /// Whether anybody counts how many bytes they hold.
    #[must_use]
    pub fn are_counted(&self) -> bool {
        self.rooms.is_some()
    }

    /// What the sandboxes of the teams hold by the store's records. Called once, before any sandbox is used.
    pub fn begin_with(&self, teams: Vec<(TeamId, u64)>) {
        if let Some(rooms) = &self.rooms {
            rooms.begin_with(teams);
        }
    }

    /// Bytes on disk of all sandboxes of a team, as far as that is known.
    #[must_use]
    pub fn team_bytes(&self, team: TeamId) -> u64 {
        self.rooms
            .as_ref()
            .map_or(0, |rooms| rooms.team_bytes(team))
    }

    /// The most that they may hold together. None: no limit.
    #[must_use]
    pub fn team_bytes_max(&self) -> Option<u64> {
        self.rooms.as_ref().and_then(Rooms::team_bytes_max)
    }

    /// Bytes on disk of a sandbox, if it was used since the start.
    #[must_use]
    pub fn bytes_of(&self, id: &SandboxId) -> Option<u64> {
        self.rooms.as_ref()?.bytes_of(&self.path_of(id))
    }

    /// Sandboxes whose bytes are not those on record, with their bytes.
    #[must_use]
    pub fn unrecorded(&self) -> Vec<(SandboxId, u64)> {
        let found = self.rooms.as_ref().map(|rooms| rooms.unrecorded(0));
        let found = found.unwrap_or_default().into_iter();
        found
            .filter_map(|(path, bytes)| Some((id_of(&path)?, bytes)))
            .collect()
    }

    /// The store has so many bytes on record for a sandbox.
    pub fn has_recorded(&self, id: &SandboxId, bytes: u64) {
        if let Some(rooms) = &self.rooms {
            rooms.has_recorded(&self.path_of(id), bytes);
        }
    }

    /// Measures a sandbox, unless what it holds is known. Returns how many files and directories it has. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn measure(&self, id: &SandboxId, charged: Charged) -> Result<u64, FileError> {
        match &self.rooms {
            Some(rooms) => rooms.measure(&self.path_of(id), charged),
            None => Ok(0),
        }
    }

    /// Measures sandboxes that were changed since they were last measured: as many as can be in a moment. Blocking.
    ///
    /// # Errors
    /// The first of the file system; the others were measured.
    pub fn measure_changed(&self) -> Result<(), FileError> {
        let Some(rooms) = &self.rooms else {
            return Ok(());
        };
        let (mut names, mut failed) = (0, Ok(()));
        for path in rooms.unmeasured(MEASURED_MAX) {
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

    /// The same, where each sandbox gets a user of its own. Those that have one keep it. Blocking.
    ///
    /// # Errors
    /// Of the file system.
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

    /// Where they are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Who changes what of them, for a backup.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Where they go.
    #[must_use]
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// A sandbox's directory, there or not.
    #[must_use]
    pub fn path_of(&self, id: &SandboxId) -> PathBuf {
        // The id's form has no slash and no dot: it cannot name another directory.
        self.dir.join(id.as_str())
    }

    /// Below a data directory, for a server that starts: the names of all that are there are put on disk, since one before
    /// it may have made some, and not have come to that. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn settled(data_dir: &Path) -> io::Result<Self> {
        let sandboxes = Self::beneath(data_dir);
        match fs::File::open(&sandboxes.dir).and_then(|dir| dir.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(sandboxes),
        }
    }

    /// A sandbox's root, made if it is not there. `charged`: whose quota it counts for. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn root(&self, id: &SandboxId, charged: Charged) -> Result<Root, FileError> {
        let temps = self.unfinished().map_err(|source| FileError::Io {
            op: "make",
            path: SandboxPath::root(),
            source,
        })?;
        let dir = self.path_of(id);
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

    /// Moves a sandbox's directory to the trash; its user is free then, and the room that it took.
    fn take(
        &self,
        id: &SandboxId,
        charged: Option<Charged>,
        now: Timestamp,
    ) -> io::Result<Option<PathBuf>> {
        let _change = self.changes.begin(id, ChangeKind::Write);
        let path = self.path_of(id);
        // Whether the directory can be moved or not: nobody can use the sandbox any more.
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

    /// The directory of unfinished writes, made if it is not there. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn unfinished(&self) -> io::Result<PathBuf> {
        make_private(&self.unfinished)?;
        Ok(self.unfinished.clone())
    }

    /// Moves the directory of a sandbox whose row is gone to the trash, so that it is never seen half removed. False
    /// where it had none. `charged`: the record that the row had, if it was deleted just now. Blocking.
    ///
    /// # Errors
    /// Of the file system; nothing was moved then.
    pub fn discard(
        &self,
        id: &SandboxId,
        charged: Option<Charged>,
        now: Timestamp,
    ) -> io::Result<bool> {
        Ok(self.take(id, charged, now)?.is_some())
    }

    /// Removes a sandbox whose row is gone, at once: it was deleted by somebody who meant it. One that never had a
    /// directory is no error. `charged`: the record that the row had, if there was one. Blocking.
    ///
    /// # Errors
    /// Of the file system; what is left is in the trash, or where it was and found later.
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

    /// The sandboxes that have a directory. Blocking.
    ///
    /// # Errors
    /// Of the file system.
    pub fn list(&self) -> io::Result<Vec<SandboxId>> {
        let names = names_in(&self.dir)?;
        Ok(names.iter().filter_map(|path| id_of(path)).collect())
    }

    /// What is in the directory of unfinished writes. Blocking.
    ///
    /// # Errors
    /// Of the file system.
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
    /// A shell that was started ahead of its command. It ends with the run's driver.
    shell: Mutex<Option<WaitingShell>>,
}

/// A shell that waits, and its place among those that may.
pub(crate) struct WaitingShell {
    pub(crate) shell: Box<dyn Shell>,
    pub(crate) _place: OwnedSemaphorePermit,
}

impl Workspace {
    /// Of a sandbox whose row is on disk before anything is done in it.
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

    /// Bytes that the sandbox holds, where they are to be recorded: a small change is recorded when the run ends.
    pub(crate) fn bytes_to_record(&self, run_ends: bool) -> Option<u64> {
        let Shared { sandboxes, id, .. } = &*self.shared;
        let rooms = sandboxes.rooms.as_ref()?;
        let (changed, bytes) = rooms.unrecorded_of(&sandboxes.path_of(id))?;
        let least = if run_ends { 0 } else { RECORDED_WITHIN_BYTES };
        (changed > least).then_some(bytes)
    }

    pub(crate) fn has_recorded(&self, bytes: u64) {
        let Shared { sandboxes, id, .. } = &*self.shared;
        sandboxes.has_recorded(id, bytes);
    }

    /// The shell that waits for a command, if there is one.
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

    /// Its root; the directory is made if it is not there. Blocking.
    ///
    /// # Errors
    /// Of the file system.
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

/// What is in a directory; nothing where it is not there.
pub(crate) fn names_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}
