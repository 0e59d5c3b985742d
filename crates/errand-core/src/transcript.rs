//! The transcript: the truth about a run, append-only.
//!
//! An [`Entry`] has a position in its run (1, 2, 3, … without a gap). What people and programs see as *messages* is a
//! part of the entries ([`Body::is_shown`]); the rest are the engine's own notes (intents, timers, interruptions).
//! Bodies are stored as JSON: a test pins the stored form.

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

/// One entry of a run's transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// 1 for the first, without a gap.
    pub position: u64,
    /// The id under which the API shows it.
    pub id: MessageId,
    /// When it was committed.
    pub at: Timestamp,
    /// What happened.
    pub body: Body,
}

/// An entry before it has its position: what a step wants to append.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEntry {
    /// The id it will have.
    pub id: MessageId,
    /// What happened.
    pub body: Body,
}

/// A call of a tool, as the model made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique in its run.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// SHA-256, in hexadecimal, of name and arguments (keys sorted): what an approval is bound to.
    #[must_use]
    pub fn digest(&self) -> String {
        let arguments = sorted(&Value::Object(self.arguments.clone()));
        let exact = serde_json::json!([self.id, self.name, arguments]).to_string();
        hex(&Sha256::digest(exact.as_bytes()))
    }
}

/// The same value with the keys of each object in their order, whatever order they came in.
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

/// Bytes in lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

/// What became of a tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A JSON value where the tool is structured, else a string.
    Result(Value),
    /// A sentence that starts with a stable word: `not_run: …`, `outcome_unknown: …`, `denied: …`.
    Error(String),
}

/// Where in a playbook a move comes from, and the newest user's message it was decided with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The step's path, such as `2`, or `1[3].0` for the first step of the fourth round of a `for_each`.
    pub path: String,
    /// The position of the newest user's message that was read; 0 where there was none.
    pub message: u64,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "a request is rare, and read where it is whole; a box would be in everybody's way"
)]
pub enum Body {
    /// A message from outside.
    User {
        /// At least one character.
        text: String,
        /// Who sent it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
        /// Whether the sender says that strangers may have written it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        untrusted: bool,
    },
    /// A message of the model.
    Assistant {
        /// Its text.
        text: String,
        /// It ends the run as completed, unless a user's message came meanwhile.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ends: bool,
        /// Where it comes from, for a playbook.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// The model calls a tool.
    ToolCall {
        /// The call.
        call: ToolCall,
        /// Where it comes from, for a playbook.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// A call has its result. Each call gets exactly one.
    ToolResult {
        /// Of which call.
        call_id: String,
        /// The tool's name.
        name: String,
        /// What became of it.
        outcome: Outcome,
    },
    /// A person is asked; the run waits.
    HumanRequest {
        /// The request, whole.
        request: HumanRequest,
        /// Where it comes from, for a playbook.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// A request is closed.
    HumanResponse {
        /// Which one.
        request_id: HumanRequestId,
        /// How.
        resolution: Resolution,
        /// By whom; none where time or a stop closed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Why the run failed.
    Error {
        /// Code and sentence.
        error: RunError,
        /// Where it comes from, for a playbook.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// Note: a call is about to be carried out, by the holder of this claim.
    Intent {
        /// Of which call.
        call_id: String,
        /// Under which claim: an intent of an earlier claim without a result is in doubt.
        claim: ClaimToken,
        /// What the tool needs to settle the call by looking, such as digests of a file before and after.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence: Option<Value>,
    },
    /// Note: the run waits for a moment.
    Wait {
        /// The moment.
        until: Timestamp,
        /// Where it comes from, for a playbook.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<Mark>,
    },
    /// Note: the moment has come.
    Woke {
        /// The moment that was waited for.
        until: Timestamp,
    },
    /// Note: the run was stopped here.
    Interrupted {
        /// By whom; none where the program did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Note: a failed run goes on from here, from the step that failed.
    Retried {
        /// By whom.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// Note: where what a call gives comes from, where that is not said by the call itself. It stands before the result.
    Source {
        /// Of which call.
        call_id: String,
        /// Such as the address of a page, or a connection.
        from: String,
        /// Whether it comes from the team's own people and programs.
        trusted: bool,
        /// Whether it must not leave the team.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        private: bool,
    },
    /// Note: a call of another run started this one. It stands before anything else.
    Caller {
        /// The other run.
        run: RunId,
        /// What had come into the other run by then: whatever it says may be that content's word.
        #[serde(default, skip_serializing_if = "Content::is_none")]
        content: Content,
        /// The policies of its tools: this run's are as strict at least.
        #[serde(default)]
        policies: CallerPolicies,
        /// What it had left of its own limits.
        #[serde(default)]
        left: Left,
    },
    /// Note: the server that a connection's call was under way at, and that had asked a person, does not have it any more.
    Lost {
        /// Of which call.
        call_id: String,
    },
    /// Note: tools of a connection are not what they were when it was probed.
    ToolsChanged {
        /// The connection's name.
        connection: String,
        /// Their names, as they are offered.
        tools: Vec<String>,
    },
    /// Note: what really became of a call that was closed before its outcome was known.
    Late {
        /// Of which call.
        call_id: String,
        /// What became of it.
        outcome: Outcome,
    },
    /// Note: the user's turn with which a run without a message begins, for a network model.
    Opening {
        /// `Begin.`, and the files that were there then.
        text: String,
    },
    /// Note: a network model was asked and answered. What it decided follows in the same step.
    ModelCall {
        /// What is known of the call.
        call: ModelCall,
    },
    /// Note: a network model was asked and gave no answer that can be read; it is asked again.
    ModelFailed {
        /// Which attempt it was, from 1.
        attempt: u32,
        /// What happened.
        error: String,
        /// When it is asked again.
        until: Timestamp,
    },
    /// Note: a network model was asked and gave no answer that can be used: what the attempt used up.
    ModelAttempt {
        /// What is known of the call; its `answer` says nothing.
        call: ModelCall,
        /// What became of it.
        outcome: AttemptOutcome,
        /// What happened, where it failed.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        error: String,
    },
    /// Note: what a network model is sent in place of the entries up to a position, since its window is full.
    Summary {
        /// Written by the model.
        text: String,
        /// The position of the last entry that it stands for.
        up_to: u64,
    },
}

/// A call of a network model that gave an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelCall {
    /// `provider/name`.
    pub model: String,
    /// Tokens sent, the cached ones included.
    pub input_tokens: u64,
    /// Of these, from the provider's cache.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Tokens that came back.
    pub output_tokens: u64,
    /// US dollars, by the prices of then; 0 where the price is not known.
    #[serde(default)]
    pub cost_usd: f64,
    /// The price was not known: what it cost is not known either.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpriced: bool,
    /// Tokens were estimated from bytes, since the provider did not count them all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// How long the answer took, in milliseconds, from the question to its end.
    #[serde(default)]
    pub ms: u64,
    /// Which attempt gave it, from 1.
    #[serde(default)]
    pub attempt: u32,
    /// The position of the last entry that was there when it was asked: messages after it were not read.
    #[serde(default)]
    pub read_to: u64,
    /// What the answer was for.
    #[serde(default)]
    pub purpose: Purpose,
    /// What became of it.
    #[serde(default)]
    pub answer: AnswerKind,
    /// Bytes of the conversation as it was sent, where it was shortened to fit; 0: it was not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sent_bytes: u64,
    /// What the provider wants back with a call of a tool, by the call's id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub signatures: BTreeMap<String, Vec<String>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl ModelCall {
    /// Whether an answer was begun, as far as that is known: then it counts as a call.
    #[must_use]
    pub fn used_tokens(&self) -> bool {
        self.input_tokens > 0 || self.output_tokens > 0
    }
}

/// What became of an attempt that gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// It failed.
    Failed,
    /// It was called off.
    Canceled,
}

/// What a model was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The run's next turn.
    #[default]
    Turn,
    /// A summary of older turns.
    Summary,
}

/// What kind of answer a model gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// A text, or at least one call that can be carried out.
    #[default]
    Whole,
    /// A text that was cut off at the answer's greatest length.
    Cut,
    /// Neither text nor a call that can be carried out.
    Empty,
    /// Held back by the provider's filter, or by the model.
    Refused,
}

impl Body {
    /// Whether it is one of the API's messages, or the engine's own note.
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
