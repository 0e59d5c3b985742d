//! Starts this program again as a child process that works on untrusted data: documents, templates, schemas.
//!
//! # Guarantees
//!
//! - The child has no environment, no descriptor of the server except its two pipes, and `/` as its working directory.
//! - It is killed when its [`Child`] is dropped.
//! - Its standard error is discarded, because the message of a panic may contain the data.
//!
//! # Non-goals
//!
//! Limits on time and memory. The child sets them itself before it reads a byte ([`errand_sandbox::exec::confine`]).

use std::path::Path;
use std::process::Stdio;

use errand_core::error_chain::is_exhausted;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The reason why a process could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartError {
    Exhausted,
    /// Any other reason, which was logged.
    Unavailable,
}

/// A child process with its pipes.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
}

/// Starts the program. `None` always fails. `purpose`: completes the log message, such as `parses documents`.
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
    async fn a_missing_program_is_unavailable() {
        let absent = Some(Path::new("/no/such/program"));
        for program in [None, absent] {
            let error = start(program, &[], "does nothing").err();
            assert_eq!(error, Some(StartError::Unavailable));
        }
    }

    #[tokio::test]
    async fn a_process_has_no_environment() {
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
