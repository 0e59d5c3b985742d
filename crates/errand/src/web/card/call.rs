//! The tool call that a request is about, as shown to a person: deciding arguments first.
//!
//! Guarantees:
//! - Every character is visible: invisible ones appear as their code point, marked as ours.
//! - Long texts are folded, and the fold says how much is shown. A card shows a bounded part of a call; if that is not
//!   everything, it says so and links to the rest.
//! - Names and values of arguments have their own elements, so neither can imitate the markup between them.

use errand_core::display::{Layout, is_hidden};
use errand_core::transcript::ToolCall;
use maud::{Markup, html};
use serde_json::{Map, Value};

use crate::web::text::{exact_line, exact_within, prefix, start};
use crate::web::{text, ui};

/// Maximum length in characters of a value shown next to its name.
const SHORT_CHARS_MAX: usize = 120;
const NAME_CHARS_MAX: usize = 120;
/// Maximum length in characters of the server's description of a tool.
const DESCRIPTION_CHARS_MAX: usize = 300;
/// Lines of a long text shown before it is unfolded.
const LINES_SHOWN: usize = 12;
/// Characters shown before a text is unfolded, if its lines are long.
const CHARS_SHOWN: usize = 1_200;
/// Lines of a long text on a card when unfolded.
const LINES_MAX: usize = 400;
/// Maximum size in bytes of the HTML of a long text.
const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Maximum size in bytes of the HTML of all arguments on a card.
const CALL_BYTES_MAX: usize = 64 * 1024;
const ARGUMENTS_MAX: usize = 200;
/// Arguments that are sorted. Later ones do not appear on a card.
const ORDERED_MAX: usize = 5_000;
/// Arguments shown in a list.
const BRIEF_ARGUMENTS: usize = 3;
/// Maximum length in characters of each value in a list.
const BRIEF_CHARS: usize = 80;
/// Maximum length in characters of each name in a list.
const BRIEF_NAME_CHARS: usize = 40;

/// Words in argument names by importance for the decision: recipient, amount, object, place, content.
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

/// The call: its tool, the tool's description, its arguments. `way` returns the address of one of the request's texts
/// by name.
pub(super) fn display(
    call: &ToolCall,
    description: Option<&str>,
    way: &dyn Fn(&str) -> String,
) -> Markup {
    html! {
        section.call aria-label="The call" {
            div.tool {
                strong.mono { (ui::name(&call.name)) }
                @match (built_in(&call.name), description) {
                    (Some(ours), _) => span.dim.small { (ours) },
                    (None, Some(theirs)) => span.dim.small { "Description from its server: " q.outside dir="auto" { (exact_line(&text::clip(theirs, DESCRIPTION_CHARS_MAX))) } },
                    (None, None) => {}
                }
            }
            (arguments(&call.arguments, way))
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
        "edit_file" => "Changes part of a file in the run's sandbox.",
        "run_command" => "Runs a command in the run's sandbox, without network access.",
        "fetch_url" => "Fetches a URL.",
        "run_assignment" => "Starts another assignment and waits for its result.",
        "request_approval" => "Asks a person for approval.",
        "ask_human" => "Asks a person questions.",
        _ => return None,
    })
}

/// An argument and its index in the call.
struct Argument<'a> {
    index: usize,
    name: &'a str,
    value: &'a Value,
}

/// The arguments: deciding ones first, long texts last.
fn arguments(fields: &Map<String, Value>, way: &dyn Fn(&str) -> String) -> Markup {
    if fields.is_empty() {
        return html! { p.dim { "No arguments." } };
    }
    let mut room = CALL_BYTES_MAX;
    let (mut rows, mut texts) = (Vec::new(), Vec::new());
    let mut are_names_whole = true;
    for argument in ordered(fields).into_iter().take(ARGUMENTS_MAX) {
        if room == 0 {
            break;
        }
        let name = start(argument.name, NAME_CHARS_MAX);
        are_names_whole &= name.len() == argument.name.len();
        let is_row = is_short(argument.value);
        let shown = if is_row {
            html! {
                dt.mono { (ui::name(&name)) }
                dd { code dir="auto" { (value_of(argument.value)) } }
            }
        } else {
            let way = way(&argument.index.to_string());
            html! {
                div.long {
                    div.name.mono { (ui::name(&name)) }
                    (long_value(argument.value, &way, room))
                }
            }
        };
        room = room.saturating_sub(shown.0.len());
        if is_row {
            rows.push(shown);
        } else {
            texts.push(shown);
        }
    }
    let is_whole = are_names_whole && rows.len() + texts.len() == fields.len();
    html! {
        @if !rows.is_empty() { dl.facts { @for row in &rows { (row) } } }
        @for text in &texts { (text) }
        @if !is_whole {
            p.small { "This call is too long to show here. " (ui::counted(fields.len() as u64, "argument", "arguments")) ". " a href=(way("call")) { "View the whole call" } }
        }
    }
}

fn long_value(value: &Value, way: &str, room: usize) -> Markup {
    match value {
        Value::String(text) => long_within(text, true, way, room),
        other => {
            let (text, is_all) = text::pretty_within(other, TEXT_BYTES_MAX);
            long_within(&text, is_all, way, room)
        }
    }
}

/// A possibly long text: its beginning, and more of it in a fold that says how much. `way`: the address of the complete
/// text.
pub(in crate::web) fn long_text(text: &str, way: &str) -> Markup {
    long_within(text, true, way, TEXT_BYTES_MAX)
}

/// `is_all`: whether `text` is complete. `room`: maximum size in bytes of the HTML.
fn long_within(text: &str, is_all: bool, way: &str, room: usize) -> Markup {
    let room = room.min(TEXT_BYTES_MAX);
    let (first, rest) = beginning(text);
    let (first_shown, first_bytes) = exact_within(first, Layout::Lines, room);
    let room = room.saturating_sub(first_shown.0.len());
    let (rest_shown, rest_bytes) = if first_bytes < first.len() {
        (html! {}, 0)
    } else {
        exact_within(up_to_lines(rest, room), Layout::Lines, room)
    };
    let is_whole = is_all && first_bytes + rest_bytes == text.len();
    if is_whole && rest_bytes == 0 {
        return html! { pre.block-code tabindex="0" dir="auto" { (first_shown) } };
    }
    let (closed, open) = if is_whole {
        how_much(text, first)
    } else {
        ("Show more".to_owned(), "Show less".to_owned())
    };
    html! {
        div.folded {
            pre.block-code tabindex="0" dir="auto" { (first_shown) }
            @if rest_bytes > 0 {
                details {
                    summary { span.when-closed { (closed) } span.when-open { (open) } }
                    pre.block-code tabindex="0" dir="auto" { (rest_shown) }
                }
            }
        }
        @if !is_whole {
            p.small {
                "This text is too long to show here"
                @if is_all { ": " (ui::size(text.len() as u64)) }
                ". " a href=(way) { "View the whole text" }
            }
        }
    }
}

/// The labels of a closed and an open fold around a text that is completely in the page.
fn how_much(text: &str, first: &str) -> (String, String) {
    let lines = text.lines().count();
    let (all, shown, of) = if lines > 1 {
        (lines, first.lines().count(), "lines")
    } else {
        (text.chars().count(), first.chars().count(), "characters")
    };
    let all = format!("{} {of}", ui::number(all as u64));
    let shown = ui::number(shown as u64);
    (
        format!("{all}, {shown} shown. Show all"),
        format!("{all}. Show less"),
    )
}

/// Splits a text into the part shown before unfolding and the part shown after. Both consist of whole lines, unless a
/// line is too long. A run of equal hidden characters, which is shown as one mark, is never split. Reads only the
/// beginning of the text.
fn beginning(text: &str) -> (&str, &str) {
    let head = prefix(text, 4 * (CHARS_SHOWN + 1));
    let by_lines = head
        .match_indices('\n')
        .nth(LINES_SHOWN - 1)
        .map_or(text.len(), |(at, _)| at + 1);
    let by_chars = head
        .char_indices()
        .nth(CHARS_SHOWN)
        .map_or(text.len(), |(at, _)| at);
    let end = after_run(text, by_lines.min(by_chars));
    // A fold for a few more characters would not help.
    let rest = text.get(end..).unwrap_or_default();
    let is_little = rest.len() <= 4 * SHORT_CHARS_MAX
        && rest.lines().count() <= 2
        && rest.chars().count() <= SHORT_CHARS_MAX;
    if is_little {
        return (text, "");
    }
    text.split_at(end)
}

/// If `end` is within a run of equal hidden characters, the end of that run.
fn after_run(text: &str, end: usize) -> usize {
    let (before, after) = text.split_at(end);
    match before.chars().next_back() {
        Some(c) if is_hidden(c) && !matches!(c, '\n' | '\t') => {
            end + after.chars().take_while(|one| *one == c).count() * c.len_utf8()
        }
        _ => end,
    }
}

/// The lines of a text that fit in a fold. Reads at most `most` bytes.
fn up_to_lines(text: &str, most: usize) -> &str {
    let mut ends = prefix(text, most).match_indices('\n');
    match ends.nth(LINES_MAX - LINES_SHOWN - 1) {
        Some((at, _)) => text.get(..=at).unwrap_or(text),
        None => text,
    }
}

fn value_of(value: &Value) -> Markup {
    match value {
        Value::String(text) => exact_line(text),
        other => html! { (other) },
    }
}

fn is_short(value: &Value) -> bool {
    match value {
        Value::String(text) => text.chars().nth(SHORT_CHARS_MAX).is_none() && !text.contains('\n'),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Sorts arguments by importance; equal ones keep the call's order.
fn ordered(fields: &Map<String, Value>) -> Vec<Argument<'_>> {
    let all = fields.iter().take(ORDERED_MAX).enumerate();
    let mut all: Vec<_> = all
        .map(|(index, (name, value))| Argument { index, name, value })
        .collect();
    all.sort_by_cached_key(|argument| {
        let is_long = !is_short(argument.value);
        let is_text = matches!(argument.value, Value::String(_));
        (is_long, rank(argument.name), is_long && is_text)
    });
    all
}

/// Sort key: names that consist only of deciding words, then names that contain one, then all others; within a group by
/// [`DECIDING`]. A name with unusual characters counts as unimportant.
fn rank(name: &str) -> (usize, usize) {
    let none = (2, DECIDING.len());
    let is_plain = name.len() <= BRIEF_NAME_CHARS
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if !is_plain {
        return none;
    }
    let words = words(name);
    let decides = |word: &String| DECIDING.iter().position(|of| of.contains(&word.as_str()));
    let first = words.iter().filter_map(decides).min();
    let all = words.iter().all(|word| decides(word).is_some());
    first.map_or(none, |first| (usize::from(!all), first))
}

/// Splits `recipientEmail`, `recipient_email` and `recipient-email` into two words.
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
    words.retain(|word| !word.is_empty());
    words
}

/// A call in one line of a list: the deciding arguments and the length of the others. Each argument has its own
/// element.
pub(in crate::web) fn brief(call: &ToolCall) -> Markup {
    let more = call.arguments.len().saturating_sub(BRIEF_ARGUMENTS);
    html! {
        @for argument in ordered(&call.arguments).into_iter().take(BRIEF_ARGUMENTS) {
            span.arg { code { bdi { (exact_line(&start(argument.name, BRIEF_NAME_CHARS))) } } " " bdi { (brief_value(argument.value)) } } " "
        }
        @if more > 0 { span.dim { (ui::number(more as u64)) " more" } }
    }
}

fn brief_value(value: &Value) -> Markup {
    let text = match value {
        Value::String(text) => text,
        Value::Array(all) => {
            return html! { (ui::counted(all.len() as u64, "item", "items")) };
        }
        Value::Object(all) => {
            return html! { (ui::counted(all.len() as u64, "field", "fields")) };
        }
        other => return html! { (other) },
    };
    let head = prefix(text, TEXT_BYTES_MAX);
    let lines = head.lines().count();
    match (lines > 1, head.len() < text.len()) {
        (true, false) => html! { (ui::counted(lines as u64, "line", "lines")) },
        (true, true) => html! { (ui::size(text.len() as u64)) " of text" },
        (false, _) => exact_line(&start(text, BRIEF_CHARS)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn way(of: &str) -> String {
        format!("/whole?of={of}")
    }

    fn call(arguments: &Value) -> ToolCall {
        ToolCall {
            id: "c".to_owned(),
            name: "bank__pay".to_owned(),
            arguments: arguments.as_object().cloned().unwrap(),
        }
    }

    #[test]
    fn deciding_arguments_come_first_and_long_texts_last() {
        let call = call(&json!({
            "body": "a\n".repeat(40), "zeta": true, "subject": "x", "invoiceId": 7, "amount": 12.5,
            "recipient_iban": "DE1", "extra": {"a": [1, 2]},
        }));
        let names: Vec<_> = ordered(&call.arguments)
            .into_iter()
            .map(|argument| argument.name)
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
    fn every_character_of_a_call_is_visible() {
        let long = format!("{}pay \u{202e}001", "x".repeat(9_000));
        let call = call(&json!({
            "to": "a\u{200b}b\u{3164}", "body": long, "more": {"deep": [1, "\u{ad}"]}, "na\u{2800}me": 1,
        }));
        let shown = display(&call, None, &way).into_string();
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
        assert!(shown.matches('x').count() >= 9_000 && shown.contains("001</pre>"));
        assert!(!shown.contains("/whole"), "{shown}");
    }

    #[test]
    fn a_fold_says_how_much_is_shown() {
        let shown = |text: &str| long_text(text, "/whole").into_string();
        let lines = format!("{}rm -rf /", "\n".repeat(302));
        assert!(shown(&lines).contains("303 lines, 12 shown"));
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
    fn a_card_shows_a_bounded_part_and_links_to_the_rest() {
        let hidden = "\u{200b}".repeat(1_250_000);
        let shown = long_text(&hidden, "/whole").into_string();
        assert!(shown.contains("\\u{200b} × 1,250,000<"), "{shown}");
        assert!(shown.len() < 1_000 && !shown.contains("/whole"), "{shown}");
        for unit in ["\n", "x", "\u{200b}\u{200c}", "<", "é\n"] {
            let text = format!("{}the end", unit.repeat(500_000));
            let shown = long_text(&text, "/whole").into_string();
            assert!(shown.len() < 2 * TEXT_BYTES_MAX, "{unit:?}");
            assert!(!shown.contains("the end"), "{unit:?}");
            assert!(shown.contains("href=\"/whole\""), "{unit:?}");
        }
        let line = "x\n".repeat(1_000);
        let shown = long_text(&line, "/whole").into_string();
        assert_eq!(shown.matches("x\n").count(), LINES_MAX);
    }

    #[test]
    fn the_total_size_of_a_cards_arguments_is_bounded() {
        let mut fields = Map::new();
        for number in 0..2_000 {
            fields.insert(format!("a{number}"), json!("\u{1}\u{2}".repeat(60)));
        }
        fields.insert("recipient".to_owned(), json!("R"));
        fields.insert("long".to_owned(), json!([vec!["\u{1}x"; 100_000]]));
        let shown = display(&call(&Value::Object(fields)), None, &way).into_string();
        assert!(shown.len() < 2 * CALL_BYTES_MAX, "{}", shown.len());
        assert!(shown.contains("2,002 arguments") && shown.contains("/whole?of=call"));
        let place = shown.find(">recipient<").unwrap();
        assert!(place < shown.find(">a0<").unwrap(), "what decides is first");
        let nested = json!({"long": vec!["x"; 100_000]});
        let shown = super::display(&call(&nested), None, &way).into_string();
        assert!(shown.len() < 2 * TEXT_BYTES_MAX && shown.contains("/whole?of=0"));
    }

    #[test]
    fn unusual_argument_names_never_count_as_deciding() {
        let call = call(&json!({
            "recipient\u{202e}ID": "x", "to”: R2 · amount": "1", "note_to_payee": "n",
            "recipient": "R", "amount": 5, "long_".repeat(30): true,
        }));
        let names: Vec<_> = ordered(&call.arguments)
            .into_iter()
            .map(|argument| argument.name)
            .collect();
        assert_eq!(names[..3], ["recipient", "amount", "note_to_payee"]);
        let brief = brief(&call).into_string();
        assert!(
            brief.starts_with(
                "<span class=\"arg\"><code><bdi>recipient</bdi></code> <bdi>R</bdi></span>"
            ),
            "{brief}"
        );
        assert!(brief.contains("3 more") && !brief.contains("R2"), "{brief}");
        let long = super::brief(&self::call(&json!({"x".repeat(50): 1}))).into_string();
        assert!(
            long.contains(&format!("<bdi>{}…</bdi>", "x".repeat(40))),
            "{long}"
        );
    }

    #[test]
    fn a_brief_call_is_one_line_of_visible_characters() {
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
