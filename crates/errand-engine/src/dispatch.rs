//! The dispatcher: claims ready runs, starts a driver for each, and acts on deadlines.
//!
//! # Guarantees
//!
//! At most [`EngineOptions::max_concurrent_runs`] runs are driven at once. Slots are shared fairly between teams and,
//! within a team, between the API keys and people that started the runs ([`errand_core::fair`]); each one's runs are
//! claimed in order.
//!
//! A notification only says that there may be work; the work itself is read from the store. A lost notification would
//! cost time and nothing else.

mod alone;

use std::collections::HashMap;
use std::time::Duration;

use errand_core::id::ClaimToken;
use errand_core::time::Timestamp;
use errand_store::model::{Claimed, ReadyRun, RunSlots};
use errand_store::{Recovered, StoreError, WakeOutcome};
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::clock_jump::ClockJumps;
use crate::context::EngineContext;
use crate::drive::{DriveError, drive};
use crate::finish_drive::finish_drive;
use crate::model::Models;
use crate::store_retry::retry_while_unavailable;
use crate::{janitor, outbox};
use alone::Alone;

/// Maximum number of runs that are claimed in one transaction. More would delay the first of them.
const CLAIMS_MAX: usize = 32;
/// Pause after a failure of the store, in milliseconds, so that a broken disk does not cause a busy loop.
const STORE_PAUSE_MS: u64 = 250;

#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Maximum number of runs that are driven at once, 1..=10,000. From four on, an eighth of the slots is reserved for
    /// teams other than the one that holds the most.
    pub max_concurrent_runs: usize,
    /// Maximum duration of one step of a run, in seconds, 1..=86,400.
    pub step_seconds_max: u32,
    /// Maximum number of webhook attempts in flight, 1..=1,000.
    pub max_concurrent_deliveries: usize,
    /// Whether expired and orphaned files are removed. A simulation has no files.
    pub cleans_up: bool,
}

/// The running engine.
pub struct Engine {
    context: EngineContext,
    cancel: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Recovers the runs that the previous start left claimed, then starts the tasks.
    ///
    /// # Errors
    ///
    /// If the store cannot recover.
    pub async fn start(
        context: EngineContext,
        options: EngineOptions,
    ) -> Result<(Self, Recovered), StoreError> {
        let started = context.clock.now();
        let (recovered, clock_jumps) = if context.clock.is_the_systems() {
            // A full disk may have room later. Until then nothing is lost, and the server reports that it is not ready.
            let recovered =
                retry_while_unavailable(&context, || context.store.recover(started)).await?;
            (recovered, Some(ClockJumps::new(started)))
        } else {
            // A manual clock stands still, so a retry after a pause would wait forever. The test starts again.
            (context.store.recover(started).await?, None)
        };
        for run in &recovered.parked {
            tracing::error!(run.id = %run, "the run is parked as failed (poisoned), because the server ended four times in a row while driving it; `errand runs retry --force RUN` continues it");
        }
        let cancel = CancellationToken::new();
        let dispatcher = Dispatcher::new(&context, &cancel, options, clock_jumps.clone(), started);
        let mut tasks = vec![
            tokio::spawn(dispatcher.run()),
            tokio::spawn(outbox::run(
                context.clone(),
                options.max_concurrent_deliveries.max(1),
                cancel.clone(),
            )),
        ];
        if let Some(clock_jumps) = clock_jumps {
            let (clock, draining) = (context.clock.clone(), context.draining.clone());
            tasks.push(tokio::spawn(async move {
                let _ = draining.run_until_cancelled(clock_jumps.run(&clock)).await;
            }));
        }
        if options.cleans_up {
            tasks.push(tokio::spawn({
                let (connections, draining) =
                    (context.connections.clone(), context.draining.clone());
                async move {
                    let _ = draining.run_until_cancelled(connections.close_idle()).await;
                }
            }));
            tasks.push(tokio::spawn(janitor::run(context.clone(), started)));
        }
        Ok((
            Self {
                context,
                cancel,
                tasks,
            },
            recovered,
        ))
    }

    /// Starts no new work and gives steps in progress `grace` to end. Steps that take longer are cut off, and continue
    /// after the next start.
    pub async fn shut_down(self, grace: Duration) {
        self.context.draining.cancel();
        let mut tasks = self.tasks;
        let connections = self.context.connections;
        let all = futures::future::join_all(tasks.iter_mut());
        if tokio::time::timeout(grace, all).await.is_ok() {
            connections.shut_down().await;
            return;
        }
        self.cancel.cancel();
        // These runs are interrupted by the shutdown, so they must not count as having crashed the server.
        if let Err(error) = self.context.store.forgive_losses().await {
            tracing::warn!(%error, "runs that are cut off now may count as having crashed the server");
        }
        // Canceled model calls and deliveries end at once. What blocks longer is left to the next start's recovery. A
        // handle that has completed must not be polled again.
        tasks.retain(|task| !task.is_finished());
        if tokio::time::timeout(
            Duration::from_secs(1),
            futures::future::join_all(tasks.iter_mut()),
        )
        .await
        .is_err()
        {
            tracing::warn!(
                "some steps did not end within the grace period; they continue after the next start"
            );
            tasks.iter().for_each(JoinHandle::abort);
        }
        connections.shut_down().await;
    }
}

impl Engine {
    /// Ends at once, like a crash. For tests of recovery.
    pub fn abort(self) {
        self.context.connections.abort();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Dispatcher {
    engine: EngineContext,
    cancel: CancellationToken,
    /// The slots that each team and principal holds.
    slots: RunSlots,
    step_seconds_max: u32,
    /// `None` with a manual clock.
    clock_jumps: Option<ClockJumps>,
    /// The newest time that was read, to detect a clock that was set back.
    seen: Timestamp,
    /// Whether there may be ready runs that no query has looked for yet.
    more: bool,
    /// The next time at which something falls due.
    moment: Option<Timestamp>,
    drives: JoinSet<()>,
    driven: HashMap<Id, (ReadyRun, ClaimToken)>,
    alone: Alone,
}

impl Dispatcher {
    fn new(
        engine: &EngineContext,
        cancel: &CancellationToken,
        options: EngineOptions,
        clock_jumps: Option<ClockJumps>,
        started: Timestamp,
    ) -> Self {
        Self {
            engine: engine.clone(),
            cancel: cancel.clone(),
            slots: RunSlots::new(options.max_concurrent_runs),
            step_seconds_max: options.step_seconds_max.max(1),
            clock_jumps,
            seen: started,
            more: true,
            moment: None,
            drives: JoinSet::new(),
            driven: HashMap::new(),
            alone: Alone::default(),
        }
    }

    async fn run(mut self) {
        while !self.engine.draining.is_cancelled() {
            let moment = match self.round().await {
                Ok(()) => self.moment,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the store failed; trying again"
                    );
                    self.more = true;
                    Some(self.engine.clock.now().plus_ms(STORE_PAUSE_MS))
                }
            };
            let engine = self.engine.clone();
            tokio::select! {
                biased;
                () = engine.store.bell().work() => self.more = true,
                () = freed(&engine.models) => self.more = true,
                () = engine.clock.sleep_until_some(moment) => self.more = true,
                () = self.alone.changes(&engine.clock) => self.more = true,
                () = engine.draining.cancelled() => {}
                Some(ended) = self.drives.join_next_with_id() => self.ended(ended),
            }
            // Several drives may have ended meanwhile, and one round serves them all.
            while let Some(ended) = self.drives.try_join_next_with_id() {
                self.ended(ended);
            }
        }
        while let Some(ended) = self.drives.join_next_with_id().await {
            self.ended(ended);
        }
    }

    /// Claims runs for the free slots and acts on what is due. Without a notification since the last round there is no
    /// query, because nothing can have become ready.
    async fn round(&mut self) -> Result<(), StoreError> {
        self.wake_for_models().await?;
        // The same time for what is ready and for the next moment. Between two readings something could fall due that
        // neither query returns.
        let mut now = self.engine.clock.now();
        // The end of a drive may wake this loop before the sleep until that moment ends.
        self.more |= self.moment.is_some_and(|moment| moment <= now);
        self.keep_time(now).await?;
        while self.more {
            if self.is_alone(now).await? {
                self.moment = self.engine.store.next_moment(now).await?;
                break;
            }
            let free = self.slots.free().min(CLAIMS_MAX);
            if free == 0 {
                // Deadlines are acted on even when all slots are taken.
                self.moment = self.engine.store.next_moment(now).await?;
                break;
            }
            now = self.engine.clock.now();
            let tokens = (0..free)
                .map(|_| self.engine.ids.claim_token(now))
                .collect();
            let step_deadline = now.plus_ms(self.step_ms_max());
            let claims = self
                .engine
                .store
                .claim(tokens, Some(self.slots.clone()), step_deadline, now)
                .await?;
            self.more = !claims.all;
            self.moment = claims.moment;
            self.alone.wait_for(claims.suspects, now);
            self.more |= self.alone.blocks_others();
            claims
                .runs
                .into_iter()
                .for_each(|run| self.spawn(run, CancellationToken::new()));
            if claims.held_back {
                // The free slots are reserved for other teams. The runs that wait are claimed when a slot becomes free.
                break;
            }
        }
        if self.moment.is_none_or(|moment| moment > now) {
            return Ok(());
        }
        self.engine.store.lapse_requests(now).await?;
        self.engine
            .store
            .end_overdue(self.step_seconds_max, now)
            .await?;
        self.moment = self.engine.store.next_moment(now).await?;
        Ok(())
    }

    /// Corrects deadlines after the clock was set back, or after time that the process missed.
    async fn keep_time(&mut self, now: Timestamp) -> Result<(), StoreError> {
        if now < self.seen {
            tracing::warn!(
                seconds = self.seen.ms_since(now) / 1000,
                "the clock was set back: timers and deadlines come later by that much; queued runs stay queued"
            );
            self.engine.store.clock_was_set_back(now).await?;
        }
        self.seen = now;
        let Some(missed) = self
            .clock_jumps
            .as_ref()
            .and_then(|clock_jumps| clock_jumps.missed(now))
        else {
            return Ok(());
        };
        tracing::warn!(
            seconds = missed.ms / 1000,
            "the process was stopped, or the clock was set forward; running steps get that time back"
        );
        retry_while_unavailable(&self.engine, || {
            self.engine.store.time_was_missed(missed.since, missed.ms)
        })
        .await
    }

    /// Queues the runs for which their provider has a free permit.
    async fn wake_for_models(&self) -> Result<(), StoreError> {
        let Some(network) = self.engine.models.network() else {
            return Ok(());
        };
        let now = self.engine.clock.now();
        for run in network.turns(now) {
            match self.engine.store.wake_for_model(run, now).await? {
                WakeOutcome::Queued => network.was_woken(run, true, now),
                WakeOutcome::NotWaiting => network.was_woken(run, false, now),
                // Its driver has not committed the wait yet; that commit notifies.
                WakeOutcome::AlreadyClaimed => {}
            }
        }
        Ok(())
    }

    fn step_ms_max(&self) -> u64 {
        u64::from(self.step_seconds_max) * 1000
    }

    /// Whether a run that is suspected of crashing the server is driven alone, or waits for that; then no other run is
    /// claimed.
    async fn is_alone(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        loop {
            if !self.alone.take_turn(self.drives.is_empty(), now) {
                return Ok(self.alone.blocks_others());
            }
            let Some(ready) = self.alone.next() else {
                return Ok(false);
            };
            let token = self.engine.ids.claim_token(now);
            let deadline = now.plus_ms(self.step_ms_max());
            let store = &self.engine.store;
            let claimed = store.claim_alone(ready, token, deadline, now).await?;
            if let Some(claimed) = claimed {
                tracing::warn!(run.id = %claimed.ready.run, "the server ended at least twice in a row while driving this run; it is driven alone, and others wait");
                let committed = self.alone.begin(now);
                self.spawn(claimed, committed);
                return Ok(true);
            }
        }
    }

    fn spawn(&mut self, claimed: Claimed, first_commit: CancellationToken) {
        let (ready, claim) = (claimed.ready, claimed.claim);
        let (engine, cancel) = (self.engine.clone(), self.cancel.child_token());
        let step_ms_max = self.step_ms_max();
        let span = tracing::debug_span!("run.drive", run.id = %ready.run, team.id = %ready.team);
        let drive = async move {
            let ended = drive(&engine, claimed, step_ms_max, (&cancel, &first_commit)).await;
            first_commit.cancel();
            engine
                .connections
                .end_drive(ready.run, claim, ended.is_err());
            finish_drive(&engine, ready, claim, ended).await;
        };
        let handle = self.drives.spawn(drive.instrument(span));
        self.slots.take(&ready.team, &ready.principal);
        self.driven.insert(handle.id(), (ready, claim));
    }

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let error = match ended {
            Ok((id, ())) => {
                if let Some((ready, _)) = self.driven.remove(&id) {
                    self.slots.release(&ready.team, &ready.principal);
                }
                return;
            }
            Err(error) => error,
        };
        let Some((ready, claim)) = self.driven.remove(&error.id()) else {
            return;
        };
        tracing::error!(run.id = %ready.run, %error, "a driver failed");
        let engine = self.engine.clone();
        // The run keeps its slot until it has failed.
        let handle = self.drives.spawn(async move {
            finish_drive(&engine, ready, claim, Err(DriveError::Panicked)).await
        });
        self.driven.insert(handle.id(), (ready, claim));
    }
}

/// Waits until a provider has a free permit for a run that waits.
async fn freed(models: &Models) {
    match models.network() {
        Some(network) => network.freed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
