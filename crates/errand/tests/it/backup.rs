//! Backups: made while runs are active, restored, and continued. Copies of a directory in use are refused.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use errand::admin::socket::{AdminSocket, call};
use errand::admin::{Admin, AdminRequest};
use errand::backup::{Made, Progress, Source, make, restore, verify};
use errand_sandbox::{ChangeKind, Root};
use errand_store::AuditScope;
use errand_testkit::{Team, TestApp, TestOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// An upper bound, not a measurement.
const PATIENCE: Duration = Duration::from_secs(120);
/// Number of edits of each run's file.
const EDITS: u32 = 8;

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_errand").into()
}

fn source(app: &TestApp) -> Source {
    Source {
        data_dir: app.dir().to_owned(),
        changes: app.app().changes().clone(),
        clock: app.clock().clone(),
    }
}

async fn back_up(app: &TestApp, to: &Path) -> Made {
    let (source, to) = (source(app), to.to_owned());
    let made =
        tokio::task::spawn_blocking(move || make(&source, &to, &Arc::new(Progress::default())));
    tokio::time::timeout(PATIENCE, made)
        .await
        .expect("a backup that ends")
        .unwrap()
        .unwrap()
}

/// Empties a data directory and restores a backup to it.
fn bring_back(backup: &Path, data_dir: &Path) {
    for entry in std::fs::read_dir(data_dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }
    restore(backup, data_dir, &Progress::default()).unwrap();
}

fn refusal(backup: &Path) -> String {
    let error = verify(backup, &Progress::default()).unwrap_err();
    format!("{error:#}")
}

/// Edits that fail on a file of another point in time than the transcript, a command, a timer and an approval.
fn steps() -> Value {
    let edit = |n: u32| {
        let (old, new) = (format!("count {n}"), format!("count {}", n + 1));
        json!({"tool": "edit_file", "with": {"path": "n", "old": old, "new": new}})
    };
    let mut steps =
        vec![json!({"tool": "write_file", "with": {"path": "n", "content": "count 0"}})];
    steps.extend((0..EDITS / 2).map(edit));
    steps.push(json!({"tool": "run_command", "with": {"command": "echo x >> lines; sync lines"}, "on_error": "continue"}));
    steps.push(json!({"wait": "200ms"}));
    steps.push(json!({"approve": {"title": "Go on?"}}));
    steps.extend((EDITS / 2..EDITS).map(edit));
    steps.push(json!({"finish": "done"}));
    Value::Array(steps)
}

/// Answers requests and advances the clock until no run is active.
async fn to_the_end(app: &TestApp, team: &Team) {
    let done = async {
        loop {
            app.advance(Duration::from_secs(1)).await;
            let path = "/v1/runs?limit=100&status=waiting";
            let list = app.get(&team.key, path).await.expect(200);
            let waiting = list["runs"].as_array().unwrap().clone();
            if waiting.is_empty() && app.store().busy(app.now()).await.unwrap().is_none() {
                return;
            }
            for run in waiting {
                answer(app, team, run["id"].as_str().unwrap()).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, done)
        .await
        .expect("runs that end");
}

async fn answer(app: &TestApp, team: &Team, run: &str) {
    let found = app.get_run(team, run).await;
    let Some(request) = found["pending_human_request"]["id"].as_str() else {
        return;
    };
    let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
    app.post(&team.key, &path, json!({"approved": true})).await;
}

async fn all_runs(app: &TestApp, team: &Team) -> Vec<Value> {
    let list = app.get(&team.key, "/v1/runs?limit=100").await.expect(200);
    list["runs"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_run_continues_after_restoring_a_backup_under_load() {
    let mut app = TestApp::start_with(TestOptions {
        helper: Some(program()),
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, steps()).await;
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    // Some wait for a person, some for a timer; others start during the backups.
    for _ in 0..8 {
        app.run(&team, json!({"agent_id": agent})).await;
    }
    app.settle().await;
    app.advance(Duration::from_secs(1)).await;
    let waiting = all_runs(&app, &team).await;
    let load = async {
        for run in &waiting {
            app.run(&team, json!({"agent_id": agent})).await;
            answer(&app, &team, run["id"].as_str().unwrap()).await;
        }
        for _ in 0..16 {
            app.run(&team, json!({"agent_id": agent})).await;
        }
    };
    let backups = async { (back_up(&app, &first).await, back_up(&app, &second).await) };
    let ((), (made, later)) = tokio::join!(load, backups);
    assert!(!made.manifest.sandboxes.is_empty(), "{made:?}");
    assert!(later.manifest.taken_at >= made.manifest.taken_at);

    for backup in [&first, &second] {
        app.die().await;
        bring_back(backup, app.dir());
        app.come_back().await.unwrap();
        to_the_end(&app, &team).await;
        let runs = all_runs(&app, &team).await;
        assert!(runs.len() >= 8);
        for run in &runs {
            assert_eq!(run["status"], "completed", "{run:#}");
            let sandbox = run["sandbox_id"].as_str().unwrap();
            let file = app.sandbox_dir(sandbox).join("n");
            assert_eq!(
                std::fs::read_to_string(file).unwrap(),
                format!("count {EDITS}")
            );
        }
        let found = app.store().audit(AuditScope::All, app.now()).await.unwrap();
        assert!(found.is_empty(), "{found:?}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn file_changes_wait_for_the_copy_of_their_sandbox() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let (mine, other) = (app.sandbox(&team).await, app.sandbox(&team).await);
    for sandbox in [&mine, &other] {
        app.upload(&team.key, sandbox, "file", "before")
            .await
            .expect(201);
    }
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    // Stops at its point in time, like a backup with much to copy.
    let armed = app.app().changes().arm().unwrap();
    {
        let upload = app.upload(&team.key, &mine, "file", "after");
        tokio::pin!(upload);
        let waits = async {
            while app.app().changes().waiting() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            reply = &mut upload => panic!("an upload waits for the point in time: {reply:?}"),
            waits = tokio::time::timeout(PATIENCE, waits) => waits.expect("an upload that waits"),
        }
        drop(armed);
        upload.await.expect(201);
    }

    let made = back_up(&app, &backup).await;
    assert_eq!(made.manifest.sandboxes.len(), 2);
    app.upload(&team.key, &mine, "file", "later")
        .await
        .expect(201);
    app.die().await;
    bring_back(&backup, app.dir());
    app.come_back().await.unwrap();
    let read = |sandbox: &str| std::fs::read_to_string(app.sandbox_dir(sandbox).join("file"));
    assert_eq!(read(&mine).unwrap(), "after");
    assert_eq!(read(&other).unwrap(), "before");
    app.finish().await;
}

/// A backup of an app with one file.
async fn small_backup() -> (TempDir, PathBuf) {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "file", "content")
        .await
        .expect(201);
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    back_up(&app, &backup).await;
    app.finish().await;
    (dir, backup)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_is_found_before_anything_is_restored() {
    let (dir, backup) = small_backup().await;
    verify(&backup, &Progress::default()).unwrap();
    let archives = std::fs::read_dir(backup.join("sandboxes")).unwrap();
    let mut files: Vec<PathBuf> = archives.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    files.extend(
        ["errand.db", "manifest.json", "manifest.json.sha256"]
            .iter()
            .map(|name| backup.join(name)),
    );
    for file in &files {
        let whole = std::fs::read(file).unwrap();
        for place in [0, whole.len() / 2, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[place] ^= 1;
            std::fs::write(file, changed).unwrap();
            let target = dir.path().join("target");
            let error = restore(&backup, &target, &Progress::default()).unwrap_err();
            assert!(
                format!("{error:#}").contains("SHA-256"),
                "{}: {error:#}",
                file.display()
            );
            assert!(!target.exists());
        }
        std::fs::write(file, &whole[..whole.len() - 1]).unwrap();
        assert!(refusal(&backup).contains("SHA-256"), "cut short");
        std::fs::write(file, whole).unwrap();
    }
    std::fs::remove_file(&files[0]).unwrap();
    assert!(refusal(&backup).contains("incomplete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_backups_and_nonempty_targets_are_refused() {
    let (dir, backup) = small_backup().await;
    let target = dir.path().join("target");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("master.key"), "kept").unwrap();
    std::fs::write(target.join("other"), "kept").unwrap();
    let progress = Progress::default();
    let refused = restore(&backup, &target, &progress).unwrap_err();
    assert!(format!("{refused:#}").contains("not empty"), "{refused:#}");
    std::fs::remove_file(target.join("other")).unwrap();
    restore(&backup, &target, &progress).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for (name, expected) in [("", 0o700), ("errand.db", 0o600), ("sandboxes", 0o700)] {
        assert_eq!(mode(&target.join(name)), expected, "{name}");
        assert_eq!(mode(&backup.join(name)), expected, "{name}");
    }
    let again = restore(&backup, &target, &progress).unwrap_err();
    assert!(format!("{again:#}").contains("not empty"), "{again:#}");

    // The file that is written last is missing, so the backup was interrupted.
    std::fs::remove_file(backup.join("manifest.json.sha256")).unwrap();
    let cut_off = restore(&backup, &dir.path().join("new"), &progress).unwrap_err();
    assert!(
        format!("{cut_off:#}").contains("not contain a complete backup"),
        "{cut_off:#}"
    );
    assert!(!dir.path().join("new").exists());

    // A backup needs its own directory.
    let app = TestApp::start().await;
    for (to, why) in [
        (backup.clone(), "not empty"),
        (app.dir().join("backup"), "inside the data directory"),
    ] {
        let refused = make(&source(&app), &to, &Arc::new(Progress::default())).unwrap_err();
        assert!(format!("{refused:#}").contains(why), "{refused:#}");
    }
    assert!(!app.dir().join("backup").exists());
    // A canceled backup leaves nothing that looks like a backup.
    let progress = Arc::new(Progress::default());
    progress.call_off();
    let to = dir.path().join("called-off");
    assert!(make(&source(&app), &to, &progress).is_err());
    assert!(!to.exists());
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_files_of_commands_survive_a_backup_or_are_skipped() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "plain", "text")
        .await
        .expect(201);
    let at = app.sandbox_dir(&sandbox);
    let outside = app.dir().join("outside");
    std::fs::write(&outside, "not of the sandbox").unwrap();
    symlink(&outside, at.join("link")).unwrap();
    symlink("..", at.join("up")).unwrap();
    std::fs::create_dir(at.join("shut")).unwrap();
    std::fs::write(at.join("shut/in"), "deep").unwrap();
    std::fs::write(at.join("unreadable"), "hidden").unwrap();
    let sparse = std::fs::File::create(at.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let mut deep = at.clone();
    for _ in 0..200 {
        deep.push("deeper");
        std::fs::create_dir(&deep).unwrap();
    }
    std::fs::write(deep.join("bottom"), "found").unwrap();
    let long = "x".repeat(150);
    std::fs::write(at.join(&long), "long").unwrap();
    let socket = std::os::unix::net::UnixListener::bind(at.join("socket")).unwrap();
    std::fs::set_permissions(
        at.join("unreadable"),
        std::fs::Permissions::from_mode(0o000),
    )
    .unwrap();
    std::fs::set_permissions(at.join("shut"), std::fs::Permissions::from_mode(0o300)).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let began = Instant::now();
    let made = back_up(&app, &backup).await;
    assert!(began.elapsed() < PATIENCE);
    let line = &made.manifest.sandboxes[0];
    assert_eq!((line.left_out, line.command_was_running), (1, false));
    assert!(line.file.bytes < 10 << 20, "holes take no room: {line:?}");
    drop(socket);
    app.die().await;
    bring_back(&backup, app.dir());
    let at = app.sandbox_dir(&sandbox);
    let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
    assert_eq!((read("plain"), read(&long)), ("text".into(), "long".into()));
    assert_eq!(std::fs::read_link(at.join("link")).unwrap(), outside);
    assert_eq!(std::fs::read_link(at.join("up")).unwrap(), Path::new(".."));
    let mode = |name: &str| {
        let found = std::fs::symlink_metadata(at.join(name)).unwrap();
        found.permissions().mode() & 0o777
    };
    assert_eq!((mode("unreadable"), mode("shut")), (0o000, 0o300));
    std::fs::set_permissions(
        at.join("unreadable"),
        std::fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    std::fs::set_permissions(at.join("shut"), std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(
        (read("unreadable"), read("shut/in")),
        ("hidden".into(), "deep".into())
    );
    assert_eq!(std::fs::metadata(at.join("sparse")).unwrap().len(), 1 << 40);
    let bottom = format!("{}bottom", "deeper/".repeat(200));
    assert_eq!(read(&bottom), "found");
    app.come_back().await.unwrap();
    app.finish().await;
}

/// Runs the program on a data directory.
async fn errand(args: &[&str], data_dir: &Path) -> Output {
    let mut command = Command::new(program());
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .args(args)
        .arg("--data-dir")
        .arg(data_dir)
        .kill_on_drop(true);
    tokio::time::timeout(PATIENCE, command.output())
        .await
        .expect("a command that ends")
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Copies the files of a directory, but not those of its subdirectories.
pub(crate) fn copy_of(dir: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_copies_of_stopped_directories_can_be_opened() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    app.sandbox(&team).await;
    let dir = tempfile::tempdir().unwrap();
    let (live, stopped) = (dir.path().join("live"), dir.path().join("stopped"));
    copy_of(app.dir(), &live);
    // Commands read the test's key from a file.
    std::fs::write(live.join("master.key"), format!("{}\n", "11".repeat(32))).unwrap();
    private(&live.join("master.key"));
    let refused = errand(&["keys", "list"], &live).await;
    let why = text(&refused.stderr);
    assert!(!refused.status.success());
    for expected in ["in use", "errand backup", "--accept-copy"] {
        assert!(why.contains(expected), "{why}");
    }
    let served = errand(&["serve", "--listen", "127.0.0.1:0"], &live).await;
    assert!(
        text(&served.stderr).contains("--accept-copy"),
        "{}",
        text(&served.stderr)
    );

    let original = app.dir().to_owned();
    let kept = dir.path().join("kept");
    let mut app = app;
    app.stop_and_start().await;
    app.die().await;
    copy_of(&original, &stopped);
    std::fs::rename(&stopped, &kept).unwrap();
    std::fs::write(kept.join("master.key"), format!("{}\n", "11".repeat(32))).unwrap();
    private(&kept.join("master.key"));
    let listed = errand(&["keys", "list"], &kept).await;
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    // A backup of a stopped server's directory with the command, and its restore.
    let backup = dir.path().join("backup");
    let made = errand(&["backup", backup.to_str().unwrap(), "--json"], &kept).await;
    assert!(made.status.success(), "{}", text(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["master_key_ids"].as_array().unwrap().len(), 1);
    let restored = dir.path().join("restored");
    let done = errand(&["restore", backup.to_str().unwrap()], &restored).await;
    assert!(done.status.success(), "{}", text(&done.stderr));
    let key = made["master_key_ids"][0].as_str().unwrap();
    assert!(text(&done.stderr).contains(key), "{}", text(&done.stderr));
    let nothing = errand(&["backup", "/nowhere/at/all"], &dir.path().join("none")).await;
    assert!(
        text(&nothing.stderr).contains("no store"),
        "{}",
        text(&nothing.stderr)
    );
    assert!(!dir.path().join("none").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_directory_can_be_copied_despite_a_held_store() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    app.sandbox(&team).await;
    // Like a task that was interrupted, which holds the store until the process ends.
    let held = app.store().clone();
    app.stop().await;
    let refused = held.check_writer().await.unwrap_err();
    assert!(refused.to_string().contains("stopping"), "{refused}");
    assert!(refused.is_passing(), "{refused:?}");
    assert!(held.check_read().await.is_err());
    assert!(app.dir().join("errand.db.closed").exists());
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    copy_of(app.dir(), &copy);
    std::fs::write(copy.join("master.key"), format!("{}\n", "11".repeat(32))).unwrap();
    private(&copy.join("master.key"));
    let listed = errand(&["keys", "list"], &copy).await;
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    // The end of a command also closes the store properly.
    let again = dir.path().join("again");
    copy_of(&copy, &again);
    let listed = errand(&["keys", "list"], &again).await;
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    // It is still this process's directory.
    let listed = errand(&["keys", "list"], app.dir()).await;
    assert!(
        text(&listed.stderr).contains("in use"),
        "{}",
        text(&listed.stderr)
    );
    drop(held);
    app.come_back().await.unwrap();
    app.finish().await;
}

fn private(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_server_makes_and_cancels_the_backup() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "file", "content")
        .await
        .expect(201);
    let store = app.store().clone();
    let admin = Admin::new(store, [4; 32], app.clock().clone(), app.url().to_owned());
    let changes = app.app().changes().clone();
    let socket = AdminSocket::start(app.dir(), admin.serving(4, changes.clone())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("backup");
    let made = errand(&["backup", to.to_str().unwrap()], app.dir()).await;
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("is complete"));
    assert!(text(&made.stderr).contains("NOT in the backup"));
    let checked = errand(&["restore", to.to_str().unwrap(), "--check"], app.dir()).await;
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    // Restoring over the running server is refused, and the server continues.
    let onto = errand(&["restore", to.to_str().unwrap()], app.dir()).await;
    assert!(
        text(&onto.stderr).contains("in use"),
        "{}",
        text(&onto.stderr)
    );
    app.get(&team.key, "/v1/runs").await.expect(200);

    // The caller disconnects while a change of the sandbox delays the backup.
    let root = Root::open(&app.sandbox_dir(&sandbox)).unwrap();
    let id = errand_core::id::SandboxId::parse(&sandbox).unwrap();
    let change = root
        .with_changes(&changes, &id)
        .begin_change(ChangeKind::Write);
    let never = dir.path().join("never");
    let request = AdminRequest::Backup { dir: never.clone() };
    // From here on, the backup waits for the active write.
    let begun = async {
        while !never.join("errand.db").exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        called = call(app.dir(), &request) => panic!("a backup waits for a write: {}", called.is_ok()),
        begun = tokio::time::timeout(PATIENCE, begun) => begun.expect("a backup that begins"),
    }
    drop(change);
    let gone = async {
        // Only one backup runs at a time, so it is over when another one can start.
        while changes.arm().is_none() || never.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("a backup that ends with its caller");
    socket.shut_down().await;
    app.finish().await;
}
