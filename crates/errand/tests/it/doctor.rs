//! `errand doctor`: the real command, with and without a running server, and its findings.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use errand::admin::Admin;
use errand::admin::socket::AdminSocket;
use errand::doctor::{Check, Level, Subject, examine};
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use errand_testkit::TestApp;
use serde_json::{Value, json};
use tokio::process::Command;

/// An upper bound, not a measurement.
const PATIENCE: Duration = Duration::from_secs(120);
const HOUR_MS: u64 = 3_600_000;

/// Runs `errand doctor` on a directory. Returns whether it succeeded, its standard output, and its standard error.
async fn doctor(dir: &Path, more: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_errand"));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        // The key of the testkit's apps.
        .env("ERRAND_MASTER_KEY", "11".repeat(32))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .arg("doctor")
        .args(more)
        .arg("--data-dir")
        .arg(dir);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .expect("a command that ends")
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

async fn doctor_json(dir: &Path) -> (bool, Value) {
    let (went_well, stdout, stderr) = doctor(dir, &["--json"]).await;
    let report: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout} {stderr}"));
    // The test does not depend on the machine.
    assert_eq!(report["problems"] == 0, went_well, "{report:#}");
    (went_well, report)
}

/// The lines of one check.
fn lines<'r>(report: &'r Value, check: &str) -> Vec<&'r Value> {
    let all = report["checks"].as_array().unwrap();
    all.iter().filter(|line| line["check"] == check).collect()
}

#[track_caller]
fn level_is(report: &Value, check: &str, level: &str, found: &str) {
    let lines = lines(report, check);
    assert!(
        lines
            .iter()
            .any(|line| line["level"] == level && line["found"].as_str().unwrap().contains(found)),
        "no {level} of {check} with {found:?}: {report:#}"
    );
}

/// Checks that do not depend on the machine.
const OF_DATA: [&str; 10] = [
    "store",
    "server",
    "database file",
    "invariants",
    "active runs",
    "waiting work",
    "clock",
    "master key",
    "other programs",
    "sandboxes",
];

#[tokio::test]
async fn a_directory_is_checked_with_and_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = dir.path().join("not/there/yet");
    let (_, report) = doctor_json(&fresh).await;
    level_is(&report, "store", "problem", "there is no store in");
    level_is(&report, "isolation", "ok", "bwrap");
    assert!(!fresh.exists(), "looking makes nothing");
    for check in ["settings", "disk", "file system", "open files"] {
        assert_eq!(lines(&report, check).len(), 1, "{check}: {report:#}");
    }

    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "a", "mine")
        .await
        .expect(201);
    let admin = Admin::new(
        app.store().clone(),
        [5; 32],
        app.clock().clone(),
        app.url().to_owned(),
    );
    let socket =
        AdminSocket::start(app.dir(), admin.serving(4, app.app().changes().clone())).unwrap();
    let (_, report) = doctor_json(app.dir()).await;
    for check in OF_DATA {
        level_is(&report, check, "ok", "");
    }
    level_is(&report, "server", "ok", "a server runs");
    level_is(&report, "sizes", "ok", "in 1 files");
    level_is(&report, "active runs", "ok", "of at most 4");
    let (_, table, _) = doctor(app.dir(), &[]).await;
    assert!(table.starts_with("CHECK"), "{table}");
    assert!(table.contains("invariants"), "{table}");
    socket.shut_down().await;

    // The lock is held but the holder does not answer, as during a start.
    let (went_well, report) = doctor_json(app.dir()).await;
    assert!(!went_well);
    level_is(&report, "store", "problem", "nothing answers");
    assert_eq!(
        lines(&report, "disk").len(),
        1,
        "the rest is looked at all the same"
    );

    app.finish().await;

    let key = "11".repeat(32);
    let settings = [("ERRAND_MASTER_KEY", key.as_str())];
    let server = crate::process::Process::start_with(&fresh, &[], &settings, None).await;
    assert_eq!(server.stop().await, Some(0));
    let (_, report) = doctor_json(&fresh).await;
    for check in OF_DATA {
        level_is(&report, check, "ok", "");
    }
    level_is(&report, "server", "ok", "no server runs");
}

#[tokio::test]
async fn settings_and_files_that_cannot_be_read_are_problems() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("errand.toml");
    fs::write(&settings, "[engin]\nmax_concurrent_runs = 1\n").unwrap();
    let with = ["--json", "--config", settings.to_str().unwrap()];
    let (went_well, stdout, stderr) = doctor(dir.path(), &with).await;
    assert!(!went_well && stderr.contains("1 problem found"), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    level_is(&report, "settings", "problem", "engin");

    fs::write(
        dir.path().join("errand.db"),
        "this is no database".repeat(1000),
    )
    .unwrap();
    let (went_well, report) = doctor_json(dir.path()).await;
    assert!(!went_well);
    level_is(&report, "store", "problem", "cannot be opened");
    let (_, table, notes) = doctor(dir.path(), &[]).await;
    assert!(table.contains("problem"), "{table}");
    assert!(notes.contains("restore a backup"), "{notes}");
}

/// The findings of the server at another time.
async fn examined(app: &TestApp, now: Timestamp, is_served: bool) -> Vec<Check> {
    examine(&Subject {
        store: app.store().clone(),
        clock: Clock::manual(now),
        places: 4,
        is_served,
    })
    .await
}

/// The levels of one check, and its findings.
fn of(checks: &[Check], check: &str) -> (Vec<Level>, String) {
    let lines = || checks.iter().filter(|line| line.check == check);
    (
        lines().map(|line| line.level).collect(),
        lines().map(|line| line.found.as_str()).collect(),
    )
}

#[tokio::test]
async fn unclaimed_work_is_found() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for steps in [
        json!([{"wait": "1h"}]),
        json!([{"approve": {"title": "Go on?", "expires_in": "2h"}}]),
    ] {
        let agent = app.playbook(&team, steps).await;
        app.run(&team, json!({"agent_id": agent})).await;
    }
    let says = app.playbook(&team, json!([{"finish": "done"}])).await;
    let body = json!({"agent_id": says, "webhook_url": "http://127.0.0.1:1/hook"});
    app.run(&team, body).await;
    app.settle().await;
    // The app's own clock does not advance, so due work is not started.
    let later = |ms| app.now().plus_ms(ms);
    for (ms, levels) in [
        (0, vec![Level::Ok]),
        (HOUR_MS + 59_000, vec![Level::Warning]),
        (HOUR_MS + 61_000, vec![Level::Problem, Level::Warning]),
        (
            2 * HOUR_MS + 61_000,
            vec![Level::Problem, Level::Problem, Level::Warning],
        ),
    ] {
        let checks = examined(&app, later(ms), true).await;
        assert_eq!(
            of(&checks, "waiting work").0,
            levels,
            "after {ms} ms: {checks:#?}"
        );
    }
    let checks = examined(&app, later(3 * HOUR_MS), false).await;
    let (levels, found) = of(&checks, "waiting work");
    assert_eq!(levels, [Level::Ok], "without a server nobody could have");
    assert!(found.contains("the next start processes them"), "{found}");
    app.finish().await;
}

#[tokio::test]
async fn a_clock_that_was_set_back_is_found() {
    let app = TestApp::start().await;
    app.team("acme").await;
    let earlier = |ms: i64| Timestamp::from_millis(app.now().as_millis() - ms);
    let at = async |now| of(&examined(&app, now, true).await, "clock").0;
    assert_eq!(at(app.now()).await, [Level::Ok]);
    assert_eq!(at(earlier(5_000)).await, [Level::Ok]);
    assert_eq!(at(earlier(5_001)).await, [Level::Problem]);
    app.finish().await;
}

#[tokio::test]
async fn directories_that_are_unknown_or_lost_are_found() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (written, unused) = (app.sandbox(&team).await, app.sandbox(&team).await);
    let steps = json!([{"tool": "write_file", "with": {"path": "a", "content": "mine"}}]);
    let agent = app.playbook(&team, steps).await;
    app.run(&team, json!({"agent_id": agent, "sandbox_id": written}))
        .await;
    app.settle().await;
    let sandboxes = async || of(&examined(&app, app.now(), true).await, "sandboxes");
    let (levels, found) = sandboxes().await;
    assert_eq!(levels, [Level::Ok], "{found}");
    assert!(
        !app.sandbox_dir(&unused).exists(),
        "that is no fault: it was never used"
    );

    let stranger = app.sandbox_dir(&format!("sb_{}", "7".repeat(32)));
    fs::create_dir(&stranger).unwrap();
    fs::write(stranger.join("file"), vec![7; 100_000]).unwrap();
    fs::remove_dir_all(app.sandbox_dir(&written)).unwrap();
    let (levels, found) = sandboxes().await;
    assert_eq!(levels, [Level::Warning, Level::Problem], "{found}");
    assert!(
        found.contains("1 sandbox directories are not in the database") && found.contains(&written),
        "{found}"
    );
    app.finish().await;
}
