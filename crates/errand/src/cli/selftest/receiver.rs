//! The receiver of webhooks: keeps what came, and refuses some deliveries on purpose, so that they are tried again.

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

/// One in so many events is refused at its first delivery.
const REFUSED_ONE_IN: u64 = 6;
/// Largest body that is taken: a webhook holds one run and one request. Unit: bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// One request that came.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Delivery {
    /// The run's number in the plan, from the address.
    pub(super) number: u64,
    /// `webhook-id`.
    pub(super) id: String,
    /// The digest of the exact bytes.
    pub(super) sha256: Vec<u8>,
    /// Whether it was answered with success.
    pub(super) taken: bool,
    /// What it says; or what is wrong with it: its signature, or its form.
    pub(super) told: Result<Told, String>,
}

/// What a webhook says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    /// The event's id, from the body.
    pub(super) id: String,
    pub(super) run: String,
    pub(super) event: String,
    pub(super) sequence: u64,
}

/// Ends when it is dropped.
pub(super) struct Receiver {
    address: SocketAddr,
    inbox: Arc<Inbox>,
    _server: AbortOnDropHandle<()>,
}

struct Inbox {
    secret: Webhook,
    seed: u64,
    kept: Mutex<Kept>,
    progress: Arc<Progress>,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Kept {
    deliveries: Vec<Delivery>,
    /// The ids that came for each run: which of them are refused goes by their number.
    ids: BTreeMap<u64, BTreeSet<String>>,
}

impl Receiver {
    pub(super) async fn start(secret: &str, seed: u64, progress: Arc<Progress>) -> Result<Self> {
        let secret = Webhook::new(secret).context("the webhook secret cannot be read")?;
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("no free port can be had for the receiver of webhooks")?;
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
                tracing::error!(%error, "the receiver of webhooks ended");
            }
        });
        Ok(Self {
            address,
            inbox,
            _server: AbortOnDropHandle::new(server),
        })
    }

    /// Where the webhooks of a run go.
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

    /// How many requests came; changes with each.
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
    let told = read(&inbox.secret, &headers, &body);
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
            told,
        });
        (is_new, taken)
    };
    if is_new {
        // Before it is answered: some kills fall between the delivery and its record.
        inbox.progress.step();
    }
    inbox.count.send_modify(|count| *count += 1);
    if taken {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

fn read(secret: &Webhook, headers: &HeaderMap, body: &[u8]) -> Result<Told, String> {
    secret
        .verify(body, headers)
        .map_err(|error| format!("its signature is wrong: {error}"))?;
    let body: WebhookBody =
        serde_json::from_slice(body).map_err(|error| format!("its form is wrong: {error}"))?;
    Ok(Told {
        id: body.id.to_string(),
        run: body.run_id.to_string(),
        event: body.event,
        sequence: body.sequence,
    })
}
