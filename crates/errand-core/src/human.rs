//! Human requests: approvals and questions, and the check of an answer against its request.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::content::Reason;
use crate::id::HumanRequestId;
use crate::time::Timestamp;
use crate::tool_error::{ToolError, ToolErrorCode};
use crate::transcript::ToolCall;

/// Most characters of a request's title.
pub const TITLE_CHARS_MAX: usize = 200;
/// Most characters of a question.
pub const QUESTION_CHARS_MAX: usize = 2_000;
/// Most characters of the header of a question.
pub const HEADER_CHARS_MAX: usize = 100;
/// Most characters of an option's label.
pub const LABEL_CHARS_MAX: usize = 200;
/// Most characters of an option's description.
pub const OPTION_DESCRIPTION_CHARS_MAX: usize = 1_000;
/// Most characters of all questions of a request together, headers and options included.
pub const QUESTIONS_CHARS_MAX: usize = 65_536;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The text of the question; also the key of its answer, so it is unique within the request.
    pub question: String,
    /// One or two words to show above the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The choices. Empty: the answer is free text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<QuestionOption>,
    /// Whether several options may be chosen.
    #[serde(default)]
    pub multi_select: bool,
    /// Whether a text that is not among the options is accepted. Default: true.
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

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionOption {
    /// Shown to the person; also the value in the answer.
    pub label: String,
    /// One more sentence about the option.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The kind of answer that a request expects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Ask {
    /// Approve or deny.
    Approval,
    /// One answer for each question.
    Question {
        /// Not empty.
        questions: Vec<Question>,
    },
}

/// Why a person is asked, which decides what the answer is applied to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Origin {
    /// A move of the model itself (`approve` or `ask` in a playbook).
    Model,
    /// A call of a tool that asks (`request_approval`, `ask_human`): the answer is the call's result.
    Tool { call_id: String },
    /// The policy `ask` or `guard` stopped a call: an approval allows exactly this call.
    Policy {
        call_id: String,
        /// Where the call went when the request was made: see [`crate::next::Rules::target`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// A crash left the outcome of a call unknown.
    InDoubt {
        call_id: String,
        /// As for `Policy`, because a person may decide that the call is executed after all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// The run reached a limit: an approval allows it to continue.
    Limit {
        /// `steps`, `tokens`, `cost_usd` or `seconds` for a limit of the build, `team_cost_usd` for the team's, or a
        /// name from [`crate::progress::Stuck::limit`].
        limit: String,
    },
    /// A connection's server asks while it executes a call (MCP elicitation): the answer goes to the server.
    Connection { call_id: String },
}

/// The consequence of an expired request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExpire {
    /// Counts as denied; a question becomes an error result.
    #[default]
    Deny,
    /// The run fails.
    Fail,
    /// Continues with `{expired: true, approved: false}`.
    Continue,
}

/// A human request that is not committed yet.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestDraft {
    /// One line for people.
    pub title: String,
    pub description: Option<String>,
    pub ask: Ask,
    pub origin: Origin,
    /// The exact call that an approval allows, or whose outcome is unknown.
    pub tool_call: Option<ToolCall>,
    /// How long it can be answered, in milliseconds. `None`: it never expires.
    pub expires_in_ms: Option<u64>,
    /// `None`: the build's default.
    pub on_expire: Option<OnExpire>,
    /// Why a policy asks. `None` for requests that no policy made.
    pub reason: Option<Reason>,
    /// Text from a third party, such as a connection's server.
    pub quote: Option<Quote>,
}

/// Text from a third party that is shown with a request. Pages show it as a quotation; it never becomes part of a
/// sentence of the product, so that it cannot pose as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// The name of the connection that the text came from.
    pub by: String,
    pub text: String,
}

impl RequestDraft {
    /// Fills in the build's defaults where the draft sets nothing.
    #[must_use]
    pub fn or_defaults(mut self, expires_in_ms: Option<u64>, on_expire: OnExpire) -> Self {
        self.expires_in_ms = self.expires_in_ms.or(expires_in_ms);
        self.on_expire = self.on_expire.or(Some(on_expire));
        self
    }
}

/// A human request. A run has at most one pending request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HumanRequest {
    pub id: HumanRequestId,
    /// One line for people.
    pub title: String,
    pub description: Option<String>,
    pub ask: Ask,
    pub origin: Origin,
    /// The exact call that an approval allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<ToolCall>,
    /// [`ToolCall::digest`] of that call: only a call with the same digest is executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    pub created_at: Timestamp,
    /// `None`: it never expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    #[serde(default)]
    pub on_expire: OnExpire,
    /// Why a policy asks. `None` for requests that no policy made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Text from a third party, such as a connection's server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<Quote>,
}

impl HumanRequest {
    /// Turns a draft into the request to store. `now` starts its expiry.
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

    /// The call that the answer applies to, if any.
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
        /// The person's reason, if given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Denied by a person.
    Denied {
        /// The person's reason, if given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The answers to a question: a string each, or a list of strings for `multi_select`.
    Answered {
        /// By the text of the question.
        answers: Map<String, Value>,
    },
    /// The deadline passed without an answer.
    Expired { on_expire: OnExpire },
    /// A message arrived instead of an answer.
    Message { text: String },
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

    /// The reason that the person gave with an approval or denial.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Approved { reason } | Self::Denied { reason } => reason.as_deref(),
            Self::Answered { .. } | Self::Expired { .. } | Self::Message { .. } | Self::Stopped => {
                None
            }
        }
    }

    /// The result for the move or tool that asked.
    ///
    /// # Errors
    /// An error result for the model, if the request ended without an answer that could be a value.
    pub fn value(&self, ask: &Ask) -> Result<Value, ToolError> {
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
            Self::Expired { .. } => Err(ToolError::new(
                ToolErrorCode::Expired,
                "no one answered the question in time",
            )),
            Self::Message { text } if approval => Ok(json!({"approved": false, "message": text})),
            Self::Message { text } => Ok(json!({"message": text})),
            Self::Stopped => Err(ToolError::new(ToolErrorCode::NotRun, "the run was stopped")),
        }
    }
}

/// An answer as a person submits it, not checked yet.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Approval {
        approved: bool,
        /// Optional.
        reason: Option<String>,
    },
    /// The answers to a question, by the text of each question.
    Answers(Map<String, Value>),
}

/// The answer does not fit its request. The text says what the request accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAnswer(pub String);

/// Checks an answer against its request.
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
            "this request is an approval: send `approved` (true or false), not `answers`"
                .to_owned(),
        )),
        (Ask::Question { .. }, Answer::Approval { .. }) => Err(BadAnswer(
            "this request is a question: send `answers` ({question: answer}), not `approved`"
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
            return Err(BadAnswer(format!("answers.{name}: must not be empty")));
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
            "answers.{name}: {text:?} is not an option; choose from {}",
            labels.join(", ")
        )))
    };
    match value {
        Value::String(text)
        // With `multi_select`, a string is one label if it matches one exactly, because labels may contain commas;
        // otherwise it is a list separated by commas.
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
                    "answers.{name}: must be a list of at least one label"
                ))
            })?;
            parts.iter().try_for_each(|part| allowed(part))?;
            Ok(json!(parts))
        }
        _ if question.multi_select => Err(BadAnswer(format!(
            "answers.{name}: must be a string of labels separated by commas, or a list of labels"
        ))),
        _ => Err(BadAnswer(format!("answers.{name}: must be a string"))),
    }
}

/// Reads the arguments of `request_approval`: `{title, description?, expires_in?, on_expire?}`.
///
/// # Errors
/// An error result that names the argument.
pub fn approval_from_call(call: &ToolCall) -> Result<RequestDraft, ToolError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Args {
        title: String,
        description: Option<String>,
        expires_in: Option<String>,
        on_expire: Option<OnExpire>,
    }
    let args: Args = serde_json::from_value(Value::Object(call.arguments.clone()))
        .map_err(|e| invalid_arguments(e.to_string()))?;
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
/// An error result that names the argument.
pub fn question_from_call(call: &ToolCall) -> Result<RequestDraft, ToolError> {
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
        .map_err(|e| invalid_arguments(e.to_string()))?;
    check_questions(&args.questions)
        .and_then(|()| check_lengths(&args.questions))
        .map_err(|e| invalid_arguments(e.to_string()))?;
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

/// Checks questions: at least one, texts not empty and unique, no empty labels, and options if free text is not
/// accepted.
///
/// # Errors
/// A message that names the question.
pub fn check_questions(questions: &[Question]) -> Result<(), String> {
    if questions.is_empty() {
        return Err("questions: must contain at least one question".to_owned());
    }
    for (index, question) in questions.iter().enumerate() {
        if question.question.trim().is_empty() {
            return Err(format!("questions[{index}].question: must not be empty"));
        }
        if questions
            .iter()
            .take(index)
            .any(|q| q.question == question.question)
        {
            return Err(format!(
                "questions[{index}].question: {:?} appears twice; answers are matched by this text, so each must be unique",
                question.question
            ));
        }
        if question.options.iter().any(|o| o.label.trim().is_empty()) {
            return Err(format!(
                "questions[{index}].options: a label must not be empty"
            ));
        }
        if !question.free_text && question.options.is_empty() {
            return Err(format!(
                "questions[{index}]: `free_text: false` requires options"
            ));
        }
    }
    Ok(())
}

/// Holds a request's title against its bound.
///
/// # Errors
/// What it takes, without the title's place.
pub fn check_title(title: &str) -> Result<(), String> {
    if title.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    within(title, TITLE_CHARS_MAX)
}

/// Holds questions against their bounds: each text, and all of them together.
///
/// # Errors
/// A sentence that names the text and its bound.
pub fn check_lengths(questions: &[Question]) -> Result<(), String> {
    let mut left = QUESTIONS_CHARS_MAX;
    let mut check = |place: &dyn Fn() -> String, text: &str, most: usize| {
        within(text, most).map_err(|error| format!("{}: {error}", place()))?;
        left = left.checked_sub(text.chars().count()).ok_or_else(|| {
            format!(
                "questions: must be at most {QUESTIONS_CHARS_MAX} characters together, including their options"
            )
        })?;
        Ok::<(), String>(())
    };
    for (index, question) in questions.iter().enumerate() {
        let place = |name: &str| format!("questions[{index}].{name}");
        check(
            &|| place("question"),
            &question.question,
            QUESTION_CHARS_MAX,
        )?;
        let header = question.header.as_deref().unwrap_or_default();
        check(&|| place("header"), header, HEADER_CHARS_MAX)?;
        for (number, option) in question.options.iter().enumerate() {
            let of = |name: &str| place(&format!("options[{number}].{name}"));
            check(&|| of("label"), &option.label, LABEL_CHARS_MAX)?;
            let description = option.description.as_deref().unwrap_or_default();
            check(
                &|| of("description"),
                description,
                OPTION_DESCRIPTION_CHARS_MAX,
            )?;
        }
    }
    Ok(())
}

fn within(text: &str, most: usize) -> Result<(), String> {
    match text.chars().nth(most) {
        None => Ok(()),
        Some(_) => Err(format!("must be at most {most} characters")),
    }
}

fn invalid_arguments(message: String) -> ToolError {
    ToolError::new(ToolErrorCode::InvalidArguments, message)
}

fn draft_of_tool(
    call: &ToolCall,
    (title, description): (String, Option<String>),
    ask: Ask,
    expires_in: Option<&str>,
    on_expire: Option<OnExpire>,
) -> Result<RequestDraft, ToolError> {
    check_title(&title).map_err(|error| invalid_arguments(format!("title: {error}")))?;
    let expires_in_ms = expires_in
        .map(crate::time::parse_duration_ms)
        .transpose()
        .map_err(|e| invalid_arguments(format!("expires_in: {e}")))?;
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
