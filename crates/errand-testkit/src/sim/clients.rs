//! Clients that start runs, send messages, answer, stop and retry; that lose responses, and then repeat their requests.

use std::sync::{Arc, Mutex, PoisonError};

use errand_core::human::{Answer as HumanAnswer, Ask, HumanRequest};
use errand_core::id::{HumanRequestId, IdGen, RunId, SandboxId};
use errand_core::ledger::NOT_DONE;
use errand_core::limits::IDEMPOTENCY_TTL_MS;
use errand_core::run::RunSource;
use errand_core::time::Timestamp;
use errand_core::wire::{AnsweredRequestBody, MessageBody};
use errand_store::model::{PostMessage, Respond, RunView, StartRun};
use errand_store::{Idem, Idempotent, Outcome, Store, StoreError, StoredAnswer};
use serde_json::{Map, json};
use sha2::{Digest as _, Sha256};

use super::Sabotage;
use super::forks::WantedFork;
use super::invariants::Invariant;
use super::random::Random;
use super::receivers::url_of;
use super::world::{Origin, Run, World, short};

/// The content of a client's request.
#[derive(Clone, Debug)]
pub(crate) enum Want {
    /// Start a run of an agent, optionally with a first message.
    Start {
        agent: usize,
        sandbox: Option<SandboxId>,
        webhook: Option<usize>,
        human_webhook: Option<usize>,
        message: bool,
    },
    /// Fork a run.
    Fork(WantedFork),
    /// Send a message.
    Message { run: RunId },
    /// Answer a human request.
    Answer {
        run: RunId,
        request: HumanRequestId,
        answer: HumanAnswer,
        /// The answer as the transcript will show it.
        word: String,
    },
    /// Stop the run.
    Stop { run: RunId },
    /// Retry the run.
    Retry { run: RunId },
}

/// A definite response that a client got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The request was accepted. For a start, with the run's id.
    Accepted(Option<RunId>),
    /// The request was refused, with the error.
    Refused(String),
}

/// One request of a client, with all its attempts.
pub(crate) struct Request {
    pub(crate) want: Want,
    pub(crate) key: Option<String>,
    pub(crate) first_at: Timestamp,
    /// Attempts in progress.
    pub(crate) open: u32,
    pub(crate) tries: u32,
    /// Attempts with a definite response. The outcome of the others is unknown.
    pub(crate) answered: u32,
    pub(crate) heard: Option<Heard>,
}

impl Request {
    /// Whether its client will repeat it, because it has no response yet.
    pub(crate) fn wants_repeating(&self, latest: Timestamp) -> bool {
        self.open == 0 && self.heard.is_none() && self.key.is_some() && self.is_recorded(latest)
    }

    /// Whether its client may repeat it although it has a response.
    pub(crate) fn may_be_forgotten(&self, latest: Timestamp) -> bool {
        self.heard.is_some() && self.key.is_some() && self.is_recorded(latest)
    }

    fn is_recorded(&self, latest: Timestamp) -> bool {
        // Half of the time for which the record is kept. The other half allows for jumps of the clock during the
        // request.
        latest.ms_since(self.first_at) < IDEMPOTENCY_TTL_MS / 2
    }

    /// The text of its message, which is unique.
    pub(crate) fn text(number: usize) -> String {
        format!("request {number}.")
    }
}

/// Carries requests to the program. Each start of the program creates a new one.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) world: Arc<World>,
    pub(crate) store: Store,
    pub(crate) ids: Arc<IdGen>,
}

/// One attempt in progress. Dropped when its response arrives or its client disconnects.
struct Try {
    world: Arc<World>,
    number: usize,
    wakes: Option<RunId>,
    /// The client got an acceptance before, so a refusal would be a contradiction.
    known: bool,
    /// For a stop: the runs that it stops, and the number of messages and retries sent to each before.
    halts: Vec<(RunId, u64)>,
}

impl Drop for Try {
    fn drop(&mut self) {
        let mut state = self.world.state();
        state.requests[self.number].open -= 1;
        if let Some(run) = self.wakes.and_then(|run| state.runs.get_mut(&run)) {
            run.wakes_open -= 1;
        }
    }
}

impl Wire {
    /// Creates a request and returns its number.
    pub(crate) fn request(&self, want: Want, with_key: bool) -> usize {
        let now = self.world.now();
        let mut state = self.world.state();
        let number = state.requests.len();
        if let Want::Answer { request, .. } = &want {
            state.answers.entry(*request).or_default().push(number);
        }
        state.requests.push(Request {
            want,
            key: with_key.then(|| format!("key-{number}")),
            first_at: now,
            open: 0,
            tries: 0,
            answered: 0,
            heard: None,
        });
        number
    }

    /// Whether a defect of the world alters the key of a repeated request.
    fn loses_key(&self, want: &Want) -> bool {
        match want {
            Want::Start { .. } => self.world.sabotages(Sabotage::LosesKeysOfStarts),
            Want::Answer { .. } => self.world.sabotages(Sabotage::LosesKeysOfAnswers),
            Want::Fork(_) | Want::Message { .. } | Want::Stop { .. } | Want::Retry { .. } => false,
        }
    }

    /// Starts an attempt of a request.
    pub(crate) fn send(&self, number: usize) -> tokio::task::AbortHandle {
        let now = self.world.now();
        let (attempt, want, key) = {
            let mut state = self.world.state();
            let request = &mut state.requests[number];
            request.open += 1;
            request.tries += 1;
            let (want, mut key, tries) = (request.want.clone(), request.key.clone(), request.tries);
            if let Some(key) = key.as_mut().filter(|_| tries > 1 && self.loses_key(&want)) {
                key.push_str("-again");
            }
            let known = matches!(request.heard, Some(Heard::Accepted(_)));
            let (mut wakes, mut halts) = (None, Vec::new());
            match &want {
                Want::Message { run } | Want::Retry { run } => {
                    if let Some(known) = state.runs.get_mut(run) {
                        known.halted = false;
                        known.wakes_sent += 1;
                        known.wakes_open += 1;
                        wakes = Some(*run);
                    }
                }
                Want::Stop { run } => {
                    let known = state.stopped_with(*run).into_iter().filter_map(|run| {
                        let known = state.runs.get(&run)?;
                        (known.wakes_open == 0).then_some((run, known.wakes_sent))
                    });
                    halts = known.collect();
                }
                Want::Start { .. } | Want::Fork(_) | Want::Answer { .. } => {}
            }
            state.note(
                now,
                &format!("request {number}, try {tries}: {}", describe(&want)),
            );
            let attempt = Try {
                world: Arc::clone(&self.world),
                number,
                wakes,
                known,
                halts,
            };
            (attempt, want, key)
        };
        let wire = self.clone();
        let sending = async move {
            wire.world.give_way().await;
            wire.execute(&attempt, want, key).await;
        };
        tokio::spawn(sending).abort_handle()
    }

    async fn execute(&self, attempt: &Try, want: Want, key: Option<String>) {
        let now = self.world.now();
        let number = attempt.number;
        let heard = match want {
            Want::Start { .. } => self.start(number, &want, key, now).await,
            Want::Fork(fork) => self.fork(number, &fork, key, now).await,
            Want::Message { run } => self.message(number, run, key, now).await,
            Want::Answer {
                run,
                request,
                answer,
                ..
            } => self.answer(run, request, answer, key, now).await,
            Want::Stop { run } => {
                let (team, owner) = self.team_of(run);
                let once = self.once(key, "/stop", run, |_| stored(""));
                let stopped = self.store.stop(team, run, owner, now, once).await;
                if matches!(stopped, Ok(Outcome::Executed(_))) {
                    self.record_stop(attempt);
                }
                stopped.map(|_| None)
            }
            Want::Retry { run } => {
                let (team, owner) = self.team_of(run);
                let once = self.once(key, "/retry", run, |_| stored(""));
                self.store
                    .retry(team, run, owner, now, once)
                    .await
                    .map(|_| None)
            }
        };
        self.record_response(attempt, heard);
    }

    async fn start(
        &self,
        number: usize,
        want: &Want,
        key: Option<String>,
        now: Timestamp,
    ) -> Result<Option<RunId>, StoreError> {
        let Want::Start {
            agent,
            sandbox,
            webhook,
            human_webhook,
            message,
        } = want
        else {
            return Ok(None);
        };
        let id = self.ids.run(now);
        let (team, agent_id) = {
            let mut state = self.world.state();
            state.runs.insert(
                id,
                Run {
                    agent: *agent,
                    origin: Origin::Request(number),
                    caller: None,
                    halted: false,
                    wakes_sent: 0,
                    wakes_open: 0,
                },
            );
            let agent = &state.agents[*agent];
            (state.teams[agent.team], agent.id)
        };
        let build = self.store.live_build(team.id, agent_id).await?;
        let start = StartRun {
            team: team.id,
            id,
            agent: agent_id,
            source: RunSource::Api,
            sandbox: sandbox.clone(),
            webhook_url: webhook.map(url_of),
            human_request_webhook_url: human_webhook.map(url_of),
            untrusted: false,
            message: message.then(|| (self.ids.message(now), Request::text(number))),
            by: team.owner.into(),
            sandbox_ttl_ms: 3_600_000,
            api_key: None,
            expected_build: Some(build.usable()),
            now,
        };
        let once = Idempotent {
            idem: key.map(|key| idem(team.key, "/v1/runs".to_owned(), key)),
            render: started,
        };
        Ok(match self.store.start_run(start, once).await? {
            Outcome::Executed(view) => Some(RunId::from_stored(view.run.id)),
            Outcome::Replayed(answer) => {
                self.world.state().saw("start replayed");
                String::from_utf8_lossy(&answer.body).parse().ok()
            }
        })
    }

    async fn message(
        &self,
        number: usize,
        run: RunId,
        key: Option<String>,
        now: Timestamp,
    ) -> Result<Option<RunId>, StoreError> {
        if self.world.sabotages(Sabotage::DropsMessages) && number.is_multiple_of(3) {
            return Ok(None);
        }
        let (team, owner) = self.team_of(run);
        let message = PostMessage {
            team,
            run,
            id: self.ids.message(now),
            text: Request::text(number),
            untrusted: false,
            by: owner.into(),
            now,
        };
        let once = self.once(key, "/messages", run, |body: &MessageBody| {
            stored(&body.id.to_string())
        });
        self.store.post_message(message, once).await.map(|_| None)
    }

    async fn answer(
        &self,
        run: RunId,
        request: HumanRequestId,
        answer: HumanAnswer,
        key: Option<String>,
        now: Timestamp,
    ) -> Result<Option<RunId>, StoreError> {
        let (team, owner) = self.team_of(run);
        let answer = match answer {
            HumanAnswer::Approval { reason, .. }
                if self.world.sabotages(Sabotage::DeniesApprovals) =>
            {
                let approved = false;
                HumanAnswer::Approval { approved, reason }
            }
            answer => answer,
        };
        let respond = Respond {
            team,
            run,
            request,
            answer,
            by: owner.into(),
            now,
        };
        let path = format!("/human-requests/{request}/respond");
        let once = self.once(key, &path, run, |body: &AnsweredRequestBody| {
            stored(&body.id.to_string())
        });
        self.store.respond(respond, once).await.map(|_| None)
    }

    pub(crate) fn once<T>(
        &self,
        key: Option<String>,
        path: &str,
        run: RunId,
        render: fn(&T) -> StoredAnswer,
    ) -> Idempotent<T> {
        let api_key = {
            let state = self.world.state();
            state.teams[state.agents[state.runs[&run].agent].team].key
        };
        Idempotent {
            idem: key.map(|key| idem(api_key, format!("/v1/runs/{run}{path}"), key)),
            render,
        }
    }

    pub(crate) fn team_of(&self, run: RunId) -> (errand_core::id::TeamId, errand_core::id::UserId) {
        let state = self.world.state();
        let team = state.teams[state.agents[state.runs[&run].agent].team];
        (team.id, team.owner)
    }

    /// Records an answered stop: nothing of the run may begin until something is sent that resumes it.
    fn record_stop(&self, attempt: &Try) {
        let mut state = self.world.state();
        for (run, sent_before) in &attempt.halts {
            if let Some(known) = state.runs.get_mut(run)
                && known.wakes_sent == *sent_before
            {
                known.halted = true;
            }
        }
    }

    fn record_response(&self, attempt: &Try, heard: Result<Option<RunId>, StoreError>) {
        let number = attempt.number;
        let now = self.world.now();
        let mut state = self.world.state();
        let heard = match heard {
            Ok(run) => Heard::Accepted(run),
            Err(why) if why.is_passing() => {
                state.note(now, &format!("request {number} gets no response: {why}"));
                return;
            }
            Err(
                error @ (StoreError::Refused(_)
                | StoreError::Invalid { .. }
                | StoreError::Conflict(_)),
            ) => Heard::Refused(error.to_string()),
            Err(error) => {
                let detail = format!(
                    "request {number} got a response that the contract does not allow: {error}"
                );
                state.broken(now, Invariant::Answers, detail);
                return;
            }
        };
        state.note(now, &format!("request {number} gets {heard:?}"));
        let want = state.requests[number].want.clone();
        if matches!((&want, &heard), (Want::Answer { .. }, Heard::Refused(_))) {
            state.saw("answer refused");
        }
        let request = &mut state.requests[number];
        request.answered += 1;
        match (&request.heard, &heard) {
            // The recorded response must be repeated, even if the run has changed since.
            (Some(Heard::Accepted(before)), Heard::Accepted(again)) if before != again => {
                let detail = format!("request {number} started {before:?} and {again:?}");
                state.broken(now, Invariant::StartedOnce, detail);
            }
            // A refusal is not recorded: of two simultaneous attempts, the refused one may have come first and respond
            // last.
            (Some(Heard::Accepted(_)), Heard::Refused(why)) if attempt.known => {
                let detail =
                    format!("request {number} was accepted, but its repetition was refused: {why}");
                state.broken(now, Invariant::Answers, detail);
            }
            (Some(Heard::Accepted(_)), _) => {}
            (_, _) => {
                request.heard = Some(heard.clone());
                state.second_answer(now, number, &want, &heard);
            }
        }
    }
}

impl super::world::State {
    fn second_answer(&mut self, now: Timestamp, number: usize, want: &Want, heard: &Heard) {
        let (Want::Answer { request, .. }, Heard::Accepted(_)) = (want, heard) else {
            return;
        };
        let others = self.answers.get(request).into_iter().flatten();
        let first = others
            .filter(|other| **other != number)
            .find(|other| matches!(self.requests[**other].heard, Some(Heard::Accepted(_))));
        if let Some(first) = first {
            let detail = format!("requests {first} and {number} both answered {request}");
            self.broken(now, Invariant::OneAnswer, detail);
        }
    }
}

/// The request in one line, for the log.
fn describe(want: &Want) -> String {
    match want {
        Want::Start { agent, sandbox, .. } => {
            format!("start agent {agent} (sandbox: {})", sandbox.is_some())
        }
        Want::Fork(fork) => format!("fork {} after {} messages", short(fork.of), fork.copies),
        Want::Message { run } => format!("message to {}", short(run)),
        Want::Answer {
            run, request, word, ..
        } => format!("answer {} of {}: {word}", short(request), short(run)),
        Want::Stop { run } => format!("stop {}", short(run)),
        Want::Retry { run } => format!("retry {}", short(run)),
    }
}

/// The recorded response to a start or a fork.
pub(crate) fn started(view: &RunView) -> StoredAnswer {
    stored(&view.run.id.to_string())
}

fn stored(body: &str) -> StoredAnswer {
    StoredAnswer {
        status: 201,
        body: body.as_bytes().to_vec(),
    }
}

fn idem(api_key: errand_core::id::ApiKeyId, path: String, key: String) -> Idem {
    Idem {
        api_key,
        method: "POST",
        path,
        body_sha256: Sha256::digest(key.as_bytes()).into(),
        key,
    }
}

/// Draws a random answer, and returns it with its form in the transcript. Some do not fit the request.
pub(crate) fn draw_answer(random: &mut Random, request: &HumanRequest) -> (HumanAnswer, String) {
    match &request.ask {
        Ask::Approval => {
            let approved = random.chance(650);
            let reason = random.chance(300).then(|| "because".to_owned());
            let word = if approved { "approved" } else { "denied" };
            (HumanAnswer::Approval { approved, reason }, word.to_owned())
        }
        Ask::Question { questions } => {
            let mut answers = Map::new();
            for question in questions {
                let label = match random.below(10) {
                    0 => "none of them".to_owned(),
                    _ if question.options.is_empty() => "yes".to_owned(),
                    _ => random.pick(&question.options).label.clone(),
                };
                answers.insert(question.question.clone(), json!(label));
            }
            if random.chance(50) {
                answers.clear();
            }
            let word = serde_json::Value::Object(answers.clone()).to_string();
            (HumanAnswer::Answers(answers), word)
        }
    }
}

/// Whether an answer allows a call to run.
pub(crate) fn lets_run(answer: &HumanAnswer) -> bool {
    match answer {
        HumanAnswer::Approval { approved, .. } => *approved,
        HumanAnswer::Answers(answers) => answers.values().any(|answer| answer == NOT_DONE),
    }
}

/// The clients' tasks, so that they can be disconnected.
#[derive(Default)]
pub(crate) struct Tasks(Mutex<Vec<tokio::task::AbortHandle>>);

impl Tasks {
    pub(crate) fn add(&self, task: tokio::task::AbortHandle) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Disconnects a random client; returns false if there is none.
    pub(crate) fn cut_one(&self, random: &mut Random) -> bool {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        if tasks.is_empty() {
            return false;
        }
        let index = random.index(tasks.len());
        tasks.remove(index).abort();
        true
    }

    /// Disconnects all clients.
    pub(crate) fn cut_all(&self) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.drain(..).for_each(|task| task.abort());
    }
}
