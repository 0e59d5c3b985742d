//! Test fixture: a store with runs in each state, brought there by the same operations as in the program.

use std::pin::pin;
use std::task::{Context, Waker};

use errand_core::human::{
    Answer as HumanAnswer, Ask, HumanRequest, OnExpire, Origin, Question, RequestDraft,
};
use errand_core::id::{AgentId, ClaimToken, RunId, SandboxId, WebhookId};
use errand_core::ledger::{IN_DOUBT_QUESTION, NOT_DONE};
use errand_core::run::{RunError, RunSource, WaitReason};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, NewEntry, Outcome, ToolCall};
use errand_core::webhook::WebhookEvent;
use serde_json::json;

use super::{AuditScope, Finding};
use crate::accounts::fixture::Fixture;
use crate::db::types::Blob;
use crate::idempotency::Idempotent;
use crate::model::{
    AttemptRow, DeliveryEnd, NewAgent, NewBuild, PostMessage, Principal, ReadyRun, Respond,
    StartRun, StepCommit, StepEnd, Usage,
};
use crate::notify::RevocationListener;
use crate::runs::row::{RunRow, row_of};
use crate::webhooks::deliveries::DeliveryTurns;
use crate::webhooks::subscriptions::NewWebhook;

/// The setting `sandbox.ttl` in these tests.
const TTL_MS: u64 = 1_000_000;

/// A store with runs.
pub(crate) struct Runs {
    pub(crate) f: Fixture,
    pub(crate) agent: AgentId,
    pub(crate) now: Timestamp,
}

pub(crate) fn call(id: &str, name: &str) -> Body {
    Body::ToolCall {
        call: tool_call(id, name),
        mark: None,
    }
}

fn tool_call(id: &str, name: &str) -> ToolCall {
    ToolCall {
        id: id.to_owned(),
        name: name.to_owned(),
        arguments: serde_json::Map::new(),
    }
}

pub(crate) fn result(id: &str, name: &str) -> Body {
    Body::ToolResult {
        call_id: id.to_owned(),
        name: name.to_owned(),
        outcome: Outcome::Result(json!("ok")),
    }
}

pub(crate) fn intent(id: &str, claim: ClaimToken) -> Body {
    Body::Intent {
        call_id: id.to_owned(),
        claim,
        evidence: None,
    }
}

pub(crate) fn ending() -> Body {
    Body::Assistant {
        text: "Done.".to_owned(),
        ends: true,
        mark: None,
    }
}

pub(crate) fn going() -> StepEnd {
    StepEnd::Go {
        doing: WaitReason::Model,
        who: None,
    }
}

impl Runs {
    pub(crate) async fn new() -> Self {
        let f = Fixture::new().await;
        let (now, agent) = (f.now, f.ids.agent(f.now));
        let build = NewBuild {
            id: f.ids.build(now),
            name: "first".to_owned(),
            description: None,
            config: json!({"version": "v2", "data": {"models": {"agent": {"model": "script/x"}}}}),
            created_by: f.owner,
            warnings: Vec::new(),
            draft: false,
        };
        let new = NewAgent {
            team: f.team,
            id: agent,
            name: "agent".to_owned(),
            build: Some(build),
            created_by: f.owner,
            now,
        };
        f.store
            .create_agent(new, Idempotent::not_recorded())
            .await
            .unwrap();
        Self { f, agent, now }
    }

    /// A run to start, with a message and webhooks.
    pub(crate) async fn new_start(&self, sandbox: Option<&SandboxId>) -> StartRun {
        let f = &self.f;
        let build = f.store.live_build(f.team, self.agent).await.unwrap();
        StartRun {
            team: f.team,
            id: f.ids.run(self.now),
            agent: self.agent,
            source: RunSource::Api,
            sandbox: sandbox.cloned(),
            webhook_url: Some("http://127.0.0.1/all".to_owned()),
            human_request_webhook_url: Some("http://127.0.0.1/human".to_owned()),
            untrusted: false,
            message: Some((f.ids.message(self.now), "Begin.".to_owned())),
            by: f.owner.into(),
            sandbox_ttl_ms: TTL_MS,
            api_key: None,
            expected_build: Some(build.usable()),
            now: self.now,
        }
    }

    /// Starts a run with a message and webhooks, which is then queued.
    pub(crate) async fn start(&self, sandbox: Option<&SandboxId>) -> RunId {
        let start = self.new_start(sandbox).await;
        let id = start.id;
        self.f
            .store
            .start_run(start, Idempotent::not_recorded())
            .await
            .unwrap();
        id
    }

    /// Creates a webhook of the team that is subscribed to all events.
    pub(crate) async fn webhook(&self, url: &str) -> WebhookId {
        let id = self.f.ids.webhook(self.now);
        let new = NewWebhook {
            team: self.f.team,
            id,
            url: url.to_owned(),
            events: WebhookEvent::ALL.to_vec(),
            description: None,
            enabled: true,
            created_by: self.f.owner,
            now: self.now,
        };
        self.f
            .store
            .create_webhook(new, Idempotent::not_recorded())
            .await
            .unwrap();
        id
    }

    pub(crate) async fn sandbox(&self) -> SandboxId {
        let (id, end) = (self.f.ids.sandbox(self.now), self.now.plus_ms(TTL_MS));
        self.f
            .store
            .create_sandbox(
                self.f.team,
                id.clone(),
                end,
                self.now,
                Idempotent::not_recorded(),
            )
            .await
            .unwrap();
        id
    }

    pub(crate) async fn row(&self, run: RunId) -> RunRow {
        let team = self.f.team;
        self.f
            .store
            .read(move |conn| row_of(conn, team, run))
            .await
            .unwrap()
    }

    pub(crate) async fn claim(&self, run: RunId) -> ClaimToken {
        self.claim_with_listener(run).await.0
    }

    /// Claims a run as a working driver, which is notified when the run is taken away.
    pub(crate) async fn claim_with_listener(&self, run: RunId) -> (ClaimToken, RevocationListener) {
        let (claim, team) = (self.f.ids.claim_token(self.now), self.f.team);
        let ready = ReadyRun {
            team,
            principal: Principal::default(),
            run,
        };
        let claimed = self.f.store.claim_one(ready, claim, self.now).await;
        let claimed = claimed.unwrap().expect("a run that can be claimed");
        (claim, claimed.revocation)
    }

    pub(crate) async fn step(
        &self,
        run: RunId,
        claim: ClaimToken,
        bodies: Vec<Body>,
        end: StepEnd,
    ) {
        let row = self.row(run).await;
        let turn = bodies.iter().any(|b| matches!(b, Body::ToolCall { .. }));
        let entries = bodies.into_iter().map(|body| NewEntry {
            id: self.f.ids.message(self.now),
            body,
        });
        let step = StepCommit {
            run,
            claim,
            step: row.step + 1,
            known: row.position,
            entries: entries.collect(),
            end,
            usage: Usage::default(),
            sandbox: None,
            sandbox_bytes: None,
            turn,
            step_deadline: self.now.plus_ms(3_600_000),
            now: self.now,
        };
        self.f.store.commit_step(step).await.unwrap();
    }

    /// Asks a person, as the run's driver.
    pub(crate) async fn ask(&self, run: RunId, claim: ClaimToken, origin: Origin) -> HumanRequest {
        let (ask, about) = match &origin {
            Origin::InDoubt { call_id, .. } => {
                let question = Question {
                    question: IN_DOUBT_QUESTION.to_owned(),
                    header: None,
                    options: Vec::new(),
                    multi_select: false,
                    free_text: true,
                };
                let questions = vec![question];
                (
                    Ask::Question { questions },
                    Some(tool_call(call_id, "run_command")),
                )
            }
            _ => (Ask::Approval, None),
        };
        let draft = RequestDraft {
            title: "May I?".to_owned(),
            description: None,
            ask,
            origin,
            tool_call: about,
            expires_in_ms: Some(3_600_000),
            on_expire: Some(OnExpire::Deny),
            reason: None,
            quote: None,
        };
        let request = HumanRequest::new(self.f.ids.human_request(self.now), draft, self.now);
        let body = Body::HumanRequest {
            request: request.clone(),
            mark: None,
        };
        let end = StepEnd::Ask(Box::new(request.clone()));
        self.step(run, claim, vec![body], end).await;
        request
    }

    pub(crate) async fn answer(&self, run: RunId, request: &HumanRequest) {
        let answer = match request.ask {
            Ask::Approval => HumanAnswer::Approval {
                approved: true,
                reason: None,
            },
            Ask::Question { .. } => HumanAnswer::Answers(
                [(IN_DOUBT_QUESTION.to_owned(), json!(NOT_DONE))]
                    .into_iter()
                    .collect(),
            ),
        };
        let respond = Respond {
            team: self.f.team,
            run,
            request: request.id,
            answer,
            by: self.f.owner.into(),
            now: self.now,
        };
        self.f
            .store
            .respond(respond, Idempotent::not_recorded())
            .await
            .unwrap();
    }

    pub(crate) async fn message(&self, run: RunId) {
        let message = PostMessage {
            team: self.f.team,
            run,
            id: self.f.ids.message(self.now),
            text: "More.".to_owned(),
            untrusted: false,
            by: self.f.owner.into(),
            now: self.now,
        };
        self.f
            .store
            .post_message(message, Idempotent::not_recorded())
            .await
            .unwrap();
    }

    pub(crate) async fn stop(&self, run: RunId) {
        let f = &self.f;
        f.store
            .stop(f.team, run, f.owner, self.now, Idempotent::not_recorded())
            .await
            .unwrap();
    }

    /// A queued run.
    pub(crate) async fn pending(&self) -> RunId {
        self.start(None).await
    }

    /// A run in a sandbox of its own, during a call that has begun.
    pub(crate) async fn at_work(&self) -> (RunId, ClaimToken) {
        let (run, claim, _) = self.driven().await;
        (run, claim)
    }

    /// Like [`Runs::at_work`], with the driver's notification.
    pub(crate) async fn driven(&self) -> (RunId, ClaimToken, RevocationListener) {
        let sandbox = self.sandbox().await;
        let run = self.start(Some(&sandbox)).await;
        let (claim, revocation) = self.claim_with_listener(run).await;
        let bodies = vec![call("c1", "read_file"), call("c2", "run_command")];
        self.step(run, claim, bodies, going()).await;
        let bodies = vec![result("c1", "read_file"), intent("c2", claim)];
        self.step(run, claim, bodies, going()).await;
        (run, claim, revocation)
    }

    /// A run that waits for a timer.
    pub(crate) async fn on_timer(&self) -> RunId {
        let run = self.start(None).await;
        let claim = self.claim(run).await;
        let until = self.now.plus_ms(60_000);
        let body = Body::Wait { until, mark: None };
        self.step(run, claim, vec![body], StepEnd::Sleep(until))
            .await;
        run
    }

    /// A run that waits for the approval of a call.
    pub(crate) async fn waiting(&self) -> (RunId, HumanRequest) {
        let run = self.start(None).await;
        let claim = self.claim(run).await;
        self.step(run, claim, vec![call("c1", "run_command")], going())
            .await;
        let call_id = "c1".to_owned();
        let request = self
            .ask(
                run,
                claim,
                Origin::Policy {
                    call_id,
                    target: None,
                },
            )
            .await;
        (run, request)
    }

    /// A completed run, with a call that a person approved, and approved again when its outcome was unknown.
    pub(crate) async fn completed(&self) -> RunId {
        let (run, request) = self.waiting().await;
        self.answer(run, &request).await;
        let claim = self.claim(run).await;
        self.step(run, claim, vec![intent("c1", claim)], going())
            .await;
        self.step(run, claim, Vec::new(), StepEnd::Release).await;
        let claim = self.claim(run).await;
        let call_id = "c1".to_owned();
        let request = self
            .ask(
                run,
                claim,
                Origin::InDoubt {
                    call_id,
                    target: None,
                },
            )
            .await;
        self.answer(run, &request).await;
        let claim = self.claim(run).await;
        self.step(run, claim, vec![intent("c1", claim)], going())
            .await;
        let bodies = vec![result("c1", "run_command"), ending()];
        let read_to = self.row(run).await.newest_user;
        self.step(run, claim, bodies, StepEnd::Complete { read_to })
            .await;
        run
    }

    pub(crate) async fn failed(&self) -> RunId {
        let run = self.start(None).await;
        let claim = self.claim(run).await;
        let error = RunError::new("tool_failed", "it did not work");
        self.f
            .store
            .fail_claimed(run, claim, error, self.now)
            .await
            .unwrap();
        run
    }

    /// A run that was stopped during a call and whose driver has left. Another run waited for its sandbox.
    pub(crate) async fn interrupted(&self) -> RunId {
        let (run, claim) = self.at_work().await;
        self.stop(run).await;
        let late = vec![("c2".to_owned(), Outcome::Result(json!("late")))];
        self.f
            .store
            .release_late(run, claim, late, self.now)
            .await
            .unwrap();
        run
    }

    /// A run that is queued for a sandbox in which another run's driver may still be working.
    pub(crate) async fn behind_a_sandbox(&self) -> RunId {
        let (first, _) = self.at_work().await;
        self.stop(first).await;
        let sandbox = self.row(first).await.sandbox.unwrap();
        self.start(Some(&sandbox)).await
    }

    /// One run of each kind, and an attempt of a delivery.
    pub(crate) async fn of_each_kind(&self) {
        self.webhook("http://127.0.0.1/team").await;
        self.pending().await;
        self.at_work().await;
        self.on_timer().await;
        self.waiting().await;
        self.completed().await;
        self.failed().await;
        self.interrupted().await;
        self.behind_a_sandbox().await;
        let resumed = self.completed().await;
        self.message(resumed).await;
        let due = self
            .f
            .store
            .due_deliveries(self.now, 1, DeliveryTurns::unshared(10))
            .await
            .unwrap()
            .due;
        let attempt = AttemptRow {
            attempt: 1,
            at: self.now,
            duration_ms: 1,
            status: Some(200),
            error: None,
            answer: None,
        };
        let number = due[0].number;
        let store = &self.f.store;
        assert!(
            store
                .record_attempt(number, attempt, DeliveryEnd::Delivered)
                .await
                .unwrap()
        );
    }

    pub(crate) async fn audit(&self, scope: AuditScope) -> Vec<Finding> {
        self.f.store.audit(scope, self.now).await.unwrap()
    }

    /// The findings of an audit for one run and its rows.
    pub(crate) async fn findings(&self, run: RunId) -> Vec<Finding> {
        let (boot, now) = (self.f.store.boot(), self.now);
        let found = self.f.store.read(move |conn| {
            let mut found = super::of_store(conn, AuditScope::All, boot)?;
            super::of_run(conn, run, boot, now, &mut found)?;
            Ok(found.findings)
        });
        let mut found = found.await.unwrap();
        found.retain(|finding| finding.run == Some(run));
        found
    }

    /// Damages the rows of a run with a statement; `?1` is its id. Returns the number of changed rows.
    pub(crate) async fn damage(&self, run: RunId, sql: &'static str) -> usize {
        self.f
            .store
            .write(move |tx| Ok(tx.execute(sql, [Blob(run.as_uuid())])?))
            .await
            .unwrap()
    }
}

/// Whether the driver was notified that its run was taken away.
pub(crate) fn is_revoked(listener: &RevocationListener) -> bool {
    pin!(listener.revoked())
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_ready()
}
