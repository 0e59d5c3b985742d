//! The objects of the wire contract: what the API returns, and what event streams and webhooks carry.
//!
//! They are in this crate and not with the API's handlers because webhook bodies and idempotent responses are written
//! in the transaction that has the effect, and must be the same bytes each time. A nullable field is always present; an
//! optional one (`skip_serializing_if`) is omitted. The doc comments are the descriptions in the OpenAPI document.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::author::AuthorBody;
use crate::content::{Reason, Source};
use crate::human::{Ask, HumanRequest, Question, Resolution};
use crate::run::{RunError, Status};
use crate::time::Timestamp;
use crate::transcript::{Body, Entry, Outcome, ToolCall};

/// One execution of an agent's build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunBody {
    /// The id of the run.
    pub id: Uuid,
    /// The agent that the run executes.
    pub agent_id: Uuid,
    /// The agent's build; the latest one when the run started.
    pub build_id: Uuid,
    /// `pending`, `starting`, `running`, `waiting`, `completed`, `failed` or `interrupted`.
    #[schema(value_type = String, example = "running")]
    pub status: Status,
    /// `api`, `web`, `schedule`, `mcp` or `cli`.
    #[schema(required)]
    pub source: Option<String>,
    /// The sandbox of the run; null until it needs one.
    #[schema(required)]
    pub sandbox_id: Option<String>,
    /// When it first started.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub started_at: Option<Timestamp>,
    /// When it ended; null again if a message resumed it.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub completed_at: Option<Timestamp>,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Whether its build may ask people.
    pub human_in_the_loop_enabled: bool,
    /// The beginning of its first message.
    #[schema(required)]
    pub title: Option<String>,
    /// Why it failed; null unless it did.
    #[schema(value_type = Option<ErrorBody>, required)]
    pub error: Option<RunError>,
    /// Its usage so far.
    pub usage: UsageBody,
    /// The reason why it is not working right now, if there is one; null if it has ended.
    #[schema(required)]
    pub waiting_on: Option<WaitingOn>,
    /// The author of the start: a person, an API key (with its name), or the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<AuthorBody>,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A stable code for programs, such as `limit_exceeded`.
    pub code: String,
    /// An explanation for people, with advice on what to do.
    pub message: String,
}

/// The usage of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageBody {
    /// Model calls plus tool calls.
    pub steps: u64,
    /// Calls of models.
    pub model_calls: u64,
    /// Calls of tools.
    pub tool_calls: u64,
    /// Tokens sent to models, including cached ones.
    pub input_tokens: u64,
    /// How many of the input tokens came from the provider's cache.
    pub cached_tokens: u64,
    /// Tokens received from models.
    pub output_tokens: u64,
    /// US dollars. Null if the price of some tokens is unknown; then `cost_known_usd` has the known part.
    #[schema(required)]
    pub cost_usd: Option<f64>,
    /// US dollars of the tokens whose price is known, if the price of others is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_known_usd: Option<f64>,
    /// Tokens whose price is unknown: their model is not in the price list, and the operator has set no price. Omitted
    /// if there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cost_unknown_tokens: u64,
    /// True if a provider did not report all tokens, so that some are estimated. Omitted otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// Active time, in seconds.
    pub seconds: f64,
    /// How many of these seconds the run waited for network models.
    #[serde(default)]
    pub model_seconds: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl UsageBody {
    /// US dollars, counting only tokens whose price is known.
    #[must_use]
    pub fn known_usd(&self) -> f64 {
        self.cost_usd.or(self.cost_known_usd).unwrap_or_default()
    }
}

impl Default for UsageBody {
    fn default() -> Self {
        Self {
            steps: 0,
            model_calls: 0,
            tool_calls: 0,
            input_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            // Nothing was used, so the cost is known.
            cost_usd: Some(0.0),
            cost_known_usd: None,
            cost_unknown_tokens: 0,
            estimated: false,
            seconds: 0.0,
            model_seconds: 0.0,
        }
    }
}

/// The reason why a run that has not ended is waiting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaitingOn {
    /// `human`, `timer`, `place`, `sandbox`, `model`, `tool`, `child_run`, `retry` or `start`.
    pub kind: String,
    /// The name of the person or thing awaited, such as a tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// When the wait began.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// When the wait ends at the latest, if it has an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline: Option<Timestamp>,
    /// The next thing that will happen, as a sentence for people.
    pub next: String,
}

impl WaitingOn {
    /// Appends a sentence if the clock was set back since the wait began: everything that is due by the clock is
    /// delayed by the same amount.
    pub fn say_clock_back(&mut self, now: Timestamp) {
        let back_s = self.since.ms_since(now) / 1000;
        // Time synchronization moves clocks by about a second, which is not worth a remark.
        if back_s >= 2 {
            self.next.push_str(&format!(
                " The server's clock was set back by at least {back_s} s, so timers and deadlines are delayed by the same time."
            ));
        }
    }
}

/// One message of a run's transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageBody {
    /// The id of the message.
    pub id: Uuid,
    /// `text`, `tool_call`, `tool_result`, `human_request`, `human_response` or `error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `user`, `assistant`, `tool` or `system`.
    pub role: String,
    /// When it was committed.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// The text, if the message has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_content: Option<String>,
    /// The call, for a `tool_call`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<ToolCallBody>,
    /// The result, for a `tool_result`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_result: Option<ToolResultBody>,
    /// The request, if `type` is `human_request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human_request: Option<PendingRequestBody>,
    /// The response, for a `human_response`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human_response: Option<HumanResponseBody>,
    /// The author, for messages and responses from outside: a person, an API key (with its name), or the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<AuthorBody>,
    /// True if the sender declared that people outside the team may have written the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<bool>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallBody {
    /// The id of the call; unique within the run.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// The arguments of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub arguments: Option<Map<String, Value>>,
}

/// The result or the error of a tool call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolResultBody {
    /// The call that it answers.
    pub tool_call_id: String,
    /// Any JSON value if the tool returns structured results, otherwise a string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The error. Starts with a stable word and a colon, such as `denied:`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a human request was closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HumanResponseBody {
    /// The request that was closed.
    pub request_id: Uuid,
    /// `approved`, `denied`, `expired`, a message's text, or the answers as JSON; null if the run was stopped.
    #[schema(required)]
    pub response: Option<String>,
    /// The reason that the person gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One question of a human request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuestionBody {
    /// The text of the question; also the key of its answer.
    pub question: String,
    /// One or two words to show above the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The choices. Omitted: the answer is free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<OptionBody>>,
    /// Whether several options may be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multi_select: Option<bool>,
    /// False: only the options are accepted. Omitted: other text is accepted, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_text: Option<bool>,
}

/// One option of a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OptionBody {
    /// The text to show; also the value in the answer.
    pub label: String,
    /// One more sentence about the option.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A human request that waits for an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PendingRequestBody {
    /// The id of the request.
    pub id: Uuid,
    /// The request in one line.
    pub title: String,
    /// More details.
    #[schema(required)]
    pub description: Option<String>,
    /// When the request was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// `approval` or `question`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The questions, for a `question`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<Vec<QuestionBody>>,
    /// The exact call that an approval allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<ToolCallBody>,
    /// When it expires; null if it does not.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub expires_at: Option<Timestamp>,
    /// Why a policy asks about the call. Omitted if no policy asks. Its texts come from outside: show them as
    /// quotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReasonBody>,
    /// Text from a connection's server. It comes from outside the team: show it as a quotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<QuoteBody>,
}

/// Why a policy asks about a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReasonBody {
    /// `ask` or `guard`.
    pub policy: String,
    /// The content that counts for this call, newest last; at most 16. May be empty for `ask`, which asks regardless of
    /// what was read.
    #[schema(max_items = 16)]
    pub sources: Vec<SourceBody>,
    /// An upper bound for the number of further sources.
    pub more: u64,
}

/// A piece of content that a run has read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceBody {
    /// The tool that read it; `message` for a message marked as untrusted, `start` for content that the run began with.
    pub tool: String,
    /// The call, among the run's messages; null if no call read it.
    #[schema(required)]
    pub call_id: Option<String>,
    /// The thing read, in the call's own words: a path, a command, a URL, or the arguments as JSON. At most 301
    /// characters; the last one is `…` if it was truncated.
    #[schema(required, max_length = 301)]
    pub item: Option<String>,
    /// When it was read.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The run that read it, if it was one that started this run; null for this run.
    #[schema(required)]
    pub run_id: Option<Uuid>,
    /// Whether people outside the team may have written it.
    pub untrusted: bool,
    /// Whether it must not leave the team.
    pub private: bool,
}

/// Text from a third party.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuoteBody {
    /// The name of the connection that it comes from.
    pub by: String,
    /// The text, to be shown as a quotation.
    pub text: String,
}

/// A human request that has been closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AnsweredRequestBody {
    /// The id of the request.
    pub id: Uuid,
    /// The run that made the request.
    pub run_id: Uuid,
    /// The request in one line.
    pub title: String,
    /// More details.
    #[schema(required)]
    pub description: Option<String>,
    /// `approved`, `denied`, `expired`, a message's text, or the answers as JSON.
    #[schema(required)]
    pub response: Option<String>,
    /// When it was closed.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub responded_at: Option<Timestamp>,
    /// When the request was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The user who answered; null if it expired or the run was stopped.
    #[schema(required)]
    pub responded_by: Option<Uuid>,
    /// The reason that the person gave.
    #[schema(required)]
    pub reason: Option<String>,
    /// The author of the answer: a person, an API key (with its name), or the system, if a deadline or the end of
    /// another run closed it. Omitted from events that are older than this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<AuthorBody>,
}

/// The body of a webhook request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WebhookBody {
    /// The id of the event, the same at every attempt.
    pub id: Uuid,
    /// `human_request`, `run_completed`, `run_failed` or `run_interrupted`.
    pub event: String,
    /// The number of the event, which increases within the run.
    pub sequence: u64,
    /// When the event happened.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The run that the event is about.
    pub run_id: Uuid,
    /// The agent of the run.
    pub agent_id: Uuid,
    /// The run as `GET /v1/runs/{run_id}` returned it at that time.
    pub run: RunBody,
    /// The pending request, for `human_request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human_request: Option<PendingRequestBody>,
    /// The URL to send the answer to, for `human_request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond_url: Option<String>,
}

/// The body of a test request to a webhook's URL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TestWebhookBody {
    /// The id of the event, the same at every attempt.
    pub id: Uuid,
    /// `webhook_test`.
    pub event: String,
    /// When the test was requested.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The webhook under test.
    pub webhook_id: Uuid,
    /// A sentence for people.
    pub message: String,
}

impl From<&ToolCall> for ToolCallBody {
    fn from(call: &ToolCall) -> Self {
        Self {
            id: call.id.clone(),
            name: call.name.clone(),
            arguments: Some(call.arguments.clone()),
        }
    }
}

impl From<&Question> for QuestionBody {
    fn from(q: &Question) -> Self {
        let options = q.options.iter().map(|o| OptionBody {
            label: o.label.clone(),
            description: o.description.clone(),
        });
        Self {
            question: q.question.clone(),
            header: q.header.clone(),
            options: (!q.options.is_empty()).then(|| options.collect()),
            multi_select: Some(q.multi_select),
            free_text: (!q.free_text).then_some(false),
        }
    }
}

impl From<&HumanRequest> for PendingRequestBody {
    fn from(request: &HumanRequest) -> Self {
        let (kind, questions) = match &request.ask {
            Ask::Approval => ("approval", None),
            Ask::Question { questions } => (
                "question",
                Some(questions.iter().map(QuestionBody::from).collect()),
            ),
        };
        Self {
            id: request.id.as_uuid(),
            title: request.title.clone(),
            description: request.description.clone(),
            created_at: request.created_at,
            kind: kind.to_owned(),
            questions,
            tool_call: request.tool_call.as_ref().map(ToolCallBody::from),
            expires_at: request.expires_at,
            reason: request.reason.as_ref().map(ReasonBody::from),
            quote: request.quote.as_ref().map(|quote| QuoteBody {
                by: quote.by.clone(),
                text: quote.text.clone(),
            }),
        }
    }
}

impl From<&Reason> for ReasonBody {
    fn from(reason: &Reason) -> Self {
        let source = |source: &Source| SourceBody {
            tool: source.read.tool.clone(),
            call_id: source.read.call_id.clone(),
            item: source.read.item.clone(),
            at: source.read.at,
            run_id: source.read.run.map(|run| run.as_uuid()),
            untrusted: source.untrusted,
            private: source.private,
        };
        Self {
            policy: reason.policy.as_str().to_owned(),
            sources: reason.sources.iter().map(source).collect(),
            more: reason.more,
        }
    }
}

impl MessageBody {
    /// The wire form of an entry; `None` for the engine's own notes.
    #[must_use]
    pub fn of(entry: &Entry) -> Option<Self> {
        let empty = |kind: &str, role: &str| Self {
            id: entry.id.as_uuid(),
            kind: kind.to_owned(),
            role: role.to_owned(),
            timestamp: entry.at,
            text_content: None,
            tool_call: None,
            tool_result: None,
            human_request: None,
            human_response: None,
            author: None,
            untrusted: None,
        };
        let message = match &entry.body {
            Body::User {
                text,
                by,
                untrusted,
            } => Self {
                text_content: Some(text.clone()),
                author: Some(by.as_ref().into()),
                untrusted: untrusted.then_some(true),
                ..empty("text", "user")
            },
            Body::Assistant { text, .. } => Self {
                text_content: Some(text.clone()),
                ..empty("text", "assistant")
            },
            Body::ToolCall { call, .. } => Self {
                tool_call: Some(call.into()),
                ..empty("tool_call", "assistant")
            },
            Body::ToolResult {
                call_id, outcome, ..
            } => Self {
                tool_result: Some(tool_result(call_id, outcome)),
                ..empty("tool_result", "tool")
            },
            Body::HumanRequest { request, .. } => Self {
                text_content: Some(request.title.clone()),
                human_request: Some(request.into()),
                ..empty("human_request", "assistant")
            },
            Body::HumanResponse {
                request_id,
                resolution,
                by,
            } => Self {
                text_content: resolution.response(),
                author: Some(by.as_ref().into()),
                human_response: Some(HumanResponseBody {
                    request_id: request_id.as_uuid(),
                    response: resolution.response(),
                    reason: Resolution::reason(resolution).map(str::to_owned),
                }),
                ..empty("human_response", "user")
            },
            Body::Error { error, .. } => Self {
                text_content: Some(error.message.clone()),
                ..empty("error", "system")
            },
            Body::Intent { .. }
            | Body::Wait { .. }
            | Body::Woke { .. }
            | Body::Interrupted { .. }
            | Body::Retried { .. }
            | Body::Late { .. }
            | Body::Opening { .. }
            | Body::ModelCall { .. }
            | Body::ModelFailed { .. }
            | Body::ModelAttempt { .. }
            | Body::Summary { .. }
            | Body::Source { .. }
            | Body::Caller { .. }
            | Body::Lost { .. }
            | Body::ToolsChanged { .. } => return None,
        };
        Some(message)
    }
}

fn tool_result(call_id: &str, outcome: &Outcome) -> ToolResultBody {
    let (result, error) = match outcome {
        Outcome::Result(value) => (Some(value.clone()), None),
        Outcome::Error(error) => (None, Some(error.to_string())),
    };
    ToolResultBody {
        tool_call_id: call_id.to_owned(),
        result,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_from_the_future_reports_that_the_clock_was_set_back() {
        let mut waiting = WaitingOn {
            kind: "timer".to_owned(),
            who: None,
            since: Timestamp::from_millis(10_000),
            deadline: None,
            next: "It goes on.".to_owned(),
        };
        waiting.say_clock_back(Timestamp::from_millis(9_000));
        assert_eq!(waiting.next, "It goes on.");
        waiting.say_clock_back(Timestamp::from_millis(4_000));
        assert!(
            waiting.next.contains("set back by at least 6 s"),
            "{}",
            waiting.next
        );
    }
}
