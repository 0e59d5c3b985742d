//! A real server as a process that may refuse to start, lack a resource, or exit by itself.

use std::ffi::OsStr;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// An upper bound, not a measurement.
const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {} s", PATIENCE.as_secs()))
}

/// A program without the environment of the test.
pub(crate) fn bare(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The program on a data directory, with settings for servers in tests.
pub(crate) fn errand(dir: &Path, words: &[&str]) -> Command {
    let mut command = bare(env!("CARGO_BIN_EXE_errand"));
    surround(&mut command);
    command.args(words).arg("--data-dir").arg(dir);
    command
}

fn surround(command: &mut Command) {
    command
        .env("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true")
        .env("ERRAND_FETCH_URL__ALLOW_PRIVATE_NETWORKS", "true")
        .env("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000")
        .env("ERRAND_METRICS__LISTEN", "127.0.0.1:0");
}

/// The result of a command: its exit code and all of its output.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
    pub(crate) stdout: String,
}

impl Ended {
    /// Whether the output contains the words, ignoring line breaks in tables.
    pub(crate) fn says(&self, words: &str) -> bool {
        let joined = |text: &str| text.split_whitespace().collect::<String>();
        joined(&self.text).contains(&joined(words))
    }
}

pub(crate) async fn ended(command: &mut Command) -> Ended {
    let Output {
        status,
        stdout,
        stderr,
    } = within("a command that ends", command.output())
        .await
        .unwrap();
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    Ended {
        code: status.code(),
        text: format!("{stdout}{}", String::from_utf8_lossy(&stderr)),
        stdout,
    }
}

/// A process and its log, which is read continuously.
pub(crate) struct Logged {
    pub(crate) child: Child,
    log: Arc<Mutex<String>>,
    lines: watch::Receiver<usize>,
}

impl Logged {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let (told, lines) = watch::channel(0);
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            let mut from = stderr.lines();
            while let Ok(Some(line)) = from.next_line().await {
                kept.lock().unwrap().push_str(&format!("{line}\n"));
                told.send_modify(|n| *n += 1);
            }
        });
        Self { child, log, lines }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log contains a text. Returns `false` if the process exited first.
    pub(crate) async fn until(&mut self, text: &str) -> bool {
        let log = Arc::clone(&self.log);
        let seen = async {
            while !log.lock().unwrap().contains(text) {
                if self.lines.changed().await.is_err() {
                    return log.lock().unwrap().contains(text);
                }
            }
            true
        };
        within(&format!("a log with {text:?}"), seen).await
    }

    /// The word after a text in the log.
    pub(crate) fn after(&self, text: &str) -> String {
        let log = self.log();
        let rest = log.split(text).nth(1).unwrap_or_else(|| panic!("{log}"));
        rest.split_whitespace().next().unwrap().to_owned()
    }

    /// Waits until the server listens, and returns its address.
    pub(crate) async fn address(&mut self) -> String {
        assert!(self.until("listening on ").await, "{}", self.log());
        self.after("listening on ")
    }

    /// Waits until the process exits by itself, and returns the exit code.
    pub(crate) async fn ends(&mut self) -> Option<i32> {
        within("a process that ends", self.child.wait())
            .await
            .unwrap()
            .code()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("/bin/sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &id])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) async fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        self.ends().await
    }
}

/// A server and its log.
pub(crate) struct Process {
    logged: Logged,
    pub(crate) url: String,
    pub(crate) key: String,
    http: Client,
}

impl Deref for Process {
    type Target = Logged;

    fn deref(&self) -> &Logged {
        &self.logged
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Logged {
        &mut self.logged
    }
}

impl Process {
    /// Starts a server and creates a key.
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[], &[], None).await
    }

    /// `descriptors`: limit of open files.
    pub(crate) async fn start_with(
        dir: &Path,
        words: &[&str],
        settings: &[(&str, &str)],
        descriptors: Option<u32>,
    ) -> Self {
        let mut process = Self::begin(dir, words, settings, descriptors);
        process.url = process.address().await;
        let made = ended(&mut errand(dir, &["keys", "create", "--name", "test"])).await;
        assert_eq!(made.code, Some(0), "{}\n{}", made.text, process.log());
        process.key = made.stdout.trim().to_owned();
        process
    }

    /// Starts a server that may fail to start.
    pub(crate) fn begin(
        dir: &Path,
        words: &[&str],
        settings: &[(&str, &str)],
        descriptors: Option<u32>,
    ) -> Self {
        let mut command = bare("/bin/sh");
        surround(&mut command);
        let limit = descriptors.map_or_else(String::new, |most| format!("ulimit -n {most} && "));
        command
            .args(["-c", &format!("{limit}exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_errand"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .args(words)
            .envs(settings.iter().copied());
        errand_engine::net::install_crypto_provider();
        let http = Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        Self {
            logged: Logged::spawn(&mut command),
            url: String::new(),
            key: String::new(),
            http,
        }
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) async fn stop(self) -> Option<i32> {
        self.logged.stop().await
    }

    /// Status, the header `retry-after`, and the body.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Option<String>, Value) {
        let url = format!("{}{path}", self.url);
        let mut request = self.http.request(method, url).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = within("an answer", request.send()).await.unwrap();
        let status = answer.status().as_u16();
        let retry = answer.headers().get("retry-after");
        let retry = retry.map(|value| value.to_str().unwrap().to_owned());
        let text = answer.text().await.unwrap();
        (
            status,
            retry,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, body) = self.call(Method::GET, path, None).await;
        (status, body)
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, _, body) = self.call(Method::POST, path, Some(body)).await;
        assert!(
            matches!(status, 200 | 201),
            "{path}: {status} {body}\n{}",
            self.log()
        );
        body
    }

    pub(crate) async fn agent(&self, steps: Value) -> Value {
        let tools = json!({"read_file": "allow", "write_file": "allow", "list_files": "allow", "edit_file": "allow", "search_files": "allow", "run_command": "allow", "fetch_url": "allow"});
        let config =
            json!({"version": "v2", "data": {"tools": tools, "playbook": {"steps": steps}}});
        let body = json!({"name": "test", "build": {"name": "first", "config": config}});
        self.post("/v1/agents", body).await["agent"]["id"].clone()
    }

    pub(crate) async fn run(&self, body: Value) -> String {
        let started = self.post("/v1/runs", body).await;
        started["run"]["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a run satisfies a condition.
    pub(crate) async fn until_run(&self, run: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let is = async {
            loop {
                let (status, got) = self.get(&format!("/v1/runs/{run}")).await;
                if status == 200 && wanted(&got["run"]) {
                    return got["run"].clone();
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        within("a run as wanted", is).await
    }

    /// Waits until the response of a path satisfies a condition.
    pub(crate) async fn until_get(
        &self,
        path: &str,
        wanted: impl Fn(u16, &Value) -> bool,
    ) -> Value {
        let is = async {
            loop {
                let (status, got) = self.get(path).await;
                if wanted(status, &got) {
                    return got;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        within(&format!("{path} as wanted"), is).await
    }

    /// All metrics.
    pub(crate) async fn metrics(&self) -> String {
        let url = self.after("metrics on ");
        let answer = within("the figures", self.http.get(url).send())
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    }
}
