//! Expired data, and remains of a crash on disk: moved to the trash first, and deleted a day later.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use errand_testkit::TestApp;
use serde_json::json;

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);

/// Polls until a condition holds, within a bound.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let reached = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), reached)
        .await
        .is_err()
    {
        panic!("not within a minute: {what}");
    }
}

/// The entry with this name in the trash.
fn in_trash(app: &TestApp, name: &str) -> Option<PathBuf> {
    let names = fs::read_dir(app.dir().join("trash")).ok()?;
    names
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().ends_with(&format!("Z-{name}")))
}

/// Sets the modification time of a file to this long before the clock's time.
fn age(app: &TestApp, path: &Path, age: Duration) {
    let now = u64::try_from(app.now().as_millis()).unwrap();
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(now) - age;
    File::open(path).unwrap().set_modified(at).unwrap();
}

#[tokio::test]
async fn expired_and_orphaned_files_go_to_the_trash_for_a_day() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let (unused, used) = (app.sandbox(&team).await, app.sandbox(&team).await);
    for sandbox in [&unused, &used] {
        app.upload(&team.key, sandbox, "dir/file", "mine")
            .await
            .expect(201);
    }
    app.advance(20 * DAY).await;
    app.upload(&team.key, &used, "more", "mine")
        .await
        .expect(201);
    app.advance(10 * DAY).await;
    // A directory that the store has never known, and an interrupted write.
    let stranger = app.sandbox_dir(&format!("sb_{}", "0".repeat(32)));
    fs::create_dir_all(stranger.join("dir")).unwrap();
    age(&app, &stranger, HOUR);
    let unfinished = app.dir().join("sandboxes/.unfinished/.errand-tmp-1-1");
    fs::write(&unfinished, "half").unwrap();
    age(&app, &unfinished, HOUR);
    // Whatever the first round had started is finished after the next start.
    app.crash().await;
    let moved = [
        unused.as_str(),
        &format!("sb_{}", "0".repeat(32)),
        ".errand-tmp-1-1",
    ];
    until("all three are in the trash", || {
        moved.iter().all(|name| in_trash(&app, name).is_some())
    })
    .await;
    assert!(!app.sandbox_dir(&unused).exists() && !stranger.exists() && !unfinished.exists());
    let kept = in_trash(&app, &unused).unwrap().join("dir/file");
    assert_eq!(
        fs::read_to_string(kept).unwrap(),
        "mine",
        "whole, for whoever misses it"
    );
    let files = |sandbox: &str| format!("/v1/sandboxes/{sandbox}/files");
    app.get(&team.key, &files(&unused)).await.expect(404);
    app.get(&team.key, &files(&used)).await.expect(200);

    app.advance(DAY).await;
    app.crash().await;
    until("the trash is empty", || {
        moved.iter().all(|name| in_trash(&app, name).is_none())
    })
    .await;
    app.get(&team.key, &files(&used)).await.expect(200);
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_that_is_deleted_goes_at_once() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "dir/file", "mine")
        .await
        .expect(201);
    let deleted = app
        .delete(&team.key, &format!("/v1/sandboxes/{sandbox}"))
        .await;
    assert_eq!(deleted.status, 204);
    assert!(!app.sandbox_dir(&sandbox).exists());
    assert_eq!(in_trash(&app, &sandbox), None);
    app.finish().await;
}

/// Every way of writing puts its temporary names in the one place that is cleaned, and leaves none there.
#[tokio::test]
async fn writes_leave_no_temporary_names_anywhere() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "a", "mine")
        .await
        .expect(201);
    let bearer = format!("Bearer {}", team.key);
    let form = "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"b\"\r\n\r\nmine\r\n--x--\r\n";
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "multipart/form-data; boundary=x"),
    ];
    app.send(
        http::Method::POST,
        &format!("/v1/sandboxes/{sandbox}/files"),
        &headers,
        axum::body::Body::from(form),
    )
    .await
    .expect(201);
    let steps = json!([
        {"tool": "write_file", "with": {"path": "deep/c", "content": "mine"}},
        {"tool": "edit_file", "with": {"path": "deep/c", "old": "mine", "new": "yours"}},
    ]);
    let agent = app.playbook(&team, steps).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "sandbox_id": sandbox}))
        .await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    let names = |dir: PathBuf| -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(app.sandbox_dir(&sandbox)), ["a", "b", "deep"]);
    assert_eq!(names(app.sandbox_dir(&sandbox).join("deep")), ["c"]);
    assert!(names(app.dir().join("sandboxes/.unfinished")).is_empty());
    let strange: Vec<String> = names(app.dir().to_owned())
        .into_iter()
        .filter(|name| name.starts_with(".tmp"))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    app.finish().await;
}
