//! The real server as a child process: starts, kills and pauses it.
//!
//! Guarantees: dropping [`Server`] ends the child. Its log is a file in the test's directory.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::caller::http_client;
use super::progress::PATIENCE;

/// Duration of a pause: longer than the first attempt of a call.
const PAUSE: Duration = Duration::from_millis(2_500);
/// Interval between polls of a starting server.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Time limit of one poll.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Maximum number of attempts to start a server that exits by itself, because another program may have taken its port.
const STARTS_MAX: u32 = 5;
/// Number of bytes of the log in an error.
const LOG_SHOWN: usize = 2_000;

pub(super) struct Server {
    program: PathBuf,
    dir: PathBuf,
    /// Environment variables that the child does not inherit, because the test has its own settings.
    hidden: Vec<String>,
    port: u16,
    base: watch::Sender<String>,
    http: reqwest::Client,
    child: Option<Child>,
}

/// The state that a start waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// It listens; recovery may still be in progress.
    Listening,
    /// It accepts work.
    Ready,
}

impl Server {
    /// A server that is not started yet. `dir`: directory for its data and log.
    pub(super) fn new(dir: &Path, hidden: Vec<String>) -> Result<Self> {
        let program =
            std::env::current_exe().context("the path of this program cannot be determined")?;
        let port = free_port()?;
        let http = http_client()?;
        Ok(Self {
            program,
            dir: dir.to_owned(),
            hidden,
            port,
            base: watch::Sender::new(base(port)),
            http,
            child: None,
        })
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The URL, which changes if another program took the port.
    pub(super) fn base(&self) -> watch::Receiver<String> {
        self.base.subscribe()
    }

    /// Starts the server and waits for the state.
    pub(super) async fn start(&mut self, until: Until) -> Result<()> {
        let started = async {
            for _ in 0..STARTS_MAX {
                self.spawn()?;
                if self.reaches(until).await? {
                    return Ok(());
                }
                self.port = free_port()?;
                self.base.send_replace(base(self.port));
            }
            bail!(
                "the server exits during startup; its log ends with:\n{}",
                self.log_end()
            )
        };
        let started = tokio::time::timeout(PATIENCE, started).await;
        started.with_context(|| format!("the server did not start in {} s", PATIENCE.as_secs()))?
    }

    fn spawn(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .context("the server's log cannot be written")?;
        let mut command = Command::new(&self.program);
        for name in &self.hidden {
            command.env_remove(name);
        }
        command
            .args(["serve", "--listen", &format!("127.0.0.1:{}", self.port)])
            .arg("--data-dir")
            .arg(self.data_dir())
            // Prevents the child from finding a settings file in the caller's directory.
            .current_dir(&self.dir)
            .env("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true")
            .env("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000000")
            .env("ERRAND_LOG__LEVEL", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C must reach only the test, which then ends the server.
            .process_group(0)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Returns `false` if the server exits by itself.
    async fn reaches(&mut self, until: Until) -> Result<bool> {
        loop {
            let Some(child) = &mut self.child else {
                return Ok(false);
            };
            if child.try_wait()?.is_some() {
                self.child = None;
                return Ok(false);
            }
            let come = match until {
                Until::Listening => TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
                    .await
                    .is_ok(),
                Until::Ready => {
                    let url = format!("{}/readyz", base(self.port));
                    let answer = self.http.get(url).timeout(LOOK_MAX).send().await;
                    answer.is_ok_and(|answer| answer.status().is_success())
                }
            };
            if come {
                return Ok(true);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Sends SIGKILL, so that no handler of the server runs.
    pub(super) async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.context("the server cannot be killed")?;
        }
        Ok(())
    }

    /// Sends SIGSTOP, waits, and sends SIGCONT.
    pub(super) async fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        tokio::time::sleep(PAUSE).await;
        self.resume()
    }

    /// Sends SIGCONT.
    pub(super) fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.as_ref().and_then(Child::id);
        let Some(id) = id
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
        else {
            return Ok(());
        };
        kill_process(id, signal).context("cannot send a signal to the server")
    }

    /// Waits until the server exits by itself, which should never happen, and returns the reason.
    pub(super) async fn ends(&mut self) -> anyhow::Error {
        let Some(child) = &mut self.child else {
            return std::future::pending().await;
        };
        let ended = match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        anyhow::anyhow!(
            "the server exited unexpectedly ({ended}); its log ends with:\n{}",
            self.log_end()
        )
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    fn log_end(&self) -> String {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_SHOWN);
        String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned()
    }
}

fn base(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}
