//! Simulates new seeds for a while, and says what was found.
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

/// Runs the real engine and store in simulated worlds, and checks that what must always hold holds.
#[derive(Parser)]
struct Args {
    /// How long new seeds are tried.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Only this seed, once.
    #[arg(long)]
    seed: Option<u64>,
    /// Actions in each world before it is healed.
    #[arg(long, default_value_t = 600)]
    actions: u32,
    /// Worlds at once, each on a thread of its own.
    #[arg(long, default_value_t = 1)]
    jobs: u16,
}

/// What came of all seeds so far.
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
    println!("came about: {}", seen.join(", "));
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

/// Names the seed where the simulation itself panics.
struct NamedOnPanic(u64, u32);

impl Drop for NamedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was seed {} with {} actions", self.0, self.1);
        }
    }
}

/// Tries seeds until the time is over or something was found.
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
            println!("seed {seed}, all that happened: {}", outcome.digest);
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
    eprintln!("\nThe last happenings of seed {seed}:");
    for line in &violation.last {
        eprintln!("  {line}");
    }
    eprintln!(
        "\nThis did not hold: {}.\n  {:?}: {}\nSee it again with:\n  cargo run --release -p errand-testkit --bin simulate -- --seed {seed} --actions {actions}",
        violation.invariant.sentence(),
        violation.invariant,
        violation.detail
    );
}
