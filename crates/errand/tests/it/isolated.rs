//! `run_command` in real isolation. These tests run as root and as an ordinary user (`scripts/test` does both), and
//! require bubblewrap.

mod bounds;
mod commands;
mod ends;
mod hostile;
mod off;
mod root;

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use errand_testkit::{Team, TestApp, TestOptions};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::process::{Logged, bare, ended};

/// An upper bound, not a measurement.
const PATIENCE: Duration = Duration::from_secs(120);

/// The isolating program: the one built with these tests, or a copy that this user can access.
fn program() -> PathBuf {
    std::env::var_os("TEST_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_errand").into(), PathBuf::from)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An app with real commands, a team and a sandbox.
struct Bench {
    app: TestApp,
    team: Team,
    sandbox: String,
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(settings: &[(&'static str, &str)]) -> Self {
        let settings = settings
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let app = TestApp::start_with(TestOptions {
            settings: settings.collect(),
            helper: Some(program()),
            ..TestOptions::default()
        })
        .await;
        let team = app.team("acme").await;
        let sandbox = app.sandbox(&team).await;
        Self { app, team, sandbox }
    }

    /// Starts a run of these steps on the sandbox, and returns its ID.
    async fn begin(&self, steps: Value) -> String {
        let agent = self.app.playbook(&self.team, steps).await;
        let body = json!({"agent_id": agent, "sandbox_id": self.sandbox});
        self.app.run(&self.team, body).await
    }

    /// Waits until a run has ended or asks, and returns it.
    async fn ended(&self, run: &str) -> Value {
        let path = format!("/v1/runs/{run}?wait_s=60");
        let ended = async {
            loop {
                let found = self.app.get(&self.team.key, &path).await.expect(200);
                let status = found["run"]["status"].as_str().unwrap().to_owned();
                if !matches!(status.as_str(), "pending" | "starting" | "running") {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("a run that ends")
    }

    /// The results of a run's calls: what the tool returned, or the error.
    async fn results(&self, run: &str) -> Vec<Result<Value, String>> {
        let messages = self.app.messages(&self.team, run).await;
        let results = messages
            .iter()
            .filter_map(|message| message.get("tool_result"));
        results
            .map(|result| match result["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => Ok(result["result"].clone()),
            })
            .collect()
    }

    /// Runs one command to its end.
    async fn call(&self, arguments: Value) -> Result<Value, String> {
        let steps = json!([
            {"tool": "run_command", "with": arguments, "on_error": "continue"},
            {"finish": "done"}
        ]);
        let run = self.begin(steps).await;
        self.ended(&run).await;
        let mut results = self.results(&run).await;
        assert_eq!(results.len(), 1, "{results:?}");
        results.remove(0)
    }

    /// Runs a command that must succeed, and returns its standard output.
    async fn stdout(&self, command: &str) -> String {
        let result = self.call(json!({"command": command})).await.unwrap();
        assert_eq!(result["exit_code"], 0, "{result:#}");
        result["stdout"].as_str().unwrap().to_owned()
    }

    async fn put(&self, path: &str, bytes: impl Into<axum::body::Body>) {
        let reply = self
            .app
            .upload(&self.team.key, &self.sandbox, path, bytes)
            .await;
        assert_eq!(
            reply.status,
            201,
            "{}",
            String::from_utf8_lossy(&reply.bytes)
        );
    }

    /// Waits until the sandbox contains a file with this name.
    async fn until_there(&self, name: &str) {
        let path = self.app.sandbox_dir(&self.sandbox).join(name);
        let there = async {
            while !path.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, there)
            .await
            .expect("a command that begins");
    }

    async fn finish(self) {
        self.app.finish().await;
    }
}

/// Processes whose arguments contain a text.
fn processes_with(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok())
        })
        .filter_map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(text).then_some(line)
        })
        .collect()
}

/// Waits until no process with this text is left.
async fn until_gone(text: &str) {
    let gone = async {
        while !processes_with(text).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let result = tokio::time::timeout(PATIENCE, gone).await;
    assert!(result.is_ok(), "left: {:?}", processes_with(text));
}

/// The real program as a server, with a key and its environment.
struct Real {
    logged: Logged,
    url: String,
    key: String,
}

impl Deref for Real {
    type Target = Logged;

    fn deref(&self) -> &Logged {
        &self.logged
    }
}

impl DerefMut for Real {
    fn deref_mut(&mut self) -> &mut Logged {
        &mut self.logged
    }
}

impl Real {
    async fn start(dir: &Path, env: &[(&str, &str)]) -> Self {
        errand_engine::net::install_crypto_provider();
        let mut command = Self::program(env);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir);
        let mut logged = Logged::spawn(&mut command);
        let url = logged.address().await;
        let mut command = Self::program(env);
        command
            .args(["keys", "create", "--name", "test", "--data-dir"])
            .arg(dir);
        let key = ended(&mut command).await.stdout.trim().to_owned();
        Self { logged, url, key }
    }

    fn program(env: &[(&str, &str)]) -> Command {
        let mut command = bare(program());
        command.envs(env.iter().copied());
        command
    }

    async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = tokio::time::timeout(PATIENCE, request.send())
            .await
            .unwrap()
            .unwrap();
        let status = reply.status();
        let body: Value = reply.json().await.unwrap();
        assert!(status.is_success(), "{status}: {body:#}");
        body
    }

    /// Starts a run of one command, and returns its ID.
    async fn begin(&self, command: &str) -> String {
        let config = json!({"version": "v2", "data": {"tools": {"run_command": "allow"}, "playbook": {"steps": [
            {"tool": "run_command", "with": {"command": command}, "on_error": "continue", "as": "r"},
            {"finish": "{{ r | tojson }}"}
        ]}}});
        let body = json!({"name": "test", "build": {"name": "first", "config": config}});
        let agent = self
            .call(reqwest::Method::POST, "/v1/agents", Some(body))
            .await;
        let body = json!({"agent_id": agent["agent"]["id"]});
        let run = self
            .call(reqwest::Method::POST, "/v1/runs", Some(body))
            .await;
        run["run"]["id"].as_str().unwrap().to_owned()
    }

    /// The last message of a run that has ended.
    async fn last_words(&self, run: &str) -> String {
        let path = format!("/v1/runs/{run}?wait_s=60");
        let ended = self.call(reqwest::Method::GET, &path, None).await;
        assert_eq!(ended["run"]["status"], "completed", "{ended:#}");
        let path = format!("/v1/runs/{run}/messages?limit=50");
        let messages = self.call(reqwest::Method::GET, &path, None).await;
        let last = messages["messages"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .clone();
        last["text_content"].as_str().unwrap().to_owned()
    }

    /// The entry for `run_command` in `GET /v1/tools`.
    async fn tool(&self) -> Value {
        let tools = self.call(reqwest::Method::GET, "/v1/tools", None).await;
        let tools = tools["tools"].as_array().unwrap().clone();
        tools
            .into_iter()
            .find(|tool| tool["name"] == "run_command")
            .unwrap()
    }
}
