//! Simulates new seeds for some time and reports violations.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use clap::Parser;
use errand_testkit::sim::{Options, Outcome, simulate};

/// Run the real engine and store in simulated worlds, and check that all invariants hold
#[derive(Parser)]
struct Args {
    /// How long to try new seeds, in seconds
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Simulate only this seed, once
    #[arg(long)]
    seed: Option<u64>,
    /// Number of actions in each world before all faults stop
    #[arg(long, default_value_t = 600)]
    actions: u32,
    /// Number of worlds to simulate at the same time, each on its own thread
    #[arg(long, default_value_t = 1)]
    jobs: u16,
}

/// The results of all seeds so far.
#[derive(Default)]
struct Sum {
    seeds: u64,
    runs: u64,
    steps: u64,
    crashes: u64,
    seen: BTreeMap<&'static str, u64>,
    found: Vec<(u64, Outcome)>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let began = Instant::now();
    let sum = Mutex::new(Sum::default());
    let until = began + Duration::from_secs(args.seconds);
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| work(&args, until, &sum));
            if args.seed.is_some() {
                break;
            }
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = sum.steps as f64 / seconds;
    println!(
        "{} seeds, {} runs, {} crashes, {} steps in {seconds:.1} s: {rate:.0} steps a second",
        sum.seeds, sum.runs, sum.crashes, sum.steps
    );
    let seen = sum.seen.iter();
    let seen: Vec<String> = seen
        .map(|(what, count)| format!("{what} {count}"))
        .collect();
    println!("occurred: {}", seen.join(", "));
    for (seed, outcome) in &sum.found {
        report(*seed, args.actions, outcome);
    }
    if sum.found.is_empty() {
        println!("all invariants held");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints the seed if the simulation itself panics.
struct NamedOnPanic(u64, u32);

impl Drop for NamedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was seed {} with {} actions", self.0, self.1);
        }
    }
}

/// Simulates seeds until the time is up or a violation is found.
fn work(args: &Args, until: Instant, sum: &Mutex<Sum>) {
    loop {
        let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        let named = NamedOnPanic(seed, args.actions);
        let outcome = simulate(Options {
            seed,
            actions: args.actions,
            sabotage: None,
        });
        drop(named);
        if args.seed.is_some() {
            println!("seed {seed}, digest of all events: {}", outcome.digest);
        }
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        sum.seeds += 1;
        sum.runs += outcome.runs;
        sum.steps += outcome.steps;
        sum.crashes += outcome.crashes;
        for (what, count) in &outcome.seen {
            *sum.seen.entry(what).or_default() += count;
        }
        if outcome.violation.is_some() {
            sum.found.push((seed, outcome));
        }
        if args.seed.is_some() || !sum.found.is_empty() || Instant::now() >= until {
            return;
        }
    }
}

fn report(seed: u64, actions: u32, outcome: &Outcome) {
    let Some(violation) = &outcome.violation else {
        return;
    };
    eprintln!("\nThe last events of seed {seed}:");
    for line in &violation.last {
        eprintln!("  {line}");
    }
    eprintln!(
        "\nThis did not hold: {}.\n  {:?}: {}\nReproduce it with:\n  cargo run --release -p errand-testkit --bin simulate -- --seed {seed} --actions {actions}",
        violation.invariant.sentence(),
        violation.invariant,
        violation.detail
    );
}
