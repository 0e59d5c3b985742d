//! The transcript: the truth about a run, append-only.
//!
//! An [`Entry`] has a position in its run (1, 2, 3, … without a gap). What people and programs see as *messages* is a
//! part of the entries ([`Body::is_shown`]); the rest are the engine's own notes (intents, timers, interruptions).
//! Bodies are stored as JSON: a test pins the stored form.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::human::{HumanRequest, Resolution};
use crate::id::{ClaimToken, HumanRequestId, MessageId, UserId};
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
        let exact = serde_json::json!([self.id, self.name, self.arguments]).to_string();
        hex(&Sha256::digest(exact.as_bytes()))
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
pub enum Body {
    /// A message from outside.
    User {
        /// At least one character.
        text: String,
        /// Who sent it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<UserId>,
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
        by: Option<UserId>,
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
        by: Option<UserId>,
    },
    /// Note: a failed run goes on from here, from the step that failed.
    Retried {
        /// By whom.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<UserId>,
    },
    /// Note: where what a call gives comes from, where that is not said by the call itself. It stands before the result.
    Source {
        /// Of which call.
        call_id: String,
        /// Such as the address of a page, or a connection.
        from: String,
        /// Whether it comes from the team's own people and programs.
        trusted: bool,
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
            | Self::Source { .. }
            | Self::Lost { .. }
            | Self::ToolsChanged { .. }
            | Self::Late { .. } => false,
        }
    }
}
