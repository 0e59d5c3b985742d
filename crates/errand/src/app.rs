//! Assembles the server from its parts: store, engine, API, pages, listeners.
//!
//! Nothing is global, so two apps can run in one process. A test passes its own clock, seed, models and tools.

pub mod stand_in;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use errand_core::id::IdGen;
use errand_engine::clock::Clock;
use errand_engine::deltas::Deltas;
use errand_engine::model::Models;
use errand_engine::model::network::Network;
use errand_engine::net::{Bounds, Guard, GuardedClient};
use errand_engine::parse::Parsers;
use errand_engine::progress::Progress;
use errand_engine::sandboxes::Sandboxes;
use errand_engine::tool::Tools;
use errand_engine::tool::fetch::{self, FetchUrl};
use errand_engine::{Engine, EngineContext, EngineOptions};
use errand_sandbox::{Changes, RoomLimits};
use errand_store::data_dir::{self, DataDirError, Making};
use errand_store::seal::MasterKey;
use errand_store::{OpenOptions, Store, Trial};
use http::{HeaderValue, header};
use rustix::process::{Resource, getrlimit};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::api;
use crate::config::{Config, ServerConfig, TlsConfig};
use crate::isolation::{Isolation, OWN_PROGRAM};
use crate::listener::serve::Handle;
use crate::listener::{Connections, CountingAcceptor, connections_max, serve as listening};
use crate::metrics::{Metrics, MetricsServer};
use crate::state::{AppSettings, AppState};
use crate::unread::UnreadAcceptor;

use stand_in::StandIn;

/// Options for opening the data directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening {
    /// Whether a missing store is created.
    pub making: Making,
    /// Whether secrets that the master key cannot decrypt are discarded.
    pub discards_secrets: bool,
}

/// Dependencies that do not come from the settings.
pub struct Ingredients {
    pub clock: Clock,
    /// From the system's random source; fixed in tests, so that ids repeat.
    pub seed: [u8; 32],
    pub models: Models,
    pub tools: Tools,
    /// The path of this program, which isolates commands. `None`: `tools` are used as they are.
    pub helper: Option<PathBuf>,
    /// The path of this program, which parses documents. `None`: documents cannot be read.
    pub parser: Option<PathBuf>,
    /// Injected faults, for tests.
    pub trial: Trial,
    pub opening: Opening,
}

impl Ingredients {
    /// The dependencies of the real program.
    ///
    /// # Errors
    /// The system's random source failed.
    pub fn of_system() -> Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|e| anyhow::anyhow!("the system's random source failed: {e}"))?;
        Ok(Self {
            clock: Clock::System,
            seed,
            models: Models::default(),
            tools: Tools::builtin(),
            helper: Some(OWN_PROGRAM.into()),
            parser: Some(OWN_PROGRAM.into()),
            trial: Trial::default(),
            opening: Opening {
                making: Making::BY_ITSELF,
                discards_secrets: false,
            },
        })
    }
}

/// A running server.
pub struct App {
    url: String,
    store: Store,
    engine: Engine,
    draining: CancellationToken,
    handle: Handle,
    server: JoinHandle<std::io::Result<()>>,
    poisoned: watch::Receiver<bool>,
    grace: Duration,
    router: Router,
    metrics: Option<MetricsServer>,
    progress: Progress,
    changes: Changes,
    /// The TLS certificates, which can be replaced.
    tls: Option<RustlsConfig>,
    watch: JoinHandle<()>,
}

impl App {
    /// Starts a server on a bound listener. It answers `/healthz` immediately, and is ready when this returns.
    ///
    /// # Errors
    /// The data directory is in use or unusable, its schema is newer, the master key is wrong, or TLS files cannot be
    /// read.
    pub async fn start(
        config: Config,
        listener: TcpListener,
        ingredients: Ingredients,
    ) -> Result<Self> {
        let stop = std::future::pending();
        let started = Self::start_until(stop, config, listener, ingredients).await?;
        started.context("the start was canceled")
    }

    /// Same as [`App::start`]. `None`: it was told to stop before it was ready, and has stopped in order.
    ///
    /// # Errors
    /// Same as [`App::start`].
    pub async fn start_until(
        stop: impl Future<Output = ()>,
        config: Config,
        listener: TcpListener,
        ingredients: Ingredients,
    ) -> Result<Option<Self>> {
        let mut opened = None;
        let started = Box::pin(Self::start_noting(
            config,
            listener,
            ingredients,
            &mut opened,
        ));
        let started = tokio::select! {
            started = started => started.map(Some),
            () = stop => Ok(None),
        };
        if let (Err(_) | Ok(None), Some(store)) = (&started, opened) {
            // Parts that were already started may hold a clone of the store.
            store.close().await;
        }
        started
    }

    /// Same as [`App::start`]. `opened` receives the store as soon as it is open.
    async fn start_noting(
        config: Config,
        listener: TcpListener,
        ingredients: Ingredients,
        opened: &mut Option<Store>,
    ) -> Result<Self> {
        errand_engine::net::install_crypto_provider();
        let address = listener
            .local_addr()
            .context("the listener has no address")?;
        let url = config.server.base_url(address);
        let metrics_listener = config.metrics.listen.map(MetricsServer::bind).transpose()?;
        let draining = CancellationToken::new();
        let front = Front::new(draining.clone());
        let handle = Handle::default();
        let (server, tls) = serve(listener, &config.server, handle.clone(), front.router()).await?;

        let Ingredients {
            clock,
            seed,
            models,
            tools,
            helper,
            parser,
            trial,
            opening,
        } = ingredients;
        // Probed while the store opens.
        let isolation = helper.map(|helper| Isolation::begin(&config, helper));
        let ids = Arc::new(IdGen::new(seed));
        let setup = StoreSetup::of(&config, &url, opening);
        let boot = ids.boot(clock.now());
        let store = match setup.opened(&clock, boot, trial).await {
            Ok(store) => store,
            Err(error) if stand_in::is_damage(&error) => {
                let stand_in = StandIn::begin(&front, metrics_listener, &error)?;
                return Err(stand_in.answering_on(url, handle, server).into());
            }
            Err(error) => return Err(error),
        };
        *opened = Some(store.clone());
        store.set_model_aliases(config.model_tables.aliases.clone());
        if let Ok(Some(open)) = crate::doctor::disk::open_to_others(store.dir()) {
            tracing::warn!("{open}: restrict it with chmod 700");
        }
        let upload_key = store.master_key().derive("upload-url");
        let mut sandboxes = sandboxes_of(&config)?;
        sandboxes.begin_with(store.sandbox_bytes_of_teams().await?);
        let tools = tools.with(vec![Arc::new(FetchUrl::new(page_client(&config)?))]);
        let (tools, exec) = Isolation::ready(isolation, tools, &mut sandboxes).await?;
        let models = models.with_network(network_of(&config)?);
        let progress = Progress::default();
        let connections = crate::connections::of(&config, &store, &clock, &progress, exec);
        let changes = sandboxes.changes().clone();
        let context = EngineContext {
            connections,
            store: store.clone(),
            clock: clock.clone(),
            ids,
            models,
            tools,
            deltas: Deltas::default(),
            sandboxes,
            parsers: Parsers::new(parser),
            post: Arc::new(webhook_client(&config)?),
            draining: draining.clone(),
        };
        let (engine, recovered) = Engine::start(context.clone(), engine_options(&config))
            .await
            .context("the engine cannot start")?;
        if recovered.runs > 0 {
            tracing::info!(runs = recovered.runs, "interrupted runs continue");
        }
        let metrics = metrics_listener
            .map(|listener| {
                let places = config.engine.max_concurrent_runs;
                MetricsServer::start(listener, Metrics::new(store.clone(), clock, places))
            })
            .transpose()?;
        let state = AppState::new(
            context,
            upload_key,
            AppSettings::of(&config, &url),
            crate::web::PAGES_ELSEWHERE,
        );
        let router = api::router(state.clone()).merge(crate::web::router(&state));
        front.ready(router.clone());
        let poisoned = store.poisoned();
        let watch = tokio::spawn(crate::watch::run(store.clone(), draining.clone()));
        let grace = Duration::from_secs(u64::from(config.server.shutdown_grace_s));
        Ok(Self {
            url,
            store,
            engine,
            draining,
            handle,
            server,
            poisoned,
            grace,
            router,
            metrics,
            progress,
            changes,
            tls,
            watch,
        })
    }

    /// The public address of the server, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address of the metrics, if they are enabled.
    #[must_use]
    pub fn metrics_url(&self) -> Option<String> {
        let address = self.metrics.as_ref()?.address();
        Some(format!("http://{address}/metrics"))
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The progress of connection tools' calls.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Coordinates changes of sandbox files with backups.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The router, for calls within the process.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Completes when the server can no longer work, because the disk failed or the listener ended. Returns the reason.
    pub async fn ended(&mut self) -> String {
        tokio::select! {
            _ = self.poisoned.wait_for(|poisoned| *poisoned) => {
                self.store.condition().why_lost().unwrap_or_else(|| {
                    "a write to the disk failed and its outcome is unknown; start again to continue from the data on disk".to_owned()
                })
            }
            ended = &mut self.server => match ended {
                Ok(Ok(())) => "the server ended".to_owned(),
                Ok(Err(error)) => format!("the server ended: {error}"),
                Err(error) => format!("the server ended: {error}"),
            },
        }
    }

    /// Whether the data directory was removed or replaced. If so, nothing in it may be touched.
    #[must_use]
    pub fn has_lost_its_data(&self) -> bool {
        self.store.condition().why_lost().is_some()
    }

    /// Reads the TLS certificates again, for new connections. `files`: their current paths. Returns false if the server
    /// does not use TLS.
    ///
    /// # Errors
    /// A file cannot be used. The previous certificates are kept.
    pub async fn reload_tls(&self, files: Option<&TlsConfig>) -> Result<bool> {
        let (Some(tls), Some(TlsConfig { cert, key })) = (&self.tls, files) else {
            return Ok(false);
        };
        tls.reload_from_pem_file(cert, key)
            .await
            .with_context(|| format!("server.tls: {} cannot be used", cert.display()))?;
        Ok(true)
    }

    /// Stops in order: no new work is started, and requests and steps in progress get the grace period. Until the steps
    /// have ended, clients are answered that the server is stopping; after that, connections are refused.
    pub async fn shut_down(self) {
        let began = tokio::time::Instant::now();
        self.draining.cancel();
        self.engine.shut_down(self.grace).await;
        let left = self.grace.saturating_sub(began.elapsed());
        self.handle.graceful_shutdown(left);
        self.watch.abort();
        if !self.server.is_finished()
            && let Err(error) = self.server.await
        {
            tracing::warn!(%error, "the server did not end in order");
        }
        // Stopped almost last, so that the shutdown can be observed.
        self.metrics.into_iter().for_each(MetricsServer::shut_down);
        // Closed explicitly: an aborted task may hold a clone of the store until the process ends.
        self.store.close().await;
    }

    /// Ends immediately, as a crash would: nothing is completed or written. For tests of recovery.
    pub fn crash(self) {
        self.watch.abort();
        self.handle.shutdown();
        self.server.abort();
        self.metrics.into_iter().for_each(MetricsServer::shut_down);
        self.engine.abort();
    }
}

/// Pooled connections of a server for reading. Short reads have others, one for each thread.
pub(crate) const STORE_READERS: u32 = 4;
/// Cache of each connection for reading, in KiB. That of the writer is eight times as large.
const STORE_CACHE_KIB: u32 = 2_048;

/// The parameters for opening the store. A struct, so that they can be sent to a blocking thread.
pub(crate) struct StoreSetup {
    pub(crate) dir: PathBuf,
    pub(crate) url: String,
    pub(crate) readers: u32,
    pub(crate) key: Option<MasterKey>,
    pub(crate) opening: Opening,
}

impl StoreSetup {
    fn of(config: &Config, url: &str, opening: Opening) -> Self {
        Self {
            dir: config.server.data_dir.clone(),
            url: url.to_owned(),
            readers: STORE_READERS,
            key: master_key_of(config),
            opening,
        }
    }

    /// Opens the store on a blocking thread, and discards undecryptable secrets if requested.
    async fn opened(
        self,
        clock: &Clock,
        boot: errand_core::id::BootId,
        trial: Trial,
    ) -> Result<Store> {
        let discards = self.opening.discards_secrets;
        let store = tokio::task::spawn_blocking(move || self.open(boot, trial))
            .await
            .context("opening the store was interrupted")??;
        if discards {
            discard_lost_secrets(&store, clock.now()).await?;
        }
        Ok(store)
    }

    pub(crate) fn open(self, boot: errand_core::id::BootId, trial: Trial) -> Result<Store> {
        let Opening {
            making,
            discards_secrets,
        } = self.opening;
        if !making.allowed {
            // Checked before locking, which would create the directory.
            data_dir::expect_store(&self.dir)?;
        }
        // Lock first: only the holder of the lock may use the key's file.
        let lock = Store::lock(&self.dir)?;
        let dir = self.dir.clone();
        let prepared = data_dir::prepare(&dir, making, self.key, discards_secrets)?;
        let options = OpenOptions {
            dir: self.dir,
            boot,
            respond_base: self.url,
            master_key: prepared.master_key,
            readers: self.readers as usize,
            cache_kib: STORE_CACHE_KIB,
        };
        let store = Store::open_on_trial(options, lock, trial)
            .map_err(|error| DataDirError::of_opening(&dir, error))?;
        data_dir::made(&dir).with_context(|| format!("{} cannot be used", dir.display()))?;
        store.is_opened(prepared.is_whole);
        Ok(store)
    }
}

/// Discards everything that the master key cannot decrypt, and logs it.
async fn discard_lost_secrets(store: &Store, now: errand_core::time::Timestamp) -> Result<()> {
    let discarded = store
        .discard_lost_secrets(now)
        .await
        .context("the old secrets could not be discarded")?;
    if discarded.count() == 0 {
        tracing::info!("the master key decrypts every secret: none was discarded");
    }
    for (kind, (count, names)) in discarded.by_kind {
        let names = names.join(", ");
        match kind {
            "teams" => tracing::warn!(
                count,
                names,
                "webhook secrets that the master key cannot decrypt were replaced: configure the new ones at the receivers"
            ),
            "providers" => {
                tracing::warn!(
                    count,
                    names,
                    "keys of model providers were discarded: set them again"
                );
            }
            "connections" => {
                tracing::warn!(
                    count,
                    names,
                    "sign-ins of connections were discarded: sign in again"
                );
            }
            "secrets" => tracing::warn!(
                count,
                names,
                "stored secrets were discarded: set them again"
            ),
            _ => tracing::warn!(count, "retired webhook secrets were discarded"),
        }
    }
    Ok(())
}

pub(crate) fn master_key_of(config: &Config) -> Option<MasterKey> {
    config
        .master_key
        .as_ref()
        .map(|key| MasterKey::from_bytes(*key.expose()))
}

fn sandboxes_of(config: &Config) -> Result<Sandboxes> {
    let sandboxes = Sandboxes::settled(&config.server.data_dir)
        .context("the sandbox directory cannot be used")?;
    Ok(sandboxes.with_limits(RoomLimits {
        disk_bytes_max: config.sandbox.disk_bytes_max,
        team_disk_bytes_max: config.sandbox.team_disk_bytes_max,
        files_max: u64::from(config.sandbox.files_max),
    }))
}

fn network_of(config: &Config) -> Result<Network> {
    let places = config.engine.max_concurrent_runs;
    Network::new(config.model_tables.settings(&config.models, places))
        .context("the HTTP clients for models cannot be created")
}

fn engine_options(config: &Config) -> EngineOptions {
    EngineOptions {
        max_concurrent_runs: config.engine.max_concurrent_runs as usize,
        step_seconds_max: config.engine.step_seconds_max,
        max_concurrent_deliveries: config.webhooks.max_concurrent_deliveries as usize,
        cleans_up: true,
    }
}

fn webhook_client(config: &Config) -> Result<GuardedClient> {
    let mut bounds = Bounds::WEBHOOK;
    bounds.total = Duration::from_secs(u64::from(config.webhooks.timeout_s));
    Guard::webhooks(config.webhooks.allow_private_networks)
        .client(bounds)
        .context("the webhook client cannot be created")
}

fn page_client(config: &Config) -> Result<GuardedClient> {
    let allow_private = config.fetch_url.allow_private_networks;
    Guard::new(allow_private, "fetch_url.allow_private_networks")
        .client(fetch::BOUNDS)
        .context("the client for web pages cannot be created")
}

/// Answers requests before the router is ready, and while the server is stopping.
#[derive(Clone)]
struct Front {
    router: Arc<OnceLock<Router>>,
    draining: CancellationToken,
}

impl Front {
    fn new(draining: CancellationToken) -> Self {
        Self {
            router: Arc::default(),
            draining,
        }
    }

    fn ready(&self, router: Router) {
        // An error would mean that it is already set. It is set only here.
        let _ = self.router.set(router);
    }

    fn router(&self) -> Router {
        let front = self.clone();
        Router::new().fallback(move |request: Request| front.clone().answer(request))
    }

    async fn answer(self, mut request: Request) -> Response {
        crate::http::host::mark(&mut request);
        if self.draining.is_cancelled() {
            let mut response = api::stopping(request.uri().path());
            // The next request should reach another server, or none.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            return response;
        }
        match self.router.get() {
            Some(router) => match router.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            None => api::starting(request.uri().path()).into_response(),
        }
    }
}

async fn serve(
    listener: TcpListener,
    settings: &ServerConfig,
    handle: Handle,
    router: Router,
) -> Result<(JoinHandle<std::io::Result<()>>, Option<RustlsConfig>)> {
    let connections = Connections::new(connections_max(getrlimit(Resource::Nofile).current));
    let (unread, idle) = (settings.unread_timeout, settings.idle_timeout);
    match &settings.tls {
        None => {
            let acceptor = CountingAcceptor::new(NoDelayAcceptor::new(), connections);
            let acceptor = UnreadAcceptor::new(acceptor, unread);
            let serving = listening::serve(listener, acceptor, router, idle, handle);
            Ok((tokio::spawn(serving), None))
        }
        Some(TlsConfig { cert, key }) => {
            let unreadable = |path: &Path| format!("server.tls: {} cannot be used", path.display());
            let config = RustlsConfig::from_pem_file(&cert, &key)
                .await
                .with_context(|| unreadable(cert))?;
            let acceptor = RustlsAcceptor::new(config.clone()).acceptor(NoDelayAcceptor::new());
            let acceptor = CountingAcceptor::new(acceptor, connections);
            let acceptor = UnreadAcceptor::new(acceptor, unread);
            let serving = listening::serve(listener, acceptor, router, idle, handle);
            Ok((tokio::spawn(serving), Some(config)))
        }
    }
}
