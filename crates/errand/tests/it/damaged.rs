//! A database that SQLite did not write, and a data directory that disappears under a running server.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use reqwest::Method;
use serde_json::json;

use crate::process::{Process, ended, errand};

const PAGE: u64 = 4096;

/// Overwrites the beginning of each page except the first, so that none is a valid page.
fn damage(dir: &Path) {
    let path = dir.join("errand.db");
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let pages = file.metadata().unwrap().len() / PAGE;
    assert!(pages > 20);
    for page in 1..pages {
        file.seek(SeekFrom::Start(page * PAGE)).unwrap();
        file.write_all(&[0xab; 24]).unwrap();
    }
    file.sync_all().unwrap();
}

async fn filled(dir: &Path) {
    let server = Process::start(dir).await;
    let agent = server.agent(json!([{"say": "done"}])).await;
    let run = server.run(json!({"agent_id": agent})).await;
    server
        .until_run(&run, |run| run["status"] == "completed")
        .await;
    assert_eq!(server.stop().await, Some(0));
}

#[track_caller]
fn assert_said_once(log: &str) {
    let errors = log.lines().filter(|line| line.contains("ERROR"));
    let damaged: Vec<_> = errors.filter(|line| line.contains("damaged")).collect();
    assert_eq!(damaged.len(), 1, "one clear line:\n{log}");
    assert!(damaged[0].contains("restore a backup"), "{log}");
}

async fn doctor_says_damaged(dir: &Path) {
    let doctor = ended(&mut errand(dir, &["doctor"])).await;
    assert_eq!(doctor.code, Some(1), "{}", doctor.text);
    for word in ["damaged", "stop the server", "restore a backup"] {
        assert!(doctor.says(word), "{word}: {}", doctor.text);
    }
}

#[tokio::test]
async fn a_database_damaged_while_stopped_is_found_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    // Closed properly and unchanged, it is intact.
    let server = Process::start(dir.path()).await;
    assert_eq!(server.stop().await, Some(0));
    damage(dir.path());
    let mut server = Process::begin(dir.path(), &[], &[], None);
    assert!(server.until("answers on ").await, "{}", server.log());
    server.url = server.after("answers on ");
    for path in ["/readyz", "/v1/runs"] {
        let (status, body) = server.get(path).await;
        assert_eq!(status, 503, "{path}: {body}");
        let message = body["message"].as_str().unwrap();
        assert!(message.contains("damaged"), "{path}: {message}");
    }
    assert_eq!(server.get("/healthz").await.0, 200);
    let metrics = server.metrics().await;
    assert!(
        metrics.contains("errand_store_trouble{trouble=\"damaged\"} 1"),
        "{metrics}"
    );
    doctor_says_damaged(dir.path()).await;
    assert_said_once(&server.log());
    server.signal("TERM");
    assert_eq!(server.ends().await, Some(1));
    doctor_says_damaged(dir.path()).await;
}

#[tokio::test]
async fn damage_that_a_read_meets_makes_the_server_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let server = Process::start(dir.path()).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    damage(dir.path());
    // The reader that finds the damage first may vary, because the server has some pages in memory.
    let looks = [
        "/v1/agents",
        "/v1/runs",
        "/v1/webhooks",
        "/v1/members",
        "/v1/usage",
        "/v1/sandboxes",
    ];
    for _ in 0..20 {
        for path in looks {
            server.get(path).await;
        }
    }
    let ready = server.until_get("/readyz", |status, _| status == 503).await;
    assert!(
        ready["message"].as_str().unwrap().contains("damaged"),
        "{ready}"
    );
    for _ in 0..5 {
        let (status, _, body) = server
            .call(Method::POST, "/v1/sandboxes", Some(json!({})))
            .await;
        assert_eq!(status, 503, "{body}");
    }
    let metrics = server.metrics().await;
    assert!(
        metrics.contains("errand_store_trouble{trouble=\"damaged\"} 1"),
        "{metrics}"
    );
    assert_said_once(&server.log());
    doctor_says_damaged(dir.path()).await;
    server.stop().await;
}

#[tokio::test]
async fn a_data_directory_that_is_removed_or_replaced_ends_the_server() {
    for replaced in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (data, aside) = (dir.path().join("data"), dir.path().join("aside"));
        let mut server = Process::start(&data).await;
        fs::rename(&data, &aside).unwrap();
        if replaced {
            fs::create_dir(&data).unwrap();
            fs::copy(aside.join("errand.db"), data.join("errand.db")).unwrap();
            fs::write(data.join("errand.db-wal"), "another one's").unwrap();
        }
        assert_eq!(server.ends().await, Some(1), "{}", server.log());
        let what = if replaced {
            "was replaced"
        } else {
            "was removed"
        };
        assert!(server.until(what).await, "{}", server.log());
        if replaced {
            let mut left = String::new();
            let mut log = fs::File::open(data.join("errand.db-wal")).unwrap();
            log.read_to_string(&mut left).unwrap();
            assert_eq!(
                left, "another one's",
                "nothing of the other store is touched"
            );
        } else {
            assert!(!data.exists(), "nothing is made in its place");
        }
    }
}
