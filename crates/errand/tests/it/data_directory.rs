//! Creating a store, and refused starts: a directory without its database, a wrong master key.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::process::{Ended, Process, ended, errand};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn assert_refused(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(1), "{}", ended.text);
    for word in words {
        assert!(ended.says(word), "{word:?} is said: {}", ended.text);
    }
}

/// Asserts that a start is refused with these words.
async fn refused(dir: &Path, settings: &[(&str, &str)], words: &[&str]) {
    let mut process = Process::begin(dir, &[], settings, None);
    let code = process.ends().await;
    let _ = process.until("nothing of that kind").await;
    let text = process.log();
    let stdout = String::new();
    assert_refused(&Ended { code, text, stdout }, words);
}

#[tokio::test]
async fn only_serve_makes_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("not/there");
    let run = "01a22b0f-7336-749e-8aa3-1c8a15fb2bae";
    let commands: [&[&str]; 9] = [
        &["keys", "create", "--name", "ci"],
        &["keys", "list"],
        &["keys", "delete", run],
        &["users", "link", "a@example.com"],
        &["webhooks", "secret"],
        &["secrets", "rotate"],
        &["runs", "repair", run],
        &["runs", "repair", run, "--fork"],
        &["doctor"],
    ];
    for words in commands {
        let ended = ended(&mut errand(&nowhere, words)).await;
        assert_refused(&ended, &["there is no store in", "--data-dir"]);
        assert!(!nowhere.exists(), "{words:?} leaves nothing behind");
    }
    // A directory with other content stays unchanged.
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    for words in commands {
        assert_refused(
            &ended(&mut errand(dir.path(), words)).await,
            &["there is no store in"],
        );
        assert_eq!(names(dir.path()), ["notes.txt"], "{words:?}");
    }
    let server = Process::start(dir.path()).await;
    assert_eq!(server.stop().await, Some(0));
    let listed = ended(&mut errand(dir.path(), &["keys", "list"])).await;
    assert_eq!(listed.code, Some(0), "{}", listed.text);
}

#[tokio::test]
async fn a_directory_without_its_database_is_not_taken_for_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Process::start(&data).await;
    let steps = json!([{"tool": "write_file", "with": {"path": "a", "content": "mine"}}]);
    let agent = server.agent(steps).await;
    let run = server.run(json!({"agent_id": agent})).await;
    let ended_run = server
        .until_run(&run, |run| run["status"] == "completed")
        .await;
    let sandbox = data
        .join("sandboxes")
        .join(ended_run["sandbox_id"].as_str().unwrap());
    assert_eq!(server.stop().await, Some(0));
    let database = data.join("errand.db");
    let kept = dir.path().join("kept.db");
    fs::rename(&database, &kept).unwrap();
    let before = names(&data);

    refused(
        &data,
        &[],
        &["no database errand.db", "master.key", "sandboxes", "--new"],
    )
    .await;
    let doctor = ended(&mut errand(&data, &["doctor"])).await;
    assert_refused(&doctor, &["no database errand.db", "restore"]);
    let keys = ended(&mut errand(&data, &["keys", "create", "--name", "ci"])).await;
    assert_refused(&keys, &["no database errand.db"]);
    assert_eq!(
        names(&data),
        before,
        "nothing was made and nothing was removed"
    );
    fs::write(&database, "").unwrap();
    refused(&data, &[], &["0 bytes", "--new"]).await;
    fs::remove_file(&database).unwrap();
    rusqlite::Connection::open(&database)
        .unwrap()
        .execute_batch("CREATE TABLE t (x); DROP TABLE t; VACUUM")
        .unwrap();
    let words = ["no tables", "master.key", "sandboxes", "backup", "--new"];
    refused(&data, &[], &words).await;
    let doctor = ended(&mut errand(&data, &["doctor"])).await;
    assert_refused(&doctor, &words);
    for made in ["errand.db-wal", "errand.db-shm"] {
        let _ = fs::remove_file(data.join(made));
    }

    // After the file is restored, the server works as before.
    fs::rename(&kept, &database).unwrap();
    let server = Process::start(&data).await;
    let (status, _) = server.get(&format!("/v1/runs/{run}")).await;
    assert_eq!(status, 200);
    assert_eq!(server.stop().await, Some(0));

    // Starting over requires an explicit flag, and the old content stays.
    fs::remove_file(&database).unwrap();
    let server = Process::start_with(&data, &["--new"], &[], None).await;
    let (status, _) = server.get(&format!("/v1/runs/{run}")).await;
    assert_eq!(status, 404);
    assert_eq!(server.stop().await, Some(0));
    assert_eq!(fs::read(sandbox.join("a")).unwrap(), b"mine");
}

/// A directory whose server was killed after it had answered: the log holds what the database file lacks.
async fn killed_after(dir: &Path) -> String {
    let mut server = Process::start(dir).await;
    let agent = server.agent(json!([{"say": "done"}])).await;
    let run = server.run(json!({"agent_id": agent})).await;
    server.signal("KILL");
    server.ends().await;
    run
}

#[tokio::test]
async fn a_log_that_is_lost_after_a_kill_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let run = killed_after(&data).await;
    let (log, aside) = (data.join("errand.db-wal"), dir.path().join("aside"));
    let words = [
        "write-ahead log",
        "Put the file back",
        "backup",
        "--accept-copy",
    ];

    fs::rename(&log, &aside).unwrap();
    refused(&data, &[], &words).await;
    let doctor = ended(&mut errand(&data, &["doctor"])).await;
    assert_refused(&doctor, &words);
    let keys = ended(&mut errand(&data, &["keys", "list"])).await;
    assert_refused(&keys, &words);
    refused(&data, &[], &words).await;
    assert!(!log.exists(), "nothing takes its place");

    // Put back, nothing is lost.
    fs::rename(&aside, &log).unwrap();
    let server = Process::start(&data).await;
    assert_eq!(server.get(&format!("/v1/runs/{run}")).await.0, 200);
    assert_eq!(server.stop().await, Some(0));
    assert!(!log.exists(), "an orderly end leaves no log");
    let server = Process::start(&data).await;
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_log_that_is_cut_off_after_a_kill_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    killed_after(dir.path()).await;
    let log = dir.path().join("errand.db-wal");
    let file = fs::File::options().write(true).open(&log).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    refused(
        dir.path(),
        &[],
        &["is shorter than it was", "--accept-copy"],
    )
    .await;
    let server = Process::start_with(dir.path(), &["--accept-copy"], &[], None).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    assert_eq!(server.stop().await, Some(0));
}

/// The key ID in a refusal.
fn key_id(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let is_id = |word: &str| word.len() == 16 && word.chars().all(|c| c.is_ascii_hexdigit());
    let mut words = words.iter().map(|word| word.trim_end_matches(','));
    words.find(|word| is_id(word)).unwrap().to_owned()
}

#[tokio::test]
async fn a_wrong_master_key_is_refused_unless_secrets_are_discarded() {
    const OTHER: [(&str, &str); 1] = [(
        "ERRAND_MASTER_KEY",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    )];
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(dir.path()).await;
    let secret = ended(&mut errand(dir.path(), &["webhooks", "secret"]))
        .await
        .stdout;
    // A key file that disappears under the running server is noticed before the next start.
    let file = dir.path().join("master.key");
    let aside = dir.path().join("aside");
    fs::rename(&file, &aside).unwrap();
    let doctor = ended(&mut errand(dir.path(), &["doctor"])).await;
    assert_refused(&doctor, &["master.key is missing", "secrets rotate"]);
    assert_eq!(server.stop().await, Some(0));

    refused(
        dir.path(),
        &[],
        &[
            "secrets that were sealed under the master key",
            "--discard-secrets",
        ],
    )
    .await;
    assert!(!file.exists(), "no new key is drawn");
    let doctor = ended(&mut errand(dir.path(), &["doctor"])).await;
    assert_refused(&doctor, &["sealed under the master key"]);
    let needed = key_id(&doctor.text);
    assert_eq!(needed.len(), 16, "{}", doctor.text);
    refused(
        dir.path(),
        &OTHER,
        &[&needed, "ERRAND_MASTER_KEY is the key 630dcd2966c43366"],
    )
    .await;
    let mut rotate = errand(dir.path(), &["secrets", "rotate"]);
    assert_refused(&ended(&mut rotate).await, &[&needed]);

    // With the correct key, everything works as before.
    fs::rename(&aside, &file).unwrap();
    let server = Process::start(dir.path()).await;
    let same = ended(&mut errand(dir.path(), &["webhooks", "secret"]))
        .await
        .stdout;
    assert_eq!(same, secret);
    assert_eq!(server.stop().await, Some(0));

    fs::remove_file(&file).unwrap();
    let mut server = Process::start_with(dir.path(), &["--discard-secrets"], &[], None).await;
    assert!(server.until("were replaced").await);
    let renewed = ended(&mut errand(dir.path(), &["webhooks", "secret"]))
        .await
        .stdout;
    assert_ne!(renewed, secret);
    assert_eq!(server.get("/v1/webhook-secret").await.0, 200);
    assert_eq!(server.stop().await, Some(0));
    let doctor = ended(&mut errand(dir.path(), &["doctor"])).await;
    assert!(doctor.says("decrypts all"), "{}", doctor.text);
}
