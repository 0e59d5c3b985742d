//! The objects of the wire contract: what the API answers, what streams and webhooks carry.
//!
//! They are here and not with the API's handlers because a webhook's body and an idempotent answer are written in the
//! transaction that has the effect, and must be the same bytes. A nullable field is always present; an optional one
//! (`skip_serializing_if`) is left out.

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

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunBody {
    /// The run.
    pub id: Uuid,
    /// The agent it runs.
    pub agent_id: Uuid,
    /// The build: the agent's latest when the run was started.
    pub build_id: Uuid,
    /// `pending`, `starting`, `running`, `waiting`, `completed`, `failed` or `interrupted`.
    #[schema(value_type = String, example = "running")]
    pub status: Status,
    /// `api`, `web`, `schedule`, `mcp` or `cli`.
    #[schema(required)]
    pub source: Option<String>,
    /// The sandbox it works in; null until it needs one.
    #[schema(required)]
    pub sandbox_id: Option<String>,
    /// Its first start.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub started_at: Option<Timestamp>,
    /// When it ended; null again once a message resumed it.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub completed_at: Option<Timestamp>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Whether its build asks people.
    pub human_in_the_loop_enabled: bool,
    /// The beginning of its first message.
    #[schema(required)]
    pub title: Option<String>,
    /// Why it failed.
    #[schema(value_type = Option<ErrorBody>, required)]
    pub error: Option<RunError>,
    /// What it has used up.
    pub usage: UsageBody,
    /// What it waits for; null once ended.
    #[schema(required)]
    pub waiting_on: Option<WaitingOn>,
    /// Who started it: a person, an API key by its name, or the system. Absent in events from before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<AuthorBody>,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A stable code.
    pub code: String,
    /// A sentence.
    pub message: String,
}

/// What a run has used up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageBody {
    /// Model calls and tool calls.
    pub steps: u64,
    /// Model calls.
    pub model_calls: u64,
    /// Tool calls.
    pub tool_calls: u64,
    /// Tokens that were sent.
    pub input_tokens: u64,
    /// Of these, from the provider's cache.
    pub cached_tokens: u64,
    /// Tokens that came back.
    pub output_tokens: u64,
    /// US dollars. Null where it is not known: the price of some of its tokens is not. `cost_known_usd` has the rest.
    #[schema(required)]
    pub cost_usd: Option<f64>,
    /// US dollars of the tokens whose price is known, where it is not known for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_known_usd: Option<f64>,
    /// Tokens whose price is not known: their model is not in the price list, and the operator has set none. Absent: there
    /// are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cost_unknown_tokens: u64,
    /// Whether a provider did not count all tokens, so that some of these are an estimate. Absent: it did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// Working time in seconds.
    pub seconds: f64,
    /// Of these, spent waiting for network models' answers.
    #[serde(default)]
    pub model_seconds: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl UsageBody {
    /// US dollars, as far as prices are known.
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
            // Nothing was used up, which is known.
            cost_usd: Some(0.0),
            cost_known_usd: None,
            cost_unknown_tokens: 0,
            estimated: false,
            seconds: 0.0,
            model_seconds: 0.0,
        }
    }
}

/// What a run that has not ended waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaitingOn {
    /// `human`, `timer`, `place`, `sandbox`, `model`, `tool`, `child_run`, `retry` or `start`.
    pub kind: String,
    /// Whom or what, such as the tool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Until when at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline: Option<Timestamp>,
    /// What happens next: a sentence for people.
    pub next: String,
}

impl WaitingOn {
    /// Says so where the clock was set back since the wait began: what is due by the clock comes that much later.
    pub fn say_clock_back(&mut self, now: Timestamp) {
        let back_s = self.since.ms_since(now) / 1000;
        // Clocks are set by a second now and then, and nobody notices.
        if back_s >= 2 {
            self.next.push_str(&format!(
                " The server's clock was set back, by {back_s} s at least: what is due by the clock comes that much later."
            ));
        }
    }
}

/// One message of a transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageBody {
    /// The message.
    pub id: Uuid,
    /// `text`, `tool_call`, `tool_result`, `human_request`, `human_response` or `error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `user`, `assistant`, `tool` or `system`.
    pub role: String,
    /// When it was committed.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// The text, for what has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_content: Option<String>,
    /// The call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<ToolCallBody>,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_result: Option<ToolResultBody>,
    /// The request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human_request: Option<PendingRequestBody>,
    /// What closed the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human_response: Option<HumanResponseBody>,
    /// Who wrote it, for what came from outside: a person, an API key by its name, or the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<AuthorBody>,
    /// True where the sender said that strangers may have written the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<bool>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallBody {
    /// Unique in the run.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub arguments: Option<Map<String, Value>>,
}

/// A call's result or error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolResultBody {
    /// Of which call.
    pub tool_call_id: String,
    /// A JSON value where the tool is structured, else a string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What closed a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HumanResponseBody {
    /// Which request.
    pub request_id: Uuid,
    /// `approved`, `denied`, `expired`, a message's text, or the answers as JSON; null where a stop closed it.
    #[schema(required)]
    pub response: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuestionBody {
    /// The question; also the key of its answer.
    pub question: String,
    /// A word or two to show above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// What may be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<OptionBody>>,
    /// Whether several may be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multi_select: Option<bool>,
    /// False: only the options are accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_text: Option<bool>,
}

/// One option of a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OptionBody {
    /// What the answer holds.
    pub label: String,
    /// A sentence more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A pending human request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PendingRequestBody {
    /// The request.
    pub id: Uuid,
    /// One line.
    pub title: String,
    /// More lines.
    #[schema(required)]
    pub description: Option<String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// `approval` or `question`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The questions, for a `question`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<Vec<QuestionBody>>,
    /// The exact call that an approval releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<ToolCallBody>,
    /// When it lapses.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub expires_at: Option<Timestamp>,
    /// Why a policy asks for the call. Absent where no policy asks. Its texts come from outside: show them as quoted text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReasonBody>,
    /// What a connection's server says with its request. It comes from outside: show it as quoted text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<QuoteBody>,
}

/// Why a policy asks for a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReasonBody {
    /// `ask` or `guard`.
    pub policy: String,
    /// What was read that counts for the call, the newest last; at most 16. With `ask` it may be empty: that asks whatever
    /// was read.
    #[schema(max_items = 16)]
    pub sources: Vec<SourceBody>,
    /// How many sources more there were, at most.
    pub more: u64,
}

/// Content that a run has read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceBody {
    /// The tool that read it; `message` for a message that was marked as untrusted, `start` for what a run began with.
    pub tool: String,
    /// The call, in the run's messages; null where no call read it.
    #[schema(required)]
    pub call_id: Option<String>,
    /// What was read, in the words of the call: a path, a command, an address, or the arguments as JSON. At most 301
    /// characters, the last of them `…` where it was cut.
    #[schema(required, max_length = 301)]
    pub item: Option<String>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The run that read it, where that is one that started this one; null for this run.
    #[schema(required)]
    pub run_id: Option<Uuid>,
    /// Whether strangers may have written it.
    pub untrusted: bool,
    /// Whether it must not leave the team.
    pub private: bool,
}

/// What somebody outside says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuoteBody {
    /// Who says it: the name of a connection.
    pub by: String,
    /// The words.
    pub text: String,
}

/// A human request that is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AnsweredRequestBody {
    /// The request.
    pub id: Uuid,
    /// Its run.
    pub run_id: Uuid,
    /// One line.
    pub title: String,
    /// More lines.
    #[schema(required)]
    pub description: Option<String>,
    /// `approved`, `denied`, `expired`, a message's text, or the answers as JSON.
    #[schema(required)]
    pub response: Option<String>,
    /// When.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub responded_at: Option<Timestamp>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The user who answered; null where a deadline or a stop closed it.
    #[schema(required)]
    pub responded_by: Option<Uuid>,
    /// Why.
    #[schema(required)]
    pub reason: Option<String>,
    /// Who answered: a person, an API key by its name, or the system, where a deadline or the end of another run closed
    /// it. Absent in events from before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<AuthorBody>,
}

/// A webhook's body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WebhookBody {
    /// The event's id, the same at every attempt.
    pub id: Uuid,
    /// `human_request`, `run_completed`, `run_failed` or `run_interrupted`.
    pub event: String,
    /// Rises within the run.
    pub sequence: u64,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The run.
    pub run_id: Uuid,
    /// Its agent.
    pub agent_id: Uuid,
    /// The run, as `GET /v1/runs/{run_id}` gave it then.
    pub run: RunBody,
    /// The pending request, for `human_request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub human_request: Option<PendingRequestBody>,
    /// Where it is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond_url: Option<String>,
}

/// The body of a webhook that was sent to try an address out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TestWebhookBody {
    /// The event's id, the same at every attempt.
    pub id: Uuid,
    /// `webhook_test`.
    pub event: String,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The webhook that is tried out.
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
    /// The message that an entry is on the wire; none for the engine's own notes.
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
        Outcome::Error(error) => (None, Some(error.clone())),
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
    fn a_wait_that_begins_later_than_now_says_that_the_clock_is_back() {
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
            waiting.next.contains("set back, by 6 s"),
            "{}",
            waiting.next
        );
    }
}
