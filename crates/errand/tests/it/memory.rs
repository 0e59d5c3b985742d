//! What the real program takes of memory while clients do their worst.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// A bound, not a measure.
const PATIENCE: Duration = Duration::from_secs(120);

fn errand() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_errand"));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn serve(dir: &Path) -> (Child, String) {
    let mut child = errand()
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = async {
        loop {
            let line = lines
                .next_line()
                .await
                .unwrap()
                .expect("a server that starts");
            if let Some((_, address)) = line.split_once("listening on ") {
                return address.split_whitespace().next().unwrap().to_owned();
            }
        }
    };
    let url = tokio::time::timeout(PATIENCE, listening).await.unwrap();
    // Whatever else it writes is read, so that it does not block.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, url)
}

/// The most memory that the process has had, in MiB.
fn peak_mib(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib / 1024
}

#[tokio::test]
async fn streams_that_nobody_reads_take_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (child, url) = serve(dir.path()).await;
    let made = errand()
        .args(["keys", "create", "--name", "test", "--data-dir"])
        .arg(dir.path())
        .output()
        .await
        .unwrap();
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    errand_engine::net::install_crypto_provider();
    let http = Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap();
    let post = async |path: &str, body: Value| -> Value {
        let request = http.post(format!("{url}{path}")).bearer_auth(&key);
        let response = request.json(&body).send().await.unwrap();
        assert_eq!(response.status(), 201, "{path}");
        serde_json::from_str(&response.text().await.unwrap()).unwrap()
    };
    let config = json!({"version": "v2", "data": {"playbook": {"steps": [{"wait": "1h"}]}}});
    let agent = post(
        "/v1/agents",
        json!({"name": "a", "build": {"name": "b", "config": config}}),
    )
    .await;
    let run = post("/v1/runs", json!({"agent_id": agent["agent"]["id"]})).await;
    let run = run["run"]["id"].as_str().unwrap().to_owned();
    for _ in 0..10 {
        let message = json!({"message": "x".repeat(3_900_000)});
        post(&format!("/v1/runs/{run}/messages"), message).await;
    }
    let before = peak_mib(&child);
    let mut streams = Vec::new();
    for _ in 0..50 {
        let address = url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /v1/runs/{run}/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut begun = [0; 15];
        stream.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200 OK");
        streams.push(stream);
    }
    // Others are answered meanwhile.
    for _ in 0..100 {
        let request = http.get(format!("{url}/v1/runs/{run}")).bearer_auth(&key);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let taken = peak_mib(&child) - before;
    assert!(taken < 300, "{taken} MiB");
    drop(streams);
}
