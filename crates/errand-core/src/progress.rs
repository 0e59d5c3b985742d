//! Progress or end: whether the network model of a run still gets anywhere.
//!
//! Everything here is counted from the transcript, entry by entry and at the same cost for each, so that a restart, a
//! fork or a resume gives the same answer. What is counted begins anew with each message from a person, and with each
//! retry. When a bound is reached, a person is asked whether to go on (an approval begins that count anew) or, where
//! nobody can be asked, the run fails with a code that names the bound.
//!
//! Also here: the calls that a person has denied. One that is repeated unchanged is refused without asking again.
//!
//! Non-goals: the calls of a playbook. It is a fixed program with a bound of its own
//! ([`crate::limits::PLAYBOOK_MOVES_MAX`]): it may repeat a call in a loop, and each of its steps asks by itself.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};

use serde_json::{Map, Number, Value};

use crate::budget::Verdict;
use crate::human::{Ask, OnExpire, Origin, RequestDraft};
use crate::ledger::Ledger;
use crate::limits::{
    CUT_ANSWERS_MAX, DENIED_REPEATS_MAX, FAILED_TURNS_MAX, MODEL_CALLS_DEFAULT_MAX,
    OUTCOMES_KEPT_MAX, REPEATED_TURNS_MAX, SUMMARIES_IN_A_ROW_MAX,
};
use crate::run::RunError;
use crate::transcript::{AnswerKind, Body, ModelCall, Outcome, Purpose, ToolCall};

/// The error that a call gets which a person has denied before.
pub const DENIED_BEFORE: &str = "denied: a person has already denied this very call. It is not carried out, and nobody is asked again; do something else, or say why you cannot go on";

/// A bound that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Answers in a row that were cut off at their greatest length.
    CutAnswers,
    /// Turns in a row that repeated calls, with the outcomes that they had before.
    RepeatedCalls,
    /// Turns in a row all of whose calls failed.
    FailedCalls,
    /// Calls that were repeated after a person had denied them.
    DeniedCalls,
    /// Summaries in a row without a turn between them.
    Summaries,
    /// Model calls since the newest message from a person, where the build sets no limit of steps.
    ModelCalls,
}

impl Stuck {
    const ALL: [Self; 6] = [
        Self::CutAnswers,
        Self::RepeatedCalls,
        Self::FailedCalls,
        Self::DeniedCalls,
        Self::Summaries,
        Self::ModelCalls,
    ];

    /// The limit's name in a human request ([`Origin::Limit`]).
    #[must_use]
    pub fn limit(self) -> &'static str {
        match self {
            Self::CutAnswers => "cut_answers",
            Self::RepeatedCalls => "repeated_calls",
            Self::FailedCalls => "failed_calls",
            Self::DeniedCalls => "denied_calls",
            Self::Summaries => "summaries",
            Self::ModelCalls => "model_calls",
        }
    }

    /// The code of a run that fails because of it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::CutAnswers => "model_answers_cut_off",
            Self::RepeatedCalls => "model_repeats_calls",
            Self::FailedCalls => "model_calls_fail",
            Self::DeniedCalls => "model_repeats_denied_calls",
            Self::Summaries => "model_context_exceeded",
            Self::ModelCalls => "limit_exceeded",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::CutAnswers => "Go on, although the model's answers are cut off?",
            Self::RepeatedCalls => "Go on, although the model repeats the same calls?",
            Self::FailedCalls => "Go on, although the model's calls keep failing?",
            Self::DeniedCalls => "Go on, although the model repeats denied calls?",
            Self::Summaries => "Go on, although summaries free no room?",
            Self::ModelCalls => "Go on beyond the limit of model calls?",
        }
    }

    /// What happened: a sentence without its full stop.
    fn what(self) -> String {
        match self {
            Self::CutAnswers => "the model's answers were cut off at their greatest length, several in a row or twice the same".to_owned(),
            Self::RepeatedCalls => format!(
                "in {REPEATED_TURNS_MAX} turns in a row the model repeated calls that gave what they had given before"
            ),
            Self::FailedCalls => {
                format!("in {FAILED_TURNS_MAX} turns in a row each call of the model failed")
            }
            Self::DeniedCalls => format!(
                "the model repeated calls that a person had denied, {DENIED_REPEATS_MAX} times"
            ),
            Self::Summaries => format!(
                "{SUMMARIES_IN_A_ROW_MAX} summaries in a row freed no room in the model's window"
            ),
            Self::ModelCalls => format!(
                "the run has made {MODEL_CALLS_DEFAULT_MAX} model calls since the newest message from a person, which is the limit of a build without limits.steps"
            ),
        }
    }

    /// What helps: a sentence without its full stop.
    fn advice(self) -> &'static str {
        match self {
            Self::CutAnswers => {
                "ask for less in one answer, or use a model with longer answers, then retry the run"
            }
            Self::RepeatedCalls | Self::FailedCalls => {
                "look at the calls in the transcript, change the instructions or send a message, then retry the run"
            }
            Self::DeniedCalls => {
                "send a message that says what to do instead, or change the instructions, then retry the run"
            }
            Self::Summaries => {
                "use a model with a larger window, correct models.windows, or let tools return less, then retry the run"
            }
            Self::ModelCalls => {
                "set limits.steps in a new build and start again, or retry the run, which gives it as many calls again"
            }
        }
    }
}

/// What the calls of the present turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct TurnSoFar {
    closed: u32,
    failed: u32,
    repeated: u32,
}

/// See the module's document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    model_calls: u32,
    cut: u32,
    /// Digest of the last text that was cut off.
    cut_text: Option<u64>,
    /// Whether the last answer was cut off, and its text is not fed yet.
    cut_awaits_text: bool,
    summaries: u32,
    turn: TurnSoFar,
    /// Turns in a row, before the present one.
    repeated_turns: u32,
    failed_turns: u32,
    /// Digests of open calls, by their id.
    open: HashMap<String, u64>,
    /// Digests of calls with their outcomes.
    seen: HashSet<u64>,
    /// Digests of the calls that a person denied.
    denied: HashSet<u64>,
    denied_repeats: u32,
}

impl Progress {
    /// Takes what an entry of the transcript says. What a playbook decided is left alone.
    pub(crate) fn feed(&mut self, body: &Body) {
        match body {
            Body::User { .. } => self.message(),
            Body::Retried { .. } => self.retried(),
            Body::ToolCall { call, mark: None } => self.called(call),
            Body::ToolResult {
                call_id, outcome, ..
            } => self.came(call_id, outcome),
            Body::ModelCall { call } => self.model_call(call),
            Body::ModelAttempt { call, .. } if call.used_tokens() => self.attempted(),
            Body::Assistant {
                text, mark: None, ..
            } => self.text(text),
            _ => {}
        }
    }

    /// A message from a person: everything begins anew.
    fn message(&mut self) {
        *self = Self {
            // Calls that are open are closed with the message.
            open: std::mem::take(&mut self.open),
            ..Self::default()
        };
    }

    /// A retry: what is counted begins anew; what a person denied stays denied.
    fn retried(&mut self) {
        *self = Self {
            open: std::mem::take(&mut self.open),
            denied: std::mem::take(&mut self.denied),
            ..Self::default()
        };
    }

    /// A person lets the run go on beyond a limit.
    pub(crate) fn approved(&mut self, limit: &str) {
        match Stuck::ALL.into_iter().find(|stuck| stuck.limit() == limit) {
            Some(Stuck::CutAnswers) => {
                self.cut = 0;
                self.cut_text = None;
            }
            Some(Stuck::RepeatedCalls) => {
                self.repeated_turns = 0;
                self.turn.repeated = 0;
            }
            Some(Stuck::FailedCalls) => {
                self.failed_turns = 0;
                self.turn.failed = 0;
            }
            Some(Stuck::DeniedCalls) => self.denied_repeats = 0,
            Some(Stuck::Summaries) => self.summaries = 0,
            Some(Stuck::ModelCalls) => self.model_calls = 0,
            None => {}
        }
    }

    /// A network model gave an answer.
    fn model_call(&mut self, call: &ModelCall) {
        self.attempted();
        if call.purpose == Purpose::Summary {
            self.summaries += 1;
            return;
        }
        self.summaries = 0;
        (self.repeated_turns, self.failed_turns) = self.turns_in_a_row();
        self.turn = TurnSoFar::default();
        match call.answer {
            AnswerKind::Cut => self.cut += 1,
            // Nothing came: neither progress nor a reason to begin the count anew.
            AnswerKind::Empty | AnswerKind::Refused => {}
            AnswerKind::Whole => {
                self.cut = 0;
                self.cut_text = None;
            }
        }
        self.cut_awaits_text = call.answer == AnswerKind::Cut;
    }

    /// A network model was asked, and what it began to answer counts.
    fn attempted(&mut self) {
        self.model_calls = self.model_calls.saturating_add(1);
    }

    /// A text of the model.
    fn text(&mut self, text: &str) {
        if !std::mem::take(&mut self.cut_awaits_text) {
            return;
        }
        let mut hasher = DefaultHasher::new();
        text.trim().hash(&mut hasher);
        let digest = hasher.finish();
        if self.cut_text.replace(digest) == Some(digest) {
            self.cut = CUT_ANSWERS_MAX;
        }
    }

    /// The model calls a tool.
    fn called(&mut self, call: &ToolCall) {
        let digest = call_digest(call);
        if self.denied.contains(&digest) {
            self.denied_repeats += 1;
        }
        self.open.insert(call.id.clone(), digest);
    }

    /// A call has its outcome.
    fn came(&mut self, call_id: &str, outcome: &Outcome) {
        let Some(call) = self.open.remove(call_id) else {
            return;
        };
        self.turn.closed += 1;
        self.turn.failed += u32::from(matches!(outcome, Outcome::Error(_)));
        let digest = outcome_digest(call, outcome);
        if self.seen.contains(&digest) {
            self.turn.repeated += 1;
        } else if self.seen.len() < OUTCOMES_KEPT_MAX {
            self.seen.insert(digest);
        }
    }

    /// A person denied a call.
    pub(crate) fn denied(&mut self, call_id: &str) {
        if let Some(digest) = self.open.get(call_id) {
            self.denied.insert(*digest);
        }
    }

    /// Whether a person has denied this very call: the same tool with the same arguments.
    #[must_use]
    pub fn was_denied(&self, call: &ToolCall) -> bool {
        !self.denied.is_empty() && self.denied.contains(&call_digest(call))
    }

    /// Turns in a row, the present one included: that repeated what was, and all of whose calls failed.
    fn turns_in_a_row(&self) -> (u32, u32) {
        let TurnSoFar {
            closed,
            failed,
            repeated,
        } = self.turn;
        // A turn without calls has called nothing anew, and nothing in vain.
        let count = |before: u32, of: u32| match closed {
            0 => before,
            _ if of == closed => before + 1,
            _ => 0,
        };
        (
            count(self.repeated_turns, repeated),
            count(self.failed_turns, failed),
        )
    }

    /// The bound that is reached. `counts_calls`: whether the build leaves the number of steps open.
    #[must_use]
    pub fn stuck(&self, counts_calls: bool) -> Option<Stuck> {
        let (repeated, failed) = self.turns_in_a_row();
        let is_reached = |stuck: &Stuck| match stuck {
            Stuck::CutAnswers => self.cut >= CUT_ANSWERS_MAX,
            Stuck::RepeatedCalls => repeated >= REPEATED_TURNS_MAX,
            Stuck::FailedCalls => failed >= FAILED_TURNS_MAX,
            Stuck::DeniedCalls => self.denied_repeats >= DENIED_REPEATS_MAX,
            Stuck::Summaries => self.summaries >= SUMMARIES_IN_A_ROW_MAX,
            Stuck::ModelCalls => counts_calls && self.model_calls >= MODEL_CALLS_DEFAULT_MAX,
        };
        // A call that was denied fails as well: the person is told of the denial.
        [
            Stuck::DeniedCalls,
            Stuck::CutAnswers,
            Stuck::RepeatedCalls,
            Stuck::FailedCalls,
            Stuck::Summaries,
            Stuck::ModelCalls,
        ]
        .into_iter()
        .find(is_reached)
    }
}

/// Decides whether a network model may be asked again. `has_steps`: whether the build has a limit of steps. `people`:
/// whether a person can be asked.
#[must_use]
pub fn check(ledger: &Ledger, has_steps: bool, people: bool) -> Verdict {
    let Some(stuck) = ledger.progress.stuck(!has_steps) else {
        return Verdict::Within;
    };
    let refused = ledger.refused.as_deref() == Some(stuck.limit());
    if people && !refused {
        return Verdict::Ask(Box::new(request(stuck)));
    }
    let end = if refused {
        "and nobody let it go on"
    } else {
        "and this assignment runs without people who could let it go on"
    };
    Verdict::Fail(RunError::new(
        stuck.code(),
        format!("{}, {end}: {}", stuck.what(), stuck.advice()),
    ))
}

fn request(stuck: Stuck) -> RequestDraft {
    let what = stuck.what();
    let mut chars = what.chars();
    let what: String = chars
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .chain(chars)
        .collect();
    RequestDraft {
        title: stuck.title().to_owned(),
        description: Some(format!(
            "{what}. An approval lets the run go on until that happens again; a message tells the model what to do instead."
        )),
        ask: Ask::Approval,
        origin: Origin::Limit {
            limit: stuck.limit().to_owned(),
        },
        tool_call: None,
        expires_in_ms: None,
        on_expire: Some(OnExpire::Deny),
        reason: None,
        quote: None,
    }
}

/// Digest of a tool and its arguments in their canonical form: the order of keys does not count, nor how a number is
/// written, nor an argument that is null. It is held in memory only.
fn call_digest(call: &ToolCall) -> u64 {
    let mut hasher = DefaultHasher::new();
    call.name.hash(&mut hasher);
    map_digest(call.arguments.iter().filter(|(_, value)| !value.is_null())).hash(&mut hasher);
    hasher.finish()
}

fn outcome_digest(call: u64, outcome: &Outcome) -> u64 {
    let mut hasher = DefaultHasher::new();
    call.hash(&mut hasher);
    match outcome {
        Outcome::Error(error) => (0_u8, error).hash(&mut hasher),
        // How long a command took says nothing new.
        Outcome::Result(Value::Object(map)) => {
            let told = map.iter().filter(|(name, _)| *name != "duration_ms");
            (1_u8, map_digest(told)).hash(&mut hasher);
        }
        Outcome::Result(value) => (2_u8, value_digest(value)).hash(&mut hasher),
    }
    hasher.finish()
}

/// The sum of the members' digests, so that their order does not count.
fn map_digest<'a>(members: impl Iterator<Item = (&'a String, &'a Value)>) -> u64 {
    members.fold(0, |sum, (name, value)| {
        let mut hasher = DefaultHasher::new();
        (name, value_digest(value)).hash(&mut hasher);
        sum.wrapping_add(hasher.finish())
    })
}

fn value_digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    match value {
        Value::Null => 0_u8.hash(&mut hasher),
        Value::Bool(is) => (1_u8, is).hash(&mut hasher),
        Value::Number(number) => number_digest(number).hash(&mut hasher),
        Value::String(text) => (3_u8, text).hash(&mut hasher),
        Value::Array(items) => {
            (4_u8, items.len()).hash(&mut hasher);
            items
                .iter()
                .for_each(|item| value_digest(item).hash(&mut hasher));
        }
        Value::Object(map) => (5_u8, map.len(), map_digest(Map::iter(map))).hash(&mut hasher),
    }
    hasher.finish()
}

fn number_digest(number: &Number) -> (u8, u64) {
    if let Some(whole) = number.as_i64() {
        return (2, whole.cast_unsigned());
    }
    if let Some(whole) = number.as_u64() {
        return (6, whole);
    }
    let float = number.as_f64().unwrap_or_default();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a cast saturates; the way back shows whether it was exact"
    )]
    let whole = float as i64;
    #[expect(
        clippy::cast_precision_loss,
        clippy::float_cmp,
        reason = "compared to find out whether the number is a whole one"
    )]
    let is_whole = whole as f64 == float && float.abs() < 9e15;
    if is_whole {
        (2, whole.cast_unsigned())
    } else {
        (7, float.to_bits())
    }
}

#[cfg(test)]
#[path = "progress/tests.rs"]
mod tests;
