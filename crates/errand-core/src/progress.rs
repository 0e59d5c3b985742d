//! Loop detection: whether the network model of a run still makes progress.
//!
//! # Guarantees
//!
//! Everything is counted from the transcript, entry by entry at constant cost, so that a restart, a fork or a resume
//! gives the same result. Each message from a person and each retry resets the counters. When a bound is reached, a
//! person is asked whether to continue (an approval resets that counter); if people cannot be asked, the run fails with
//! a code that names the bound.
//!
//! This module also keeps the calls that a person has denied: repeating one unchanged is refused without asking again.
//!
//! # Non-goals
//!
//! Calls of a playbook. It is a fixed program with its own bound ([`crate::limits::PLAYBOOK_MOVES_MAX`]): it may
//! repeat a call in a loop, and each of its steps asks for itself.

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

/// The error result of a call that repeats a denied one.
pub const DENIED_BEFORE: &str = "a person has already denied this exact call. It was not run, and the person is not asked again; do something else, or explain why you cannot continue";

/// A bound that has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Consecutive answers truncated at the model's maximum length.
    CutAnswers,
    /// Consecutive turns that repeated calls and got the same outcomes as before.
    RepeatedCalls,
    /// Consecutive turns in which every call failed.
    FailedCalls,
    /// Calls repeated after a person had denied them.
    DeniedCalls,
    /// Consecutive summaries without a turn between them.
    Summaries,
    /// Model calls since the newest message from a person, if the build sets no limit of steps.
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

    /// The error code of a run that fails because of it.
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
            Self::CutAnswers => "Continue although the model's answers are truncated?",
            Self::RepeatedCalls => "Continue although the model repeats the same calls?",
            Self::FailedCalls => "Continue although the model's calls keep failing?",
            Self::DeniedCalls => "Continue although the model repeats denied calls?",
            Self::Summaries => "Continue although summaries free too little space?",
            Self::ModelCalls => "Continue beyond the limit of model calls?",
        }
    }

    /// The event: a sentence without a capital and a period.
    fn what_happened(self) -> String {
        match self {
            Self::CutAnswers => "the model's answers were truncated at their maximum length, several in a row or twice with the same text".to_owned(),
            Self::RepeatedCalls => format!(
                "in {REPEATED_TURNS_MAX} turns in a row, the model repeated calls and got the same results as before"
            ),
            Self::FailedCalls => {
                format!("in {FAILED_TURNS_MAX} turns in a row, every call of the model failed")
            }
            Self::DeniedCalls => format!(
                "the model repeated denied calls {DENIED_REPEATS_MAX} times"
            ),
            Self::Summaries => format!(
                "{SUMMARIES_IN_A_ROW_MAX} summaries in a row freed too little space in the model's context window"
            ),
            Self::ModelCalls => format!(
                "the run has made {MODEL_CALLS_DEFAULT_MAX} model calls since the newest message from a person, which is the limit for a build without limits.steps"
            ),
        }
    }

    /// The remedy: a sentence without a capital and a period.
    fn advice(self) -> &'static str {
        match self {
            Self::CutAnswers => {
                "ask for less in one answer, or use a model that allows longer answers, then retry the run"
            }
            Self::RepeatedCalls | Self::FailedCalls => {
                "check the calls in the transcript, change the instructions or send a message, then retry the run"
            }
            Self::DeniedCalls => {
                "send a message that says what to do instead, or change the instructions, then retry the run"
            }
            Self::Summaries => {
                "use a model with a larger context window, correct models.windows, or have the tools return less, then retry the run"
            }
            Self::ModelCalls => {
                "set limits.steps in a new build and start again, or retry the run, which allows the same number of calls again"
            }
        }
    }
}

/// Counters of the current turn's calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct TurnSoFar {
    closed: u32,
    failed: u32,
    repeated: u32,
}

/// The counters, and the calls that were denied. See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    model_calls: u32,
    cut: u32,
    /// Digest of the last truncated text.
    cut_text: Option<u64>,
    /// The last answer was truncated, and the entry with its text has not been fed yet.
    cut_awaits_text: bool,
    summaries: u32,
    turn: TurnSoFar,
    /// Consecutive turns before the current one.
    repeated_turns: u32,
    failed_turns: u32,
    /// Digests of the open calls, by call id.
    open: HashMap<String, u64>,
    /// Digests of calls together with their outcomes.
    seen: HashSet<u64>,
    /// Digests of the calls that a person denied.
    denied: HashSet<u64>,
    denied_repeats: u32,
}

impl Progress {
    /// Counts an entry of the transcript. Entries that a playbook decided (those with a mark) are ignored.
    pub(crate) fn feed(&mut self, body: &Body) {
        match body {
            Body::User { .. } => self.reset_by_message(),
            Body::Retried { .. } => self.reset_by_retry(),
            Body::ToolCall { call, mark: None } => self.call_started(call),
            Body::ToolResult {
                call_id, outcome, ..
            } => self.call_ended(call_id, outcome),
            Body::ModelCall { call } => self.count_model_call(call),
            Body::ModelAttempt { call, .. } if call.used_tokens() => self.count_attempt(),
            Body::Assistant {
                text, mark: None, ..
            } => self.check_truncated_text(text),
            _ => {}
        }
    }

    /// A message from a person resets everything.
    fn reset_by_message(&mut self) {
        *self = Self {
            // The calls that are open now get their results after the message.
            open: std::mem::take(&mut self.open),
            ..Self::default()
        };
    }

    /// A retry resets the counters; denied calls stay denied.
    fn reset_by_retry(&mut self) {
        *self = Self {
            open: std::mem::take(&mut self.open),
            denied: std::mem::take(&mut self.denied),
            ..Self::default()
        };
    }

    /// Resets the counters behind `limit` after a person allows the run to continue past it.
    pub(crate) fn reset_after_approval(&mut self, limit: &str) {
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

    /// A network model answered.
    fn count_model_call(&mut self, call: &ModelCall) {
        self.count_attempt();
        if call.purpose == Purpose::Summary {
            self.summaries += 1;
            return;
        }
        self.summaries = 0;
        (self.repeated_turns, self.failed_turns) = self.turns_in_a_row();
        self.turn = TurnSoFar::default();
        match call.answer {
            AnswerKind::Cut => self.cut += 1,
            // An empty answer is neither progress nor a reason to reset the counter.
            AnswerKind::Empty | AnswerKind::Refused => {}
            AnswerKind::Whole => {
                self.cut = 0;
                self.cut_text = None;
            }
        }
        self.cut_awaits_text = call.answer == AnswerKind::Cut;
    }

    /// Counts a model call, also one that failed after it had begun to answer.
    fn count_attempt(&mut self) {
        self.model_calls = self.model_calls.saturating_add(1);
    }

    fn check_truncated_text(&mut self, text: &str) {
        if !std::mem::take(&mut self.cut_awaits_text) {
            return;
        }
        let mut hasher = DefaultHasher::new();
        text.trim().hash(&mut hasher);
        let digest = hasher.finish();
        if self.cut_text.replace(digest) == Some(digest) {
            // The same truncated text twice: asking again would give it a third time.
            self.cut = CUT_ANSWERS_MAX;
        }
    }

    fn call_started(&mut self, call: &ToolCall) {
        let digest = call_digest(call);
        if self.denied.contains(&digest) {
            self.denied_repeats += 1;
        }
        self.open.insert(call.id.clone(), digest);
    }

    fn call_ended(&mut self, call_id: &str, outcome: &Outcome) {
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

    pub(crate) fn record_denial(&mut self, call_id: &str) {
        if let Some(digest) = self.open.get(call_id) {
            self.denied.insert(*digest);
        }
    }

    /// Whether a person has denied this exact call: the same tool with the same arguments.
    #[must_use]
    pub fn was_denied(&self, call: &ToolCall) -> bool {
        !self.denied.is_empty() && self.denied.contains(&call_digest(call))
    }

    /// Consecutive turns including the current one, as (all calls repeated, all calls failed).
    fn turns_in_a_row(&self) -> (u32, u32) {
        let TurnSoFar {
            closed,
            failed,
            repeated,
        } = self.turn;
        // A turn without calls neither continues nor breaks a series.
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

    /// The bound that is reached, if any. `counts_calls`: the build sets no limit of steps.
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
        // A denied call also counts as failed; report the denial, which is the cause.
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

/// Decides whether a network model may be asked again. `has_steps`: whether the build limits the steps. `people`:
/// whether people can be asked.
#[must_use]
pub fn check(ledger: &Ledger, has_steps: bool, human_in_the_loop: bool) -> Verdict {
    let Some(stuck) = ledger.progress.stuck(!has_steps) else {
        return Verdict::Within;
    };
    let refused = ledger.refused.as_deref() == Some(stuck.limit());
    if human_in_the_loop && !refused {
        return Verdict::Ask(Box::new(request(stuck)));
    }
    let end = if refused {
        "and no person allowed it to continue"
    } else {
        "and this assignment runs without people who could allow it to continue"
    };
    Verdict::Fail(RunError::new(
        stuck.code(),
        format!("{}, {end}: {}", stuck.what_happened(), stuck.advice()),
    ))
}

fn request(stuck: Stuck) -> RequestDraft {
    let what = stuck.what_happened();
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
            "{what}. If you approve, the run continues until this happens again; send a message to tell the model what to do instead."
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

/// Digest of a tool and its arguments in a canonical form that ignores the order of keys, the notation of numbers and
/// null arguments. Only kept in memory, so the hash function may change between versions.
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
        // Runtimes differ each time without meaning anything.
        Outcome::Result(Value::Object(map)) => {
            let kept = map.iter().filter(|(name, _)| *name != "duration_ms");
            (1_u8, map_digest(kept)).hash(&mut hasher);
        }
        Outcome::Result(value) => (2_u8, value_digest(value)).hash(&mut hasher),
    }
    hasher.finish()
}

/// The sum of the members' digests, which does not depend on their order.
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
        reason = "a cast saturates; the comparison below shows whether it was exact"
    )]
    let whole = float as i64;
    #[expect(
        clippy::cast_precision_loss,
        clippy::float_cmp,
        reason = "the comparison finds out whether the number is a whole one"
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
