//! The requests and streams of the three providers' protocols.

use axum::body::{Body, Bytes};
use axum::response::Response;
use serde_json::{Value, json};

use super::{Answer, Fault, Protocol, UsageForm};
use crate::script::Gate;

/// Number of fragments into which texts and arguments are split.
const PIECES: usize = 3;

pub(super) fn turns(protocol: Protocol, body: &Value) -> usize {
    let role = match protocol {
        Protocol::Gemini => "model",
        Protocol::Anthropic | Protocol::OpenAi => "assistant",
    };
    messages(protocol, body)
        .iter()
        .filter(|message| message["role"] == role)
        .count()
}

fn messages(protocol: Protocol, body: &Value) -> &[Value] {
    let key = match protocol {
        Protocol::Gemini => "contents",
        Protocol::Anthropic | Protocol::OpenAi => "messages",
    };
    body[key].as_array().map_or(&[], Vec::as_slice)
}

/// The parts of a message: its content if that is a list, otherwise one text part.
fn parts(protocol: Protocol, message: &Value) -> Vec<Value> {
    let key = match protocol {
        Protocol::Gemini => "parts",
        Protocol::Anthropic | Protocol::OpenAi => "content",
    };
    match &message[key] {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        Value::Array(parts) => parts.clone(),
        _ => Vec::new(),
    }
}

pub(super) fn texts(protocol: Protocol, body: &Value) -> Vec<String> {
    let users = messages(protocol, body)
        .iter()
        .filter(|message| message["role"] == "user");
    users
        .flat_map(|message| parts(protocol, message))
        .filter_map(|part| part["text"].as_str().map(str::to_owned))
        .collect()
}

pub(super) fn tool_results(protocol: Protocol, body: &Value) -> Vec<String> {
    let of_part = |part: &Value| match protocol {
        Protocol::Anthropic => (part["type"] == "tool_result").then(|| part["content"].clone()),
        Protocol::Gemini => part
            .get("functionResponse")
            .map(|response| response["response"].clone()),
        Protocol::OpenAi => None,
    };
    let mut found = Vec::new();
    for message in messages(protocol, body) {
        if protocol == Protocol::OpenAi && message["role"] == "tool" {
            found.push(plain(&message["content"]));
        }
        found.extend(
            parts(protocol, message)
                .iter()
                .filter_map(of_part)
                .map(|v| plain(&v)),
        );
    }
    found
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn system(protocol: Protocol, body: &Value) -> String {
    let joined = |parts: &Value| match parts {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            texts.collect::<Vec<_>>().join("\n\n")
        }
        _ => String::new(),
    };
    match protocol {
        Protocol::Anthropic => joined(&body["system"]),
        Protocol::Gemini => joined(&body["systemInstruction"]["parts"]),
        Protocol::OpenAi => {
            let systems = messages(protocol, body)
                .iter()
                .filter(|message| message["role"] == "system");
            systems
                .map(|message| joined(&message["content"]))
                .collect::<Vec<_>>()
                .join("\n\n")
        }
    }
}

pub(super) fn tools(protocol: Protocol, body: &Value) -> Vec<String> {
    let empty = Vec::new();
    let list = match protocol {
        Protocol::Gemini => &body["tools"][0]["functionDeclarations"],
        Protocol::Anthropic | Protocol::OpenAi => &body["tools"],
    };
    let name = |tool: &Value| match protocol {
        Protocol::OpenAi => tool["function"]["name"].as_str().map(str::to_owned),
        Protocol::Anthropic | Protocol::Gemini => tool["name"].as_str().map(str::to_owned),
    };
    let list = list.as_array().unwrap_or(&empty);
    list.iter().filter_map(name).collect()
}

/// A response that is not a stream.
pub(super) fn refusal(status: u16, body: &Value, retry_after: Option<&str>) -> Response {
    let mut response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    if let Some(after) = retry_after {
        response = response.header("retry-after", after);
    }
    response.body(Body::from(body.to_string())).unwrap()
}

fn error_body(protocol: Protocol, status: u16) -> Value {
    let word = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    let message = format!("injected fault: {status}");
    match protocol {
        Protocol::Anthropic => {
            json!({"type": "error", "error": {"type": word, "message": message}})
        }
        Protocol::OpenAi => json!({"error": {"type": word, "message": message, "code": null}}),
        Protocol::Gemini => json!({"error": {"code": status, "status": word, "message": message}}),
    }
}

/// One part of a streamed response.
enum Piece {
    Bytes(String),
    Break,
}

pub(super) async fn respond(
    protocol: Protocol,
    number: usize,
    answer: &Answer,
    fault: Option<Fault>,
) -> Response {
    let events = events(protocol, number, answer);
    let middle = events.len() / 2;
    let whole = || events.iter().cloned().map(Piece::Bytes).collect::<Vec<_>>();
    match fault {
        None => stream(whole(), None),
        Some(Fault::Status(status)) => refusal(status, &error_body(protocol, status), None),
        Some(Fault::Refusal(status, body, after)) => refusal(status, &body, after.as_deref()),
        Some(Fault::Cut(after)) => {
            let mut pieces = whole();
            pieces.truncate(after);
            pieces.push(Piece::Break);
            stream(pieces, None)
        }
        Some(Fault::Short(after)) => {
            let mut pieces = whole();
            pieces.truncate(after);
            stream(pieces, None)
        }
        Some(Fault::Html) => Response::builder()
            .header("content-type", "text/html")
            .body(Body::from(
                "<html><body><h1>Sign in to the guest network</h1></body></html>",
            ))
            .unwrap(),
        Some(Fault::BadJson) => {
            let mut pieces = whole();
            let bad = match protocol {
                Protocol::Anthropic => {
                    "event: content_block_delta\ndata: {\"type\": \"content_bl\n\n"
                }
                Protocol::OpenAi | Protocol::Gemini => "data: {\"choices\": [{\n\n",
            };
            pieces.insert(middle, Piece::Bytes(bad.to_owned()));
            stream(pieces, None)
        }
        Some(Fault::ErrorEvent(kind)) => {
            let mut pieces = whole();
            pieces.truncate(middle);
            let error = json!({"type": "error", "error": {"type": kind, "message": "made to fail", "code": 503}});
            let event = match protocol {
                Protocol::Anthropic => format!("event: error\ndata: {error}\n\n"),
                Protocol::OpenAi | Protocol::Gemini => format!("data: {error}\n\n"),
            };
            pieces.push(Piece::Bytes(event));
            stream(pieces, None)
        }
        Some(Fault::Events(events)) => stream(events.into_iter().map(Piece::Bytes).collect(), None),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Trickle(gate)) => stream(whole(), Some(gate)),
    }
}

fn stream(pieces: Vec<Piece>, gate: Option<Gate>) -> Response {
    let pieces = futures_of(pieces, gate);
    Response::builder()
        .header("content-type", "text/event-stream; charset=utf-8")
        .body(Body::from_stream(pieces))
        .unwrap()
}

fn futures_of(
    pieces: Vec<Piece>,
    gate: Option<Gate>,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> {
    futures::stream::unfold(
        (pieces.into_iter(), gate),
        |(mut pieces, gate)| async move {
            let piece = pieces.next()?;
            if let Some(gate) = &gate {
                gate.pass().await;
            }
            let item = match piece {
                Piece::Bytes(text) => Ok(Bytes::from(text)),
                Piece::Break => Err(std::io::Error::other("made to break off")),
            };
            Some((item, (pieces, gate)))
        },
    )
}

/// Splits a text into fragments that are not empty.
fn pieces(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let size = chars.len().div_ceil(PIECES).max(1);
    chars
        .chunks(size)
        .map(|part| part.iter().collect())
        .collect()
}

fn events(protocol: Protocol, number: usize, answer: &Answer) -> Vec<String> {
    match protocol {
        Protocol::Anthropic => anthropic(number, answer),
        Protocol::OpenAi => openai(number, answer),
        Protocol::Gemini => gemini(answer),
    }
}

/// The usage object in the requested form; `None` if it is omitted.
fn usage_in_form(usage: Value, form: UsageForm) -> Option<Value> {
    let each = |with: &dyn Fn(u64) -> Value| match &usage {
        Value::Object(map) => {
            let pairs = map.iter().map(|(name, value)| {
                let value = value.as_u64().map_or_else(|| value.clone(), with);
                (name.clone(), value)
            });
            Value::Object(pairs.collect())
        }
        other => other.clone(),
    };
    match form {
        UsageForm::Documented | UsageForm::WithChoices | UsageForm::Early => Some(usage),
        UsageForm::Fractions => {
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let usage = each(&|n| json!(n as f64));
            Some(usage)
        }
        UsageForm::Texts => Some(each(&|n| json!(n.to_string()))),
        UsageForm::OddDetails => {
            let mut usage = usage;
            if let Some(details) = usage.get_mut("prompt_tokens_details") {
                *details = json!([details.clone(), null]);
            }
            usage["completion_tokens_details"] = Value::Null;
            Some(usage)
        }
        UsageForm::Missing => None,
    }
}

fn anthropic(number: usize, answer: &Answer) -> Vec<String> {
    let mut events = Vec::new();
    let mut event = |kind: &str, mut data: Value| {
        data["type"] = json!(kind);
        events.push(format!("event: {kind}\ndata: {data}\n\n"));
    };
    let tokens = answer.tokens;
    let usage = json!({
        "input_tokens": tokens.input - tokens.cached - tokens.cache_write,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": 1,
    });
    let usage = usage_in_form(usage, answer.usage);
    event(
        "message_start",
        json!({"message": {"id": format!("msg_{number}"), "type": "message", "role": "assistant", "content": [], "usage": usage}}),
    );
    event("ping", json!({}));
    let mut index = 0;
    if !answer.text.is_empty() {
        event(
            "content_block_start",
            json!({"index": index, "content_block": {"type": "text", "text": ""}}),
        );
        for piece in pieces(&answer.text) {
            event(
                "content_block_delta",
                json!({"index": index, "delta": {"type": "text_delta", "text": piece}}),
            );
        }
        event("content_block_stop", json!({"index": index}));
        index += 1;
    }
    for (at, (name, arguments)) in answer.calls.iter().enumerate() {
        event(
            "content_block_start",
            json!({"index": index, "content_block": {"type": "tool_use", "id": format!("toolu_{number}_{at}"), "name": name, "input": {}}}),
        );
        for piece in pieces(arguments) {
            event(
                "content_block_delta",
                json!({"index": index, "delta": {"type": "input_json_delta", "partial_json": piece}}),
            );
        }
        event("content_block_stop", json!({"index": index}));
        index += 1;
    }
    let reason = match (answer.cut, answer.calls.is_empty()) {
        (true, _) => "max_tokens",
        (false, true) => "end_turn",
        (false, false) => "tool_use",
    };
    let reason = answer.ending.as_deref().unwrap_or(reason);
    let usage = usage_in_form(json!({"output_tokens": tokens.output}), answer.usage);
    event(
        "message_delta",
        json!({"delta": {"stop_reason": reason, "stop_sequence": null}, "usage": usage}),
    );
    event("message_stop", json!({}));
    events
}

fn openai(number: usize, answer: &Answer) -> Vec<String> {
    let mut events = Vec::new();
    let mut chunk = |choices: Value, usage: Value| {
        let data = json!({"id": format!("chatcmpl-{number}"), "object": "chat.completion.chunk", "choices": choices, "usage": usage});
        events.push(format!("data: {data}\n\n"));
    };
    let delta = |delta: Value| json!([{"index": 0, "delta": delta, "finish_reason": null}]);
    let tokens = answer.tokens;
    let usage = json!({
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    });
    let usage = usage_in_form(usage, answer.usage).unwrap_or_default();
    let early = match answer.usage {
        UsageForm::Early => usage.clone(),
        _ => Value::Null,
    };
    chunk(delta(json!({"role": "assistant", "content": ""})), early);
    let field = if answer.refusal { "refusal" } else { "content" };
    for piece in pieces(&answer.text).into_iter().filter(|p| !p.is_empty()) {
        chunk(delta(json!({field: piece})), Value::Null);
    }
    for (index, (name, arguments)) in answer.calls.iter().enumerate() {
        let mut first = json!({"index": index, "id": format!("call_{number}_{index}"), "type": "function", "function": {"name": name, "arguments": ""}});
        let mut rest = json!({"index": index});
        if answer.no_index {
            first["index"] = Value::Null;
            rest = json!({});
        }
        chunk(delta(json!({"tool_calls": [first]})), Value::Null);
        for piece in pieces(arguments) {
            rest["function"] = json!({"arguments": piece});
            chunk(delta(json!({"tool_calls": [rest]})), Value::Null);
        }
    }
    let reason = match (answer.cut, answer.calls.is_empty()) {
        (true, _) => "length",
        (false, true) => "stop",
        (false, false) => "tool_calls",
    };
    let reason = answer.ending.as_deref().unwrap_or(reason);
    chunk(
        json!([{"index": 0, "delta": {}, "finish_reason": reason}]),
        Value::Null,
    );
    match answer.usage {
        UsageForm::WithChoices => chunk(json!([{"index": 0, "delta": {}}]), usage),
        UsageForm::Early => chunk(
            json!([]),
            json!({"prompt_tokens": 0, "completion_tokens": 0}),
        ),
        _ => chunk(json!([]), usage),
    }
    events.push("data: [DONE]\n\n".to_owned());
    events
}

fn gemini(answer: &Answer) -> Vec<String> {
    let tokens = answer.tokens;
    let usage = json!({
        "promptTokenCount": tokens.input,
        "cachedContentTokenCount": tokens.cached,
        "candidatesTokenCount": tokens.output,
        "totalTokenCount": tokens.input + tokens.output,
    });
    let usage = usage_in_form(usage, answer.usage);
    let mut events = Vec::new();
    let mut chunk = |parts: Value, reason: Value| {
        let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
        if !reason.is_null() {
            candidate["finishReason"] = reason;
        }
        let mut data = json!({"candidates": [candidate]});
        if let Some(usage) = &usage {
            data["usageMetadata"] = usage.clone();
        }
        events.push(format!("data: {data}\r\n\r\n"));
    };
    for piece in pieces(&answer.text).into_iter().filter(|p| !p.is_empty()) {
        chunk(json!([{"text": piece}]), Value::Null);
    }
    let calls: Vec<Value> = answer
        .calls
        .iter()
        .map(|(name, arguments)| {
            let args: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!(arguments));
            json!({"functionCall": {"name": name, "args": args}, "thoughtSignature": "c2lnbmF0dXJl"})
        })
        .collect();
    if !calls.is_empty() {
        chunk(json!(calls), Value::Null);
    }
    let reason = if answer.cut { "MAX_TOKENS" } else { "STOP" };
    chunk(
        json!([{"text": ""}]),
        json!(answer.ending.as_deref().unwrap_or(reason)),
    );
    events
}
