//! The real program as a process: signals, sockets, certificates, the command line, the example and the demo.

use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use errand_testkit::WebhookSink;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::process::{Logged, bare, within};

const MIB: usize = 1024 * 1024;

/// The program without the environment of the test.
fn errand() -> Command {
    bare(env!("CARGO_BIN_EXE_errand"))
}

async fn output(command: &mut Command) -> Output {
    within("a command that ends", command.output())
        .await
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server with the default settings, and its log.
pub(crate) struct Server {
    logged: Logged,
    pub(crate) url: String,
}

impl Deref for Server {
    type Target = Logged;

    fn deref(&self) -> &Logged {
        &self.logged
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Logged {
        &mut self.logged
    }
}

impl Server {
    async fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[]).await
    }

    pub(crate) async fn start_with(dir: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = errand();
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .envs(settings.iter().copied());
        let mut logged = Logged::spawn(&mut command);
        let url = logged.address().await;
        Self { logged, url }
    }

    /// Waits until the log contains a text.
    async fn until(&mut self, wanted: &str) {
        assert!(
            self.logged.until(wanted).await,
            "the server ended:\n{}",
            self.log()
        );
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) async fn stop(self) -> Option<i32> {
        self.logged.stop().await
    }

    pub(crate) fn address(&self) -> &str {
        self.url.split("//").nth(1).unwrap()
    }
}

async fn make_key(dir: &Path) -> String {
    let made = output(
        errand()
            .args(["keys", "create", "--name", "test", "--data-dir"])
            .arg(dir),
    )
    .await;
    assert!(made.status.success(), "{}", text(&made.stderr));
    let key = text(&made.stdout);
    assert_eq!(
        (key.len(), &key[..3], &key[35..]),
        (36, "dv_", "\n"),
        "the key alone, in one line: {key:?}"
    );
    key.trim().to_owned()
}

/// Calls a server as a program would.
pub(crate) struct Caller {
    http: Client,
    url: String,
    key: String,
}

impl Caller {
    pub(crate) fn new(server: &Server, key: &str) -> Self {
        errand_engine::net::install_crypto_provider();
        let http = Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        Self {
            http,
            url: server.url.clone(),
            key: key.to_owned(),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (
            answer.status().as_u16(),
            serde_json::from_str(&answer.text().await.unwrap()).unwrap_or(Value::Null),
        )
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, body) = self.call(Method::POST, path, Some(body)).await;
        assert!(matches!(status, 200 | 201), "{path}: {status} {body}");
        body
    }

    async fn sandbox(&self) -> String {
        self.post("/v1/sandboxes", json!({})).await["sandbox_id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    async fn agent(&self, steps: Value) -> Value {
        let config = json!({"version": "v2", "data": {"playbook": {"steps": steps}}});
        self.post(
            "/v1/agents",
            json!({"name": "test", "build": {"name": "first", "config": config}}),
        )
        .await["agent"]["id"]
            .clone()
    }
}

/// A connection for handwritten requests.
struct Wire {
    stream: TcpStream,
}

impl Wire {
    async fn open(server: &Server, key: &str, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: errand\r\nconnection: close\r\nauthorization: Bearer {key}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Self { stream }
    }

    /// Reads until the end of a head.
    async fn head(&mut self) -> String {
        let mut got = Vec::new();
        let read = async {
            while !got.ends_with(b"\r\n\r\n") {
                got.push(self.stream.read_u8().await.unwrap());
            }
        };
        within("the head of an answer", read).await;
        text(&got)
    }

    /// Reads the whole response.
    async fn answer(&mut self) -> String {
        let mut got = Vec::new();
        within("a whole answer", self.stream.read_to_end(&mut got))
            .await
            .unwrap();
        text(&got)
    }
}

#[tokio::test]
async fn a_client_that_writes_all_first_sees_why_it_was_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let key = make_key(dir.path()).await;
    let caller = Caller::new(&server, &key);
    let sandbox = caller.sandbox().await;
    let path = format!("/v1/sandboxes/{sandbox}/files?path=big");
    let body = vec![b'x'; 60 * MIB];
    let length = format!(
        "content-type: application/octet-stream\r\ncontent-length: {}\r\n",
        body.len()
    );
    let cases = [
        (key.as_str(), path.as_str(), "413", "payload_too_large"),
        (
            "dv_00000000000000000000000000000000",
            path.as_str(),
            "401",
            "unauthorized",
        ),
        (key.as_str(), "/v1/no-such-thing", "404", "not_found"),
        (
            key.as_str(),
            "/v1/sandboxes/sb_00000000000000000000000000000000/files?path=big",
            "404",
            "not_found",
        ),
        (key.as_str(), "/v1/runs", "415", "unsupported_media_type"),
    ];
    for (key, path, status, code) in cases {
        let mut wire = Wire::open(&server, key, path, &length).await;
        within(
            "a client that writes everything",
            wire.stream.write_all(&body),
        )
        .await
        .unwrap();
        let answer = wire.answer().await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {answer}"
        );
        assert!(
            answer.contains(&format!("\"error\":\"{code}\"")),
            "{path}: {answer}"
        );
    }
    let mut wire = Wire::open(&server, &key, &path, "transfer-encoding: chunked\r\n").await;
    for chunk in body.chunks(MIB) {
        wire.stream
            .write_all(format!("{:x}\r\n", chunk.len()).as_bytes())
            .await
            .unwrap();
        wire.stream.write_all(chunk).await.unwrap();
        wire.stream.write_all(b"\r\n").await.unwrap();
    }
    wire.stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert!(wire.answer().await.starts_with("HTTP/1.1 413 "));
    assert_eq!(
        caller.get(&format!("/v1/sandboxes/{sandbox}/files")).await,
        json!({"files": []})
    );
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_client_that_waits_to_continue_is_answered_first() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let key = make_key(dir.path()).await;
    let caller = Caller::new(&server, &key);
    let path = format!("/v1/sandboxes/{}/files?path=file", caller.sandbox().await);
    let expect = |length: usize| {
        format!(
            "expect: 100-continue\r\ncontent-type: application/octet-stream\r\ncontent-length: {length}\r\n"
        )
    };

    let mut wire = Wire::open(&server, &key, &path, &expect(60 * MIB)).await;
    assert!(
        wire.answer().await.starts_with("HTTP/1.1 413 "),
        "refused before a byte of it is sent"
    );
    let mut wire = Wire::open(&server, "dv_nobody", &path, &expect(5)).await;
    assert!(wire.answer().await.starts_with("HTTP/1.1 401 "));

    let mut wire = Wire::open(&server, &key, &path, &expect(5)).await;
    assert!(wire.head().await.starts_with("HTTP/1.1 100 "));
    wire.stream.write_all(b"hello").await.unwrap();
    assert!(wire.answer().await.starts_with("HTTP/1.1 201 "));
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_server_speaks_tls() {
    let dir = tempfile::tempdir().unwrap();
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .unwrap();
    let (cert, secret) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&secret, made.signing_key.serialize_pem()).unwrap();
    let data = dir.path().join("data");
    let settings = [
        ("ERRAND_SERVER__TLS__CERT", cert.to_str().unwrap()),
        ("ERRAND_SERVER__TLS__KEY", secret.to_str().unwrap()),
    ];
    let server = Server::start_with(&data, &settings).await;
    assert!(
        server.url.starts_with("https://127.0.0.1:"),
        "{}",
        server.url
    );

    errand_engine::net::install_crypto_provider();
    let trusts = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let http = Client::builder()
        .no_proxy()
        .tls_certs_only([trusts])
        .build()
        .unwrap();
    assert_eq!(
        http.get(format!("{}/readyz", server.url))
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    let distrusts = Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap();
    assert!(
        distrusts
            .get(format!("{}/readyz", server.url))
            .send()
            .await
            .is_err()
    );
    let plain = distrusts
        .get(format!("http://{}/readyz", server.address()))
        .send()
        .await;
    assert!(plain.is_err(), "no answer without TLS: {plain:?}");
    let key = make_key(&data).await;
    let runs = http
        .get(format!("{}/v1/runs", server.url))
        .bearer_auth(key)
        .send()
        .await
        .unwrap();
    assert_eq!(runs.status(), 200);
    assert_eq!(server.stop().await, Some(0));

    std::fs::write(&secret, "no key at all").unwrap();
    let refused = output(
        errand()
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .envs(settings),
    )
    .await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("server.tls"),
        "{}",
        text(&refused.stderr)
    );
}

#[tokio::test]
async fn a_second_server_on_a_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data).await;
    let second = output(
        errand()
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data),
    )
    .await;
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(
        said.contains("in use") && said.contains(data.to_str().unwrap()),
        "{said}"
    );
    // So is a second server on the same port, and the first one continues.
    let other = dir.path().join("other");
    let third = output(
        errand()
            .args(["serve", "--listen", server.address(), "--data-dir"])
            .arg(&other),
    )
    .await;
    assert_eq!(third.status.code(), Some(1));
    assert!(
        text(&third.stderr).contains(server.address()),
        "{}",
        text(&third.stderr)
    );
    let key = make_key(&data).await;
    assert_eq!(Caller::new(&server, &key).get("/v1/runs").await["total"], 0);
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_progress() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let key = make_key(dir.path()).await;
    let caller = Caller::new(&server, &key);
    let sandbox = caller.sandbox().await;
    let headers =
        "expect: 100-continue\r\ncontent-type: application/octet-stream\r\ncontent-length: 10\r\n";
    let mut wire = Wire::open(
        &server,
        &key,
        &format!("/v1/sandboxes/{sandbox}/files?path=file"),
        headers,
    )
    .await;
    assert!(
        wire.head().await.starts_with("HTTP/1.1 100 "),
        "the upload is in progress"
    );
    wire.stream.write_all(b"01234").await.unwrap();
    server.signal("TERM");
    server.until("stopping").await;
    wire.stream.write_all(b"56789").await.unwrap();
    let answer = wire.answer().await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(
        within("a server that stops", server.child.wait())
            .await
            .unwrap()
            .code(),
        Some(0)
    );
    let server = Server::start(dir.path()).await;
    let caller = Caller::new(&server, &key);
    let files = caller.get(&format!("/v1/sandboxes/{sandbox}/files")).await;
    assert_eq!(files["files"][0]["size_bytes"], 10);
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn sigterm_amid_runs_loses_nothing_and_repeats_nothing() {
    const RUNS: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let key = make_key(dir.path()).await;
    let mut caller = Caller::new(&server, &key);
    let agent = caller
        .agent(json!([
            {"tool": "write_file", "with": {"path": "n", "content": "count 0"}},
            {"tool": "edit_file", "with": {"path": "n", "old": "count 0", "new": "count 1"}},
            {"wait": "10ms"},
            {"tool": "read_file", "with": {"path": "n"}, "as": "n"},
            {"finish": "{{ n }}"}
        ]))
        .await;
    let mut runs = Vec::new();
    for n in 0..RUNS {
        runs.push(
            caller.post("/v1/runs", json!({"agent_id": agent})).await["run"]["id"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
        if n % 10 == 9 {
            assert_eq!(server.stop().await, Some(0), "a stop in order ends with 0");
            server = Server::start(dir.path()).await;
            caller = Caller::new(&server, &key);
        }
    }
    for run in runs {
        let path = format!("/v1/runs/{run}?wait_s=60");
        let got = within("runs that go on after a stop", caller.get(&path)).await;
        assert_eq!(got["run"]["status"], "completed", "{got:#}");
        let messages = caller
            .get(&format!("/v1/runs/{run}/messages?limit=50"))
            .await;
        let messages = messages["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 7, "{messages:#?}");
        assert_eq!(messages[6]["text_content"], "count 1");
    }
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn keys_are_made_on_a_stopped_store_and_beside_a_running_server() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    assert_eq!(Server::start(&data).await.stop().await, Some(0));
    let first = make_key(&data).await;
    let server = Server::start(&data).await;
    let second = make_key(&data).await;
    assert_ne!(first, second);
    let socket = std::fs::metadata(data.join("admin.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    for key in [&first, &second] {
        assert_eq!(
            Caller::new(&server, key).get("/v1/api-keys").await["total"],
            2,
            "both are of the same team"
        );
    }
    let made = output(
        errand()
            .args([
                "--json",
                "keys",
                "create",
                "--name",
                "short",
                "--expires-in",
                "30d",
                "--data-dir",
            ])
            .arg(&data),
    )
    .await;
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert!(
        made["expires_at"].is_string() && made["key"].is_string(),
        "{made}"
    );
    let listed = output(errand().args(["keys", "list", "--data-dir"]).arg(&data)).await;
    let listed = text(&listed.stdout);
    assert!(
        listed.contains("short") && !listed.contains(&second),
        "{listed}"
    );
    let id = made["id"].as_str().unwrap();
    assert!(
        output(
            errand()
                .args(["keys", "delete", id, "--data-dir"])
                .arg(&data)
        )
        .await
        .status
        .success()
    );
    let gone = Caller::new(&server, made["key"].as_str().unwrap())
        .call(Method::GET, "/v1/runs", None)
        .await;
    assert_eq!(gone.0, 401);
    for wrong in [
        &["keys", "create", "--name", ""][..],
        &["keys", "delete", "x"],
        &["keys", "delete", id],
    ] {
        let refused = output(errand().args(wrong).arg("--data-dir").arg(&data)).await;
        assert_eq!(
            (refused.status.code(), refused.stdout.len()),
            (Some(1), 0),
            "{wrong:?}"
        );
        assert!(!refused.stderr.is_empty(), "{wrong:?}");
    }
    assert_eq!(server.stop().await, Some(0));
    let third = make_key(&data).await;
    let server = Server::start(&data).await;
    assert_eq!(
        Caller::new(&server, &third).get("/v1/api-keys").await["total"],
        3
    );
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn settings_that_are_wrong_are_all_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = errand();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path());
    command
        .env("ERRAND_WEBHOOKS__TIMEOUT", "5")
        .env("ERRAND_ENGINE__MAX_CONCURRENT_RUNS", "none");
    let refused = output(&mut command).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(
        said.to_lowercase().contains("timeout_s"),
        "the nearest real one is named: {said}"
    );
    assert!(
        said.to_lowercase().contains("max_concurrent_runs"),
        "so is the other problem: {said}"
    );
    assert_eq!(output(errand().arg("srve")).await.status.code(), Some(2));
}

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn the_quick_start_works_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(
        dir.path(),
        &[("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true")],
    )
    .await;
    let key = make_key(dir.path()).await;
    let sink = WebhookSink::start().await;
    let mut script = Command::new("bash");
    script
        .arg(root().join("examples/quickstart.sh"))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    script
        .env("ERRAND_URL", &server.url)
        .env("ERRAND_API_KEY", &key)
        .env("WEBHOOK_URL", sink.url());
    for proxy in [
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ] {
        script.env_remove(proxy);
    }
    let done = output(&mut script).await;
    let said = text(&done.stdout);
    assert!(done.status.success(), "{said}\n{}", text(&done.stderr));
    assert!(
        said.ends_with("9 words\n") || said.ends_with("9 words"),
        "{said}"
    );
    assert!(!said.contains(&key));
    sink.until(2).await;
    assert_eq!(sink.events(), ["human_request", "run_completed"]);
    let secret = output(
        errand()
            .args(["webhooks", "secret", "--data-dir"])
            .arg(dir.path()),
    )
    .await;
    assert!(
        sink.received()
            .iter()
            .all(|hook| hook.is_signed_by(text(&secret.stdout).trim()))
    );
    assert!(
        !server.log().contains(&key) && !server.log().contains("Count the words"),
        "the log holds neither keys nor texts"
    );
    assert_eq!(server.stop().await, Some(0));
}

fn demo(temporary: &TempDir) -> Command {
    let mut command = errand();
    // Without a terminal, however the tests are run.
    command.arg("demo").env("TMPDIR", temporary.path());
    command
}

fn is_empty(dir: &TempDir) -> bool {
    std::fs::read_dir(dir.path()).unwrap().next().is_none()
}

#[tokio::test]
async fn the_demo_runs_by_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let done = output(demo(&temporary).arg("--yes")).await;
    let said = text(&done.stdout);
    assert_eq!(
        done.status.code(),
        Some(0),
        "{said}\n{}",
        text(&done.stderr)
    );
    let is_result = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [run, id, completed, after, ms, unit] = words.as_slice() else {
            return false;
        };
        let fits = (*run, *completed, *after, *unit) == ("run", "completed", "in", "ms");
        fits && id.len() == 36 && ms.parse::<u64>().is_ok()
    };
    assert_eq!(
        said.lines().filter(|line| is_result(line)).count(),
        1,
        "{said}"
    );
    assert!(said.contains("signature verified"), "{said}");
    assert!(!said.contains('\u{1b}'), "no colors without a terminal");
    assert!(is_empty(&temporary), "nothing is left behind");
}

#[tokio::test]
async fn the_demo_without_a_terminal_says_what_to_do() {
    let temporary = tempfile::tempdir().unwrap();
    let refused = output(&mut demo(&temporary)).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(
        said.contains("--yes") && said.contains("terminal"),
        "{said}"
    );
    assert!(is_empty(&temporary));
}
