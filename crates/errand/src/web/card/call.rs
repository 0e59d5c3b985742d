//! The call that an answer is about, as a person is shown it: whole, with the arguments that decide first.
//!
//! Guarantee: every argument is in the page, and every character of it can be seen: what a reader could not see stands
//! there as its code point, marked as ours. What is long is folded, and says how much of it is shown.

use errand_core::shown::one_line;
use errand_core::transcript::ToolCall;
use maud::{Markup, html};
use serde_json::{Map, Value};

use crate::web::text::{exact, exact_line};
use crate::web::{text, ui};

/// Most characters of a value that stands beside its name.
const SHORT_CHARS_MAX: usize = 120;
/// Characters of a tool's description, in the words of its server, that a card shows.
const DESCRIPTION_CHARS_MAX: usize = 300;
/// Lines of a long text that are shown before it is unfolded.
const LINES_SHOWN: usize = 12;
/// Characters of it, where its lines are long.
const CHARS_SHOWN: usize = 1_200;
/// Arguments that a list shows of a call.
const BRIEF_ARGUMENTS: usize = 3;
/// Characters of each of them.
const BRIEF_CHARS: usize = 80;

/// Words in the names of arguments, by what they decide, most first: whom it goes to, how much, which thing, where, what.
const DECIDING: [&[&str]; 5] = [
    &[
        "account",
        "address",
        "bcc",
        "beneficiary",
        "bic",
        "cc",
        "channel",
        "customer",
        "email",
        "iban",
        "mail",
        "payee",
        "phone",
        "recipient",
        "recipients",
        "receiver",
        "to",
        "user",
    ],
    &[
        "amount", "cost", "currency", "percent", "price", "quantity", "rate", "sum", "total",
        "value",
    ],
    &[
        "id",
        "ids",
        "invoice",
        "issue",
        "key",
        "number",
        "order",
        "reference",
        "ticket",
        "uuid",
    ],
    &[
        "branch",
        "bucket",
        "database",
        "dest",
        "destination",
        "directory",
        "domain",
        "endpoint",
        "file",
        "filename",
        "folder",
        "from",
        "host",
        "href",
        "path",
        "paths",
        "repo",
        "repository",
        "source",
        "table",
        "target",
        "uri",
        "url",
    ],
    &[
        "action",
        "assignment",
        "cmd",
        "command",
        "date",
        "method",
        "name",
        "operation",
        "query",
        "script",
        "sql",
        "subject",
        "title",
        "until",
    ],
];

/// The call: its tool, what the tool is for, its arguments.
pub(super) fn shown(call: &ToolCall, description: Option<&str>) -> Markup {
    html! {
        section.call aria-label="The call" {
            div.tool {
                strong.mono { (ui::name(&call.name)) }
                @match (built_in(&call.name), description) {
                    (Some(ours), _) => span.dim.small { (ours) },
                    (None, Some(theirs)) => span.dim.small { "Its server says: " q dir="auto" { (exact_line(&text::clip(theirs, DESCRIPTION_CHARS_MAX))) } },
                    (None, None) => {}
                }
            }
            (arguments(&call.arguments))
        }
    }
}

/// What a built-in tool does, for people.
fn built_in(tool: &str) -> Option<&'static str> {
    Some(match tool {
        "read_file" => "Reads a file in the run's sandbox.",
        "list_files" => "Lists files in the run's sandbox.",
        "search_files" => "Searches files in the run's sandbox.",
        "write_file" => "Creates or replaces a file in the run's sandbox.",
        "edit_file" => "Changes a part of a file in the run's sandbox.",
        "run_command" => "Runs a command in the run's sandbox, without network access.",
        "fetch_url" => "Requests an address on the network.",
        "run_assignment" => "Starts another assignment and waits for its result.",
        "request_approval" => "Asks a person for an approval.",
        "ask_human" => "Asks a person questions.",
        _ => return None,
    })
}

/// All arguments, those that decide first, long texts last.
fn arguments(fields: &Map<String, Value>) -> Markup {
    if fields.is_empty() {
        return html! { p.dim { "No arguments." } };
    }
    let (short, long): (Vec<_>, Vec<_>) = ordered(fields)
        .into_iter()
        .partition(|(_, value)| is_short(value));
    html! {
        @if !short.is_empty() {
            dl.facts {
                @for (name, value) in short {
                    dt.mono { (ui::name(name)) }
                    dd { code dir="auto" { (value_of(value)) } }
                }
            }
        }
        @for (name, value) in long {
            div.long {
                div.name.mono { (ui::name(name)) }
                (long_text(&whole(value)))
            }
        }
    }
}

/// A text that may be long: its beginning, and the rest behind a fold that says how much that is.
pub(in crate::web) fn long_text(whole: &str) -> Markup {
    let (first, rest) = beginning(whole);
    if rest.is_empty() {
        return html! { pre.block-code tabindex="0" dir="auto" { (exact(whole)) } };
    }
    let lines = whole.lines().count();
    let says = if lines > 1 {
        format!(
            "{} lines, {} shown",
            ui::number(lines as u64),
            ui::number(first.lines().count() as u64)
        )
    } else {
        format!(
            "{} characters, {} shown",
            ui::number(whole.chars().count() as u64),
            ui::number(first.chars().count() as u64)
        )
    };
    html! {
        div.folded {
            pre.block-code tabindex="0" dir="auto" { (exact(first)) }
            details {
                summary { span.when-closed { (says) ". Show all" } span.when-open { (says.split(',').next().unwrap_or_default()) ". Show less" } }
                pre.block-code tabindex="0" dir="auto" { (exact(rest)) }
            }
        }
    }
}

/// What is shown before a text is unfolded, and what comes then. Both with whole lines, unless a line is too long.
fn beginning(text: &str) -> (&str, &str) {
    let by_lines = text
        .match_indices('\n')
        .nth(LINES_SHOWN - 1)
        .map_or(text.len(), |(at, _)| at + 1);
    let by_chars = text
        .char_indices()
        .nth(CHARS_SHOWN)
        .map_or(text.len(), |(at, _)| at);
    let end = by_lines.min(by_chars);
    // Not for a few characters more.
    let rest = text.get(end..).unwrap_or_default();
    if rest.lines().count() <= 2 && rest.chars().count() <= SHORT_CHARS_MAX {
        return (text, "");
    }
    text.split_at(end)
}

fn value_of(value: &Value) -> Markup {
    match value {
        Value::String(text) => exact_line(text),
        other => html! { (other) },
    }
}

fn whole(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => text::pretty(other),
    }
}

fn is_short(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.contains('\n') && text.chars().nth(SHORT_CHARS_MAX).is_none(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Arguments in the order of what they decide; among equals, as the call has them.
fn ordered(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = fields.iter().collect();
    all.sort_by_key(|(name, value)| {
        let is_text = matches!(value, Value::String(_));
        (!is_short(value), rank(name), !is_short(value) && is_text)
    });
    all
}

fn rank(name: &str) -> usize {
    let words = words(name);
    DECIDING
        .iter()
        .position(|of| words.iter().any(|word| of.contains(&word.as_str())))
        .unwrap_or(DECIDING.len())
}

/// `recipientEmail`, `recipient_email` and `recipient-email` are two words.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for c in name.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && was_lower) {
            words.push(String::new());
        }
        was_lower = c.is_lowercase();
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
    }
    words
}

/// A call in a line of a list: what decides, and how long the rest is.
pub(in crate::web) fn brief(call: &ToolCall) -> Markup {
    let all = ordered(&call.arguments);
    let more = all.len().saturating_sub(BRIEF_ARGUMENTS);
    html! {
        @for (index, (name, value)) in all.into_iter().take(BRIEF_ARGUMENTS).enumerate() {
            @if index > 0 { " · " }
            span.dim { (one_line(name)) ": " } bdi { (brief_value(value)) }
        }
        @if more > 0 { span.dim { " · " (more) " more" } }
    }
}

fn brief_value(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => return ui::counted(all.len() as u64, "item", "items"),
        Value::Object(all) => return ui::counted(all.len() as u64, "field", "fields"),
        other => other.to_string(),
    };
    let lines = text.lines().count();
    if lines > 1 {
        return ui::counted(lines as u64, "line", "lines");
    }
    let cut: String = text.chars().take(BRIEF_CHARS).collect();
    let is_cut = cut.len() < text.len();
    format!("{}{}", one_line(&cut), if is_cut { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(arguments: &Value) -> ToolCall {
        ToolCall {
            id: "c".to_owned(),
            name: "bank__pay".to_owned(),
            arguments: arguments.as_object().cloned().unwrap(),
        }
    }

    #[test]
    fn what_decides_comes_first_and_long_texts_last() {
        let call = call(&json!({
            "body": "a\n".repeat(40), "zeta": true, "subject": "x", "invoiceId": 7, "amount": 12.5,
            "recipient_iban": "DE1", "extra": {"a": [1, 2]},
        }));
        let names: Vec<_> = ordered(&call.arguments)
            .into_iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let wanted = [
            "recipient_iban",
            "amount",
            "invoiceId",
            "subject",
            "zeta",
            "extra",
            "body",
        ];
        assert_eq!(names, wanted);
        let brief = brief(&call).into_string();
        assert!(
            brief.contains("DE1") && brief.contains("12.5") && brief.contains("4 more"),
            "{brief}"
        );
    }

    #[test]
    fn a_call_is_shown_whole_and_every_character_of_it_can_be_seen() {
        let long = format!("{}pay \u{202e}001", "x".repeat(20_000));
        let call = call(&json!({
            "to": "a\u{200b}b\u{3164}", "body": long, "more": {"deep": [1, "\u{ad}"]}, "na\u{2800}me": 1,
        }));
        let shown = shown(&call, None).into_string();
        for number in [
            "\\u{200b}",
            "\\u{3164}",
            "\\u{202e}",
            "\\u{ad}",
            "\\u{2800}",
        ] {
            assert!(shown.contains(number), "{number}");
        }
        for hidden in ['\u{200b}', '\u{3164}', '\u{202e}', '\u{ad}', '\u{2800}'] {
            assert!(!shown.contains(hidden), "{hidden:?}");
        }
        assert!(shown.matches('x').count() >= 20_000 && shown.contains("001</pre>"));
    }

    #[test]
    fn what_is_folded_says_how_much_is_shown() {
        let shown = |text: &str| long_text(text).into_string();
        let lines = format!("{}rm -rf /", "\n".repeat(402));
        assert!(shown(&lines).contains("403 lines, 12 shown"));
        assert!(shown(&lines).contains("rm -rf /"));
        let long = "é".repeat(6_400);
        assert!(shown(&long).contains("6,400 characters, 1,200 shown"));
        assert!(!shown("a\nb\nc").contains("<details"));
        assert!(
            !shown(&"a\n".repeat(13)).contains("<details"),
            "one line more is shown"
        );
    }

    #[test]
    fn a_brief_of_a_call_is_one_line_in_which_all_is_seen() {
        let call = call(
            &json!({"path": "/workspace/\u{202e}x\ny", "content": "1\n2\n3", "q": "y".repeat(500)}),
        );
        let brief = brief(&call).into_string();
        assert!(
            brief.contains("2 lines") && brief.contains("3 lines"),
            "{brief}"
        );
        assert!(brief.len() < 700 && !brief.contains('\n'), "{brief}");
    }
}
