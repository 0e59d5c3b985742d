//! One streaming call to a provider.
//!
//! # Guarantees
//!
//! - An answer is complete, or the call fails: a stream that breaks off, is silent for too long or exceeds the size
//!   limits is an error.
//! - Text is published to subscribers while it arrives.
//! - Dropping the call closes the connection.
//!
//! The stream's raw frames are also read by `tap` (usage, refusals, calls in OpenAI's protocol), whose owner keeps the
//! data even if the call is dropped.
//!
//! # Non-goals
//!
//! Retrying (the run does that, without a driver) and judging the answer (`answer`).

use std::fmt;
use std::sync::Arc;

use errand_core::config::ModelName;
use errand_core::id::{MessageId, RunId};
use errand_core::limits::{ANSWER_BYTES_MAX, CALLS_PER_ANSWER_MAX};
use futures::StreamExt as _;
use genai::adapter::AdapterKind;
use genai::chat::{
    ChatOptions, ChatRequest, ChatStreamEvent, ReasoningEffort, StopReason, StreamEnd, ToolCall,
};
use genai::resolver::{AuthData, Endpoint};
use genai::{ModelIden, ServiceTarget};
use serde_json::Value;

use super::super::ModelError;
use super::fault::{self, Fault};
use super::provider::{Kind, Target};
use super::tap::Tap;
use crate::clock::Clock;
use crate::deltas::{Delta, Deltas};

/// A complete answer.
pub(super) struct Reply {
    pub(super) text: String,
    pub(super) calls: Vec<RawCall>,
    /// Whether the answer reached its maximum length.
    pub(super) cut: bool,
    /// The provider's word for the reason, if the answer was withheld.
    pub(super) filtered: Option<String>,
}

pub(super) struct RawCall {
    pub(super) name: String,
    pub(super) arguments: RawArguments,
    pub(super) signatures: Vec<String>,
    /// The provider's id, which identifies the call's pieces in the stream.
    id: String,
}

/// Arguments in the form in which the provider sent them.
#[derive(Clone)]
pub(super) enum RawArguments {
    Text(String),
    Value(Value),
}

/// Publishes the text of an answer while it arrives.
pub(super) struct Audience<'a> {
    pub(super) deltas: &'a Deltas,
    pub(super) run: RunId,
    pub(super) message: MessageId,
    pub(super) attempt: u32,
}

/// The parameters of a call.
pub(super) struct Question<'a> {
    pub(super) name: &'a ModelName,
    pub(super) target: &'a Target,
    pub(super) request: ChatRequest,
    /// Maximum number of tokens of the answer.
    pub(super) answer_tokens: u64,
    /// The longest permitted silence, in milliseconds.
    pub(super) idle_ms: u64,
    /// Reads the raw stream beside the library.
    pub(super) tap: &'a Arc<Tap>,
}

fn options(question: &Question<'_>) -> ChatOptions {
    let tap: Arc<Tap> = Arc::clone(question.tap);
    // Without this option, the library does not request usage (`stream_options`). The tap reads the numbers.
    let mut options = ChatOptions::default()
        .with_capture_usage(true)
        .with_raw_frame_sink_arc(tap);
    // The library interprets a suffix such as `-max` of a model's name as a reasoning effort, unless one is set. It
    // does not send a budget to providers with OpenAI's protocol, so setting one has no other effect.
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
    let tap = question.tap;
    let of_library = |error: genai::Error| {
        // The library does not know Gemini's `blockReason` and reports the frame as malformed.
        if let Some(word) = tap.seen().blocked.take() {
            return Fault::Final(refused(name, &word));
        }
        fault::of_library(&error, name, clock.now())
    };
    let started = target
        .client
        .exec_chat_stream(service, question.request, Some(&options))
        .await;
    let mut stream = started.map_err(of_library)?.stream;
    let mut collected = Collected::new(target.kind, tap, audience);
    loop {
        let event = tokio::select! {
            // Data that has already arrived is used even if the idle time is over.
            biased;
            event = stream.next() => event,
            () = clock.sleep_ms(question.idle_ms) => {
                return Err(Fault::transport(format!(
                    "the provider was silent for {} s", question.idle_ms / 1000
                )));
            }
        };
        match event {
            Some(Ok(ChatStreamEvent::End(end))) => return collected.whole(&end),
            Some(Ok(event)) => collected.take(event)?,
            Some(Err(error)) => return Err(of_library(error)),
            None => return Err(broke_off()),
        }
    }
}

/// The error of a run whose model or provider refuses to answer.
pub(super) fn refused(name: &dyn fmt::Display, word: &str) -> ModelError {
    ModelError {
        code: "model_refused",
        message: format!(
            "the provider of {name} withheld its answer ({}); change the instructions or the message, then retry the run",
            fault::short(word)
        ),
    }
}

fn broke_off() -> Fault {
    Fault::transport("the answer broke off before its end, or was not an event stream")
}

/// The part of an answer that has arrived.
struct Collected<'a> {
    kind: Kind,
    tap: &'a Tap,
    audience: Option<Audience<'a>>,
    text: String,
    calls: Vec<RawCall>,
    bytes: usize,
}

impl<'a> Collected<'a> {
    fn new(kind: Kind, tap: &'a Tap, audience: Option<Audience<'a>>) -> Self {
        Self {
            kind,
            tap,
            audience,
            text: String::new(),
            calls: Vec::new(),
            bytes: 0,
        }
    }

    fn take(&mut self, event: ChatStreamEvent) -> Result<(), Fault> {
        let before = self.bytes;
        match event {
            ChatStreamEvent::Chunk(chunk) => self.more_text(&chunk.content),
            ChatStreamEvent::ToolCallChunk(chunk) => self.more_of_call(chunk.tool_call),
            ChatStreamEvent::ReasoningChunk(chunk)
            | ChatStreamEvent::ThoughtSignatureChunk(chunk) => self.bytes += chunk.content.len(),
            ChatStreamEvent::Start | ChatStreamEvent::Heartbeat | ChatStreamEvent::End(_) => {}
        }
        let mut seen = self.tap.seen();
        seen.answer_bytes += self.bytes.saturating_sub(before);
        if self.bytes > ANSWER_BYTES_MAX || seen.too_large {
            return Err(Fault::TooLarge);
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
            // Gemini sends complete calls.
            Kind::Gemini => {
                self.bytes += piece.size();
                if self.calls.len() >= CALLS_PER_ANSWER_MAX {
                    return;
                }
                self.calls.push(RawCall {
                    name: piece.fn_name,
                    arguments: RawArguments::Value(piece.fn_arguments),
                    signatures: piece.thought_signatures.unwrap_or_default(),
                    id: piece.call_id,
                });
            }
            // The library accumulates Anthropic's pieces: each holds everything before it.
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
            // The tap reads these calls, because the library loses pieces without an index.
            Kind::OpenAi | Kind::OpenAiCompatible => {}
        }
    }

    fn begin(&mut self, id: String, name: String, arguments: String) {
        self.bytes += name.len() + arguments.len();
        // Calls beyond the bound are left out: asking again would cost as much and bring as many.
        if self.calls.len() >= CALLS_PER_ANSWER_MAX {
            return;
        }
        self.calls.push(RawCall {
            name,
            arguments: RawArguments::Text(arguments),
            signatures: Vec::new(),
            id,
        });
    }

    fn whole(mut self, end: &StreamEnd) -> Result<Reply, Fault> {
        // The library invents an end if a Gemini stream just stops. Only a real end has a stop reason.
        let Some(reason) = &end.captured_stop_reason else {
            return Err(broke_off());
        };
        let mut seen = self.tap.seen();
        if seen.too_large {
            return Err(Fault::TooLarge);
        }
        let of_tap = std::mem::take(&mut seen.calls);
        self.calls.extend(of_tap.into_iter().map(|call| RawCall {
            name: call.name,
            arguments: RawArguments::Text(call.arguments),
            signatures: Vec::new(),
            id: call.id,
        }));
        let refusal = std::mem::take(&mut seen.refusal);
        let ending = match reason {
            _ if !refusal.trim().is_empty() => Ending::Withheld,
            reason => Ending::of(reason),
        };
        let filtered = match ending {
            Ending::BrokeOff => {
                return Err(Fault::transport(format!(
                    "the provider aborted its answer ({})",
                    fault::short(reason.raw())
                )));
            }
            Ending::Call if self.calls.is_empty() => return Err(Fault::LostCall),
            // The provider could not parse the call of its own model. The model gets a note that its answer was empty.
            Ending::BadCall if self.calls.is_empty() => {
                self.text.clear();
                None
            }
            Ending::Withheld if refusal.trim().is_empty() => Some(reason.raw().to_owned()),
            Ending::Withheld => Some("refusal".to_owned()),
            Ending::Call | Ending::BadCall | Ending::InOrder => None,
        };
        if self.text.trim().is_empty() {
            self.text = refusal;
        }
        Ok(Reply {
            text: self.text,
            calls: self.calls,
            cut: reason.is_max_tokens(),
            filtered,
        })
    }
}

/// The meaning of an answer's stop reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    InOrder,
    /// With tool calls.
    Call,
    /// With a tool call that the provider itself could not read.
    BadCall,
    /// Withheld by a filter or by the model.
    Withheld,
    /// The provider aborted the answer.
    BrokeOff,
}

impl Ending {
    fn of(reason: &StopReason) -> Self {
        let word = match reason {
            StopReason::ToolCall(_) => return Self::Call,
            StopReason::ContentFilter(_) => return Self::Withheld,
            StopReason::Other(word) => word.to_ascii_lowercase(),
            StopReason::Completed(_) | StopReason::MaxTokens(_) | StopReason::StopSequence(_) => {
                return Self::InOrder;
            }
        };
        let has = |words: &[&str]| words.iter().any(|of| word.contains(of));
        if has(&["function_call", "tool_call"]) {
            Self::BadCall
        } else if has(&[
            "filter",
            "safety",
            "sensitive",
            "moderation",
            "block",
            "refus",
        ]) || word == "other"
        {
            Self::Withheld
        } else if has(&["error", "abort", "cancel", "insufficient"]) {
            Self::BrokeOff
        } else {
            Self::InOrder
        }
    }
}

fn text_of(arguments: Value) -> String {
    match arguments {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
