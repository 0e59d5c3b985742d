//! The entries of a transcript, each as one item of a list.

use std::collections::HashMap;

use errand_core::id::{RunId, UserId};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry, Outcome, ToolCall};
use maud::{Markup, html};
use serde_json::Value;

use crate::web::{inbox, text, ui};

/// E-mail addresses by user.
pub(super) type People = HashMap<UserId, String>;

/// From how many characters on a result is offered whole on a page of its own.
const WHOLE_FROM_CHARS: usize = 16_000;

/// The calls of a part, by their ids: what a result is of.
#[derive(Default)]
pub(super) struct Calls(HashMap<String, (ToolCall, Timestamp)>);

impl Calls {
    pub(super) fn of(entries: &[Entry]) -> Self {
        let mut calls = Self::default();
        calls.note(entries);
        calls
    }

    pub(super) fn note(&mut self, entries: &[Entry]) {
        for entry in entries {
            if let Body::ToolCall { call, .. } = &entry.body {
                self.0.insert(call.id.clone(), (call.clone(), entry.at));
            }
        }
    }
}

/// What items are shown with.
pub(super) struct Context<'a> {
    pub(super) run: RunId,
    pub(super) calls: &'a Calls,
    pub(super) people: &'a People,
    pub(super) now: Timestamp,
    /// Whether the run may be forked by whoever looks.
    pub(super) forks: bool,
}

/// The way to a new run that begins with the transcript up to here.
fn fork(entry: &Entry, context: &Context<'_>) -> Markup {
    html! { @if context.forks { (super::fork::link(context.run, entry.id, entry.position)) } }
}

/// One item; nothing for the engine's own notes that tell people nothing.
pub(super) fn entry(entry: &Entry, context: &Context<'_>) -> Markup {
    let Context {
        run,
        calls,
        people,
        now,
        ..
    } = *context;
    let who = |by: &Option<UserId>, else_: &str| {
        by.and_then(|user| people.get(&user).cloned())
            .unwrap_or_else(|| else_.to_owned())
    };
    let at = entry.position;
    match &entry.body {
        Body::User { text, by } => item(
            at,
            "user",
            &html! { (by_line_with(&who(by, "A program"), entry.at, now, &fork(entry, context))) (text::plain(text)) },
        ),
        Body::Assistant { text, .. } => item(
            at,
            "assistant",
            &html! { (by_line("Assistant", entry.at, now)) (text::markdown(text)) },
        ),
        Body::ToolCall { call, .. } => item(at, "tool call", &tool_call(call)),
        Body::ToolResult {
            call_id,
            name,
            outcome,
        } => result(
            run,
            entry,
            name,
            calls.0.get(call_id),
            outcome,
            &fork(entry, context),
        ),
        Body::HumanRequest { request, .. } => item(
            at,
            "asked",
            &html! { (by_line("Asks a person", entry.at, now)) strong { (request.title) } @if let Some(more) = &request.description { (text::markdown(more)) } },
        ),
        Body::HumanResponse { resolution, by, .. } => item(
            at,
            "user",
            &html! { (by_line_with(&who(by, "Nobody"), entry.at, now, &fork(entry, context))) div { (inbox::answer(resolution)) } },
        ),
        Body::Error { error, .. } => item(
            at,
            "failure",
            &html! { (by_line("The run failed", entry.at, now)) (text::plain(&error.message)) code { (error.code) } },
        ),
        Body::Wait { until, .. } => mark(at, &html! { "Waits until " (ui::time(*until, now)) }),
        Body::Interrupted { by } => mark(
            at,
            &html! { "Stopped by " (who(by, "the program")) ", " (ui::time(entry.at, now)) },
        ),
        Body::Retried { by } => mark(
            at,
            &html! { "Retried by " (who(by, "the program")) ", " (ui::time(entry.at, now)) },
        ),
        Body::Late { call_id, outcome } => mark(
            at,
            &html! { "What came late of " (calls.0.get(call_id).map_or("a call", |(call, _)| call.name.as_str())) ": " (outcome_brief(outcome)) },
        ),
        Body::Opening { text } => mark(at, &html! { (text.chars().take(400).collect::<String>()) }),
        Body::ModelFailed {
            attempt,
            error,
            until,
        } => mark(
            at,
            &html! { "The model gave no answer (attempt " (attempt) "): " (error) " Asked again " (ui::time(*until, now)) "." },
        ),
        Body::Summary { .. } => mark(
            at,
            &html! { "The model's window is full: what came before is summed up for it." },
        ),
        _ => html! {},
    }
}

fn item(position: u64, kind: &str, inside: &Markup) -> Markup {
    html! { li class={ "entry " (kind) } id={ "e-" (position) } data-at=(position) { (inside) } }
}

fn mark(position: u64, inside: &Markup) -> Markup {
    item(position, "mark", inside)
}

fn by_line(who: &str, at: Timestamp, now: Timestamp) -> Markup {
    html! { div.by { strong { (who) } (ui::time(at, now)) } }
}

fn by_line_with(who: &str, at: Timestamp, now: Timestamp, more: &Markup) -> Markup {
    html! { div.by { strong { (who) } (ui::time(at, now)) (more) } }
}

fn tool_call(call: &ToolCall) -> Markup {
    let brief = text::brief(&Value::Object(call.arguments.clone()));
    html! {
        details {
            summary { strong.mono { (call.name) } span.brief { (brief) } }
            div.inside { (text::arguments(&call.arguments)) }
        }
    }
}

fn result(
    run: RunId,
    entry: &Entry,
    name: &str,
    call: Option<&(ToolCall, Timestamp)>,
    outcome: &Outcome,
    fork: &Markup,
) -> Markup {
    let took = call.map(|(_, began)| ui::duration(entry.at.ms_since(*began)));
    let kind = match outcome {
        Outcome::Result(_) => "tool result",
        Outcome::Error(_) => "tool result error",
    };
    let whole = format!("/runs/{run}/entries/{}", entry.position);
    let inside = html! {
        details {
            summary {
                @match outcome {
                    Outcome::Result(_) => span.dim { "result" },
                    Outcome::Error(_) => (ui::state("failed", "error")),
                }
                span.brief { (outcome_brief(outcome)) }
                @if let Some(took) = took { span.small.dim.nowrap { (took) } }
            }
            div.inside {
                div.by { (fork) }
                @match outcome {
                    Outcome::Result(value) => (shown(value, call.map(|(call, _)| call))),
                    Outcome::Error(error) => (text::code(error)),
                }
                @if length(outcome) > WHOLE_FROM_CHARS { p { a href=(whole) { "The whole result of " (name) } } }
            }
        }
    };
    item(entry.position, kind, &inside)
}

fn length(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Result(Value::String(text)) | Outcome::Error(text) => text.len(),
        Outcome::Result(value) => value.to_string().len(),
    }
}

fn outcome_brief(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Result(value) => text::brief(value),
        Outcome::Error(error) => text::brief(&Value::String(error.clone())),
    }
}

/// A file's content as its name says; else as the value is.
fn shown(value: &Value, call: Option<&ToolCall>) -> Markup {
    let path = call
        .filter(|call| call.name == "read_file")
        .and_then(|call| call.arguments.get("path"))
        .and_then(Value::as_str);
    match (value, path) {
        (Value::String(text), Some(path)) if text::is_csv(path) => text::csv(path, text),
        (Value::String(text), Some(path)) if path.ends_with(".md") => text::markdown(text),
        (Value::String(text), _) => match serde_json::from_str::<Value>(text) {
            Ok(parsed @ (Value::Object(_) | Value::Array(_))) => text::value(&parsed),
            _ => text::code(text),
        },
        (value, _) => text::value(value),
    }
}

#[cfg(test)]
mod tests {
    use errand_core::id::{IdGen, MessageId};
    use serde_json::json;

    use super::*;

    fn shown_of(body: Body) -> String {
        let ids = IdGen::new([1; 32]);
        let now = Timestamp::from_millis(1_800_000_000_000);
        let run = ids.run(now);
        let one = Entry {
            position: 7,
            id: MessageId::derived(run, 7, now),
            at: now,
            body,
        };
        let context = Context {
            run,
            calls: &Calls::default(),
            people: &People::new(),
            now,
            forks: true,
        };
        entry(&one, &context).into_string()
    }

    #[test]
    fn whatever_a_model_or_a_tool_says_is_text() {
        let evil = "<script>alert(1)</script>".to_owned();
        let arguments = json!({ evil.clone(): evil, "list": [evil.clone()] });
        let call = ToolCall {
            id: evil.clone(),
            name: evil.clone(),
            arguments: arguments.as_object().cloned().unwrap(),
        };
        let bodies = [
            Body::User {
                text: evil.clone(),
                by: None,
            },
            Body::Assistant {
                text: evil.clone(),
                ends: false,
                mark: None,
            },
            Body::ToolCall { call, mark: None },
            Body::ToolResult {
                call_id: evil.clone(),
                name: evil.clone(),
                outcome: Outcome::Result(arguments),
            },
            Body::ToolResult {
                call_id: evil.clone(),
                name: evil.clone(),
                outcome: Outcome::Error(evil.clone()),
            },
        ];
        for body in bodies {
            let shown = shown_of(body);
            assert!(!shown.contains("<script"), "{shown}");
            assert!(shown.contains("id=\"e-7\""), "{shown}");
        }
    }
}
