//! Starts this program anew, as a process that works on what strangers wrote: documents, templates, schemas.
//!
//! Guarantees: the process has no environment, no descriptor of the server but its two pipes, and no place in the file
//! system; it is killed when its [`Child`] is dropped. What it prints as an error is dropped as well, since a panic's text
//! may hold what it works on.
//!
//! Non-goals: bounds of time and memory. The process sets those itself before it reads a byte
//! ([`errand_sandbox::exec::confine`]).

use std::path::Path;
use std::process::Stdio;

use errand_core::cause::is_exhausted;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Why there is no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartError {
    /// Descriptors, memory or processes have run out.
    Exhausted,
    /// Any other reason; the log has it.
    Unavailable,
}

/// A process and its pipes.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
}

/// Starts the program with these arguments. `None` cannot be started. `purpose`: for the log, such as `parses documents`.
pub(crate) fn start(
    program: Option<&Path>,
    arguments: &[&str],
    purpose: &str,
) -> Result<Started, StartError> {
    let program = program.ok_or(StartError::Unavailable)?;
    let started = Command::new(program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = started.map_err(|error| {
        if is_exhausted(&error) {
            return StartError::Exhausted;
        }
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, "a process that {purpose} cannot be started");
        StartError::Unavailable
    })?;
    match (child.stdin.take(), child.stdout.take()) {
        (Some(stdin), Some(stdout)) => Ok(Started {
            child,
            stdin,
            stdout,
        }),
        _ => Err(StartError::Unavailable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_not_there_is_unavailable() {
        let absent = Some(Path::new("/no/such/program"));
        for program in [None, absent] {
            let error = start(program, &[], "does nothing").err();
            assert_eq!(error, Some(StartError::Unavailable));
        }
    }

    #[tokio::test]
    async fn a_process_has_no_environment_and_its_own_arguments() {
        let shell = Some(Path::new("/bin/sh"));
        let print = ["-c", "echo \"$PWD ${HOME:-none} $0\"", "word"];
        let mut started = start(shell, &print, "prints").unwrap();
        drop(started.stdin);
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut started.stdout, &mut text)
            .await
            .unwrap();
        assert_eq!(text, "/ none word\n");
        assert!(started.child.wait().await.unwrap().success());
    }
}
