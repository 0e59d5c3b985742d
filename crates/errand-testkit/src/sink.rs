//! A webhook receiver on the loopback interface with configurable responses.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::sync::watch;

/// One request that was received.
#[derive(Clone, Debug)]
pub struct Received {
    /// The `webhook-id` header.
    pub id: String,
    /// The exact bytes of the body.
    pub body: Bytes,
    pub headers: HeaderMap,
    /// The status that was returned.
    pub answered: u16,
}

impl Received {
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a webhook's body is JSON")
    }

    /// Whether one of the signatures was made with this secret.
    #[must_use]
    pub fn is_signed_by(&self, secret: &str) -> bool {
        // The library's verification uses the system clock and rejects old timestamps, but tests have a manual clock.
        // So sign again and compare.
        let header = |name: &str| {
            self.headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let timestamp: i64 = header("webhook-timestamp").parse().unwrap_or_default();
        let signer = standardwebhooks::Webhook::new(secret).expect("a secret has the form whsec_…");
        signer
            .sign(&self.id, timestamp, &self.body)
            .is_ok_and(|signature| {
                header("webhook-signature")
                    .split(' ')
                    .any(|s| s == signature)
            })
    }
}

#[derive(Default)]
struct Inbox {
    received: Vec<Received>,
    answers: VecDeque<u16>,
}

/// A receiver that runs until it is dropped.
pub struct WebhookSink {
    url: String,
    inbox: Arc<Mutex<Inbox>>,
    count: watch::Sender<usize>,
    server: tokio::task::JoinHandle<()>,
}

impl WebhookSink {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let count = watch::Sender::new(0);
        let app = Router::new()
            .fallback(receive)
            .with_state((Arc::clone(&inbox), count.clone()));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            url,
            inbox,
            count,
            server,
        }
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sets the statuses for the next requests. Afterwards, all get 200.
    pub fn answer_with(&self, statuses: impl IntoIterator<Item = u16>) {
        self.inbox.lock().unwrap().answers.extend(statuses);
    }

    /// All requests so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.inbox.lock().unwrap().received.clone()
    }

    /// The event names of the requests that were accepted, in order.
    #[must_use]
    pub fn events(&self) -> Vec<String> {
        let taken = self.received().into_iter().filter(|r| r.answered < 300);
        taken
            .map(|r| r.json()["event"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Waits until this many requests have arrived. Panics after a minute.
    pub async fn until(&self, n: usize) {
        let mut count = self.count.subscribe();
        let waited = tokio::time::timeout(
            std::time::Duration::from_secs(60),
            count.wait_for(|have| *have >= n),
        )
        .await;
        assert!(
            waited.is_ok(),
            "expected {n} webhooks, received {}",
            self.received().len()
        );
    }
}

impl Drop for WebhookSink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Shared = (Arc<Mutex<Inbox>>, watch::Sender<usize>);

async fn receive(
    State((inbox, count)): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let id = headers
        .get("webhook-id")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let answered = {
        let mut inbox = inbox.lock().unwrap();
        let answered = inbox.answers.pop_front().unwrap_or(200);
        inbox.received.push(Received {
            id,
            body,
            headers,
            answered,
        });
        answered
    };
    count.send_modify(|n| *n += 1);
    StatusCode::from_u16(answered).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
