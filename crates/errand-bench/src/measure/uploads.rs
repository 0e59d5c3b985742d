//! One large upload through an upload URL.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Bench;
use super::idle::MIB;
use crate::disk::write_mb_per_s;
use crate::http::Client;
use crate::line::{Goal, Outcome};
use crate::load::string_at;
use crate::server::Server;

const SHARE: Goal = Goal::at_least(
    "An upload of 5 GiB, relative to the disk's own sequential write",
    "×",
    0.8,
);
const RATE: Goal = Goal::informational("An upload of 5 GiB", "MB/s");
const MEMORY: Goal = Goal::at_most("Maximum memory that the server uses for it", "MiB", 32.0);

/// Maximum size of an upload through an upload URL.
const BYTES: u64 = 5 * 1024 * 1024 * 1024;
/// Bytes that must stay free on the disk.
const SPARE: u64 = 4 * 1024 * 1024 * 1024;
const PIECE: usize = 1024 * 1024;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

pub(super) const METHOD: &str = "One `PUT` of 5 GiB to an upload URL, in pieces of 1 MiB, is measured until its response, which is sent when the file is synced under its name. The disk's own value is the mean for two files of the same size, written sequentially and synced, immediately before and after. Memory is the maximum during the upload, minus that before it.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let dir = scratch.path().join("data");
    let space = rustix::fs::statvfs(&bench.dir)?;
    let free = space.f_bavail * space.f_frsize;
    let bytes = bench
        .size(BYTES, 64 * 1024 * 1024)
        .min(free.saturating_sub(SPARE));
    anyhow::ensure!(
        bytes > 0,
        "less than {SPARE} bytes are free in {}",
        bench.dir.display()
    );
    let disk = bench.disk()?;
    let (server, key, mut client) = bench.first(&dir).await?;
    let sandbox = string_at(
        &client.post("/v1/sandboxes", &json!({})).await?,
        "/sandbox_id",
    )?;
    // The first upload pays for what is created once, so it does not count.
    upload(&server, &key, &sandbox, "first.bin", 8 * PIECE as u64).await?;

    let before = write_mb_per_s(scratch.path(), bytes)?;
    let (rss, cpu) = (server.rss_bytes()?, server.cpu_seconds()?);
    let uploaded = upload(&server, &key, &sandbox, "large.bin", bytes).await?;
    let cpu = server.cpu_seconds()? - cpu;
    server.stop().await?;
    std::fs::remove_dir_all(&dir)?;
    let after = write_mb_per_s(scratch.path(), bytes)?;

    let (mb, own) = (bytes as f64 / 1e6, f64::midpoint(before, after));
    let rate = mb / uploaded.seconds;
    Ok(Outcome {
        figures: vec![
            SHARE
                .with_value(rate / own)
                .of_limit("of the disk's sequential write", rate / own),
            RATE.with_value(rate),
            MEMORY.with_value((uploaded.rss_max as f64 - rss as f64) / MIB),
        ],
        disk,
        curves: Vec::new(),
        details: json!({
            "bytes": bytes,
            "seconds": uploaded.seconds,
            "disk_mb_per_s": [before, after],
            "server_cpu_ms_per_gb": (cpu * 1e6 / mb).round(),
            "rss_bytes_before": rss,
            "rss_bytes_max": uploaded.rss_max,
        }),
        notes: if bytes < BYTES {
            vec![format!(
                "the upload was one of {bytes} bytes, not of 5 GiB: the disk had no room for more, or the measure was a small one"
            )]
        } else {
            Vec::new()
        },
    })
}

struct Uploaded {
    seconds: f64,
    /// Highest resident memory seen.
    rss_max: u64,
}

async fn upload(
    server: &Server,
    key: &str,
    sandbox: &str,
    name: &str,
    bytes: u64,
) -> Result<Uploaded> {
    let mut client = Client::connect(server.address, key).await?;
    let path = format!("/workspace/{name}");
    let granted = client
        .post(
            &format!("/v1/sandboxes/{sandbox}/upload-urls"),
            &json!({"path": path}),
        )
        .await?;
    let url = string_at(&granted, "/upload_url")?;
    let host = format!("http://{}", server.address);
    let target = url
        .strip_prefix(&host)
        .with_context(|| format!("{url} is not on this server"))?;
    let head = format!(
        "PUT {target} HTTP/1.1\r\nhost: {}\r\ncontent-length: {bytes}\r\n\r\n",
        server.address
    );
    let begin = Instant::now();
    let put = async {
        client.write(head.as_bytes()).await?;
        let (piece, mut left) = (vec![7_u8; PIECE], bytes);
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            client.write(piece.get(..part).unwrap_or(&piece)).await?;
            left -= part as u64;
        }
        let answer = client.answer().await?;
        anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        let stored: Value = serde_json::from_str(answer.body)?;
        anyhow::ensure!(
            stored.get("size_bytes").and_then(Value::as_u64) == Some(bytes),
            "{stored}"
        );
        anyhow::Ok(begin.elapsed().as_secs_f64())
    };
    tokio::pin!(put);
    let mut rss_max = server.rss_bytes()?;
    loop {
        tokio::select! {
            seconds = &mut put => return Ok(Uploaded { seconds: seconds?, rss_max }),
            () = tokio::time::sleep(SAMPLE_INTERVAL) => rss_max = rss_max.max(server.rss_bytes()?),
        }
    }
}
