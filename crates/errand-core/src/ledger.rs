//! The ledger: what a transcript adds up to. Fed entry by entry, it costs the same for the ten-thousandth as for the first.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use crate::connection;
use crate::content::{Content, Read};
use crate::human::{Ask, HumanRequest, OnExpire, Origin, Resolution};
use crate::id::{ClaimToken, HumanRequestId};
use crate::policy::{self, Hints};
use crate::progress::Progress;
use crate::time::Timestamp;
use crate::transcript::{Body, Entry, Outcome, ToolCall};

/// Words of the options with which a person settles a call in doubt.
pub const DONE: &str = "done";
/// See [`DONE`].
pub const NOT_DONE: &str = "not done, run it";
/// See [`DONE`].
pub const SKIP: &str = "skip";
/// The question about a call in doubt.
pub const IN_DOUBT_QUESTION: &str = "Was it done?";
/// In the evidence of a call's intent: the run that the call starts.
pub const STARTED_RUN: &str = "run";

/// The text of an opening that names no file.
pub const OPENING: &str = "Begin.";

/// With these words, and a colon, begin errors of tools that hold nothing but the engine's own words and what the call
/// itself said. In any other error of a tool that brings untrusted content there may be some: the last lines of a
/// command, a name that was found, the address that a page leads to.
const OWN_WORDS: [&str; 20] = [
    "bad_arguments",
    "busy",
    "denied",
    "internal",
    "interrupted",
    "invalid_arguments",
    "is_a_directory",
    "no_space",
    "not_a_directory",
    "not_a_regular_file",
    "not_found",
    "not_run",
    "outcome_unknown",
    "reserved_name",
    "sandbox_missing",
    "skipped",
    "too_large",
    "unavailable",
    "unknown_tool",
    "unreadable_document",
];

/// Whether a tool that brings untrusted content may have brought some with this outcome.
fn may_hold_content(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Result(_) => true,
        Outcome::Error(error) => {
            let word = error
                .split_once(':')
                .map_or(error.as_str(), |(word, _)| word);
            !OWN_WORDS.contains(&word)
        }
    }
}

/// Whether a person has released a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Approval {
    /// Nobody was asked.
    NotAsked,
    /// Released, for exactly the call with this digest, to where it went then.
    Given {
        /// See [`ToolCall::digest`].
        digest: String,
        /// See [`crate::next::Rules::target`].
        target: Option<String>,
    },
    /// Refused: the error that the call gets.
    Refused {
        /// A sentence.
        error: String,
    },
}

/// A call without a result.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenCall {
    /// The call.
    pub call: ToolCall,
    /// The claim under which it was begun, and what the tool noted to settle it.
    pub intent: Option<(ClaimToken, Option<Value>)>,
    /// A person's word.
    pub approval: Approval,
    /// What a person answered to the connection's server that asked during the call, and has not been given it yet.
    pub reply: Option<Resolution>,
    /// Who carried it out was lost: whether it took effect is not known.
    pub lost: bool,
    /// Where what it gives comes from; none: the tool says it.
    source: Option<Noted>,
    /// A retry makes it in place of an earlier one, with the same arguments, whose outcome nobody knew: the intent is
    /// that one's.
    pub repeats: Option<Repeats>,
}

/// What is known of the call that a retry repeats.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeats {
    /// What became of it after all, where that came late.
    pub late: Option<Outcome>,
}

/// What a call reads, in its own words: a path, a command, an address, or the arguments as JSON.
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

/// Whether what a tool gives is untrusted. Of a connection's the engine notes the source, where it is trusted.
fn brings_untrusted(name: &str) -> bool {
    policy::builtin(name).is_none_or(|h: Hints| h.untrusted)
}

/// Whether what a tool gives is private. Of a connection's the engine notes it; where it did not, it counts as such.
fn brings_private(name: &str) -> bool {
    policy::builtin(name).is_none_or(|h: Hints| h.private)
}

/// Where what a call gives comes from.
#[derive(Clone, Debug, PartialEq)]
struct Noted {
    from: String,
    trusted: bool,
    private: bool,
}

/// What a transcript adds up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// The position of the last entry.
    pub position: u64,
    /// The position of the newest user's message; 0 where there is none.
    pub newest_user: u64,
    /// Calls without a result, in order.
    pub open: VecDeque<OpenCall>,
    /// The request that is pending.
    pub request: Option<HumanRequest>,
    /// The moment that is waited for.
    pub timer: Option<Timestamp>,
    /// What untrusted and what private content came into the run.
    pub content: Content,
    /// Attempts in a row at which a network model gave no answer.
    pub failures: u32,
    /// How often people have let the run go on beyond a limit, by the limit's name.
    pub allowed: BTreeMap<String, u32>,
    /// The limit beyond which a person did not let the run go on.
    pub refused: Option<String>,
    /// Whether the run's network model still gets anywhere, and which calls a person denied.
    pub progress: Progress,
    /// Calls of the last turn that were closed while their outcome was unknown.
    unknown: Vec<OpenCall>,
    /// The same, from before a retry: made again, they are in doubt.
    doubtful: Vec<OpenCall>,
}

impl Ledger {
    /// The ledger of a whole transcript.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut ledger = Self::default();
        entries.into_iter().for_each(|entry| ledger.feed(entry));
        ledger
    }

    /// Takes the next entry.
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
            Body::ToolCall { call, .. } => self.called(call),
            Body::ToolResult {
                call_id,
                name,
                outcome,
            } => {
                self.came(call_id, name, outcome, entry);
                self.closed(call_id, outcome);
            }
            Body::HumanRequest { request, .. } => self.request = Some(request.clone()),
            Body::HumanResponse {
                request_id,
                resolution,
                ..
            } => self.answered(*request_id, resolution),
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
                self.came_late(call_id, tool.as_deref(), outcome, entry);
            }
            // The model was told, and goes on.
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
                let noted = Noted {
                    from: from.clone(),
                    trusted: *trusted,
                    private: *private,
                };
                self.noted(call_id, noted, entry.at);
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

    fn noted(&mut self, call_id: &str, noted: Noted, at: Timestamp) {
        match self.open.iter_mut().find(|o| o.call.id == call_id) {
            Some(open) => open.source = Some(noted),
            // Of no call of this run: who started it has read it. Written before there was `Body::Caller`.
            None => {
                let read = Read::new("start", None, None, at);
                self.content.add(read, !noted.trusted, !noted.trusted);
            }
        }
    }

    fn called(&mut self, call: &ToolCall) {
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

    /// Notes what a call brought in. Where its source is noted, whatever came has come from there.
    fn came(&mut self, call_id: &str, name: &str, outcome: &Outcome, entry: &Entry) {
        let open = self.open.iter().find(|o| o.call.id == call_id);
        let noted = open.and_then(|o| o.source.as_ref());
        let holds = noted.is_some() || may_hold_content(outcome);
        let untrusted = noted.map_or_else(|| brings_untrusted(name), |noted| !noted.trusted);
        let private = noted.map_or_else(|| brings_private(name), |noted| noted.private);
        if !holds || !(untrusted || private) {
            return;
        }
        // Of a connection's call it is known where it goes; what it read is in its arguments.
        let from = noted.filter(|_| !connection::is_tool(name));
        let item = from
            .map(|noted| noted.from.clone())
            .or_else(|| open.and_then(|o| item_of(&o.call)));
        let read = Read::new(name, Some(call_id), item.as_deref(), entry.at);
        self.content
            .add(read.shown_at(entry.position), untrusted, private);
    }

    /// The same of an outcome that came after its call was closed. Its source is not noted, and its tool is not always
    /// known any more.
    fn came_late(&mut self, call_id: &str, tool: Option<&str>, outcome: &Outcome, entry: &Entry) {
        let untrusted = tool.is_none_or(brings_untrusted);
        let private = tool.is_none_or(brings_private);
        if may_hold_content(outcome) {
            let read = Read::new(tool.unwrap_or("late"), Some(call_id), None, entry.at);
            self.content
                .add(read.shown_at(entry.position), untrusted, private);
        }
    }

    fn closed(&mut self, call_id: &str, outcome: &Outcome) {
        let Some(at) = self.open.iter().position(|o| o.call.id == call_id) else {
            return;
        };
        let unknown =
            matches!(outcome, Outcome::Error(error) if error.starts_with("outcome_unknown"));
        self.unknown.extend(
            self.open
                .remove(at)
                .filter(|open| unknown && open.intent.is_some()),
        );
    }

    fn answered(&mut self, id: HumanRequestId, resolution: &Resolution) {
        let Some(request) = self.request.take_if(|r| r.id == id) else {
            return;
        };
        if let Origin::Limit { limit } = &request.origin {
            match resolution {
                Resolution::Approved { .. } => {
                    *self.allowed.entry(limit.clone()).or_default() += 1;
                    self.progress.approved(limit);
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
            self.progress.denied(call_id);
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
                        error: format!("denied: a person refused the call: {reason}"),
                    },
                    (Resolution::Expired { .. }, _) => Approval::Refused {
                        error: "denied: nobody approved the call in time".to_owned(),
                    },
                    _ => Approval::Refused {
                        error: "denied: a person refused the call".to_owned(),
                    },
                };
            }
            // `not done, run it`: the person's word stands for the approval, and the old intent is void.
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

    /// What a resolution appends besides itself: results of the calls that it settles or closes.
    ///
    /// A person's answer settles the call that asked. A message or a stop closes *every* open call: providers demand a
    /// result for each, and what has begun has an unknown outcome.
    #[must_use]
    pub fn results_of(&self, request: &HumanRequest, resolution: &Resolution) -> Vec<Body> {
        match resolution {
            Resolution::Message { .. } | Resolution::Stopped => {
                let mut bodies = self.close_open(if matches!(resolution, Resolution::Stopped) {
                    "the run was stopped"
                } else {
                    "a message came instead of an answer"
                });
                // An asking tool has its answer: the message. (A stop is none.)
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
                self.settled_by(request, resolution).into_iter().collect()
            }
        }
    }

    fn settled_by(&self, request: &HumanRequest, resolution: &Resolution) -> Option<Body> {
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
                Some(SKIP) => Outcome::Error(
                    "skipped: a person skipped the call; whether it was done is unknown".to_owned(),
                ),
                _ => Outcome::Error(
                    "outcome_unknown: nobody could say whether the call was done".to_owned(),
                ),
            },
        };
        Some(Body::ToolResult {
            call_id: open.call.id.clone(),
            name: open.call.name.clone(),
            outcome,
        })
    }

    /// A result for each open call: not begun, or begun with an unknown outcome.
    #[must_use]
    pub fn close_open(&self, why: &str) -> Vec<Body> {
        self.open
            .iter()
            .map(|open| {
                let error = match &open.intent {
                    None => format!("not_run: {why}"),
                    Some((_, evidence)) => {
                        let started = evidence.as_ref().and_then(|e| e.get(STARTED_RUN)?.as_str());
                        let started = started
                            .map(|run| format!("; what the run {run} had done by then stands"));
                        format!(
                            "outcome_unknown: {why} while the call was under way{}",
                            started.unwrap_or_default()
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

/// Which of the three options a person chose for a call in doubt.
fn in_doubt_answer(resolution: &Resolution) -> Option<&'static str> {
    let Resolution::Answered { answers } = resolution else {
        return None;
    };
    let given = answers.get(IN_DOUBT_QUESTION)?.as_str()?;
    [DONE, NOT_DONE, SKIP]
        .into_iter()
        .find(|option| *option == given)
}

/// Whether a request that lapses ends the run.
#[must_use]
pub fn lapse_fails(request: &HumanRequest) -> bool {
    request.on_expire == OnExpire::Fail
}

/// A request's questions, where it has any.
#[must_use]
pub fn questions(request: &HumanRequest) -> &[crate::human::Question] {
    match &request.ask {
        Ask::Approval => &[],
        Ask::Question { questions } => questions,
    }
}
