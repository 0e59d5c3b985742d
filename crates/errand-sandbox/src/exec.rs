//! Isolated commands and services, behind one seam: [`SandboxExec`].
//!
//! Promised, by [`Bubblewrap`], of what runs inside, whatever it does, short of a hole in the kernel:
//!
//! * It sees the programs of the machine (or of another root) read-only, its `/workspace`, and small file systems in
//!   memory. Nothing of the server: no file, no variable, no descriptor, no process. No network, for commands.
//! * It is never root outside, bubblewrap is never started by root, and where the server is root each sandbox is a user
//!   of its own.
//! * It is bounded in memory, processes, processor time, files, disk and output; what passes a bound is stopped.
//! * It ends with its command, with the time limit, with a stop, or with the server, and all its processes with it.
//!
//! Where that cannot be had there is no [`Bubblewrap`], and [`Unavailable`] says why. There is no way around it.
//!
//! Left out: who may run what, and what a result means.

mod bubblewrap;
mod cgroup;
mod confine;
mod helper;
mod launch;
mod order;
mod output;
mod processes;
mod profile;
mod running;
mod seccomp;
mod service;
mod trial;
mod uids;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use errand_core::path::SandboxPath;

use crate::root::Root;

pub use bubblewrap::{Bubblewrap, Keepers};
pub use cgroup::Keeper;
pub use confine::{Confinement, confine};
pub use helper::{HELPER_ARGUMENT, run_helper};
pub use output::{OUTPUT_BYTES_MAX, Output};
pub use service::{Service, ServicePipes, ServiceSpec};
pub use uids::Uids;

/// How long what runs inside has to end after it was asked to.
pub const GRACE: Duration = Duration::from_secs(2);
/// Most bytes of a command: it goes through a pipe, so that the kernel's bound on arguments does not hold.
pub const COMMAND_BYTES_MAX: usize = 1024 * 1024;
/// Most open files of one process inside.
const DESCRIPTORS_MAX: u64 = 1024;

/// How much a sandbox may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes together, files in memory among it, in bytes.
    pub memory_bytes_max: u64,
    /// Processes and threads.
    pub processes_max: u32,
    /// Processor time, in percent of one processor.
    pub cpu_percent_max: u32,
    /// What the workspace takes on disk, in bytes.
    pub disk_bytes_max: u64,
    /// What all sandboxes of its team take on disk together, in bytes; 0: no limit. The workspace's own room holds it.
    pub team_disk_bytes_max: u64,
    /// Files and directories in the workspace.
    pub files_max: u64,
    /// One file, in bytes.
    pub file_bytes_max: u64,
}

impl Limits {
    /// What the group of all processes is bounded to: bubblewrap's own two are in it.
    fn cgroup_tasks_max(&self) -> u64 {
        u64::from(self.processes_max) + 2
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 1 << 30,
            processes_max: 256,
            cpu_percent_max: 100,
            disk_bytes_max: 5 << 30,
            team_disk_bytes_max: 0,
            files_max: 100_000,
            file_bytes_max: 2 << 30,
        }
    }
}

/// How isolation is set up.
#[derive(Clone, Debug)]
pub struct ExecSettings {
    /// The program that is started as helper, with [`HELPER_ARGUMENT`]: it must call [`run_helper`] first of all.
    pub helper: PathBuf,
    /// Where programs of the machine are looked for: as in `PATH`.
    pub search_path: std::ffi::OsString,
    /// Tells this server's processes and groups from those of others: a plain name that stays the same after a restart.
    pub instance: String,
    /// Another root directory, whose programs are seen in place of the machine's.
    pub root: Option<PathBuf>,
    /// The users that sandboxes are, where the server is root.
    pub uids: Arc<Uids>,
    /// The bounds.
    pub limits: Limits,
    /// Whether cgroups are used where they can be had.
    pub uses_cgroups: bool,
}

/// Why nothing can be isolated, and what would change that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// A sentence without a full stop.
    pub reason: String,
    /// What to do: a sentence without a full stop.
    pub remedy: String,
}

impl Unavailable {
    fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

/// A command.
#[derive(Clone, Debug)]
pub struct Command {
    /// What the shell is given. No NUL, at most [`COMMAND_BYTES_MAX`] bytes.
    pub script: String,
    /// Where it begins.
    pub cwd: SandboxPath,
    /// How long it may take.
    pub timeout: Duration,
}

/// A bound of [`Limits`], or of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// [`Limits::memory_bytes_max`].
    Memory,
    /// [`Limits::processes_max`].
    Processes,
    /// [`Limits::disk_bytes_max`].
    Disk,
    /// [`Limits::team_disk_bytes_max`].
    TeamDisk,
    /// [`Limits::files_max`].
    Files,
    /// [`Limits::file_bytes_max`].
    FileSize,
    /// What is read of an output before nobody reads on: 1 GiB.
    Output,
    /// Pseudo terminals open at once: 64.
    Terminals,
}

/// What ended a command before it ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// Its time was over.
    TimeLimit,
    /// Whoever called wanted it.
    Stop,
    /// It passed a bound.
    Bound(Bound),
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The shell's: 128 and the signal's number where a signal ended it.
    pub exit_code: i32,
    /// What it wrote to its standard output.
    pub stdout: Output,
    /// What it wrote to its standard error.
    pub stderr: Output,
    /// None: it ended by itself.
    pub ended_by: Option<EndedBy>,
    /// From the moment at which it was given to the shell.
    pub duration: Duration,
}

/// Why there is no result: nothing of the command was done, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The isolation could not be set up. With what bubblewrap, or the helper, said.
    #[error("the isolation could not be set up: {0}")]
    SetUp(String),
    /// The sandbox belongs to a user that no command may be: root, where the server is root.
    #[error("the sandbox's directory belongs to uid {0}, and commands are never run as that")]
    Owner(u32),
    /// All users of the range are in use.
    #[error("no user is left in the range of sandbox.uid_base and sandbox.uid_count")]
    NoUserLeft,
    /// The system failed.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: &'static str,
        #[source]
        /// Why it failed.
        source: std::io::Error,
    },
}

impl ExecError {
    /// Whether the helper or bubblewrap said, in words, that descriptors, memory or processes had run out.
    #[must_use]
    pub fn says_exhausted(&self) -> bool {
        const WORDS: [&str; 4] = [
            "Too many open files",
            "Cannot allocate memory",
            "Resource temporarily unavailable",
            "No buffer space available",
        ];
        matches!(self, Self::SetUp(said) if WORDS.iter().any(|words| said.contains(words)))
    }

    fn io(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// When a command is to be ended early.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What isolates: a boundary between what runs inside and everything else. Another implementation may put a kernel of
/// its own in between (gVisor, a virtual machine); what is promised above binds it too.
#[async_trait]
pub trait SandboxExec: Send + Sync {
    /// Starts an isolated shell on a sandbox, which waits for its one command. May be done ahead of time.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left running then.
    async fn prepare(&self, workspace: &Root) -> Result<Box<dyn Shell>, ExecError>;

    /// Starts a program that stays: with the host's network, without a workspace.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left running then.
    async fn service(&self, spec: &ServiceSpec) -> Result<Service, ExecError>;

    /// The bounds.
    fn limits(&self) -> Limits;
}

/// An isolated shell that waits. Dropped, it ends, with everything in it.
#[async_trait]
pub trait Shell: Send {
    /// Whether it still waits.
    fn is_alive(&mut self) -> bool;

    /// Runs the one command. When this returns, no process of the sandbox is left. Dropped meanwhile, the processes are
    /// killed.
    ///
    /// # Errors
    /// [`ExecError`], where the command did not begin.
    async fn run(self: Box<Self>, command: &Command, stop: Stop) -> Result<Finished, ExecError>;
}

impl fmt::Debug for dyn SandboxExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SandboxExec")
    }
}
