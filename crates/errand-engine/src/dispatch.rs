//! Gives runs to drivers: at most so many at once, fairly between teams, in order; and keeps time.
//!
//! The bell only says that there may be work; what there is, is read from the store. A bell that is lost costs nothing
//! but time until the next one, and none is lost: it is rung after each commit that makes work.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use errand_core::id::{ClaimToken, IdGen, TeamId};
use errand_core::time::Timestamp;
use errand_store::model::ReadyRun;
use errand_store::{Recovered, Store, StoreError};
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::conclude::conclude;
use crate::drive::{DriveError, drive};
use crate::model::Models;
use crate::net::{Guard, GuardedClient};
use crate::sandboxes::Sandboxes;
use crate::tool::Tools;
use crate::{janitor, outbox};

/// Most runs that are claimed in one transaction: each is answered when all are on disk.
const CLAIMS_MAX: usize = 32;
/// The pause after a failure of the store, so that a broken disk is not asked without end.
const STORE_PAUSE_MS: u64 = 250;

/// What the engine is made of. Cheap to clone.
#[derive(Clone)]
pub struct Parts {
    /// What is kept.
    pub store: Store,
    /// What time it is.
    pub clock: Clock,
    /// Makes ids.
    pub ids: Arc<IdGen>,
    /// Who decides.
    pub models: Models,
    /// What can be called.
    pub tools: Tools,
    /// Where files are.
    pub sandboxes: Sandboxes,
    /// No new work; steps in progress are finished.
    pub draining: CancellationToken,
}

/// How the engine works.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Runs that work at once. Range 1..=10,000.
    pub max_concurrent_runs: usize,
    /// Deliveries under way at once. Range 1..=1,000.
    pub max_concurrent_deliveries: usize,
    /// Whether webhooks may go to private networks.
    pub allow_private_networks: bool,
    /// The time of one delivery attempt.
    pub webhook_timeout: Duration,
}

/// The running engine.
pub struct Engine {
    parts: Parts,
    cancel: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Sets right what the last start left, then starts to work.
    ///
    /// # Errors
    /// Of the store; of the HTTP client's making.
    pub async fn start(
        parts: Parts,
        options: EngineOptions,
    ) -> Result<(Self, Recovered), StartError> {
        let started = parts.clock.now();
        let recovered = parts.store.recover(started).await?;
        let mut bounds = crate::net::Bounds::WEBHOOK;
        bounds.total = options.webhook_timeout;
        let client: GuardedClient =
            Guard::webhooks(options.allow_private_networks).client(bounds)?;
        let cancel = CancellationToken::new();
        let dispatcher = Dispatcher {
            parts: parts.clone(),
            cancel: cancel.clone(),
            places: options.max_concurrent_runs.max(1),
            last: None,
            drives: JoinSet::new(),
            driven: HashMap::new(),
        };
        let tasks = vec![
            tokio::spawn(dispatcher.run()),
            tokio::spawn(outbox::run(
                parts.clone(),
                client,
                options.max_concurrent_deliveries.max(1),
                cancel.clone(),
            )),
            tokio::spawn(janitor::run(parts.clone(), started)),
        ];
        Ok((
            Self {
                parts,
                cancel,
                tasks,
            },
            recovered,
        ))
    }

    /// No new work. Steps in progress get `grace`; what is not done by then is cut off, and goes on after the next start.
    pub async fn shut_down(self, grace: Duration) {
        self.parts.draining.cancel();
        let mut tasks = self.tasks;
        let all = futures::future::join_all(tasks.iter_mut());
        if tokio::time::timeout(grace, all).await.is_ok() {
            return;
        }
        self.cancel.cancel();
        // Cancelled model calls and deliveries end at once; what blocks longer is left to the next start's recovery.
        // Those that have ended are not asked again.
        tasks.retain(|task| !task.is_finished());
        if tokio::time::timeout(
            Duration::from_secs(1),
            futures::future::join_all(tasks.iter_mut()),
        )
        .await
        .is_err()
        {
            tracing::warn!(
                "some steps did not end within the grace period; they go on after the next start"
            );
            tasks.iter().for_each(JoinHandle::abort);
        }
    }
}

impl Engine {
    /// Ends at once, as a crash would: nothing is finished. For tests of recovery.
    pub fn abort(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error("the store could not be recovered")]
    Store(#[from] StoreError),
    /// No HTTP client.
    #[error("the webhook client could not be made")]
    Client(#[from] crate::net::ClientError),
}

struct Dispatcher {
    parts: Parts,
    cancel: CancellationToken,
    places: usize,
    /// The team that was served last: the next one has its turn.
    last: Option<TeamId>,
    drives: JoinSet<()>,
    driven: HashMap<Id, (ReadyRun, ClaimToken)>,
}

impl Dispatcher {
    async fn run(mut self) {
        while !self.parts.draining.is_cancelled() {
            let moment = match self.round().await {
                Ok(moment) => moment,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the store failed; trying again"
                    );
                    Some(self.parts.clock.now().plus_ms(STORE_PAUSE_MS))
                }
            };
            let parts = self.parts.clone();
            tokio::select! {
                () = parts.store.bell().work() => {}
                () = at(&parts.clock, moment) => {}
                () = parts.draining.cancelled() => {}
                Some(ended) = self.drives.join_next_with_id() => self.ended(ended),
            }
            // Several may have ended meanwhile: one round for all of them.
            while let Some(ended) = self.drives.try_join_next_with_id() {
                self.ended(ended);
            }
        }
        while let Some(ended) = self.drives.join_next_with_id().await {
            self.ended(ended);
        }
    }

    /// Fills the free places, does what is due by the clock, and says when the next moment is.
    async fn round(&mut self) -> Result<Option<Timestamp>, StoreError> {
        // One reading of the clock for what is ready and for the next moment: between two, something could fall due unseen.
        let mut now = self.parts.clock.now();
        loop {
            let free = self
                .places
                .saturating_sub(self.drives.len())
                .min(CLAIMS_MAX);
            if free == 0 {
                break;
            }
            now = self.parts.clock.now();
            let ready = self
                .parts
                .store
                .ready_runs(now, u32::try_from(free).unwrap_or(u32::MAX), self.last)
                .await?;
            if ready.is_empty() {
                break;
            }
            self.last = ready.last().map(|ready| ready.team);
            let wanted = ready
                .into_iter()
                .map(|ready| (ready, self.parts.ids.claim_token(now)))
                .collect();
            for (ready, claim) in self.parts.store.claim(wanted, now).await? {
                self.spawn(ready, claim);
            }
        }
        self.keep_time(now).await
    }

    async fn keep_time(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let moment = self.parts.store.next_moment(now).await?;
        if moment.is_none_or(|moment| moment > now) {
            return Ok(moment);
        }
        self.parts.store.lapse_requests(now).await?;
        self.parts.store.fail_overdue(now).await?;
        self.parts.store.next_moment(now).await
    }

    fn spawn(&mut self, ready: ReadyRun, claim: ClaimToken) {
        let (parts, cancel) = (self.parts.clone(), self.cancel.child_token());
        let handle = self.drives.spawn(async move {
            let ended = drive(&parts, ready, claim, &cancel).await;
            conclude(&parts, ready, claim, ended).await;
        });
        self.driven.insert(handle.id(), (ready, claim));
    }

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let error = match ended {
            Ok((id, ())) => {
                self.driven.remove(&id);
                return;
            }
            Err(error) => error,
        };
        let Some((ready, claim)) = self.driven.remove(&error.id()) else {
            return;
        };
        tracing::error!(run.id = %ready.run, %error, "a driver failed");
        let parts = self.parts.clone();
        // It keeps its place until the run has failed.
        let handle = self
            .drives
            .spawn(async move { conclude(&parts, ready, claim, Err(DriveError::Panicked)).await });
        self.driven.insert(handle.id(), (ready, claim));
    }
}

/// Until the moment, or for ever.
pub(crate) async fn at(clock: &Clock, moment: Option<Timestamp>) {
    match moment {
        Some(moment) => clock.sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
