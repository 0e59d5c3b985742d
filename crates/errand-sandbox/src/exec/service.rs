//! Programs that stay: isolated as commands are, but with the network, without a workspace, and talked to over pipes.

use std::path::PathBuf;

use tokio::net::unix::pipe;
use tokio::process::{ChildStderr, ChildStdout};

use super::GRACE;
use super::launch::Launched;

/// A program that stays.
#[derive(Clone, Debug, Default)]
pub struct ServiceSpec {
    /// The program, looked for in the inner `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Its environment, beside PATH, HOME, LANG, TERM, TMPDIR and USER, which it may replace.
    pub env: Vec<(String, String)>,
    /// Paths of the host that it sees, read-only, at the same place. Never the data directory or what it lies in.
    pub read_only: Vec<PathBuf>,
}

/// A program that runs. Dropped, it is killed, with everything that it started.
///
/// It sees the network as the host does, with the host's loopback and its abstract sockets.
#[derive(Debug)]
pub struct Service {
    launched: Launched,
}

/// The pipes of a service.
#[derive(Debug)]
pub struct ServicePipes {
    /// Its standard input.
    pub stdin: pipe::Sender,
    /// Its standard output.
    pub stdout: ChildStdout,
    /// Its standard error. To be read, or it blocks; what it holds is untrusted.
    pub stderr: ChildStderr,
}

impl Service {
    pub(super) fn new(launched: Launched) -> Self {
        Self { launched }
    }

    /// Its pipes, once.
    pub fn pipes(&mut self) -> Option<ServicePipes> {
        let launched = &mut self.launched;
        Some(ServicePipes {
            stdin: launched.stdin.take()?,
            stdout: launched.stdout.take()?,
            stderr: launched.stderr.take()?,
        })
    }

    /// Until it has ended by itself; its exit code, 128 and the signal's number where a signal ended it.
    pub async fn ended(&mut self) -> i32 {
        let _ = self.launched.child.wait().await;
        self.launched.exit_code().unwrap_or(1)
    }

    /// Asks it to end, and kills it and all that it started two seconds later.
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
                self.launched.kill_outer();
            }
        }
    }
}
