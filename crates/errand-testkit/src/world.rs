//! The surroundings of an app in a crash test: clients that repeat their requests, an operator who restarts a server
//! that died, and a person who settles calls in doubt.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use errand_core::ledger::{DONE, IN_DOUBT_QUESTION, NOT_DONE};
use errand_core::turn::Move;
use errand_core::webhook::DeliveryState;
use errand_store::{Fault, Trial};
use http::Method;
use serde_json::{Value, json};

use crate::app::{Prepared, Reply, Team, TestApp, TestOptions};
use crate::crash::{CrashPoints, Plan};
use crate::script::{Gate, ScriptedModel};
use crate::sink::WebhookSink;
use crate::sound::assert_sound;

/// Bound for waiting; not a measurement.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two polls of a level.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// After a full disk, the engine tries again within this time.
const NO_ROOM_PAUSE_MS: u64 = 500;
/// Maximum repetitions of a request. Only one commit fails, so none needs this many.
const REPEATS_MAX: u32 = 20;

/// An app and its surroundings.
pub struct World {
    pub app: TestApp,
    /// The team to which everything belongs.
    pub team: Team,
    /// The receiver of all webhooks.
    pub sink: WebhookSink,
    points: Arc<CrashPoints>,
    failure: Option<(u64, Fault)>,
    /// Whether the server was restarted after the injected failure.
    mended: bool,
    starts_again: usize,
    calls: u32,
    runs: Vec<String>,
    doubt: &'static str,
    payments: u32,
}

impl World {
    pub(crate) async fn new(
        prepared: &Prepared,
        plan: &Plan,
        failure: Option<(u64, Fault)>,
    ) -> Self {
        let points = Arc::new(CrashPoints::default());
        let options = TestOptions {
            settings: plan.settings.clone(),
            file: plan.file.clone(),
            trial: Trial {
                faults: Some(Arc::clone(&points) as _),
                unsynced: true,
                one_reader: true,
                ..Trial::default()
            },
            ..TestOptions::default()
        };
        Self {
            app: TestApp::start_from(prepared, options).await,
            team: prepared.team.clone(),
            sink: WebhookSink::start().await,
            points,
            failure,
            mended: false,
            starts_again: 0,
            calls: 0,
            runs: Vec::new(),
            doubt: DONE,
            payments: 0,
        }
    }

    /// Ends the setup: from now on, commits are counted, and one fails.
    pub fn begin(&self) {
        self.points.arm(self.failure);
    }

    /// Sets the person's answer about calls in doubt. The default is `done`.
    pub fn say_of_doubts(&mut self, answer: &'static str) {
        self.doubt = answer;
    }

    /// Allows the payment to begin this many more times.
    pub fn allow_payments(&mut self, more: u32) {
        self.payments += more;
    }

    /// Sends a request with a new idempotency key, and repeats it with the same key until there is a response.
    pub async fn send(&mut self, method: Method, path: &str, body: Value) -> Reply {
        let idem = self.new_key();
        for _ in 0..REPEATS_MAX {
            let headers = [("idempotency-key", idem.as_str())];
            let (method, key) = (method.clone(), &self.team.key);
            let reply = self
                .app
                .json(method, key, path, body.clone(), &headers)
                .await;
            if reply.status != 503 {
                return reply;
            }
            self.mend(&reply).await;
        }
        panic!("{method} {path} is not answered");
    }

    /// [`World::send`] with POST.
    pub async fn post(&mut self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, body).await
    }

    /// Sends the same request twice at once with one key, until both have responses, which must be equal.
    pub async fn post_twice(&mut self, path: &str, body: Value) -> Value {
        let idem = self.new_key();
        for _ in 0..REPEATS_MAX {
            let headers = [("idempotency-key", idem.as_str())];
            let (app, key) = (&self.app, &self.team.key);
            let once = || app.json(Method::POST, key, path, body.clone(), &headers);
            let (one, two) = tokio::join!(once(), once());
            for reply in [&one, &two] {
                match reply.status {
                    200..300 => {}
                    503 => self.mend(reply).await,
                    // The other one is still in progress.
                    _ => assert_eq!(reply.error(409).0, "conflict"),
                }
            }
            if one.status < 300 && two.status < 300 {
                assert_eq!((one.status, &one.bytes), (two.status, &two.bytes));
                return one.json();
            }
        }
        panic!("POST {path} is not answered");
    }

    /// Uploads directly with a new idempotency key, and repeats it until there is a response.
    pub async fn upload(&mut self, sandbox: &str, path: &str, content: &'static str) {
        let idem = self.new_key();
        let url = format!("/v1/sandboxes/{sandbox}/files?path={path}");
        let bearer = format!("Bearer {}", self.team.key);
        for _ in 0..REPEATS_MAX {
            let headers = [
                ("authorization", bearer.as_str()),
                ("content-type", "application/octet-stream"),
                ("idempotency-key", idem.as_str()),
            ];
            let body = Body::from(content);
            let reply = self.app.send(Method::POST, &url, &headers, body).await;
            if reply.status != 503 {
                assert_eq!(reply.expect(201)["size_bytes"], content.len());
                return;
            }
            self.mend(&reply).await;
        }
        panic!("an upload is not answered");
    }

    /// Uploads through an upload URL, and repeats it until there is a response.
    pub async fn upload_by_url(&mut self, sandbox: &str, path: &str, content: &'static str) {
        let made = self
            .post(
                &format!("/v1/sandboxes/{sandbox}/upload-urls"),
                json!({"path": path}),
            )
            .await
            .expect(200);
        let url = made["upload_url"].as_str().unwrap();
        // The server listens on another port after a restart, so use only the path.
        let at = url.find("/v1/").unwrap();
        for _ in 0..REPEATS_MAX {
            let body = Body::from(content);
            let reply = self.app.send(Method::PUT, &url[at..], &[], body).await;
            if reply.status != 503 {
                assert_eq!(reply.expect(200)["size_bytes"], content.len());
                return;
            }
            self.mend(&reply).await;
        }
        panic!("an upload is not answered");
    }

    fn new_key(&mut self) -> String {
        self.calls += 1;
        format!("call {}", self.calls)
    }

    /// Creates an agent with a build and returns the agent's id.
    pub async fn agent(&mut self, config: Value) -> String {
        let body = json!({"name": "test", "build": {"name": "first", "config": config}});
        let made = self.post("/v1/agents", body).await.expect(201);
        made["agent"]["id"].as_str().unwrap().to_owned()
    }

    /// Creates an agent that follows a playbook and returns its id.
    pub async fn playbook(&mut self, steps: Value) -> String {
        self.agent(json!({"version": "v2", "data": {"playbook": {"steps": steps}}}))
            .await
    }

    /// Creates an agent that follows a script and returns its id.
    pub async fn script(&mut self, name: &str, turns: Vec<Vec<Move>>, data: Value) -> String {
        self.app.model.add(name, turns);
        self.agent(ScriptedModel::config(name, data)).await
    }

    /// Creates a sandbox and returns its id.
    pub async fn sandbox(&mut self) -> String {
        let made = self.post("/v1/sandboxes", json!({})).await.expect(201);
        made["sandbox_id"].as_str().unwrap().to_owned()
    }

    /// Starts a run with a webhook and returns its id.
    pub async fn start(&mut self, mut body: Value) -> String {
        body["webhook_url"] = json!(self.sink.url());
        let started = self.post("/v1/runs", body).await.expect(201);
        self.started(&started)
    }

    /// Records a run from the response that started it, and returns its id.
    pub fn started(&mut self, answer: &Value) -> String {
        let run = answer["run"]["id"].as_str().unwrap().to_owned();
        self.runs.push(run.clone());
        run
    }

    /// Waits until nothing is due or in progress. Restarts a server that dies meanwhile.
    pub async fn settle(&mut self) {
        self.wait_for("settled", |_| false).await;
    }

    /// Waits until a task waits at the gate. Returns false if nothing is in progress any more, so that none will come.
    pub async fn reach(&mut self, gate: &Gate) -> bool {
        self.wait_for("at the gate", |_| gate.waiting() > 0).await
    }

    /// Waits for a condition. Returns false if nothing is in progress any more, so that it cannot become true.
    pub async fn until(&mut self, what: &str, is_so: impl Fn() -> bool) -> bool {
        self.wait_for(what, |_| is_so()).await
    }

    async fn wait_for(&mut self, what: &str, reached: impl Fn(&Self) -> bool) -> bool {
        let waited = async {
            loop {
                if self.has_died() {
                    self.start_again().await;
                }
                let busy = self.app.store().busy(self.app.now()).await.unwrap();
                if reached(self) {
                    return true;
                }
                if busy.is_none() && !self.has_died() {
                    return false;
                }
                self.pass_time_without_room();
                // Yield the processor to the app, which shares it with this loop.
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        };
        match tokio::time::timeout(PATIENCE, waited).await {
            Ok(reached) => reached,
            Err(_) => panic!(
                "not {what}: {:?}",
                self.app.store().busy(self.app.now()).await
            ),
        }
    }

    /// After a full disk, the engine waits for its clock before it tries again: move the clock.
    fn pass_time_without_room(&self) {
        let now = self.app.now();
        if self.points.fired() == Some(Fault::Full)
            && let Some(next) = self.app.clock().next_waking()
            && next <= now.plus_ms(NO_ROOM_PAUSE_MS)
        {
            let pause = Duration::from_millis(next.ms_since(now));
            self.app.clock().advance(pause);
        }
    }

    /// Waits until everything waits for the clock, a message or an answer. Settles calls in doubt as configured.
    pub async fn quiet(&mut self) {
        loop {
            self.settle().await;
            let mut answered = false;
            for run in self.runs.clone() {
                let pending = self.pending(&run).await;
                if pending["questions"][0]["question"] != IN_DOUBT_QUESTION {
                    continue;
                }
                let call = pending["tool_call"]["name"].as_str().unwrap_or_default();
                assert!(
                    call == "run_command" || call.contains("__"),
                    "the person sees the call"
                );
                if self.doubt == NOT_DONE {
                    self.payments += 1;
                }
                let answers = json!({"answers": {IN_DOUBT_QUESTION: self.doubt}});
                self.answer(&run, &pending, answers).await;
                answered = true;
            }
            if !answered {
                return;
            }
        }
    }

    /// Moves the clock when everything is quiet, and waits until everything that became due is done.
    pub async fn advance(&mut self, by: Duration) {
        self.quiet().await;
        self.app.clock().advance(by);
        self.quiet().await;
    }

    /// Answers a run's pending request when everything is quiet.
    pub async fn respond(&mut self, run: &str, body: Value) {
        self.quiet().await;
        let pending = self.pending(run).await;
        self.answer(run, &pending, body).await;
    }

    async fn answer(&mut self, run: &str, pending: &Value, body: Value) {
        let request = pending["id"]
            .as_str()
            .unwrap_or_else(|| panic!("run {run} has no pending request"));
        let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
        self.post(&path, body).await.expect(200);
    }

    /// A run's pending request; null if there is none.
    pub async fn pending(&self, run: &str) -> Value {
        self.app.get_run(&self.team, run).await["pending_human_request"].clone()
    }

    pub async fn message(&mut self, run: &str, text: &str) {
        let path = format!("/v1/runs/{run}/messages");
        self.post(&path, json!({"message": text})).await.expect(201);
    }

    pub async fn stop(&mut self, run: &str) {
        let path = format!("/v1/runs/{run}/stop");
        let stopped = self.post(&path, json!({})).await.expect(200);
        assert_eq!(stopped["success"], true);
    }

    /// Waits until everything is quiet, and asserts a run's status.
    pub async fn assert_status(&mut self, run: &str, status: &str) {
        self.quiet().await;
        let got = self.app.get_run(&self.team, run).await;
        assert_eq!(got["run"]["status"], status, "{got:#}");
    }

    pub async fn messages(&self, run: &str) -> Vec<Value> {
        self.app.messages(&self.team, run).await
    }

    /// The text messages of a run, with their roles, such as `user: hello`.
    pub async fn texts(&self, run: &str) -> Vec<String> {
        let text = |m: &Value| {
            if m["type"] != "text" {
                return None;
            }
            let text = m["text_content"].as_str()?;
            Some(format!("{}: {text}", m["role"].as_str().unwrap()))
        };
        self.messages(run).await.iter().filter_map(text).collect()
    }

    /// The events of a run for which webhooks were created, in order.
    pub async fn events(&self, run: &str) -> Vec<String> {
        let store = self.app.store();
        let rows = store
            .deliveries_of(self.team.id, run.parse().unwrap())
            .await;
        rows.unwrap().into_iter().map(|row| row.event).collect()
    }

    /// Kills the server and starts it again.
    pub async fn crash(&mut self) {
        self.starts_again += 1;
        self.app.die().await;
        // If the commit failed at the same moment, this restart also covers that failure.
        self.mended |= self.has_died();
        while let Err(why) = self.app.come_back().await {
            // The commit of the recovery itself may fail.
            assert!(
                self.points.fired().is_some() && !self.mended,
                "it does not start: {why}"
            );
            self.mended = true;
        }
    }

    fn has_died(&self) -> bool {
        !self.mended && matches!(self.points.fired(), Some(Fault::Broken { .. }))
    }

    /// Handles a 503: restarts a server that died. A full disk has space again.
    async fn mend(&mut self, reply: &Reply) {
        if self.has_died() {
            self.start_again().await;
        } else {
            assert!(self.points.fired().is_some(), "{:?}", reply.error(503));
        }
    }

    /// A server whose commit failed still reads, rejects writes, and ends. Checks that, and restarts it.
    async fn start_again(&mut self) {
        tokio::time::timeout(PATIENCE, self.app.ended())
            .await
            .expect("a server whose commit failed ends");
        let refused = self.app.post(&self.team.key, "/v1/sandboxes", json!({}));
        assert_eq!(
            refused.await.status,
            503,
            "writes are rejected after a failed commit"
        );
        self.app.get(&self.team.key, "/v1/runs").await.expect(200);
        self.mended = true;
        self.crash().await;
    }

    /// Checks the final state, and returns the number of commits.
    pub(crate) async fn end(mut self) -> u64 {
        self.quiet().await;
        let count = self.points.count();
        self.points.disarm();
        assert_sound(&self.app, &self.team).await;
        let listed = self.app.get(&self.team.key, "/v1/runs?limit=50").await;
        let listed = listed.expect(200);
        let there = listed["runs"].as_array().unwrap().iter();
        let there: BTreeSet<_> = there.map(|r| r["id"].as_str().unwrap()).collect();
        let accepted: BTreeSet<_> = self.runs.iter().map(String::as_str).collect();
        assert_eq!(there, accepted, "each accepted run exists exactly once");
        assert_eq!(listed["total"], accepted.len());
        self.assert_delivered().await;
        let begun = self.app.payment.begun();
        assert!(
            begun <= self.payments,
            "the payment began {begun} times, but {} were allowed",
            self.payments
        );
        self.app.die().await;
        count
    }

    /// Each event was delivered with the same id and bytes, and repeated only if its record was lost in a crash.
    async fn assert_delivered(&self) {
        let received = self.sink.received();
        let mut known = BTreeSet::new();
        for run in &self.runs {
            let store = self.app.store();
            let rows = store
                .deliveries_of(self.team.id, run.parse().unwrap())
                .await;
            for row in rows.unwrap() {
                assert_eq!(row.state, DeliveryState::Delivered, "{row:?}");
                let id = row.id.to_string();
                let came: Vec<_> = received.iter().filter(|r| r.id == id).collect();
                assert!(came.iter().all(|r| r.body == came[0].body));
                let taken = came.iter().filter(|r| r.answered < 300).count();
                assert!(
                    (1..=1 + self.starts_again).contains(&taken),
                    "{} was accepted {taken} times",
                    row.event
                );
                assert!(known.insert(id), "each event has its own id");
            }
        }
        assert!(received.iter().all(|r| known.contains(&r.id)));
    }
}
