//! The real program as a child process.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

use crate::http::Client;

/// Maximum time of a start. Starting with a million runs in the store is one of the measures.
const START_MAX: Duration = Duration::from_secs(300);
/// Settings that differ from the defaults: no rate limit.
const SETTINGS: [(&str, &str); 1] = [("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000000")];

/// Amount that a process has written so far, to files and sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Bytes that it caused to be sent to the disk (`write_bytes` of `/proc/PID/io`).
    pub(crate) bytes: u64,
    /// System calls that write (`syscw`).
    pub(crate) calls: u64,
}

impl Written {
    /// The difference to an earlier reading. `None` if a counter is lower than before.
    pub(crate) fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            bytes: self.bytes.checked_sub(earlier.bytes)?,
            calls: self.calls.checked_sub(earlier.calls)?,
        })
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    pid: u32,
    pub(crate) address: SocketAddr,
    /// From the start of the process to the first 200 of `/readyz`.
    pub(crate) ready_ms: f64,
}

impl Server {
    /// Starts the program with a data directory and waits until it is ready.
    pub(crate) async fn start(binary: &Path, dir: &Path) -> Result<Self> {
        Self::start_with(binary, dir, &[]).await
    }

    /// Like [`Server::start`], with additional environment variables.
    pub(crate) async fn start_with(
        binary: &Path,
        dir: &Path,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let begin = Instant::now();
        let mut child = Command::new(binary)
            .args(["serve", "--listen", &address.to_string(), "--data-dir"])
            .arg(dir)
            .envs(SETTINGS)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} does not start", binary.display()))?;
        let pid = child.id().context("the server has no process id")?;
        let ready = async {
            while !is_ready(address).await {
                if let Some(status) = child.try_wait()? {
                    anyhow::bail!("the server ended before it was ready: {status}");
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        };
        tokio::time::timeout(START_MAX, ready)
            .await
            .context("the server did not become ready")??;
        Ok(Self {
            child,
            pid,
            address,
            ready_ms: begin.elapsed().as_secs_f64() * 1000.0,
        })
    }

    pub(crate) async fn create_key(&self, binary: &Path, dir: &Path) -> Result<String> {
        let output = Command::new(binary)
            .args(["keys", "create", "--name", "bench", "--data-dir"])
            .arg(dir)
            .output()
            .await?;
        anyhow::ensure!(
            output.status.success(),
            "keys create failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Resident memory of the process.
    pub(crate) fn rss_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// Amount that the server has written so far.
    pub(crate) fn written(&self) -> Result<Written> {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.pid))?;
        let counter = |name: &str| -> Result<u64> {
            io.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("no {name} in /proc/PID/io"))?
                .parse()
                .context("not a number in /proc/PID/io")
        };
        Ok(Written {
            bytes: counter("write_bytes")?,
            calls: counter("syscw")?,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Processor time that the server has used, user and system.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(&self.pid.to_string())
    }

    /// Stops the server with SIGTERM and waits until it has ended.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let stopped = Command::new("kill")
            .args(["-TERM", &self.pid.to_string()])
            .status()
            .await?;
        anyhow::ensure!(stopped.success(), "could not send SIGTERM to the server");
        tokio::time::timeout(START_MAX, self.child.wait())
            .await
            .context("the server did not stop")??;
        Ok(())
    }
}

async fn is_ready(address: SocketAddr) -> bool {
    let Ok(mut client) = Client::connect(address, "").await else {
        return false;
    };
    let request = client.request("GET", "/readyz", "");
    client
        .send(&request)
        .await
        .is_ok_and(|answer| answer.status == 200)
}

/// Processor time that this program has used.
pub(crate) fn own_cpu_seconds() -> Result<f64> {
    cpu_seconds("self")
}

/// Processor time that a process has used. `process` is its id or `self`.
pub(crate) fn cpu_seconds(process: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit(')').next().context("no stat")?;
    let ticks: Vec<f64> = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|t| t.parse().ok())
        .collect();
    // USER_HZ is 100 on Linux.
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
