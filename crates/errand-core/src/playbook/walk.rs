//! The walk: a run's way through its playbook, rebuilt from the transcript.
//!
//! Recorded moves are taken in the order in which they stand in the transcript. The silent steps before a move are
//! evaluated with the message that the move's mark names, so that a later message never changes what was decided.
//! A decision that is not recorded yet is kept ready ([`Ahead`]): when its move comes, nothing is evaluated twice.

use std::collections::VecDeque;
use std::sync::Arc;

use minijinja::Value;
use serde_json::{Map, json};

use super::cursor::{Cursor, Found, Goal, View, read_path};
use super::json::from_json;
use super::template::{Fuel, Means, Names, Text, Users};
use super::{Action, DONE_TEXT, Evaluator, Playbook, Question, Request, RunFacts, Step};
use crate::human::{
    Ask, OnExpire, Origin, Question as Asked, QuestionOption, RequestDraft, Resolution,
    check_questions,
};
use crate::id::HumanRequestId;
use crate::limits::PLAYBOOK_MOVES_MAX;
use crate::time::parse_duration_ms;
use crate::transcript::{Body, Entry, Mark, Outcome};
use crate::turn::{MarkedMove, Move};

/// The code of a failure in the playbook itself.
const PLAYBOOK_FAILED: &str = "playbook_failed";
/// Fuel of a move that is decided at once: some 300 kB of texts.
const AT_ONCE_FUEL: u64 = 5_000;
/// Most recorded moves that are walked to at once: more are there after a restart.
const RECORDED_AT_ONCE_MAX: usize = 4;
/// Most bytes that a run holds whose moves are decided at once, unless its playbook is light: what is compared there.
const FED_AT_ONCE_MAX: usize = 32 * 1024;
/// What a person's answer is counted as.
const RESPONSE_BYTES: usize = 1024;
/// The code of a failed move.
const TOOL_FAILED: &str = "tool_failed";

/// A run's way through a playbook: fed with the transcript's entries in order, each once.
#[derive(Clone, Debug)]
pub struct Walk {
    playbook: Arc<Playbook>,
    users: Users,
    /// Recorded, and not yet walked to.
    recorded: VecDeque<Fact>,
    /// After the last recorded move that was walked to.
    cursor: Cursor,
    /// The move that failed and ended the run.
    failed: Option<Failed>,
    /// The transcript names a step that the playbook does not lead to.
    lost: Option<String>,
    /// The walk is over; a message beyond this position starts the steps again.
    ended: Option<u64>,
    ahead: Option<Ahead>,
    /// Room for what was fed, of a run whose moves are decided at once.
    room: usize,
}

#[derive(Clone, Debug)]
enum Fact {
    Move { mark: Mark, what: What },
    Retried,
}

/// A recorded move, and what became of it.
#[derive(Clone, Debug)]
enum What {
    Plain,
    Call {
        id: String,
        /// Shared, since a walk is cloned before a move is decided at once.
        outcome: Option<Arc<Outcome>>,
    },
    Request {
        id: HumanRequestId,
        ask: Ask,
        resolution: Option<Resolution>,
    },
}

#[derive(Clone, Debug)]
struct Failed {
    /// As it was before the move was decided.
    before: Cursor,
    path: String,
    message: String,
}

/// A decision that is not recorded yet.
#[derive(Clone, Debug)]
struct Ahead {
    run: RunFacts,
    /// At the step that makes the move.
    cursor: Cursor,
    decided: MarkedMove,
}

impl Walk {
    /// A walk that was fed nothing.
    #[must_use]
    pub fn new(playbook: Arc<Playbook>) -> Self {
        let cursor = Cursor::start(&playbook);
        Self {
            playbook,
            users: Arc::default(),
            recorded: VecDeque::new(),
            cursor,
            failed: None,
            lost: None,
            ended: None,
            ahead: None,
            room: FED_AT_ONCE_MAX,
        }
    }

    /// Takes the next entry of the transcript.
    pub fn feed(&mut self, entry: &Entry) {
        self.weigh(&entry.body);
        match &entry.body {
            Body::User { text, .. } => {
                Arc::make_mut(&mut self.users).push((entry.position, Arc::from(text.as_str())))
            }
            Body::Assistant {
                ends: true,
                mark: Some(mark),
                ..
            } => self.end(mark.message),
            Body::Assistant {
                ends: false,
                mark: Some(mark),
                ..
            }
            | Body::Wait {
                mark: Some(mark), ..
            } => {
                self.record(mark, What::Plain);
            }
            Body::ToolCall {
                call,
                mark: Some(mark),
            } => self.record(
                mark,
                What::Call {
                    id: call.id.clone(),
                    outcome: None,
                },
            ),
            Body::HumanRequest {
                request,
                mark: Some(mark),
            } => {
                self.record(
                    mark,
                    What::Request {
                        id: request.id,
                        ask: request.ask.clone(),
                        resolution: None,
                    },
                );
            }
            Body::ToolResult {
                call_id,
                outcome: result,
                ..
            } => {
                if let Some(Fact::Move {
                    what:
                        What::Call {
                            id,
                            outcome: outcome @ None,
                        },
                    ..
                }) = self.recorded.back_mut()
                    && id == call_id
                {
                    *outcome = Some(Arc::new(result.clone()));
                }
            }
            Body::HumanResponse {
                request_id,
                resolution: given,
                ..
            } => {
                if let Some(Fact::Move {
                    what:
                        What::Request {
                            id,
                            resolution: resolution @ None,
                            ..
                        },
                    ..
                }) = self.recorded.back_mut()
                    && id == request_id
                {
                    *resolution = Some(given.clone());
                }
            }
            Body::Interrupted { .. } => self.end(entry.position),
            Body::Retried { .. } => self.recorded.push_back(Fact::Retried),
            // A recorded failure changes nothing: what led to it is decided again only after `Retried`. What bears no
            // mark is not a move of the playbook.
            Body::Error { .. }
            | Body::Assistant { .. }
            | Body::ToolCall { .. }
            | Body::HumanRequest { .. }
            | Body::Wait { .. }
            | Body::Woke { .. }
            | Body::Intent { .. }
            | Body::Late { .. }
            | Body::Opening { .. }
            | Body::ModelCall { .. }
            | Body::ModelFailed { .. }
            | Body::ModelAttempt { .. }
            | Body::Summary { .. }
            | Body::Source { .. }
            | Body::Caller { .. }
            | Body::Lost { .. }
            | Body::ToolsChanged { .. } => {}
        }
    }

    /// The next move. Called only when no call is open, no request is pending and no timer is running.
    ///
    /// Pure in (playbook, fed entries, `run`): called again without an entry between, it gives the same. `run.id` must
    /// stay the same for the whole walk; `run.sandbox_id` may be given later.
    pub fn next(&mut self, run: &RunFacts) -> MarkedMove {
        self.advance(run, &Means::default())
    }

    /// The same, with somebody else to evaluate what is not cheap.
    pub fn next_with(&mut self, run: &RunFacts, evaluator: &dyn Evaluator) -> MarkedMove {
        let means = Means {
            evaluator: Some(evaluator),
            ..Means::default()
        };
        self.advance(run, &means)
    }

    /// The same, if it takes next to no time: `None` where it would take more, and nothing is changed.
    pub fn next_at_once(&mut self, run: &RunFacts) -> Option<MarkedMove> {
        let is_small = self.playbook.is_light() || self.room > 0;
        if !is_small || self.recorded.len() > RECORDED_AT_ONCE_MAX {
            return None;
        }
        let before = self.clone();
        let means = Means {
            at_once: Some(AT_ONCE_FUEL),
            ..Means::default()
        };
        let next = self.advance(run, &means);
        if means.ran_out.get() {
            *self = before;
            return None;
        }
        Some(next)
    }

    fn advance(&mut self, run: &RunFacts, means: &Means<'_>) -> MarkedMove {
        self.catch_up(run, means);
        let message = self.users.last().map_or(0, |(position, _)| *position);
        if let Some(bound) = self.ended
            && message <= bound
        {
            // Nothing new came: there is nothing to do.
            return marked(
                Move::Finish {
                    text: DONE_TEXT.to_owned(),
                },
                self.cursor.path(),
                message,
            );
        }
        if let Some(what) = &self.lost {
            return marked(fail(what.clone()), self.cursor.path(), message);
        }
        if let Some(failed) = &self.failed {
            let action = Move::Fail {
                code: TOOL_FAILED,
                message: failed.message.clone(),
            };
            return marked(action, failed.path.clone(), message);
        }
        if let Some(Fact::Move { mark, .. }) = self.recorded.front() {
            return marked(
                fail(format!("the move of step {} has no result yet", mark.path)),
                mark.path.clone(),
                message,
            );
        }
        if let Some(ahead) = &self.ahead
            && &ahead.run == run
            && ahead.message() == Some(message)
        {
            return ahead.decided.clone();
        }
        let mut cursor = self.cursor.clone();
        let action = decide(
            &mut cursor,
            &View {
                users: &self.users,
                message,
                run,
            },
            means,
        );
        let decided = marked(action, cursor.path(), message);
        self.ahead = Some(Ahead {
            run: run.clone(),
            cursor,
            decided: decided.clone(),
        });
        decided
    }

    /// Counts what a run holds, up to what is little.
    fn weigh(&mut self, body: &Body) {
        let bytes = match body {
            Body::User { text, .. } => text.len(),
            Body::ToolResult {
                outcome: Outcome::Result(value),
                ..
            } => bytes_of(value, self.room),
            Body::HumanResponse { .. } => RESPONSE_BYTES,
            _ => 0,
        };
        self.room = self.room.saturating_sub(bytes);
    }

    fn record(&mut self, mark: &Mark, what: What) {
        self.ended = None;
        self.recorded.push_back(Fact::Move {
            mark: mark.clone(),
            what,
        });
    }

    /// Everything before the next start is over, walked to or not.
    fn end(&mut self, bound: u64) {
        self.recorded.clear();
        self.cursor = Cursor::start(&self.playbook);
        self.failed = None;
        self.lost = None;
        self.ended = Some(bound);
        self.ahead = None;
    }

    /// Walks to all that is recorded and settled.
    fn catch_up(&mut self, run: &RunFacts, means: &Means<'_>) {
        while let Some(fact) = self.recorded.pop_front() {
            match fact {
                Fact::Retried => {
                    self.ahead = None;
                    if let Some(failed) = self.failed.take() {
                        self.cursor = failed.before;
                    }
                }
                Fact::Move { mark, what } => match what.settled() {
                    Ok(value) => {
                        if self.lost.is_none()
                            && let Err(why) = self.accept(&mark, value, run, means)
                        {
                            self.lost = Some(why);
                        }
                    }
                    Err(open) => {
                        self.recorded.push_front(Fact::Move { mark, what: open });
                        return;
                    }
                },
            }
        }
    }

    /// Walks to a recorded move and past it.
    fn accept(
        &mut self,
        mark: &Mark,
        value: Settled,
        run: &RunFacts,
        means: &Means<'_>,
    ) -> Result<(), String> {
        let ahead = self.ahead.take().filter(|ahead| ahead.fits(mark));
        let before = self.cursor.clone();
        if let Some(ahead) = ahead {
            self.cursor = ahead.cursor;
        } else {
            let misfit = |why: &str| {
                format!(
                    "the transcript has a move of step {}, and the playbook does not lead there{why}",
                    mark.path
                )
            };
            let path = read_path(&mark.path).ok_or_else(|| misfit(""))?;
            let view = View {
                users: &self.users,
                message: mark.message,
                run,
            };
            match self
                .cursor
                .seek(&Goal::Recorded(&path), &view, &mut means.for_one_move())
            {
                Ok(Found::Step) => {}
                Ok(Found::End) => return Err(misfit("")),
                Err(error) => return Err(misfit(&format!(" ({error})"))),
            }
        }
        let (steps, at) = self.cursor.place();
        let Some(step) = steps.get(at) else {
            return Ok(());
        };
        self.cursor.moves = self.cursor.moves.saturating_add(1);
        match value {
            Settled::Value(value) => self.cursor.complete(value),
            Settled::Error(error) if step.continues_on_error => {
                self.cursor.complete(from_json(&json!({"error": error})))
            }
            Settled::Error(error) | Settled::Fatal(error) => {
                let message = format!(
                    "{}: {} failed: {error}{}",
                    step.path,
                    step.word(),
                    self.cursor.rounds()
                );
                self.failed = Some(Failed {
                    before,
                    path: mark.path.clone(),
                    message,
                });
            }
        }
        Ok(())
    }
}

impl Ahead {
    fn message(&self) -> Option<u64> {
        self.decided.mark.as_ref().map(|mark| mark.message)
    }

    /// Whether the recorded move is this one. Then the cursor stands where the walk would come to.
    fn fits(&self, mark: &Mark) -> bool {
        let (steps, at) = self.cursor.place();
        self.decided.mark.as_ref() == Some(mark)
            && steps.get(at).is_some_and(|step| !step.is_silent())
    }
}

/// What a recorded move came to.
enum Settled {
    Value(Value),
    /// The step failed.
    Error(String),
    /// The step failed, and the run with it, whatever `on_error` says.
    Fatal(String),
}

impl What {
    /// # Errors
    /// The move itself, where it has no outcome yet.
    fn settled(self) -> Result<Settled, Self> {
        match self {
            Self::Plain => Ok(Settled::Value(Value::from(()))),
            Self::Call {
                outcome: Some(outcome),
                ..
            } => Ok(match &*outcome {
                Outcome::Result(value) => Settled::Value(from_json(value)),
                Outcome::Error(error) => Settled::Error(error.clone()),
            }),
            Self::Request {
                resolution:
                    Some(Resolution::Expired {
                        on_expire: OnExpire::Fail,
                    }),
                ..
            } => Ok(Settled::Fatal(
                "expired: nobody answered in time".to_owned(),
            )),
            Self::Request {
                resolution: Some(resolution),
                ask,
                ..
            } => Ok(match resolution.value(&ask) {
                Ok(value) => Settled::Value(from_json(&value)),
                Err(error) => Settled::Error(error),
            }),
            open @ (Self::Call { outcome: None, .. }
            | Self::Request {
                resolution: None, ..
            }) => Err(open),
        }
    }
}

impl Step {
    /// What failed, in a message.
    fn word(&self) -> &str {
        match &self.action {
            Action::Tool { name, .. } => name,
            Action::Approve(_) => "approve",
            Action::Ask(..) => "ask",
            Action::ForEach { .. }
            | Action::Set(_)
            | Action::Say(_)
            | Action::Wait(_)
            | Action::Fail(_)
            | Action::Finish(_) => "the step",
        }
    }
}

/// About the bytes of a value, counted up to `most`.
fn bytes_of(value: &serde_json::Value, most: usize) -> usize {
    let mut bytes = 0_usize;
    let mut open = vec![value];
    while let Some(next) = open.pop() {
        bytes = bytes.saturating_add(8);
        match next {
            serde_json::Value::String(text) => bytes = bytes.saturating_add(text.len()),
            serde_json::Value::Array(items) => open.extend(items.iter().take(most)),
            serde_json::Value::Object(map) => {
                for (key, part) in map.iter().take(most) {
                    bytes = bytes.saturating_add(key.len());
                    open.push(part);
                }
            }
            _ => {}
        }
        if bytes > most {
            break;
        }
    }
    bytes
}

fn marked(action: Move, path: String, message: u64) -> MarkedMove {
    MarkedMove {
        action,
        mark: Some(Mark { path, message }),
    }
}

fn fail(message: String) -> Move {
    Move::Fail {
        code: PLAYBOOK_FAILED,
        message,
    }
}

/// Walks to the next move and makes it. The cursor then stands at its step.
fn decide(cursor: &mut Cursor, view: &View<'_>, means: &Means<'_>) -> Move {
    let mut fuel = means.for_one_move();
    let found = cursor.seek(&Goal::Undecided, view, &mut fuel);
    let (steps, at) = cursor.place();
    match (found, steps.get(at)) {
        (Err(message), _) => fail(message),
        (Ok(Found::End), _) | (Ok(Found::Step), None) => Move::Finish {
            text: DONE_TEXT.to_owned(),
        },
        (Ok(Found::Step), Some(step)) if cursor.moves >= PLAYBOOK_MOVES_MAX => fail(format!(
            "{}: this start has made {PLAYBOOK_MOVES_MAX} moves, the most that there are{}",
            step.path,
            cursor.rounds()
        )),
        (Ok(Found::Step), Some(step)) => {
            let names = cursor.names(view, true);
            make(step, &names, &mut fuel)
                .unwrap_or_else(|error| fail(format!("{error}{}", cursor.rounds())))
        }
    }
}

fn make(step: &Step, names: &Names, fuel: &mut Fuel<'_>) -> Result<Move, String> {
    Ok(match &step.action {
        Action::Tool { name, with } => {
            let arguments = with
                .iter()
                .map(|(key, node)| Ok((key.clone(), node.value(names, fuel)?.0)));
            let arguments = arguments.collect::<Result<Map<_, _>, String>>()?;
            Move::Call {
                id: None,
                name: name.clone(),
                arguments,
            }
        }
        Action::Approve(request) => {
            Move::Ask(Box::new(draft(request, Ask::Approval, names, fuel)?))
        }
        Action::Ask(request, questions) => {
            let questions = questions
                .iter()
                .map(|q| question(q, names, fuel))
                .collect::<Result<Vec<_>, _>>()?;
            check_questions(&questions).map_err(|e| format!("{}.ask.{e}", step.path))?;
            Move::Ask(Box::new(draft(
                request,
                Ask::Question { questions },
                names,
                fuel,
            )?))
        }
        Action::Say(text) => Move::Say {
            text: text.render(names, fuel)?,
        },
        Action::Wait(text) => Move::Wait {
            ms: duration(text, names, fuel)?,
        },
        Action::Fail(text) => fail(text.render(names, fuel)?),
        Action::Finish(text) => Move::Finish {
            text: text.render(names, fuel)?,
        },
        // They make no move; `Cursor::seek` never stops at them.
        Action::ForEach { .. } | Action::Set(_) => fail(format!("{}: it makes no move", step.path)),
    })
}

fn duration(text: &Text, names: &Names, fuel: &mut Fuel<'_>) -> Result<u64, String> {
    parse_duration_ms(&text.render(names, fuel)?).map_err(|e| format!("{}: {e}", text.path))
}

fn optional(
    text: Option<&Text>,
    names: &Names,
    fuel: &mut Fuel<'_>,
) -> Result<Option<String>, String> {
    text.map(|text| text.render(names, fuel)).transpose()
}

fn draft(
    request: &Request,
    ask: Ask,
    names: &Names,
    fuel: &mut Fuel<'_>,
) -> Result<RequestDraft, String> {
    let title = request.title.render(names, fuel)?;
    if title.trim().is_empty() {
        return Err(format!(
            "{}: it takes a text that is not empty",
            request.title.path
        ));
    }
    Ok(RequestDraft {
        title,
        description: optional(request.description.as_ref(), names, fuel)?,
        ask,
        origin: Origin::Model,
        tool_call: None,
        expires_in_ms: request
            .expires_in
            .as_ref()
            .map(|text| duration(text, names, fuel))
            .transpose()?,
        on_expire: request.on_expire,
        reason: None,
        quote: None,
    })
}

fn question(question: &Question, names: &Names, fuel: &mut Fuel<'_>) -> Result<Asked, String> {
    let option = |(label, description): &(Text, Option<Text>), fuel: &mut Fuel<'_>| {
        Ok(QuestionOption {
            label: label.render(names, fuel)?,
            description: optional(description.as_ref(), names, fuel)?,
        })
    };
    Ok(Asked {
        question: question.question.render(names, fuel)?,
        header: optional(question.header.as_ref(), names, fuel)?,
        options: question
            .options
            .iter()
            .map(|o| option(o, fuel))
            .collect::<Result<_, String>>()?,
        multi_select: question.multi_select,
        free_text: question.free_text,
    })
}
