//! The real server as a child process: started, killed, paused.
//!
//! Promised: the child ends when this is dropped. Its log is a file in the test's directory.

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

/// How long a server is paused: longer than the first try of a call may take.
const PAUSE: Duration = Duration::from_millis(2_500);
/// The pause between two looks at a server that starts.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// How often a server is started that ends by itself: its port may have been taken by somebody else meanwhile.
const STARTS_MAX: u32 = 5;
/// How much of the log an error shows. Unit: bytes.
const LOG_SHOWN: usize = 2_000;

pub(super) struct Server {
    program: PathBuf,
    dir: PathBuf,
    /// Variables that are not handed on: the test has settings of its own.
    hidden: Vec<String>,
    port: u16,
    base: watch::Sender<String>,
    http: reqwest::Client,
    child: Option<Child>,
}

/// How far a start is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// It listens; it may still be at its recovery.
    Listening,
    /// It takes work.
    Ready,
}

impl Server {
    /// One that is not started yet. `dir`: where its data and its log are.
    pub(super) fn new(dir: &Path, hidden: Vec<String>) -> Result<Self> {
        let program = std::env::current_exe().context("this program's own file is not known")?;
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

    /// The address, which changes where the port was taken by somebody else.
    pub(super) fn base(&self) -> watch::Receiver<String> {
        self.base.subscribe()
    }

    /// Starts it, and waits until it has come that far.
    pub(super) async fn start(&mut self, until: Until) -> Result<()> {
        let started = async {
            for _ in 0..STARTS_MAX {
                self.spawn()?;
                if self.comes_to(until).await? {
                    return Ok(());
                }
                self.port = free_port()?;
                self.base.send_replace(base(self.port));
            }
            bail!(
                "the server ends by itself at its start; its log ends with:\n{}",
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
            // No settings file of somebody else.
            .current_dir(&self.dir)
            .env("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true")
            .env("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000000")
            .env("ERRAND_LOG__LEVEL", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the test alone, which then ends the server.
            .process_group(0)
            .kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// False where it ended by itself.
    async fn comes_to(&mut self, until: Until) -> Result<bool> {
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

    /// SIGKILL: no handler of the server runs.
    pub(super) async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.context("the server cannot be killed")?;
        }
        Ok(())
    }

    /// SIGSTOP, a pause, SIGCONT.
    pub(super) async fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        tokio::time::sleep(PAUSE).await;
        self.resume()
    }

    /// SIGCONT.
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
        kill_process(id, signal).context("the server cannot be sent a signal")
    }

    /// Until it ends by itself, which it never should: why.
    pub(super) async fn ends(&mut self) -> anyhow::Error {
        let Some(child) = &mut self.child else {
            return std::future::pending().await;
        };
        let ended = match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        anyhow::anyhow!(
            "the server ended by itself ({ended}); its log ends with:\n{}",
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
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port can be had")?;
    Ok(listener.local_addr()?.port())
}
