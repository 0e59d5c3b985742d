//! A server that has run out of descriptors, or whose database another program has locked: it waits, and no run fails.

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::process::{Process, ended, errand};

/// Slightly more than the minimum with which a server can start.
const FEW: u32 = 64;

fn steps() -> Value {
    let write = |path: &str| json!({"tool": "write_file", "with": {"path": path, "content": "x"}});
    json!([
        write("a/b/c/one"),
        {"tool": "edit_file", "with": {"path": "a/b/c/one", "old": "x", "new": "y"}},
        write("a/b/d/two"),
        {"tool": "list_files", "with": {"path": "a"}},
        {"tool": "read_file", "with": {"path": "a/b/c/one"}, "as": "text"},
        {"finish": "{{ text }}"}
    ])
}

#[tokio::test]
async fn no_run_fails_when_descriptors_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start_with(dir.path(), &[], &[], Some(FEW)).await;
    let agent = server.agent(steps()).await;
    let starts = (0..60).map(|_| server.run(json!({"agent_id": agent})));
    let mut runs = Vec::new();
    for start in starts {
        runs.push(start.await);
    }
    for run in runs {
        let ended = server
            .until_run(&run, |run| !run["completed_at"].is_null())
            .await;
        assert_eq!(ended["status"], "completed", "{ended:#}\n{}", server.log());
    }
    assert_eq!(server.stop().await, Some(0));
}

/// Receives webhooks, and answers while it is open.
async fn receiver(is_open: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut is_open = is_open.clone();
            tokio::spawn(async move {
                // Everything must be read, or closing resets the connection while the sender writes.
                let mut got = vec![0; 64 * 1024];
                let mut count = 0;
                while !is_whole(&got[..count]) {
                    match stream.read(&mut got[count..]).await {
                        Ok(0) | Err(_) => return,
                        Ok(read) => count += read,
                    }
                }
                let _ = is_open.wait_for(|is_open| *is_open).await;
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
            });
        }
    });
    url
}

/// Whether a request with `content-length` is complete.
fn is_whole(got: &[u8]) -> bool {
    let got = String::from_utf8_lossy(got);
    let Some((head, body)) = got.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    body.len() >= length.lines().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_delivery_that_finds_no_descriptor_is_no_attempt() {
    let dir = tempfile::tempdir().unwrap();
    // Receivers have more time than this test waits.
    let settings = [
        ("ERRAND_WEBHOOKS__TIMEOUT_S", "300"),
        ("ERRAND_WEBHOOKS__MAX_CONCURRENT_DELIVERIES", "256"),
    ];
    let mut server = Process::start_with(dir.path(), &[], &settings, Some(FEW)).await;
    let (open, is_open) = watch::channel(true);
    let url = receiver(is_open).await;
    let agent = server.agent(json!([{"finish": "done"}])).await;
    let start = json!({"agent_id": agent, "webhook_url": url});
    let delivered = async |server: &Process, run: &str| {
        let path = format!("/v1/runs/{run}/deliveries");
        let is = |status: u16, page: &Value| {
            status == 200 && page["deliveries"][0]["state"] == "delivered"
        };
        server.until_get(&path, is).await["deliveries"][0].clone()
    };
    // A receiver that is known to answer gets more than a few slots.
    let first = server.run(start.clone()).await;
    delivered(&server, &first).await;
    open.send_replace(false);
    let mut runs = Vec::new();
    for _ in 0..FEW {
        runs.push(server.run(start.clone()).await);
    }
    assert!(server.until("has run out of open files").await);
    open.send_replace(true);
    for run in &runs {
        let delivery = delivered(&server, run).await;
        let attempts = delivery["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 1, "{delivery:#}");
    }
    assert!(
        server
            .until("no longer wait for open files or memory")
            .await
    );
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn idle_connections_do_not_keep_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start_with(dir.path(), &[], &[], Some(FEW)).await;
    let address = server.url.split("//").nth(1).unwrap();
    let idle = join_all((0..FEW * 2).map(|_| TcpStream::connect(address))).await;
    let open = idle.iter().filter(|stream| stream.is_ok()).count();
    assert!(open >= FEW as usize, "{open}");
    for _ in 0..20 {
        let (status, body) = server.get("/v1/runs").await;
        assert_eq!(status, 200, "{body}");
    }
    drop(idle);
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn too_few_descriptors_are_reported_in_words() {
    let dir = tempfile::tempdir().unwrap();
    for few in [16, 24, 32] {
        let mut server = Process::begin(dir.path(), &[], &[], Some(few));
        assert_eq!(server.ends().await, Some(1));
        let said = format!("the limit of open files is {few}");
        assert!(server.until(&said).await, "{}", server.log());
        assert!(server.log().contains("ulimit -n"), "{}", server.log());
    }
}

#[tokio::test]
async fn a_foreign_lock_is_named_and_waited_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(dir.path()).await;
    let foreign = rusqlite::Connection::open(dir.path().join("errand.db")).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (status, retry, body) = server
        .call(Method::POST, "/v1/sandboxes", Some(json!({})))
        .await;
    assert_eq!((status, retry.as_deref()), (503, Some("1")), "{body}");
    let message = body["message"].as_str().unwrap();
    assert!(
        message.contains("another program holds a lock"),
        "{message}"
    );
    assert_eq!(server.get("/readyz").await.0, 503);
    let doctor = ended(&mut errand(dir.path(), &["doctor"])).await;
    assert_eq!(doctor.code, Some(1), "{}", doctor.text);
    let named = format!("(process {})", std::process::id());
    assert!(
        doctor.says(&named) && doctor.says("holds the write lock"),
        "{}",
        doctor.text
    );
    foreign.execute_batch("ROLLBACK").unwrap();
    server.until_get("/readyz", |status, _| status == 200).await;
    server.post("/v1/sandboxes", json!({})).await;
    assert_eq!(server.stop().await, Some(0));
}
