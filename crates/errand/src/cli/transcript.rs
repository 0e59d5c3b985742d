//! Formats a transcript for people: one or a few lines per message.
//!
//! All content may be foreign (files, tools, models), so all of it goes through [`display`]. Long texts of tools are
//! truncated. Messages of people, requests, and the call that an approval permits are not.

use errand_client::{
    HumanRequest, Message, MessageKind, Role, Run, RunStatus, Timestamp, ToolCall, WaitKind,
};
use errand_core::display::one_line;
use serde_json::Value;

use super::out::{Out, Style, display};

/// Maximum length in characters of an argument or a result on one line.
const CUT_CHARS: usize = 96;
/// Width of the time column in characters.
const TIME_CHARS: usize = 9;

/// Formats messages.
pub(super) struct Transcript<'o> {
    out: &'o Out,
    /// Times are relative to this. `None`: no times are shown.
    begin: Option<Timestamp>,
}

impl<'o> Transcript<'o> {
    /// `begin`: the creation time of the run.
    pub(super) fn new(out: &'o Out, begin: Option<Timestamp>) -> Self {
        Self { out, begin }
    }

    /// Sets the time that other times are relative to, unless it is already set.
    pub(super) fn begin(&mut self, begin: Timestamp) {
        self.begin.get_or_insert(begin);
    }

    /// The lines of a message.
    pub(super) fn message(&self, message: &Message) -> String {
        let text = message.text_content.as_deref().unwrap_or_default();
        let (mark, style, text) = match &message.kind {
            MessageKind::ToolCall => (
                "→",
                Some(Style::Cyan),
                message.tool_call.as_ref().map(call).unwrap_or_default(),
            ),
            MessageKind::ToolResult => match message.tool_result.as_ref() {
                Some(result) if result.error.is_some() => (
                    "✗",
                    Some(Style::Red),
                    result.error.clone().unwrap_or_default(),
                ),
                result => {
                    let value = result.and_then(|result| result.result.as_ref());
                    (
                        "←",
                        Some(Style::Dim),
                        value.map(brief_value).unwrap_or_default(),
                    )
                }
            },
            MessageKind::HumanRequest => {
                let request = message.human_request.as_ref();
                (
                    "?",
                    Some(Style::Yellow),
                    request.map_or_else(|| text.to_owned(), question),
                )
            }
            MessageKind::HumanResponse => {
                let response = message.human_response.as_ref();
                let said = response
                    .and_then(|response| response.response.as_deref())
                    .unwrap_or("closed");
                let reason = response.and_then(|response| response.reason.as_deref());
                let text =
                    reason.map_or_else(|| said.to_owned(), |reason| format!("{said}: {reason}"));
                let good = !matches!(said, "denied" | "expired" | "closed");
                (
                    if good { "✓" } else { "✗" },
                    Some(if good { Style::Green } else { Style::Red }),
                    text,
                )
            }
            MessageKind::Error => ("✗", Some(Style::Red), text.to_owned()),
            _ if message.role == Role::User => ("›", Some(Style::Bold), text.to_owned()),
            _ => ("•", None, text.to_owned()),
        };
        self.lines(message.timestamp, mark, style, &text)
    }

    /// A line for a run's new status. `None` if the messages already show it.
    pub(super) fn status(&self, run: &Run) -> Option<String> {
        let style = match run.status {
            RunStatus::Completed => Style::Green,
            RunStatus::Failed | RunStatus::Interrupted => Style::Red,
            _ => Style::Dim,
        };
        let waiting = run.waiting_on.as_ref().filter(|waiting| {
            matches!(
                waiting.kind,
                WaitKind::Timer | WaitKind::Retry | WaitKind::Sandbox
            )
        });
        let status = &run.status;
        let text = match (status, &run.error, waiting) {
            (_, Some(error), _) => format!("{status}: {} ({})", error.message, error.code),
            (_, None, Some(waiting)) => format!("{status}: {}", waiting.next),
            (RunStatus::Starting | RunStatus::Running | RunStatus::Waiting, ..) => return None,
            _ => status.to_string(),
        };
        Some(self.lines(run.updated_at, "●", Some(style), &text))
    }

    fn lines(&self, at: Timestamp, mark: &str, style: Option<Style>, text: &str) -> String {
        let paint =
            |text: &str| style.map_or_else(|| text.to_owned(), |style| self.out.paint(style, text));
        let time = self
            .begin
            .map(|begin| format!("{:>TIME_CHARS$}", duration(ms_since(at, begin))));
        let indent = " ".repeat(if self.begin.is_some() {
            TIME_CHARS + 4
        } else {
            2
        });
        let mut shown = match time {
            Some(time) => format!("{}  {} ", self.out.paint(Style::Dim, &time), paint(mark)),
            None => format!("{} ", paint(mark)),
        };
        for (index, line) in display(text).trim_end().lines().enumerate() {
            if index > 0 {
                shown.push('\n');
                shown.push_str(&indent);
            }
            shown.push_str(&paint(line));
        }
        shown
    }
}

/// A request with everything that its answer depends on, in full.
pub(super) fn question(request: &HumanRequest) -> String {
    let mut text = request.title.clone();
    let mut add = |line: &str| {
        text.push('\n');
        text.push_str(line);
    };
    if let Some(description) = &request.description {
        add(description);
    }
    if let Some(quote) = &request.quote {
        add(&format!("The server of the connection {} says:", quote.by));
        quote
            .text
            .lines()
            .for_each(|line| add(&format!("> {line}")));
    }
    if let Some(reason) = &request.reason {
        if !reason.sources.is_empty() {
            add("Read before this request, newest last:");
        }
        for source in &reason.sources {
            let item = source.item.as_deref().map(one_line).unwrap_or_default();
            add(&format!(
                "- {} {item} ({})",
                one_line(&source.tool),
                source.at
            ));
        }
        if reason.more > 0 {
            add(&format!("- and up to {} earlier reads", reason.more));
        }
    }
    if let Some(call) = &request.tool_call {
        add(&format!(
            "An approval permits exactly this call of {}:",
            call.name
        ));
        let arguments = call.arguments.clone().unwrap_or_default();
        add(&serde_json::to_string_pretty(&arguments).unwrap_or_default());
    }
    for question in request.questions.iter().flatten() {
        if question.question != request.title {
            add(&question.question);
        }
        for option in question.options.iter().flatten() {
            match &option.description {
                Some(more) => add(&format!("- {}: {more}", option.label)),
                None => add(&format!("- {}", option.label)),
            }
        }
    }
    text
}

fn call(call: &ToolCall) -> String {
    let mut arguments: Vec<_> = call.arguments.iter().flatten().collect();
    // Short arguments come first, and texts of several lines last.
    arguments.sort_by_key(|(_, value)| value.as_str().is_some_and(|text| text.contains('\n')));
    let shown = arguments
        .into_iter()
        .map(|(name, value)| format!("  {name}: {}", brief_value(value)));
    call.name.clone() + &shown.collect::<String>()
}

fn brief_value(value: &Value) -> String {
    match value {
        Value::String(text) => brief(text),
        value => brief(&value.to_string()),
    }
}

/// The first line, truncated, and the number of further lines.
fn brief(text: &str) -> String {
    let lines = text.lines().count();
    let first = text.lines().next().unwrap_or_default();
    let mut shown: String = first.chars().take(CUT_CHARS).collect();
    if lines > 1 {
        shown.push_str(&format!(" … ({lines} lines)"));
    } else if shown.len() < first.len() {
        shown.push_str(&format!("… ({} bytes)", text.len()));
    }
    shown
}

/// Milliseconds from `begin` to `at`; 0 if `begin` is later.
pub(super) fn ms_since(at: Timestamp, begin: Timestamp) -> u64 {
    let ms = at.as_millis().saturating_sub(begin.as_millis());
    u64::try_from(ms).unwrap_or(0)
}

/// A short duration.
fn duration(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..600_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        600_000..36_000_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::out::tests::memory;
    use super::*;

    const AT: &str = "2026-11-23T09:30:00.123Z";

    fn shown(mut message: Value) -> String {
        let fields = message.as_object_mut().unwrap();
        fields.insert(
            "id".to_owned(),
            json!("0193b0e2-0000-7000-8000-000000000000"),
        );
        fields.insert("timestamp".to_owned(), json!(AT));
        fields.entry("role").or_insert_with(|| json!("assistant"));
        let (out, ..) = memory(false);
        let begin = "2026-11-23T09:30:00.000Z".parse().unwrap();
        Transcript::new(&out, Some(begin)).message(&serde_json::from_value(message).unwrap())
    }

    #[test]
    fn each_kind_of_message_has_its_form() {
        let lines = [
            shown(json!({"type": "text", "role": "user", "text_content": "Pay.\nSoon."})),
            shown(json!({"type": "text", "text_content": "I pay."})),
            shown(
                json!({"type": "tool_call", "tool_call": {"id": "1", "name": "write_file",
                "arguments": {"path": "/workspace/a", "content": "x\ny\n", "n": 3}}}),
            ),
            shown(
                json!({"type": "tool_result", "role": "tool", "tool_result": {"tool_call_id": "1", "result": "x".repeat(200)}}),
            ),
            shown(
                json!({"type": "tool_result", "role": "tool", "tool_result": {"tool_call_id": "1", "error": "no such file"}}),
            ),
            shown(json!({"type": "human_response", "role": "user",
                "human_response": {"request_id": "0193b0e2-0000-7000-8000-000000000000", "response": "denied", "reason": "too much"}})),
            shown(json!({"type": "error", "text_content": "the model is gone"})),
        ];
        assert_eq!(
            lines.join("\n"),
            format!(
                "   123 ms  › Pay.\n             Soon.\n   123 ms  • I pay.\n   \
                 123 ms  → write_file  path: /workspace/a  n: 3  content: x … (2 lines)\n   \
                 123 ms  ← {}… (200 bytes)\n   123 ms  ✗ no such file\n   123 ms  ✗ denied: too much\n   \
                 123 ms  ✗ the model is gone",
                "x".repeat(CUT_CHARS)
            )
        );
    }

    #[test]
    fn a_request_shows_the_exact_call_uncut() {
        let long = "y".repeat(500);
        let text = shown(
            json!({"type": "human_request", "text_content": "Pay?", "human_request": {
            "id": "0193b0e2-0000-7000-8000-000000000000", "title": "Pay?", "description": null, "created_at": AT,
            "type": "approval", "expires_at": null,
            "tool_call": {"id": "1", "name": "pay", "arguments": {"to": long, "hidden": "\u{202e}"}}}}),
        );
        assert!(text.contains(&long), "{text}");
        assert!(text.contains("\\u{202e}"), "{text}");
    }

    #[test]
    fn times_are_short() {
        let shown = [0, 9_999, 12_345, 59 * 60_000, 3 * 3_600_000, 48 * 3_600_000].map(duration);
        assert_eq!(
            shown,
            ["0 ms", "9999 ms", "12.3 s", "59 min", "180 min", "48 h"]
        );
    }
}
