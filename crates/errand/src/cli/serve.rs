//! `errand serve`: runs the server until a signal stops it.

mod reload;

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use errand_engine::clock::Clock;
use errand_store::Store;
use errand_store::data_dir::Making;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CommandContext, logging};
use crate::admin::Admin;
use crate::admin::socket::AdminSocket;
use crate::app::stand_in::Damaged;
use crate::app::{App, Ingredients, Opening};
use crate::config::{Config, Flags, warnings};
use crate::descriptors;
use crate::secret_key::random_bytes;
use reload::Reload;

/// Additional time after the grace period, after which the process ends in any case.
const AFTER_GRACE: Duration = Duration::from_secs(5);
/// Time limit for closing the store after an immediate stop.
const CLOSE_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Accept a copy of a data directory that was in use when it was copied (for example a volume snapshot), after
    /// checking its database; needed once
    #[arg(long)]
    accept_copy: bool,
    /// Create a new store even if the directory contains remains of another one (a master key, sandboxes), which are
    /// kept
    #[arg(long)]
    new: bool,
    /// Discard the secrets that the master key cannot decrypt: webhook secrets are renewed; stored secrets, provider
    /// keys and sign-ins are deleted
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

pub(super) async fn run(args: &Args, with: &CommandContext) -> Result<()> {
    let config = with.settings(&args.flags)?;
    let log = logging::start(&config.log, &with.out)?;
    if args.accept_copy {
        accept_copy(&config).await?;
    }
    let mut signals = Signals::listen()?;
    let descriptors = descriptors::raise();
    if let Err(few) = descriptors::check(descriptors) {
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
    let starting = App::start_until(signals.stop.received(), config, listener, ingredients);
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
    // Printed next to the log, never in it: whoever has the link becomes the owner.
    match claim {
        Ok(Some(link)) => with.out.note(&format!(
            "This server has no owner yet. The first person who opens this link within 24 hours becomes its owner:\n\n  {link}\n"
        ))?,
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot create a link to claim the server; create one with `errand users link EMAIL`"),
    }

    let failure = loop {
        tokio::select! {
            () = signals.stop.received() => break None,
            why = app.ended() => break Some(why),
            _ = signals.hang_up.recv() => reload.reload(&app).await,
        }
    };
    tracing::info!(
        "stopping: no new work, and up to {} s for work in progress",
        grace.as_secs()
    );
    // If the data directory was replaced, the socket in it belongs to someone else and is not removed.
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
        () = signals.stop.received() => tracing::warn!("stopped immediately; active runs continue at the next start"),
        () = tokio::time::sleep(grace + AFTER_GRACE) => {
            tracing::warn!("stopped with work in progress, which continues at the next start");
        }
    }
    // After an immediate stop, tasks may still run until the process ends. Closing the store prevents them from
    // writing.
    let _ = tokio::time::timeout(CLOSE_MAX, store.close()).await;
    match failure {
        Some(why) => bail!(why),
        None => Ok(()),
    }
}

/// Runs on a blocking thread, because it reads the whole database.
async fn accept_copy(config: &Config) -> Result<()> {
    let dir = config.server.data_dir.clone();
    if !dir.exists() {
        return Ok(());
    }
    let accepted = tokio::task::spawn_blocking(move || {
        let lock = Store::lock(&dir)?;
        Store::accept_copy(&dir, &lock)
    });
    Ok(accepted.await.context("the operation was interrupted")??)
}

/// If the database is damaged, runs a substitute server that reports this until a signal stops it. Returns any other
/// error.
async fn stand_in(error: anyhow::Error, signals: &mut Signals) -> Result<()> {
    let Some(damaged) = error.downcast_ref::<Damaged>() else {
        return Err(error);
    };
    tracing::error!(
        "{damaged}. The server stays not ready and answers only with this state; run `errand doctor` for details"
    );
    if let Some(url) = &damaged.metrics_url {
        tracing::info!("metrics on {url}");
    }
    tracing::info!("not ready; answers on {}", damaged.url);
    loop {
        tokio::select! {
            () = signals.stop.received() => break,
            _ = signals.hang_up.recv() => tracing::info!("SIGHUP: a damaged database requires a restart"),
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
    TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address}; choose another address with --listen")
    })
}

/// The signals that the server reacts to.
struct Signals {
    stop: Stop,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot receive signals");
        // Handled without effect, so that they do not end the process. The handlers stay installed.
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
    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
