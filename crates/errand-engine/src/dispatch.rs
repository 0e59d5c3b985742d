//! Gives runs to drivers: at most so many at once, shared fairly between teams and, within a team, between the API keys
//! and people that started the runs ([`errand_core::fair`]), each one's in order; and keeps time.
//!
//! The bell only says that there may be work; what there is, is read from the store. A bell that is lost costs nothing
//! but time until the next one, and none is lost: it is rung after each commit that makes work.

mod alone;

use std::collections::HashMap;
use std::time::Duration;

use errand_core::id::ClaimToken;
use errand_core::time::Timestamp;
use errand_store::model::{Claimed, ReadyRun, RunSlots};
use errand_store::{Recovered, Store, StoreError, Woken};
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

/// Most runs that are claimed in one transaction: each is answered when all are on disk.
const CLAIMS_MAX: usize = 32;
/// The pause after a failure of the store, so that a broken disk is not asked without end.
const STORE_PAUSE_MS: u64 = 250;

/// How the engine works.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Runs that work at once. Range 1..=10,000. Of four or more, an eighth is kept for others than the one that has most.
    pub max_concurrent_runs: usize,
    /// How long one step of a run may take, in seconds. Range 1..=86,400.
    pub step_seconds_max: u32,
    /// Deliveries under way at once. Range 1..=1,000.
    pub max_concurrent_deliveries: usize,
    /// Whether what is left on disk is cleaned up. A simulation has no disk.
    pub cleans_up: bool,
}

/// The running engine.
pub struct Engine {
    context: EngineContext,
    cancel: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Sets right what the last start left, then starts to work.
    ///
    /// # Errors
    /// Of the store.
    pub async fn start(
        context: EngineContext,
        options: EngineOptions,
    ) -> Result<(Self, Recovered), StoreError> {
        let started = context.clock.now();
        let (recovered, clock_jumps) = if context.clock.is_the_systems() {
            // A disk that is full now may have room later; until then nothing is lost, and the server says that it is not
            // ready.
            let recovered =
                retry_while_unavailable(&context, || context.store.recover(started)).await?;
            (recovered, Some(ClockJumps::new(started)))
        } else {
            // Such a clock stands: whoever moves it starts again.
            (context.store.recover(started).await?, None)
        };
        for run in &recovered.parked {
            tracing::error!(run.id = %run, "the run is parked as failed (poisoned): the server ended while it worked on it, four times in a row; `errand runs retry --force RUN` lets it go on");
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

    /// No new work. Steps in progress get `grace`; what is not done by then is cut off, and goes on after the next start.
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
        // Runs that are cut off now have not ended the program.
        if let Err(error) = self.context.store.forgive_losses().await {
            tracing::warn!(%error, "the runs that are cut off may count as having ended the server");
        }
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
        connections.shut_down().await;
    }
}

impl Engine {
    /// Ends at once, as a crash would: nothing is finished. For tests of recovery.
    pub fn abort(self) {
        self.context.connections.abort();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Dispatcher {
    engine: EngineContext,
    cancel: CancellationToken,
    /// Who holds how many of the slots.
    slots: RunSlots,
    step_seconds_max: u32,
    /// None where the clock is not the system's.
    clock_jumps: Option<ClockJumps>,
    /// What the clock said last: it is set back now and then.
    seen: Timestamp,
    /// Whether runs may want a driver that were not asked for yet.
    more: bool,
    /// The next moment at which something happens by the clock.
    moment: Option<Timestamp>,
    drives: JoinSet<()>,
    driven: HashMap<Id, (ReadyRun, ClaimToken)>,
    /// Runs that are driven alone.
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
            // Several may have ended meanwhile: one round for all of them.
            while let Some(ended) = self.drives.try_join_next_with_id() {
                self.ended(ended);
            }
        }
        while let Some(ended) = self.drives.join_next_with_id().await {
            self.ended(ended);
        }
    }

    /// Fills the free places and does what is due by the clock. Where nothing rang since the last round, nothing is
    /// asked: the places that have become free meanwhile are wanted by nobody.
    async fn round(&mut self) -> Result<(), StoreError> {
        self.wake_for_models().await?;
        // One reading of the clock for what is ready and for the next moment: between two, something could fall due unseen.
        let mut now = self.engine.clock.now();
        // The end of a drive may be heard of before the sleep until that moment ends.
        self.more |= self.moment.is_some_and(|moment| moment <= now);
        self.keep_time(now).await?;
        while self.more {
            if self.is_alone(now).await? {
                self.moment = self.engine.store.next_moment(now).await?;
                break;
            }
            let free = self.slots.free().min(CLAIMS_MAX);
            if free == 0 {
                // Time is kept all the same.
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
            self.more |= self.alone.keeps_others();
            claims
                .runs
                .into_iter()
                .for_each(|run| self.spawn(run, CancellationToken::new()));
            if claims.held_back {
                // What is free is kept for others: those that wait are asked about again when a slot comes free.
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

    /// What follows from a clock that went back, or time that was missed.
    async fn keep_time(&mut self, now: Timestamp) -> Result<(), StoreError> {
        if now < self.seen {
            tracing::warn!(
                seconds = self.seen.ms_since(now) / 1000,
                "the clock was set back: timers and other deadlines come later by as much; what was in line stays in line"
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
            "the program was stopped, or the clock set forward; the runs at work get that time"
        );
        retry_while_unavailable(&self.engine, || {
            self.engine.store.time_was_missed(missed.since, missed.ms)
        })
        .await
    }

    /// Puts the runs in line whose turn has come at their provider.
    async fn wake_for_models(&self) -> Result<(), StoreError> {
        let Some(network) = self.engine.models.network() else {
            return Ok(());
        };
        let now = self.engine.clock.now();
        for run in network.turns(now) {
            match self.engine.store.wake_for_model(run, now).await? {
                Woken::Yes => network.was_woken(run, true, now),
                Woken::Gone => network.was_woken(run, false, now),
                // It is just about to wait; its commit rings.
                Woken::Driven => {}
            }
        }
        Ok(())
    }

    fn step_ms_max(&self) -> u64 {
        u64::from(self.step_seconds_max) * 1000
    }

    /// Whether no other run is claimed now: one that may be what ends the program is driven alone, or waits for that.
    async fn is_alone(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        loop {
            if !self.alone.take_turn(self.drives.is_empty(), now) {
                return Ok(self.alone.keeps_others());
            }
            let Some(ready) = self.alone.next() else {
                return Ok(false);
            };
            let token = self.engine.ids.claim_token(now);
            let deadline = now.plus_ms(self.step_ms_max());
            let store = &self.engine.store;
            let claimed = store.claim_alone(ready, token, deadline, now).await?;
            if let Some(claimed) = claimed {
                tracing::warn!(run.id = %claimed.ready.run, "the server ended while it worked on this run, twice or more in a row: it is driven alone, and others wait");
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
        // It keeps its place until the run has failed.
        let handle = self.drives.spawn(async move {
            finish_drive(&engine, ready, claim, Err(DriveError::Panicked)).await
        });
        self.driven.insert(handle.id(), (ready, claim));
    }
}

/// Until a provider has room again that a run waits for.
async fn freed(models: &Models) {
    match models.network() {
        Some(network) => network.freed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
