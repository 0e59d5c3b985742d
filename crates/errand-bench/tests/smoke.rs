//! Tests the benchmark itself: each measure runs to its end, in small, against the real program, and the report is
//! written.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_errand-bench");
/// Generous bound for the actions of another process.
const PATIENCE: Duration = Duration::from_secs(60);

/// Builds and returns the program to measure. For tests, Cargo builds only the programs of the same package, so this
/// one is built explicitly, into the same directory and with the same profile.
fn errand() -> PathBuf {
    let profile = Path::new(BENCH).parent().unwrap();
    let mut build = Command::new(env!("CARGO"));
    build
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "errand",
            "--bin",
            "errand",
            "--target-dir",
        ])
        .arg(profile.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(
        build.status().unwrap().success(),
        "errand could not be built"
    );
    profile.join("errand")
}

/// Runs the benchmark, requires success, and returns its output.
fn bench(args: &[&str]) -> String {
    let output = Command::new(BENCH).args(args).output().unwrap();
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{args:?}: {err}\n{out}");
    out
}

#[test]
fn every_measure_runs_and_the_report_contains_it() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(at("measured")).unwrap();
    let program = errand();
    let report = at("performance.md");
    let printed = bench(&[
        "--quick",
        "--binary",
        program.to_str().unwrap(),
        "--dir",
        &at("measured"),
        "--report",
        &report,
        "--date",
        "2026-11-23",
    ]);

    let lines: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines[0]["machine"]["cores"].as_u64().unwrap() > 0);
    let names: Vec<&str> = lines[1..]
        .iter()
        .map(|line| line["measure"].as_str().unwrap())
        .collect();
    assert_eq!(names, bench(&["--list"]).lines().collect::<Vec<_>>());
    for line in &lines[1..] {
        assert_eq!(line["quick"], true, "{line}");
        assert!(
            line["disk"]["fdatasync_per_s"].as_f64().unwrap() > 0.0,
            "{line}"
        );
        assert!(
            line["disk"]["write_mb_per_s"].as_f64().unwrap() > 0.0,
            "{line}"
        );
        let figures = line["figures"].as_array().unwrap();
        assert!(
            figures.iter().any(|figure| figure["goal"].is_object()),
            "{line}"
        );
        assert!(
            figures.iter().all(|figure| figure["measured"].is_number()),
            "{line}"
        );
    }
    let left: Vec<_> = std::fs::read_dir(at("measured")).unwrap().collect();
    assert!(left.is_empty(), "temporary directories stay: {left:?}");

    let text = std::fs::read_to_string(&report).unwrap();
    assert!(text.contains("the values mean nothing"), "{text}");
    for drawing in ["goals", "runs", "latency"] {
        assert!(
            Path::new(&at("performance"))
                .join(format!("{drawing}.svg"))
                .exists(),
            "{drawing}"
        );
    }

    // The same report can be built from saved lines without measuring anything.
    std::fs::write(at("lines"), &printed).unwrap();
    let again = at("again/performance.md");
    assert_eq!(
        bench(&[
            "--results",
            &at("lines"),
            "--report",
            &again,
            "--date",
            "2026-11-23"
        ]),
        ""
    );
    assert_eq!(std::fs::read_to_string(again).unwrap(), text);
}

#[test]
fn a_stopped_benchmark_leaves_no_directories() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, program) = (scratch.path(), errand());
    let made = || std::fs::read_dir(dir).unwrap().count();
    let mut bench = Command::new(BENCH)
        .args(["--only", "waiting", "--binary"])
        .arg(program)
        .arg("--dir")
        .arg(dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while made() == 0 {
        assert!(bench.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(begun.elapsed() < PATIENCE, "it created no directory");
        std::thread::sleep(Duration::from_millis(1));
    }
    let expected = Command::new("kill").arg(bench.id().to_string()).status();
    assert!(expected.unwrap().success());
    assert!(!bench.wait().unwrap().success());
    assert_eq!(made(), 0, "temporary directories were left behind");
}

#[test]
fn missing_dates_and_unknown_measures_are_refused() {
    for (args, expected) in [
        (["--report", "performance.md"], "--date"),
        (["--only", "nothing"], "throughput"),
    ] {
        let output = Command::new(BENCH).args(args).output().unwrap();
        assert!(!output.status.success());
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(err.contains(expected), "{err}");
    }
}
