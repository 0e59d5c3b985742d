//! `errand serve`: the server, until it is told to stop.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use errand_engine::clock::Clock;
use errand_store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Surroundings, logging};
use crate::admin::Admin;
use crate::admin::socket::AdminSocket;
use crate::app::{App, Ingredients};
use crate::config::{Config, Flags, warnings};
use crate::secret_key::random_bytes;

/// How long after the grace period the process ends in any case.
const AFTER_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Take a copy of a data directory that was in use when it was copied, once, after its database was looked through:
    /// for copies of a volume's snapshot
    #[arg(long)]
    accept_copy: bool,
}

pub(super) async fn run(args: &Args, with: &Surroundings) -> Result<()> {
    let config = with.settings(&args.flags)?;
    logging::start(&config.log, &with.out)?;
    if args.accept_copy {
        accept_copy(&config).await?;
    }
    let mut stop = Stop::listen()?;
    let listener = bind(&config)?;
    for warning in warnings(&config) {
        tracing::warn!("{warning}");
    }
    let dir = config.server.data_dir.clone();
    let grace = Duration::from_secs(u64::from(config.server.shutdown_grace_s));
    let places = config.engine.max_concurrent_runs;
    let mut app = App::start(config, listener, Ingredients::of_system()?).await?;
    let admin = Admin::new(
        app.store().clone(),
        random_bytes()?,
        Clock::System,
        app.url().to_owned(),
    )
    .serving(places, app.changes().clone());
    let claim = admin.claim_link().await;
    let socket = match AdminSocket::start(&dir, admin) {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!(
                %error,
                "no admin socket: `errand keys`, `users`, `webhooks` and `doctor` work only while the server is stopped"
            );
            None
        }
    };
    if let Some(url) = app.metrics_url() {
        tracing::info!("metrics on {url}");
    }
    tracing::info!(data_dir = %dir.display(), "listening on {}", app.url());
    // Beside the log, and never in it: whoever has the link becomes the owner.
    match claim {
        Ok(Some(link)) => with.out.note(&format!(
            "Nobody has claimed this server yet. Whoever opens this link within 24 hours becomes its owner:\n\n  {link}\n"
        ))?,
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "no link to claim the server was made; `errand users link EMAIL` makes one"),
    }

    let failure = tokio::select! {
        () = stop.told() => None,
        why = app.ended() => Some(why),
    };
    tracing::info!(
        "stopping: no new work, and up to {} s for what is in progress",
        grace.as_secs()
    );
    let stopped = async {
        if let Some(socket) = socket {
            socket.shut_down().await;
        }
        app.shut_down().await;
    };
    tokio::select! {
        () = stopped => tracing::info!("stopped"),
        () = stop.told() => tracing::warn!("stopped at once; runs in progress go on at the next start"),
        () = tokio::time::sleep(grace + AFTER_GRACE) => {
            tracing::warn!("stopped with work in progress, which goes on at the next start");
        }
    }
    match failure {
        Some(why) => bail!(why),
        None => Ok(()),
    }
}

/// Blocking work on a thread for that: all of the database is read.
async fn accept_copy(config: &Config) -> Result<()> {
    let dir = config.server.data_dir.clone();
    if !dir.exists() {
        return Ok(());
    }
    let accepted = tokio::task::spawn_blocking(move || {
        let lock = Store::lock(&dir)?;
        Store::accept_copy(&dir, &lock)
    });
    Ok(accepted.await.context("it was cut off")??)
}

fn bind(config: &Config) -> Result<TcpListener> {
    let address = config.server.listen;
    TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address}; take another address with --listen"))
}

/// Ctrl-C, or the signal that service managers send.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        let failed = "signals cannot be received";
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context(failed)?,
            terminate: signal(SignalKind::terminate()).context(failed)?,
        })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
