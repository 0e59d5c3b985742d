//! A server that has run out of descriptors, or whose database another program has locked: it waits, and no run fails.

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::process::{Process, ended, errand};

/// As few as a server can start with, and somewhat more.
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
async fn no_run_fails_where_descriptors_run_out() {
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

#[tokio::test]
async fn idle_connections_do_not_shut_others_out() {
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
async fn too_few_descriptors_are_said_in_words() {
    let dir = tempfile::tempdir().unwrap();
    for few in [16, 24, 32] {
        let mut server = Process::begin(dir.path(), &[], &[], Some(few));
        assert_eq!(server.ends().await, Some(1));
        let said = format!("at most {few} files and connections can be open at once");
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
