//! The real server, killed repeatedly under load with `errand selftest`, as an operator runs it.
//!
//! The command itself performs the work and the checks; its unit tests verify that the checks find faults.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

const KILLS: u64 = 20;
const PAUSES: u64 = 3;
const RUNS: u64 = 117;
/// Kinds of runs, each of which must take part.
const KINDS: [&str; 9] = [
    "approval",
    "files",
    "message",
    "permission",
    "question",
    "resume",
    "stop",
    "timer",
    "uploads",
];
/// An upper bound, not a measurement: the command gives up after two minutes without progress.
const PATIENCE: Duration = Duration::from_secs(900);

fn selftest(temporary: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_errand"));
    command
        .env_clear()
        .env("TMPDIR", temporary.path())
        .args(["--json", "selftest"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

fn is_empty(dir: &tempfile::TempDir) -> bool {
    std::fs::read_dir(dir.path()).unwrap().next().is_none()
}

/// Runs a selftest to its end and returns the report.
async fn tested(kills: u64, pauses: u64, runs: u64) -> Value {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = selftest(&temporary);
    for (name, value) in [("--kills", kills), ("--stops", pauses), ("--runs", runs)] {
        command.args([name, &value.to_string()]);
    }
    let done = tokio::time::timeout(PATIENCE, command.output()).await;
    let done = done.expect("a test that ends by itself").unwrap();
    let (said, errors) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}\n{errors}"));
    for (name, expected) in [
        ("lost", 0),
        ("repeated", 0),
        ("stuck", 0),
        ("runs", runs),
        ("kills", kills),
        ("pauses", pauses),
    ] {
        assert_eq!(report[name], expected, "{name}: {report:#}");
    }
    assert_eq!(done.status.code(), Some(0), "{errors}");
    assert_eq!(report["kept"], Value::Null);
    assert!(is_empty(&temporary), "nothing is left behind");
    report
}

#[tokio::test]
async fn killed_twenty_times_under_load() {
    let report = tested(KILLS, PAUSES, RUNS).await;
    let each: Value = KINDS
        .iter()
        .map(|kind| ((*kind).to_owned(), json!(13)))
        .collect();
    assert_eq!(report["kinds"], each, "runs of every kind take part");
    let (webhooks, deliveries) = (report["webhooks"].as_u64(), report["deliveries"].as_u64());
    assert!(webhooks > Some(RUNS), "a webhook for each end and more");
    assert!(deliveries > webhooks, "what was refused came again");
}

/// One kill per two runs: the same runs meet many kills, and each run parked because of that would count as stuck.
#[tokio::test]
async fn thirty_kills_of_the_program_park_no_run() {
    tested(30, 0, 63).await;
}

#[tokio::test]
async fn a_terminated_selftest_ends_its_server() {
    let temporary = tempfile::tempdir().unwrap();
    let place = tempfile::tempdir_in(&temporary).unwrap();
    // More work than the test waits for, so it is interrupted.
    let mut command = selftest(&place);
    command.args(["--kills", "0", "--stops", "0", "--runs", "100000"]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = async {
        // The server has created its database, so it is running.
        let data = loop {
            let dir = std::fs::read_dir(place.path()).unwrap().next();
            let data = dir.map(|dir| dir.unwrap().path().join("data"));
            if let Some(data) = data.filter(|data| data.join("admin.sock").exists()) {
                break data;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let id = child.id().unwrap().to_string();
        let told = std::process::Command::new("/bin/sh")
            .args(["-c", "kill -s TERM \"$0\"", &id])
            .status();
        assert!(told.unwrap().success());
        assert_eq!(child.wait().await.unwrap().code(), Some(1));
        data
    };
    let data = tokio::time::timeout(PATIENCE, ended).await;
    let data = data.expect("a test that ends when it is told to");
    // Its directory is kept because the test was not completed; no process uses it any more.
    let lock = std::fs::File::open(data.join("lock")).unwrap();
    lock.try_lock().expect("the server has ended");
}
