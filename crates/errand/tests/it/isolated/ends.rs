//! How a command ends, and that nothing of it remains.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use super::{Bench, PATIENCE, Real, is_root, processes_with, until_gone};

#[tokio::test]
async fn at_the_time_limit_it_is_asked_and_then_killed() {
    let bench = Bench::start().await;
    let polite = json!({"command": "trap 'echo bye; exit 9' TERM; echo hi; sleep 271.1 & wait", "timeout_s": 1});
    let result = bench.call(polite).await.unwrap();
    assert_eq!(
        (&result["timed_out"], &result["exit_code"]),
        (&json!(true), &json!(9)),
        "{result:#}"
    );
    assert_eq!(result["stdout"], "hi\nbye\n");
    let deaf =
        json!({"command": "trap '' TERM; echo hi; while :; do sleep 271.2; done", "timeout_s": 1});
    let result = bench.call(deaf).await.unwrap();
    assert_eq!(
        (&result["timed_out"], &result["exit_code"]),
        (&json!(true), &json!(137)),
        "{result:#}"
    );
    assert_eq!(result["stdout"], "hi\n");
    assert!(processes_with("sleep 271.").is_empty());
    bench.finish().await;
}

#[tokio::test]
async fn nothing_outlives_a_command() {
    let bench = Bench::start().await;
    let script = "setsid sleep 272.1 & (setsid setsid sleep 272.2 &) & nohup bash -c 'trap \"\" TERM HUP; sleep 272.3' & disown -a; ( (sleep 272.4 &) & ); echo started";
    let result = bench.call(json!({"command": script})).await.unwrap();
    assert_eq!(
        (&result["exit_code"], &result["timed_out"]),
        (&json!(0), &json!(false)),
        "{result:#}"
    );
    assert!(result["stdout"].as_str().unwrap().contains("started"));
    // Whatever ended the command has also waited for it, so no waiting is needed here.
    assert!(processes_with("sleep 272.").is_empty());
    bench.finish().await;
}

#[tokio::test]
async fn a_stop_of_the_run_ends_the_command_and_keeps_what_it_wrote() {
    let bench = Bench::start().await;
    let run = bench
        .begin(json!([{"tool": "run_command", "with": {"command": "echo begun; touch there; setsid sleep 273.1 & sleep 273.2"}}, {"finish": "x"}]))
        .await;
    bench.until_there("there").await;
    let path = format!("/v1/runs/{run}/stop");
    bench
        .app
        .post(&bench.team.key, &path, json!({}))
        .await
        .expect(200);
    assert_eq!(bench.app.status(&bench.team, &run).await, "interrupted");
    until_gone("sleep 273.").await;
    // The sandbox is free again once the driver has left it.
    assert_eq!(bench.stdout("echo next").await, "next\n");
    bench.finish().await;
}

#[tokio::test]
async fn a_graceful_stop_ends_the_command_and_commits_that() {
    let mut bench = Bench::start_with(&[("ERRAND_SERVER__SHUTDOWN_GRACE_S", "6")]).await;
    let run = bench
        .begin(json!([{"tool": "run_command", "with": {"command": "echo begun; touch there; sleep 274.1; echo never"}, "as": "r"}, {"finish": "went on: {{ r.ended_by }}"}]))
        .await;
    bench.until_there("there").await;
    bench.app.stop_and_start().await;
    assert!(processes_with("sleep 274.").is_empty());
    let ended = bench.ended(&run).await;
    assert_eq!(ended["run"]["status"], "completed", "{ended:#}");
    let results = bench.results(&run).await;
    let result = results[0].as_ref().unwrap();
    assert_eq!(
        (&result["ended_by"], &result["exit_code"]),
        (&json!("server_stop"), &json!(143)),
        "{result:#}"
    );
    assert_eq!(result["stdout"], "begun\n");
    bench.finish().await;
}

#[tokio::test]
async fn a_crash_leaves_no_process_and_informs_the_model() {
    let mut bench = Bench::start().await;
    let run = bench
        .begin(json!([{"tool": "run_command", "with": {"command": "touch there; sleep 275.1"}, "on_error": "continue"}, {"finish": "x"}]))
        .await;
    bench.until_there("there").await;
    bench.app.crash().await;
    assert_eq!(bench.ended(&run).await["run"]["status"], "completed");
    let results = bench.results(&run).await;
    let error = results[0].as_ref().unwrap_err();
    assert!(
        error.starts_with("outcome_unknown: the server restarted"),
        "{error}"
    );
    until_gone("sleep 275.").await;
    bench.finish().await;
}

#[tokio::test]
async fn a_server_that_is_killed_leaves_no_process() {
    let (dir, temporary) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let env = [("TMPDIR", temporary.path().to_str().unwrap())];
    let before = groups(Path::new(CGROUPS));
    let mut server = Real::start(dir.path(), &env).await;
    let run = server
        .begin("trap '' TERM HUP; setsid sleep 277.1 & sleep 277.2")
        .await;
    let begun = async {
        while processes_with("sleep 277.").len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, begun)
        .await
        .expect("a command that begins");
    let pid = server.child.id().unwrap();
    let helpers = until_ready(pid).await;
    // SIGKILL: no handler of the server runs.
    server.child.start_kill().unwrap();
    server.child.wait().await.unwrap();
    until_gone("sleep 277.").await;
    until_ended(&helpers).await;
    // The remains of a server that was killed during its probe.
    let trial = temporary.path().join(".errand-isolation-trial-left");
    std::fs::create_dir_all(trial.join("workspace")).unwrap();
    std::fs::write(trial.join("workspace/trial"), "").unwrap();
    let opened = std::fs::File::open(&trial).unwrap();
    opened.set_modified(std::time::UNIX_EPOCH).unwrap();
    let server = Real::start(dir.path(), &env).await;
    let told = server.last_words(&run).await;
    assert!(!trial.exists());
    assert_eq!(made_by(pid, &before), []);
    assert!(
        told.contains("outcome_unknown: the server restarted"),
        "{told}"
    );
}

/// When the server stops properly, the helper that waits for the next command ends too, and its cgroup is removed.
#[tokio::test]
async fn a_graceful_stop_leaves_nothing_that_was_made_ready() {
    let dir = TempDir::new().unwrap();
    let before = groups(Path::new(CGROUPS));
    let mut server = Real::start(dir.path(), &[]).await;
    let run = server.begin("true").await;
    server.last_words(&run).await;
    let pid = server.child.id().unwrap();
    let helpers = until_ready(pid).await;
    let cleared = async {
        // The helper's cgroup remains, if there are cgroups at all.
        while made_by(pid, &before).len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, cleared)
        .await
        .expect("a command whose cgroup is removed");
    let told = std::process::Command::new("/bin/sh")
        .args(["-c", "kill -s TERM \"$0\"", &pid.to_string()])
        .status();
    assert!(told.unwrap().success());
    let ended = tokio::time::timeout(PATIENCE, server.child.wait()).await;
    assert!(ended.expect("a server that stops").unwrap().success());
    until_ended(&helpers).await;
    assert_eq!(made_by(pid, &before), []);
}

/// Waits until a helper waits for a command of this server.
async fn until_ready(server: u32) -> Vec<String> {
    let ready = async {
        loop {
            let helpers = helpers_of(server);
            if !helpers.is_empty() {
                return helpers;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ready)
        .await
        .expect("a helper that is ready for the next command")
}

async fn until_ended(helpers: &[String]) {
    let gone = async {
        while helpers.iter().any(|pid| is_helper(pid)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("a helper that nobody can give an order ends");
}

/// The mount point of cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// All existing cgroups of sandboxes, of all servers: their parent, and their name, which is the same in each
/// hierarchy.
fn groups(above: &Path) -> BTreeSet<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let entries = std::fs::read_dir(above).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.flat_map(|dir| {
        let (outer, inner) = (name(above), name(&dir.path()));
        let is_one = outer.starts_with("errand-");
        let below = groups(&dir.path());
        is_one.then_some((outer, inner)).into_iter().chain(below)
    })
    .collect()
}

/// The cgroups that a server has created since. Its process ID may be that of an earlier server that left cgroups.
fn made_by(server: u32, before: &BTreeSet<(String, String)>) -> Vec<(String, String)> {
    let all = groups(Path::new(CGROUPS)).into_iter();
    all.filter(|group| group.1.starts_with(&format!("{server}-")) && !before.contains(group))
        .collect()
}

/// The process IDs of the helpers that wait for a command of this server.
fn helpers_of(server: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{server}/task")).unwrap();
    let children = threads
        .flatten()
        .map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let children: Vec<String> = children.collect();
    let pids = children.iter().flat_map(|list| list.split_whitespace());
    pids.filter(|pid| is_helper(pid))
        .map(str::to_owned)
        .collect()
}

fn is_helper(pid: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"__exec")
}

/// Processes that have this server's label, but are not of this start, are killed before anything starts.
#[tokio::test]
async fn a_start_kills_what_the_last_one_left() {
    let mut bench = Bench::start().await;
    bench.stdout("true").await;
    let label = label_of(&bench).await;
    let mut left = std::process::Command::new("/bin/sleep");
    left.arg0(&label).arg("276.1");
    if is_root() {
        left.uid(1_900_000_777).gid(1_900_000_777);
    }
    let mut left = left.spawn().unwrap();
    // A process of another user that only has the same label is not killed, if the server is root.
    let stranger = is_root().then(|| {
        let mut stranger = std::process::Command::new("/bin/sleep");
        stranger.arg0(&label).arg("276.2").uid(65534).gid(65534);
        stranger.spawn().unwrap()
    });
    bench.app.crash().await;
    let ended = tokio::task::spawn_blocking(move || left.wait());
    tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("a process that is killed")
        .unwrap()
        .unwrap();
    if let Some(mut stranger) = stranger {
        assert!(
            stranger.try_wait().unwrap().is_none(),
            "a stranger was killed"
        );
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
    assert_eq!(bench.stdout("echo on").await, "on\n");
    bench.finish().await;
}

/// The first argument of this server's bubblewrap processes.
async fn label_of(bench: &Bench) -> String {
    let arguments = bench.stdout("tr '\\0' '\\n' < /proc/1/cmdline").await;
    let label = arguments.lines().next().unwrap().to_owned();
    assert!(label.starts_with("errand-sandbox-"), "{label}");
    label
}
