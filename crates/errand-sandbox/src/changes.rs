//! Coordinates changes of sandbox files with backups, so that a backup copies every sandbox as it was at one point in
//! time.
//!
//! Every operation that changes files begins with a [`Change`]. [`Root`](crate::Root) does this for writes, uploads
//! and copies; whoever starts a command does it for the command. While no backup is running, this costs one lookup in
//! a table.
//!
//! # How a backup works
//!
//! 1. It *arms* ([`Changes::arm`]). From then on, no new change begins.
//! 2. It takes its point in time (a snapshot of the database rows), which takes milliseconds, and opens
//!    ([`Backup::open`]).
//! 3. From then on, a change begins as soon as the files of its own sandbox have been saved. If the backup has not
//!    reached that sandbox yet, the change saves it first.
//!
//! So each sandbox is saved as it was at the point in time, no change waits for the files of another sandbox, and a
//! change waits for at most one copy of its own sandbox.
//!
//! # Changes that were in progress
//!
//! A change that was in progress when the backup was armed continues, and its sandbox is saved after it has ended.
//! The rows of the snapshot do not contain its result, as after a crash at that moment. A command may take long: the
//! backup waits for it up to a deadline, then saves the sandbox as it is and marks it ([`Save`]).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use errand_core::id::SandboxId;

/// Saves the files of one sandbox. The flag is true if a command that began before the point in time is still running
/// there.
pub type Save = Arc<dyn Fn(&SandboxId, bool) + Send + Sync>;

/// How long a change may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A write, the last step of an upload, or a copy. It ends soon, so a backup always waits for it.
    Write,
    /// A command, which may run for minutes. A backup waits for it up to a deadline.
    Command,
}

/// The changes of all sandboxes of a server. Cheap to clone: a clone is the same table.
#[derive(Clone, Default)]
pub struct Changes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a change ends, a sandbox was saved, or the backup moves on.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    active: HashMap<SandboxId, ActiveChanges>,
    /// Number of changes that wait for the backup.
    waiting: usize,
    backup: Option<BackupState>,
}

/// Number of changes of a sandbox that are in progress.
#[derive(Clone, Copy, Default)]
struct ActiveChanges {
    writes: u32,
    commands: u32,
}

#[derive(Default)]
struct BackupState {
    /// `None` until the point in time is taken.
    save: Option<Save>,
    stages: HashMap<SandboxId, Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Saving,
    Saved,
}

/// A change in progress. It ends when this is dropped.
#[must_use = "the change ends when this is dropped"]
pub struct Change {
    changes: Changes,
    sandbox: SandboxId,
    kind: ChangeKind,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Changes")
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Change").field(&self.sandbox).finish()
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut state = self.changes.state();
        if let Some(count) = state.active.get_mut(&self.sandbox) {
            let count_of_kind = count.of(self.kind);
            *count_of_kind = count_of_kind.saturating_sub(1);
            if count.writes == 0 && count.commands == 0 {
                state.active.remove(&self.sandbox);
            }
        }
        let is_watched = state.backup.is_some();
        drop(state);
        if is_watched {
            self.changes.0.changed.notify_all();
        }
    }
}

impl ActiveChanges {
    fn of(&mut self, kind: ChangeKind) -> &mut u32 {
        match kind {
            ChangeKind::Write => &mut self.writes,
            ChangeKind::Command => &mut self.commands,
        }
    }
}

impl Changes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0
            .changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a change, unless it would have to wait.
    pub fn try_begin(&self, sandbox: &SandboxId, kind: ChangeKind) -> Option<Change> {
        let mut state = self.state();
        let may_begin = match &state.backup {
            None => true,
            Some(backup) => backup.stages.get(sandbox) == Some(&Stage::Saved),
        };
        may_begin.then(|| self.add(&mut state, sandbox, kind))
    }

    /// Begins a change. While a backup is running, blocks until the sandbox is saved, and saves it itself if that has
    /// not begun.
    pub fn begin(&self, sandbox: &SandboxId, kind: ChangeKind) -> Change {
        let mut state = self.state();
        loop {
            match Self::next_step(&state, sandbox) {
                Step::Go => return self.add(&mut state, sandbox, kind),
                Step::Wait => {
                    state.waiting += 1;
                    state = self.wait(state);
                    state.waiting -= 1;
                }
                Step::Save(save) => {
                    self.save_now(state, sandbox, &save);
                    state = self.state();
                }
            }
        }
    }

    fn next_step(state: &State, sandbox: &SandboxId) -> Step {
        let Some(backup) = &state.backup else {
            return Step::Go;
        };
        match (backup.stages.get(sandbox), &backup.save) {
            (Some(Stage::Saved), _) => Step::Go,
            (Some(Stage::Saving), _) | (None, None) => Step::Wait,
            // A write in progress ends soon, so wait for it rather than copy half of it.
            (None, Some(_)) if state.writes_in(sandbox) => Step::Wait,
            (None, Some(save)) => Step::Save(Arc::clone(save)),
        }
    }

    fn add(&self, state: &mut State, sandbox: &SandboxId, kind: ChangeKind) -> Change {
        let count = state.active.entry(sandbox.clone()).or_default();
        *count.of(kind) += 1;
        Change {
            changes: self.clone(),
            sandbox: sandbox.clone(),
            kind,
        }
    }

    fn save_now(&self, mut state: MutexGuard<'_, State>, sandbox: &SandboxId, save: &Save) {
        let Some(backup) = state.backup.as_mut() else {
            return;
        };
        backup.stages.insert(sandbox.clone(), Stage::Saving);
        let has_commands = state.commands_in(sandbox);
        drop(state);
        // Marks the sandbox as saved even if `save` panics, so that nobody waits for it forever.
        let _saved = MarkSaved {
            changes: self,
            sandbox,
        };
        save(sandbox, has_commands);
    }

    /// Number of changes that wait for a backup now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Arms a backup: no new change begins until [`Backup::open`]. Returns `None` if another backup is running.
    #[must_use]
    pub fn arm(&self) -> Option<Backup> {
        let mut state = self.state();
        if state.backup.is_some() {
            return None;
        }
        state.backup = Some(BackupState::default());
        Some(Backup {
            changes: self.clone(),
        })
    }
}

enum Step {
    Go,
    Wait,
    Save(Save),
}

impl State {
    fn writes_in(&self, sandbox: &SandboxId) -> bool {
        self.active
            .get(sandbox)
            .is_some_and(|count| count.writes > 0)
    }

    fn commands_in(&self, sandbox: &SandboxId) -> bool {
        self.active
            .get(sandbox)
            .is_some_and(|count| count.commands > 0)
    }
}

/// Marks a sandbox as saved when dropped.
struct MarkSaved<'a> {
    changes: &'a Changes,
    sandbox: &'a SandboxId,
}

impl Drop for MarkSaved<'_> {
    fn drop(&mut self) {
        let mut state = self.changes.state();
        if let Some(backup) = state.backup.as_mut() {
            backup.stages.insert(self.sandbox.clone(), Stage::Saved);
        }
        drop(state);
        self.changes.0.changed.notify_all();
    }
}

/// A backup in progress. Dropping it lets all changes continue.
#[must_use = "changes wait as long as the backup is armed"]
pub struct Backup {
    changes: Changes,
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.changes.state().backup = None;
        self.changes.0.changed.notify_all();
    }
}

impl Backup {
    /// Ends the waiting of [`Changes::arm`]: the point in time is taken, so sandboxes can be saved with `save`.
    pub fn open(&self, save: Save) {
        if let Some(backup) = self.changes.state().backup.as_mut() {
            backup.save = Some(save);
        }
        self.changes.0.changed.notify_all();
    }

    /// Whether a command that began before the point in time is still running in a sandbox that is not saved yet.
    #[must_use]
    pub fn is_busy(&self, sandbox: &SandboxId) -> bool {
        let state = self.changes.state();
        let is_saved = state
            .backup
            .as_ref()
            .is_some_and(|backup| backup.stages.contains_key(sandbox));
        !is_saved && state.commands_in(sandbox)
    }

    /// Returns once the sandbox is saved. Blocking. Waits until `deadline` for commands that began before the point
    /// in time.
    pub fn save(&self, sandbox: &SandboxId, deadline: Instant) {
        let mut state = self.changes.state();
        loop {
            match Changes::next_step(&state, sandbox) {
                Step::Go => return,
                Step::Wait => state = self.changes.wait(state),
                Step::Save(_) if state.commands_in(sandbox) && Instant::now() < deadline => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let waited = self
                        .changes
                        .0
                        .changed
                        .wait_timeout(state, left.max(Duration::from_millis(1)));
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Step::Save(save) => {
                    self.changes.save_now(state, sandbox, &save);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    fn id(number: u32) -> SandboxId {
        SandboxId::parse(&format!("sb_{number:032x}")).unwrap()
    }

    /// A save that reports the sandbox it was called for.
    fn recording_save() -> (Save, Receiver<(SandboxId, bool)>) {
        let (tell, hear): (Sender<_>, _) = channel();
        let tell = Mutex::new(tell);
        let save: Save = Arc::new(move |id: &SandboxId, busy: bool| {
            tell.lock().unwrap().send((id.clone(), busy)).unwrap();
        });
        (save, hear)
    }

    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn a_change_after_the_point_waits_for_its_own_sandbox_alone_and_saves_it_itself() {
        let changes = Changes::default();
        let backup = changes.arm().unwrap();
        assert!(changes.arm().is_none(), "one backup at a time");
        assert!(changes.try_begin(&id(1), ChangeKind::Write).is_none());
        let (save, saved) = recording_save();
        backup.open(save);
        drop(changes.begin(&id(1), ChangeKind::Write));
        assert_eq!(saved.try_recv().unwrap(), (id(1), false));
        assert!(changes.try_begin(&id(1), ChangeKind::Command).is_some());
        assert!(changes.try_begin(&id(2), ChangeKind::Write).is_none());
        // A sandbox is saved only once.
        backup.save(&id(1), Instant::now());
        assert!(saved.try_recv().is_err());
        drop(backup);
        assert!(changes.try_begin(&id(2), ChangeKind::Write).is_some());
    }

    #[test]
    fn writes_are_awaited_and_commands_only_until_the_deadline() {
        let changes = Changes::default();
        let write = changes.begin(&id(1), ChangeKind::Write);
        let command = changes.begin(&id(2), ChangeKind::Command);
        let backup = changes.arm().unwrap();
        let (save, saved) = recording_save();
        backup.open(save);
        assert!(backup.is_busy(&id(2)));
        std::thread::scope(|scope| {
            scope.spawn(|| backup.save(&id(1), Instant::now()));
            backup.save(&id(2), Instant::now());
            assert_eq!(saved.recv_timeout(NEVER).unwrap(), (id(2), true));
            drop(write);
        });
        assert_eq!(saved.recv_timeout(NEVER).unwrap(), (id(1), false));
        drop(command);
        assert!(changes.state().active.is_empty());
    }

    #[test]
    fn a_command_that_ends_in_time_is_not_reported_as_busy() {
        let changes = Changes::default();
        let command = changes.begin(&id(2), ChangeKind::Command);
        let backup = changes.arm().unwrap();
        let (save, saved) = recording_save();
        backup.open(save);
        std::thread::scope(|scope| {
            scope.spawn(|| backup.save(&id(2), Instant::now() + NEVER));
            drop(command);
        });
        assert_eq!(saved.recv_timeout(NEVER).unwrap(), (id(2), false));
    }

    #[test]
    fn dropping_a_backup_releases_waiting_changes() {
        let changes = Changes::default();
        let backup = changes.arm().unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| drop(changes.begin(&id(1), ChangeKind::Write)));
            drop(backup);
            waits.join().unwrap();
        });
    }
}
