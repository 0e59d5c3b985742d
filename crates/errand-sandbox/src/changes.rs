//! Who changes the files of which sandbox, so that a backup can copy them as they were at one point in time.
//!
//! Every operation that changes files begins with a [`Change`]: [`Root`](crate::Root) does it itself for writes,
//! uploads and copies, and commands are given one by whoever starts them. While no backup is made, this costs a look
//! into a table.
//!
//! A backup works in this order. It *arms* ([`Changes::arm`]); from then on no change begins. It takes its point in time
//! (a snapshot of the rows), which takes milliseconds, and opens ([`Backup::open`]). From then on a change begins as soon
//! as the files of its own sandbox have been saved: where the backup has not come to that sandbox yet, whoever wants to
//! change it saves it first. So each sandbox is saved as it was at the point in time, nobody waits for the files of
//! another sandbox, and a change waits at most for one copy of its own sandbox.
//!
//! A change that was under way when the backup was armed goes on. Its sandbox is saved when it has ended; the rows of the
//! snapshot have no result of it, as after a crash at that moment. A command may take long: it is waited for within a
//! bound, and then its sandbox is saved as it is, and marked ([`Save`]).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use errand_core::id::SandboxId;

/// Saves the files of one sandbox. The flag: whether a command that began before the point in time still runs there.
pub type Save = Arc<dyn Fn(&SandboxId, bool) + Send + Sync>;

/// What kind of change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A write, an upload's last step, a copy: it ends soon, and is always waited for.
    Write,
    /// A command, which may run for minutes.
    Command,
}

/// The changes of all sandboxes of a server. Cheap to clone: a clone is the same table.
#[derive(Clone, Default)]
pub struct Changes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    under_way: HashMap<SandboxId, UnderWay>,
    /// Changes that wait for the backup.
    waiting: usize,
    backup: Option<Saving>,
}

/// How many changes of a sandbox are under way.
#[derive(Clone, Copy, Default)]
struct UnderWay {
    writes: u32,
    commands: u32,
}

#[derive(Default)]
struct Saving {
    /// None: the point in time is not taken yet.
    save: Option<Save>,
    stages: HashMap<SandboxId, Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    InHand,
    Saved,
}

/// A change that is under way. Dropping it says that it has ended.
#[must_use = "the change is over when this is dropped"]
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
        if let Some(count) = state.under_way.get_mut(&self.sandbox) {
            let count_of_kind = count.of(self.kind);
            *count_of_kind = count_of_kind.saturating_sub(1);
            if count.writes == 0 && count.commands == 0 {
                state.under_way.remove(&self.sandbox);
            }
        }
        let is_watched = state.backup.is_some();
        drop(state);
        if is_watched {
            self.changes.0.moved.notify_all();
        }
    }
}

impl UnderWay {
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
            .moved
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a change, if it need not wait.
    pub fn try_begin(&self, sandbox: &SandboxId, kind: ChangeKind) -> Option<Change> {
        let mut state = self.state();
        let is_free = match &state.backup {
            None => true,
            Some(saving) => saving.stages.get(sandbox) == Some(&Stage::Saved),
        };
        is_free.then(|| self.count(&mut state, sandbox, kind))
    }

    /// Begins a change. Blocking: while a backup is made, until the sandbox is saved, which this does itself where nobody
    /// else has begun to.
    pub fn begin(&self, sandbox: &SandboxId, kind: ChangeKind) -> Change {
        let mut state = self.state();
        loop {
            match Self::next(&state, sandbox) {
                Next::Go => return self.count(&mut state, sandbox, kind),
                Next::Wait => {
                    state.waiting += 1;
                    state = self.wait(state);
                    state.waiting -= 1;
                }
                Next::Save(save) => {
                    self.save_now(state, sandbox, &save);
                    state = self.state();
                }
            }
        }
    }

    fn next(state: &State, sandbox: &SandboxId) -> Next {
        let Some(saving) = &state.backup else {
            return Next::Go;
        };
        match (saving.stages.get(sandbox), &saving.save) {
            (Some(Stage::Saved), _) => Next::Go,
            (Some(Stage::InHand), _) | (None, None) => Next::Wait,
            // What is written at this moment ends soon.
            (None, Some(_)) if state.writes_in(sandbox) => Next::Wait,
            (None, Some(save)) => Next::Save(Arc::clone(save)),
        }
    }

    fn count(&self, state: &mut State, sandbox: &SandboxId, kind: ChangeKind) -> Change {
        let count = state.under_way.entry(sandbox.clone()).or_default();
        *count.of(kind) += 1;
        Change {
            changes: self.clone(),
            sandbox: sandbox.clone(),
            kind,
        }
    }

    fn save_now(&self, mut state: MutexGuard<'_, State>, sandbox: &SandboxId, save: &Save) {
        let Some(saving) = state.backup.as_mut() else {
            return;
        };
        saving.stages.insert(sandbox.clone(), Stage::InHand);
        let has_commands = state.commands_in(sandbox);
        drop(state);
        // Whatever becomes of it, nobody waits for it for ever.
        let _saved = Saved {
            changes: self,
            sandbox,
        };
        save(sandbox, has_commands);
    }

    /// How many changes wait for a backup at this moment.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Arms a backup: from now on no change begins until [`Backup::open`]. None where another backup is being made.
    #[must_use]
    pub fn arm(&self) -> Option<Backup> {
        let mut state = self.state();
        if state.backup.is_some() {
            return None;
        }
        state.backup = Some(Saving::default());
        Some(Backup {
            changes: self.clone(),
        })
    }
}

enum Next {
    Go,
    Wait,
    Save(Save),
}

impl State {
    fn writes_in(&self, sandbox: &SandboxId) -> bool {
        self.under_way
            .get(sandbox)
            .is_some_and(|count| count.writes > 0)
    }

    fn commands_in(&self, sandbox: &SandboxId) -> bool {
        self.under_way
            .get(sandbox)
            .is_some_and(|count| count.commands > 0)
    }
}

struct Saved<'a> {
    changes: &'a Changes,
    sandbox: &'a SandboxId,
}

impl Drop for Saved<'_> {
    fn drop(&mut self) {
        let mut state = self.changes.state();
        if let Some(saving) = state.backup.as_mut() {
            saving.stages.insert(self.sandbox.clone(), Stage::Saved);
        }
        drop(state);
        self.changes.0.moved.notify_all();
    }
}

/// A backup that is being made. Dropping it lets all changes go on.
#[must_use = "changes wait as long as this is armed"]
pub struct Backup {
    changes: Changes,
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.changes.state().backup = None;
        self.changes.0.moved.notify_all();
    }
}

impl Backup {
    /// The point in time is taken: from now on sandboxes can be saved, and changes go on.
    pub fn open(&self, save: Save) {
        if let Some(saving) = self.changes.state().backup.as_mut() {
            saving.save = Some(save);
        }
        self.changes.0.moved.notify_all();
    }

    /// Whether a command that began before the point in time still runs in a sandbox that is not saved yet.
    #[must_use]
    pub fn is_busy(&self, sandbox: &SandboxId) -> bool {
        let state = self.changes.state();
        let is_saved = state
            .backup
            .as_ref()
            .is_some_and(|saving| saving.stages.contains_key(sandbox));
        !is_saved && state.commands_in(sandbox)
    }

    /// Sees to it that a sandbox is saved. Blocking. Commands that began before the point in time are waited for until
    /// `deadline`.
    pub fn save(&self, sandbox: &SandboxId, deadline: Instant) {
        let mut state = self.changes.state();
        loop {
            match Changes::next(&state, sandbox) {
                Next::Go => return,
                Next::Wait => state = self.changes.wait(state),
                Next::Save(_) if state.commands_in(sandbox) && Instant::now() < deadline => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let waited = self
                        .changes
                        .0
                        .moved
                        .wait_timeout(state, left.max(Duration::from_millis(1)));
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Next::Save(save) => {
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

    /// A save that says which sandbox it was called for.
    fn told() -> (Save, Receiver<(SandboxId, bool)>) {
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
        let (save, saved) = told();
        backup.open(save);
        drop(changes.begin(&id(1), ChangeKind::Write));
        assert_eq!(saved.try_recv().unwrap(), (id(1), false));
        assert!(changes.try_begin(&id(1), ChangeKind::Command).is_some());
        assert!(changes.try_begin(&id(2), ChangeKind::Write).is_none());
        // Saved once, whoever asks.
        backup.save(&id(1), Instant::now());
        assert!(saved.try_recv().is_err());
        drop(backup);
        assert!(changes.try_begin(&id(2), ChangeKind::Write).is_some());
    }

    #[test]
    fn a_write_that_was_under_way_is_waited_for_and_a_command_only_until_the_deadline() {
        let changes = Changes::default();
        let write = changes.begin(&id(1), ChangeKind::Write);
        let command = changes.begin(&id(2), ChangeKind::Command);
        let backup = changes.arm().unwrap();
        let (save, saved) = told();
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
        assert!(changes.state().under_way.is_empty());
    }

    #[test]
    fn a_command_that_ends_in_time_leaves_a_quiet_sandbox() {
        let changes = Changes::default();
        let command = changes.begin(&id(2), ChangeKind::Command);
        let backup = changes.arm().unwrap();
        let (save, saved) = told();
        backup.open(save);
        std::thread::scope(|scope| {
            scope.spawn(|| backup.save(&id(2), Instant::now() + NEVER));
            drop(command);
        });
        assert_eq!(saved.recv_timeout(NEVER).unwrap(), (id(2), false));
    }

    #[test]
    fn a_backup_that_is_given_up_holds_up_nobody() {
        let changes = Changes::default();
        let backup = changes.arm().unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| drop(changes.begin(&id(1), ChangeKind::Write)));
            drop(backup);
            waits.join().unwrap();
        });
    }
}
