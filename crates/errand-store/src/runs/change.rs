//! One change of a run within a transaction: load the row, decide with `errand-core`, append, write once.
//!
//! # Guarantees
//!
//! Every change of a run's status goes through [`Change::apply`], and so through [`errand_core::run::apply`], except that
//! of a run whose row cannot be read (`quarantine`). Everything that follows from the change for the run itself (the row,
//! entries, events, deliveries, a wake-up) is written by the change in the same transaction. A change neither reads nor writes other runs: what follows for them is
//! recorded as [`FollowUp`]s, which [`settle`](super::settle::settle) executes.

use errand_core::author::By;
use errand_core::event::EventKind;
use errand_core::human::{HumanRequest, Resolution};
use errand_core::id::{
    ClaimToken, DeliveryId, EventId, MessageId, RunId, SandboxId, TeamId, WebhookId,
};
use errand_core::ledger::Ledger;
use errand_core::run::{self, Event, RunError, Status, WaitReason};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry};
use errand_core::webhook::WebhookEvent;
use errand_core::wire::{AnsweredRequestBody, PendingRequestBody, RunBody, WebhookBody};
use rusqlite::{OptionalExtension as _, params};

use crate::db::sqlite::Tx;
use crate::db::types::{Blob, Ms, int, json, to_json};
use crate::error::{Result, StoreError};
use crate::runs::follow_ups::FollowUp;
use crate::runs::queries::{author, entries_from, event_body};
use crate::runs::row::{AsStored, COLUMNS, RunRow, read_row};

/// A run that is being changed.
pub(crate) struct Change<'t> {
    pub(crate) tx: &'t Tx<'t>,
    pub(crate) row: RunRow,
    pub(crate) now: Timestamp,
    before: Status,
    /// The row as it is stored: the guard of the UPDATE, and what decides which columns it writes.
    stored: AsStored,
    /// The driver that makes this change, if one does.
    driver: Option<ClaimToken>,
    /// Whether the change took the run from a driver that may still be working in its sandbox.
    is_draining: bool,
    updated: bool,
    appended: Vec<Entry>,
    webhooks: Vec<(WebhookEvent, Option<(HumanRequest, u64)>)>,
    follow_ups: Vec<FollowUp>,
}

/// The pending request, and how an event closes it.
pub(crate) struct Closing<'a> {
    pub(crate) request: &'a HumanRequest,
    pub(crate) resolution: &'a Resolution,
    /// `None`: nobody; it expired, or the system stopped the run.
    pub(crate) by: Option<&'a By>,
}

/// The result of a finished change.
#[must_use = "the follow-ups must be executed in the same transaction"]
pub(crate) struct Finished {
    /// The appended entries.
    pub(crate) entries: Vec<Entry>,
    pub(crate) follow_ups: Vec<FollowUp>,
}

impl<'t> Change<'t> {
    /// Loads a run of a team.
    pub(crate) fn of_team(
        tx: &'t Tx<'t>,
        team: TeamId,
        run: RunId,
        now: Timestamp,
    ) -> Result<Self> {
        let change = Self::of_run(tx, run, now)?;
        if change.row.team == team {
            Ok(change)
        } else {
            Err(StoreError::NotFound)
        }
    }

    /// Loads a run of any team, for the engine.
    pub(crate) fn of_run(tx: &'t Tx<'t>, run: RunId, now: Timestamp) -> Result<Self> {
        let row = tx
            .prepare_cached(&format!("SELECT {COLUMNS} FROM runs WHERE id = ?1"))?
            .query_row(params![Blob(run.as_uuid())], read_row)
            .optional()?
            .ok_or(StoreError::NotFound)??;
        Ok(Self::new(tx, row, now))
    }

    /// Begins a change of a row that was just inserted.
    pub(crate) fn new(tx: &'t Tx<'t>, row: RunRow, now: Timestamp) -> Self {
        Self {
            tx,
            before: row.status,
            stored: row.as_stored(),
            row,
            now,
            driver: None,
            is_draining: false,
            updated: false,
            appended: Vec::new(),
            webhooks: Vec::new(),
            follow_ups: Vec::new(),
        }
    }

    /// Checks that the driver that makes this change still holds the claim of this run.
    pub(crate) fn held_by(mut self, claim: ClaimToken) -> Result<Self> {
        if self.row.claim == Some(claim) {
            self.driver = Some(claim);
            Ok(self)
        } else {
            Err(StoreError::Fenced)
        }
    }

    /// Applies an event that closes no request: changes the status, and carries out the effects of the transition.
    pub(crate) fn apply(&mut self, event: Event) -> Result<()> {
        self.apply_closing(event, None).map(drop)
    }

    /// Applies an event: changes the status, and carries out the effects of the transition. `closing` is the pending
    /// request, if there is one, and how the event closes it. Returns the request if the event has closed it.
    pub(crate) fn apply_closing(
        &mut self,
        event: Event,
        closing: Option<Closing<'_>>,
    ) -> Result<Option<AnsweredRequestBody>> {
        let transition = run::apply(self.row.status, event)
            .map_err(|refused| StoreError::Refused(refused.to_string()))?;
        let had_ended = self.row.status.has_ended();
        if transition.to != self.row.status {
            self.row.status = transition.to;
            self.updated = true;
        }
        if had_ended && !self.row.status.has_ended() {
            self.row.completed_at = None;
            self.row.error = None;
        }
        if event == Event::Retry {
            self.row.active_ms = 0;
        }
        let closed = match closing.filter(|_| transition.closes_request) {
            Some(closing) => Some(self.close(&closing)?),
            // No effect of a transition is ever left out.
            None if transition.closes_request && self.row.request.is_some() => {
                return Err(StoreError::Refused(format!(
                    "the event {event:?} closes the run's request, but how was not given"
                )));
            }
            None => None,
        };
        if transition.fences {
            self.revoke_claim(event)?;
        }
        if transition.wakes {
            self.queue()?;
        }
        Ok(closed)
    }

    /// Takes the run from its driver. Unless the driver itself makes this change, or is gone, it is notified, and keeps
    /// the sandbox until it has left it.
    fn revoke_claim(&mut self, event: Event) -> Result<()> {
        let claim = self.row.claim;
        if event == Event::DriverLost {
            // A lost driver has certainly worked only until its last commit.
            if let Some(at) = self.row.claimed_at.take() {
                self.row.active_ms += self.row.updated_at.ms_since(at);
            }
        } else if let Some(claim) = claim
            && self.driver != Some(claim)
        {
            self.keep_sandbox_for(claim)?;
            self.tx.ring_fence(self.row.id);
        }
        self.release();
        Ok(())
    }

    /// Records what the run waits for. `waiting_since` changes only if that is something new.
    pub(crate) fn waits_on(
        &mut self,
        kind: WaitReason,
        who: Option<String>,
        deadline: Option<Timestamp>,
    ) {
        if self.row.waiting_kind != Some(kind) || self.row.waiting_who != who {
            self.row.waiting_since = Some(self.now);
        }
        self.row.waiting_kind = Some(kind);
        self.row.waiting_who = who;
        self.row.waiting_deadline = deadline;
    }

    /// Appends an entry to the transcript. If it is a message, also writes the event `message.created`.
    pub(crate) fn append(&mut self, id: Option<MessageId>, body: Body) -> Result<Entry> {
        self.append_at(id, body, self.now)
    }

    /// Appends an entry with the time that it has in another run's transcript.
    pub(crate) fn append_at(
        &mut self,
        id: Option<MessageId>,
        body: Body,
        at: Timestamp,
    ) -> Result<Entry> {
        let position = self.row.position + 1;
        let id = id.unwrap_or_else(|| MessageId::derived(self.row.id, position, at));
        let entry = Entry {
            position,
            id,
            at,
            body,
        };
        let shown = entry.body.is_shown().then(|| self.row.shown + 1);
        self.tx
            .prepare_cached("INSERT INTO messages (run_id, position, shown, id, created_at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                Blob(self.row.id.as_uuid()),
                int(position),
                shown.map(int),
                Blob(id.as_uuid()),
                Ms(at),
                to_json("messages", "body", &entry.body)?
            ])?;
        self.row.position = position;
        if matches!(entry.body, Body::User { .. }) {
            self.row.newest_user = position;
        }
        if let Some(shown) = shown {
            self.row.shown = shown;
            self.event(EventKind::MessageCreated, Some(position), None)?;
        }
        self.appended.push(entry.clone());
        Ok(entry)
    }

    /// Opens a human request: its row, event and webhook. The caller appends the transcript entry.
    pub(crate) fn ask(&mut self, request: &HumanRequest) -> Result<()> {
        self.tx
            .prepare_cached("INSERT INTO human_requests (id, run_id, team_id, request, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                Blob(request.id.as_uuid()),
                Blob(self.row.id.as_uuid()),
                Blob(self.row.team.as_uuid()),
                to_json("human_requests", "request", request)?,
                Ms(request.created_at),
                request.expires_at.map(Ms)
            ])?;
        let pending = PendingRequestBody::from(request);
        let sequence = self.event(
            EventKind::HumanRequestCreated,
            None,
            Some(to_json("events", "data", &pending)?),
        )?;
        self.row.request = Some(request.id);
        self.waits_on(
            WaitReason::Human,
            Some(request.title.clone()),
            request.expires_at,
        );
        self.webhooks.push((
            WebhookEvent::HumanRequest,
            Some((request.clone(), sequence)),
        ));
        if request.expires_at.is_some() {
            self.tx.ring_work();
        }
        self.follow_ups
            .push(FollowUp::NotifyCallers { child: self.row.id });
        Ok(())
    }

    /// The pending human request, if there is one.
    pub(crate) fn pending(&self) -> Result<Option<HumanRequest>> {
        let Some(id) = self.row.request else {
            return Ok(None);
        };
        let text: String = self
            .tx
            .prepare_cached("SELECT request FROM human_requests WHERE id = ?1")?
            .query_row(params![Blob(id.as_uuid())], |row| row.get(0))?;
        json("human_requests", "request", &text).map(Some)
    }

    /// Closes the pending request, and appends the response and the results of the calls that it settles. The UPDATE
    /// is a compare-and-set on `closed_at IS NULL`, so that only one response wins.
    pub(crate) fn close(&mut self, closing: &Closing<'_>) -> Result<AnsweredRequestBody> {
        let Closing {
            request,
            resolution,
            by,
        } = *closing;
        let closed = self
            .tx
            .prepare_cached("UPDATE human_requests SET closed_at = ?2, resolution = ?3, responded_by = ?4, responded_key = ?5 WHERE id = ?1 AND closed_at IS NULL")?
            .execute(params![
                Blob(request.id.as_uuid()),
                Ms(self.now),
                to_json("human_requests", "resolution", resolution)?,
                by.map(|by| Blob(by.user.as_uuid())),
                by.and_then(By::key_id).map(|key| Blob(key.as_uuid()))
            ])?;
        if closed != 1 {
            return Err(StoreError::Refused(
                "the request is answered already".to_owned(),
            ));
        }
        let results = self.ledger()?.results_of(request, resolution);
        self.append(
            None,
            Body::HumanResponse {
                request_id: request.id,
                resolution: resolution.clone(),
                by: by.cloned(),
            },
        )?;
        for body in results {
            self.append(None, body)?;
        }
        self.row.request = None;
        let answered = answered_body(self.row.id, request, resolution, by, self.now);
        self.event(
            EventKind::HumanRequestClosed,
            None,
            Some(to_json("events", "data", &answered)?),
        )?;
        Ok(answered)
    }

    /// Appends a result to each open call. For changes that close no pending request.
    pub(crate) fn close_open_calls(&mut self, why: &str) -> Result<()> {
        for body in self.ledger()?.close_open(why) {
            self.append(None, body)?;
        }
        Ok(())
    }

    /// The ledger since the model's last turn, which knows the open calls.
    ///
    /// If the transcript cannot be read, the ledger is empty: no call is closed, but the run can still end.
    fn ledger(&self) -> Result<Ledger> {
        match entries_from(self.tx, self.row.id, self.row.turn) {
            Ok(entries) => Ok(Ledger::of(&entries)),
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::error!(run.id = %self.row.id, %error, "a transcript cannot be read; its open calls stay open");
                Ok(Ledger::default())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives up the claim, and adds the time since the claim to the active time.
    pub(crate) fn release(&mut self) {
        if let Some(at) = self.row.claimed_at.take() {
            self.row.active_ms += self.now.ms_since(at);
        }
        self.row.claim = None;
        self.row.claim_boot = None;
        self.row.deadline = None;
    }

    /// Queues the run for a driver, or for its sandbox if another run uses that.
    pub(crate) fn queue(&mut self) -> Result<()> {
        if let Some(sandbox) = self.row.sandbox.clone()
            && !self.take_sandbox(&sandbox)?
        {
            self.row.wake_at = None;
            self.waits_on(WaitReason::Sandbox, Some(sandbox.to_string()), None);
            return Ok(());
        }
        self.row.wake_at = Some(self.now);
        self.waits_on(WaitReason::Slot, None, None);
        self.tx.ring_work();
        Ok(())
    }

    /// Writes everything that belongs to the end of a run. If a driver may still be working in the sandbox, the sandbox
    /// is released when that driver has left it.
    pub(crate) fn end(&mut self, error: Option<RunError>) -> Result<()> {
        self.release();
        self.row.wake_at = None;
        self.row.completed_at = Some(self.now);
        self.row.waiting_kind = None;
        self.row.waiting_who = None;
        self.row.waiting_since = None;
        self.row.waiting_deadline = None;
        self.row.error = error;
        if !self.is_draining {
            self.release_sandbox()?;
        }
        self.follow_ups.push(FollowUp::StopChildren {
            parent: self.row.id,
            team: self.row.team,
        });
        self.follow_ups
            .push(FollowUp::WakeCaller { child: self.row.id });
        let event = match self.row.status {
            Status::Completed => WebhookEvent::RunCompleted,
            Status::Failed => WebhookEvent::RunFailed,
            Status::Interrupted => WebhookEvent::RunInterrupted,
            Status::Pending | Status::Starting | Status::Running | Status::Waiting => return Ok(()),
        };
        self.webhooks.push((event, None));
        self.count_today()
    }

    /// Stops the run. `by` is `None` if the system stops it, for example because its parent has ended. Returns `false`
    /// if the run had already ended.
    pub(crate) fn stop(&mut self, by: Option<&By>) -> Result<bool> {
        if self.row.status.has_ended() {
            return Ok(false);
        }
        let pending = self.pending()?;
        let closing = pending.as_ref().map(|request| Closing {
            request,
            resolution: &Resolution::Stopped,
            by,
        });
        if self.apply_closing(Event::Stop, closing)?.is_none() {
            self.close_open_calls("the run was stopped")?;
        }
        self.append(None, Body::Interrupted { by: by.cloned() })?;
        self.end(None)?;
        Ok(true)
    }

    /// Fails the run: closes the open calls with the reason `why`, appends the error, and ends the run.
    pub(crate) fn fail(&mut self, why: &str, error: RunError) -> Result<()> {
        self.close_open_calls(why)?;
        self.append(
            None,
            Body::Error {
                error: error.clone(),
                mark: None,
            },
        )?;
        self.apply(Event::Failed)?;
        self.end(Some(error))
    }

    /// Counts the run in the agent's daily statistics, as started or ended.
    pub(crate) fn count_today(&self) -> Result<()> {
        let is = |status: Status| i64::from(self.row.status == status);
        self.tx
            .prepare_cached(
                "INSERT INTO run_days (team_id, day, agent_id, started, completed, failed, interrupted) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT DO UPDATE SET started = started + ?4, completed = completed + ?5, failed = failed + ?6,
                     interrupted = interrupted + ?7",
            )?
            .execute(params![
                Blob(self.row.team.as_uuid()),
                self.now.day().number(),
                Blob(self.row.agent.as_uuid()),
                is(Status::Pending),
                is(Status::Completed),
                is(Status::Failed),
                is(Status::Interrupted)
            ])?;
        Ok(())
    }

    /// Releases the sandbox. The run that has waited for it longest gets it.
    pub(crate) fn release_sandbox(&mut self) -> Result<()> {
        let Some(sandbox) = self.row.sandbox.clone() else {
            return Ok(());
        };
        let freed = self
            .tx
            .prepare_cached("UPDATE sandboxes SET owner_run = NULL, expires_at = max(expires_at, ?3) WHERE id = ?1 AND owner_run = ?2 AND leaving IS NULL")?
            .execute(params![sandbox.as_str(), Blob(self.row.id.as_uuid()), Ms(self.now.plus_ms(self.row.sandbox_ttl_ms))])?;
        if freed > 0 {
            self.follow_ups.push(FollowUp::HandOverSandbox {
                sandbox: sandbox.to_string(),
                released_by: self.row.id,
            });
        }
        Ok(())
    }

    /// Takes the run's sandbox. Returns `false` if another run uses it. An expired sandbox is not taken, but the
    /// result is `true`: the run continues and finds out that its sandbox is not usable.
    fn take_sandbox(&self, sandbox: &SandboxId) -> Result<bool> {
        let run = Blob(self.row.id.as_uuid());
        self.tx
            .prepare_cached("UPDATE sandboxes SET owner_run = ?2 WHERE id = ?1 AND owner_run IS NULL AND deleted_at IS NULL AND expires_at > ?3")?
            .execute(params![sandbox.as_str(), run, Ms(self.now)])?;
        let found = self
            .tx
            .prepare_cached("SELECT owner_run, leaving IS NOT NULL FROM sandboxes WHERE id = ?1")?
            .query_row(params![sandbox.as_str()], |row| {
                Ok((row.get::<_, Option<Blob>>(0)?, row.get::<_, bool>(1)?))
            })
            .optional()?;
        Ok(match found {
            // A driver of the same run may still be working there. Its successor must wait for it too.
            Some((Some(owner), leaving)) => owner == run && !leaving,
            Some((None, _)) | None => true,
        })
    }

    /// Records that a driver that was told to stop may still be working in the sandbox.
    pub(crate) fn keep_sandbox_for(&mut self, claim: ClaimToken) -> Result<()> {
        self.is_draining = true;
        let Some(sandbox) = &self.row.sandbox else {
            return Ok(());
        };
        self.tx
            .prepare_cached("UPDATE sandboxes SET leaving = ?3 WHERE id = ?1 AND owner_run = ?2")?
            .execute(params![
                sandbox.as_str(),
                Blob(self.row.id.as_uuid()),
                Blob(claim.as_uuid())
            ])?;
        Ok(())
    }

    /// Records that a driver has left, and releases its sandbox. Returns `false` if this driver was not the one
    /// that still held it.
    pub(crate) fn released_by(&mut self, claim: ClaimToken) -> Result<bool> {
        let Some(sandbox) = self.row.sandbox.clone() else {
            return Ok(false);
        };
        let left = self
            .tx
            .prepare_cached("UPDATE sandboxes SET leaving = NULL WHERE id = ?1 AND owner_run = ?2 AND leaving = ?3")?
            .execute(params![sandbox.as_str(), Blob(self.row.id.as_uuid()), Blob(claim.as_uuid())])?;
        if left == 0 {
            return Ok(false);
        }
        if self.row.status.has_ended() {
            self.release_sandbox()?;
            return Ok(true);
        }
        if self.row.waiting_kind == Some(WaitReason::Sandbox) {
            self.queue()?;
            self.updated = true;
        }
        Ok(true)
    }

    /// Writes an event of the run and returns its sequence number.
    fn event(
        &mut self,
        kind: EventKind,
        position: Option<u64>,
        data: Option<String>,
    ) -> Result<u64> {
        self.row.sequence += 1;
        self.tx
            .prepare_cached("INSERT INTO events (run_id, sequence, team_id, kind, created_at, position, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                Blob(self.row.id.as_uuid()),
                int(self.row.sequence),
                Blob(self.row.team.as_uuid()),
                kind.as_str(),
                Ms(self.now),
                position.map(int),
                data
            ])?;
        Ok(self.row.sequence)
    }

    /// Makes [`Change::finish`] write `run.updated` even though the status is unchanged.
    pub(crate) fn mark_updated(&mut self) {
        self.updated = true;
    }

    /// Writes the row, the remaining events and the deliveries.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        // What is recorded after the end (a late outcome, a released sandbox) does not change the run itself.
        let quiet = self.before.has_ended() && self.row.status == self.before && !self.updated;
        if !quiet {
            self.row.updated_at = self.now;
        }
        let updated = self.updated || self.before != self.row.status;
        if updated || !self.webhooks.is_empty() {
            self.tell(updated)?;
        }
        self.write()?;
        self.tx.ring(self.row.id, self.row.status.is_at_rest());
        Ok(Finished {
            entries: self.appended,
            follow_ups: self.follow_ups,
        })
    }

    /// Drops a change that did nothing to the row, such as releasing the sandbox of an ended run.
    pub(crate) fn into_follow_ups(self) -> Vec<FollowUp> {
        self.follow_ups
    }

    /// Writes the row in its current state.
    pub(crate) fn write(&mut self) -> Result<()> {
        self.row.update(self.tx, &self.stored)?;
        self.stored = self.row.as_stored();
        Ok(())
    }

    /// Writes the event `run.updated`, and the webhook deliveries.
    fn tell(&mut self, updated: bool) -> Result<()> {
        let body = event_body(&self.row);
        if updated {
            self.event(
                EventKind::RunUpdated,
                None,
                Some(to_json("events", "data", &body)?),
            )?;
        }
        for (event, request) in std::mem::take(&mut self.webhooks) {
            // A webhook refers to an event of the stream and has the same sequence number.
            let sequence = request
                .as_ref()
                .map_or(self.row.sequence, |(_, sequence)| *sequence);
            self.deliver(
                event,
                sequence,
                request.as_ref().map(|(request, _)| request),
                &body,
            )?;
        }
        Ok(())
    }

    fn deliver(
        &self,
        event: WebhookEvent,
        sequence: u64,
        request: Option<&HumanRequest>,
        body: &RunBody,
    ) -> Result<()> {
        let addresses = self.addresses(event)?;
        if addresses.is_empty() {
            return Ok(());
        }
        let id = EventId::derived(self.row.id, sequence, self.now);
        let respond_url = request.map(|r| {
            format!(
                "{}/v1/runs/{}/human-requests/{}/respond",
                self.tx.respond_base(),
                self.row.id,
                r.id
            )
        });
        let payload = WebhookBody {
            id: id.as_uuid(),
            event: event.as_str().to_owned(),
            sequence,
            created_at: self.now,
            run_id: self.row.id.as_uuid(),
            agent_id: self.row.agent.as_uuid(),
            run: RunBody {
                author: Some(author(self.tx, &self.row)?),
                ..body.clone()
            },
            human_request: request.map(PendingRequestBody::from),
            respond_url,
        };
        let payload = to_json("deliveries", "body", &payload)?.into_bytes();
        for ((webhook, url), number) in addresses.into_iter().zip(0..) {
            self.tx
                .prepare_cached(
                    "INSERT INTO deliveries (delivery_id, id, run_id, webhook_id, team_id, event, sequence, url, body, created_at, state,
                         attempts, due_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 'pending', 0, ?10)",
                )?
                .execute(params![
                    Blob(DeliveryId::derived(id, number, self.now).as_uuid()),
                    Blob(id.as_uuid()),
                    Blob(self.row.id.as_uuid()),
                    webhook.map(|webhook| Blob(webhook.as_uuid())),
                    Blob(self.row.team.as_uuid()),
                    event.as_str(),
                    int(sequence),
                    url,
                    payload,
                    Ms(self.now)
                ])?;
        }
        self.tx.ring_outbox();
        Ok(())
    }

    /// The addresses for an event: the run's own, then the team's webhooks. Each address occurs once.
    fn addresses(&self, event: WebhookEvent) -> Result<Vec<(Option<WebhookId>, String)>> {
        let own = [
            self.row.webhook_url.as_ref(),
            self.row
                .human_webhook_url
                .as_ref()
                .filter(|_| event == WebhookEvent::HumanRequest),
        ];
        let own = own.into_iter().flatten().map(|url| (None, url.clone()));
        let teams =
            crate::webhooks::subscriptions::subscribed(self.tx, self.row.team, event.as_str())?;
        let teams = teams.into_iter().map(|(id, url)| (Some(id), url));
        let mut addresses: Vec<(Option<WebhookId>, String)> = Vec::new();
        for (webhook, url) in own.chain(teams) {
            if !addresses.iter().any(|(_, known)| *known == url) {
                addresses.push((webhook, url));
            }
        }
        Ok(addresses)
    }
}

/// A closed request in the form that the API returns.
pub(crate) fn answered_body(
    run: RunId,
    request: &HumanRequest,
    resolution: &Resolution,
    by: Option<&By>,
    at: Timestamp,
) -> AnsweredRequestBody {
    AnsweredRequestBody {
        id: request.id.as_uuid(),
        run_id: run.as_uuid(),
        title: request.title.clone(),
        description: request.description.clone(),
        response: resolution.response(),
        responded_at: Some(at),
        created_at: request.created_at,
        responded_by: by.map(|by| by.user.as_uuid()),
        reason: resolution.reason().map(str::to_owned),
        author: Some(by.into()),
    }
}
