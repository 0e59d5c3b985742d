//! The entries of a transcript, each as a list item.

use std::collections::HashMap;

use errand_core::author::By;
use errand_core::human::Ask;
use errand_core::id::{RunId, UserId};
use errand_core::time::Timestamp;
use errand_core::transcript::{AttemptOutcome, Body, Entry, Outcome, ToolCall};
use maud::{Markup, html};
use serde_json::Value;

use crate::web::reason::reason;
use crate::web::{card, files, text, ui};

/// Email addresses by user.
pub(super) type People = HashMap<UserId, String>;

/// Length in characters from which a result links to a page with all of it.
const WHOLE_FROM_CHARS: usize = 16_000;

/// The calls of a part by ID, needed to render their results.
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

/// What entries are rendered with.
pub(super) struct Context<'a> {
    pub(super) run: RunId,
    pub(super) calls: &'a Calls,
    pub(super) people: &'a People,
    pub(super) now: Timestamp,
    /// Whether the person can fork the run.
    pub(super) forks: bool,
}

/// A link that forks the run at this entry.
fn fork(entry: &Entry, context: &Context<'_>) -> Markup {
    html! { @if context.forks { (super::fork::link(context.run, entry.id, entry.position)) } }
}

/// One list item. Empty for internal entries that tell people nothing.
pub(super) fn entry(entry: &Entry, context: &Context<'_>) -> Markup {
    let Context {
        run,
        calls,
        people,
        now,
        ..
    } = *context;
    let who = |by: &Option<By>, else_: &str| author(by.as_ref(), people, else_);
    let ours = |words: &str| html! { (words) };
    let at = entry.position;
    match &entry.body {
        Body::User {
            text,
            by,
            untrusted,
        } => item(
            at,
            "user",
            &html! { (by_line_with(&who(by, "A program"), entry.at, now, &fork(entry, context))) @if *untrusted { p.small.dim { "Marked as untrusted by the sender: tools with the guard policy ask from here on." } } (text::plain(text)) },
        ),
        Body::Assistant { text, .. } => item(
            at,
            "assistant",
            &html! { (by_line_with(&ours("Assistant"), entry.at, now, &fork(entry, context))) (text::markdown(text)) },
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
            &html! { (by_line(&ours(match request.ask { Ask::Approval => "Approval requested", Ask::Question { .. } => "Answer requested" }), entry.at, now)) (card::in_transcript(request, run)) (reason(request, run, now)) },
        ),
        Body::HumanResponse { resolution, by, .. } => item(
            at,
            "user",
            &html! { (by_line_with(&who(by, "No one"), entry.at, now, &fork(entry, context))) div { (card::answer(resolution)) } },
        ),
        Body::Error { error, .. } => item(
            at,
            "failure",
            &html! { (by_line(&ours("The run failed"), entry.at, now)) (text::plain(&error.message)) code { (error.code) } },
        ),
        Body::Wait { until, .. } => mark(at, &html! { "Waits until " (ui::time(*until, now)) }),
        Body::Interrupted { by } => mark(
            at,
            &html! { "Stopped by " (who(by, "the system")) ", " (ui::time(entry.at, now)) },
        ),
        Body::Retried { by } => mark(
            at,
            &html! { "Retried by " (who(by, "the system")) ", " (ui::time(entry.at, now)) },
        ),
        Body::Late { call_id, outcome } => mark(
            at,
            &html! { "Late result of " (calls.0.get(call_id).map_or("a call", |(call, _)| call.name.as_str())) ": " (outcome_brief(outcome)) },
        ),
        Body::Opening { text } => mark(at, &html! { (text.chars().take(400).collect::<String>()) }),
        Body::ModelFailed {
            attempt,
            error,
            until,
        } => mark(
            at,
            &html! { "The model call failed (attempt " (attempt) "): " (error) " Retrying " (ui::time(*until, now)) "." },
        ),
        Body::ModelAttempt {
            call,
            outcome: AttemptOutcome::Canceled,
            ..
        } if call.used_tokens() => mark(
            at,
            &html! { "A model call was canceled after using " (ui::number(call.input_tokens + call.output_tokens)) " tokens." },
        ),
        Body::Summary { .. } => mark(
            at,
            &html! { "The model's context window is full. Earlier entries were summarized." },
        ),
        _ => html! {},
    }
}

/// The author: a person, or an API key and the person who created it. Names are set apart from our words.
fn author(by: Option<&By>, people: &People, else_: &str) -> Markup {
    let Some(by) = by else {
        return html! { (else_) };
    };
    let person = people.get(&by.user);
    match (&by.key, person) {
        (None, None) => html! { (else_) },
        (None, Some(person)) => ui::name(person),
        (Some(key), person) => html! {
            (ui::api_key(&key.name))
            @if let Some(person) = person { " created by " (ui::name(person)) }
        },
    }
}

fn item(position: u64, kind: &str, inside: &Markup) -> Markup {
    html! { li class={ "entry " (kind) } id={ "e-" (position) } data-at=(position) { (inside) } }
}

fn mark(position: u64, inside: &Markup) -> Markup {
    item(position, "mark", inside)
}

fn by_line(who: &Markup, at: Timestamp, now: Timestamp) -> Markup {
    html! { div.by { strong { (who) } (ui::time(at, now)) } }
}

fn by_line_with(who: &Markup, at: Timestamp, now: Timestamp, more: &Markup) -> Markup {
    html! { div.by { strong { (who) } (ui::time(at, now)) (more) } }
}

fn tool_call(call: &ToolCall) -> Markup {
    html! {
        details id=(ui::call_anchor(&call.id)) {
            summary { strong.mono { (ui::name(&call.name)) } span.brief { (card::brief(call)) } }
            div.inside { (arguments(call)) }
        }
    }
}

/// The arguments of a call. The content of a written file is rendered by file type.
fn arguments(call: &ToolCall) -> Markup {
    let content = call.arguments.get("content").and_then(Value::as_str);
    match (call.name.as_str(), path_of(call), content) {
        ("write_file", Some(path), Some(content)) => {
            let mut rest = call.arguments.clone();
            rest.remove("content");
            html! { (text::arguments(&rest)) (as_file(path, content)) }
        }
        _ => text::arguments(&call.arguments),
    }
}

fn path_of(call: &ToolCall) -> Option<&str> {
    call.arguments.get("path").and_then(Value::as_str)
}

/// A file's content, rendered by file type.
fn as_file(path: &str, content: &str) -> Markup {
    if text::is_csv(path) {
        return text::csv(path, content);
    }
    if path.to_lowercase().ends_with(".md") {
        return text::markdown(content);
    }
    as_text(content)
}

/// JSON as a value, other text preformatted.
fn as_text(content: &str) -> Markup {
    match serde_json::from_str::<Value>(content) {
        Ok(parsed @ (Value::Object(_) | Value::Array(_))) => text::value(&parsed),
        _ => text::code(content),
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
                span.brief dir="auto" { (outcome_brief(outcome)) }
                @if let Some(took) = took { span.small.dim.nowrap { (took) } }
            }
            div.inside {
                div.by { (fork) }
                @match outcome {
                    Outcome::Result(value) => (display_result(run, value, call.map(|(call, _)| call))),
                    Outcome::Error(error) => (text::code(&error.to_string())),
                }
                @if length(outcome) > WHOLE_FROM_CHARS { p { a href=(whole) { "View the whole result of " (name) } } }
            }
        }
    };
    item(entry.position, kind, &inside)
}

fn length(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Result(Value::String(text)) => text.len(),
        Outcome::Result(value) => value.to_string().len(),
        Outcome::Error(error) => error.to_string().len(),
    }
}

fn outcome_brief(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Result(value) => text::brief(value),
        Outcome::Error(error) => text::brief(&Value::String(error.to_string())),
    }
}

/// The result of a call: a file by its type, an image or a PDF embedded, everything else as a value.
fn display_result(run: RunId, value: &Value, call: Option<&ToolCall>) -> Markup {
    let of_file = |names: &[&str]| {
        call.filter(|call| names.contains(&call.name.as_str()))
            .and_then(path_of)
    };
    if let Some(path) = of_file(&["read_file"]) {
        // The transcript contains no images, so the file is shown in its current state.
        if let Some(picture) = value.get("image").and_then(|image| image.get("path")) {
            return files::embed(run, picture.as_str().unwrap_or(path));
        }
        if let Value::String(content) = value {
            return html! {
                @if path.to_lowercase().ends_with(".pdf") { (files::embed(run, path)) }
                (as_file(path, content))
            };
        }
    }
    let changed = of_file(&["write_file", "edit_file"]);
    html! {
        @match value { Value::String(content) => (as_text(content)), value => (text::value(value)) }
        @if let Some(path) = changed { p { (files::link_to(run, path)) } }
    }
}

#[cfg(test)]
mod tests {
    use errand_core::id::{IdGen, MessageId};
    use errand_core::tool_error::ToolError;
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

    fn given(name: &str, path: &str, value: Value) -> String {
        let arguments = json!({ "path": path });
        let call = ToolCall {
            id: "c".to_owned(),
            name: name.to_owned(),
            arguments: arguments.as_object().cloned().unwrap(),
        };
        let run = IdGen::new([1; 32]).run(Timestamp::from_millis(1_800_000_000_000));
        display_result(run, &value, Some(&call)).into_string()
    }

    #[test]
    fn files_are_shown_as_their_names_say() {
        let csv = given("read_file", "/workspace/a.csv", json!("a,b\n1,2\n"));
        assert!(csv.contains("<table>"), "{csv}");
        let table = given(
            "read_file",
            "/workspace/a.json",
            json!("[{\"a\":1},{\"a\":2}]"),
        );
        assert!(table.contains("<table>"), "{table}");
        let picture = json!({"image": {"path": "/workspace/a.png", "media_type": "image/png"}});
        let picture = given("read_file", "/workspace/a.png", picture);
        assert!(
            picture.contains("<img") && picture.contains("inline=1"),
            "{picture}"
        );
        let paper = given("read_file", "/workspace/a.pdf", json!("Its text"));
        assert!(
            paper.contains("<object") && paper.contains("Its text"),
            "{paper}"
        );
        let written = given("write_file", "/workspace/a b.md", json!({"size_bytes": 3}));
        assert!(written.contains("path=%2Fworkspace%2Fa+b.md"), "{written}");
        // A file name is text, whatever it contains.
        let evil = json!({"image": {"path": "\"><script>alert(1)</script>.png"}});
        let evil = given("read_file", "x", evil);
        assert!(!evil.contains("<script"), "{evil}");
    }

    #[test]
    fn content_of_models_and_tools_stays_text() {
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
                untrusted: false,
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
                outcome: Outcome::Error(ToolError::from_text(evil.as_str())),
            },
        ];
        for body in bodies {
            let shown = shown_of(body);
            assert!(!shown.contains("<script"), "{shown}");
            assert!(shown.contains("id=\"e-7\""), "{shown}");
        }
    }

    #[test]
    fn the_name_of_a_key_is_set_apart_from_our_words() {
        let ids = IdGen::new([1; 32]);
        let now = Timestamp::from_millis(1_800_000_000_000);
        let user = ids.user(now);
        let people = People::from([(user, "owner@example.com".to_owned())]);
        let by: By = serde_json::from_value(json!({
            "user": user,
            "key": ids.api_key(now),
            "name": "prod (created by cfo@example.com)\u{202e}",
        }))
        .unwrap();
        let shown = author(Some(&by), &people, "A program").into_string();
        let (before, rest) = shown.split_once("<code class=\"outside\">").unwrap();
        let (name, after) = rest.split_once("</code>").unwrap();
        assert_eq!(before, "API key ");
        assert!(
            name.contains("cfo@example.com") && !name.contains('\u{202e}'),
            "{name}"
        );
        assert!(
            after.contains("created by <bdi dir=\"auto\">owner@example.com</bdi>"),
            "{after}"
        );
    }
}
