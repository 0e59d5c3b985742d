//! `errand serve`: the server, until it is told to stop.

mod reload;

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use errand_engine::clock::Clock;
use errand_store::Store;
use errand_store::data_dir::Making;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Surroundings, logging};
use crate::admin::Admin;
use crate::admin::socket::AdminSocket;
use crate::app::stand_in::Damaged;
use crate::app::{App, Ingredients, Opening};
use crate::config::{Config, Flags, warnings};
use crate::descriptors;
use crate::secret_key::random_bytes;
use reload::Reload;

/// How long after the grace period the process ends in any case.
const AFTER_GRACE: Duration = Duration::from_secs(5);
/// How long a stop that was cut short waits until the store is closed.
const CLOSE_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Take a copy of a data directory that was in use when it was copied, once, after its database was looked through:
    /// for copies of a volume's snapshot
    #[arg(long)]
    accept_copy: bool,
    /// Make a new store also in a directory that holds what another one left (a master key, sandboxes), which is kept
    #[arg(long)]
    new: bool,
    /// Give up the secrets that the master key does not open: webhook secrets are renewed, stored secrets, keys of
    /// providers and sign-ins are dropped
    #[arg(long)]
    discard_secrets: bool,
}

impl Args {
    fn opening(&self) -> Opening {
        Opening {
            making: Making {
                allowed: true,
                beside_remains: self.new,
            },
            discards_secrets: self.discard_secrets,
        }
    }
}

pub(super) async fn run(args: &Args, with: &Surroundings) -> Result<()> {
    let config = with.settings(&args.flags)?;
    let log = logging::start(&config.log, &with.out)?;
    if args.accept_copy {
        accept_copy(&config).await?;
    }
    let mut signals = Signals::listen()?;
    let descriptors = descriptors::raise();
    if let Err(few) = descriptors::check(descriptors, &config) {
        bail!(few);
    }
    let listener = bind(&config)?;
    for warning in warnings(&config) {
        tracing::warn!("{warning}");
    }
    let dir = config.server.data_dir.clone();
    let grace = Duration::from_secs(u64::from(config.server.shutdown_grace_s));
    let places = config.engine.max_concurrent_runs;
    let ingredients = Ingredients {
        opening: args.opening(),
        ..Ingredients::of_system()?
    };
    let mut reload = Reload::new(&args.flags, with, log, config.clone());
    let starting = App::start_until(signals.stop.told(), config, listener, ingredients);
    let mut app = match Box::pin(starting).await {
        Ok(Some(app)) => app,
        Ok(None) => {
            tracing::info!("stopped before it was ready");
            return Ok(());
        }
        Err(error) => return stand_in(error, &mut signals).await,
    };
    let admin = Admin::new(
        app.store().clone(),
        random_bytes()?,
        Clock::System,
        app.url().to_owned(),
    )
    .serving(places, app.changes().clone());
    let claim = admin.claim_link().await;
    let socket = admin_socket(&dir, admin);
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

    let failure = loop {
        tokio::select! {
            () = signals.stop.told() => break None,
            why = app.ended() => break Some(why),
            _ = signals.hang_up.recv() => reload.reload(&app).await,
        }
    };
    tracing::info!(
        "stopping: no new work, and up to {} s for what is in progress",
        grace.as_secs()
    );
    // Of a directory that is another one now, nothing is removed.
    let socket = socket.filter(|_| !app.has_lost_its_data());
    let store = app.store().clone();
    let stopped = async {
        if let Some(socket) = socket {
            socket.shut_down().await;
        }
        app.shut_down().await;
    };
    tokio::select! {
        () = stopped => tracing::info!("stopped"),
        () = signals.stop.told() => tracing::warn!("stopped at once; runs in progress go on at the next start"),
        () = tokio::time::sleep(grace + AFTER_GRACE) => {
            tracing::warn!("stopped with work in progress, which goes on at the next start");
        }
    }
    // Where the stop was cut short: whatever goes on until the process ends, nothing of it is written any more.
    let _ = tokio::time::timeout(CLOSE_MAX, store.close()).await;
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

/// A server whose database is damaged answers so until it is told to stop. Any other error ends it.
async fn stand_in(error: anyhow::Error, signals: &mut Signals) -> Result<()> {
    let Some(damaged) = error.downcast_ref::<Damaged>() else {
        return Err(error);
    };
    tracing::error!(
        "{damaged}. The server is not ready, and does nothing but say so; `errand doctor` says more"
    );
    if let Some(url) = &damaged.metrics_url {
        tracing::info!("metrics on {url}");
    }
    tracing::info!("not ready; answers on {}", damaged.url);
    loop {
        tokio::select! {
            () = signals.stop.told() => break,
            _ = signals.hang_up.recv() => tracing::info!("SIGHUP: a damaged database takes a restart"),
        }
    }
    damaged.shut_down();
    tracing::info!("stopped");
    Err(error)
}

fn admin_socket(dir: &Path, admin: Admin) -> Option<AdminSocket> {
    match AdminSocket::start(dir, admin) {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!(
                %error,
                "no admin socket: `errand keys`, `users`, `webhooks` and `doctor` work only while the server is stopped"
            );
            None
        }
    }
}

fn bind(config: &Config) -> Result<TcpListener> {
    let address = config.server.listen;
    TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address}; take another address with --listen"))
}

/// What the process is told by signals.
struct Signals {
    stop: Stop,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be received");
        // Of no meaning here: they are taken, so that they do not end the process. The handlers stay.
        drop(listen(SignalKind::user_defined1())?);
        drop(listen(SignalKind::user_defined2())?);
        Ok(Self {
            stop: Stop {
                interrupt: listen(SignalKind::interrupt())?,
                terminate: listen(SignalKind::terminate())?,
            },
            hang_up: listen(SignalKind::hangup())?,
        })
    }
}

/// Ctrl-C, or the signal that service managers send.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
