//! Memory of a server that has nothing to do.

use anyhow::Result;
use serde_json::json;

use super::Bench;
use crate::line::{Goal, Outcome};
use crate::load;

const FRESH: Goal = Goal::at_most("Memory of an idle server", "MiB", 30.0);
const USED: Goal = Goal::informational("Memory of a server after 100 runs", "MiB");

pub(super) const METHOD: &str =
    "Resident memory (VmRSS) immediately after a first start, and again after 100 runs.";

pub(crate) const MIB: f64 = 1024.0 * 1024.0;

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let disk = bench.disk()?;
    let server = bench.serve(scratch.path()).await?;
    let fresh = server.rss_bytes()? as f64 / MIB;
    server.stop().await?;
    let (server, key, mut client) = bench.first(scratch.path()).await?;
    let agent = load::agent(&mut client, load::two_calls()).await?;
    let runs = bench.size(100, 10);
    load::Load::of(&server, &key, &agent, runs, 4).await?;
    let used = server.rss_bytes()? as f64 / MIB;
    server.stop().await?;
    Ok(Outcome {
        figures: vec![FRESH.with_value(fresh), USED.with_value(used)],
        disk,
        curves: Vec::new(),
        details: json!({"runs": runs}),
        notes: Vec::new(),
    })
}
