//! Long-running programs: isolated like commands, but with the network, without a workspace, and reached through
//! pipes.

use std::path::PathBuf;

use tokio::net::unix::pipe;
use tokio::process::{ChildStderr, ChildStdout};

use super::GRACE;
use super::launch::Launched;

/// Describes a long-running program.
#[derive(Clone, Debug, Default)]
pub struct ServiceSpec {
    /// The program, looked up in the `PATH` inside, and its arguments.
    pub argv: Vec<String>,
    /// Environment variables, in addition to PATH, HOME, LANG, TERM, TMPDIR and USER. They may replace those.
    pub env: Vec<(String, String)>,
    /// Paths of the host that are visible at the same place, read-only. Must not contain, or be in, the data
    /// directory.
    pub read_only: Vec<PathBuf>,
}

/// A running service. Dropping it kills it, with everything that it has started.
///
/// It sees the network as the host does, including the host's loopback and abstract sockets.
#[derive(Debug)]
pub struct Service {
    launched: Launched,
}

#[derive(Debug)]
pub struct ServicePipes {
    pub stdin: pipe::Sender,
    pub stdout: ChildStdout,
    /// Must be read, or the service blocks. Its content is untrusted.
    pub stderr: ChildStderr,
}

impl Service {
    pub(super) fn new(launched: Launched) -> Self {
        Self { launched }
    }

    /// Takes the pipes. `None` if they were taken before.
    pub fn pipes(&mut self) -> Option<ServicePipes> {
        let launched = &mut self.launched;
        Some(ServicePipes {
            stdin: launched.stdin.take()?,
            stdout: launched.stdout.take()?,
            stderr: launched.stderr.take()?,
        })
    }

    /// Waits until it has ended by itself. Returns its exit code, or 128 plus the signal number if a signal ended it.
    pub async fn ended(&mut self) -> i32 {
        let _ = self.launched.child.wait().await;
        self.launched.exit_code().unwrap_or(1)
    }

    /// Asks it to end, and kills it with everything it has started after [`GRACE`].
    pub async fn stop(mut self) {
        self.launched.terminate();
        if tokio::time::timeout(GRACE, self.launched.child.wait())
            .await
            .is_err()
        {
            self.launched.kill();
            if tokio::time::timeout(GRACE, self.launched.child.wait())
                .await
                .is_err()
            {
                self.launched.kill_bubblewrap();
            }
        }
    }
}
