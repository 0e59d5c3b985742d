//! How a server reacts to signals.

use std::fs;
use std::path::Path;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use reqwest::{Certificate, Client, Method};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::backup::copy_of;
use crate::process::{Process, within};

/// Accepts connections and never answers. The receiver gets each connection that has sent a byte.
pub(crate) async fn silent() -> (String, tokio::sync::mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut byte = [0];
            // Only connections that send something count.
            if stream.read(&mut byte).await.is_ok_and(|read| read == 1) {
                let _ = sender.send(stream).await;
            }
        }
    });
    (url, receiver)
}

/// Longer than any test waits, so a server that waits for it is noticed.
const LONG_GRACE: [(&str, &str); 3] = [
    ("ERRAND_SERVER__SHUTDOWN_GRACE_S", "3600"),
    ("ERRAND_WEBHOOKS__TIMEOUT_S", "300"),
    ("ERRAND_LOG__LEVEL", "info"),
];

/// A server whose models are at an address and have longer timeouts than any test.
pub(crate) async fn asking_models_at(url: &str, dir: &Path, settings: &[(&str, &str)]) -> Process {
    let mut all = vec![
        ("OPENAI_BASE_URL", url),
        ("OPENAI_API_KEY", "sk-test"),
        ("ERRAND_MODELS__IDLE_TIMEOUT", "3600s"),
        ("ERRAND_MODELS__ATTEMPTS", "1"),
    ];
    all.extend(settings);
    Process::start_with(dir, &[], &all, None).await
}

/// Starts a run that calls its model first.
pub(crate) async fn asks_a_model(server: &Process) -> String {
    let config = crate::models::config("openai/gpt-test", json!({}));
    let body = json!({"name": "asks", "build": {"name": "first", "config": config}});
    let agent = server.post("/v1/agents", body).await["agent"]["id"].clone();
    let start = json!({"agent_id": agent, "message": "Go."});
    server.run(start).await
}

#[tokio::test]
async fn a_stop_waits_for_no_receiver_and_no_idle_stream() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start_with(dir.path(), &[], &LONG_GRACE, None).await;
    let (url, mut receives) = silent().await;
    let agent = server.agent(json!([{"say": "done"}])).await;
    let run = server
        .run(json!({"agent_id": agent, "webhook_url": url}))
        .await;
    server
        .until_run(&run, |run| run["status"] == "completed")
        .await;
    let _held = within("a delivery", receives.recv()).await.unwrap();
    let path = format!("{}/v1/events", server.url);
    let stream = Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap();
    let stream = stream.get(path).bearer_auth(&server.key).send();
    let _stream = within("a stream", stream).await.unwrap();
    let idle = TcpStream::connect(server.url.split("//").nth(1).unwrap())
        .await
        .unwrap();
    assert_eq!(server.stop().await, Some(0));
    drop(idle);
}

#[tokio::test]
async fn while_a_step_runs_a_stopping_server_answers_503() {
    let dir = tempfile::tempdir().unwrap();
    let (url, mut asked) = silent().await;
    let mut server = asking_models_at(&url, dir.path(), &LONG_GRACE).await;
    let run = asks_a_model(&server).await;
    let held = within("a model that is asked", asked.recv()).await.unwrap();
    server.signal("TERM");
    assert!(server.until("stopping:").await);
    server.until_get("/readyz", |status, _| status == 503).await;
    for (method, path) in [
        (Method::GET, "/readyz".to_owned()),
        (Method::GET, format!("/v1/runs/{run}")),
        (Method::POST, "/v1/sandboxes".to_owned()),
        (Method::GET, "/log-in".to_owned()),
    ] {
        let (status, retry, body) = server.call(method, &path, None).await;
        assert_eq!(
            (status, retry.as_deref()),
            (503, Some("1")),
            "{path}: {body}"
        );
        assert!(
            body["message"].as_str().unwrap().contains("stopping"),
            "{path}: {body}"
        );
    }
    assert_eq!(server.get("/healthz").await.0, 200);
    // The step ends, and with it the server.
    drop(held);
    assert_eq!(server.ends().await, Some(0));
}

#[tokio::test]
async fn a_directory_whose_server_cut_a_step_off_can_be_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    let (url, mut asked) = silent().await;
    let settings = [("ERRAND_SERVER__SHUTDOWN_GRACE_S", "0")];
    let server = asking_models_at(&url, &data, &settings).await;
    asks_a_model(&server).await;
    let _held = within("a model that is asked", asked.recv()).await.unwrap();
    assert_eq!(server.stop().await, Some(0));
    copy_of(&data, &copy);
    let server = Process::start(&copy).await;
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_stop_is_heeded_while_the_server_waits_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(dir.path()).await;
    assert_eq!(server.stop().await, Some(0));
    // While this connection holds the lock, the server cannot write during startup, and waits.
    let foreign = rusqlite::Connection::open(dir.path().join("errand.db")).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut server = Process::begin(dir.path(), &[], &[], None);
    assert!(
        server
            .until("the database is locked by another program")
            .await
    );
    server.signal("TERM");
    assert_eq!(server.ends().await, Some(0));
    assert!(!server.log().contains("listening on "), "{}", server.log());
    foreign.execute_batch("ROLLBACK").unwrap();
    let mark = std::fs::read_to_string(dir.path().join("store.mark")).unwrap();
    assert!(mark.contains("\"closed\":true"), "{mark}");
}

fn write_certificate(dir: &Path) -> CertifiedKey<KeyPair> {
    let made = generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made
}

/// Whether a client that trusts only this certificate gets a response.
async fn is_served(url: &str, made: &CertifiedKey<KeyPair>) -> bool {
    let trusted = Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let http = Client::builder()
        .no_proxy()
        .tls_certs_only([trusted])
        .build()
        .unwrap();
    let answer = http.get(format!("{url}/healthz")).send();
    within("an answer", answer).await.is_ok()
}

#[tokio::test]
async fn sighup_reloads_settings_and_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let first = write_certificate(dir.path());
    let file = dir.path().join("errand.toml");
    let settings = |level: &str, runs: u32| {
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let text = format!(
            "[log]\nlevel = \"{level}\"\n[engine]\nmax_concurrent_runs = {runs}\n[server.tls]\ncert = {cert:?}\nkey = {key:?}\n"
        );
        fs::write(&file, text).unwrap();
    };
    settings("info", 20);
    let data = dir.path().join("data");
    let words = ["--config", file.to_str().unwrap()];
    let mut server = Process::begin(&data, &words, &[], None);
    assert!(server.until("listening on ").await, "{}", server.log());
    server.url = server.after("listening on ");
    assert!(is_served(&server.url, &first).await);

    for name in ["USR1", "USR2"] {
        server.signal(name);
    }
    // Invalid settings, then an invalid certificate: nothing changes.
    fs::write(&file, "[log]\nlevel = \"loud\"\n").unwrap();
    server.signal("HUP");
    assert!(server.until("nothing was changed").await);
    settings("info", 20);
    fs::write(dir.path().join("cert.pem"), "no certificate").unwrap();
    server.signal("HUP");
    assert!(server.until("the previous ones stay in use").await);
    assert!(is_served(&server.url, &first).await);

    let second = write_certificate(dir.path());
    settings("debug", 40);
    server.signal("HUP");
    assert!(
        server.until("certificates=\"reloaded\"").await,
        "{}",
        server.log()
    );
    assert!(server.until("require a restart").await);
    assert!(
        server.log().contains("engine.max_concurrent_runs"),
        "{}",
        server.log()
    );
    assert!(!is_served(&server.url, &first).await);
    assert!(is_served(&server.url, &second).await);
    assert!(
        server.log().contains("log.level=\"debug\""),
        "{}",
        server.log()
    );
    assert_eq!(server.stop().await, Some(0));
}
