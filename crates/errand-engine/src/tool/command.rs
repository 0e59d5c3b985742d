//! `run_command`: a shell command in the run's sandbox, isolated from everything else.
//!
//! # Guarantees
//!
//! - A command runs isolated (`errand_sandbox::exec` defines that) or not at all. If isolation is unavailable, each
//!   call gets the reason as its error.
//! - A nonzero exit code is a result, not an error.
//! - A command that exceeds a limit is killed, and the error names the setting.
//! - Stopping the run or the server ends the command. The result holds its output until then.
//! - When a call returns, no process of the command is left.
//!
//! # Non-goals
//!
//! Deciding whether a call may run (policies), and settling a call in doubt (the engine tells the model to check the
//! files).
//!
//! The shell for the next command of a run is started in advance, while the model is thinking, to hide its startup
//! time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use errand_core::error_chain::error_chain;
use errand_core::path::{SandboxPath, WORKSPACE};
use errand_core::policy::Hints;
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::Outcome;
use errand_sandbox::exec::{
    Bound, COMMAND_BYTES_MAX, Command, EndedBy, ExecError, Finished, Limits, Output, SandboxExec,
    Shell, Stop, Unavailable,
};
use errand_sandbox::{Change, ChangeKind, Root};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::files::arguments;
use super::{Tool, ToolContext};
use crate::exhausted::{note, note_anyway};
use crate::sandboxes::{WaitingShell, Workspace};

const NAME: &str = "run_command";
/// Default time limit of a command, in seconds.
const TIMEOUT_S: u64 = 120;
/// Maximum time limit of a command, in seconds.
const TIMEOUT_S_MAX: u64 = 600;
/// Maximum number of shells that wait, started in advance, for the next command of their run. A driven run has at most
/// one, so `engine.max_concurrent_runs` lowers this bound on a small machine.
const WAITING_SHELLS_MAX: usize = 32;
/// How much of each output an error repeats, in bytes. The end is enough to see where the command was.
const SHOWN_BYTES: usize = 2_000;

/// The tool.
pub struct RunCommand {
    exec: Result<Arc<dyn SandboxExec>, Unavailable>,
    /// The grace period of a running command when the server shuts down.
    goes_on: Duration,
    /// Permits for shells that were started in advance.
    places: Arc<Semaphore>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// The command, as for `bash -c`. Several lines are one script.
    command: String,
    /// The time limit in seconds, 1 to 600; then the command and all its processes are killed. Default: 120.
    timeout_s: Option<u64>,
    /// The working directory, inside /workspace. Default: /workspace.
    cwd: Option<String>,
}

impl RunCommand {
    /// The tool with isolation. `goes_on`: the grace period of a running command when the server shuts down.
    #[must_use]
    pub fn isolated(exec: Arc<dyn SandboxExec>, goes_on: Duration) -> Self {
        Self {
            exec: Ok(exec),
            goes_on,
            places: Arc::new(Semaphore::new(WAITING_SHELLS_MAX)),
        }
    }

    /// The tool without isolation: every call fails with this reason.
    #[must_use]
    pub fn off(why: Unavailable) -> Self {
        Self {
            exec: Err(why),
            goes_on: Duration::ZERO,
            places: Arc::new(Semaphore::new(0)),
        }
    }

    /// The default of programs that did not probe for isolation.
    pub(super) fn not_set_up() -> Self {
        Self::off(Unavailable {
            reason: "this program was not set up to isolate commands".to_owned(),
            remedy: "start the server with `errand serve`".to_owned(),
        })
    }

    /// Runs one command. The error becomes the result of the call.
    async fn call(
        &self,
        context: &ToolContext,
        arguments: &Map<String, Value>,
    ) -> Result<Value, ToolError> {
        let command = command_of(arguments)?;
        let exec = match &self.exec {
            Ok(exec) => exec,
            Err(why) => {
                return Err(ToolError::new(
                    ToolErrorCode::Unavailable,
                    unavailable_message(why),
                ));
            }
        };
        let not_run = || {
            let message = "the run was stopped, or the server is shutting down: nothing was done";
            ToolError::new(ToolErrorCode::NotRun, message)
        };
        let workspace = context.workspace.clone().ok_or_else(not_run)?;
        let root = place(&workspace, &command.cwd).await?;
        if context.cancel.is_cancelled() {
            return Err(not_run());
        }
        let waiting = workspace
            .take_shell()
            .and_then(|mut waiting| waiting.shell.is_alive().then_some(waiting.shell));
        let shell = match waiting {
            Some(shell) => shell,
            None => exec
                .prepare(&root)
                .await
                .map_err(|error| failed(context, &error))?,
        };
        let change = begin_change(&root).await;
        if context.cancel.is_cancelled() {
            return Err(not_run());
        }
        let finished = self
            .run_in(shell, &command, context)
            .await
            .map_err(|error| failed(context, &error))?;
        drop(change);
        self.start_next(exec, workspace, root, context);
        outcome(&finished, context, exec.limits())
    }

    async fn run_in(
        &self,
        shell: Box<dyn Shell>,
        command: &Command,
        context: &ToolContext,
    ) -> Result<Finished, ExecError> {
        let (cancel, draining) = (context.cancel.clone(), context.draining.clone());
        let goes_on = self.goes_on;
        let stop: Stop = Box::pin(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = async {
                    draining.cancelled().await;
                    tokio::time::sleep(goes_on).await;
                } => {}
            }
        });
        shell.run(command, stop).await
    }

    /// Starts the shell for the run's next command in the background, if a permit is free.
    fn start_next(
        &self,
        exec: &Arc<dyn SandboxExec>,
        workspace: Workspace,
        root: Root,
        context: &ToolContext,
    ) {
        if context.cancel.is_cancelled() || context.draining.is_cancelled() {
            return;
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return;
        };
        let exec = Arc::clone(exec);
        tokio::spawn(async move {
            // An error is ignored: the next call starts its own shell and reports the error.
            if let Ok(shell) = exec.prepare(&root).await {
                workspace.keep_shell(WaitingShell {
                    shell,
                    _place: place,
                });
            }
        });
    }
}

fn unavailable_message(why: &Unavailable) -> String {
    format!(
        "{NAME} is off: {}; to enable it, {}",
        why.reason, why.remedy
    )
}

/// Parses and validates the arguments. The error becomes the result of the call.
fn command_of(arguments: &Map<String, Value>) -> Result<Command, ToolError> {
    let Arguments {
        command,
        timeout_s,
        cwd,
    } = arguments::parse(arguments)?;
    let wrong = |what: String| ToolError::new(ToolErrorCode::InvalidArguments, what);
    if command.trim().is_empty() {
        return Err(wrong("`command` is empty".to_owned()));
    }
    if command.contains('\0') {
        return Err(wrong(
            "`command` contains a NUL character, which no shell accepts".to_owned(),
        ));
    }
    if command.len() > COMMAND_BYTES_MAX {
        return Err(wrong(format!(
            "`command` has more than {COMMAND_BYTES_MAX} bytes: write a script with write_file and run that"
        )));
    }
    let timeout_s = timeout_s.unwrap_or(TIMEOUT_S);
    if !(1..=TIMEOUT_S_MAX).contains(&timeout_s) {
        return Err(wrong(format!(
            "`timeout_s`: {timeout_s} is not in 1..={TIMEOUT_S_MAX}"
        )));
    }
    let cwd = SandboxPath::parse(cwd.as_deref().unwrap_or(WORKSPACE))
        .map_err(|error| wrong(format!("`cwd`: {error}")))?;
    Ok(Command {
        script: command,
        cwd,
        timeout: Duration::from_secs(timeout_s),
    })
}

/// Opens the workspace and checks that the working directory exists.
async fn place(workspace: &Workspace, cwd: &SandboxPath) -> Result<Root, ToolError> {
    let (workspace, cwd) = (workspace.clone(), cwd.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let root = workspace.root().map_err(|error| {
            (
                ToolErrorCode::Unavailable,
                "the sandbox cannot be opened",
                error,
            )
        })?;
        root.measure_where_tight().map_err(|error| {
            (
                ToolErrorCode::Unavailable,
                "the sandbox cannot be measured",
                error,
            )
        })?;
        root.check_directory(&cwd)
            .map_err(|error| (ToolErrorCode::InvalidArguments, "`cwd`", error))?;
        Ok(root.clone())
    });
    match looked.await {
        Ok(Ok(root)) => Ok(root),
        Ok(Err((code, what, error))) => {
            note(&error);
            Err(ToolError::new(
                code,
                format!("{what}: {}", error_chain(&error)),
            ))
        }
        Err(_) => Err(ToolError::new(
            ToolErrorCode::Internal,
            "the server failed; nothing was done",
        )),
    }
}

/// Announces a change of files by a command. Blocks until a backup in progress has saved this sandbox.
async fn begin_change(root: &Root) -> Option<Change> {
    if let Some(begun) = root.try_begin_change(ChangeKind::Command) {
        return begun;
    }
    let root = root.clone();
    let waited = tokio::task::spawn_blocking(move || root.begin_change(ChangeKind::Command));
    waited.await.ok().flatten()
}

/// The error of a call whose command was not started.
fn failed(context: &ToolContext, error: &ExecError) -> ToolError {
    // If descriptors or memory ran out, the call is repeated later. This is safe, because the command was not started.
    let is_noted = note(error) || error.says_exhausted() && note_anyway(&error.to_string());
    if !is_noted {
        tracing::error!(run.id = %context.run, cause = error_chain(error), "a command could not be isolated");
    }
    let message = format!("{}; nothing was done", error_chain(error));
    ToolError::new(ToolErrorCode::Unavailable, message)
}

fn outcome(finished: &Finished, context: &ToolContext, limits: Limits) -> Result<Value, ToolError> {
    let ended_by = match finished.ended_by {
        Some(EndedBy::Bound(bound)) => return Err(passed(bound, limits, finished)),
        Some(EndedBy::Stop) if context.draining.is_cancelled() => Some("server_stop"),
        Some(EndedBy::Stop) => Some("run_stop"),
        Some(EndedBy::TimeLimit) | None => None,
    };
    let mut result = json!({
        "exit_code": finished.exit_code,
        "stdout": finished.stdout.text,
        "stderr": finished.stderr.text,
        "timed_out": finished.ended_by == Some(EndedBy::TimeLimit),
        "truncated": finished.stdout.truncated || finished.stderr.truncated,
        "duration_ms": u64::try_from(finished.duration.as_millis()).unwrap_or(u64::MAX),
    });
    // Present only if the command was stopped from outside.
    if let (Some(by), Some(fields)) = (ended_by, result.as_object_mut()) {
        fields.insert("ended_by".to_owned(), Value::from(by));
    }
    Ok(result)
}

/// The error of a command that exceeded a limit.
fn passed(bound: Bound, limits: Limits, finished: &Finished) -> ToolError {
    let (what, setting, most) = match bound {
        Bound::Memory => (
            "memory",
            "sandbox.memory_bytes_max",
            limits.memory_bytes_max,
        ),
        Bound::Processes => (
            "processes and threads",
            "sandbox.processes_max",
            u64::from(limits.processes_max),
        ),
        Bound::Disk => ("disk", "sandbox.disk_bytes_max", limits.disk_bytes_max),
        Bound::TeamDisk => (
            "disk, with the other sandboxes of the team,",
            "sandbox.team_disk_bytes_max",
            limits.team_disk_bytes_max,
        ),
        Bound::Files => ("files", "sandbox.files_max", limits.files_max),
        Bound::FileSize => (
            "space for one file",
            "sandbox.file_bytes_max",
            limits.file_bytes_max,
        ),
        Bound::Output => ("output", "the fixed maximum", 1 << 30),
        Bound::Terminals => ("pseudo terminals", "the server", 64),
    };
    let mut text = format!(
        "the command used more {what} than {setting} allows ({most}) and was stopped; its changes until then remain"
    );
    for (name, output) in [("stdout", &finished.stdout), ("stderr", &finished.stderr)] {
        if !output.text.is_empty() {
            text.push_str(&format!("\n{name}: {}", end_of(output)));
        }
    }
    ToolError::with_content(ToolErrorCode::LimitExceeded, text)
}

fn end_of(output: &Output) -> &str {
    let text = output.text.as_str();
    let from = text.ceil_char_boundary(text.len().saturating_sub(SHOWN_BYTES));
    text.get(from..).unwrap_or_default()
}

#[async_trait]
impl Tool for RunCommand {
    fn name(&self) -> &str {
        NAME
    }

    fn description(&self) -> &str {
        "Runs a shell command (bash, or sh if there is no bash) in the sandbox, isolated from the network and from the machine. Only /workspace persists; /tmp and the home directory are emptied after each command. Each command runs in its own shell. The available programs are those of the machine. Returns exit_code, stdout and stderr; a long output is shortened to its beginning and its end."
    }

    fn hints(&self) -> Hints {
        arguments::hints_of(NAME)
    }

    fn in_sandbox(&self) -> bool {
        // If the tool is off, no sandbox is created for its calls.
        self.exec.is_ok()
    }

    fn unavailable(&self) -> Option<String> {
        self.exec.as_ref().err().map(unavailable_message)
    }

    fn schema(&self) -> Value {
        arguments::schema_of::<Arguments>()
    }

    async fn run(&self, context: &ToolContext, arguments: Map<String, Value>) -> Outcome {
        match self.call(context, &arguments).await {
            Ok(result) => Outcome::Result(result),
            Err(error) => Outcome::Error(error),
        }
    }
}

#[cfg(test)]
mod tests;
