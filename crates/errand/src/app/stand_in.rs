//! A stand-in for a server whose database is damaged. It runs and reports the damage, but does nothing else.
//!
//! `/healthz` answers 200, everything else 503 with the damage; the metrics contain `errand_store_trouble`. It ends
//! on SIGTERM. It writes nothing, so that the remaining data is preserved for recovery.

use std::net::TcpListener;
use std::sync::Mutex;

use anyhow::Result;
use axum::Router;
use axum::extract::Request;
use errand_store::data_dir::DataDirError;
use tokio::task::JoinHandle;

use super::Front;
use crate::api;
use crate::listener::serve::Handle;
use crate::metrics::MetricsServer;

/// Whether an error of opening the store means that the database is damaged.
pub(super) fn is_damage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(DataDirError::Damaged { .. }))
}

/// A stand-in server that is not answering yet. See the module documentation.
pub struct StandIn {
    why: String,
    metrics: Option<MetricsServer>,
}

impl StandIn {
    pub(super) fn begin(
        front: &Front,
        metrics: Option<TcpListener>,
        error: &anyhow::Error,
    ) -> Result<Self> {
        let why = error.to_string();
        let message = format!("the server cannot work: {why}");
        front.ready(Router::new().fallback(move |request: Request| {
            let message = message.clone();
            async move { api::not_working(request.uri().path(), message) }
        }));
        Ok(Self {
            why,
            metrics: metrics.map(MetricsServer::start_damaged).transpose()?,
        })
    }

    pub(super) fn answering_on(
        self,
        url: String,
        handle: Handle,
        server: JoinHandle<std::io::Result<()>>,
    ) -> Damaged {
        Damaged {
            why: self.why.clone(),
            url,
            metrics_url: self
                .metrics
                .as_ref()
                .map(|metrics| format!("http://{}/metrics", metrics.address())),
            parts: Mutex::new(Some(Parts {
                stand_in: self,
                handle,
                server,
            })),
        }
    }
}

struct Parts {
    stand_in: StandIn,
    handle: Handle,
    server: JoinHandle<std::io::Result<()>>,
}

/// The error of a start on a damaged database. Until it is dropped or shut down, a stand-in answers requests.
#[derive(thiserror::Error)]
#[error("{why}")]
pub struct Damaged {
    why: String,
    /// The address at which it answers.
    pub url: String,
    /// The address of the metrics, if they are enabled.
    pub metrics_url: Option<String>,
    parts: Mutex<Option<Parts>>,
}

impl std::fmt::Debug for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Damaged").field("why", &self.why).finish()
    }
}

impl Damaged {
    /// Stops answering.
    pub fn shut_down(&self) {
        let parts = self.parts.lock();
        let parts = parts
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        if let Some(parts) = parts {
            parts.handle.shutdown();
            parts.server.abort();
            parts
                .stand_in
                .metrics
                .into_iter()
                .for_each(MetricsServer::shut_down);
        }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        self.shut_down();
    }
}
