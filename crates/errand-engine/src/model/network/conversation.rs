//! The transcript in the form in which a provider receives it.
//!
//! # Guarantees
//!
//! - The result of a call follows directly after the turn with the call. Messages that arrived in between come later.
//! - A result that is too large is cut, with a note that names the file with the full text.
//! - Entries that a summary covers are left out, except the newest user message.
//! - Feeding an entry takes constant time, so a long transcript does not slow down each turn.
//!
//! # Non-goals
//!
//! Deciding what fits (`fit`), and the provider's wire format (the client library).

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use errand_core::limits::{SUMMARY_BYTES_MAX, TOOL_RESULT_BYTES_MAX};
use errand_core::time::Timestamp;
use errand_core::transcript::{AnswerKind, Body, Entry, ModelCall, Outcome, Purpose, ToolCall};
use serde::Deserialize;
use serde_json::Value;

/// The directory for the full text of results that were cut.
pub(super) const RESULTS_DIR: &str = "/workspace/.errand/results";
/// Estimated size of a message apart from its text, in bytes: roles, ids, punctuation.
const OVERHEAD_BYTES: usize = 60;
/// Estimated size of the note in a shortened text, in bytes.
const NOTE_BYTES: usize = 100;
/// Estimated size of an image, in bytes of text: about 1,500 tokens.
const IMAGE_BYTES: usize = 6_000;

/// One entry of the conversation.
#[derive(Clone, Debug)]
pub(super) enum Item {
    User { position: u64, text: String },
    Answer(Answer),
}

/// One turn of the model.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) position: u64,
    pub(super) text: String,
    pub(super) calls: Vec<Call>,
    /// A hint from the engine that follows this answer.
    pub(super) nudge: Option<&'static str>,
}

/// A tool call with its result.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) call: ToolCall,
    pub(super) signatures: Option<Vec<String>>,
    pub(super) result: Option<CallResult>,
}

#[derive(Clone, Debug)]
pub(super) struct CallResult {
    pub(super) text: String,
    pub(super) is_error: bool,
    pub(super) image: Option<Image>,
}

/// A reference to an image file that a tool returned.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Image {
    pub(super) path: String,
    pub(super) media_type: String,
    pub(super) sha256: String,
    /// In base64. `None` until it is read, and if the file was changed since.
    #[serde(skip)]
    pub(super) data: Option<Arc<str>>,
    #[serde(skip)]
    pub(super) was_read: bool,
}

const EMPTY_NUDGE: &str = "Your last answer contained neither text nor a call that could be executed. Answer with text, or call one of your tools.";
const CUT_NUDGE: &str =
    "Your last answer was cut off at its maximum length. Continue where it ends.";

/// The conversation of one run. See the module documentation.
#[derive(Default)]
pub(super) struct Conversation {
    pub(super) items: VecDeque<Item>,
    /// The number of items that were removed because a summary covers them.
    gone: usize,
    /// The position of each call: (number of its item since the beginning, index within the item).
    calls: HashMap<String, (usize, usize)>,
    signatures: HashMap<String, Vec<String>>,
    pub(super) summary: Option<String>,
    /// Number of consecutive empty answers.
    pub(super) empty: u32,
    /// Whether there is a user message, or the engine's opening in its place.
    pub(super) has_begun: bool,
    /// The last entry that the next model turn depends on.
    pub(super) basis: Option<(u64, Timestamp)>,
    /// The turn to which texts and calls are added, by its number since the beginning.
    current: Option<usize>,
    /// Whether a `ModelCall` entry marks where the current turn begins. Then it ends where the next one begins.
    marked: bool,
    /// Estimated size of all items.
    pub(super) bytes: usize,
    pub(super) result_bytes_max: usize,
    summary_bytes_max: usize,
    /// The position of the last entry that the summary covers; 0 if there is no summary.
    pub(super) summarized_to: u64,
    /// Paths and full texts of results that were cut. They are written before the next model call.
    pub(super) unwritten: Vec<(String, String)>,
    /// Whether there are images whose files were not read yet.
    pub(super) unread_images: bool,
    /// The size of the last request, in tokens counted by the provider.
    pub(super) last_input_tokens: u64,
    /// The estimated size of the same request, in bytes.
    pub(super) sent_bytes: usize,
}

impl Conversation {
    /// `window`: in tokens.
    pub(super) fn new(window: u64) -> Self {
        // At most a tenth of the window, at four bytes per token.
        let tenth = usize::try_from(window / 10 * 4).unwrap_or(usize::MAX);
        Self {
            result_bytes_max: TOOL_RESULT_BYTES_MAX.min(tenth).max(1_000),
            summary_bytes_max: SUMMARY_BYTES_MAX.min(tenth).max(1_000),
            ..Self::default()
        }
    }

    pub(super) fn feed(&mut self, entry: &Entry) {
        let position = entry.position;
        match &entry.body {
            Body::ModelFailed { .. } | Body::ModelAttempt { .. } | Body::Woke { .. } => return,
            Body::Retried { .. } => {
                self.empty = 0;
                return;
            }
            Body::User { text, .. } | Body::Opening { text } => self.user(position, text.clone()),
            Body::Assistant { text, .. } => self.text(position, text),
            Body::ToolCall { call, .. } => self.call(position, call),
            Body::ToolResult {
                call_id, outcome, ..
            } => self.result(call_id, outcome),
            Body::ModelCall { call } => {
                if call.purpose == Purpose::Turn {
                    // An estimate does not tell how the provider counts.
                    self.last_input_tokens = if call.estimated { 0 } else { call.input_tokens };
                    self.sent_bytes = match usize::try_from(call.sent_bytes) {
                        Ok(bytes) if bytes > 0 => bytes,
                        _ => self.bytes,
                    };
                    self.answered(position, call);
                }
            }
            Body::Summary { text, up_to } => self.summarized(text, *up_to),
            Body::Late { call_id, outcome } => {
                let what = match outcome {
                    Outcome::Result(value) => format!("it succeeded: {}", plain(value)),
                    Outcome::Error(error) => format!("it failed: {error}"),
                };
                let text = format!("The outcome of the call {call_id} is now known: {what}");
                let text = self.cut(&format!("{call_id}-late"), text);
                self.user(position, text);
            }
            Body::HumanRequest { .. }
            | Body::HumanResponse { .. }
            | Body::Error { .. }
            | Body::Intent { .. }
            | Body::Source { .. }
            | Body::Caller { .. }
            | Body::Lost { .. }
            | Body::ToolsChanged { .. }
            | Body::Wait { .. }
            | Body::Interrupted { .. } => {}
        }
        self.basis = Some((position, entry.at));
    }

    fn user(&mut self, position: u64, text: String) {
        self.bytes += text.len() + OVERHEAD_BYTES;
        self.items.push_back(Item::User { position, text });
        self.has_begun = true;
        if !self.marked {
            self.current = None;
        }
    }

    /// Begins a turn. User messages that the turn has not read precede it in the transcript; they are moved behind it.
    fn answered(&mut self, position: u64, call: &ModelCall) {
        let nudge = match call.answer {
            AnswerKind::Whole | AnswerKind::Refused => None,
            AnswerKind::Cut => Some(CUT_NUDGE),
            AnswerKind::Empty => Some(EMPTY_NUDGE),
        };
        self.empty = match call.answer {
            AnswerKind::Empty => self.empty + 1,
            AnswerKind::Cut | AnswerKind::Refused => self.empty,
            AnswerKind::Whole => 0,
        };
        self.signatures.extend(call.signatures.clone());
        let mut unread = Vec::new();
        while let Some(Item::User { position, .. }) = self.items.back()
            && *position > call.read_to
        {
            unread.extend(self.items.pop_back());
        }
        self.begin(position, nudge);
        self.marked = true;
        self.items.extend(unread.into_iter().rev());
    }

    fn begin(&mut self, position: u64, nudge: Option<&'static str>) {
        self.bytes += OVERHEAD_BYTES;
        self.items.push_back(Item::Answer(Answer {
            position,
            nudge,
            ..Answer::default()
        }));
        self.current = Some(self.gone + self.items.len() - 1);
    }

    /// The turn to which a text or a call belongs. A turn of a network model begins with a `ModelCall` entry. In a
    /// transcript of another kind of model, a text after a call, or a call after a result, begins a new turn.
    fn answer(&mut self, position: u64, is_text: bool) -> Option<(usize, &mut Answer)> {
        let marked = self.marked;
        let is_new = match self.current.and_then(|number| self.answer_at(number)) {
            None => true,
            Some(_) if marked => false,
            Some(answer) if is_text => !answer.calls.is_empty(),
            Some(answer) => answer.calls.iter().any(|call| call.result.is_some()),
        };
        if is_new {
            self.begin(position, None);
            self.marked = false;
        }
        let number = self.current?;
        Some((number, self.answer_at(number)?))
    }

    fn answer_at(&mut self, number: usize) -> Option<&mut Answer> {
        match self.items.get_mut(number.checked_sub(self.gone)?)? {
            Item::Answer(answer) => Some(answer),
            Item::User { .. } => None,
        }
    }

    fn text(&mut self, position: u64, text: &str) {
        self.bytes += text.len();
        if let Some((_, answer)) = self.answer(position, true) {
            answer.text.push_str(text);
        }
    }

    fn call(&mut self, position: u64, call: &ToolCall) {
        self.bytes += arguments_bytes(call) + call.name.len() + OVERHEAD_BYTES;
        let signatures = self.signatures.remove(&call.id);
        if let Some((number, answer)) = self.answer(position, false) {
            let place = (number, answer.calls.len());
            answer.calls.push(Call {
                call: call.clone(),
                signatures,
                result: None,
            });
            self.calls.insert(call.id.clone(), place);
        }
    }

    fn result(&mut self, call_id: &str, outcome: &Outcome) {
        let (text, is_error) = match outcome {
            Outcome::Result(value) => (plain(value), false),
            Outcome::Error(error) => (error.to_string(), true),
        };
        let image = match outcome {
            Outcome::Result(value) => value
                .get("image")
                .and_then(|image| Image::deserialize(image).ok()),
            Outcome::Error(_) => None,
        };
        if image.is_some() {
            self.bytes += IMAGE_BYTES;
            self.unread_images = true;
        }
        let text = self.cut(call_id, text);
        self.bytes += text.len() + OVERHEAD_BYTES;
        if let Some(call) = self.call_mut(call_id) {
            call.result = Some(CallResult {
                text,
                is_error,
                image,
            });
        }
    }

    fn call_mut(&mut self, call_id: &str) -> Option<&mut Call> {
        let (item, call) = *self.calls.get(call_id)?;
        self.answer_at(item)?.calls.get_mut(call)
    }

    /// A result as it is sent to the model: complete, or its beginning and its end.
    fn cut(&mut self, name: &str, text: String) -> String {
        if text.len() <= self.result_bytes_max {
            return text;
        }
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let name: String = name.chars().filter(is_plain).take(80).collect();
        let path = format!("{RESULTS_DIR}/{name}.txt");
        let (head, tail) = ends(&text, self.result_bytes_max);
        let shown = format!(
            "{head}\n\n[… cut here: these are the first {} and the last {} of {} bytes. The full text is in {path}; read parts of it with read_file, `offset` and `limit`, or search it with search_files …]\n\n{tail}",
            head.len(),
            tail.len(),
            text.len()
        );
        self.unwritten.push((path, text));
        shown
    }

    /// Replaces the items up to the position `up_to` with a summary.
    fn summarized(&mut self, text: &str, up_to: u64) {
        let mut kept = None;
        while let Some(first) = self.items.front() {
            let position = match first {
                Item::User { position, .. } => *position,
                Item::Answer(answer) => answer.position,
            };
            if position > up_to {
                break;
            }
            if let Some(item) = self.items.pop_front() {
                self.gone += 1;
                self.bytes = self.bytes.saturating_sub(size(&item));
                if let Item::User { .. } = item {
                    kept = Some(item);
                }
            }
        }
        self.calls.retain(|_, (item, _)| *item >= self.gone);
        // The newest user message is not answered yet, so it is kept verbatim.
        let has_newer = self.items.iter().any(|i| matches!(i, Item::User { .. }));
        if let Some(item) = kept.filter(|_| !has_newer) {
            self.bytes += size(&item);
            self.items.push_front(item);
            self.gone -= 1;
        }
        // A model that writes an endless summary must not fill the window with it.
        let text = shortened(text, self.summary_bytes_max);
        let before = self.summary.as_ref().map_or(0, String::len);
        self.bytes = self.bytes.saturating_sub(before) + text.len();
        self.summary = Some(text.into_owned());
        self.summarized_to = up_to;
        self.last_input_tokens = 0;
        self.sent_bytes = 0;
    }
}

/// The estimated size of an item, equal to the size that was added for it.
pub(super) fn size(item: &Item) -> usize {
    match item {
        Item::User { text, .. } => text.len() + OVERHEAD_BYTES,
        Item::Answer(answer) => {
            let calls = answer.calls.iter().map(|call| {
                let result = call.result.as_ref().map_or(0, |result| {
                    result.text.len()
                        + OVERHEAD_BYTES
                        + result.image.as_ref().map_or(0, |_| IMAGE_BYTES)
                });
                arguments_bytes(&call.call) + call.call.name.len() + OVERHEAD_BYTES + result
            });
            answer.text.len() + OVERHEAD_BYTES + calls.sum::<usize>()
        }
    }
}

/// The estimated size of an item after its texts, results and arguments are shortened to `bytes_max` bytes each.
pub(super) fn trimmed_size(item: &Item, bytes_max: usize) -> usize {
    // Including the note in place of the omitted part.
    let most = |bytes: usize| bytes.min(bytes_max + NOTE_BYTES);
    match item {
        Item::User { .. } => size(item),
        Item::Answer(answer) => {
            let calls = answer.calls.iter().map(|call| {
                let result = call.result.as_ref().map_or(0, |result| {
                    most(result.text.len())
                        + OVERHEAD_BYTES
                        + result.image.as_ref().map_or(0, |_| IMAGE_BYTES)
                });
                let arguments = call.call.arguments.iter();
                let arguments: usize = arguments
                    .map(|(name, value)| name.len() + 8 + most(value_bytes(value)))
                    .sum();
                arguments + call.call.name.len() + OVERHEAD_BYTES + result
            });
            most(answer.text.len()) + OVERHEAD_BYTES + calls.sum::<usize>()
        }
    }
}

fn arguments_bytes(call: &ToolCall) -> usize {
    call.arguments
        .iter()
        .map(|(name, value)| name.len() + 8 + value_bytes(value))
        .sum()
}

fn value_bytes(value: &Value) -> usize {
    let text = value.as_str().map(str::len);
    text.unwrap_or_else(|| value.to_string().len())
}

/// The text, shortened to about `bytes_max` bytes: its beginning and its end with a note between them.
pub(super) fn shortened(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    let (head, tail) = ends(text, bytes_max);
    Cow::Owned(format!(
        "{head}\n[… left out here for lack of space: {} of {} bytes …]\n{tail}",
        text.len() - head.len() - tail.len(),
        text.len()
    ))
}

/// A structured result as JSON, a text unchanged.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The beginning and the end of a text: three quarters and one quarter of `bytes`.
pub(super) fn ends(text: &str, bytes: usize) -> (&str, &str) {
    let head = text.floor_char_boundary(bytes / 4 * 3);
    let tail = text.ceil_char_boundary(text.len() - bytes / 4);
    (
        text.get(..head).unwrap_or_default(),
        text.get(tail..).unwrap_or_default(),
    )
}
