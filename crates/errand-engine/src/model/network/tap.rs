//! Reads from the raw stream what the client library drops: usage in any chunk and shape, calls without an index, and
//! refusals.
//!
//! # Guarantees
//!
//! - A frame is parsed only if it contains one of a few marker words.
//! - The collected data is bounded.
//! - The data remains available if the stream breaks off or is dropped, so that failed attempts are counted too.

use std::sync::{Mutex, MutexGuard, PoisonError};

use errand_core::limits::{ANSWER_BYTES_MAX, CALLS_PER_ANSWER_MAX};
use genai::chat::{ChatFrameSink, FrameCtx, RawFrameRef};
use serde_json::Value;

use super::catalog::Tokens;
use super::provider::Kind;

/// Larger token counts are treated as implausible and reduced to this number.
const TOKENS_MAX: u64 = 1_000_000_000_000;

/// Bytes per token for estimates, if the provider reports no usage. Typical for prose and code in most models.
const BYTES_PER_TOKEN: u64 = 4;

/// A tool call, assembled from its pieces.
#[derive(Debug, Default)]
pub(super) struct CallPieces {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
    index: Option<u64>,
}

/// The data that the frames contained so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Bytes of the answer's text, reasoning and arguments that have arrived.
    pub(super) answer_bytes: usize,
    /// Tool calls in OpenAI's protocol.
    pub(super) calls: Vec<CallPieces>,
    /// The text with which the model refuses (OpenAI).
    pub(super) refusal: String,
    /// The reason for which the provider blocked the prompt (Gemini).
    pub(super) blocked: Option<String>,
    /// Whether calls or a refusal exceed the size limits.
    pub(super) too_large: bool,
    /// There are more than [`CALLS_PER_ANSWER_MAX`] calls. Those after them are left out, because asking again would cost
    /// as much and bring as many.
    has_more_calls: bool,
    usage: Counts,
}

/// Token counts from the provider. `None`: not reported.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    input: Option<u64>,
    cached: Option<u64>,
    cache_write: Option<u64>,
    output: Option<u64>,
    total: Option<u64>,
}

/// Observes the frames of one stream.
#[derive(Debug)]
pub(super) struct Tap {
    kind: Kind,
    seen: Mutex<Seen>,
}

impl Tap {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            seen: Mutex::default(),
        }
    }

    /// The collected data. A poisoned lock is ignored: the counts remain valid.
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frame(&self, data: &str) {
        let mut seen = self.seen();
        let is_openai = matches!(self.kind, Kind::OpenAi | Kind::OpenAiCompatible);
        let may_say = data.contains("usage")
            || (is_openai && (data.contains("\"tool_calls\"") || data.contains("\"refusal\"")))
            || (self.kind == Kind::Gemini && data.contains("blockReason"));
        if !may_say {
            return;
        }
        let Ok(value) = serde_json::from_str::<Value>(data) else {
            return;
        };
        seen.usage.take(&value, self.kind);
        if is_openai {
            seen.take_openai(&value);
        }
        if let Some(word) = value.pointer("/promptFeedback/blockReason") {
            seen.blocked = word.as_str().map(str::to_owned);
        }
    }
}

impl ChatFrameSink for Tap {
    fn on_frame(&self, _ctx: &FrameCtx, frame: RawFrameRef<'_>) {
        self.frame(frame.data);
    }
}

impl Seen {
    /// The usage that the provider reported.
    fn reported(&self, kind: Kind) -> Tokens {
        self.usage.tokens(kind)
    }

    /// The usage of the call. Counts that the provider did not report are estimated from bytes, if the provider had
    /// begun to answer. `asked_bytes`: the size of the request. `is_whole`: the answer is complete.
    pub(super) fn spent(&self, kind: Kind, asked_bytes: usize, is_whole: bool) -> Spent {
        let reported = self.reported(kind);
        let came = self.answer_bytes > 0 || is_whole;
        let estimates = |reported: u64, bytes: usize| reported == 0 && came && bytes > 0;
        let (input, output) = (
            estimates(reported.input, asked_bytes),
            estimates(reported.output, self.answer_bytes),
        );
        Spent {
            tokens: Tokens {
                input: if input {
                    estimate(asked_bytes)
                } else {
                    reported.input
                },
                output: if output {
                    estimate(self.answer_bytes)
                } else {
                    reported.output
                },
                ..reported
            },
            estimated: input || output,
        }
    }

    fn take_openai(&mut self, value: &Value) {
        let Some(delta) = value.pointer("/choices/0/delta") else {
            return;
        };
        if let Some(piece) = delta.get("refusal").and_then(Value::as_str) {
            self.refusal.push_str(piece);
            self.answer_bytes += piece.len();
        }
        if let Some(pieces) = delta.get("tool_calls").and_then(Value::as_array) {
            pieces.iter().for_each(|piece| self.take_call(piece));
        }
        let size: usize = self.calls.iter().map(|call| call.arguments.len()).sum();
        // The second sum has the calls that are left out, and the text, which is bounded by itself.
        self.too_large |= size.saturating_add(self.refusal.len()) > ANSWER_BYTES_MAX
            || self.answer_bytes > 2 * ANSWER_BYTES_MAX;
        if self.too_large {
            self.calls = Vec::new();
            self.refusal = String::new();
        }
    }

    /// Adds a piece of a call. It begins a new call if it has a name, or an id without an index, and its id is new.
    /// Otherwise it continues the call with its id, with its index, or the last one.
    fn take_call(&mut self, piece: &Value) {
        if self.too_large {
            return;
        }
        let index = piece.get("index").and_then(Value::as_u64);
        let function = piece.get("function").unwrap_or(&Value::Null);
        let (id, name) = (text_at(piece, "id"), text_at(function, "name"));
        let arguments = match function.get("arguments") {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        };
        self.answer_bytes += name.len() + arguments.len();
        let same_id = |call: &CallPieces| {
            !id.is_empty() && call.id == id && (index.is_none() || call.index == index)
        };
        let begins = !name.is_empty() || (index.is_none() && !id.is_empty());
        let continued = match self.calls.iter().rposition(same_id) {
            Some(at) => Some(at),
            None if begins => None,
            None => match index {
                Some(_) => self.calls.iter().rposition(|call| call.index == index),
                // The last call may be one that was left out.
                None if self.has_more_calls => return,
                None => self.calls.len().checked_sub(1),
            },
        };
        if continued.is_none() && self.calls.len() >= CALLS_PER_ANSWER_MAX {
            self.has_more_calls = true;
            return;
        }
        match continued.and_then(|at| self.calls.get_mut(at)) {
            Some(call) => {
                call.arguments.push_str(&arguments);
                if call.name.is_empty() {
                    name.clone_into(&mut call.name);
                }
            }
            None => self.calls.push(CallPieces {
                id: id.to_owned(),
                name: name.to_owned(),
                arguments,
                index,
            }),
        }
    }
}

/// The token usage of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) tokens: Tokens,
    /// Whether a part was estimated from bytes.
    pub(super) estimated: bool,
}

/// Estimates the tokens of a text. Rounded up: a limit should end a run early rather than late.
fn estimate(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(BYTES_PER_TOKEN)
}

impl Counts {
    /// Merges the usage in a frame. Later values replace earlier ones, except with zero.
    fn take(&mut self, frame: &Value, kind: Kind) {
        const PLACES: [&str; 6] = [
            "/usage",
            "/message/usage",
            "/usageMetadata",
            "/choices/0/usage",
            "/x_groq/usage",
            "/response/usage",
        ];
        for place in PLACES {
            let found = match frame.pointer(place) {
                Some(Value::Array(items)) => items.iter().rfind(|item| item.is_object()),
                found => found,
            };
            if let Some(usage) = found.filter(|usage| usage.is_object()) {
                self.merge(&Self::read(usage, kind));
            }
        }
    }

    fn merge(&mut self, more: &Self) {
        let later = |old: &mut Option<u64>, new: Option<u64>| {
            if new.is_some_and(|n| n > 0) || old.is_none() {
                *old = new.or(*old);
            }
        };
        later(&mut self.input, more.input);
        later(&mut self.cached, more.cached);
        later(&mut self.cache_write, more.cache_write);
        later(&mut self.output, more.output);
        later(&mut self.total, more.total);
    }

    fn read(usage: &Value, kind: Kind) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| count(usage.get(*name)?));
        // The details are an object, or a list of objects.
        let detail = |of: &str, names: &[&str]| {
            let details = usage.get(of)?;
            let in_object = |value: &Value| names.iter().find_map(|name| count(value.get(*name)?));
            match details {
                Value::Array(items) => items.iter().filter_map(in_object).max(),
                other => in_object(other),
            }
        };
        if kind == Kind::Gemini {
            let tools = first(&["toolUsePromptTokenCount"]);
            let input = first(&["promptTokenCount"]);
            let thoughts = first(&["thoughtsTokenCount"]);
            let answer = first(&["candidatesTokenCount"]);
            return Self {
                input: sum([input, tools]),
                cached: first(&["cachedContentTokenCount"]),
                cache_write: None,
                output: sum([answer, thoughts]),
                total: first(&["totalTokenCount"]),
            };
        }
        let cached = first(&["cache_read_input_tokens", "prompt_cache_hit_tokens"]);
        let details = ["prompt_tokens_details", "input_tokens_details"];
        let cached = cached.or_else(|| {
            details
                .iter()
                .find_map(|of| detail(of, &["cached_tokens", "cache_read_tokens"]))
        });
        let cache_write = first(&["cache_creation_input_tokens"]);
        let cache_write = cache_write.or_else(|| {
            details
                .iter()
                .find_map(|of| detail(of, &["cache_creation_tokens", "cache_write_tokens"]))
        });
        Self {
            input: first(&["prompt_tokens", "input_tokens", "promptTokenCount"]),
            cached,
            cache_write,
            output: first(&["completion_tokens", "output_tokens", "candidatesTokenCount"]),
            total: first(&["total_tokens"]),
        }
    }

    fn tokens(&self, kind: Kind) -> Tokens {
        let (cached, cache_write) = (
            self.cached.unwrap_or_default(),
            self.cache_write.unwrap_or_default(),
        );
        let (mut input, mut output) = (
            self.input.unwrap_or_default(),
            self.output.unwrap_or_default(),
        );
        if kind == Kind::Anthropic {
            // Anthropic's input count excludes cached tokens.
            input = input.saturating_add(cached).saturating_add(cache_write);
        } else if let Some(total) = self.total {
            // Some servers count reasoning tokens only in the total.
            if self.input.is_none() {
                input = total.saturating_sub(output);
            }
            output = output.max(total.saturating_sub(input));
        }
        Tokens {
            input,
            cached: cached.min(input),
            cache_write: cache_write.min(input),
            output,
        }
    }
}

fn text_at<'v>(object: &'v Value, name: &str) -> &'v str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn sum(parts: [Option<u64>; 2]) -> Option<u64> {
    let parts = parts.into_iter().flatten();
    parts.reduce(u64::saturating_add)
}

/// Parses a count: an integer, a float, or a number in a string.
fn count(value: &Value) -> Option<u64> {
    let number = match value {
        Value::Number(number) => match number.as_u64() {
            Some(n) => return Some(n.min(TOKENS_MAX)),
            None => number.as_f64()?,
        },
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be finite and not negative; a cast saturates"
    )]
    (number.is_finite() && number >= 0.0).then(|| (number.ceil() as u64).min(TOKENS_MAX))
}

#[cfg(test)]
#[path = "tap/tests.rs"]
mod tests;
