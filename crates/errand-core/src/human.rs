//! Human requests: what a person is asked, and what an answer must be.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::content::Reason;
use crate::id::HumanRequestId;
use crate::time::Timestamp;
use crate::transcript::ToolCall;

/// One question of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The question; also the key of its answer.
    pub question: String,
    /// A word or two to show above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// What may be chosen. Empty: free text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<QuestionOption>,
    /// Whether several may be chosen.
    #[serde(default)]
    pub multi_select: bool,
    /// Whether a text that is none of the options is accepted.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub free_text: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_true(value: &bool) -> bool {
    *value
}

/// One option of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionOption {
    /// What is shown, and what the answer holds.
    pub label: String,
    /// A sentence more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What kind of answer is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Ask {
    /// Yes or no.
    Approval,
    /// One answer for each question.
    Question {
        /// At least one.
        questions: Vec<Question>,
    },
}

/// Why a person is asked: what the answer will be applied to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Origin {
    /// A move of the model itself (a playbook's `approve` or `ask`).
    Model,
    /// A call of an asking tool: the answer is the call's result.
    Tool {
        /// The call.
        call_id: String,
    },
    /// The policy `ask` on a call: an approval releases exactly it.
    Policy {
        /// The call.
        call_id: String,
        /// Where it goes, as it was then: see [`crate::next::Rules::target`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// A call whose outcome is unknown after a crash.
    InDoubt {
        /// The call.
        call_id: String,
        /// As of `Policy`: a person may say that it is carried out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// The run reached a limit: an approval lets it go on.
    Limit {
        /// `steps`, `tokens`, `cost_usd` or `seconds` of the build, or `team_cost_usd`.
        limit: String,
    },
    /// A connection's server asks while a call of it is under way: the answer goes to the server.
    Connection {
        /// The call.
        call_id: String,
    },
}

/// What happens when nobody answers in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExpire {
    /// Counts as denied; for a question it is an error.
    #[default]
    Deny,
    /// The run fails.
    Fail,
    /// Goes on with `{expired: true, approved: false}`.
    Continue,
}

/// A request before it is committed.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestDraft {
    /// One line.
    pub title: String,
    /// More lines.
    pub description: Option<String>,
    /// The kind of answer.
    pub ask: Ask,
    /// What the answer is applied to.
    pub origin: Origin,
    /// The exact call that an approval releases, or that is in doubt.
    pub tool_call: Option<ToolCall>,
    /// How long it may be answered; none: for ever.
    pub expires_in_ms: Option<u64>,
    /// What happens then; none: the build says.
    pub on_expire: Option<OnExpire>,
    /// Why a policy asks.
    pub reason: Option<Reason>,
    /// What somebody outside says.
    pub quote: Option<Quote>,
}

/// What somebody outside says with a request: text that is shown as quoted, and is part of no sentence of errand's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Who says it: the name of a connection.
    pub by: String,
    /// The words.
    pub text: String,
}

impl RequestDraft {
    /// With the build's defaults where the draft says nothing itself.
    #[must_use]
    pub fn or_defaults(mut self, expires_in_ms: Option<u64>, on_expire: OnExpire) -> Self {
        self.expires_in_ms = self.expires_in_ms.or(expires_in_ms);
        self.on_expire = self.on_expire.or(Some(on_expire));
        self
    }
}

/// A request to a person. There is never more than one pending for a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HumanRequest {
    /// Its id.
    pub id: HumanRequestId,
    /// One line.
    pub title: String,
    /// More lines.
    pub description: Option<String>,
    /// The kind of answer.
    pub ask: Ask,
    /// What the answer is applied to.
    pub origin: Origin,
    /// The exact call that an approval releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<ToolCall>,
    /// The digest of that call: what runs must have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it lapses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// What happens then.
    #[serde(default)]
    pub on_expire: OnExpire,
    /// Why a policy asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What somebody outside says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<Quote>,
}

impl HumanRequest {
    /// The request that `draft` becomes.
    #[must_use]
    pub fn new(id: HumanRequestId, draft: RequestDraft, now: Timestamp) -> Self {
        Self {
            id,
            title: draft.title,
            description: draft.description,
            ask: draft.ask,
            origin: draft.origin,
            digest: draft.tool_call.as_ref().map(ToolCall::digest),
            tool_call: draft.tool_call,
            created_at: now,
            expires_at: draft.expires_in_ms.map(|ms| now.plus_ms(ms)),
            on_expire: draft.on_expire.unwrap_or_default(),
            reason: draft.reason,
            quote: draft.quote,
        }
    }

    /// The call that the answer is about, if any.
    #[must_use]
    pub fn call_id(&self) -> Option<&str> {
        match &self.origin {
            Origin::Model | Origin::Limit { .. } => None,
            Origin::Tool { call_id }
            | Origin::Policy { call_id, .. }
            | Origin::InDoubt { call_id, .. }
            | Origin::Connection { call_id } => Some(call_id),
        }
    }
}

/// How a request was closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Resolution {
    /// Approved by a person.
    Approved {
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Denied by a person.
    Denied {
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A question's answers: a string, or a list of strings for `multi_select`.
    Answered {
        /// By question.
        answers: Map<String, Value>,
    },
    /// Nobody answered in time.
    Expired {
        /// What follows.
        on_expire: OnExpire,
    },
    /// A message came instead.
    Message {
        /// Its text.
        text: String,
    },
    /// The run was stopped.
    Stopped,
}

impl Resolution {
    /// The `response` of the API: `approved`, `denied`, `expired`, the message's text, or the answers as JSON.
    #[must_use]
    pub fn response(&self) -> Option<String> {
        match self {
            Self::Approved { .. } => Some("approved".to_owned()),
            Self::Denied { .. } => Some("denied".to_owned()),
            Self::Answered { answers } => Some(Value::Object(answers.clone()).to_string()),
            Self::Expired { .. } => Some("expired".to_owned()),
            Self::Message { text } => Some(text.clone()),
            Self::Stopped => None,
        }
    }

    /// The reason that a person gave.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Approved { reason } | Self::Denied { reason } => reason.as_deref(),
            Self::Answered { .. } | Self::Expired { .. } | Self::Message { .. } | Self::Stopped => {
                None
            }
        }
    }

    /// What the asking move or tool gets: a value, or the error that stands for it.
    ///
    /// # Errors
    /// A sentence, where the request has no answer that could be a value.
    pub fn value(&self, ask: &Ask) -> Result<Value, String> {
        let approval = matches!(ask, Ask::Approval);
        let decided = |approved: bool, reason: &Option<String>| match reason {
            Some(reason) => json!({"approved": approved, "reason": reason}),
            None => json!({"approved": approved}),
        };
        match self {
            Self::Approved { reason } => Ok(decided(true, reason)),
            Self::Denied { reason } => Ok(decided(false, reason)),
            Self::Answered { answers } => Ok(Value::Object(answers.clone())),
            Self::Expired {
                on_expire: OnExpire::Continue,
            } => Ok(json!({"expired": true, "approved": false})),
            Self::Expired { .. } if approval => Ok(json!({"approved": false, "expired": true})),
            Self::Expired { .. } => Err("expired: nobody answered the question in time".to_owned()),
            Self::Message { text } if approval => Ok(json!({"approved": false, "message": text})),
            Self::Message { text } => Ok(json!({"message": text})),
            Self::Stopped => Err("not_run: the run was stopped".to_owned()),
        }
    }
}

/// What a person answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To an approval.
    Approval {
        /// Yes or no.
        approved: bool,
        /// Why.
        reason: Option<String>,
    },
    /// To a question.
    Answers(Map<String, Value>),
}

/// An answer that does not fit its request: a sentence that says what it takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAnswer(pub String);

/// Holds an answer against its request.
///
/// # Errors
/// [`BadAnswer`] names the question that is missing, unknown, or answered in the wrong form.
pub fn check_answer(ask: &Ask, answer: Answer) -> Result<Resolution, BadAnswer> {
    match (ask, answer) {
        (
            Ask::Approval,
            Answer::Approval {
                approved: true,
                reason,
            },
        ) => Ok(Resolution::Approved { reason }),
        (
            Ask::Approval,
            Answer::Approval {
                approved: false,
                reason,
            },
        ) => Ok(Resolution::Denied { reason }),
        (Ask::Approval, Answer::Answers(_)) => Err(BadAnswer(
            "this request is an approval: it takes `approved` (true or false), not `answers`"
                .to_owned(),
        )),
        (Ask::Question { .. }, Answer::Approval { .. }) => Err(BadAnswer(
            "this request is a question: it takes `answers` ({question: answer}), not `approved`"
                .to_owned(),
        )),
        (Ask::Question { questions }, Answer::Answers(mut given)) => {
            let mut answers = Map::new();
            for question in questions {
                let value = given.remove(&question.question).ok_or_else(|| {
                    BadAnswer(format!(
                        "answers: the question {:?} has no answer; every question must be answered",
                        question.question
                    ))
                })?;
                answers.insert(question.question.clone(), check_one(question, &value)?);
            }
            match given.keys().next() {
                Some(unknown) => Err(BadAnswer(format!(
                    "answers: {unknown:?} is not a question of this request; it asks: {}",
                    questions
                        .iter()
                        .map(|q| format!("{:?}", q.question))
                        .collect::<Vec<_>>()
                        .join(", ")
                ))),
                None => Ok(Resolution::Answered { answers }),
            }
        }
    }
}

fn check_one(question: &Question, value: &Value) -> Result<Value, BadAnswer> {
    let name = &question.question;
    let allowed = |text: &str| -> Result<(), BadAnswer> {
        if text.trim().is_empty() {
            return Err(BadAnswer(format!(
                "answers.{name}: it takes a text that is not empty"
            )));
        }
        if question.free_text || question.options.iter().any(|o| o.label == text) {
            return Ok(());
        }
        let labels: Vec<_> = question
            .options
            .iter()
            .map(|o| format!("{:?}", o.label))
            .collect();
        Err(BadAnswer(format!(
            "answers.{name}: {text:?} is not an option; it takes {}",
            labels.join(", ")
        )))
    };
    match value {
        Value::String(text)
            if !question.multi_select || question.options.iter().any(|o| &o.label == text) =>
        {
            allowed(text)?;
            Ok(if question.multi_select {
                json!([text])
            } else {
                json!(text)
            })
        }
        Value::String(text) => {
            let parts: Vec<&str> = text
                .split(',')
                .map(str::trim)
                .filter(|p| !p.is_empty())
                .collect();
            if parts.is_empty() {
                allowed("")?;
            }
            parts.iter().try_for_each(|part| allowed(part))?;
            Ok(json!(parts))
        }
        Value::Array(items) if question.multi_select => {
            let parts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            let parts = parts.filter(|p| !p.is_empty()).ok_or_else(|| {
                BadAnswer(format!(
                    "answers.{name}: it takes a list of at least one label"
                ))
            })?;
            parts.iter().try_for_each(|part| allowed(part))?;
            Ok(json!(parts))
        }
        _ if question.multi_select => Err(BadAnswer(format!(
            "answers.{name}: it takes labels separated by commas, or a list of labels"
        ))),
        _ => Err(BadAnswer(format!("answers.{name}: it takes a text"))),
    }
}

/// Reads the arguments of `request_approval`: `{title, description?, expires_in?, on_expire?}`.
///
/// # Errors
/// A sentence that names the argument.
pub fn approval_from_call(call: &ToolCall) -> Result<RequestDraft, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Args {
        title: String,
        description: Option<String>,
        expires_in: Option<String>,
        on_expire: Option<OnExpire>,
    }
    let args: Args = serde_json::from_value(Value::Object(call.arguments.clone()))
        .map_err(|e| format!("invalid_arguments: {e}"))?;
    draft_of_tool(
        call,
        (args.title, args.description),
        Ask::Approval,
        args.expires_in.as_deref(),
        args.on_expire,
    )
}

/// Reads the arguments of `ask_human`: `{title, description?, questions, expires_in?, on_expire?}`.
///
/// # Errors
/// A sentence that names the argument.
pub fn question_from_call(call: &ToolCall) -> Result<RequestDraft, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Args {
        title: String,
        description: Option<String>,
        questions: Vec<Question>,
        expires_in: Option<String>,
        on_expire: Option<OnExpire>,
    }
    let args: Args = serde_json::from_value(Value::Object(call.arguments.clone()))
        .map_err(|e| format!("invalid_arguments: {e}"))?;
    check_questions(&args.questions).map_err(|e| format!("invalid_arguments: {e}"))?;
    let ask = Ask::Question {
        questions: args.questions,
    };
    draft_of_tool(
        call,
        (args.title, args.description),
        ask,
        args.expires_in.as_deref(),
        args.on_expire,
    )
}

/// Holds questions against their rules: at least one, none empty, none twice, options only with labels.
///
/// # Errors
/// A sentence that names the question.
pub fn check_questions(questions: &[Question]) -> Result<(), String> {
    if questions.is_empty() {
        return Err("questions: it takes at least one question".to_owned());
    }
    for (index, question) in questions.iter().enumerate() {
        if question.question.trim().is_empty() {
            return Err(format!(
                "questions[{index}].question: it takes a text that is not empty"
            ));
        }
        if questions
            .iter()
            .take(index)
            .any(|q| q.question == question.question)
        {
            return Err(format!(
                "questions[{index}].question: {:?} stands there twice; answers are told apart by it",
                question.question
            ));
        }
        if question.options.iter().any(|o| o.label.trim().is_empty()) {
            return Err(format!("questions[{index}].options: a label is empty"));
        }
        if !question.free_text && question.options.is_empty() {
            return Err(format!(
                "questions[{index}]: `free_text: false` needs options"
            ));
        }
    }
    Ok(())
}

fn draft_of_tool(
    call: &ToolCall,
    (title, description): (String, Option<String>),
    ask: Ask,
    expires_in: Option<&str>,
    on_expire: Option<OnExpire>,
) -> Result<RequestDraft, String> {
    if title.trim().is_empty() {
        return Err("invalid_arguments: title: it takes a text that is not empty".to_owned());
    }
    let expires_in_ms = expires_in
        .map(crate::time::parse_duration_ms)
        .transpose()
        .map_err(|e| format!("invalid_arguments: expires_in: {e}"))?;
    Ok(RequestDraft {
        title,
        description,
        ask,
        origin: Origin::Tool {
            call_id: call.id.clone(),
        },
        tool_call: None,
        expires_in_ms,
        on_expire,
        reason: None,
        quote: None,
    })
}

#[cfg(test)]
#[path = "human/tests.rs"]
mod tests;
