//! Converts a conversation to a request of the client library.
//!
//! # Guarantees
//!
//! - No message is empty, results are in the order of their calls, and the last message is the user's.
//! - For Anthropic, cache marks cover everything that does not change between turns: instructions, tools, and all
//!   messages up to the last.
//! - For models without image input, a sentence replaces each image.

use std::borrow::Cow;

use errand_core::config::InputMessage;
use genai::chat::{
    Binary, CacheControl, ChatMessage, ChatRequest, ChatRole, ContentPart, CustomPart,
    MessageContent, Tool, ToolCall, ToolResponse,
};
use serde_json::{Value, json};

use super::super::Offer;
use super::conversation::{Answer, Call, Conversation, Item, shortened};
use super::fit::Trim;
use super::provider::Kind;

/// The part of a request that stays the same during a run.
pub(super) struct Frame {
    /// The system messages of the build, joined.
    system: String,
    /// The other messages of the build, which precede the transcript.
    opening: Vec<(ChatRole, String)>,
    tools: Vec<Tool>,
    /// Estimated size of this part.
    pub(super) bytes: usize,
}

impl Frame {
    pub(super) fn new(input: &[InputMessage], offers: &[Offer]) -> Self {
        let of_system = input.iter().filter(|m| m.role == "system");
        let system: Vec<&str> = of_system.map(|m| m.content.as_str()).collect();
        let opening = input.iter().filter(|m| m.role != "system").map(|m| {
            let role = match m.role.as_str() {
                "assistant" => ChatRole::Assistant,
                _ => ChatRole::User,
            };
            (role, m.content.clone())
        });
        let tools = described(offers);
        Self {
            bytes: input.iter().map(|m| m.content.len()).sum::<usize>() + size(&tools),
            system: system.join("\n\n"),
            opening: opening.collect(),
            tools,
        }
    }

    /// Replaces the tools.
    pub(super) fn offer(&mut self, offers: &[Offer]) {
        let tools = described(offers);
        self.bytes = self.bytes.saturating_sub(size(&self.tools)) + size(&tools);
        self.tools = tools;
    }
}

fn described(offers: &[Offer]) -> Vec<Tool> {
    let describe = |offer: &Offer| {
        Tool::new(offer.name.as_str())
            .with_description(offer.description.as_str())
            .with_schema(offer.schema.clone())
    };
    offers.iter().map(describe).collect()
}

fn size(tools: &[Tool]) -> usize {
    tools.iter().map(Tool::size).sum()
}

pub(super) fn request(
    frame: &Frame,
    conversation: &Conversation,
    kind: Kind,
    sees: bool,
    trim: Option<Trim>,
) -> ChatRequest {
    let form = Form {
        kind,
        sees,
        bytes_max: trim.map_or(usize::MAX, |trim| trim.bytes_max),
    };
    let mut messages = Vec::with_capacity(conversation.items.len() * 2 + 3);
    let cached = kind == Kind::Anthropic;
    let mut tools = frame.tools.clone();
    if !frame.system.is_empty() {
        messages.push(ChatMessage::system(frame.system.as_str()));
    }
    if cached {
        match (messages.last_mut(), tools.last_mut()) {
            (Some(system), _) => mark(system),
            (None, Some(tool)) => tool.cache_control = Some(CacheControl::Ephemeral),
            (None, None) => {}
        }
    }
    for (role, text) in frame.opening.iter().filter(|(_, text)| !text.is_empty()) {
        messages.push(ChatMessage::new(role.clone(), text.as_str()));
    }
    if let Some(summary) = &conversation.summary {
        messages.push(ChatMessage::user(format!(
            "The earlier part of this conversation was too long to repeat. You wrote this summary of it:\n\n{summary}"
        )));
    }
    for item in &conversation.items {
        match item {
            Item::User { text, .. } => messages.push(ChatMessage::user(text.as_str())),
            Item::Answer(answer) => turn(&mut messages, answer, form),
        }
    }
    // Providers reject or misread a conversation that ends with the assistant's own message.
    if !messages
        .last()
        .is_some_and(|m| matches!(m.role, ChatRole::User | ChatRole::Tool))
    {
        messages.push(ChatMessage::user("Continue."));
    }
    if cached && let Some(last) = messages.last_mut() {
        mark(last);
    }
    let request = ChatRequest::from_messages(messages);
    if tools.is_empty() {
        request
    } else {
        request.with_tools(tools)
    }
}

fn mark(message: &mut ChatMessage) {
    message.options = Some(CacheControl::Ephemeral.into());
}

/// Options for rendering turns.
#[derive(Clone, Copy)]
struct Form {
    kind: Kind,
    sees: bool,
    /// Maximum size of one text, result or argument.
    bytes_max: usize,
}

/// The arguments of a call, each shortened to `bytes_max` bytes.
fn arguments(call: &Call, bytes_max: usize) -> Value {
    let short = |value: &Value| match value {
        Value::String(text) => Value::from(shortened(text, bytes_max).as_ref()),
        Value::Array(_) | Value::Object(_) => {
            let text = value.to_string();
            match shortened(&text, bytes_max) {
                Cow::Borrowed(_) => value.clone(),
                Cow::Owned(text) => Value::String(text),
            }
        }
        other => other.clone(),
    };
    let arguments = &call.call.arguments;
    if bytes_max == usize::MAX {
        return Value::Object(arguments.clone());
    }
    Value::Object(
        arguments
            .iter()
            .map(|(name, value)| (name.clone(), short(value)))
            .collect(),
    )
}

fn turn(messages: &mut Vec<ChatMessage>, answer: &Answer, form: Form) {
    let mut parts = Vec::with_capacity(answer.calls.len() + 1);
    if !answer.text.trim().is_empty() {
        let text = shortened(&answer.text, form.bytes_max);
        parts.push(ContentPart::Text(text.into_owned()));
    }
    parts.extend(answer.calls.iter().map(|call| {
        ContentPart::ToolCall(ToolCall {
            call_id: call.call.id.clone(),
            fn_name: call.call.name.clone(),
            fn_arguments: arguments(call, form.bytes_max),
            thought_signatures: call.signatures.clone(),
        })
    }));
    if !parts.is_empty() {
        messages.push(ChatMessage::assistant(MessageContent::from_parts(parts)));
    }
    if !answer.calls.is_empty() {
        results(messages, &answer.calls, form);
    }
    // If a call was refused, its result already says what was wrong.
    if let Some(nudge) = answer.nudge.filter(|_| answer.calls.is_empty()) {
        messages.push(ChatMessage::user(nudge));
    }
}

fn results(messages: &mut Vec<ChatMessage>, calls: &[Call], form: Form) {
    let mut parts = Vec::with_capacity(calls.len());
    let mut images = Vec::new();
    for call in calls {
        let Some(result) = &call.result else {
            continue;
        };
        let mut text = shortened(&result.text, form.bytes_max).into_owned();
        let image = result.image.as_ref();
        if let Some(image) = image {
            match (&image.data, form.sees) {
                (Some(data), true) => {
                    let name = Some(image.path.clone());
                    images.push((
                        image,
                        Binary::from_base64(image.media_type.as_str(), data.clone(), name),
                    ));
                }
                (None, true) => text.push_str(
                    "\nThe file was deleted or changed since then: read it again to see it.",
                ),
                (_, false) => {
                    text.push_str("\nYou cannot see images: this model does not accept them.")
                }
            }
        }
        if form.kind == Kind::Anthropic {
            parts.push(anthropic_result(call, &text, result.is_error));
        } else {
            let text = if result.is_error {
                format!("error: {text}")
            } else {
                text
            };
            let response = ToolResponse::new(call.call.id.as_str(), text)
                .with_fn_name(call.call.name.as_str());
            parts.push(ContentPart::ToolResponse(response));
        }
    }
    messages.push(ChatMessage::tool(MessageContent::from_parts(parts)));
    if images.is_empty() {
        return;
    }
    let mut shown = Vec::with_capacity(images.len() * 2);
    for (image, binary) in images {
        shown.push(ContentPart::Text(format!("{}:", image.path)));
        shown.push(ContentPart::Binary(binary));
    }
    messages.push(ChatMessage::user(MessageContent::from_parts(shown)));
}

/// A tool result with Anthropic's `is_error` flag, which the library does not support.
fn anthropic_result(call: &Call, text: &str, is_error: bool) -> ContentPart {
    let mut data = json!({"type": "tool_result", "tool_use_id": call.call.id, "content": text});
    if is_error && let Value::Object(map) = &mut data {
        map.insert("is_error".to_owned(), Value::Bool(true));
    }
    ContentPart::Custom(CustomPart {
        model_iden: None,
        data,
    })
}
