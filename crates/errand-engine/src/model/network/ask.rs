//! One call: the question goes out, the answer comes in as a stream.
//!
//! Promised: an answer is whole or it is a fault: a stream that ends before its end is one, and so is one that is silent
//! for too long, or of a size that no answer has. Text is told to those who listen while it comes. Dropping the call ends
//! the connection.
//!
//! Left out: trying again (the run does, without a driver), and judging what the answer says (`answer`).

use errand_core::config::ModelName;
use errand_core::id::{MessageId, RunId};
use errand_core::limits::{ANSWER_BYTES_MAX, CALLS_PER_ANSWER_MAX};
use futures::StreamExt as _;
use genai::adapter::AdapterKind;
use genai::chat::{
    ChatOptions, ChatRequest, ChatStreamEvent, ReasoningEffort, StopReason, StreamEnd, ToolCall,
    Usage,
};
use genai::resolver::{AuthData, Endpoint};
use genai::{ModelIden, ServiceTarget};
use serde_json::Value;

use super::catalog::Tokens;
use super::fault::{self, Fault};
use super::provider::{Kind, Target};
use crate::clock::Clock;
use crate::deltas::{Delta, Deltas};

/// What came back.
pub(super) struct Reply {
    pub(super) text: String,
    pub(super) calls: Vec<RawCall>,
    pub(super) tokens: Tokens,
    /// Cut off at its greatest length.
    pub(super) cut: bool,
    /// Held back by the provider's filter: its word.
    pub(super) filtered: Option<String>,
}

/// A call as the provider wrote it.
pub(super) struct RawCall {
    pub(super) name: String,
    pub(super) arguments: RawArguments,
    pub(super) signatures: Vec<String>,
    /// The provider's id, by which its pieces are told apart.
    id: String,
}

/// Arguments as they came.
pub(super) enum RawArguments {
    Text(String),
    Value(Value),
}

/// Who hears the text while it comes, and as what.
pub(super) struct Audience<'a> {
    pub(super) deltas: &'a Deltas,
    pub(super) run: RunId,
    pub(super) message: MessageId,
    pub(super) attempt: u32,
}

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) name: &'a ModelName,
    pub(super) target: &'a Target,
    pub(super) request: ChatRequest,
    /// Most tokens of the answer.
    pub(super) answer_tokens: u64,
    /// How long a silence may last, in milliseconds.
    pub(super) idle_ms: u64,
}

fn options(question: &Question<'_>) -> ChatOptions {
    let mut options = ChatOptions::default().with_capture_usage(true);
    // The library takes an ending such as `-max` of a name for an effort, unless it is told one. A budget is told to no
    // provider that speaks OpenAI's protocol.
    if question.target.kind.adapter() == AdapterKind::OpenAI {
        options = options.with_reasoning_effort(ReasoningEffort::Budget(0));
    }
    if question.target.kind == Kind::Anthropic {
        let tokens = u32::try_from(question.answer_tokens).unwrap_or(u32::MAX);
        options = options.with_max_tokens(tokens);
    }
    options
}

pub(super) async fn ask(
    question: Question<'_>,
    audience: Option<Audience<'_>>,
    clock: &Clock,
) -> Result<Reply, Fault> {
    let (name, target) = (question.name, question.target);
    let options = options(&question);
    let service = ServiceTarget {
        endpoint: Endpoint::from_owned(target.endpoint.as_str()),
        auth: AuthData::from_single(target.key.as_str()),
        model: ModelIden::new(target.kind.adapter(), name.name.as_str()),
    };
    let of_library = |error: genai::Error| fault::of_library(&error, name, clock.now());
    let started = target
        .client
        .exec_chat_stream(service, question.request, Some(&options))
        .await;
    let mut stream = started.map_err(of_library)?.stream;
    let mut collected = Collected::new(target.kind, audience);
    loop {
        let event = tokio::select! {
            biased;
            event = stream.next() => event,
            () = clock.sleep_ms(question.idle_ms) => {
                return Err(Fault::transport(format!(
                    "the provider was silent for {} s", question.idle_ms / 1000
                )));
            }
        };
        match event {
            Some(Ok(ChatStreamEvent::End(end))) => return collected.whole(end),
            Some(Ok(event)) => collected.take(event)?,
            Some(Err(error)) => return Err(of_library(error)),
            None => return Err(broke_off()),
        }
    }
}

fn broke_off() -> Fault {
    Fault::transport("the answer broke off before its end, or was none (no stream of events came)")
}

/// What has come of an answer.
struct Collected<'a> {
    kind: Kind,
    audience: Option<Audience<'a>>,
    text: String,
    calls: Vec<RawCall>,
    bytes: usize,
}

impl<'a> Collected<'a> {
    fn new(kind: Kind, audience: Option<Audience<'a>>) -> Self {
        Self {
            kind,
            audience,
            text: String::new(),
            calls: Vec::new(),
            bytes: 0,
        }
    }

    fn take(&mut self, event: ChatStreamEvent) -> Result<(), Fault> {
        match event {
            ChatStreamEvent::Chunk(chunk) => self.more_text(&chunk.content),
            ChatStreamEvent::ToolCallChunk(chunk) => self.more_of_call(chunk.tool_call),
            ChatStreamEvent::ReasoningChunk(chunk)
            | ChatStreamEvent::ThoughtSignatureChunk(chunk) => self.bytes += chunk.content.len(),
            ChatStreamEvent::Start | ChatStreamEvent::Heartbeat | ChatStreamEvent::End(_) => {}
        }
        if self.bytes > ANSWER_BYTES_MAX || self.calls.len() > CALLS_PER_ANSWER_MAX {
            return Err(Fault::transport(
                "the answer is larger than any answer of a model",
            ));
        }
        Ok(())
    }

    fn more_text(&mut self, piece: &str) {
        if piece.is_empty() {
            return;
        }
        if let Some(audience) = &self.audience {
            let offset = self.text.len();
            audience.deltas.publish(audience.run, || Delta {
                message: audience.message,
                attempt: audience.attempt,
                offset,
                text: piece.to_owned(),
            });
        }
        self.bytes += piece.len();
        self.text.push_str(piece);
    }

    fn more_of_call(&mut self, piece: ToolCall) {
        match self.kind {
            // Whole calls.
            Kind::Gemini => {
                self.bytes += piece.size();
                self.calls.push(RawCall {
                    name: piece.fn_name,
                    arguments: RawArguments::Value(piece.fn_arguments),
                    signatures: piece.thought_signatures.unwrap_or_default(),
                    id: piece.call_id,
                });
            }
            // Each piece holds all that came before.
            Kind::Anthropic => {
                let text = text_of(piece.fn_arguments);
                match self.calls.last_mut().filter(|c| c.id == piece.call_id) {
                    Some(call) => {
                        let before = match &call.arguments {
                            RawArguments::Text(text) => text.len(),
                            RawArguments::Value(_) => 0,
                        };
                        self.bytes += text.len().saturating_sub(before);
                        call.arguments = RawArguments::Text(text);
                    }
                    None => self.begin(piece.call_id, piece.fn_name, text),
                }
            }
            // The first piece of a call has its name; later ones have their part of the arguments alone. Where pieces of
            // several calls are mixed, those without an id of their own name the call's place.
            Kind::OpenAi | Kind::OpenAiCompatible => {
                let text = text_of(piece.fn_arguments);
                if !piece.fn_name.is_empty() {
                    return self.begin(piece.call_id, piece.fn_name, text);
                }
                let place = piece.call_id.strip_prefix("call_").map(str::parse::<usize>);
                let place = match place {
                    Some(Ok(place)) if place < self.calls.len() => place,
                    _ => self.calls.len().saturating_sub(1),
                };
                if let Some(call) = self.calls.get_mut(place)
                    && let RawArguments::Text(all) = &mut call.arguments
                {
                    self.bytes += text.len();
                    all.push_str(&text);
                }
            }
        }
    }

    fn begin(&mut self, id: String, name: String, arguments: String) {
        self.bytes += name.len() + arguments.len();
        self.calls.push(RawCall {
            name,
            arguments: RawArguments::Text(arguments),
            signatures: Vec::new(),
            id,
        });
    }

    fn whole(self, end: StreamEnd) -> Result<Reply, Fault> {
        // The library makes an end of its own where a stream of Gemini just stops.
        let Some(reason) = end.captured_stop_reason else {
            return Err(broke_off());
        };
        Ok(Reply {
            text: self.text,
            calls: self.calls,
            tokens: tokens(&end.captured_usage.unwrap_or_default()),
            cut: reason.is_max_tokens(),
            filtered: match reason {
                StopReason::ContentFilter(word) => Some(word),
                _ => None,
            },
        })
    }
}

fn text_of(arguments: Value) -> String {
    match arguments {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn tokens(usage: &Usage) -> Tokens {
    let count = |tokens: Option<i32>| tokens.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let details = usage.prompt_tokens_details.as_ref();
    Tokens {
        input: count(usage.prompt_tokens),
        cached: count(details.and_then(|d| d.cached_tokens)),
        cache_write: count(details.and_then(|d| d.cache_creation_tokens)),
        output: count(usage.completion_tokens),
    }
}
