//! Metrics: `GET /metrics` in Prometheus' text format, on its own listener.
//!
//! # Guarantees
//!
//! - The cost of a scrape does not depend on the number of ended runs. Open runs are counted in each scrape with
//!   indexes. Ended runs are counted at most once a minute, and the age of that count is a metric itself.
//! - One scrape is answered at a time, so that collectors use at most one of the store's readers.
//! - No metric names a team, a run or a person.
//!
//! # Non-goals
//!
//! Authentication: anybody who can reach the listener can read the metrics.

mod process;
mod text;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum_server::Handle;
use errand_core::error_chain::error_chain;
use errand_core::run::Status;
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use errand_store::{Figures, Store, StoreError, Trouble};
use http::{StatusCode, header};
use hyper_util::rt::TokioTimer;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use text::Text;

/// Maximum age of the count of ended runs.
const ENDED_AGE_MS: u64 = 60_000;
/// Time limit for receiving the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The content type of the text format, with its version.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Collects the metrics of a server.
pub struct Metrics {
    store: Store,
    clock: Clock,
    places: u64,
    /// The last count of ended runs. The lock is held during a scrape, so that scrapes run one at a time.
    ended: Mutex<Option<Ended>>,
}

/// Counts of ended runs by status.
#[derive(Clone)]
struct Ended {
    at: Timestamp,
    runs: Vec<(Status, u64)>,
}

impl Metrics {
    /// `places`: the maximum number of concurrent runs.
    #[must_use]
    pub fn new(store: Store, clock: Clock, places: u32) -> Self {
        Self {
            store,
            clock,
            places: u64::from(places),
            ended: Mutex::new(None),
        }
    }

    /// Renders all metrics as text.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn scrape(&self) -> std::result::Result<String, StoreError> {
        let mut text = Text::default();
        build_info(&mut text);
        let condition = self.store.condition();
        troubles(&mut text, |what| condition.has(what));
        let mut refused = text.counter(
            "errand_store_refusals_total",
            "Operations that failed since the start, by cause.",
        );
        for what in Trouble::ALL {
            refused = refused.labeled("trouble", what.as_str(), condition.times(what));
        }
        match self.of_store(&mut text).await {
            // The cause of this error is itself reported as a metric.
            Err(error) if error.is_passing() => {
                tracing::debug!(%error, "the store's metrics are left out")
            }
            read => read?,
        }
        let dir = self.store.dir().to_owned();
        let process = tokio::task::spawn_blocking(move || process::read(&dir)).await;
        process.unwrap_or_default().write(&mut text);
        Ok(text.finish())
    }

    async fn of_store(&self, text: &mut Text) -> std::result::Result<(), StoreError> {
        let mut ended = self.ended.lock().await;
        let now = self.clock.now();
        // Also count again if the clock was set back.
        let counted = match ended.take() {
            Some(known) if known.at <= now && now.ms_since(known.at) < ENDED_AGE_MS => known,
            _ => Ended {
                at: now,
                runs: self.store.ended_runs().await?,
            },
        };
        *ended = Some(counted.clone());
        let figures = self.store.figures(now).await?;
        let without_reason = self.store.runs_without_reason(now).await?;
        self.runs(text, &figures, &counted, now);
        text.gauge(
            "errand_runs_without_reason",
            "Runs that have not ended and wait for nothing; always 0 unless there is a defect.",
        )
        .plain(without_reason);
        outside(text, &figures, now);
        text.counter(
            "errand_store_commits_total",
            "Transactions committed since the start.",
        )
        .plain(self.store.commits());
        text.gauge(
            "errand_store_queue",
            "Writes that wait for the writer thread.",
        )
        .plain(self.store.queue());
        Ok(())
    }

    fn runs(&self, text: &mut Text, figures: &Figures, ended: &Ended, now: Timestamp) {
        let mut runs = text.gauge(
            "errand_runs",
            "Runs by status. Those that have ended are counted once a minute.",
        );
        for (status, count) in figures.open_runs.iter().chain(&ended.runs) {
            runs = runs.labeled("status", status.as_str(), *count);
        }
        text.gauge(
            "errand_runs_ended_age_seconds",
            "Age of the count of ended runs.",
        )
        .plain(now.ms_since(ended.at) / 1000);
        text.gauge("errand_claims", "Runs that are claimed by a driver.")
            .plain(figures.claims);
        text.gauge("errand_places", "Maximum number of concurrent runs.")
            .labeled("state", "free", self.places.saturating_sub(figures.claims))
            .labeled("state", "taken", figures.claims);
    }
}

fn build_info(text: &mut Text) {
    text.gauge("errand_build_info", "Version of the program.")
        .labeled("version", env!("CARGO_PKG_VERSION"), 1);
}

fn troubles(text: &mut Text, has: impl Fn(Trouble) -> bool) {
    let mut figure = text.gauge(
        "errand_store_trouble",
        "Problems of the store: 1 if the problem exists now. A server with any of them is not ready.",
    );
    for what in Trouble::ALL {
        figure = figure.labeled("trouble", what.as_str(), u64::from(has(what)));
    }
}

fn outside(text: &mut Text, figures: &Figures, now: Timestamp) {
    let deliveries = figures.deliveries;
    text.gauge("errand_deliveries", "Webhook deliveries by state.")
        .labeled("state", "pending", deliveries.pending)
        .labeled("state", "delivered", deliveries.delivered)
        .labeled("state", "gone", deliveries.gone)
        .labeled("state", "exhausted", deliveries.exhausted)
        .labeled("state", "dropped", deliveries.dropped);
    text.gauge(
        "errand_delivery_oldest_due_seconds",
        "Time since the oldest due delivery became due; 0 if none is due.",
    )
    .plain(deliveries.due_since.map_or(0, |at| now.ms_since(at)) / 1000);
    text.gauge(
        "errand_human_requests_open",
        "Human requests that wait for an answer.",
    )
    .plain(figures.requests_open);
}

/// A running listener for metrics.
pub struct MetricsServer {
    address: SocketAddr,
    handle: Handle<SocketAddr>,
    task: JoinHandle<std::io::Result<()>>,
}

impl MetricsServer {
    /// Binds the address without accepting connections yet, so that an address in use is reported before anything else
    /// starts.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(address: SocketAddr) -> Result<TcpListener> {
        TcpListener::bind(address).with_context(|| {
            format!("cannot listen on {address} for metrics; set metrics.listen to another address, or leave it out")
        })
    }

    /// Starts answering on a bound listener.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn start(listener: TcpListener, metrics: Metrics) -> Result<Self> {
        let router = Router::new()
            .route("/metrics", get(answer))
            .with_state(Arc::new(metrics));
        Self::serve(listener, router)
    }

    /// Starts answering for a server whose database is damaged.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn start_damaged(listener: TcpListener) -> Result<Self> {
        let mut text = Text::default();
        build_info(&mut text);
        troubles(&mut text, |what| what == Trouble::Damaged);
        let text = text.finish();
        let answer = move || {
            let text = text.clone();
            async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], text) }
        };
        Self::serve(listener, Router::new().route("/metrics", get(answer)))
    }

    fn serve(listener: TcpListener, router: Router) -> Result<Self> {
        let address = listener
            .local_addr()
            .context("the metrics listener has no address")?;
        listener
            .set_nonblocking(true)
            .context("the metrics listener cannot be used")?;
        let handle = Handle::new();
        let mut server = axum_server::from_tcp(listener)?.handle(handle.clone());
        server
            .http_builder()
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        let task = tokio::spawn(server.serve(router.into_make_service()));
        Ok(Self {
            address,
            handle,
            task,
        })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops immediately. A collector repeats an interrupted scrape.
    pub fn shut_down(self) {
        self.handle.shutdown();
        self.task.abort();
    }
}

async fn answer(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.scrape().await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the metrics could not be read"
            );
            let text = format!("the metrics cannot be read now: {}\n", error_chain(&error));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}
