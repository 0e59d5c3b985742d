//! Isolation of commands on this machine: translates the settings for `errand_sandbox::exec`.

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

/// This program, even if its file was replaced since the start.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// The isolation settings. `helper`: path of the errand program.
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

/// Distinguishes the processes of several servers on one machine. Derived from the data directory, which only one
/// server uses at a time.
fn instance(config: &Config) -> String {
    let dir = &config.server.data_dir;
    // Links are not resolved: the directory may not exist yet, and its name must stay the same after it is created.
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    hex::encode(digest.get(..8).unwrap_or_default())
}

/// The probe of the isolation, which runs while the rest of the server starts.
pub(crate) struct Isolation {
    users: Arc<Uids>,
    found: JoinHandle<Result<Bubblewrap, Unavailable>>,
    goes_on: Duration,
}

impl Isolation {
    /// Starts to probe whether commands can be isolated on this machine.
    pub(crate) fn begin(config: &Config, helper: PathBuf) -> Self {
        let settings = settings(config, helper);
        Self {
            users: Arc::clone(&settings.uids),
            found: tokio::spawn(Bubblewrap::find(settings)),
            goes_on: goes_on(config),
        }
    }

    /// Adds `run_command` to the tools: working if commands can be isolated on this machine, otherwise turned off.
    /// Leaves the tools unchanged if no probe was started. First kills processes that an earlier server left running,
    /// because only then are its sandboxes free; so the caller must hold the data directory.
    ///
    /// The second value isolates long-running programs, or says why nothing does.
    pub(crate) async fn ready(
        begun: Option<Self>,
        tools: Tools,
        sandboxes: &mut Sandboxes,
    ) -> Result<(Tools, Result<Arc<dyn SandboxExec>, String>)> {
        let Some(begun) = begun else {
            return Ok((tools, Err("isolation was not probed".to_owned())));
        };
        let found = begun.found.await;
        let found = found.context("the probe of the isolation was interrupted")?;
        let (tool, exec): (_, Result<Arc<dyn SandboxExec>, _>) = match found {
            Ok(exec) => {
                let (killer, made, users) = (exec.clone(), sandboxes.clone(), begun.users);
                let ready = move || (killer.kill_left_over(), made.with_users(users));
                let ready = tokio::task::spawn_blocking(ready).await;
                let (left, with_users) = ready.context("the sandboxes cannot be inspected")?;
                if left > 0 {
                    tracing::warn!(
                        processes = left,
                        "killed commands that the previous server left running"
                    );
                }
                *sandboxes = with_users.context("the sandboxes cannot be inspected")?;
                let exec: Arc<dyn SandboxExec> = Arc::new(exec);
                let tool = RunCommand::isolated(Arc::clone(&exec), begun.goes_on);
                (tool, Ok(exec))
            }
            Err(why) => {
                tracing::warn!(remedy = why.remedy, "run_command is off: {}", why.reason);
                let message = format!("{}; {}", why.reason, why.remedy);
                (RunCommand::off(why), Err(message))
            }
        };
        Ok((tools.with(vec![Arc::new(tool)]), exec))
    }
}

/// How long a command can continue after the server is told to stop: half of the grace period, but short enough that
/// the command can still be ended properly within it.
fn goes_on(config: &Config) -> Duration {
    let grace = Duration::from_secs(u64::from(config.server.shutdown_grace_s));
    (grace / 2).min(grace.saturating_sub(GRACE + Duration::from_secs(1)))
}
