//! The transcript: the append-only record of a run, and the source of truth about it.
//!
//! An [`Entry`] has a position in its run (1, 2, 3, … without gaps). The *messages* that people and programs see are
//! the entries for which [`Body::is_shown`] holds; the others are the engine's own notes (intents, timers,
//! interruptions).
//!
//! # Guarantees
//!
//! Bodies are stored as JSON, and a test pins the stored form. A field is only ever added, with a default, so that old
//! transcripts stay readable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::author::By;
use crate::config::Left;
use crate::content::Content;
use crate::effective::CallerPolicies;
use crate::human::{HumanRequest, Resolution};
use crate::id::{ClaimToken, HumanRequestId, MessageId, RunId};
use crate::run::RunError;
use crate::time::Timestamp;
use crate::tool_error::{ToolError, ToolErrorCode};

/// One entry of a run's transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// 1 for the first entry, without gaps.
    pub position: u64,
    /// The id of the message, if the API shows the entry as one.
    pub id: MessageId,
    /// When the entry was committed.
    pub at: Timestamp,
    pub body: Body,
}

/// An entry before the store assigns its position.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEntry {
    pub id: MessageId,
    pub body: Body,
}

/// A tool call, as the model made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique within the run.
    pub id: String,
    pub name: String,
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// SHA-256, in hexadecimal, of id, name and arguments (with sorted keys). An approval is bound to this digest.
    #[must_use]
    pub fn digest(&self) -> String {
        let arguments = sorted(&Value::Object(self.arguments.clone()));
        let exact = serde_json::json!([self.id, self.name, arguments]).to_string();
        hex::encode(Sha256::digest(exact.as_bytes()))
    }
}

/// Copies a value with the keys of every object sorted.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let by_key: BTreeMap<&String, &Value> = map.iter().collect();
            let pairs = by_key.into_iter();
            Value::Object(pairs.map(|(k, v)| (k.clone(), sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// How a tool call ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Any JSON value if the tool returns structured results, otherwise a string.
    Result(Value),
    /// Stored as text: `not_run: …`, `outcome_unknown: …`, `denied: …`.
    Error(ToolError),
}

impl Outcome {
    /// An error in errand's own words; see [`ToolError::new`].
    #[must_use]
    pub fn error(code: ToolErrorCode, message: impl Into<String>) -> Self {
        Self::Error(ToolError::new(code, message))
    }
}

/// The place in a playbook that a move comes from, and the newest user message that it was decided with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The step's path, such as `2`, or `1[3].0` for the first step of the fourth iteration of a `for_each`.
    pub path: String,
    /// The position of the newest user message that the playbook had read; 0 if there was none.
    pub message: u64,
}

/// The content of an entry. "Note" marks the engine's own entries, which the API does not show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "human requests are rare and always used as a whole; a box would complicate every match"
)]
pub enum Body {
    /// A message from a user.
    User {
        /// Not empty.
        text: String,
        /// The sender.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
        /// The sender declares that people outside the team may have written it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        untrusted: bool,
    },
    /// A message of the model.
    Assistant {
        text: String,
        /// This message ends the run as completed, unless a user message arrived in the meantime.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ends: bool,
        /// Its place in the playbook. `None` for network models.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// The model calls a tool.
    ToolCall {
        call: ToolCall,
        /// Its place in the playbook. `None` for network models.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// The result of a call. Each call gets exactly one.
    ToolResult {
        /// The call that it answers.
        call_id: String,
        /// The name of the tool.
        name: String,
        outcome: Outcome,
    },
    /// A request to a person; the run waits.
    HumanRequest {
        request: HumanRequest,
        /// Its place in the playbook. `None` for network models.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// A human request was closed.
    HumanResponse {
        /// The request that was closed.
        request_id: HumanRequestId,
        resolution: Resolution,
        /// The author of the answer. `None` if it expired or the run was stopped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Why the run failed.
    Error {
        error: RunError,
        /// Its place in the playbook. `None` for network models.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// Note: the holder of this claim is about to execute a call.
    Intent {
        /// The call that is executed.
        call_id: String,
        /// The claim of the driver. An intent of an earlier claim without a result means that the call is in doubt.
        claim: ClaimToken,
        /// Evidence with which the tool can settle the call later, such as digests of a file before and after.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence: Option<Value>,
    },
    /// Note: the run waits for a timer.
    Wait {
        /// When the timer is due.
        until: Timestamp,
        /// Its place in the playbook. `None` for network models.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// Note: the timer was due.
    Woke {
        /// When it was due, as in the [`Body::Wait`].
        until: Timestamp,
    },
    /// Note: the run was stopped here.
    Interrupted {
        /// The author of the stop. `None` if the system stopped the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Note: a failed run continues from the step that failed.
    Retried {
        /// The author of the retry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Note: the source of what a call returns, if the call itself does not say it. Comes before the result.
    Source {
        /// The call that returns it.
        call_id: String,
        /// Such as the URL of a page, or a connection's name.
        from: String,
        /// It comes from the team's own people and programs.
        trusted: bool,
        /// It must not leave the team.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        private: bool,
    },
    /// Note: a call of another run started this one. Always the first entry.
    Caller {
        /// The calling run.
        run: RunId,
        /// The content that the calling run had read by then: its message may repeat instructions from there.
        #[serde(default, skip_serializing_if = "Content::is_none")]
        content: Content,
        /// The policies of the calling run's tools. This run's policies are at least as strict.
        #[serde(default)]
        policies: CallerPolicies,
        /// The rest of the calling run's own limits.
        #[serde(default)]
        left: Left,
    },
    /// Note: the server of a connection that had asked a person during a call is gone, and the call with it.
    Lost {
        /// The call that is lost.
        call_id: String,
    },
    /// Note: tools of a connection differ from what the last probe found.
    ToolsChanged {
        /// The connection's name.
        connection: String,
        /// The names under which the tools are offered.
        tools: Vec<String>,
    },
    /// Note: the true outcome of a call, after it had been closed with an unknown outcome.
    Late {
        /// The call whose outcome this is.
        call_id: String,
        outcome: Outcome,
    },
    /// Note: the user turn that a network model gets when a run starts without a message.
    Opening {
        /// `Begin.`, and a list of the files in the sandbox at that time.
        text: String,
    },
    /// Note: a network model answered. Its decision follows in the same step.
    ModelCall { call: ModelCall },
    /// Note: a network model gave no usable answer and is asked again later.
    ModelFailed {
        /// The number of the attempt, from 1.
        attempt: u32,
        /// The error, for people.
        error: String,
        /// When the model is asked again.
        until: Timestamp,
    },
    /// Note: the tokens and cost of an attempt that gave no usable answer.
    ModelAttempt {
        /// Tokens and cost of the attempt. Its `answer` is meaningless.
        call: ModelCall,
        /// How the attempt ended.
        outcome: AttemptOutcome,
        /// The error, if the attempt failed.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        error: String,
    },
    /// Note: a summary that a network model is sent in place of all entries up to a position, because they no longer fit
    /// in its context window.
    Summary {
        /// Written by the model.
        text: String,
        /// The position of the last entry that it replaces.
        up_to: u64,
    },
}

/// Tokens, cost and circumstances of one call of a network model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelCall {
    /// `provider/name`.
    pub model: String,
    /// Tokens sent, including cached ones.
    pub input_tokens: u64,
    /// How many of the input tokens the provider served from its cache.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// US dollars at the prices of that time; 0 if the price was unknown.
    #[serde(default)]
    pub cost_usd: f64,
    /// The price was unknown, so `cost_usd` is not the real cost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpriced: bool,
    /// Tokens were estimated from bytes because the provider did not report all of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// Milliseconds from sending the request to the end of the answer.
    #[serde(default)]
    pub ms: u64,
    /// The number of the attempt that succeeded, from 1.
    #[serde(default)]
    pub attempt: u32,
    /// The position of the newest entry when the request was sent: the model has not read messages after it.
    #[serde(default)]
    pub read_to: u64,
    #[serde(default)]
    pub purpose: Purpose,
    #[serde(default)]
    pub answer: AnswerKind,
    /// Bytes of the conversation as sent, if it was truncated to fit the context window; otherwise 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sent_bytes: u64,
    /// Opaque data that the provider wants back with a tool call, by the call's id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub signatures: BTreeMap<String, Vec<String>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl ModelCall {
    /// Whether the provider began to answer, as far as known. Then the attempt counts as a model call.
    #[must_use]
    pub fn used_tokens(&self) -> bool {
        self.input_tokens > 0 || self.output_tokens > 0
    }
}

/// How an attempt without a usable answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    Failed,
    /// It was canceled, for example because the run was stopped.
    Canceled,
}

/// The purpose of a model call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The run's next turn.
    #[default]
    Turn,
    /// A summary of older turns.
    Summary,
}

/// The kind of a model's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// A text, or at least one executable call.
    #[default]
    Whole,
    /// A text truncated at the model's maximum length.
    Cut,
    /// Neither a text nor an executable call.
    Empty,
    /// Withheld by the provider's filter, or refused by the model.
    Refused,
}

impl Body {
    /// Whether the API shows the entry as a message. The others are the engine's own notes.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        match self {
            Self::User { .. }
            | Self::Assistant { .. }
            | Self::ToolCall { .. }
            | Self::ToolResult { .. }
            | Self::HumanRequest { .. }
            | Self::HumanResponse { .. }
            | Self::Error { .. } => true,
            Self::Intent { .. }
            | Self::Wait { .. }
            | Self::Woke { .. }
            | Self::Interrupted { .. }
            | Self::Retried { .. }
            | Self::Opening { .. }
            | Self::ModelCall { .. }
            | Self::ModelAttempt { .. }
            | Self::ModelFailed { .. }
            | Self::Summary { .. }
            | Self::Source { .. }
            | Self::Caller { .. }
            | Self::Lost { .. }
            | Self::ToolsChanged { .. }
            | Self::Late { .. } => false,
        }
    }
}
