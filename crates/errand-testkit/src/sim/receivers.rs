//! Simulated webhook receivers: fast, slow, down for a while, or no longer interested.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use errand_engine::net::{Answer, RequestError};
use errand_engine::webhook::Post;
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::Sabotage;
use super::invariants::Invariant;
use super::world::{State, World, short};

/// The current behavior of a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Answers immediately with this status.
    Answers(u16),
    /// Answers 200 before the sender times out.
    Slow,
    /// Receives the request but answers only after the sender has timed out.
    TooLate,
    /// Does not accept connections.
    Dead,
}

/// The sender's timeout.
const GIVES_UP_MS: u64 = 15_000;

/// A request that reached a receiver.
pub(crate) struct Receipt {
    pub(crate) url: String,
    pub(crate) id: String,
    /// The status that the sender saw; `None` if it timed out.
    pub(crate) answered: Option<u16>,
}

/// Carries webhooks to the simulated receivers.
pub(crate) struct SimNetwork(pub(crate) Arc<World>);

pub(crate) fn url_of(receiver: usize) -> String {
    format!("http://r{receiver}.example/hook")
}

#[async_trait]
impl Post for SimNetwork {
    async fn post(
        &self,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, RequestError> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let receiver = (host.split('.').next())
            .and_then(|name| name.strip_prefix('r')?.parse::<usize>().ok())
            .unwrap_or(0);
        let id = headers
            .get("webhook-id")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let mode = self.0.state().receivers[receiver];
        let too_late = || RequestError::TimedOut {
            host: host.clone(),
            within_ms: GIVES_UP_MS,
        };
        if mode == Mode::Dead {
            self.attempted(url, id, &body, None);
            self.0.linger(GIVES_UP_MS).await;
            return Err(too_late());
        }
        let chosen = id.ends_with(['3', '7']);
        let lost = chosen && self.0.sabotages(Sabotage::SwallowsWebhooks);
        let late = chosen && self.0.sabotages(Sabotage::DelaysWebhooks);
        let receipt = (!lost && !late).then(|| self.attempted(url, id, &body, Some(mode)));
        if late {
            let delayed = (url.clone(), id.to_owned(), body.clone());
            self.0.state().delayed.push(delayed);
        } else {
            let delayed = self.0.state().take_delayed(url);
            if let Some((_, id, body)) = delayed {
                self.attempted(url, &id, &body, Some(mode));
            }
        }
        let status = match mode {
            Mode::Answers(status) => {
                self.0.give_way().await;
                status
            }
            Mode::Slow => {
                let ms = self.0.state().random.below(GIVES_UP_MS);
                self.0.linger(ms).await;
                200
            }
            Mode::TooLate | Mode::Dead => {
                self.0.linger(GIVES_UP_MS).await;
                return Err(too_late());
            }
        };
        if let Some(Some(receipt)) = receipt {
            self.0.state().receipts[receipt].answered = Some(status);
        }
        Ok(Answer {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            body_is_cut: false,
        })
    }
}

impl State {
    /// Takes a delayed webhook for this URL, if there is one.
    fn take_delayed(&mut self, url: &Url) -> Option<(Url, String, Bytes)> {
        let index = self.delayed.iter().position(|(to, ..)| to == url)?;
        Some(self.delayed.remove(index))
    }
}

impl SimNetwork {
    /// Records an attempt, and a receipt if the request reached the receiver. Returns the index of the receipt.
    fn attempted(&self, url: &Url, id: &str, body: &Bytes, mode: Option<Mode>) -> Option<usize> {
        let event: Value = serde_json::from_slice(body).unwrap_or_default();
        let run = event["run_id"].as_str().unwrap_or_default().to_owned();
        let sequence = event["sequence"].as_u64().unwrap_or_default();
        let mut digest: [u8; 32] = Sha256::digest(body).into();
        let now = self.0.now();
        let mut state = self.0.state();
        let what = format!(
            "webhook {sequence} of {} to {} ({}): {mode:?}",
            short(&run),
            url.host_str().unwrap_or_default(),
            event["event"].as_str().unwrap_or_default()
        );
        state.note(now, &what);
        let key = (url.to_string(), id.to_owned());
        if self.0.sabotages(Sabotage::AltersRepeatedWebhooks) && state.bodies.contains_key(&key) {
            digest[0] ^= 1;
        }
        match state.bodies.insert(key, digest) {
            Some(before) if before != digest => {
                state.broken(now, Invariant::SameBytes, what.clone());
            }
            Some(_) => {}
            None => {
                let line = (url.to_string(), run);
                let last = state.first_attempts.insert(line, sequence);
                if last.is_some_and(|last| last >= sequence) {
                    state.broken(now, Invariant::InOrder, format!("{what} after {last:?}"));
                }
            }
        }
        if event["id"].as_str() != Some(id) {
            state.broken(
                now,
                Invariant::SameBytes,
                format!("{what}: the body has another id"),
            );
        }
        mode?;
        state.receipts.push(Receipt {
            url: url.to_string(),
            id: id.to_owned(),
            answered: None,
        });
        Some(state.receipts.len() - 1)
    }
}
