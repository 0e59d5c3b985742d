//! The real program as a process.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    pid: u32,
    pub(crate) url: String,
    /// From the start of the process to the first 200 of `/readyz`.
    pub(crate) ready_ms: f64,
}

impl Server {
    pub(crate) async fn start(
        binary: &Path,
        dir: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let url = format!("http://127.0.0.1:{port}");
        let http = reqwest::Client::builder().no_proxy().build()?;
        let begin = Instant::now();
        let child = Command::new(binary)
            .args([
                "serve",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--data-dir",
            ])
            .arg(dir)
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} does not start", binary.display()))?;
        let pid = child.id().context("the server has no process id")?;
        let ready = async {
            loop {
                let answer = http.get(format!("{url}/readyz")).send().await;
                if answer.is_ok_and(|a| a.status().is_success()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ready)
            .await
            .context("the server was not ready in 30 s")?;
        Ok(Self {
            child,
            pid,
            url,
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

    pub(crate) fn rss_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// Processor time of the server so far, in user and system.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
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

    pub(crate) async fn stop(mut self) -> Result<()> {
        let stopped = Command::new("kill")
            .args(["-TERM", &self.pid.to_string()])
            .status()
            .await?;
        anyhow::ensure!(stopped.success(), "the server could not be told to stop");
        tokio::time::timeout(Duration::from_secs(20), self.child.wait())
            .await
            .context("the server did not stop in 20 s")??;
        Ok(())
    }
}
