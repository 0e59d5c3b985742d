//! Measures the real program against the performance goals. Prints JSON lines and can write a report.
//!
//! Each line contains the measured figures and the speed of the disk in the same minute: machines are noisy, and
//! ratios stay valid longer than absolute figures. Everything happens on the loopback and in temporary directories,
//! which are removed, and ends by itself.

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
    /// The program to measure [default: `errand` in the directory of this program]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Directory for temporary directories, on the disk to measure [default: the system's]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Take only these measures
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    only: Vec<Measure>,
    /// List the measures and exit
    #[arg(long)]
    list: bool,
    /// Take small measures to check that they work; their figures are meaningless
    #[arg(long)]
    quick: bool,
    /// Write the report to this file, and its drawings into a folder of the same name next to it
    #[arg(long, value_name = "FILE", requires = "date")]
    report: Option<PathBuf>,
    /// The date for the report, such as 2026-11-23
    #[arg(long)]
    date: Option<String>,
    /// Read the lines of an earlier run from this file, and skip the measures that it contains
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Compare the cost of a run with this earlier program instead of taking measures; fails if a cost has grown too
    /// much
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "report", "results", "list"])]
    against: Option<PathBuf>,
    /// Number of pairs to compare
    #[arg(long, value_name = "N", default_value_t = 9, requires = "against", value_parser = clap::value_parser!(u16).range(1..=99))]
    pairs: u16,
    /// Maximum growth of the median of a cost, in percent
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
        Some(file) => read_lines(file)?,
        None => Vec::new(),
    };
    let selected: Vec<Measure> = selected(&args, &lines);
    if !selected.is_empty() {
        // Must listen before the first directory is created.
        let stop = Stop::listen()?;
        tokio::select! {
            taken = measure_all(&args, &selected, &mut lines) => taken?,
            () = stop.received() => {
                // Dropping the measure has stopped its servers and removed its directories.
                anyhow::bail!("stopped before the end; the lines above can be reused with --results");
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
        () = stop.received() => anyhow::bail!("stopped before the end"),
    }
}

/// Waits for the signals that end this program.
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

    async fn received(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The requested measures, or all, without those that `earlier` contains.
fn selected(args: &Args, earlier: &[Line]) -> Vec<Measure> {
    let there = |measure: &Measure| {
        earlier.iter().any(
            |line| matches!(line, Line::Measured(measured) if measured.measure == measure.name()),
        )
    };
    in_order()
        .into_iter()
        .filter(|measure| match args.only.as_slice() {
            // With lines of an earlier run, the purpose is the report.
            [] => args.results.is_none(),
            only => only.contains(measure),
        })
        .filter(|measure| !there(measure))
        .collect()
}

/// All measures, in the order in which they are taken.
fn in_order() -> Vec<Measure> {
    let mut all = Measure::value_variants().to_vec();
    // First, while this process is small: it is forked for bare bubblewrap but not for the isolated commands, and a
    // large process would distort the ratio.
    all.sort_by_key(|measure| *measure != Measure::Commands);
    all
}

fn read_lines(file: &std::path::Path) -> Result<Vec<Line>> {
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
        "{} does not exist; build it with `cargo build --profile dist`",
        binary.display()
    );
    raise_file_limit()?;
    Ok(Bench {
        binary,
        dir: args.dir.clone().unwrap_or_else(std::env::temp_dir),
        quick: args.quick,
    })
}

async fn measure_all(args: &Args, selected: &[Measure], lines: &mut Vec<Line>) -> Result<()> {
    let bench = bench(args)?;
    if !lines
        .iter()
        .any(|line| matches!(line, Line::Machine { .. }))
    {
        let machine = Machine::of(&bench.dir)?;
        show(lines, Line::Machine { machine })?;
    }
    for measure in selected {
        let measured = measure.take(&bench).await.with_context(|| measure.name())?;
        show(lines, Line::Measured(Box::new(measured)))?;
    }
    Ok(())
}

/// Raises the limit on open files: a thousand streams are a thousand connections, here and in the server, which
/// inherits the limit.
fn raise_file_limit() -> Result<()> {
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

#[expect(clippy::print_stdout, reason = "the results are the program's output")]
fn print(line: &str) {
    println!("{line}");
}
