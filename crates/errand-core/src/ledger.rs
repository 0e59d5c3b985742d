//! The ledger: the state that a transcript adds up to.
//!
//! # Guarantees
//!
//! It is fed entry by entry, in order, and each entry costs the same, however long the transcript is. A ledger that is
//! fed after a restart equals the one that was in memory before.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use crate::connection;
use crate::content::{Content, Read};
use crate::human::{Ask, HumanRequest, OnExpire, Origin, Resolution};
use crate::id::{ClaimToken, HumanRequestId};
use crate::policy::{self, Hints};
use crate::progress::Progress;
use crate::time::Timestamp;
use crate::tool_error::{ToolError, ToolErrorCode};
use crate::transcript::{Body, Entry, Outcome, ToolCall};

/// The option by which a person declares that a call in doubt was done.
pub const DONE: &str = "done";
/// The option by which a person declares that a call in doubt was not done, and has it executed.
pub const NOT_DONE: &str = "not done, run it";
/// The option by which a person leaves a call in doubt as it is.
pub const SKIP: &str = "skip";
/// The question about a call in doubt. Also the key of its answer, so stored answers depend on it.
pub const IN_DOUBT_QUESTION: &str = "Was it done?";
/// Key in the evidence of a call's intent: the run that the call started.
pub const STARTED_RUN: &str = "run";

/// The text of an opening that lists no files.
pub const OPENING: &str = "Begin.";

/// Whether this outcome of a tool that returns untrusted content may contain some of it.
fn may_hold_content(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Result(_) => true,
        Outcome::Error(error) => error.may_hold_content(),
    }
}

/// Whether a person has approved a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Approval {
    NotAsked,
    /// Approved: exactly the call with this digest, at the target it had then.
    Given {
        /// See [`ToolCall::digest`].
        digest: String,
        /// See [`crate::next::Rules::target`].
        target: Option<String>,
    },
    /// Denied, or not approved in time.
    Refused {
        /// The error result that the call gets.
        error: ToolError,
    },
}

/// A tool call without a result.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenCall {
    pub call: ToolCall,
    /// The claim under which execution began, and the tool's evidence to settle the call later.
    pub intent: Option<(ClaimToken, Option<Value>)>,
    pub approval: Approval,
    /// A person's answer to the connection's server that asked during the call, until it is handed to the server.
    pub reply: Option<Resolution>,
    /// The server that executed the call was lost: whether the call took effect is unknown.
    pub lost: bool,
    /// The source of what the call returns. `None`: the tool itself determines it.
    source: Option<NotedSource>,
    /// Set if a retry repeats an earlier call with the same arguments whose outcome was unknown. `intent` is then the
    /// earlier call's.
    pub repeats: Option<Repeats>,
}

/// The earlier call that a retry repeats, as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeats {
    /// The earlier call's outcome, if it arrived late.
    pub late: Option<Outcome>,
}

/// The thing that a call reads, in the call's own words: a path, a command, a URL, or the arguments as JSON.
fn item_of(call: &ToolCall) -> Option<String> {
    let key = match call.name.as_str() {
        "run_command" => "command",
        "fetch_url" => "url",
        _ => "path",
    };
    match call.arguments.get(key).and_then(Value::as_str) {
        Some(text) => Some(text.to_owned()),
        None if call.arguments.is_empty() => None,
        None => Some(Value::Object(call.arguments.clone()).to_string()),
    }
}

/// Whether a tool returns untrusted content. For a trusted tool of a connection, the engine records a source instead.
fn brings_untrusted(name: &str) -> bool {
    policy::builtin(name).is_none_or(|h: Hints| h.untrusted)
}

/// Whether a tool returns private content. For a connection's tool, the engine records it; without a record it counts
/// as private.
fn brings_private(name: &str) -> bool {
    policy::builtin(name).is_none_or(|h: Hints| h.private)
}

/// The recorded source of what a call returns.
#[derive(Clone, Debug, PartialEq)]
struct NotedSource {
    from: String,
    trusted: bool,
    private: bool,
}

/// The state that a transcript adds up to. [`crate::next::next`] decides from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// The position of the last entry.
    pub position: u64,
    /// The position of the newest user message; 0 if there is none.
    pub newest_user: u64,
    /// Calls without a result, in the order in which the model made them.
    pub open: VecDeque<OpenCall>,
    /// The pending human request.
    pub request: Option<HumanRequest>,
    /// When the timer that the run waits for is due.
    pub timer: Option<Timestamp>,
    /// The untrusted and the private content that the run has read.
    pub content: Content,
    /// Consecutive attempts in which a network model gave no usable answer.
    pub failures: u32,
    /// How often a person allowed the run to continue beyond a limit, by the limit's name.
    pub allowed: BTreeMap<String, u32>,
    /// The limit beyond which a person did not allow the run to continue.
    pub refused: Option<String>,
    /// Whether the network model makes progress, and which calls a person denied.
    pub progress: Progress,
    /// Calls of the last turn that were closed with an unknown outcome.
    unknown: Vec<OpenCall>,
    /// Such calls from before a retry: if the model makes one of them again, it is in doubt.
    doubtful: Vec<OpenCall>,
}

impl Ledger {
    /// Builds the ledger of a whole transcript.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut ledger = Self::default();
        entries.into_iter().for_each(|entry| ledger.feed(entry));
        ledger
    }

    /// Adds the next entry.
    pub fn feed(&mut self, entry: &Entry) {
        self.position = entry.position;
        self.progress.feed(&entry.body);
        match &entry.body {
            Body::User { untrusted, .. } => {
                self.newest_user = entry.position;
                if *untrusted {
                    let id = entry.id.to_string();
                    let read = Read::new("message", None, Some(&id), entry.at);
                    self.content.add(read.shown_at(entry.position), true, false);
                }
            }
            Body::ToolCall { call, .. } => self.open_call(call),
            Body::ToolResult {
                call_id,
                name,
                outcome,
            } => {
                self.record_read(call_id, name, outcome, entry);
                self.close_call(call_id, outcome);
            }
            Body::HumanRequest { request, .. } => self.request = Some(request.clone()),
            Body::HumanResponse {
                request_id,
                resolution,
                ..
            } => self.apply_resolution(*request_id, resolution),
            Body::Intent {
                call_id,
                claim,
                evidence,
            } => {
                if let Some(open) = self.open.iter_mut().find(|o| &o.call.id == call_id) {
                    open.intent = Some((*claim, evidence.clone()));
                    open.repeats = None;
                    open.reply = None;
                    open.lost = false;
                }
            }
            Body::Wait { until, .. } => self.timer = Some(*until),
            Body::Woke { .. } => self.timer = None,
            Body::Interrupted { .. } => {
                self.timer = None;
                self.failures = 0;
            }
            Body::Retried { .. } => {
                self.doubtful = std::mem::take(&mut self.unknown);
                self.failures = 0;
                self.refused = None;
            }
            Body::ModelFailed { attempt, until, .. } => {
                self.timer = Some(*until);
                self.failures = *attempt;
            }
            Body::ModelCall { .. } => self.failures = 0,
            Body::Late { call_id, outcome } => {
                let mut unknown = self.unknown.iter_mut().chain(&mut self.doubtful);
                let mut tool = None;
                if let Some(call) = unknown.find(|o| &o.call.id == call_id) {
                    call.repeats = Some(Repeats {
                        late: Some(outcome.clone()),
                    });
                    tool = Some(call.call.name.clone());
                }
                self.record_late_read(call_id, tool.as_deref(), outcome, entry);
            }
            // The model has seen the error results and decided to continue, so these calls are settled.
            Body::Assistant { .. } => self.unknown.clear(),
            Body::Error { .. } => {
                self.timer = None;
                self.failures = 0;
            }
            Body::Opening { text } => {
                if text != OPENING {
                    let read = Read::new("list_files", None, Some("/workspace"), entry.at);
                    self.content.add(read.shown_at(entry.position), true, true);
                }
            }
            Body::Summary { .. } => {}
            Body::Source {
                call_id,
                from,
                trusted,
                private,
            } => {
                let noted = NotedSource {
                    from: from.clone(),
                    trusted: *trusted,
                    private: *private,
                };
                self.note_source(call_id, noted, entry.at);
            }
            Body::Caller { content, .. } => self.content.take_over(content),
            Body::Lost { call_id } => {
                if let Some(open) = self.open.iter_mut().find(|o| &o.call.id == call_id) {
                    open.reply = None;
                    open.lost = true;
                }
            }
            Body::ToolsChanged { .. } | Body::ModelAttempt { .. } => {}
        }
    }

    fn note_source(&mut self, call_id: &str, noted: NotedSource, at: Timestamp) {
        match self.open.iter_mut().find(|o| o.call.id == call_id) {
            Some(open) => open.source = Some(noted),
            // Belongs to no call of this run: transcripts from before `Body::Caller` recorded this way what the run
            // that started this one had read.
            None => {
                let read = Read::new("start", None, None, at);
                self.content.add(read, !noted.trusted, !noted.trusted);
            }
        }
    }

    fn open_call(&mut self, call: &ToolCall) {
        self.unknown.clear();
        let same = |o: &OpenCall| o.call.name == call.name && o.call.arguments == call.arguments;
        let repeated = self
            .doubtful
            .iter()
            .position(same)
            .map(|at| self.doubtful.remove(at));
        let (intent, repeats) = match repeated {
            Some(earlier) => (
                earlier.intent,
                Some(earlier.repeats.unwrap_or(Repeats { late: None })),
            ),
            None => (None, None),
        };
        self.open.push_back(OpenCall {
            call: call.clone(),
            intent,
            approval: Approval::NotAsked,
            reply: None,
            lost: false,
            source: None,
            repeats,
        });
    }

    /// Records the content that a call brought in. A recorded source takes precedence over what the tool's hints say.
    fn record_read(&mut self, call_id: &str, name: &str, outcome: &Outcome, entry: &Entry) {
        let open = self.open.iter().find(|o| o.call.id == call_id);
        let noted = open.and_then(|o| o.source.as_ref());
        let holds = noted.is_some() || may_hold_content(outcome);
        let untrusted = noted.map_or_else(|| brings_untrusted(name), |noted| !noted.trusted);
        let private = noted.map_or_else(|| brings_private(name), |noted| noted.private);
        if !holds || !(untrusted || private) {
            return;
        }
        // For a connection's call, the target is known already and the arguments say what was read.
        let from = noted.filter(|_| !connection::is_tool(name));
        let item = from
            .map(|noted| noted.from.clone())
            .or_else(|| open.and_then(|o| item_of(&o.call)));
        let read = Read::new(name, Some(call_id), item.as_deref(), entry.at);
        self.content
            .add(read.shown_at(entry.position), untrusted, private);
    }

    /// Records the content of an outcome that arrived after its call was closed. No source was recorded for it, and the
    /// tool may be unknown by now; then both kinds of content are assumed.
    fn record_late_read(
        &mut self,
        call_id: &str,
        tool: Option<&str>,
        outcome: &Outcome,
        entry: &Entry,
    ) {
        let untrusted = tool.is_none_or(brings_untrusted);
        let private = tool.is_none_or(brings_private);
        if may_hold_content(outcome) {
            let read = Read::new(tool.unwrap_or("late"), Some(call_id), None, entry.at);
            self.content
                .add(read.shown_at(entry.position), untrusted, private);
        }
    }

    fn close_call(&mut self, call_id: &str, outcome: &Outcome) {
        let Some(at) = self.open.iter().position(|o| o.call.id == call_id) else {
            return;
        };
        // Without an intent the call never began, so there is no doubt to carry over to a retry.
        let unknown = matches!(outcome, Outcome::Error(error) if error.code() == ToolErrorCode::OutcomeUnknown);
        self.unknown.extend(
            self.open
                .remove(at)
                .filter(|open| unknown && open.intent.is_some()),
        );
    }

    fn apply_resolution(&mut self, id: HumanRequestId, resolution: &Resolution) {
        let Some(request) = self.request.take_if(|r| r.id == id) else {
            return;
        };
        if let Origin::Limit { limit } = &request.origin {
            match resolution {
                Resolution::Approved { .. } => {
                    *self.allowed.entry(limit.clone()).or_default() += 1;
                    self.progress.reset_after_approval(limit);
                }
                Resolution::Denied { .. } | Resolution::Expired { .. } => {
                    self.refused = Some(limit.clone());
                }
                Resolution::Answered { .. } | Resolution::Message { .. } | Resolution::Stopped => {}
            }
            return;
        }
        let Some(open) = request
            .call_id()
            .and_then(|call_id| self.open.iter_mut().find(|o| o.call.id == call_id))
        else {
            return;
        };
        if let (
            Origin::Policy { call_id, .. } | Origin::Tool { call_id },
            Resolution::Denied { .. },
        ) = (&request.origin, resolution)
        {
            self.progress.record_denial(call_id);
        }
        match &request.origin {
            Origin::Policy { target, .. } => {
                let target = target.clone();
                open.approval = match (resolution, request.digest) {
                    (Resolution::Approved { .. }, Some(digest)) => {
                        Approval::Given { digest, target }
                    }
                    (
                        Resolution::Denied {
                            reason: Some(reason),
                        },
                        _,
                    ) => Approval::Refused {
                        error: denied(format!("a person denied the call: {reason}")),
                    },
                    (Resolution::Expired { .. }, _) => Approval::Refused {
                        error: denied("no one approved the call in time"),
                    },
                    _ => Approval::Refused {
                        error: denied("a person denied the call"),
                    },
                };
            }
            // `not done, run it`: the person's answer serves as the approval, and the old intent no longer counts.
            Origin::InDoubt { target, .. } if in_doubt_answer(resolution) == Some(NOT_DONE) => {
                open.intent = None;
                open.repeats = None;
                open.lost = false;
                open.approval = Approval::Given {
                    digest: open.call.digest(),
                    target: target.clone(),
                };
            }
            Origin::Connection { .. } => open.reply = Some(resolution.clone()),
            Origin::InDoubt { .. } | Origin::Tool { .. } | Origin::Model | Origin::Limit { .. } => {
            }
        }
    }

    /// The entries that a resolution appends besides itself: results of the calls that it settles or closes.
    ///
    /// A person's answer settles the call that asked. A message or a stop closes *every* open call, because providers
    /// require a result for each call; those that had begun have an unknown outcome.
    #[must_use]
    pub fn results_of(&self, request: &HumanRequest, resolution: &Resolution) -> Vec<Body> {
        match resolution {
            Resolution::Message { .. } | Resolution::Stopped => {
                let mut bodies = self.close_open(if matches!(resolution, Resolution::Stopped) {
                    "the run was stopped"
                } else {
                    "a message arrived instead of an answer"
                });
                // A message is the answer to a tool that asks. (A stop is not.)
                if let (Origin::Tool { call_id }, Ok(value)) =
                    (&request.origin, resolution.value(&request.ask))
                {
                    for body in &mut bodies {
                        if let Body::ToolResult {
                            call_id: of,
                            outcome,
                            ..
                        } = body
                            && of == call_id
                        {
                            *outcome = Outcome::Result(value.clone());
                        }
                    }
                }
                bodies
            }
            Resolution::Approved { .. }
            | Resolution::Denied { .. }
            | Resolution::Answered { .. }
            | Resolution::Expired { .. } => {
                self.result_for(request, resolution).into_iter().collect()
            }
        }
    }

    fn result_for(&self, request: &HumanRequest, resolution: &Resolution) -> Option<Body> {
        let open = self
            .open
            .iter()
            .find(|o| Some(o.call.id.as_str()) == request.call_id())?;
        let outcome = match &request.origin {
            Origin::Model
            | Origin::Policy { .. }
            | Origin::Connection { .. }
            | Origin::Limit { .. } => return None,
            Origin::Tool { .. } => match resolution.value(&request.ask) {
                Ok(value) => Outcome::Result(value),
                Err(error) => Outcome::Error(error),
            },
            Origin::InDoubt { .. } => match in_doubt_answer(resolution) {
                Some(NOT_DONE) => return None,
                Some(DONE) => {
                    Outcome::Result(json!({"outcome": "done", "source": "a person looked"}))
                }
                Some(SKIP) => Outcome::error(
                    ToolErrorCode::Skipped,
                    "a person skipped the call; whether it was done is unknown",
                ),
                _ => Outcome::error(
                    ToolErrorCode::OutcomeUnknown,
                    "no one could say whether the call was done",
                ),
            },
        };
        Some(Body::ToolResult {
            call_id: open.call.id.clone(),
            name: open.call.name.clone(),
            outcome,
        })
    }

    /// A result for each open call: `not_run` if it had not begun, `outcome_unknown` if it had.
    #[must_use]
    pub fn close_open(&self, why: &str) -> Vec<Body> {
        self.open
            .iter()
            .map(|open| {
                let error = match &open.intent {
                    None => ToolError::new(ToolErrorCode::NotRun, why),
                    Some((_, evidence)) => {
                        let started = evidence.as_ref().and_then(|e| e.get(STARTED_RUN)?.as_str());
                        let started = started
                            .map(|run| format!("; what run {run} had done by then remains done"));
                        ToolError::new(
                            ToolErrorCode::OutcomeUnknown,
                            format!("{why} during the call{}", started.unwrap_or_default()),
                        )
                    }
                };
                Body::ToolResult {
                    call_id: open.call.id.clone(),
                    name: open.call.name.clone(),
                    outcome: Outcome::Error(error),
                }
            })
            .collect()
    }
}

fn denied(message: impl Into<String>) -> ToolError {
    ToolError::new(ToolErrorCode::Denied, message)
}

/// The option that a person chose for a call in doubt.
fn in_doubt_answer(resolution: &Resolution) -> Option<&'static str> {
    let Resolution::Answered { answers } = resolution else {
        return None;
    };
    let given = answers.get(IN_DOUBT_QUESTION)?.as_str()?;
    [DONE, NOT_DONE, SKIP]
        .into_iter()
        .find(|option| *option == given)
}

/// Whether the run fails when this request expires.
#[must_use]
pub fn lapse_fails(request: &HumanRequest) -> bool {
    request.on_expire == OnExpire::Fail
}

/// A request's questions; empty for an approval.
#[must_use]
pub fn questions(request: &HumanRequest) -> &[crate::human::Question] {
    match &request.ask {
        Ask::Approval => &[],
        Ask::Question { questions } => questions,
    }
}
