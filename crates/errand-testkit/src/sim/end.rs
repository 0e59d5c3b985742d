//! The end of a simulation: faults stop, everything comes to rest, every run ends, and all invariants are checked.

use std::collections::BTreeMap;

use errand_core::event::EventKind;
use errand_core::id::RunId;
use errand_core::run::Status;
use errand_core::webhook::DeliveryState;
use errand_store::StoreError;
use errand_store::model::PageQuery;
use serde_json::json;

use super::Sabotage;
use super::actions::{SECOND, Simulation};
use super::family::{families, is_at_limit_of_caller};
use super::forks::copies;
use super::invariants::{Invariant, Record, at_rest, at_the_end, of_run, starts, stored};
use super::world::State;

/// Scheduler turns without activity after which the world is at rest.
const QUIET_TURNS: u32 = 40;
/// Maximum scheduler turns until it must be at rest.
const TURNS_MAX: u32 = 50_000;
/// Maximum seconds of the clock until the store must not be busy any more.
const BUSY_SECONDS_MAX: u32 = 40;
/// Maximum rounds of answers and timers until every run must have ended.
const ROUNDS_MAX: u32 = 400;

impl Simulation {
    /// Stops all faults, drives everything to its end, and checks all invariants.
    pub(crate) async fn end(&mut self) {
        if !self.can_continue() {
            return;
        }
        self.world.note("all faults stop");
        self.world.heal();
        self.start_again_where_poisoned().await;
        // The clock may have been set back: wake everything that sleeps until a time that was shown before.
        let latest = self.world.state().latest;
        self.world.set_clock(latest.plus_ms(1000));
        while !self.paused.is_empty() && self.can_continue() {
            self.late_driver().await;
        }
        for round in 0.. {
            if !self.can_continue() {
                return;
            }
            for number in self.unheard() {
                self.tasks.add(self.program().wire.send(number));
            }
            if !self.comes_to_rest().await {
                return;
            }
            self.check_rest().await;
            let waiting = self.runs_of(vec![Status::Waiting]).await;
            for run in &waiting {
                self.answer_run(*run, 1).await;
            }
            if waiting.is_empty() && self.unheard().is_empty() && !self.to_the_next_moment().await {
                break;
            }
            if round == ROUNDS_MAX {
                let open = self.open_runs().await;
                let detail = format!("after {ROUNDS_MAX} rounds: {open:?}");
                self.world.broken(Invariant::NeverStuck, detail);
                return;
            }
        }
        self.check_all().await;
    }

    /// Waits until nothing happens and the store is not busy; reports a violation and returns false if that fails.
    async fn comes_to_rest(&mut self) -> bool {
        for _ in 0..BUSY_SECONDS_MAX {
            if !self.quiet().await {
                return false;
            }
            let busy = match self.program().store.busy(self.world.now()).await {
                Ok(None) => return true,
                Ok(Some(busy)) => busy,
                Err(error) => error.to_string(),
            };
            self.world.note(&format!("still busy: {busy}"));
            // For work that waits for the clock: a write that found the disk full, a pause of the store.
            self.world.set_clock(
                self.world
                    .now()
                    .plus_ms(u64::try_from(SECOND.as_millis()).unwrap_or(1000)),
            );
        }
        let busy = self.program().store.busy(self.world.now()).await;
        let open = self.open_runs().await;
        let detail =
            format!("nothing happens any more, but the store is busy ({busy:?}): {open:?}");
        self.world.broken(Invariant::NeverStuck, detail);
        false
    }

    /// Waits until nothing happens for some scheduler turns.
    async fn quiet(&mut self) -> bool {
        let (mut last, mut quiet) = (0, 0);
        for _ in 0..TURNS_MAX {
            tokio::task::yield_now().await;
            let activity = self.world.state().activity;
            quiet = if activity == last { quiet + 1 } else { 0 };
            last = activity;
            if quiet == QUIET_TURNS {
                return true;
            }
        }
        let detail = format!("the program is still active after {TURNS_MAX} turns");
        self.world.broken(Invariant::NeverStuck, detail);
        false
    }

    /// The runs that have not ended, as the API returns them.
    async fn open_runs(&self) -> Vec<String> {
        let ended = [Status::Completed, Status::Failed, Status::Interrupted];
        let open = Status::ALL.into_iter().filter(|s| !ended.contains(s));
        let mut all = Vec::new();
        for run in self.runs_of(open.collect()).await {
            if let Ok(record) = self.read(run).await {
                all.push(json!(record.view.run).to_string());
            }
        }
        all
    }

    /// Reads everything that is visible of a run.
    pub(crate) async fn read(&self, id: RunId) -> Result<Record, StoreError> {
        let team = {
            let state = self.world.state();
            state.teams[state.agents[state.runs[&id].agent].team].id
        };
        let store = &self.program().store;
        let page = PageQuery {
            limit: u32::MAX,
            offset: 0,
        };
        let mut events = store.events_after(team, id, 0, u32::MAX).await?.events;
        if self.world.sabotages(Sabotage::LosesEvents) && !events.is_empty() {
            events.remove(0);
        }
        if self.world.sabotages(Sabotage::ReportsOtherStatus)
            && let Some(event) = events
                .iter_mut()
                .find(|event| event.kind == EventKind::RunUpdated)
        {
            event.data["status"] = json!("running");
        }
        Ok(Record {
            id,
            view: store.run(team, id).await?,
            messages: store.messages(team, id, page).await?.items,
            events,
            deliveries: store.deliveries_of(team, id).await?,
        })
    }

    /// Checks the invariants that hold for a run at any time.
    pub(crate) async fn check_run(&self, run: RunId) {
        let verdict = match self.read(run).await {
            Ok(record) => of_run(&self.world.state(), &record),
            Err(error) => Err((Invariant::Answers, format!("{run}: {error}"))),
        };
        self.judge(verdict);
    }

    fn judge(&self, verdict: Result<(), (Invariant, String)>) {
        if let Err((invariant, detail)) = verdict {
            self.world.broken(invariant, detail);
        }
    }

    async fn check_rest(&self) {
        let now = self.world.now();
        let all = [Status::Waiting, Status::Running, Status::Starting];
        for run in self.runs_of(all.to_vec()).await {
            if let Ok(record) = self.read(run).await {
                self.judge(at_rest(now, &record));
            }
        }
    }

    /// Checks all invariants when everything has ended.
    async fn check_all(&self) {
        let now = self.world.now();
        let verdict = stored(&self.world, &self.program().store).await;
        self.judge(verdict);
        let there = self.runs_of(Vec::new()).await;
        let verdict = starts(&self.world.state(), &there);
        self.judge(verdict);
        if !self.can_continue() {
            return;
        }
        let mut records = BTreeMap::new();
        for run in there {
            let record = match self.read(run).await {
                Ok(record) => record,
                Err(error) => {
                    let detail = format!("{run}: {error}");
                    self.world.broken(Invariant::Answers, detail);
                    continue;
                }
            };
            let verdict = {
                let state = self.world.state();
                of_run(&state, &record).and_then(|()| at_the_end(&state, now, &record))
            };
            self.judge(verdict);
            count_situations(&mut self.world.state(), &record);
            // The trace, and with it the digest, covers everything.
            let (view, messages) = (json!(record.view.run), json!(record.messages));
            let events: Vec<_> = record
                .events
                .iter()
                .map(|e| (e.kind.as_str(), &e.data))
                .collect();
            self.world
                .note(&json!([view, messages, events]).to_string());
            records.insert(run, record);
        }
        let verdict = {
            let state = self.world.state();
            families(&state, &records).and_then(|()| copies(&state, &records))
        };
        self.judge(verdict);
    }
}

/// Counts the situations that a run has been in.
fn count_situations(state: &mut State, record: &Record) {
    state.saw(match record.view.run.status {
        Status::Completed => "run completed",
        Status::Failed => "run failed",
        _ => "run interrupted",
    });
    if let Some(error) = &record.view.run.error
        && error.code == "limit_exceeded"
    {
        state.saw("run at its limit");
    }
    for event in record
        .events
        .iter()
        .filter(|e| e.kind == EventKind::RunUpdated)
    {
        if event.data["waiting_on"]["kind"] == "sandbox" {
            state.saw("waited for a sandbox");
        }
        if event.data["waiting_on"]["kind"] == "child_run" {
            state.saw("waited for a child run");
        }
    }
    if state.fork_of(record.id).is_some() {
        state.saw("fork");
    }
    if is_at_limit_of_caller(record) {
        state.saw("child run at its caller's limit");
    }
    for message in &record.messages {
        if let Some(request) = &message.human_request
            && request.title.starts_with("Was ")
        {
            state.saw("asked about a call in doubt");
        }
        if let Some(response) = &message.human_response {
            state.saw(match response.response.as_deref() {
                None => "request closed by a stop",
                Some("approved") => "approved",
                Some("denied") => "denied",
                Some("expired") => "request lapsed",
                Some(text) if text.starts_with('{') => "question answered",
                Some(_) => "request closed by a message",
            });
        }
        let error = message.tool_result.as_ref().and_then(|r| r.error.as_ref());
        match error.and_then(|error| error.split_once(':')) {
            Some(("child_failed", _)) => state.saw("child run failed"),
            Some(("child_stopped", _)) => state.saw("child run stopped"),
            Some(("not_run", _)) => state.saw("call not run"),
            Some(("outcome_unknown", _)) => state.saw("call with an unknown outcome"),
            Some(("denied", _)) => state.saw("call denied"),
            _ => {}
        }
    }
    for delivery in &record.deliveries {
        match delivery.state {
            DeliveryState::Gone => state.saw("webhook gone"),
            _ if delivery.attempts.len() > 1 => state.saw("webhook tried again"),
            _ => {}
        }
    }
}
