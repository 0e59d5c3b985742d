//! One call: the question goes out, the answer comes in as a stream.
//!
//! Promised: an answer is whole or it is a fault: a stream that ends before its end is one, and so is one that is silent
//! for too long, or of a size that no answer has. Text is told to those who listen while it comes. Dropping the call ends
//! the connection.
//!
//! Usage, refusals and the calls of OpenAI's protocol are read from the stream's frames (`tap`), whose owner keeps what
//! came where the call is dropped.
//!
//! Left out: trying again (the run does, without a driver), and judging what the answer says (`answer`).

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

/// What came back.
pub(super) struct Reply {
    pub(super) text: String,
    pub(super) calls: Vec<RawCall>,
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
#[derive(Clone)]
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
    /// Reads the stream beside the library.
    pub(super) tap: &'a Arc<Tap>,
}

fn options(question: &Question<'_>) -> ChatOptions {
    let tap: Arc<Tap> = Arc::clone(question.tap);
    // Without the capture the library does not ask for usage (`stream_options`); what comes is read by the tap.
    let mut options = ChatOptions::default()
        .with_capture_usage(true)
        .with_raw_frame_sink_arc(tap);
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
    let tap = question.tap;
    let of_library = |error: genai::Error| {
        // The library knows no block, and takes it for an answer in a form of its own.
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

/// The error of a run whose model, or its provider, refuses to answer.
pub(super) fn refused(name: &dyn fmt::Display, word: &str) -> ModelError {
    ModelError {
        code: "model_refused",
        message: format!(
            "the provider of {name} held its answer back ({}); change the instructions or the message, then retry the run",
            fault::short(word)
        ),
    }
}

fn broke_off() -> Fault {
    Fault::transport("the answer broke off before its end, or was none (no stream of events came)")
}

/// What has come of an answer.
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
        if self.bytes > ANSWER_BYTES_MAX
            || self.calls.len() > CALLS_PER_ANSWER_MAX
            || seen.too_large
        {
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
            // The tap reads them, since the library loses those without an index.
            Kind::OpenAi | Kind::OpenAiCompatible => {}
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

    fn whole(mut self, end: &StreamEnd) -> Result<Reply, Fault> {
        // The library makes an end of its own where a stream of Gemini just stops.
        let Some(reason) = &end.captured_stop_reason else {
            return Err(broke_off());
        };
        let mut seen = self.tap.seen();
        if seen.too_large {
            return Err(Fault::transport(
                "the answer is larger than any answer of a model",
            ));
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
                    "the provider broke its answer off ({})",
                    fault::short(reason.raw())
                )));
            }
            Ending::Call if self.calls.is_empty() => return Err(Fault::LostCall),
            // A call that the provider could not read: the model is told that nothing came.
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

/// What the word means with which an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    InOrder,
    /// With calls of tools.
    Call,
    /// With a call that the provider could not read itself.
    BadCall,
    /// Held back, by a filter or by the model.
    Withheld,
    /// The provider could not go on.
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
