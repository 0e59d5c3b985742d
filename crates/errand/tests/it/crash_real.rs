//! The real server, killed again and again under load: no run lost, none done twice, no gap in a transcript, each
//! webhook event under one id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use errand_testkit::WebhookSink;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::engine_life::assert_well_formed;

const RUNS: usize = 300;
const KILLS: usize = 20;
const CLIENTS: usize = 8;
/// A bound, not a measure: a slow machine passes, one where a run is stuck does not.
const PATIENCE: Duration = Duration::from_secs(300);

struct Server {
    child: Child,
}

impl Server {
    async fn start(port: u16, dir: &Path, http: &Client) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_errand"))
            .args([
                "serve",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--data-dir",
            ])
            .arg(dir)
            .env("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true")
            .env("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000")
            .env("ERRAND_LOG__LEVEL", "warn")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let server = Self { child };
        let ready = async {
            while !http
                .get(format!("http://127.0.0.1:{port}/readyz"))
                .send()
                .await
                .is_ok_and(|a| a.status().is_success())
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready)
            .await
            .expect("a server that becomes ready");
        server
    }

    /// SIGKILL: no handler of ours runs.
    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

struct Caller {
    http: Client,
    url: String,
    key: String,
}

impl Caller {
    /// A call, repeated until a server answers. What is repeated carries an idempotency key.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        idempotency_key: Option<&str>,
    ) -> Value {
        loop {
            let mut request = self
                .http
                .request(method.clone(), format!("{}{path}", self.url))
                .bearer_auth(&self.key);
            if let Some(body) = &body {
                request = request.json(body);
            }
            if let Some(key) = idempotency_key {
                request = request.header("idempotency-key", key);
            }
            if let Ok(answer) = request.send().await {
                let status = answer.status();
                if let Ok(text) = answer.text().await {
                    if status.is_success() {
                        return serde_json::from_str(&text).unwrap();
                    }
                    assert!(status.is_server_error(), "{path}: {status} {text}");
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None, None).await
    }
}

fn config() -> Value {
    json!({"version": "v2", "data": {"playbook": {"steps": [
        {"tool": "write_file", "with": {"path": "/workspace/count.txt", "content": "count: 0"}},
        {"tool": "edit_file", "with": {"path": "/workspace/count.txt", "old": "count: 0", "new": "count: 1"}},
        {"wait": "20ms"},
        {"say": "half way"},
        {"tool": "read_file", "with": {"path": "/workspace/count.txt"}, "as": "text"},
        {"finish": "{{ text }}"}
    ]}}})
}

/// A server with an agent, and who calls it.
struct Scene {
    port: u16,
    data: PathBuf,
    server: Server,
    caller: Arc<Caller>,
    agent: Value,
}

impl Scene {
    async fn set(data: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let http = Client::builder().no_proxy().build().unwrap();
        let server = Server::start(port, &data, &http).await;
        let mut create = Command::new(env!("CARGO_BIN_EXE_errand"));
        create
            .args(["keys", "create", "--name", "crash", "--data-dir"])
            .arg(&data);
        let made = create.output().await.unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let url = format!("http://127.0.0.1:{port}");
        let caller = Arc::new(Caller { http, url, key });
        let body = json!({"name": "crash", "build": {"name": "crash", "config": config()}});
        let made = caller
            .call(Method::POST, "/v1/agents", Some(body), Some("agent"))
            .await;
        Self {
            port,
            data,
            server,
            caller,
            agent: made["agent"]["id"].clone(),
        }
    }

    /// Starts its share of the runs, each once; says how many were accepted.
    async fn start_runs(
        caller: Arc<Caller>,
        agent: Value,
        hook: String,
        client: usize,
        accepted: Arc<watch::Sender<usize>>,
    ) -> Vec<String> {
        let mut ids = Vec::new();
        for n in (client..RUNS).step_by(CLIENTS) {
            let body =
                json!({"agent_id": agent, "webhook_url": hook, "message": format!("run {n}")});
            let key = format!("run-{n}");
            let started = caller
                .call(Method::POST, "/v1/runs", Some(body), Some(&key))
                .await;
            ids.push(started["run"]["id"].as_str().unwrap().to_owned());
            accepted.send_modify(|n| *n += 1);
        }
        ids
    }

    /// Kills the server and starts it again, by how far the work has come, not by time.
    async fn kill_again_and_again(mut self, accepted: &watch::Sender<usize>) -> Self {
        for kill in 1..=KILLS {
            let mut seen = accepted.subscribe();
            let goal = kill * RUNS / (KILLS + 1);
            let come = tokio::time::timeout(PATIENCE, seen.wait_for(|n| *n >= goal)).await;
            come.expect("clients that go on").unwrap();
            self.server.kill().await;
            self.server = Server::start(self.port, &self.data, &self.caller.http).await;
        }
        self
    }

    async fn all_complete(&self) {
        let ended = async {
            while self.caller.get("/v1/runs?status=completed&limit=1").await["total"] != json!(RUNS)
            {
                let path = "/v1/runs?status=failed&status=interrupted&status=waiting&limit=5";
                let failed = self.caller.get(path).await;
                assert_eq!(failed["total"], 0, "{failed:#}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("every run comes to its end");
        let all = self.caller.get("/v1/runs?limit=1").await;
        assert_eq!(
            all["total"],
            json!(RUNS),
            "an idempotency key has one effect"
        );
    }

    async fn check_transcript(&self, run: &str) {
        let page = self
            .caller
            .get(&format!("/v1/runs/{run}/messages?limit=50"))
            .await;
        let messages = page["messages"].as_array().unwrap();
        assert_well_formed(messages);
        assert_eq!(messages.len(), 9, "{messages:#?}");
        let last = &messages.last().unwrap()["text_content"];
        assert_eq!(last, "count: 1", "the edit was done once");
        assert_no_gap(&self.caller, run).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_twenty_times_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let sink = WebhookSink::start().await;
    let scene = Scene::set(dir.path().join("data")).await;
    let accepted = Arc::new(watch::Sender::new(0_usize));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (caller, agent) = (Arc::clone(&scene.caller), scene.agent.clone());
        let (hook, accepted) = (sink.url().to_owned(), Arc::clone(&accepted));
        clients.spawn(Scene::start_runs(caller, agent, hook, client, accepted));
    }
    let scene = scene.kill_again_and_again(&accepted).await;
    let ids: BTreeSet<String> = clients.join_all().await.into_iter().flatten().collect();
    assert_eq!(ids.len(), RUNS);
    scene.all_complete().await;
    for run in &ids {
        scene.check_transcript(run).await;
    }
    check_webhooks(&sink, &ids).await;
    scene.server.kill().await;
}

/// The stream of an ended run numbers its events without a gap.
async fn assert_no_gap(caller: &Caller, run: &str) {
    let url = format!("{}/v1/runs/{run}/events", caller.url);
    let text = caller
        .http
        .get(url)
        .bearer_auth(&caller.key)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let numbers: Vec<u64> = text
        .lines()
        .filter_map(|l| l.strip_prefix("id:"))
        .filter_map(|n| n.trim().parse().ok())
        .collect();
    let mut expected = 0;
    for number in numbers {
        assert!(
            number == expected + 1 || number == expected,
            "{number} after {expected} in the events of {run}"
        );
        expected = number;
    }
    assert!(expected > 0);
}

async fn check_webhooks(sink: &WebhookSink, ids: &BTreeSet<String>) {
    let told = || -> BTreeMap<String, BTreeSet<String>> {
        let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for hook in sink.received() {
            let body = hook.json();
            assert_eq!(body["event"], "run_completed");
            told.entry(body["run_id"].as_str().unwrap().to_owned())
                .or_default()
                .insert(hook.id);
        }
        told
    };
    let all = async {
        let mut n = ids.len();
        while told().len() < ids.len() {
            n = sink.received().len().max(n);
            sink.until(n + 1).await;
        }
    };
    tokio::time::timeout(PATIENCE, all)
        .await
        .expect("a webhook for each run");
    for (run, events) in told() {
        assert!(ids.contains(&run));
        assert_eq!(
            events.len(),
            1,
            "one event, one id, however often it is delivered"
        );
    }
}
