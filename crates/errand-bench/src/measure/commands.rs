//! Cost of isolation for a command: from its start, in a waiting shell, and with fifty at once.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use errand_core::path::SandboxPath;
use errand_sandbox::Root;
use errand_sandbox::exec::{
    Bubblewrap, Command, ExecSettings, Limits, SandboxExec as _, Shell, Uids,
};
use futures::future::try_join_all;
use serde_json::json;

use super::Bench;
use super::idle::MIB;
use crate::line::{Goal, Outcome};
use crate::stats::Sorted;

const RATIO: Goal = Goal::at_most(
    "An isolated command, relative to bare bubblewrap, p50",
    "×",
    1.3,
);
const COLD: Goal = Goal::informational("An isolated command, p50", "ms");
const BARE: Goal = Goal::informational("Bare bubblewrap with the same namespaces, p50", "ms");
const WARM: Goal = Goal::at_most("A command in a waiting shell, p50", "ms", 5.0);
const TOGETHER: Goal = Goal::informational("Each command with 50 concurrent sandboxes, p50", "ms");
const GROWTH: Goal = Goal::at_most("Growth of memory after 150 sandboxes", "MiB", 8.0);

pub(super) const METHOD: &str = "bash runs `echo x`, 60 ms after the previous command, alternating between two methods: isolated as `run_command` does it (from nothing to the result, with cgroup, filter, watcher and cleanup), and with bubblewrap alone, with the same namespaces and nothing else, as the same user (forked, as another user's program is; before all other measures, while the forking process is small). Then a shell that was started in advance runs it, from the command to the result. Then 50 run concurrently, each in a sandbox of its own, three times; memory is that of the benchmark's process, between the first time and the last.";

/// Pause before each command. What the previous command left for the kernel to remove (namespaces, a cgroup) must not
/// count for the next one.
const BETWEEN: Duration = Duration::from_millis(60);
/// Number of sandboxes at once.
const AT_ONCE: u32 = 50;

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let disk = bench.disk()?;
    let uids = Arc::new(Uids::new(1_950_000_000, 1000));
    let exec = Bubblewrap::find(settings(bench, &uids)).await?;
    let root = sandbox(scratch.path(), 0, &uids)?;
    let uid = root.owner()?;
    let (mut cold, mut bare, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.size(200, 5) {
        tokio::time::sleep(BETWEEN).await;
        let began = Instant::now();
        run(exec.prepare(&root).await?).await?;
        cold.push(ms(began));
        tokio::time::sleep(BETWEEN).await;
        let began = Instant::now();
        bare_bubblewrap(uid).await?;
        bare.push(ms(began));
        let shell = exec.prepare(&root).await?;
        // Started ahead of the command, so this time does not count.
        tokio::time::sleep(BETWEEN).await;
        let began = Instant::now();
        run(shell).await?;
        warm.push(ms(began));
    }
    let mut together = Vec::new();
    let mut memory = Vec::new();
    let roots: Vec<Root> = (1..=AT_ONCE)
        .map(|n| sandbox(scratch.path(), n, &uids))
        .collect::<Result<_>>()?;
    for _ in 0..3 {
        let all = roots.iter().map(|root| async {
            let began = Instant::now();
            run(exec.prepare(root).await?).await?;
            Ok::<_, anyhow::Error>(ms(began))
        });
        together.extend(try_join_all(all).await?);
        memory.push(own_memory_bytes()?);
    }
    let growth = memory
        .last()
        .zip(memory.first())
        .map_or(0.0, |(last, first)| last - first);
    let keepers = format!("{:?}", exec.keepers());
    let (cold, bare, warm) = (Sorted::of(cold), Sorted::of(bare), Sorted::of(warm));
    let together = Sorted::of(together);
    Ok(Outcome {
        figures: vec![
            RATIO.with_value(cold.at(50.0) / bare.at(50.0)),
            COLD.with_value(cold.at(50.0)),
            BARE.with_value(bare.at(50.0)),
            WARM.with_value(warm.at(50.0)),
            TOGETHER.with_value(together.at(50.0)),
            GROWTH.with_value(growth / MIB),
        ],
        disk,
        curves: Vec::new(),
        details: json!({
            "commands": cold.len(), "cold_ms_p99": cold.at(99.0), "bare_ms_p99": bare.at(99.0), "warm_ms_p99": warm.at(99.0),
            "together_ms_max": together.at(100.0), "bounds_kept_by": keepers,
        }),
        notes: Vec::new(),
    })
}

fn settings(bench: &Bench, uids: &Arc<Uids>) -> ExecSettings {
    ExecSettings {
        helper: bench.binary.clone(),
        search_path: std::env::var_os("PATH").unwrap_or_default(),
        instance: format!("bench-{}", std::process::id()),
        root: None,
        uids: Arc::clone(uids),
        limits: Limits::default(),
        uses_cgroups: true,
    }
}

fn sandbox(dir: &Path, number: u32, uids: &Uids) -> Result<Root> {
    let root = Root::create(&dir.join(format!("sandbox-{number}")))?;
    Ok(root.with_user_of_its_own(uids)?)
}

async fn run(shell: Box<dyn Shell>) -> Result<()> {
    let command = Command {
        script: "echo x".to_owned(),
        cwd: SandboxPath::root(),
        timeout: Duration::from_secs(60),
    };
    let finished = shell
        .run(&command, Box::pin(std::future::pending()))
        .await?;
    anyhow::ensure!(finished.stdout.text == "x\n", "{finished:?}");
    Ok(())
}

/// Runs the command with bubblewrap alone: namespaces, a root directory, and the command.
async fn bare_bubblewrap(uid: u32) -> Result<()> {
    let mut command = tokio::process::Command::new("bwrap");
    command
        .args([
            "--unshare-all",
            "--unshare-user",
            "--disable-userns",
            "--die-with-parent",
            "--new-session",
        ])
        .args([
            "--ro-bind",
            "/usr",
            "/usr",
            "--symlink",
            "usr/bin",
            "/bin",
            "--symlink",
            "usr/lib",
            "/lib",
        ])
        .args([
            "--symlink",
            "usr/lib64",
            "/lib64",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
        ])
        .args(["--", "bash", "-c", "echo x"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if rustix::process::geteuid().is_root() {
        command.uid(uid).gid(uid);
    }
    let output = command.output().await.context("bwrap does not start")?;
    anyhow::ensure!(
        output.stdout == b"x\n",
        "bwrap ended with {}",
        output.status
    );
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn own_memory_bytes() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?
        .parse()?;
    Ok(kib * 1024.0)
}
