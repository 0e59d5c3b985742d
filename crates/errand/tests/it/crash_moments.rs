//! Crashes at moments that load alone rarely hits: while a store is opened, between the last file of a backup and its
//! manifest, and between freeing the reserved space on a full disk and the commit that uses it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use errand::admin::socket::call;
use errand::admin::{AdminAnswer, AdminRequest};
use errand_store::{AuditScope, Fault, Faults, Store, Trial};
use errand_testkit::{TestApp, TestOptions};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::backup::copy_of;
use crate::process::{LOOK_EVERY, Process, ended, errand, within};

/// Size in bytes of the space reserved for stops on a full disk.
const RESERVE_BYTES: u64 = 4 << 20;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    within(what, wait).await;
}

/// A server starts on the remains of a crash, works, and stops properly.
async fn goes_on(data: &Path) {
    let server = Process::start(data).await;
    server.post("/v1/sandboxes", json!({})).await;
    assert_eq!(server.stop().await, Some(0));
}

#[tokio::test]
async fn a_kill_during_the_first_start_leaves_a_usable_directory() {
    for name in [
        "lock",
        "errand.db.making",
        "master.key",
        "errand.db",
        "store.mark.new",
        "store.mark",
        "errand.reserve",
        "admin.sock",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut server = Process::begin(&data, &[], &[], None);
        // A short-lived state can be missed. Then the kill happens later, which must be harmless as well.
        let begun = async {
            while !data.join(name).exists() && !server.log().contains("listening on ") {
                tokio::task::yield_now().await;
            }
        };
        within("a start", begun).await;
        server.child.kill().await.unwrap();
        goes_on(&data).await;
    }
}

/// Users in the older store below.
const USERS: i64 = 1_000;
/// Its schema.
const OLDER: i32 = 4;
/// Whether a start has come to a certain moment.
type Reached<'a> = Box<dyn Fn(&Path) -> bool + 'a>;

/// The schema of a database that a server is migrating. `None` while it cannot be read.
fn schema_of(data: &Path) -> Option<i64> {
    let conn = rusqlite::Connection::open_with_flags(
        data.join("errand.db"),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    );
    let newest = "SELECT max(version) FROM refinery_schema_history";
    conn.ok()?.query_row(newest, [], |row| row.get(0)).ok()
}

#[tokio::test]
async fn a_kill_at_any_moment_of_an_upgrade_leaves_a_store_that_completes_it() {
    let known = Store::schema_known();
    let copy = format!("errand.db.before-V{known}");
    let copying = format!("{copy}.new");
    let mut moments: Vec<Reached<'_>> = vec![
        Box::new(|data: &Path| data.join(&copying).exists()),
        Box::new(|data: &Path| data.join(&copy).exists()),
    ];
    for schema in [5, 7, 9, 13, known] {
        moments.push(Box::new(move |data: &Path| {
            schema_of(data).is_some_and(|found| found >= schema)
        }));
    }
    for reached in &moments {
        let dir = tempfile::tempdir().unwrap();
        Trial::create_older_database(dir.path(), OLDER).unwrap();
        let conn = rusqlite::Connection::open(dir.path().join("errand.db")).unwrap();
        conn.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO users (id, created_at) SELECT randomblob(16), i FROM n",
            [USERS],
        )
        .unwrap();
        drop(conn);
        let mut server = Process::begin(dir.path(), &[], &[], None);
        // A moment that is too short may be missed: then the kill comes later, which must do no harm either.
        let begun = async {
            while !reached(dir.path()) && !server.log().contains("listening on ") {
                tokio::task::yield_now().await;
            }
        };
        within("an upgrade", begun).await;
        server.child.kill().await.unwrap();
        goes_on(dir.path()).await;
        assert_eq!(schema_of(dir.path()), Some(known));
        assert!(dir.path().join(&copy).exists(), "the way back is kept");
        let conn = rusqlite::Connection::open(dir.path().join("errand.db")).unwrap();
        let kept = "SELECT count(*) FROM users WHERE created_at BETWEEN 1 AND ?1";
        let kept: i64 = conn.query_row(kept, [USERS], |row| row.get(0)).unwrap();
        assert_eq!(kept, USERS);
    }
}

#[tokio::test]
async fn a_kill_between_the_mark_and_the_first_write_is_no_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (first, data) = (dir.path().join("first"), dir.path().join("data"));
    goes_on(&first).await;
    // A copy of a stopped directory: the mark that the start writes names another file than the present one.
    copy_of(&first, &data);
    let mark = || -> Value {
        let text = std::fs::read(data.join("store.mark")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let before = mark();
    assert_eq!(before["closed"], true);
    // While this connection holds the lock, the server waits between its mark and its first write.
    let foreign = rusqlite::Connection::open(data.join("errand.db")).unwrap();
    // On a busy machine, the mark may name the log before the kill. As the last connection, this one would remove the log.
    let keeps_log = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    foreign.set_db_config(keeps_log, true).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut server = Process::begin(&data, &[], &[], None);
    until("a mark that says open", || mark()["closed"] == false).await;
    assert_ne!(mark()["database"], before["database"]);
    server.child.kill().await.unwrap();
    assert!(!server.log().contains("listening on "), "{}", server.log());
    foreign.execute_batch("ROLLBACK").unwrap();
    drop(foreign);
    goes_on(&data).await;
    // Nor do the remains of a kill before the rename.
    std::fs::write(data.join("store.mark.new"), "{\"clo").unwrap();
    goes_on(&data).await;
    assert!(!data.join("store.mark.new").exists());
}

/// Number of saved sandboxes of the active backup, and of all its sandboxes.
async fn saved(data: &Path) -> (u64, u64) {
    let answer = call(data, &AdminRequest::BackupProgress).await.unwrap();
    let AdminAnswer::BackupProgress { progress } = answer else {
        panic!("an answer about a backup");
    };
    progress.map_or((0, 0), |line| (line.files, line.files_all))
}

async fn until_saved(data: &Path, wanted: (u64, u64)) {
    let is = async {
        while saved(data).await != wanted {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    within(&format!("a backup at {wanted:?}"), is).await;
}

#[tokio::test]
async fn a_backup_killed_before_its_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("data"), dir.path().join("backup"));
    let mut server = Process::start(&data).await;
    let write = json!({"tool": "write_file", "with": {"path": "file", "content": "x"}});
    let agent = server.agent(json!([write, {"finish": "done"}])).await;
    let quiet = server.run(json!({"agent_id": agent})).await;
    server
        .until_run(&quiet, |run| run["status"] == "completed")
        .await;
    let command = "touch begun; while [ ! -e go ]; do sleep 0.05; done";
    let steps = json!([{"tool": "run_command", "with": {"command": command}}, {"finish": "done"}]);
    let agent = server.agent(steps).await;
    let busy = server.run(json!({"agent_id": agent})).await;
    let run = server
        .until_run(&busy, |run| run["sandbox_id"].is_string())
        .await;
    let sandbox = data
        .join("sandboxes")
        .join(run["sandbox_id"].as_str().unwrap());
    until("a command that runs", || sandbox.join("begun").exists()).await;

    let mut backup = errand(&data, &["backup", to.to_str().unwrap()]);
    let backup = backup
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It has copied the database, and waits for the command, whose sandbox is the last one.
    until_saved(&data, (1, 2)).await;
    let (database, kept) = (to.join("errand.db"), dir.path().join("kept.db"));
    std::fs::rename(&database, &kept).unwrap();
    // Opening a pipe for reading waits for a writer, so the backup stops here.
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &database, FileType::Fifo, mode, 0).unwrap();
    std::fs::write(sandbox.join("go"), "").unwrap();
    until_saved(&data, (2, 2)).await;
    server.child.kill().await.unwrap();
    std::fs::rename(&kept, &database).unwrap();
    let backup = within("a command that ends", backup.wait_with_output()).await;
    let backup = backup.unwrap();
    assert_eq!(backup.status.code(), Some(1), "{}", text(&backup.stderr));
    let archives = std::fs::read_dir(to.join("sandboxes")).unwrap().count();
    assert_eq!(archives, 2);
    assert!(!to.join("manifest.json").exists());

    let restored = dir.path().join("restored");
    for more in [&[][..], &["--check"]] {
        let mut words = vec!["restore", to.to_str().unwrap()];
        words.extend(more);
        let refused = ended(&mut errand(&restored, &words)).await;
        assert_eq!(refused.code, Some(1), "{}", refused.text);
        assert!(
            refused.says("does not contain a complete backup"),
            "{}",
            refused.text
        );
        assert!(!restored.exists());
    }
    let server = Process::start(&data).await;
    let again = ended(&mut errand(&data, &["backup", to.to_str().unwrap()])).await;
    assert!(again.says("is not empty"), "{}", again.text);
    let next = dir.path().join("next");
    let made = ended(&mut errand(&data, &["backup", next.to_str().unwrap()])).await;
    assert_eq!(made.code, Some(0), "{}\n{}", made.text, server.log());
    assert_eq!(server.stop().await, Some(0));
    let done = ended(&mut errand(&restored, &["restore", next.to_str().unwrap()])).await;
    assert_eq!(done.code, Some(0), "{}", done.text);
    std::fs::copy(data.join("master.key"), restored.join("master.key")).unwrap();
    goes_on(&restored).await;
}

/// Once armed, every commit finds the disk full until the reserve is freed, and the program dies at the next commit.
#[derive(Default)]
struct FullThenDead {
    /// Path of the reserve, once armed.
    reserve: Mutex<Option<PathBuf>>,
    written: bool,
}

impl Faults for FullThenDead {
    fn at_commit(&self) -> Fault {
        match self.reserve.lock().unwrap().as_deref() {
            None => Fault::None,
            Some(reserve) if reserve.exists() => Fault::Full,
            Some(_) => Fault::Broken {
                written: self.written,
            },
        }
    }
}

async fn stop_that_dies_after_the_reserve_is_given_up(written: bool) {
    let faults = Arc::new(FullThenDead {
        written,
        ..FullThenDead::default()
    });
    let mut app = TestApp::start_with(TestOptions {
        trial: Trial {
            faults: Some(Arc::clone(&faults) as Arc<dyn Faults>),
            ..Trial::default()
        },
        ..TestOptions::default()
    })
    .await;
    let team = app.team("acme").await;
    let agent = app
        .playbook(
            &team,
            json!([{"approve": {"title": "Go on?"}}, {"finish": "done"}]),
        )
        .await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let reserve = app.dir().join("errand.reserve");
    let kept = || std::fs::metadata(&reserve).map_or(0, |found| found.len());
    assert_eq!(kept(), RESERVE_BYTES);

    *faults.reserve.lock().unwrap() = Some(reserve.clone());
    let stop = format!("/v1/runs/{run}/stop");
    let reply = app.post(&team.key, &stop, json!({})).await;
    assert_eq!(reply.status, 503, "{}", text(&reply.bytes));
    within("a store that is closed", app.ended()).await;
    assert_eq!(kept(), 0, "it was given up for the stop");
    app.die().await;
    *faults.reserve.lock().unwrap() = None;
    app.come_back().await.unwrap();
    assert_eq!(kept(), RESERVE_BYTES, "it is made again");
    app.settle().await;
    let found = app.store().audit(AuditScope::All, app.now()).await.unwrap();
    assert!(found.is_empty(), "{found:?}");
    let got = app.get_run(&team, &run).await;
    if written {
        assert_eq!(got["run"]["status"], "interrupted", "{got}");
        assert_eq!(got["pending_human_request"], Value::Null, "{got}");
    } else {
        assert_eq!(got["run"]["status"], "waiting", "{got}");
        assert!(got["pending_human_request"].is_object(), "{got}");
        app.post(&team.key, &stop, json!({})).await.expect(200);
        assert_eq!(app.status(&team, &run).await, "interrupted");
    }
    app.run(&team, json!({"agent_id": agent})).await;
    app.finish().await;
}

#[tokio::test]
async fn a_stop_whose_commit_was_lost_leaves_the_run_as_it_was() {
    stop_that_dies_after_the_reserve_is_given_up(false).await;
}

#[tokio::test]
async fn a_stop_whose_commit_was_on_disk_holds_after_the_restart() {
    stop_that_dies_after_the_reserve_is_given_up(true).await;
}
