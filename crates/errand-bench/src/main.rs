//! Measures the real program against everything that is promised of it. Prints JSON lines, and writes a report.
//!
//! Each line holds what was measured and, beside it, what the disk does in the same minute: machines are noisy, and
//! ratios last longer than figures. Everything happens on the loopback and in temporary directories, which are removed,
//! and ends by itself.

mod compare;
mod disk;
mod http;
mod line;
mod load;
mod measure;
mod provider;
mod report;
mod seed;
mod server;
mod stats;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum as _};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use compare::Comparison;
use line::Line;
use measure::{Bench, Measure};
use report::Report;
use report::machine::Machine;

/// Measures errand on this machine.
#[derive(Parser)]
struct Args {
    /// The program to measure [default: `errand` beside this program]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where temporary directories are made: on the disk that is measured [default: the system's]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only these measures
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    only: Vec<Measure>,
    /// Names the measures, and measures nothing
    #[arg(long)]
    list: bool,
    /// Small measures, to see that they work: their figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Writes the report to this file, and its drawings into a folder of that name beside it
    #[arg(long, value_name = "FILE", requires = "date")]
    report: Option<PathBuf>,
    /// The day that the report names, such as 2026-11-23
    #[arg(long)]
    date: Option<String>,
    /// Reads the lines of an earlier run from this file, and measures nothing that they hold
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Compares what a run costs with this earlier program, in place of the measures; fails where a cost grew too much
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "report", "results", "list"])]
    against: Option<PathBuf>,
    /// Pairs of the comparison
    #[arg(long, value_name = "N", default_value_t = 9, requires = "against", value_parser = clap::value_parser!(u16).range(1..=99))]
    pairs: u16,
    /// By how many percent the median of a cost may grow
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 5.0,
        requires = "against"
    )]
    growth_max: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    if args.list {
        for measure in in_order() {
            print(&measure.name());
        }
        return Ok(());
    }
    if let Some(against) = &args.against {
        return compare(&args, against.clone()).await;
    }
    let mut lines = match &args.results {
        Some(file) => earlier(file)?,
        None => Vec::new(),
    };
    let wanted: Vec<Measure> = wanted(&args, &lines);
    if !wanted.is_empty() {
        // Before the first directory is made.
        let stop = Stop::listen()?;
        tokio::select! {
            taken = take(&args, &wanted, &mut lines) => taken?,
            () = stop.told() => {
                // Servers and temporary directories went with what was cut off.
                anyhow::bail!("stopped before the end; the lines above can be used again with --results");
            }
        }
    }
    if let (Some(file), Some(date)) = (&args.report, &args.date) {
        Report::of(date, &lines)?.write(file)?;
    }
    Ok(())
}

async fn compare(args: &Args, against: PathBuf) -> Result<()> {
    let bench = bench(args)?;
    let comparison = Comparison {
        against,
        pairs: usize::from(args.pairs),
        growth_max_percent: args.growth_max,
    };
    let stop = Stop::listen()?;
    tokio::select! {
        compared = comparison.run(&bench) => compared,
        () = stop.told() => anyhow::bail!("stopped before the end"),
    }
}

/// Hears that somebody ends this program: by Ctrl-C, or as an operator ends one.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn told(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What is to be measured: those named, else all; but for those that are there already.
fn wanted(args: &Args, earlier: &[Line]) -> Vec<Measure> {
    let there = |measure: &Measure| {
        earlier.iter().any(
            |line| matches!(line, Line::Measured(measured) if measured.measure == measure.name()),
        )
    };
    in_order()
        .into_iter()
        .filter(|measure| match args.only.as_slice() {
            // With lines from before, a report of them is wanted.
            [] => args.results.is_none(),
            only => only.contains(measure),
        })
        .filter(|measure| !there(measure))
        .collect()
}

/// All, in the order in which they are taken.
fn in_order() -> Vec<Measure> {
    let mut all = Measure::value_variants().to_vec();
    // First, while this process is small: it is forked for bare bubblewrap, and not for what is held against it.
    all.sort_by_key(|measure| *measure != Measure::Commands);
    all
}

fn earlier(file: &std::path::Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            serde_json::from_str(line)
                .with_context(|| format!("{}: not a line of results: {line}", file.display()))
        })
        .collect()
}

fn bench(args: &Args) -> Result<Bench> {
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()?.with_file_name("errand"),
    };
    anyhow::ensure!(
        binary.exists(),
        "{} is not there; build it with `cargo build --profile dist`",
        binary.display()
    );
    many_files()?;
    Ok(Bench {
        binary,
        dir: args.dir.clone().unwrap_or_else(std::env::temp_dir),
        quick: args.quick,
    })
}

async fn take(args: &Args, wanted: &[Measure], lines: &mut Vec<Line>) -> Result<()> {
    let bench = bench(args)?;
    if !lines
        .iter()
        .any(|line| matches!(line, Line::Machine { .. }))
    {
        let machine = Machine::of(&bench.dir)?;
        show(lines, Line::Machine { machine })?;
    }
    for measure in wanted {
        let measured = measure.take(&bench).await.with_context(|| measure.name())?;
        show(lines, Line::Measured(Box::new(measured)))?;
    }
    Ok(())
}

/// A thousand streams are a thousand connections, here and in the server, which inherits the limit.
fn many_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

fn show(lines: &mut Vec<Line>, line: Line) -> Result<()> {
    let line = line.rounded()?;
    print(&serde_json::to_string(&line)?);
    lines.push(line);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "its results are its output")]
fn print(line: &str) {
    println!("{line}");
}
