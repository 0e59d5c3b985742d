//! The real server on a full disk: it refuses what it cannot store, keeps what it has accepted, and continues by itself
//! once there is room.
//!
//! The disk is a small tmpfs in the server's own mount namespace, so it disappears with the server. From outside, it is
//! accessible through `/proc/PID/root`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use errand_testkit::WebhookSink;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::engine_life::assert_well_formed;

/// An upper bound, not a measurement.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const TALLY: &str = "/workspace/tally.txt";
const KIB: usize = 1024;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {} s", PATIENCE.as_secs()))
}

/// Sets up the environment of a server process.
fn surround(command: &mut Command) {
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true")
        .env("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000")
        .env("ERRAND_METRICS__LISTEN", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
}

/// Collects the standard error of a process, and counts its lines.
fn hear(child: &mut Child) -> (Arc<Mutex<String>>, watch::Receiver<usize>) {
    let from = BufReader::new(child.stderr.take().unwrap());
    let log = Arc::new(Mutex::new(String::new()));
    let (told, lines) = watch::channel(0);
    let kept = Arc::clone(&log);
    tokio::spawn(async move {
        let mut from = from.lines();
        while let Ok(Some(line)) = from.next_line().await {
            kept.lock().unwrap().push_str(&format!("{line}\n"));
            told.send_modify(|n| *n += 1);
        }
    });
    (log, lines)
}

/// A program that becomes a server on demand.
struct Next {
    child: Child,
    log: Arc<Mutex<String>>,
    lines: watch::Receiver<usize>,
}

/// A server on its own small disk.
struct Server {
    child: Child,
    dir: TempDir,
    http: Client,
    url: String,
    key: String,
    log: Arc<Mutex<String>>,
    lines: watch::Receiver<usize>,
}

impl Server {
    async fn start() -> Self {
        errand_engine::net::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let mut command = Command::new("unshare");
        if !is_root {
            command.args(["--user", "--map-root-user"]);
        }
        let script = "mount -t tmpfs -o size=48m,mode=700 tmpfs \"$1\" && echo mounted >&2 && \
                      exec \"$0\" serve --listen 127.0.0.1:0 --data-dir \"$1\"";
        command
            .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_errand")])
            .arg(&data)
            .stdin(Stdio::null());
        surround(&mut command);
        let needs = "this test needs `unshare` (util-linux) and the right to mount a tmpfs in a namespace of its own: \
                     run it as root, or where unprivileged user namespaces are allowed";
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{needs} ({error})"));
        let (log, lines) = hear(&mut child);
        let http = Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        let mut server = Self {
            child,
            dir,
            http,
            url: String::new(),
            key: String::new(),
            log,
            lines,
        };
        let ended = server.until("listening on ", 0).await;
        let log = server.log();
        assert!(log.contains("mounted"), "{needs}:\n{log}");
        assert!(!ended, "the server ended:\n{log}");
        server.find();
        server.key = server.make_key().await;
        server
    }

    /// Reads the address from the server's log.
    fn find(&mut self) {
        let log = self.log();
        let address = log.split("listening on ").nth(1).unwrap();
        self.url = address.split_whitespace().next().unwrap().to_owned();
    }

    /// Kills the server, and starts another one on the same disk.
    async fn kill_and_start(&mut self) {
        let next = self.stand_by().await;
        self.kill(next).await;
        self.go_on().await;
    }

    /// A program that waits in the server's namespace, which keeps the disk alive, to become the next server.
    async fn stand_by(&mut self) -> Next {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.child.id().unwrap().to_string(), "--mount"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        let script =
            "echo waits >&2; read -r _ && exec \"$0\" serve --listen 127.0.0.1:0 --data-dir \"$1\"";
        command
            .args(["sh", "-c", script, env!("CARGO_BIN_EXE_errand")])
            .arg(self.dir.path().join("data"))
            .stdin(Stdio::piped());
        surround(&mut command);
        let mut child = command.spawn().unwrap();
        let (log, mut lines) = hear(&mut child);
        let waits = async {
            while !log.lock().unwrap().contains("waits") {
                lines.changed().await.expect("a program that waits");
            }
        };
        within("a program that waits", waits).await;
        Next { child, log, lines }
    }

    /// Kills the server. The next one waits.
    async fn kill(&mut self, next: Next) {
        self.child.kill().await.unwrap();
        (self.child, self.log, self.lines) = (next.child, next.log, next.lines);
    }

    /// Starts the next server.
    async fn go_on(&mut self) {
        let mut go = self.child.stdin.take().unwrap();
        go.write_all(b"go\n").await.unwrap();
    }

    async fn make_key(&self) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_errand"));
        command
            .env_clear()
            .args(["keys", "create", "--name", "test", "--data-dir"])
            .arg(self.disk());
        let made = within("a key", command.output()).await.unwrap();
        let errors = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{errors}\n{}", self.log());
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn times(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until the log contains a text more than this many times. Returns `true` if the server exited before that.
    async fn until(&mut self, text: &str, more_than: usize) -> bool {
        let log = Arc::clone(&self.log);
        let seen = async {
            while log.lock().unwrap().matches(text).count() <= more_than {
                if self.lines.changed().await.is_err() {
                    return true;
                }
            }
            false
        };
        within(&format!("a log with {text:?}"), seen).await
    }

    /// The data directory as seen from outside.
    fn disk(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.child.id().unwrap());
        let data = self.dir.path().join("data");
        Path::new(&root).join(data.strip_prefix("/").unwrap())
    }

    /// Fills the disk except for this many bytes.
    fn fill(&self, but: usize) {
        let path = self.disk().join("ballast");
        let mut file = std::fs::File::create(path).unwrap();
        for piece in [64 * KIB, 4 * KIB, 1] {
            while file.write_all(&vec![0; piece]).is_ok() {}
        }
        let there = usize::try_from(file.metadata().unwrap().len()).unwrap();
        file.set_len(there.saturating_sub(but) as u64).unwrap();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.disk().join("ballast")).unwrap();
    }

    /// Number of writes that found no room.
    async fn refusals(&self) -> u64 {
        let log = self.log();
        let url = log.split("metrics on ").nth(1).unwrap();
        let url = url.split_whitespace().next().unwrap();
        let figures = self.http.get(url).send().await.unwrap();
        let figures = figures.text().await.unwrap();
        let name = "errand_store_refusals_total{trouble=\"full\"} ";
        let value = figures.split(name).nth(1).unwrap();
        value.lines().next().unwrap().parse().unwrap()
    }

    /// All files of sandboxes, including those that the API hides.
    fn sandbox_files(&self) -> Vec<PathBuf> {
        let (mut files, mut left) = (Vec::new(), vec![self.disk().join("sandboxes")]);
        while let Some(dir) = left.pop() {
            // The directory does not exist before the first sandbox is used.
            let Ok(entries) = std::fs::read_dir(dir) else {
                continue;
            };
            for entry in entries {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    left.push(entry.path());
                } else {
                    files.push(entry.path());
                }
            }
        }
        files.sort();
        files
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.url);
        self.http.request(method, url).bearer_auth(&self.key)
    }

    async fn send(&self, request: RequestBuilder) -> (u16, Value) {
        let answer = within("an answer", request.send()).await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(self.request(Method::GET, path)).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn try_post(&self, path: &str, body: &Value, key: &str) -> (u16, Value) {
        let request = self.request(Method::POST, path).json(body);
        self.send(request.header("idempotency-key", key)).await
    }

    async fn post(&self, path: &str, body: Value, key: &str) -> Value {
        let (status, body) = self.try_post(path, &body, key).await;
        assert!(matches!(status, 200 | 201), "{path}: {status} {body}");
        body
    }

    async fn agent(&self, name: &str, steps: Value) -> Value {
        let config = json!({"version": "v2", "data": {"playbook": {"steps": steps}}});
        let body = json!({"name": name, "build": {"name": name, "config": config}});
        self.post("/v1/agents", body, name).await["agent"]["id"].clone()
    }

    async fn run(&self, body: Value, key: &str) -> String {
        let started = self.post("/v1/runs", body, key).await;
        started["run"]["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a run satisfies a condition.
    async fn is(&self, run: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let is = async {
            loop {
                let got = self.get(&format!("/v1/runs/{run}")).await;
                if wanted(&got) {
                    return got;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        within(&format!("a run that is {what}"), is).await
    }

    async fn ends(&self, run: &str) -> Value {
        let ended = ["completed", "failed", "interrupted"];
        let has_ended = |got: &Value| ended.contains(&got["run"]["status"].as_str().unwrap());
        self.is(run, "ended", has_ended).await["run"].clone()
    }

    async fn messages(&self, run: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let path = format!("/v1/runs/{run}/messages?limit=50&offset={}", all.len());
            let page = self.get(&path).await;
            let page = page["messages"].as_array().unwrap();
            all.extend(page.iter().cloned());
            if page.len() < 50 {
                return all;
            }
        }
    }

    /// Asserts that a run has completed, edited its file once, and has nothing twice in its transcript.
    async fn completed_once(&self, run: &str, tally: &str) {
        let ended = self.ends(run).await;
        assert_eq!(ended["status"], "completed", "{ended:#}");
        let messages = self.messages(run).await;
        assert_well_formed(&messages);
        assert_eq!(messages.last().unwrap()["text_content"], tally);
        let sandbox = ended["sandbox_id"].as_str().unwrap();
        let path = format!("/v1/sandboxes/{sandbox}/files/content?path={TALLY}");
        let file = self.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(file.text().await.unwrap(), tally);
    }

    /// Sends SIGTERM and returns the exit code.
    async fn stop(mut self) -> Option<i32> {
        let id = self.child.id().unwrap().to_string();
        let told = std::process::Command::new("/bin/sh")
            .args(["-c", "kill -s TERM \"$0\"", &id])
            .status();
        assert!(told.unwrap().success());
        let ended = within("a server that stops", self.child.wait()).await;
        ended.unwrap().code()
    }
}

#[track_caller]
fn assert_no_room((status, body): (u16, Value)) {
    assert_eq!(status, 503, "{body}");
    assert_eq!(body["error"], "unavailable");
    let message = body["message"].as_str().unwrap();
    assert!(message.contains("disk"), "it is said why: {message}");
}

fn write() -> Value {
    json!({"tool": "write_file", "with": {"path": TALLY, "content": "end"}})
}

fn edit(word: &str) -> Value {
    json!({"tool": "edit_file", "with": {"path": TALLY, "old": "end", "new": format!("{word} end")}})
}

fn read() -> Value {
    json!({"tool": "read_file", "with": {"path": TALLY}, "as": "text"})
}

fn finish() -> Value {
    json!({"finish": "{{ text }}"})
}

/// A run that waits for its timer while the disk is full: the first one that is caught in this state.
async fn asleep_when_full(server: &Server, hook: &str) -> (String, Vec<String>) {
    let mut earlier = Vec::new();
    for seconds in [1, 5, 25, 60] {
        let name = format!("sleeps {seconds}");
        let wait = json!({"wait": format!("{seconds}s")});
        let steps = json!([write(), wait, edit("a"), read(), finish()]);
        let agent = server.agent(&name, steps).await;
        let body = json!({"agent_id": agent, "webhook_url": hook});
        let run = server.run(body, &name).await;
        let sleeps = |got: &Value| {
            got["run"]["waiting_on"]["kind"] == "timer" || got["run"]["status"] == "completed"
        };
        server.is(&run, "at its timer", sleeps).await;
        server.fill(0);
        if server.get(&format!("/v1/runs/{run}")).await["run"]["status"] == "running" {
            return (run, earlier);
        }
        // The machine was slower than the timer.
        server.make_room();
        earlier.push(run);
    }
    panic!("no run could be caught at its timer");
}

#[tokio::test]
async fn a_full_disk_refuses_new_work_and_recovers_by_itself() {
    let mut server = Server::start().await;
    let sink = WebhookSink::start().await;
    let approve = json!({"approve": {"title": "Go on?"}});
    let agent = server
        .agent(
            "asks",
            json!([write(), approve, edit("a"), read(), finish()]),
        )
        .await;
    let start = json!({"agent_id": agent, "webhook_url": sink.url()});
    let waiting = server.run(start.clone(), "waiting").await;
    let asks = |got: &Value| got["pending_human_request"].is_object();
    let got = server.is(&waiting, "waiting", asks).await;
    let request = got["pending_human_request"]["id"].as_str().unwrap();
    let respond = format!("/v1/runs/{waiting}/human-requests/{request}/respond");
    let made = server.post("/v1/sandboxes", json!({}), "sandbox").await;
    let sandbox = made["sandbox_id"].as_str().unwrap().to_owned();
    sink.until(1).await;

    let (asleep, earlier) = asleep_when_full(&server, sink.url()).await;
    let files = server.sandbox_files();
    let before = server.messages(&waiting).await;
    for _ in 0..3 {
        assert_no_room(server.try_post("/v1/runs", &start, "late").await);
        assert_no_room(
            server
                .try_post(&respond, &json!({"approved": true}), "answer")
                .await,
        );
    }
    // Accepted data still exists and is readable.
    assert_eq!(server.messages(&waiting).await, before);
    let runs = server.get("/v1/runs").await;
    assert_eq!(runs["total"], 2 + earlier.len());
    let (status, body) = server.send(server.request(Method::GET, "/readyz")).await;
    assert_no_room((status, body));
    let said = server.log();
    let said = said.lines().filter(|line| line.contains("ERROR"));
    assert_eq!(said.count(), 1, "it is logged once:\n{}", server.log());

    // A file that finds no room leaves nothing.
    let path = format!("/v1/sandboxes/{sandbox}/files");
    let body = vec![b'x'; 300 * KIB];
    let direct = server.request(Method::POST, &format!("{path}?path=direct"));
    assert_no_room(server.send(direct.body(body.clone())).await);
    let urls = format!("/v1/sandboxes/{sandbox}/upload-urls");
    let url = server.request(Method::POST, &urls);
    let (status, made) = server.send(url.json(&json!({"path": "by-url"}))).await;
    assert_eq!(status, 200, "an upload URL is signed, not stored: {made}");
    let upload = server.http.put(made["upload_url"].as_str().unwrap());
    assert_no_room(server.send(upload.body(body.clone())).await);
    assert_eq!(server.get(&path).await, json!({"files": []}));
    assert_eq!(server.sandbox_files(), files, "nor anything half written");

    // The timer expires: the run cannot continue, which is retried.
    let refused = server.refusals().await;
    let more = async {
        while server.refusals().await < refused + 3 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    within("writes that are tried again", more).await;
    assert!(server.child.try_wait().unwrap().is_none(), "it lives");
    let got = server.get(&format!("/v1/runs/{asleep}")).await;
    assert_eq!(got["run"]["status"], "running", "{got:#}");

    server.make_room();
    let ready = async {
        while server.send(server.request(Method::GET, "/readyz")).await.0 != 200 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    within("a server that is ready", ready).await;
    let late = server.run(start, "late").await;
    server.completed_once(&asleep, "a end").await;
    server
        .post(&respond, json!({"approved": true}), "answer")
        .await;
    server.completed_once(&waiting, "a end").await;
    let got = server.is(&late, "waiting", asks).await;
    let request = got["pending_human_request"]["id"].as_str().unwrap();
    let respond = format!("/v1/runs/{late}/human-requests/{request}/respond");
    server
        .post(&respond, json!({"approved": true}), "late answer")
        .await;
    server.completed_once(&late, "a end").await;
    let total = 3 + earlier.len();
    assert_eq!(
        server.get("/v1/runs").await["total"],
        total,
        "none is lost, none is there twice"
    );
    let again = server.request(Method::POST, &format!("{path}?path=direct"));
    assert_eq!(server.send(again.body(body)).await.0, 201);
    // A request and an end for two runs, an end for the others; repetitions have the same ID.
    sink.until(total + 2).await;
    let ids: std::collections::BTreeSet<_> = sink.received().into_iter().map(|r| r.id).collect();
    assert_eq!(ids.len(), total + 2);
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_tool_that_finds_no_room_fails_its_call_and_a_retry_goes_on() {
    let server = Server::start().await;
    let big = json!({"tool": "edit_file", "with": {"path": "/workspace/big", "old": "x", "new": "xxxx", "all": true}});
    let approve = json!({"approve": {"title": "Go on?"}});
    let steps = json!([
        write(),
        edit("a"),
        approve,
        big,
        edit("b"),
        read(),
        finish()
    ]);
    let agent = server.agent("grows", steps).await;
    let made = server.post("/v1/sandboxes", json!({}), "sandbox").await;
    let sandbox = made["sandbox_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sandboxes/{sandbox}/files?path=big");
    let upload = server.request(Method::POST, &path);
    assert_eq!(server.send(upload.body(vec![b'x'; 700 * KIB])).await.0, 201);
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    let run = server.run(body, "run").await;
    let asks = |got: &Value| got["pending_human_request"].is_object();
    let got = server.is(&run, "waiting", asks).await;
    let request = got["pending_human_request"]["id"].as_str().unwrap();

    // Room for the server's records, but not for the file.
    server.fill(1024 * KIB);
    let respond = format!("/v1/runs/{run}/human-requests/{request}/respond");
    server
        .post(&respond, json!({"approved": true}), "answer")
        .await;
    let failed = server.ends(&run).await;
    assert_eq!(failed["status"], "failed", "{failed:#}");
    let why = failed["error"]["message"].as_str().unwrap();
    assert!(why.contains("no_space"), "{failed:#}");
    let content = format!("/v1/sandboxes/{sandbox}/files/content?path=big");
    let there = server.request(Method::GET, &content).send().await.unwrap();
    let there = there.bytes().await.unwrap();
    assert_eq!(there.len(), 700 * KIB, "the file is as it was");

    server.make_room();
    server
        .post(&format!("/v1/runs/{run}/retry"), json!({}), "retry")
        .await;
    server.completed_once(&run, "a b end").await;
    let there = server.request(Method::GET, &content).send().await.unwrap();
    assert_eq!(
        there.bytes().await.unwrap().len(),
        4 * 700 * KIB,
        "edited once"
    );
    assert_eq!(server.stop().await, Some(0));
}

/// Number of concurrent runs, and of edits per run.
const BUSY: usize = 4;
const EDITS: usize = 60;

/// An agent whose runs work for a while, and the file content that each run leaves if nothing is lost or done twice.
async fn busy_agent(server: &Server) -> (Value, String) {
    let numbers: Vec<usize> = (0..EDITS).collect();
    let each = json!({"for_each": &numbers, "steps": [edit("{{ item }}")]});
    let steps = json!([write(), each, read(), finish()]);
    let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
    let tally = format!("{} end", numbers.join(" "));
    (server.agent("busy", steps).await, tally)
}

/// Starts runs and fills the disk while they work. Returns the runs, and `false` if all had ended before.
async fn busy_when_full(server: &Server, agent: &Value, round: usize) -> (Vec<String>, bool) {
    let mut runs = Vec::new();
    for n in 0..BUSY {
        let key = format!("busy {round} {n}");
        runs.push(server.run(json!({"agent_id": agent}), &key).await);
    }
    let has_begun = async {
        while server.messages(&runs[0]).await.len() < 6 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    within("a run at work", has_begun).await;
    server.fill(0);
    let mut at_work = false;
    for run in &runs {
        let got = server.get(&format!("/v1/runs/{run}")).await;
        at_work |= got["run"]["completed_at"].is_null();
    }
    (runs, at_work)
}

#[tokio::test]
async fn active_runs_survive_a_disk_that_fills() {
    let mut server = Server::start().await;
    let (agent, tally) = busy_agent(&server).await;
    let mut all = Vec::new();
    let mut was_at_work = false;
    for round in 0..5 {
        let (runs, at_work) = busy_when_full(&server, &agent, round).await;
        all.extend(runs);
        if at_work {
            assert!(!server.until("the disk is full", 0).await);
            was_at_work = true;
        }
        server.make_room();
        if was_at_work {
            break;
        }
    }
    assert!(was_at_work, "no run could be caught at its work");
    for run in &all {
        let ended = server.ends(run).await;
        if ended["status"] == "failed" {
            // The file found no room, but its record did: the run reports it, and continues from there when asked to.
            let why = ended["error"]["message"].as_str().unwrap();
            assert!(
                why.contains("no_space") || why.contains("no space"),
                "{ended:#}"
            );
            let path = format!("/v1/runs/{run}/retry");
            server.post(&path, json!({}), &format!("retry {run}")).await;
        }
        server.completed_once(run, &tally).await;
    }
    assert_eq!(server.get("/v1/runs").await["total"], all.len());
    assert!(
        server.child.try_wait().unwrap().is_none(),
        "it lived through it"
    );
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_start_on_a_full_disk_waits_for_room_and_goes_on() {
    let mut server = Server::start().await;
    let (agent, tally) = busy_agent(&server).await;
    let mut all = Vec::new();
    for round in 0..5 {
        let (runs, at_work) = busy_when_full(&server, &agent, round).await;
        all.extend(runs);
        if at_work {
            break;
        }
        server.make_room();
    }
    // The resources of its runs must be released, but there is no room to record that.
    server.kill_and_start().await;
    assert!(!server.until("the store cannot take a write", 0).await);
    assert_eq!(server.times("listening on "), 0);
    server.make_room();
    assert!(!server.until("listening on ", 0).await, "{}", server.log());
    server.find();
    for run in &all {
        let ended = server.ends(run).await;
        if ended["status"] == "failed" {
            let path = format!("/v1/runs/{run}/retry");
            server.post(&path, json!({}), &format!("retry {run}")).await;
        }
        server.completed_once(run, &tally).await;
    }
    assert_eq!(server.get("/v1/runs").await["total"], all.len());
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_run_is_stopped_on_a_full_disk_and_stays_stopped() {
    let mut server = Server::start().await;
    let approve = json!({"approve": {"title": "Go on?"}});
    let agent = server.agent("asks", json!([approve, finish()])).await;
    let start = json!({"agent_id": agent});
    let mut runs = Vec::new();
    for n in 0..5 {
        runs.push(server.run(start.clone(), &format!("run {n}")).await);
    }
    let asks = |got: &Value| got["pending_human_request"].is_object();
    for run in &runs {
        server.is(run, "waiting", asks).await;
    }
    server.fill(0);
    assert_no_room(server.try_post("/v1/runs", &start, "late").await);
    for run in &runs {
        let path = format!("/v1/runs/{run}/stop");
        server.post(&path, json!({}), &format!("stop {run}")).await;
        let got = server.get(&format!("/v1/runs/{run}")).await;
        assert_eq!(got["run"]["status"], "interrupted", "{got:#}");
        // The space that was freed for the stop is reserved for stops.
        assert_no_room(server.try_post("/v1/runs", &start, "late").await);
    }
    server.kill_and_start().await;
    server.make_room();
    assert!(!server.until("listening on ", 0).await, "{}", server.log());
    server.find();
    for run in &runs {
        let got = server.get(&format!("/v1/runs/{run}")).await;
        assert_eq!(got["run"]["status"], "interrupted", "{got:#}");
    }
    server.run(start, "late").await;
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_kill_while_a_stop_uses_the_reserve_leaves_no_half_stop() {
    let mut server = Server::start().await;
    let approve = json!({"approve": {"title": "Go on?"}});
    let agent = server.agent("asks", json!([approve, finish()])).await;
    let start = json!({"agent_id": agent});
    let asks = |got: &Value| got["pending_human_request"].is_object();
    for round in 0..3 {
        let run = server.run(start.clone(), &format!("run {round}")).await;
        server.is(&run, "waiting", asks).await;
        let next = server.stand_by().await;
        server.fill(0);
        assert_no_room(server.try_post("/v1/runs", &start, "late").await);
        let reserve = server.disk().join("errand.reserve");
        let path = format!("/v1/runs/{run}/stop");
        let (body, key) = (json!({}), format!("stop {round}"));
        let given_up = async {
            while reserve.exists() {
                tokio::task::yield_now().await;
            }
        };
        // From here on, the commit is somewhere between its start and its end.
        tokio::select! {
            _ = server.try_post(&path, &body, &key) => {}
            () = within("a reserve that is given up", given_up) => {}
        }
        server.kill(next).await;
        server.make_room();
        server.go_on().await;
        assert!(!server.until("listening on ", 0).await, "{}", server.log());
        server.find();
        let reserve = server.disk().join("errand.reserve");
        assert_eq!(std::fs::metadata(reserve).unwrap().len(), 4 << 20);
        let got = server.get(&format!("/v1/runs/{run}")).await;
        if got["run"]["status"] == "waiting" {
            assert!(asks(&got), "{got:#}");
            assert!(got["run"]["completed_at"].is_null(), "{got:#}");
            server.post(&path, body, &key).await;
        } else {
            assert!(!asks(&got), "{got:#}");
            assert!(got["run"]["completed_at"].is_string(), "{got:#}");
        }
        let got = server.get(&format!("/v1/runs/{run}")).await;
        assert_eq!(got["run"]["status"], "interrupted", "{got:#}");
    }
    server.run(start, "late").await;
    assert_eq!(server.stop().await, Some(0));
}
