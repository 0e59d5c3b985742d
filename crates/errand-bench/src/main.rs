//! Measures the real program: cold start, idle memory, runs a second with every answer on disk. Prints JSON lines.
//!
//! Each line holds what was measured and, beside it, what the disk does in the same minute: machines are noisy, and
//! ratios last longer than figures. Everything happens on the loopback and in a temporary directory, and ends by itself.

mod disk;
mod load;
mod server;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::{Value, json};

/// Measures errand on this machine.
#[derive(Parser)]
struct Args {
    /// The program to measure [default: `errand` beside this program]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Runs of the throughput measurement
    #[arg(long, default_value_t = 3000)]
    runs: usize,
    /// Clients that start runs and wait for their end
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Where the temporary directory is made [default: the system's]
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let binary = match args.binary {
        Some(binary) => binary,
        None => std::env::current_exe()?.with_file_name("errand"),
    };
    anyhow::ensure!(
        binary.exists(),
        "{} is not there; build it with `cargo build --release`",
        binary.display()
    );
    let scratch = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    print(
        &json!({"measure": "disk", "fdatasync_per_s": disk::fdatasync_per_s(scratch.path())?, "note": "8 KB overwrite and fdatasync"}),
    );

    let mut starts = Vec::new();
    for n in 0..5 {
        let server =
            server::Server::start(&binary, &scratch.path().join(format!("cold{n}")), &[]).await?;
        starts.push(server.ready_ms);
        if n == 4 {
            print(
                &json!({"measure": "idle_memory", "rss_bytes": server.rss_bytes()?, "goal_bytes": 30 * 1024 * 1024}),
            );
        }
        server.stop().await?;
    }
    starts.sort_by(f64::total_cmp);
    print(
        &json!({"measure": "cold_start", "ready_ms_p50": starts.get(2), "ready_ms_max": starts.last(), "goal_ms": 100}),
    );

    let dir = scratch.path().join("load");
    let settings = [
        ("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "1000000000"),
        ("ERRAND_LOG__LEVEL", "warn"),
    ];
    let server = server::Server::start(&binary, &dir, &settings).await?;
    let key = server.create_key(&binary, &dir).await.context("a key")?;
    let beside = json!({
        "disk_fdatasync_per_s": disk::fdatasync_per_s(scratch.path())?,
        "rss_bytes_before": server.rss_bytes()?,
    });
    let result = load::throughput(&server.url, &key, args.runs, args.clients).await?;
    let after = json!({"rss_bytes": server.rss_bytes()?, "cpu_seconds": server.cpu_seconds()?});
    print(&json!({"measure": "throughput", "result": result, "beside": beside, "after": after}));
    server.stop().await
}

#[expect(clippy::print_stdout, reason = "its results are its output")]
fn print(line: &Value) {
    println!("{line}");
}
