//! The clients. Each takes one run after another through its life, and records the responses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::caller::{Call, Caller, Refused};
use super::plan::{ANSWER, Kind, Planned, QUESTION, SECOND_MESSAGE, Upload};
use super::progress::Progress;
use super::receiver::Receiver;

/// Number of runs at the same time.
const CLIENTS: usize = 16;
/// Minimum and maximum pause between two polls of a run.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOK_EVERY_MAX: Duration = Duration::from_millis(80);

/// FaultKind a client knows about a run.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientRecord {
    /// IDs that the server returned for its start: exactly one, however often the call was repeated.
    pub(super) ids: BTreeSet<String>,
    /// The first refusal.
    pub(super) refused: Option<String>,
}

/// ClientRecords by number of the run.
pub(super) type ClientRecords = BTreeMap<u64, ClientRecord>;

/// State that all clients share.
pub(super) struct Clients {
    pub(super) caller: Arc<Caller>,
    pub(super) progress: Arc<Progress>,
    pub(super) receiver: Receiver,
    /// Agent IDs by kind.
    pub(super) agents: BTreeMap<Kind, String>,
    stories: Mutex<ClientRecords>,
}

impl Clients {
    /// Creates the agents.
    pub(super) async fn new(
        caller: Arc<Caller>,
        progress: Arc<Progress>,
        receiver: Receiver,
    ) -> Result<Self, Refused> {
        let mut agents = BTreeMap::new();
        for kind in Kind::ALL {
            let key = format!("agent {}", kind.name());
            let call = Call::post("/v1/agents", &kind.agent(), key);
            let made = caller.json(&call).await?;
            agents.insert(kind, text(&made, "/agent/id")?);
        }
        Ok(Self {
            caller,
            progress,
            receiver,
            agents,
            stories: Mutex::default(),
        })
    }

    pub(super) fn stories(&self) -> ClientRecords {
        let stories = self.stories.lock();
        stories.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, number: u64, note: impl FnOnce(&mut ClientRecord)) {
        let mut stories = self.stories.lock().unwrap_or_else(PoisonError::into_inner);
        note(stories.entry(number).or_default());
    }

    /// Takes all runs through their lives. Dropping the future abandons runs that hang.
    pub(super) async fn live(self: &Arc<Self>, plan: &[Planned]) {
        let queue = Arc::new(Mutex::new(plan.iter().cloned().collect::<VecDeque<_>>()));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (this, queue) = (Arc::clone(self), Arc::clone(&queue));
            clients.spawn(async move {
                let next = || {
                    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    queue.pop_front()
                };
                while let Some(planned) = next() {
                    if let Err(refused) = this.one(&planned).await {
                        this.note(planned.number, |story| story.refused = Some(refused.why));
                    }
                }
            });
        }
        while clients.join_next().await.is_some() {}
    }

    async fn one(&self, planned: &Planned) -> Result<(), Refused> {
        let number = planned.number;
        let sandbox = match planned.uploads() {
            uploads if uploads.is_empty() => None,
            uploads => Some(self.sandbox_with(number, uploads).await?),
        };
        let run = self.start(planned, sandbox).await?;
        self.progress.step();
        match planned.kind {
            Kind::Files | Kind::Timer | Kind::Uploads => {}
            Kind::Approval | Kind::Permission => {
                let answer = json!({"approved": planned.choice});
                self.respond(number, &run, &answer).await?;
            }
            Kind::Question => {
                let answer = json!({"answers": {QUESTION: ANSWER}});
                self.respond(number, &run, &answer).await?;
            }
            Kind::Message => {
                self.until_asks(&run).await?;
                self.message(number, &run).await?;
            }
            Kind::Resume => {
                self.until_ended(&run).await?;
                self.message(number, &run).await?;
            }
            Kind::Stop => {
                if planned.choice {
                    let timer = |got: &Value| kind_of_wait(got) == Some("timer");
                    self.until(&run, "wait for its timer", timer).await?;
                }
                let call = Call::post(
                    format!("/v1/runs/{run}/stop"),
                    &json!({}),
                    format!("stop {number}"),
                );
                self.caller.json(&call).await?;
                self.progress.step();
            }
        }
        self.until_ended(&run).await
    }

    async fn sandbox_with(&self, number: u64, uploads: Vec<Upload>) -> Result<String, Refused> {
        let key = format!("sandbox {number}");
        let made = self
            .caller
            .json(&Call::post("/v1/sandboxes", &json!({}), key))
            .await?;
        let sandbox = text(&made, "/sandbox_id")?;
        for upload in uploads {
            let Upload {
                path,
                bytes,
                by_url,
            } = upload;
            let key = format!("upload {number} {path}");
            let call = if by_url {
                let urls = format!("/v1/sandboxes/{sandbox}/upload-urls");
                let made = Call::post(urls, &json!({ "path": path }), key);
                let url = text(&self.caller.json(&made).await?, "/upload_url")?;
                Call::file(Method::PUT, path_of(&url)?, bytes, None)
            } else {
                let files = format!("/v1/sandboxes/{sandbox}/files?path={path}");
                Call::file(Method::POST, files, bytes, Some(key))
            };
            self.caller.json(&call).await?;
            self.progress.step();
        }
        Ok(sandbox)
    }

    /// Starts the run, sometimes with two concurrent requests.
    async fn start(&self, planned: &Planned, sandbox: Option<String>) -> Result<String, Refused> {
        let number = planned.number;
        let mut body = json!({
            "agent_id": self.agents.get(&planned.kind),
            "message": planned.message(),
            "webhook_url": self.receiver.url(number),
        });
        if let (Some(sandbox), Some(body)) = (sandbox, body.as_object_mut()) {
            body.insert("sandbox_id".to_owned(), sandbox.into());
        }
        let call = Call::post("/v1/runs", &body, format!("run {number}"));
        let once = async {
            let started = self.caller.json(&call).await?;
            let id = text(&started, "/run/id")?;
            self.note(number, |story| story.ids.extend([id.clone()]));
            Ok(id)
        };
        if planned.twice {
            let again = async { self.caller.json(&call).await };
            let (id, again) = tokio::join!(once, again);
            let again = text(&again?, "/run/id")?;
            self.note(number, |story| story.ids.extend([again]));
            id
        } else {
            once.await
        }
    }

    async fn respond(&self, number: u64, run: &str, answer: &Value) -> Result<(), Refused> {
        let request = self.until_asks(run).await?;
        let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
        let call = Call::post(path, answer, format!("respond {number}"));
        self.caller.json(&call).await?;
        self.progress.step();
        Ok(())
    }

    async fn message(&self, number: u64, run: &str) -> Result<(), Refused> {
        let call = Call::post(
            format!("/v1/runs/{run}/messages"),
            &json!({"message": SECOND_MESSAGE}),
            format!("message {number}"),
        );
        self.caller.json(&call).await?;
        self.progress.step();
        Ok(())
    }

    /// Waits until the run asks, and returns the ID of the request.
    async fn until_asks(&self, run: &str) -> Result<String, Refused> {
        let asks = |got: &Value| got.pointer("/pending_human_request/id").is_some();
        let got = self.until(run, "ask", asks).await?;
        text(&got, "/pending_human_request/id")
    }

    async fn until_ended(&self, run: &str) -> Result<(), Refused> {
        self.until(run, "end", has_ended).await?;
        self.progress.step();
        Ok(())
    }

    /// Polls until the run has the wanted state. Refused if the run ends in another way.
    async fn until(
        &self,
        run: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Refused> {
        let mut pause = LOOK_EVERY;
        loop {
            let got = self
                .caller
                .json(&Call::get(format!("/v1/runs/{run}")))
                .await?;
            if wanted(&got) {
                return Ok(got);
            }
            if has_ended(&got) {
                return Err(Refused::new(format!("it ended but should {what}: {got}")));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_EVERY_MAX);
        }
    }
}

fn kind_of_wait(got: &Value) -> Option<&str> {
    got.pointer("/run/waiting_on/kind")?.as_str()
}

/// Whether the response of `GET /v1/runs/{run_id}` shows a run that has ended.
pub(super) fn has_ended(got: &Value) -> bool {
    let status = got.pointer("/run/status").and_then(Value::as_str);
    matches!(status, Some("completed" | "failed" | "interrupted"))
}

/// A string in a response, by JSON pointer.
pub(super) fn text(answer: &Value, pointer: &str) -> Result<String, Refused> {
    let text = answer.pointer(pointer).and_then(Value::as_str);
    text.map(str::to_owned)
        .ok_or_else(|| Refused::new(format!("a response has no {pointer}: {answer}")))
}

/// Path and query of a URL. Its host may name a port that the server had earlier.
fn path_of(url: &str) -> Result<String, Refused> {
    let url = url::Url::parse(url).map_err(|error| Refused::new(format!("{url:?}: {error}")))?;
    let query = url.query().map(|query| format!("?{query}"));
    Ok(format!("{}{}", url.path(), query.unwrap_or_default()))
}
