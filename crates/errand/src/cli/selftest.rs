//! `errand selftest`: tests the guarantees about crashes on this machine.
//!
//! The test repeatedly kills and pauses a real server in its own directory. Meanwhile, clients start runs of every
//! kind, repeat requests that got no response, and answer the runs' requests; a receiver accepts webhooks. At the end,
//! everything is read back and checked ([`check`]): what was lost, what happened twice, what does not continue.
//!
//! Guarantees: the test needs only this program, and it always ends. The server ends with it, also on Ctrl-C and
//! SIGTERM. The directory is deleted if nothing was wrong; otherwise it is kept and named. The times of kills depend on
//! the progress of the work and on the seed, never on the clock.
//!
//! Non-goals: faults of hardware, such as a disk that loses data it has reported as written.

mod caller;
mod check;
mod clients;
mod collect;
mod disturbance;
mod plan;
mod progress;
mod receiver;
mod report;
mod seeded;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use self::caller::Caller;
use self::check::{Evidence, Record};
use self::clients::Clients;
use self::disturbance::DisturbanceCounts;
use self::plan::Planned;
use self::progress::{PATIENCE, Progress};
use self::receiver::Receiver;
use self::report::Report;
use self::server::{Server, Until};
use super::CommandContext;
use crate::admin::{AdminAnswer, AdminRequest, reach};
use crate::config::{self, Config, Flags};
use crate::secret_key::random_bytes;

/// Default number of runs per kill: enough that every kill hits runs of several kinds.
const RUNS_PER_KILL: u64 = 6;
/// Minimum of the default number of runs.
const RUNS_MIN: u64 = 60;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Number of times the server is killed
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    kills: u64,
    /// Number of times the server is paused for a few seconds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=1_000))]
    stops: u64,
    /// Number of runs [default: six per kill, at least 60]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    runs: Option<u64>,
    /// Parent of the temporary directory, on the disk to test [default: the system's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Seed that repeats an earlier test's choices [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Keep the directory with the server's data and log
    #[arg(long)]
    keep: bool,
}

pub(super) async fn run(args: &Args, with: &CommandContext) -> Result<()> {
    let place = place(args.dir.as_deref())?;
    let hidden = with.env.keys().cloned().collect();
    let mut server = Server::new(place.path(), hidden)?;
    let listen = |kind| signal(kind).context("cannot receive signals");
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;
    let tested = tokio::select! {
        tested = Box::pin(test(args, with, &mut server)) => tested,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("terminated by a signal")),
        _ = hung_up.recv() => Err(anyhow::anyhow!("the terminal was closed")),
    };
    // Always first: nothing may write into the directory after this.
    server.kill().await?;
    let wrong = match &tested {
        Ok(report) => !report.faults.is_empty(),
        Err(_) => true,
    };
    let kept = if args.keep || wrong {
        Some(place.keep())
    } else {
        place
            .close()
            .context("the temporary directory cannot be removed")?;
        None
    };
    let tested = tested.with_context(|| match &kept {
        Some(kept) => format!("the test was not completed; {} is kept", kept.display()),
        None => "the test was not completed".to_owned(),
    });
    let mut report = tested?;
    report.kept = kept;
    report.print(&with.out)?;
    if report.faults.is_empty() {
        Ok(())
    } else {
        bail!("a guarantee about crashes was violated")
    }
}

fn place(dir: Option<&Path>) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("errand-selftest-");
    match dir {
        Some(dir) => builder
            .tempdir_in(dir)
            .with_context(|| format!("no directory can be created in {}", dir.display())),
        None => builder
            .tempdir()
            .context("no temporary directory can be created; choose its location with --dir"),
    }
}

async fn test(args: &Args, with: &CommandContext, server: &mut Server) -> Result<Report> {
    let began = Instant::now();
    let seed = match args.seed {
        Some(seed) => seed,
        // 32 bits, short enough to type.
        None => u64::from(u32::from_le_bytes(random_bytes()?)),
    };
    let runs = args
        .runs
        .unwrap_or_else(|| (args.kills * RUNS_PER_KILL).max(RUNS_MIN));
    let plan = plan::planned(seed, runs);
    let (key, secret) = keys(server).await?;
    server.start(Until::Ready).await?;
    let caller = Arc::new(Caller::new(server.base(), key)?);
    let progress = Arc::new(Progress::new());
    let receiver = Receiver::start(&secret, seed, Arc::clone(&progress)).await?;
    let clients = Clients::new(Arc::clone(&caller), Arc::clone(&progress), receiver);
    let clients = Arc::new(clients.await.context("the agents cannot be created")?);
    if !with.out.json() {
        with.out.note(&format!(
            "{runs} runs on {}; {} kills and {} pauses; seed {seed}",
            server.data_dir().display(),
            args.kills,
            args.stops
        ))?;
    }

    let made = work(args, seed, &plan, server, &clients).await?;
    let evidence = tokio::select! {
        evidence = evidence(&plan, &clients) => evidence?,
        why = server.ends() => bail!(why),
    };
    let ids: BTreeSet<&str> = evidence.deliveries.iter().map(|d| d.id.as_str()).collect();
    let mut kinds = BTreeMap::new();
    for record in evidence.runs.iter().filter(|run| !run.ids.is_empty()) {
        *kinds.entry(record.kind.name()).or_default() += 1;
    }
    Ok(Report {
        runs: evidence
            .runs
            .iter()
            .filter(|run| !run.ids.is_empty())
            .count(),
        kinds,
        kills: made.kills,
        pauses: made.pauses,
        webhooks: ids.len(),
        deliveries: evidence.deliveries.len(),
        calls_repeated: caller.repeated(),
        seconds: began.elapsed().as_secs_f64(),
        seed,
        faults: check::faults(&evidence),
        kept: None,
    })
}

/// Creates an API key and the webhook secret in the directory before a server runs there.
async fn keys(server: &Server) -> Result<(String, String)> {
    let config = settings(&server.data_dir())?;
    reach::make_store(&config).await?;
    let request = AdminRequest::CreateKey {
        name: "selftest".to_owned(),
        expires_in_ms: None,
        team: None,
    };
    let AdminAnswer::Key { secret: key, .. } = reach::execute(&config, request).await? else {
        bail!("no API key was created");
    };
    let AdminAnswer::WebhookSecret { secret } =
        reach::execute(&config, AdminRequest::WebhookSecret { team: None }).await?
    else {
        bail!("no webhook secret was returned");
    };
    Ok((key, secret))
}

/// The default settings, regardless of the environment.
fn settings(data_dir: &Path) -> Result<Config> {
    let data_dir = data_dir.to_str().map(str::to_owned);
    let data_dir = data_dir
        .context("the path of the directory is not UTF-8; choose another one with --dir")?;
    let flags = Flags {
        data_dir: Some(data_dir),
        ..Flags::default()
    };
    Ok(config::load(&flags, &BTreeMap::new(), None)?)
}

/// Runs the clients and the disturbances until both are done, or nothing makes progress any more.
async fn work(
    args: &Args,
    seed: u64,
    plan: &[Planned],
    server: &mut Server,
    clients: &Arc<Clients>,
) -> Result<DisturbanceCounts> {
    let steps = plan.iter().map(Planned::steps).sum();
    let disturbances = disturbance::planned(seed, args.kills, args.stops, steps);
    let mut made = DisturbanceCounts::default();
    let progress = Arc::clone(&clients.progress);
    let all = async {
        let disturbances = disturbance::make(server, &disturbances, &progress, &mut made);
        let (disturbances, ()) = tokio::join!(disturbances, clients.live(plan));
        disturbances
    };
    tokio::select! {
        over = all => over?,
        () = progress.stalls() => {}
    }
    server.resume()?;
    Ok(made)
}

/// Reads everything back after the webhooks have arrived.
async fn evidence(plan: &[Planned], clients: &Clients) -> Result<Evidence> {
    let caller = &clients.caller;
    let runs = collect::records(caller, plan, &clients.stories()).await;
    let listed = collect::listed(caller).await?;
    let mut count = clients.receiver.count();
    loop {
        count.mark_unchanged();
        let deliveries = clients.receiver.deliveries();
        let is_waited_for = runs.iter().any(|run| awaits_webhooks(run, &deliveries));
        let came = async {
            // The sender lives at least as long as this future.
            let _ = count.changed().await;
        };
        if !is_waited_for || tokio::time::timeout(PATIENCE, came).await.is_err() {
            return Ok(Evidence {
                runs,
                listed,
                deliveries,
            });
        }
    }
}

fn awaits_webhooks(run: &Record, deliveries: &[receiver::Delivery]) -> bool {
    let Ok(seen) = &run.seen else { return false };
    let of_run = deliveries
        .iter()
        .filter(|d| d.number == run.number && d.taken);
    let taken: BTreeSet<&str> = of_run.map(|d| d.id.as_str()).collect();
    seen.status == run.expected.status && taken.len() < run.expected.webhooks.len()
}
