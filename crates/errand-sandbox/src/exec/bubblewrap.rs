//! [`Bubblewrap`]: isolation with kernel namespaces.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use tokio::runtime::Handle;

use super::cgroup::{Cgroups, Keeper};
use super::helper::memory_file;
use super::launch::{LaunchContext, Launched, Launcher, MORE, STATUS, STDIN, UidGuard};
use super::order::{Order, Rlimits};
use super::profile::{Abilities, Profile};
use super::running::{ShellParts, error_line};
use super::service::{Service, ServiceSpec};
use super::watch::OverLimit;
use super::{
    DESCRIPTORS_MAX, ExecError, ExecSettings, Limits, SandboxExec, Shell, Unavailable, probe,
    processes, seccomp,
};
use crate::root::Root;

/// Indices of the descriptors after the launcher's own: the system call filter, and the workspace.
const FILTER: usize = MORE;
const WORKSPACE: usize = MORE + 1;
/// Places at which the workspace may be mounted on the way, visible to bubblewrap only.
const MOUNT_POINTS: [&str; 5] = ["/mnt", "/media", "/srv", "/opt", "/tmp"];
/// Added to the process limit where only the kernel's per-user limit counts, so that the watcher can see that the
/// limit was exceeded.
const NPROC_HEADROOM: u32 = 16;
/// Processes and threads of a sandbox's user besides those of its commands: bubblewrap's own, and those of a waiting
/// shell.
const OWN_PROCESSES_MAX: u64 = 32;
/// Maximum time to wait for a leftover process to die.
const LEFT_OVER_WAIT: Duration = Duration::from_secs(5);

/// Startup script for bash. It reads the working directory and the script from standard input, each terminated by a
/// NUL, replaces standard input by an empty one, and runs the script. The process limit is set here, inside the
/// namespace, where the processes are counted separately.
const BASH: &str = r#"IFS= read -r -d '' d && IFS= read -r -d '' s || exit 125; exec </dev/null; ulimit -u PROCESSES 2>/dev/null; cd -- "$d" || exit 125; unset OLDPWD; eval "unset d s; $s""#;
/// Startup script for a plain shell, which needs other programs to read NULs.
const SH: &str = r#"m=$(tr '\0' '\001'; echo .) || exit 125
exec </dev/null
x=$(printf '\001')
d=${m%%"$x"*} s=${m#*"$x"}
s=${s%.} s=${s%"$x"}
cd -- "$d" || exit 125
eval "unset m x d s; $s""#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShellKind {
    Bash,
    Sh,
}

/// Runs commands in bubblewrap. Cheap to clone. What it started ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Bubblewrap {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    settings: ExecSettings,
    program: String,
    shell: ShellKind,
    abilities: Abilities,
    filters: Filters,
    cgroups: Cgroups,
    launcher: Launcher,
    over: OverLimit,
    is_root: bool,
    /// Whether cgroups may be created. `false` during the probe, which changes nothing.
    is_ready: bool,
}

/// The system call filters, each as an in-memory file.
#[derive(Debug)]
struct Filters {
    /// For commands. Depends on what limits their memory.
    commands: OwnedFd,
    /// For services, which the operator configures. Allows the calls that are refused only because nothing counts the
    /// kernel memory that they hold.
    services: OwnedFd,
}

impl Filters {
    fn make(memory: Keeper) -> Result<Self, Unavailable> {
        let filter = |memory| seccomp::filter(memory).and_then(|filter| memory_file(&filter));
        let both = filter(memory).and_then(|commands| {
            let services = filter(Keeper::CgroupV2)?;
            Ok(Self { commands, services })
        });
        both.map_err(|error| {
            Unavailable::new(
                format!("the system call filter cannot be built: {error}"),
                "run errand on x86_64 or aarch64",
            )
        })
    }
}

/// The mechanisms that enforce the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepers {
    pub memory: Keeper,
    /// Of processes and threads.
    pub processes: Keeper,
    pub cpu: Keeper,
}

impl Bubblewrap {
    /// Finds out whether commands can be isolated here, by isolating one, and prepares the cgroups.
    ///
    /// # Errors
    /// Why they cannot, and how to fix that.
    pub async fn find(settings: ExecSettings) -> Result<Self, Unavailable> {
        let mut inner = Self::probed(settings).await?;
        if let Err(error) = inner.cgroups.prepare() {
            // The watcher and per-process limits take over.
            tracing::warn!(%error, "the server's cgroup cannot be divided; limits are enforced without cgroups");
            inner.cgroups = Cgroups::default();
            inner.filters = Filters::make(Keeper::Watcher)?;
        }
        inner.is_ready = true;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Like [`Bubblewrap::find`], but changes nothing. Returns what would enforce each limit, and whether the inside
    /// has a separate `/proc`.
    ///
    /// # Errors
    /// See [`Bubblewrap::find`].
    pub async fn look(settings: ExecSettings) -> Result<(Keepers, bool), Unavailable> {
        let inner = Self::probed(settings).await?;
        Ok((inner.keepers(), inner.abilities.own_proc))
    }

    async fn probed(settings: ExecSettings) -> Result<Inner, Unavailable> {
        let program = probe::program(&settings.search_path)?;
        let shell = find_shell(settings.root.as_deref())?;
        let launcher = Launcher::start(&settings.helper).map_err(|error| {
            Unavailable::new(
                format!("cannot start threads: {error}"),
                "raise the limit on the number of processes",
            )
        })?;
        let cgroups = if settings.uses_cgroups {
            Cgroups::find(&settings.instance)
        } else {
            Cgroups::default()
        };
        let filters = Filters::make(cgroups.keeper("memory"))?;
        let abilities = Abilities {
            disables_user_namespaces: true,
            own_proc: true,
        };
        let inner = Inner {
            settings,
            program,
            shell,
            abilities,
            filters,
            cgroups,
            launcher,
            over: Arc::new(Mutex::new(HashMap::new())),
            is_root: rustix::process::geteuid().is_root(),
            is_ready: false,
        };
        probe::probe(inner).await
    }

    /// Kills the processes that an earlier server of the same instance left, and removes its cgroups and old probe
    /// directories. Call this before anything is started. Returns the number of processes killed. Blocking.
    #[must_use]
    pub fn kill_left_over(&self) -> usize {
        probe::remove_abandoned();
        let inner = &self.inner;
        let mut pids = inner.labeled();
        pids.extend(inner.cgroups.leftover_pids());
        pids.sort_unstable();
        pids.dedup();
        let held: Vec<OwnedFd> = pids
            .iter()
            .filter_map(|pid| {
                let process = processes::open_pidfd(*pid)?;
                // Checked after it is held by a pidfd, so that its id cannot be reused any more.
                inner.is_left_over(*pid).then_some(process)
            })
            .collect();
        for process in &held {
            processes::signal(process, Signal::KILL);
        }
        for process in &held {
            wait_for(process);
        }
        inner.cgroups.remove_leftover_groups();
        held.len()
    }

    /// The mechanisms that enforce the limits here.
    #[must_use]
    pub fn keepers(&self) -> Keepers {
        self.inner.keepers()
    }

    /// Whether the inside has a separate `/proc`.
    #[must_use]
    pub fn has_own_proc(&self) -> bool {
        self.inner.abilities.own_proc
    }
}

/// Waits until a process is gone, up to a limit.
fn wait_for(process: &OwnedFd) {
    let timeout = Timespec {
        tv_sec: i64::try_from(LEFT_OVER_WAIT.as_secs()).unwrap_or(5),
        tv_nsec: 0,
    };
    let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout));
}

fn find_shell(root: Option<&Path>) -> Result<ShellKind, Unavailable> {
    let base = root.unwrap_or(Path::new("/"));
    let there = |name: &str| {
        ["usr/bin", "bin"]
            .iter()
            .any(|dir| fs::symlink_metadata(base.join(dir).join(name)).is_ok())
    };
    if there("bash") {
        Ok(ShellKind::Bash)
    } else if there("sh") {
        Ok(ShellKind::Sh)
    } else {
        Err(Unavailable::new(
            format!("neither bash nor sh was found in {}", base.display()),
            "set sandbox.root to a root directory that contains programs, or leave it unset",
        ))
    }
}

impl Inner {
    pub(super) fn settings(&self) -> &ExecSettings {
        &self.settings
    }

    pub(super) fn is_root(&self) -> bool {
        self.is_root
    }

    pub(super) fn abilities(&mut self) -> &mut Abilities {
        &mut self.abilities
    }

    fn keepers(&self) -> Keepers {
        Keepers {
            memory: self.cgroups.keeper("memory"),
            processes: self.cgroups.keeper("pids"),
            cpu: self.cgroups.keeper("cpu"),
        }
    }

    fn label(&self) -> String {
        format!("errand-sandbox-{}", self.settings.instance)
    }

    /// Processes whose first argument is this server's label.
    fn labeled(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| self.is_labeled(*pid))
            .collect()
    }

    fn is_labeled(&self, pid: u32) -> bool {
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
            return false;
        };
        line.split(|byte| *byte == 0).next() == Some(self.label().as_bytes())
    }

    /// Whether a process belongs to a user that sandboxes run as. Anybody can give a process our label, but must not
    /// make us kill another user's process.
    fn is_left_over(&self, pid: u32) -> bool {
        let Ok(found) = fs::metadata(format!("/proc/{pid}")) else {
            return false;
        };
        if self.is_root {
            self.settings.uids.contains(found.uid())
        } else {
            found.uid() == rustix::process::geteuid().as_raw()
        }
    }

    fn rlimits(&self) -> Rlimits {
        let limits = &self.settings.limits;
        let keepers = self.keepers();
        Rlimits {
            file_bytes: limits.file_bytes_max,
            descriptors: DESCRIPTORS_MAX,
            processes: self
                .is_root
                .then(|| u64::from(limits.processes_max) + OWN_PROCESSES_MAX),
            data_bytes: (keepers.memory == Keeper::Watcher).then_some(limits.memory_bytes_max),
        }
    }

    fn profile<'a>(&'a self, service: Option<&'a ServiceSpec>) -> Profile<'a> {
        Profile {
            abilities: self.abilities,
            root: self.settings.root.as_deref(),
            service,
            filter: FILTER,
            status: STATUS,
        }
    }

    async fn launch(
        &self,
        order: Order,
        workspace: Option<OwnedFd>,
        uid_guard: Option<UidGuard>,
    ) -> Result<Launched, ExecError> {
        let failed = ExecError::io("start the sandbox");
        let filter = match workspace {
            Some(_) => &self.filters.commands,
            None => &self.filters.services,
        };
        let filter = filter.try_clone().map_err(&failed)?;
        let more = std::iter::once(filter).chain(workspace).collect();
        let context = LaunchContext {
            cgroups: if self.is_ready {
                self.cgroups.clone()
            } else {
                Cgroups::default()
            },
            limits: self.settings.limits,
            runtime: Handle::current(),
        };
        let launched = self
            .launcher
            .launch(order, more, context, uid_guard, self.is_ready);
        launched.await.map_err(failed)
    }

    fn order(
        &self,
        uid: Option<u32>,
        profile: &Profile<'_>,
        command: Vec<String>,
    ) -> Result<Order, ExecError> {
        Ok(Order {
            label: self.label(),
            program: self.program.clone(),
            uid,
            workspace: None,
            limits: self.rlimits(),
            args: profile
                .args()
                .map_err(ExecError::io("look at the root of the sandbox"))?,
            command,
            stdin: STDIN,
        })
    }

    fn mount_points(&self) -> Vec<String> {
        let root = self.settings.root.as_deref();
        MOUNT_POINTS
            .into_iter()
            .filter(|point| root.is_none_or(|root| !root.starts_with(point)))
            .map(str::to_owned)
            .collect()
    }

    pub(super) async fn shell(&self, workspace: &Root) -> Result<ShellParts, ExecError> {
        let owner = workspace
            .owner()
            .map_err(ExecError::io("look at the workspace"))?;
        let uid = match (self.is_root, self.settings.uids.contains(owner)) {
            (false, _) => None,
            (true, true) => Some(owner),
            (true, false) => return Err(ExecError::Owner(owner)),
        };
        let profile = self.profile(None);
        let processes = (self.settings.limits.processes_max + NPROC_HEADROOM).to_string();
        let command: Vec<String> = match self.shell {
            ShellKind::Bash => [
                "bash",
                "--norc",
                "--noprofile",
                "-c",
                &BASH.replace("PROCESSES", &processes),
                "bash",
            ]
            .map(str::to_owned)
            .into(),
            ShellKind::Sh => ["sh", "-c", SH, "sh"].map(str::to_owned).into(),
        };
        let mut order = self.order(uid, &profile, command)?;
        order.workspace = Some((WORKSPACE, self.mount_points()));
        let dir = workspace
            .dir()
            .as_fd()
            .try_clone_to_owned()
            .map_err(ExecError::io("hold the workspace"))?;
        let launched = self.launch(order, Some(dir), None).await?;
        let keepers = self.keepers();
        Ok(ShellParts {
            group: Arc::clone(&launched.group),
            launched,
            workspace: workspace.clone(),
            limits: self.settings.limits,
            over: Arc::clone(&self.over),
            keepers: (keepers.memory, keepers.processes),
        })
    }
}

#[async_trait]
impl SandboxExec for Bubblewrap {
    async fn prepare(&self, workspace: &Root) -> Result<Box<dyn Shell>, ExecError> {
        Ok(Box::new(self.inner.shell(workspace).await?))
    }

    async fn service(&self, spec: &ServiceSpec) -> Result<Service, ExecError> {
        let inner = &self.inner;
        let uids = &inner.settings.uids;
        let uid_guard = match inner.is_root {
            false => None,
            true => Some(UidGuard {
                uid: uids.take().ok_or(ExecError::NoUserLeft)?,
                uids: Arc::clone(uids),
            }),
        };
        let profile = inner.profile(Some(spec));
        let uid = uid_guard.as_ref().map(|uid_guard| uid_guard.uid);
        let order = inner.order(uid, &profile, spec.argv.clone())?;
        let mut launched = inner.launch(order, None, uid_guard).await?;
        launched.begun().await;
        if launched.first().is_none() {
            return Err(ExecError::SetUp(error_line(&launched.read_stderr().await)));
        }
        Ok(Service::new(launched))
    }

    fn limits(&self) -> Limits {
        self.inner.settings.limits
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.is_ready {
            self.cgroups.remove_empty();
        }
    }
}
