//! Builds the report from the result lines, and nothing else: a document and its drawings.

pub(crate) mod machine;
mod plot;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

use crate::line::{Bound, Curve, Figure, Line, Measured};
use crate::measure::Measure;
use plot::{Bar, bars, percentiles};

/// The document and its drawings.
pub(crate) struct Report {
    text: String,
    /// File names and contents.
    drawings: Vec<(&'static str, String)>,
}

/// Curves drawn together: latencies under load. The other curves are about rare events.
const AT_LOAD: [&str; 5] = [
    "a step with 256 runs",
    "a step at 15,000/s",
    "POST /v1/runs",
    "POST to the end of the run",
    "POST to the end of the run, with 1,000,000 finished runs",
];

/// Placeholder in the text for the folder of the drawings, which is named after the report file.
const FOLDER: &str = "{folder}";

impl Report {
    /// Builds the report. `date` is printed as it is.
    pub(crate) fn of(date: &str, lines: &[Line]) -> Result<Self> {
        let machine = lines.iter().find_map(|line| match line {
            Line::Machine { machine } => Some(machine),
            Line::Measured(_) => None,
        });
        let machine = machine.context("the results contain no line about the machine")?;
        let measured = in_order(lines);
        let mut text = format!(
            "# Performance\n\nMeasured on {date} by `cargo run --profile dist -p errand-bench -- --report docs/performance.md --date {date}`, which writes this document. Machines are noisy: absolute values are accurate to about a third; ratios and processor time are more reliable. The performance of the disk was measured within the same minute as each measure.\n\n## The machine\n\n{}\n",
            machine.table()
        );
        if measured.iter().any(|measured| measured.quick) {
            text.push_str("**These are small measures that only check that the benchmark works: the values mean nothing.**\n\n");
        }
        text.push_str("## Goals and results\n\n");
        text.push_str(&goals(&measured));
        let drawings = drawings(&measured);
        for (name, _) in &drawings {
            let _ = write!(text, "\n![{}]({FOLDER}/{name})\n", caption(name));
        }
        text.push_str("\n## Other results\n\n");
        text.push_str(&figures_without_goal(&measured));
        text.push_str(&notes(&measured));
        text.push_str("\n## The disk during each measure\n\n");
        text.push_str(&disks(&measured));
        text.push_str("\n## Method\n\n");
        for one in &measured {
            if let Some(measure) = named(&one.measure) {
                let _ = writeln!(text, "- **{}**: {}", one.measure, measure.method());
            }
        }
        text.push_str(
            "\nThe disk's own performance: 8 KB are overwritten and synced (`fdatasync`) repeatedly for a second; and 256 MiB are written sequentially to a new file and synced. Percentiles use the nearest rank; no value is left out.\n",
        );
        text.push_str("\n## Raw results\n\n```json\n");
        for line in lines {
            let _ = writeln!(text, "{}", serde_json::to_string(line)?);
        }
        text.push_str("```\n");
        Ok(Self { text, drawings })
    }

    /// Writes the document, and the drawings into a folder of the same name next to it.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let folder = file.with_extension("");
        let name = folder
            .file_name()
            .and_then(|name| name.to_str())
            .with_context(|| format!("{} is not a file name for a report", file.display()))?;
        std::fs::create_dir_all(&folder)?;
        for (drawing, svg) in &self.drawings {
            std::fs::write(folder.join(drawing), svg)?;
        }
        Ok(std::fs::write(file, self.text.replace(FOLDER, name))?)
    }
}

fn named(name: &str) -> Option<Measure> {
    Measure::from_str(name, false).ok()
}

/// The measures in the order of `--list`. If one was taken twice, the last result counts.
fn in_order(lines: &[Line]) -> Vec<&Measured> {
    let last = |measure: &Measure| {
        lines.iter().rev().find_map(|line| match line {
            Line::Measured(measured) if measured.measure == measure.name() => {
                Some(measured.as_ref())
            }
            Line::Measured(_) | Line::Machine { .. } => None,
        })
    };
    Measure::value_variants().iter().filter_map(last).collect()
}

fn figures<'a>(measured: &'a [&Measured]) -> impl Iterator<Item = &'a Figure> {
    measured.iter().flat_map(|one| &one.outcome.figures)
}

fn goals(measured: &[&Measured]) -> String {
    let mut table = "| goal | target | measured | reached | share of the physical limit |\n|---|---|---|---|---|\n".to_owned();
    for figure in figures(measured) {
        let (Some(goal), Some(reached)) = (figure.goal, figure.reached()) else {
            continue;
        };
        let promised = match goal {
            Bound::AtLeast(least) => format!("≥ {}", number(least)),
            Bound::AtMost(most) => format!("≤ {}", number(most)),
        };
        let _ = writeln!(
            table,
            "| {} | {promised} {unit} | {} {unit} | {} | {} |",
            figure.name,
            number(figure.measured),
            if reached >= 1.0 { "yes" } else { "**no**" },
            share(figure),
            unit = figure.unit,
        );
    }
    table
}

fn figures_without_goal(measured: &[&Measured]) -> String {
    let mut table = "| what | measured | share of the physical limit |\n|---|---|---|\n".to_owned();
    for figure in figures(measured).filter(|figure| figure.goal.is_none()) {
        let measured = number(figure.measured);
        let _ = writeln!(
            table,
            "| {} | {measured} {} | {} |",
            figure.name,
            figure.unit,
            share(figure)
        );
    }
    table
}

fn notes(measured: &[&Measured]) -> String {
    measured.iter().fold(String::new(), |mut text, one| {
        for note in &one.outcome.notes {
            let _ = write!(text, "\nIn the measure **{}** {note}.\n", one.measure);
        }
        text
    })
}

fn share(figure: &Figure) -> String {
    match &figure.limit {
        Some(limit) if limit.share <= 1.5 => format!("{:.0}% {}", limit.share * 100.0, limit.of),
        Some(limit) => format!("{:.1} × {}", limit.share, limit.of),
        None => "–".to_owned(),
    }
}

fn disks(measured: &[&Measured]) -> String {
    let mut table =
        "| measure | syncs of 8 KB | one sync, p50 | sequential write |\n|---|---|---|---|\n"
            .to_owned();
    for one in measured {
        let disk = one.outcome.disk;
        let _ = writeln!(
            table,
            "| {} | {} /s | {} ms | {} MB/s |",
            one.measure,
            number(disk.fdatasync_per_s.round()),
            number(disk.fdatasync_ms_p50),
            number(disk.write_mb_per_s.round())
        );
    }
    table
}

/// Formats a figure with as many digits as are meaningful, and commas between thousands.
fn number(figure: f64) -> String {
    let digits = match figure.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{figure:.digits$}");
    let (whole, part) = match text.split_once('.') {
        Some((whole, part)) => (whole, part.trim_end_matches('0')),
        None => (text.as_str(), ""),
    };
    let (sign, whole) = whole
        .strip_prefix('-')
        .map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (n, digit) in whole.chars().enumerate() {
        if n > 0 && (whole.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let point = if part.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{part}")
}

fn caption(drawing: &str) -> &'static str {
    match drawing {
        "goals.svg" => "Measured values in proportion to their goals",
        "runs.svg" => "Runs per second",
        _ => "Latency under load, by percentile",
    }
}

fn drawings(measured: &[&Measured]) -> Vec<(&'static str, String)> {
    let mut drawings = Vec::new();
    let goals: Vec<Bar> = figures(measured)
        .filter_map(|figure| {
            Some(Bar {
                label: figure.name.replace('`', ""),
                value: figure.reached()?,
                shown: format!("{} {}", number(figure.measured), figure.unit),
            })
        })
        .collect();
    if !goals.is_empty() {
        // Bars are cut off at four times the goal.
        drawings.push((
            "goals.svg",
            bars(
                "Measured values in proportion to their goals (the line marks the goal)",
                &goals,
                1.0,
                4.0,
            ),
        ));
    }
    let runs: Vec<Bar> = figures(measured)
        .filter(|figure| figure.name.starts_with("Runs with 16 clients"))
        .map(|figure| Bar {
            label: figure.name.clone(),
            value: figure.measured,
            shown: format!("{} /s", number(figure.measured)),
        })
        .collect();
    let goal = figures(measured).find_map(|figure| match figure.goal {
        Some(Bound::AtLeast(least)) if figure.name == "Runs with 16 clients" => Some(least),
        _ => None,
    });
    if let Some(goal) = goal {
        drawings.push((
            "runs.svg",
            bars(
                "Runs per second (the line marks the goal)",
                &runs,
                goal,
                f64::INFINITY,
            ),
        ));
    }
    let curves: Vec<&Curve> = measured
        .iter()
        .flat_map(|one| &one.outcome.curves)
        .filter(|curve| AT_LOAD.contains(&curve.name.as_str()))
        .collect();
    if !curves.is_empty() {
        drawings.push((
            "latency.svg",
            percentiles("Latency under load, by percentile", &curves),
        ));
    }
    drawings
}

#[cfg(test)]
mod tests;
