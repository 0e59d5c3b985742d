//! The report, for people and for programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::check::{Fault, FaultKind};
use crate::cli::out::{Out, Style, display};

/// Faults shown to people; `--json` contains all.
const FAULTS_SHOWN: usize = 50;

pub(super) struct Report {
    /// Number of accepted runs.
    pub(super) runs: usize,
    /// Number of runs per kind.
    pub(super) kinds: BTreeMap<&'static str, u64>,
    pub(super) kills: u64,
    pub(super) pauses: u64,
    /// Number of distinct webhook events.
    pub(super) webhooks: usize,
    /// Number of deliveries, including repetitions.
    pub(super) deliveries: usize,
    /// Number of calls that had to be repeated.
    pub(super) calls_repeated: u64,
    pub(super) seconds: f64,
    pub(super) seed: u64,
    pub(super) faults: Vec<Fault>,
    /// The directory, if it was kept.
    pub(super) kept: Option<PathBuf>,
}

impl Report {
    fn count(&self, what: FaultKind) -> usize {
        self.faults
            .iter()
            .filter(|fault| fault.what == what)
            .count()
    }

    pub(super) fn print(&self, out: &Out) -> Result<()> {
        let (lost, repeated) = (self.count(FaultKind::Lost), self.count(FaultKind::Repeated));
        let stuck = self.count(FaultKind::Stuck);
        if out.json() {
            out.json_value(&json!({
                "runs": self.runs, "kinds": self.kinds, "kills": self.kills, "pauses": self.pauses,
                "lost": lost, "repeated": repeated, "stuck": stuck,
                "webhooks": self.webhooks, "deliveries": self.deliveries, "calls_repeated": self.calls_repeated,
                "seconds": (self.seconds * 1000.0).round() / 1000.0,
                "seed": self.seed, "faults": self.faults, "kept": self.kept,
            }))?;
            return Ok(());
        }
        let kinds: Vec<String> = self
            .kinds
            .iter()
            .map(|(kind, n)| format!("{kind} {n}"))
            .collect();
        let line = |name: &str, value: String| out.line(&format!("{name:<10}{value}"));
        line("runs", format!("{}  ({})", self.runs, kinds.join(", ")))?;
        line("kills", self.kills.to_string())?;
        line("pauses", self.pauses.to_string())?;
        line(
            "webhooks",
            format!("{}  ({} deliveries)", self.webhooks, self.deliveries),
        )?;
        for (name, n) in [("lost", lost), ("repeated", repeated), ("stuck", stuck)] {
            let style = if n == 0 { Style::Green } else { Style::Red };
            line(name, out.paint(style, &n.to_string()))?;
        }
        line("seconds", format!("{:.1}", self.seconds))?;
        line("seed", self.seed.to_string())?;
        for fault in self.faults.iter().take(FAULTS_SHOWN) {
            let Fault {
                what,
                run,
                number,
                kind,
                why,
            } = fault;
            let kind = kind.map_or("", |kind| kind.name());
            let number = number.map_or_else(|| "-".to_owned(), |number| number.to_string());
            let text = format!("{what:?}: run {number} ({kind}) {run}: {why}");
            out.line(&display(&text))?;
        }
        if let Some(more) = self
            .faults
            .len()
            .checked_sub(FAULTS_SHOWN)
            .filter(|n| *n > 0)
        {
            out.line(&format!("and {more} more; use --json to list all"))?;
        }
        if let Some(kept) = &self.kept {
            out.line(&format!("kept in {}", kept.display()))?;
        }
        Ok(())
    }
}
