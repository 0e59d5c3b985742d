//! From the start of the process to the first 200 of `/readyz`.

use anyhow::Result;
use serde_json::json;

use super::Bench;
use crate::line::{Goal, Outcome};
use crate::stats::Sorted;

const READY: Goal = Goal::at_most("Cold start on an empty directory, p50", "ms", 100.0);
const AGAIN: Goal = Goal::at_most("Cold start on a used directory, p50", "ms", 100.0);

pub(super) const METHOD: &str = "Ten servers start on new directories (creation, migration, first team and owner), and each starts again. The time is from the start of the process to the first 200 of `/readyz`, which is requested every millisecond.";

pub(super) async fn measure(bench: &Bench) -> Result<Outcome> {
    let scratch = bench.scratch()?;
    let disk = bench.disk()?;
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for n in 0..bench.size(10, 2) {
        let dir = scratch.path().join(n.to_string());
        for times in [&mut first, &mut again] {
            let server = bench.serve(&dir).await?;
            times.push(server.ready_ms);
            server.stop().await?;
        }
    }
    let (first, again) = (Sorted::of(first), Sorted::of(again));
    Ok(Outcome {
        figures: vec![
            READY.with_value(first.at(50.0)),
            AGAIN.with_value(again.at(50.0)),
        ],
        disk,
        curves: Vec::new(),
        details: json!({"starts": first.len(), "first_ms_max": first.at(100.0), "again_ms_max": again.at(100.0)}),
        notes: Vec::new(),
    })
}
