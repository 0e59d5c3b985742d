//! How commands are isolated here: from the settings to what `errand_sandbox::exec` needs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use errand_engine::sandboxes::Sandboxes;
use errand_engine::tool::Tools;
use errand_engine::tool::command::RunCommand;
use errand_sandbox::exec::{
    Bubblewrap, ExecSettings, GRACE, Limits, SandboxExec, Uids, Unavailable,
};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use crate::config::Config;

/// The program itself, also when its file was replaced since the start.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// What the settings say of isolation. `helper`: the program of errand.
#[must_use]
pub fn settings(config: &Config, helper: PathBuf) -> ExecSettings {
    let sandbox = &config.sandbox;
    ExecSettings {
        helper,
        search_path: std::env::var_os("PATH").unwrap_or_default(),
        instance: instance(config),
        root: sandbox.root.clone(),
        uids: Arc::new(Uids::new(sandbox.uid_base, sandbox.uid_count)),
        limits: Limits {
            memory_bytes_max: sandbox.memory_bytes_max,
            processes_max: sandbox.processes_max,
            cpu_percent_max: sandbox.cpu_percent_max,
            disk_bytes_max: sandbox.disk_bytes_max,
            team_disk_bytes_max: sandbox.team_disk_bytes_max,
            files_max: u64::from(sandbox.files_max),
            file_bytes_max: sandbox.file_bytes_max,
        },
        uses_cgroups: true,
    }
}

/// What tells the processes of servers on one machine apart: the data directory, which only one server has at a time.
fn instance(config: &Config) -> String {
    let dir = &config.server.data_dir;
    // Links are not followed: the directory may not be there yet, and its name shall not change when it is.
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The isolation on its way: tried while the rest of the server starts.
pub(crate) struct Isolation {
    users: Arc<Uids>,
    found: JoinHandle<Result<Bubblewrap, Unavailable>>,
    goes_on: Duration,
    waiting_max: usize,
}

impl Isolation {
    /// Begins to find out whether commands can be isolated here.
    pub(crate) fn begin(config: &Config, helper: PathBuf) -> Self {
        let settings = settings(config, helper);
        Self {
            users: Arc::clone(&settings.uids),
            found: tokio::spawn(Bubblewrap::find(settings)),
            goes_on: goes_on(config),
            waiting_max: config.sandbox.waiting_shells_max as usize,
        }
    }

    /// The tools with `run_command` (as they are, where nothing was begun), on where commands can be isolated here. What an earlier server left running is killed
    /// first: only then are its sandboxes free. To be called by whoever holds the data directory.
    ///
    /// The second is what isolates programs that stay, or why nothing does.
    pub(crate) async fn ready(
        begun: Option<Self>,
        tools: Tools,
        sandboxes: &mut Sandboxes,
    ) -> Result<(Tools, Result<Arc<dyn SandboxExec>, String>)> {
        let Some(begun) = begun else {
            return Ok((tools, Err("no isolation was looked for".to_owned())));
        };
        let found = begun.found.await;
        let found = found.context("the trial of the isolation was cut off")?;
        let (tool, exec): (_, Result<Arc<dyn SandboxExec>, _>) = match found {
            Ok(exec) => {
                let (killer, made, users) = (exec.clone(), sandboxes.clone(), begun.users);
                let ready = move || (killer.kill_left_over(), made.with_users(users));
                let ready = tokio::task::spawn_blocking(ready).await;
                let (left, with_users) = ready.context("the sandboxes cannot be looked at")?;
                if left > 0 {
                    tracing::warn!(
                        processes = left,
                        "commands that the last server left were killed"
                    );
                }
                *sandboxes = with_users.context("the sandboxes cannot be looked at")?;
                let exec: Arc<dyn SandboxExec> = Arc::new(exec);
                let tool =
                    RunCommand::isolated(Arc::clone(&exec), begun.goes_on, begun.waiting_max);
                (tool, Ok(exec))
            }
            Err(why) => {
                tracing::warn!(remedy = why.remedy, "run_command is off: {}", why.reason);
                let told = format!("{}; {}", why.reason, why.remedy);
                (RunCommand::off(why), Err(told))
            }
        };
        Ok((tools.with(vec![Arc::new(tool)]), exec))
    }
}

/// How long a command may go on once the server stops: half of the grace period, and so long that it can still be ended
/// in order within it.
fn goes_on(config: &Config) -> Duration {
    let grace = Duration::from_secs(u64::from(config.server.shutdown_grace_s));
    (grace / 2).min(grace.saturating_sub(GRACE + Duration::from_secs(1)))
}
