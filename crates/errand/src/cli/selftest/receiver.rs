//! The webhook receiver: stores what arrives, and refuses some deliveries on purpose, so that they are retried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::routing::post;
use bytes::Bytes;
use errand_core::wire::WebhookBody;
use http::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};
use standardwebhooks::Webhook;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::progress::Progress;
use super::seeded::Seeded;

/// One of this many events is refused at its first delivery.
const REFUSED_ONE_IN: u64 = 6;
/// Maximum size of a body in bytes. A webhook contains one run and one request.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A received request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Delivery {
    /// Number of the run in the plan, from the URL.
    pub(super) number: u64,
    /// Header `webhook-id`.
    pub(super) id: String,
    /// SHA-256 of the exact body.
    pub(super) sha256: Vec<u8>,
    /// Whether the response was a success.
    pub(super) taken: bool,
    /// Content of the webhook, or what is wrong with its signature or body.
    pub(super) content: Result<WebhookContent, String>,
}

/// Content of a webhook.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WebhookContent {
    /// ID of the event, from the body.
    pub(super) id: String,
    pub(super) run: String,
    pub(super) event: String,
    pub(super) sequence: u64,
}

/// Stops when dropped.
pub(super) struct Receiver {
    address: SocketAddr,
    inbox: Arc<Inbox>,
    _server: AbortOnDropHandle<()>,
}

struct Inbox {
    secret: Webhook,
    seed: u64,
    kept: Mutex<ReceivedDeliveries>,
    progress: Arc<Progress>,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct ReceivedDeliveries {
    deliveries: Vec<Delivery>,
    /// Received IDs per run. Their number decides which ones are refused.
    ids: BTreeMap<u64, BTreeSet<String>>,
}

impl Receiver {
    pub(super) async fn start(secret: &str, seed: u64, progress: Arc<Progress>) -> Result<Self> {
        let secret = Webhook::new(secret).context("the webhook secret cannot be read")?;
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("no free port for the webhook receiver")?;
        let address = listener.local_addr()?;
        let inbox = Arc::new(Inbox {
            secret,
            seed,
            kept: Mutex::default(),
            progress,
            count: watch::Sender::new(0),
        });
        let router = Router::new()
            .route("/webhooks/{number}", post(receive))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(Arc::clone(&inbox));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the webhook receiver ended unexpectedly");
            }
        });
        Ok(Self {
            address,
            inbox,
            _server: AbortOnDropHandle::new(server),
        })
    }

    /// The URL for the webhooks of a run.
    pub(super) fn url(&self, number: u64) -> String {
        format!("http://{}/webhooks/{number}", self.address)
    }

    pub(super) fn deliveries(&self) -> Vec<Delivery> {
        let kept = self
            .inbox
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kept.deliveries.clone()
    }

    /// Number of received requests, updated with each.
    pub(super) fn count(&self) -> watch::Receiver<usize> {
        self.inbox.count.subscribe()
    }
}

async fn receive(
    State(inbox): State<Arc<Inbox>>,
    Path(number): Path<u64>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok());
    let id = id.unwrap_or_default().to_owned();
    let content = read(&inbox.secret, &headers, &body);
    let (is_new, taken) = {
        let mut kept = inbox.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = kept.ids.entry(number).or_default();
        let is_new = ids.insert(id.clone());
        let mut row = Seeded::new(inbox.seed ^ ids.len() as u64, "refuse", number);
        let taken = !(is_new && row.one_in(REFUSED_ONE_IN));
        kept.deliveries.push(Delivery {
            number,
            id,
            sha256: Sha256::digest(&body).to_vec(),
            taken,
            content,
        });
        (is_new, taken)
    };
    if is_new {
        // Counted before the response, so that some kills happen between a delivery and its record.
        inbox.progress.step();
    }
    inbox.count.send_modify(|count| *count += 1);
    if taken {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

fn read(secret: &Webhook, headers: &HeaderMap, body: &[u8]) -> Result<WebhookContent, String> {
    secret
        .verify(body, headers)
        .map_err(|error| format!("its signature is invalid: {error}"))?;
    let body: WebhookBody =
        serde_json::from_slice(body).map_err(|error| format!("its body is invalid: {error}"))?;
    Ok(WebhookContent {
        id: body.id.to_string(),
        run: body.run_id.to_string(),
        event: body.event,
        sequence: body.sequence,
    })
}
