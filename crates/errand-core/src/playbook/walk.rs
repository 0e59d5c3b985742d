//! The walk: a run's way through its playbook, rebuilt from the transcript.
//!
//! Recorded moves are replayed in the order of the transcript. The silent steps before a move are evaluated with
//! the message that the move's mark names, so that a later message never changes a past decision. A decision that is
//! not recorded yet is cached ([`PendingDecision`]), so that nothing is evaluated twice when its move is recorded.

use std::collections::VecDeque;
use std::sync::Arc;

use minijinja::Value;
use serde_json::{Map, json};

use super::cursor::{Cursor, Goal, SeekResult, View, read_path};
use super::json::from_json;
use super::template::{EvaluationContext, Fuel, Names, Text, Users};
use super::{Action, DONE_TEXT, Evaluator, Playbook, Question, Request, RunFacts, Step};
use crate::human::{
    Ask, OnExpire, Origin, Question as Asked, QuestionOption, RequestDraft, Resolution,
    check_lengths, check_questions, check_title,
};
use crate::id::HumanRequestId;
use crate::limits::PLAYBOOK_MOVES_MAX;
use crate::time::parse_duration_ms;
use crate::transcript::{Body, Entry, Mark, Outcome};
use crate::turn::{MarkedMove, Move};

/// The error code of a failure in the playbook itself.
const PLAYBOOK_FAILED: &str = "playbook_failed";
/// Fuel of a move that is decided immediately: about 300 kB of text.
const IMMEDIATE_FUEL: u64 = 5_000;
/// Maximum recorded moves that are replayed immediately. There are more only after a restart.
const IMMEDIATE_REPLAY_MAX: usize = 4;
/// Maximum bytes of data in a run whose moves are decided immediately, unless its playbook is light: it bounds what
/// templates can compare.
const IMMEDIATE_BYTES_MAX: usize = 32 * 1024;
/// The size that a person's answer counts as.
const RESPONSE_BYTES: usize = 1024;
/// The error code of a failed move.
const TOOL_FAILED: &str = "tool_failed";

/// A run's way through a playbook. It must be fed each entry of the transcript once, in order.
#[derive(Clone, Debug)]
pub struct Walk {
    playbook: Arc<Playbook>,
    users: Users,
    /// Recorded moves that are not replayed yet.
    recorded: VecDeque<RecordedEvent>,
    /// The position after the last replayed move.
    cursor: Cursor,
    /// The move that failed and ended the run.
    failed: Option<Failed>,
    /// Set if the transcript has a move of a step that the playbook does not lead to: the explanation.
    mismatch: Option<String>,
    /// Set if the walk has ended. A message after this position starts the steps again.
    ended: Option<u64>,
    pending: Option<PendingDecision>,
    /// The remaining part of [`IMMEDIATE_BYTES_MAX`].
    bytes_left: usize,
}

#[derive(Clone, Debug)]
enum RecordedEvent {
    Move { mark: Mark, result: RecordedResult },
    Retried,
}

/// A recorded move and its outcome.
#[derive(Clone, Debug)]
enum RecordedResult {
    Plain,
    Call {
        id: String,
        /// Shared, because the walk is cloned before a move is decided immediately.
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
    /// The position before the move was decided.
    before: Cursor,
    path: String,
    message: String,
}

/// A decision that is not recorded yet.
#[derive(Clone, Debug)]
struct PendingDecision {
    run: RunFacts,
    /// The position at the step that acts.
    cursor: Cursor,
    decided: MarkedMove,
}

impl Walk {
    /// A walk that has not been fed anything.
    #[must_use]
    pub fn new(playbook: Arc<Playbook>) -> Self {
        let cursor = Cursor::start(&playbook);
        Self {
            playbook,
            users: Arc::default(),
            recorded: VecDeque::new(),
            cursor,
            failed: None,
            mismatch: None,
            ended: None,
            pending: None,
            bytes_left: IMMEDIATE_BYTES_MAX,
        }
    }

    /// Adds the next entry of the transcript.
    pub fn feed(&mut self, entry: &Entry) {
        self.subtract_bytes(&entry.body);
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
                self.record(mark, RecordedResult::Plain);
            }
            Body::ToolCall {
                call,
                mark: Some(mark),
            } => self.record(
                mark,
                RecordedResult::Call {
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
                    RecordedResult::Request {
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
                if let Some(RecordedEvent::Move {
                    result:
                        RecordedResult::Call {
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
                if let Some(RecordedEvent::Move {
                    result:
                        RecordedResult::Request {
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
            Body::Retried { .. } => self.recorded.push_back(RecordedEvent::Retried),
            // A recorded failure changes nothing: the failed move is decided again only after `Retried`. Entries
            // without a mark are not moves of the playbook.
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

    /// Returns the next move. Call it only when no call is open, no request is pending and no timer is running.
    ///
    /// Pure in (playbook, entries, `run`): a second call without a new entry returns the same move. `run.id` must be
    /// the same for the whole walk; `run.sandbox_id` may be set later.
    pub fn next(&mut self, run: &RunFacts) -> MarkedMove {
        self.advance(run, &EvaluationContext::default())
    }

    /// Like [`Walk::next`], with an evaluator for templates that are not cheap.
    pub fn next_with(&mut self, run: &RunFacts, evaluator: &dyn Evaluator) -> MarkedMove {
        let context = EvaluationContext {
            evaluator: Some(evaluator),
            ..EvaluationContext::default()
        };
        self.advance(run, &context)
    }

    /// Like [`Walk::next`], if the decision takes negligible time. Otherwise returns `None` and changes nothing, so
    /// that the caller can use [`Walk::next_with`] on another thread.
    pub fn next_at_once(&mut self, run: &RunFacts) -> Option<MarkedMove> {
        let is_small = self.playbook.is_light() || self.bytes_left > 0;
        if !is_small || self.recorded.len() > IMMEDIATE_REPLAY_MAX {
            return None;
        }
        // An attempt that runs out of fuel has changed the cursor. Cloning is cheap, because everything large is
        // shared.
        let before = self.clone();
        let context = EvaluationContext {
            immediate_fuel: Some(IMMEDIATE_FUEL),
            ..EvaluationContext::default()
        };
        let next = self.advance(run, &context);
        if context.ran_out.get() {
            *self = before;
            return None;
        }
        Some(next)
    }

    fn advance(&mut self, run: &RunFacts, context: &EvaluationContext<'_>) -> MarkedMove {
        self.catch_up(run, context);
        let message = self.users.last().map_or(0, |(position, _)| *position);
        if let Some(bound) = self.ended
            && message <= bound
        {
            // No new message since the end, so there is nothing to do.
            return marked(
                Move::Finish {
                    text: DONE_TEXT.to_owned(),
                },
                self.cursor.path(),
                message,
            );
        }
        if let Some(why) = &self.mismatch {
            return marked(fail(why.clone()), self.cursor.path(), message);
        }
        if let Some(failed) = &self.failed {
            let action = Move::Fail {
                code: TOOL_FAILED,
                message: failed.message.clone(),
            };
            return marked(action, failed.path.clone(), message);
        }
        if let Some(RecordedEvent::Move { mark, .. }) = self.recorded.front() {
            return marked(
                fail(format!("the move of step {} has no result yet", mark.path)),
                mark.path.clone(),
                message,
            );
        }
        if let Some(pending) = &self.pending
            && &pending.run == run
            && pending.message() == Some(message)
        {
            return pending.decided.clone();
        }
        let mut cursor = self.cursor.clone();
        let action = decide(
            &mut cursor,
            &View {
                users: &self.users,
                message,
                run,
            },
            context,
        );
        let decided = marked(action, cursor.path(), message);
        self.pending = Some(PendingDecision {
            run: run.clone(),
            cursor,
            decided: decided.clone(),
        });
        decided
    }

    /// Subtracts the data that an entry adds from `bytes_left`.
    fn subtract_bytes(&mut self, body: &Body) {
        let bytes = match body {
            Body::User { text, .. } => text.len(),
            Body::ToolResult {
                outcome: Outcome::Result(value),
                ..
            } => bytes_of(value, self.bytes_left),
            Body::HumanResponse { .. } => RESPONSE_BYTES,
            _ => 0,
        };
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }

    fn record(&mut self, mark: &Mark, result: RecordedResult) {
        self.ended = None;
        self.recorded.push_back(RecordedEvent::Move {
            mark: mark.clone(),
            result,
        });
    }

    /// Ends the walk: everything before the next start is discarded, replayed or not.
    fn end(&mut self, bound: u64) {
        self.recorded.clear();
        self.cursor = Cursor::start(&self.playbook);
        self.failed = None;
        self.mismatch = None;
        self.ended = Some(bound);
        self.pending = None;
    }

    /// Replays all recorded moves that have an outcome.
    fn catch_up(&mut self, run: &RunFacts, context: &EvaluationContext<'_>) {
        while let Some(fact) = self.recorded.pop_front() {
            match fact {
                RecordedEvent::Retried => {
                    self.pending = None;
                    if let Some(failed) = self.failed.take() {
                        self.cursor = failed.before;
                    }
                }
                RecordedEvent::Move { mark, result } => match result.settled() {
                    Ok(value) => {
                        if self.mismatch.is_none()
                            && let Err(why) = self.accept(&mark, value, run, context)
                        {
                            self.mismatch = Some(why);
                        }
                    }
                    Err(open) => {
                        self.recorded
                            .push_front(RecordedEvent::Move { mark, result: open });
                        return;
                    }
                },
            }
        }
    }

    /// Replays one recorded move.
    fn accept(
        &mut self,
        mark: &Mark,
        value: Settled,
        run: &RunFacts,
        context: &EvaluationContext<'_>,
    ) -> Result<(), String> {
        let pending = self.pending.take().filter(|pending| pending.fits(mark));
        let before = self.cursor.clone();
        if let Some(pending) = pending {
            self.cursor = pending.cursor;
        } else {
            let mismatch_error = |why: &str| {
                format!(
                    "the transcript has a move of step {}, but the playbook does not lead there{why}",
                    mark.path
                )
            };
            let path = read_path(&mark.path).ok_or_else(|| mismatch_error(""))?;
            let view = View {
                users: &self.users,
                message: mark.message,
                run,
            };
            match self.cursor.seek(
                &Goal::Recorded(&path),
                &view,
                &mut context.fuel_for_one_move(),
            ) {
                Ok(SeekResult::Step) => {}
                Ok(SeekResult::End) => return Err(mismatch_error("")),
                Err(error) => return Err(mismatch_error(&format!(" ({error})"))),
            }
        }
        let (steps, at) = self.cursor.position();
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
                    step.label(),
                    self.cursor.iteration_suffix()
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

impl PendingDecision {
    fn message(&self) -> Option<u64> {
        self.decided.mark.as_ref().map(|mark| mark.message)
    }

    /// Whether the recorded move is this decision. Then the cached cursor is where a replay would end up.
    fn fits(&self, mark: &Mark) -> bool {
        let (steps, at) = self.cursor.position();
        self.decided.mark.as_ref() == Some(mark)
            && steps.get(at).is_some_and(|step| !step.is_silent())
    }
}

/// The outcome of a recorded move.
enum Settled {
    Value(Value),
    /// The step failed.
    Error(String),
    /// The step failed and ends the run, even with `on_error: continue`.
    Fatal(String),
}

impl RecordedResult {
    /// # Errors
    /// The move itself, if it has no outcome yet.
    fn settled(self) -> Result<Settled, Self> {
        match self {
            Self::Plain => Ok(Settled::Value(Value::from(()))),
            Self::Call {
                outcome: Some(outcome),
                ..
            } => Ok(match &*outcome {
                Outcome::Result(value) => Settled::Value(from_json(value)),
                Outcome::Error(error) => Settled::Error(error.to_string()),
            }),
            Self::Request {
                resolution:
                    Some(Resolution::Expired {
                        on_expire: OnExpire::Fail,
                    }),
                ..
            } => Ok(Settled::Fatal("expired: no answer in time".to_owned())),
            Self::Request {
                resolution: Some(resolution),
                ask,
                ..
            } => Ok(match resolution.value(&ask) {
                Ok(value) => Settled::Value(from_json(&value)),
                Err(error) => Settled::Error(error.to_string()),
            }),
            open @ (Self::Call { outcome: None, .. }
            | Self::Request {
                resolution: None, ..
            }) => Err(open),
        }
    }
}

impl Step {
    /// The name of the step in an error message.
    fn label(&self) -> &str {
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

/// The approximate size of a value in bytes. Stops counting at `most`.
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

/// Advances to the next move and builds it. The cursor then stays at its step.
fn decide(cursor: &mut Cursor, view: &View<'_>, context: &EvaluationContext<'_>) -> Move {
    let mut fuel = context.fuel_for_one_move();
    let found = cursor.seek(&Goal::Undecided, view, &mut fuel);
    let (steps, at) = cursor.position();
    match (found, steps.get(at)) {
        (Err(message), _) => fail(message),
        (Ok(SeekResult::End), _) | (Ok(SeekResult::Step), None) => Move::Finish {
            text: DONE_TEXT.to_owned(),
        },
        (Ok(SeekResult::Step), Some(step)) if cursor.moves >= PLAYBOOK_MOVES_MAX => fail(format!(
            "{}: the playbook has made {PLAYBOOK_MOVES_MAX} moves since its start, which is the limit{}",
            step.path,
            cursor.iteration_suffix()
        )),
        (Ok(SeekResult::Step), Some(step)) => {
            let names = cursor.names(view, true);
            make(step, &names, &mut fuel)
                .unwrap_or_else(|error| fail(format!("{error}{}", cursor.iteration_suffix())))
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
            check_questions(&questions)
                .and_then(|()| check_lengths(&questions))
                .map_err(|e| format!("{}.ask.{e}", step.path))?;
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
        // Silent steps: `Cursor::seek` never stops at them.
        Action::ForEach { .. } | Action::Set(_) => {
            fail(format!("{}: the step makes no move", step.path))
        }
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
    check_title(&title).map_err(|error| format!("{}: {error}", request.title.path))?;
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
