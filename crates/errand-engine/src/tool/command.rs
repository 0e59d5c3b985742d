//! `run_command`: a shell command in the run's sandbox, shut off from everything else.
//!
//! Promised: it runs isolated (`errand_sandbox::exec` says what that means) or not at all; where isolation cannot be had,
//! each call gets the reason as its error. A command that ends with another code than 0 is a result. What passes a bound
//! is stopped, with an error that names the setting. A stop of the run, or of the server, ends the command, and what it
//! wrote until then is the result. No process of it is left when the call returns.
//!
//! Left out: whether a call may run (policies), and what a call in doubt means: the engine tells the model to look at the
//! files.
//!
//! The shell for the next command of a run is started while the model thinks: its start is then waited for by nobody.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use errand_core::cause::chain;
use errand_core::path::{SandboxPath, WORKSPACE};
use errand_core::policy::Hints;
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
/// How long a command may take, in seconds, unless its call says otherwise.
const TIMEOUT_S: u64 = 120;
/// How long it may take at most.
const TIMEOUT_S_MAX: u64 = 600;
/// How much of each output an error shows, in bytes: enough to see where it was.
const SHOWN_BYTES: usize = 2_000;

/// The tool.
pub struct RunCommand {
    exec: Result<Arc<dyn SandboxExec>, Unavailable>,
    /// How long a command may go on once the server stops.
    goes_on: Duration,
    /// Places for shells that wait.
    places: Arc<Semaphore>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// The command, as for `bash -c`. Several lines are one script.
    command: String,
    /// How long it may take, in seconds: 1 to 600. Without it: 120. It is ended then, with all that it started.
    timeout_s: Option<u64>,
    /// The directory in which it begins, beneath /workspace. Without it: /workspace.
    cwd: Option<String>,
}

impl RunCommand {
    /// In this isolation. `goes_on`: how long a command may go on once the server stops; `waiting_max`: how many shells
    /// may wait for their command at once.
    #[must_use]
    pub fn isolated(exec: Arc<dyn SandboxExec>, goes_on: Duration, waiting_max: usize) -> Self {
        Self {
            exec: Ok(exec),
            goes_on,
            places: Arc::new(Semaphore::new(waiting_max)),
        }
    }

    /// Off.
    #[must_use]
    pub fn off(why: Unavailable) -> Self {
        Self {
            exec: Err(why),
            goes_on: Duration::ZERO,
            places: Arc::new(Semaphore::new(0)),
        }
    }

    /// Off, in programs that did not look whether it could be on.
    pub(super) fn not_set_up() -> Self {
        Self::off(Unavailable {
            reason: "this program was not set up to isolate commands".to_owned(),
            remedy: "start the server with `errand serve`".to_owned(),
        })
    }

    /// Runs one command. The error is the call's.
    async fn call(
        &self,
        context: &ToolContext,
        arguments: &Map<String, Value>,
    ) -> Result<Value, String> {
        let command = command_of(arguments)?;
        let exec = match &self.exec {
            Ok(exec) => exec,
            Err(why) => return Err(format!("unavailable: {}", told(why))),
        };
        let not_run = "not_run: the run was stopped, or the server stops: nothing was done";
        let workspace = context
            .workspace
            .clone()
            .ok_or_else(|| not_run.to_owned())?;
        let root = place(&workspace, &command.cwd).await?;
        if context.cancel.is_cancelled() {
            return Err(not_run.to_owned());
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
            return Err(not_run.to_owned());
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

    /// Starts the shell for the run's next command, if there is a place for it. Nobody waits for that.
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
            // The next call finds out for itself what is wrong.
            if let Ok(shell) = exec.prepare(&root).await {
                workspace.keep_shell(WaitingShell {
                    shell,
                    _place: place,
                });
            }
        });
    }
}

fn told(why: &Unavailable) -> String {
    format!("{NAME} is off: {}; to have it, {}", why.reason, why.remedy)
}

/// What the arguments ask for. The error is the call's.
fn command_of(arguments: &Map<String, Value>) -> Result<Command, String> {
    let Arguments {
        command,
        timeout_s,
        cwd,
    } = arguments::read_or_say(arguments)?;
    let wrong = |what: String| format!("invalid_arguments: {what}");
    if command.trim().is_empty() {
        return Err(wrong("`command` is empty".to_owned()));
    }
    if command.contains('\0') {
        return Err(wrong(
            "`command` holds a NUL, which no shell takes".to_owned(),
        ));
    }
    if command.len() > COMMAND_BYTES_MAX {
        return Err(wrong(format!(
            "`command` has more than {COMMAND_BYTES_MAX} bytes: write a script with write_file, and run that"
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

/// The workspace's root, with the directory to begin in looked at.
async fn place(workspace: &Workspace, cwd: &SandboxPath) -> Result<Root, String> {
    let (workspace, cwd) = (workspace.clone(), cwd.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let root = workspace
            .root()
            .map_err(|error| ("unavailable: the sandbox cannot be opened", error))?;
        root.measure_where_tight()
            .map_err(|error| ("unavailable: the sandbox cannot be measured", error))?;
        root.check_directory(&cwd)
            .map_err(|error| ("invalid_arguments: `cwd`", error))?;
        Ok(root.clone())
    });
    match looked.await {
        Ok(Ok(root)) => Ok(root),
        Ok(Err((what, error))) => {
            note(&error);
            Err(format!("{what}: {}", chain(&error)))
        }
        Err(_) => Err("internal: the server failed; nothing was done".to_owned()),
    }
}

/// Announces that a command is about to change files: while a backup is made, it waits until the sandbox is saved.
async fn begin_change(root: &Root) -> Option<Change> {
    if let Some(begun) = root.try_begin_change(ChangeKind::Command) {
        return begun;
    }
    let root = root.clone();
    let waited = tokio::task::spawn_blocking(move || root.begin_change(ChangeKind::Command));
    waited.await.ok().flatten()
}

/// The error of a call whose command did not begin.
fn failed(context: &ToolContext, error: &ExecError) -> String {
    // The command did not begin: it is made again when there is what it needs.
    if note(error) || error.says_exhausted() && note_anyway(&error.to_string()) {
        return format!("unavailable: {}; nothing was done", chain(error));
    }
    tracing::error!(run.id = %context.run, cause = chain(error), "a command could not be isolated");
    format!("unavailable: {}; nothing was done", chain(error))
}

fn outcome(finished: &Finished, context: &ToolContext, limits: Limits) -> Result<Value, String> {
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
    // Said only where it is so: the command was ended, and not by itself.
    if let (Some(by), Some(fields)) = (ended_by, result.as_object_mut()) {
        fields.insert("ended_by".to_owned(), Value::from(by));
    }
    Ok(result)
}

/// The error of a command that passed a bound.
fn passed(bound: Bound, limits: Limits, finished: &Finished) -> String {
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
            "room for one file",
            "sandbox.file_bytes_max",
            limits.file_bytes_max,
        ),
        Bound::Output => ("output", "the most that is read of it", 1 << 30),
        Bound::Terminals => ("pseudo terminals", "the server", 64),
    };
    let mut text = format!(
        "limit_exceeded: the command took more {what} than {setting} allows ({most}) and was stopped; what it had done until then is done"
    );
    for (name, output) in [("stdout", &finished.stdout), ("stderr", &finished.stderr)] {
        if !output.text.is_empty() {
            text.push_str(&format!("\n{name}: {}", end_of(output)));
        }
    }
    text
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
        "Runs a shell command (bash, else sh) in the sandbox, shut off from the network and from the machine. /workspace is the only place that lasts; /tmp and the home are emptied after each command. Each command is a shell of its own. The programs are those of the machine. Returns exit_code, stdout and stderr; of a long output the head and the tail."
    }

    fn hints(&self) -> Hints {
        arguments::hints_of(NAME)
    }

    fn in_sandbox(&self) -> bool {
        // Where it is off, no sandbox is made for it.
        self.exec.is_ok()
    }

    fn unavailable(&self) -> Option<String> {
        self.exec.as_ref().err().map(told)
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
