//! Messages: a run's transcript, and what is added to it.

use futures::Stream;
use serde::{Deserialize, Serialize};

use crate::author::Author;
use crate::client::Client;
use crate::error::Error;
use crate::human_requests::HumanRequest;
use crate::id::{HumanRequestId, MessageId, RunId};
use crate::names::names;
use crate::page::{List, Listed, Page, PageRequest};
use crate::reply::Reply;
use crate::time::Timestamp;
use crate::tool_calls::{ToolCall, ToolResult};

names! {
    /// The content of a message.
    MessageKind {
        /// Text.
        Text = "text",
        /// A call of a tool.
        ToolCall = "tool_call",
        /// The result or the error of a call.
        ToolResult = "tool_result",
        /// A request to a person.
        HumanRequest = "human_request",
        /// How a request was closed.
        HumanResponse = "human_response",
        /// The error that ended the run.
        Error = "error",
    }

    /// The side that a message is from.
    Role {
        /// A person's, or a program's.
        User = "user",
        /// The agent's.
        Assistant = "assistant",
        /// A tool's.
        Tool = "tool",
        /// The server's.
        System = "system",
    }
}

/// One message of a run's transcript.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// The message's id.
    pub id: MessageId,
    /// The kind of content.
    #[serde(rename = "type")]
    pub kind: MessageKind,
    /// The side that it is from.
    pub role: Role,
    /// When it was committed.
    pub timestamp: Timestamp,
    /// The text, if it has one.
    pub text_content: Option<String>,
    /// The call, in a [`MessageKind::ToolCall`].
    pub tool_call: Option<ToolCall>,
    /// The result, in a [`MessageKind::ToolResult`].
    pub tool_result: Option<ToolResult>,
    /// The request, in a [`MessageKind::HumanRequest`].
    pub human_request: Option<HumanRequest>,
    /// The response, in a [`MessageKind::HumanResponse`].
    pub human_response: Option<HumanResponse>,
    /// The author, if it came from outside the run.
    pub author: Option<Author>,
    /// Whether the sender declared that people outside the team may have written the text.
    #[serde(default)]
    pub untrusted: bool,
}

impl Listed for Message {
    const FIELD: &'static str = "messages";
    const PAGE_MAX: u32 = 50;
}

/// How a human request was closed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct HumanResponse {
    /// The request's id.
    pub request_id: HumanRequestId,
    /// `approved`, `denied`, `expired`, a message's text, or the answers as JSON. `None` if the run was stopped.
    pub response: Option<String>,
    /// The reason that the person gave.
    pub reason: Option<String>,
}

/// A message to a run.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct NewMessage {
    /// The text; at least one character.
    pub message: String,
    /// Whether people outside the team may have written the text, for example an email that your program forwards.
    /// Tools with the policy `guard` then ask a person.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
}

impl NewMessage {
    /// A message with this text.
    #[must_use]
    pub fn of(text: impl Into<String>) -> Self {
        Self {
            message: text.into(),
            untrusted: false,
        }
    }

    /// Sets [`NewMessage::untrusted`](field@Self::untrusted).
    #[must_use]
    pub fn untrusted(mut self, untrusted: bool) -> Self {
        self.untrusted = untrusted;
        self
    }
}

#[derive(Deserialize)]
struct MessageBody {
    message: Message,
}

impl Client {
    /// One page of a run's messages, oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn messages(
        &self,
        run: &RunId,
        page: PageRequest,
    ) -> Result<Reply<Page<Message>>, Error> {
        self.page(&messages(run), page).await
    }

    /// All messages of a run, oldest first.
    pub fn all_messages(
        &self,
        run: &RunId,
    ) -> impl Stream<Item = Result<Message, Error>> + Send + use<> {
        self.all(messages(run))
    }

    /// Adds a message to a run. It resumes a run that is waiting, completed or interrupted; a running one reads it
    /// before its next step.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn post_message(
        &self,
        run: &RunId,
        message: &NewMessage,
    ) -> Result<Reply<Message>, Error> {
        let path = ["runs", run.as_str(), "messages"];
        let reply = self.post(path).json(message).send::<MessageBody>().await?;
        Ok(reply.map(|body| body.message))
    }
}

fn messages(run: &RunId) -> List {
    List::at(["runs", run.as_str(), "messages"])
}
