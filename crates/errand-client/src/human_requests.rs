//! Human requests: what a run asks people, and their answers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::author::Author;
use crate::client::Client;
use crate::error::Error;
use crate::id::{HumanRequestId, RunId};
use crate::names::names;
use crate::reply::Reply;
use crate::time::Timestamp;
use crate::tool_calls::ToolCall;

names! {
    /// The kind of answer that a request needs.
    RequestKind {
        /// An approval or a denial.
        Approval = "approval",
        /// An answer to each question.
        Question = "question",
    }

    /// The rule that a build has for a tool.
    Policy {
        /// Calls run without asking.
        Allow = "allow",
        /// Calls ask a person if the run has read untrusted or private content.
        Guard = "guard",
        /// Each call asks a person.
        Ask = "ask",
        /// Calls are refused.
        Deny = "deny",
    }
}

/// A request that waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct HumanRequest {
    /// The request's id.
    pub id: HumanRequestId,
    /// The request in one line.
    pub title: String,
    /// More details.
    pub description: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// The kind of answer that it needs.
    #[serde(rename = "type")]
    pub kind: RequestKind,
    /// The questions, in a [`RequestKind::Question`].
    pub questions: Option<Vec<Question>>,
    /// The call that an approval permits, exactly as it will be made.
    pub tool_call: Option<ToolCall>,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// Why a policy asks about the call. Its texts come from outside: show them as quotations.
    pub reason: Option<Reason>,
    /// Text from a connection's server. It comes from outside: show it as a quotation.
    pub quote: Option<Quote>,
}

/// One question of a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Question {
    /// The text; also the key of its answer.
    pub question: String,
    /// One or two words to show above the question.
    pub header: Option<String>,
    /// The choices. `None`: the answer is free text.
    pub options: Option<Vec<QuestionOption>>,
    /// Whether several options may be chosen.
    pub multi_select: Option<bool>,
    /// `Some(false)`: only the options are accepted.
    pub free_text: Option<bool>,
}

/// One choice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct QuestionOption {
    /// The text to show; also the value in the answer.
    pub label: String,
    /// One more sentence about it.
    pub description: Option<String>,
}

/// Why a policy asks about a call.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Reason {
    /// The policy that asks.
    pub policy: Policy,
    /// The content that counts for the call, newest last.
    pub sources: Vec<ContentSource>,
    /// An upper bound for the number of further sources.
    pub more: u64,
}

/// A piece of content that a run has read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct ContentSource {
    /// The tool that read it; `message` for a message marked as untrusted, `start` for content that the run began with.
    pub tool: String,
    /// The call that read it.
    pub call_id: Option<String>,
    /// The thing that was read: a path, a command, a URL, or the arguments as JSON.
    pub item: Option<String>,
    /// When it was read.
    pub at: Timestamp,
    /// The run that read it. `None`: this run.
    pub run_id: Option<RunId>,
    /// Whether people outside the team may have written it.
    pub untrusted: bool,
    /// Whether it must not leave the team.
    pub private: bool,
}

/// Text from a third party.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Quote {
    /// The connection's name.
    pub by: String,
    /// The text.
    pub text: String,
}

/// A request that was closed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct AnsweredRequest {
    /// The request's id.
    pub id: HumanRequestId,
    /// The run that made it.
    pub run_id: RunId,
    /// The request in one line.
    pub title: String,
    /// More details.
    pub description: Option<String>,
    /// `approved`, `denied`, `expired`, a message's text, or the answers as JSON. `None` if the run was stopped.
    pub response: Option<String>,
    /// When it was closed.
    pub responded_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// The user who answered, or who created the API key that did.
    pub responded_by: Option<String>,
    /// The reason that the person gave.
    pub reason: Option<String>,
    /// The author of the answer.
    pub author: Option<Author>,
}

/// A person's answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    approved: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Answer {
    /// Approves or denies the call, for a [`RequestKind::Approval`].
    #[must_use]
    pub fn approved(approved: bool) -> Self {
        Self {
            approved: Some(approved),
            answers: None,
            reason: None,
        }
    }

    /// Permits the call.
    #[must_use]
    pub fn approve() -> Self {
        Self::approved(true)
    }

    /// Refuses the call.
    #[must_use]
    pub fn deny() -> Self {
        Self::approved(false)
    }

    /// Answers each question, for a [`RequestKind::Question`]: its text, and a label, a list of labels, or free text.
    #[must_use]
    pub fn to_questions<Q: Into<String>, A: Into<Value>>(
        answers: impl IntoIterator<Item = (Q, A)>,
    ) -> Self {
        let answers = answers
            .into_iter()
            .map(|(question, answer)| (question.into(), answer.into()));
        Self {
            approved: None,
            answers: Some(answers.collect()),
            reason: None,
        }
    }

    /// Sets the reason for an approval or a denial, which the agent sees.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}

#[derive(Deserialize)]
struct AnsweredBody {
    human_request: AnsweredRequest,
}

impl Client {
    /// Answers the request for which a run waits.
    ///
    /// # Errors
    /// See [`Error`]. The server answers 400 if the request was closed meanwhile; the message says when and by whom.
    pub async fn respond(
        &self,
        run: &RunId,
        request: &HumanRequestId,
        answer: &Answer,
    ) -> Result<Reply<AnsweredRequest>, Error> {
        let path = [
            "runs",
            run.as_str(),
            "human-requests",
            request.as_str(),
            "respond",
        ];
        let reply = self.post(path).json(answer).send::<AnsweredBody>().await?;
        Ok(reply.map(|body| body.human_request))
    }
}
