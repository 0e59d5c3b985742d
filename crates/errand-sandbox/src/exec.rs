//! Isolated commands and services, behind one trait: [`SandboxExec`].
//!
//! # Guarantees
//!
//! [`Bubblewrap`] guarantees the following for everything that runs inside, short of a vulnerability in the kernel:
//!
//! * It sees the programs of the machine (or of another root directory) read-only, its `/workspace`, and small
//!   in-memory file systems. It sees nothing of the server: no file, no variable, no descriptor, no process. Commands
//!   have no network.
//! * It is never root outside, and root never starts bubblewrap. If the server is root, each sandbox has a user id of
//!   its own.
//! * Its memory, processes, processor time, files, disk space and output are limited; everything that exceeds a limit is
//!   stopped.
//! * It ends with its command, at the time limit, on a stop, or with the server, and all its processes end with it.
//!
//! Where this is impossible, there is no [`Bubblewrap`], and [`Unavailable`] says why. There is no way around it.
//!
//! # Non-goals
//!
//! Deciding who may run what, and what a result means.

mod bubblewrap;
mod cgroup;
mod confine;
mod helper;
mod launch;
mod order;
mod output;
mod probe;
mod processes;
mod profile;
mod running;
mod seccomp;
mod service;
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

/// Time that processes inside have to end after they were asked to, before they are killed.
pub const GRACE: Duration = Duration::from_secs(2);
/// Maximum size of a command in bytes. It goes through a pipe, so the kernel's limit on arguments does not apply.
pub const COMMAND_BYTES_MAX: usize = 1024 * 1024;
/// Maximum number of open files of one process inside.
const DESCRIPTORS_MAX: u64 = 1024;

/// Resource limits of one sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes together, including files in memory, in bytes.
    pub memory_bytes_max: u64,
    /// Processes and threads.
    pub processes_max: u32,
    /// Processor time, as a percentage of one processor.
    pub cpu_percent_max: u32,
    /// Disk space that the workspace uses, in bytes.
    pub disk_bytes_max: u64,
    /// Disk space of all sandboxes of the team together, in bytes; 0: no limit. Enforced by [`Rooms`](crate::Rooms).
    pub team_disk_bytes_max: u64,
    /// Files and directories in the workspace.
    pub files_max: u64,
    /// Size of one file, in bytes.
    pub file_bytes_max: u64,
}

impl Limits {
    /// Limit for the cgroup, which also contains bubblewrap's own two processes.
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

/// Settings of the isolation.
#[derive(Clone, Debug)]
pub struct ExecSettings {
    /// Program to start as the helper, with [`HELPER_ARGUMENT`]. It must call [`run_helper`] before anything else.
    pub helper: PathBuf,
    /// Directories in which programs of the machine are looked up, in the format of `PATH`.
    pub search_path: std::ffi::OsString,
    /// Distinguishes the processes and cgroups of this server from those of others. A plain name that stays the same
    /// after a restart.
    pub instance: String,
    /// Another root directory, whose programs are visible inside instead of the machine's.
    pub root: Option<PathBuf>,
    /// User ids for sandboxes, if the server is root.
    pub uids: Arc<Uids>,
    pub limits: Limits,
    /// Whether to use cgroups if they are available.
    pub uses_cgroups: bool,
}

/// Why isolation is impossible, and how to fix that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// A sentence without a period.
    pub reason: String,
    /// The fix: a sentence without a period.
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

/// A shell command to run.
#[derive(Clone, Debug)]
pub struct Command {
    /// Script for the shell. No NUL, at most [`COMMAND_BYTES_MAX`] bytes.
    pub script: String,
    /// Working directory in which it begins.
    pub cwd: SandboxPath,
    /// Time limit.
    pub timeout: Duration,
}

/// The limit that a command exceeded.
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
    /// Bytes written to one output: 1 GiB. More is not read.
    Output,
    /// Open pseudoterminals: 64.
    Terminals,
}

/// The reason that a command was ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    TimeLimit,
    /// The caller asked for it.
    Stop,
    /// It exceeded a limit.
    Bound(Bound),
}

/// Result of a command that ran.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code of the shell, or 128 plus the signal number if a signal ended it.
    pub exit_code: i32,
    pub stdout: Output,
    pub stderr: Output,
    /// `None` if it ended by itself.
    pub ended_by: Option<EndedBy>,
    /// Measured from the moment at which the shell was given the command.
    pub duration: Duration,
}

/// Why a command or service did not start. Nothing of it has run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The isolation could not be set up, with the message of bubblewrap or the helper.
    #[error("the isolation could not be set up: {0}")]
    SetUp(String),
    /// The sandbox belongs to a user that commands must not run as, such as root.
    #[error("the sandbox's directory belongs to uid {0}, and commands never run as that user")]
    Owner(u32),
    #[error("all user ids in the range of sandbox.uid_base and sandbox.uid_count are in use")]
    NoUserLeft,
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// The attempted action.
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl ExecError {
    /// Whether the message of the helper or of bubblewrap says that descriptors, memory or processes have run out.
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

/// Completes when a command is to be ended early.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An isolation technique: the boundary between what runs inside and everything else. Another implementation may put
/// a separate kernel in between (gVisor, a virtual machine); the guarantees of this module apply to it too.
#[async_trait]
pub trait SandboxExec: Send + Sync {
    /// Starts an isolated shell in a sandbox. It waits for its one command, so this can be done ahead of time.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left running then.
    async fn prepare(&self, workspace: &Root) -> Result<Box<dyn Shell>, ExecError>;

    /// Starts a long-running program with the host's network and without a workspace.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left running then.
    async fn service(&self, spec: &ServiceSpec) -> Result<Service, ExecError>;

    fn limits(&self) -> Limits;
}

/// An isolated shell that waits for its command. Dropping it ends it, with everything in it.
#[async_trait]
pub trait Shell: Send {
    /// Whether the shell is still waiting.
    fn is_alive(&mut self) -> bool;

    /// Runs the shell's one command. When this returns, no process of the sandbox is left. Dropping the future kills
    /// the processes.
    ///
    /// # Errors
    /// [`ExecError`] if the command did not begin.
    async fn run(self: Box<Self>, command: &Command, stop: Stop) -> Result<Finished, ExecError>;
}

impl fmt::Debug for dyn SandboxExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SandboxExec")
    }
}
