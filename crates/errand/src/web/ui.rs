//! Components that pages share: times, IDs, states, icons, fields.

use errand_core::run::Status;
use errand_core::time::Timestamp;
use http::StatusCode;
use maud::{Markup, PreEscaped, html};

use super::form::TOKEN_FIELD;
use super::guard::Person;

/// The hidden token field of each form of a logged-in person.
pub(super) fn form_token(person: &Person) -> Markup {
    html! { input type="hidden" name=(TOKEN_FIELD) value=(person.form_token); }
}

/// A name that someone chose. Its writing direction does not affect its surroundings, and every invisible character
/// appears as its code point.
pub(super) fn name(text: &str) -> Markup {
    html! { bdi dir="auto" { (super::text::exact_line(text)) } }
}

/// "API key" and the key's name, which is set apart from our words.
pub(super) fn api_key(key: &str) -> Markup {
    html! { "API key " code.outside { (name(key)) } }
}

/// The author of an answer as stored: an email address, or `API key` and the key's name.
pub(super) fn who(by: &str) -> Markup {
    match by.strip_prefix("API key ") {
        Some(key) => api_key(key),
        None => name(by),
    }
}

/// The HTML ID of a call on its run's page. Providers choose call IDs, so other characters than letters, digits and `-`
/// are replaced by their code points.
pub(super) fn call_anchor(id: &str) -> String {
    let mut anchor = "call-".to_owned();
    for c in id.chars() {
        if c.is_ascii_alphanumeric() || c == '-' {
            anchor.push(c);
        } else {
            anchor.push_str(&format!("_{:x}", u32::from(c)));
        }
    }
    anchor
}

/// A time as its distance from now, with the exact time as a tooltip.
pub(super) fn time(at: Timestamp, now: Timestamp) -> Markup {
    let exact = at.to_string();
    html! {
        time.nowrap datetime=(exact) title=(readable(&exact)) data-ms=(at.as_millis()) { (ago(at, now)) }
    }
}

/// `2026-11-23 09:30:00 UTC`.
fn readable(exact: &str) -> String {
    let seconds = exact.get(..19).unwrap_or(exact);
    format!("{} UTC", seconds.replace('T', " "))
}

/// `3 min ago`, `in 2 h`, `now`.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> String {
    let (ms, is_future) = if at > now {
        (at.ms_since(now), true)
    } else {
        (now.ms_since(at), false)
    };
    let seconds = ms / 1000;
    let text = match seconds {
        0..=4 => return "now".to_owned(),
        5..=59 => format!("{seconds} s"),
        60..=3_599 => format!("{} min", seconds / 60),
        3_600..=86_399 => format!("{} h", seconds / 3_600),
        86_400..=172_799 => "1 day".to_owned(),
        _ => format!("{} days", seconds / 86_400),
    };
    if is_future {
        format!("in {text}")
    } else {
        format!("{text} ago")
    }
}

/// `340 ms`, `12.4 s`, `3 min 20 s`, `2 h 5 min`.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms} ms"),
        1_000..=59_999 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..=3_599_999 => two((ms / 60_000, "min"), (ms % 60_000 / 1_000, "s")),
        3_600_000..=86_399_999 => two((ms / 3_600_000, "h"), (ms % 3_600_000 / 60_000, "min")),
        _ => two((ms / 86_400_000, "d"), (ms % 86_400_000 / 3_600_000, "h")),
    }
}

/// A duration in two units, or in one if the smaller is zero.
fn two((large, of): (u64, &str), (small, of_small): (u64, &str)) -> String {
    if small == 0 {
        format!("{large} {of}")
    } else {
        format!("{large} {of} {small} {of_small}")
    }
}

/// `512 B`, `1.4 kB`, `2.0 MB`.
#[expect(
    clippy::cast_precision_loss,
    reason = "one decimal is shown of sizes far below 2^52"
)]
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..=999 => format!("{bytes} B"),
        1_000..=999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// `1,234,567`.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `$1,234.50`; more decimals below one cent; a dash for zero.
pub(super) fn cost(usd: f64) -> String {
    if usd <= 0.0 {
        return "–".to_owned();
    }
    if usd < 0.000_05 {
        return "< $0.0001".to_owned();
    }
    if usd < 0.01 {
        return format!("${usd:.4}");
    }
    let rounded = format!("{usd:.2}");
    let (whole, cents) = rounded.split_once('.').unwrap_or((rounded.as_str(), "00"));
    // An amount that is no such number is more than anybody can spend.
    let whole = whole.parse().map_or_else(|_| whole.to_owned(), number);
    format!("${whole}.{cents}")
}

/// A cost, part of which may be unknown.
pub(super) fn cost_of(known_usd: f64, unpriced_tokens: u64) -> String {
    match unpriced_tokens {
        0 => cost(known_usd),
        _ if known_usd <= 0.0 => "unknown".to_owned(),
        _ => format!("{} + unknown", cost(known_usd)),
    }
}

/// `940`, `1.2 k`, `3.4 M`, for places with little room.
pub(super) fn short(n: f64) -> String {
    match n {
        n if n < 1e3 => format!("{n:.0}"),
        n if n < 1e6 => format!("{:.1} k", n / 1e3),
        n => format!("{:.1} M", n / 1e6),
    }
}

/// `3 runs`, `1 run`.
pub(super) fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(n), if n == 1 { one } else { many })
}

/// The last characters of an ID, in which IDs differ, with a button that copies all of it.
pub(super) fn id(whole: &str) -> Markup {
    let short = whole.get(whole.len().saturating_sub(8)..).unwrap_or(whole);
    html! {
        span.id {
            span title=(whole) { (short) }
            (copy(whole, "Copy the id"))
        }
    }
}

pub(super) fn copy(text: &str, label: &str) -> Markup {
    html! {
        button.plain.copy type="button" data-copy=(text) aria-label=(label) title=(label) { (icon("copy")) }
    }
}

/// A run's status as a shape, a word and a color.
pub(super) fn status(status: Status) -> Markup {
    state(status.as_str(), status_word(status))
}

/// The word for a status on pages. The button is called *Stop*, so a run that was stopped is not called `interrupted`.
pub(super) fn status_word(status: Status) -> &'static str {
    match status {
        Status::Interrupted => "stopped",
        other => other.as_str(),
    }
}

/// A state with a word. `kind`: its look, one of [`KINDS`].
pub(super) fn state(kind: &str, word: &str) -> Markup {
    let kind = if KINDS.contains(&kind) { kind } else { "other" };
    html! {
        span class={ "state " (kind) } { (shape(kind)) (word) }
    }
}

/// The states that have a style.
const KINDS: [&str; 17] = [
    "pending",
    "starting",
    "running",
    "waiting",
    "completed",
    "failed",
    "interrupted",
    "delivered",
    "gone",
    "dropped",
    "exhausted",
    "allow",
    "ask",
    "deny",
    "guard",
    "off",
    "other",
];

fn shape(kind: &str) -> Markup {
    let inside = match kind {
        "completed" | "delivered" | "allow" => {
            r#"<circle cx="6" cy="6" r="5.5" fill="currentColor"/><path d="M3.4 6.2l1.8 1.8 3.4-3.8" fill="none" stroke="var(--surface)" stroke-width="1.4"/>"#
        }
        "failed" | "exhausted" | "deny" => {
            r#"<path d="M3.7.7h4.6l3 3v4.6l-3 3H3.7l-3-3V3.7z" fill="currentColor"/><path d="M4.2 4.2l3.6 3.6M7.8 4.2L4.2 7.8" stroke="var(--surface)" stroke-width="1.4"/>"#
        }
        "waiting" | "ask" | "guard" => {
            r#"<path d="M6 .5L11.5 6 6 11.5.5 6z" fill="currentColor"/><path d="M6 3.2v3.2M6 8v.8" stroke="var(--surface)" stroke-width="1.4"/>"#
        }
        "running" | "starting" => {
            r#"<circle cx="6" cy="6" r="4.6" fill="none" stroke="currentColor" stroke-opacity=".35" stroke-width="1.6"/><path d="M6 1.4A4.6 4.6 0 0 1 10.6 6" fill="none" stroke="currentColor" stroke-width="1.8"/>"#
        }
        "interrupted" | "gone" | "dropped" | "off" => {
            r#"<rect x="1.5" y="1.5" width="9" height="9" rx="1.5" fill="currentColor"/>"#
        }
        _ => {
            r#"<circle cx="6" cy="6" r="4.6" fill="none" stroke="currentColor" stroke-width="1.6"/>"#
        }
    };
    html! { svg viewBox="0 0 12 12" aria-hidden="true" { (PreEscaped(inside)) } }
}

/// A decorative icon of 16 px.
pub(super) fn icon(name: &str) -> Markup {
    let inside = match name {
        "home" => r#"<path d="M2.5 7L8 2.5 13.5 7v6.5h-4v-4h-3v4h-4z"/>"#,
        "inbox" => r#"<path d="M2 9.5l2-6.5h8l2 6.5v4H2zM2 9.5h3.5L6.5 11h3l1-1.5H14"/>"#,
        "runs" => r#"<path d="M2.5 3.5h11M2.5 8h11M2.5 12.5h7"/>"#,
        "assignments" => {
            r#"<rect x="2.5" y="3" width="11" height="10.5" rx="1.5"/><path d="M5.5 2v2M10.5 2v2M5 7.5h6M5 10.5h4"/>"#
        }
        "key" => r#"<circle cx="5.5" cy="10.5" r="3"/><path d="M7.7 8.3L13 3M11 5l1.8 1.8"/>"#,
        "person" => {
            r#"<circle cx="8" cy="5.5" r="2.8"/><path d="M2.8 13.8a5.3 5.3 0 0 1 10.4 0"/>"#
        }
        "team" => {
            r#"<circle cx="6" cy="6" r="2.4"/><path d="M1.8 13a4.3 4.3 0 0 1 8.4 0M10.5 3.9a2.4 2.4 0 0 1 0 4.3M11.6 9.5a4.3 4.3 0 0 1 2.6 3.5"/>"#
        }
        "hook" => {
            r#"<path d="M5.5 10.5a2.5 2.5 0 1 1-2-2.4M8 4.5a2.5 2.5 0 1 1 2 2.4L8 10.5M8 4.5L5.8 8.6M10.5 13a2.5 2.5 0 1 0 .3-3"/>"#
        }
        "plug" => r#"<path d="M5.5 2v3.5M10.5 2v3.5M3.5 5.5h9v2a4.5 4.5 0 0 1-9 0zM8 12v2.5"/>"#,
        "lock" => {
            r#"<rect x="3" y="7" width="10" height="7" rx="1.5"/><path d="M5 7V5a3 3 0 0 1 6 0v2"/>"#
        }
        "chart" => r#"<path d="M2.5 13.5h11M4.5 11V8M8 11V3.5M11.5 11V6"/>"#,
        "model" => {
            r#"<rect x="4" y="4" width="8" height="8" rx="1.5"/><path d="M6 4V2M10 4V2M6 14v-2M10 14v-2M4 6H2M4 10H2M14 6h-2M14 10h-2"/>"#
        }
        "fork" => {
            r#"<circle cx="4.5" cy="3.5" r="1.5"/><circle cx="11.5" cy="3.5" r="1.5"/><circle cx="8" cy="12.5" r="1.5"/><path d="M4.5 5v1.5a2 2 0 0 0 2 2h3a2 2 0 0 0 2-2V5M8 8.5V11"/>"#
        }
        "leave" => r#"<path d="M9.5 2.5h-6v11h6M7 8h7M11.5 5.5L14 8l-2.5 2.5"/>"#,
        "copy" => {
            r#"<rect x="5.5" y="5.5" width="8" height="8" rx="1.5"/><path d="M10.5 5.5v-2a1 1 0 0 0-1-1h-6a1 1 0 0 0-1 1v6a1 1 0 0 0 1 1h2"/>"#
        }
        "plus" => r#"<path d="M8 3v10M3 8h10"/>"#,
        "play" => r#"<path d="M4.5 3l8 5-8 5z"/>"#,
        "stop" => r#"<rect x="4" y="4" width="8" height="8" rx="1"/>"#,
        "again" => r#"<path d="M13 8a5 5 0 1 1-1.5-3.5M13 2.5v3h-3"/>"#,
        "file" => r#"<path d="M4 1.5h5.5l3 3v10H4zM9.5 1.5v3h3"/>"#,
        "folder" => r#"<path d="M1.5 4v9h13V5.5H8L6.5 4z"/>"#,
        "down" => r#"<path d="M8 2.5v8M4.5 7.5L8 11l3.5-3.5M3 13.5h10"/>"#,
        "edit" => r#"<path d="M3 13l.7-3L10.5 3.2l2.3 2.3L6 12.3z"/>"#,
        _ => r#"<circle cx="8" cy="8" r="5"/>"#,
    };
    html! { svg.icon viewBox="0 0 16 16" aria-hidden="true" { (PreEscaped(inside)) } }
}

/// An empty state: what belongs here, and what to do.
pub(super) fn empty(title: &str, more: &Markup) -> Markup {
    html! { div.empty { strong { (title) } div { (more) } } }
}

/// The status code of a page that shows a form, possibly again with an error.
pub(super) fn status_of(is_wrong: bool) -> StatusCode {
    if is_wrong {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::OK
    }
}

/// The checkbox that marks a message as text from someone else.
pub(super) fn untrusted_choice(is_on: bool) -> Markup {
    html! {
        label.choice {
            input type="checkbox" name="untrusted" value="on" checked[is_on];
            span { "Someone else wrote this" span.hint { "for example, an email or a ticket; tools with the guard policy will then ask first" } }
        }
    }
}

pub(super) fn alert(message: Option<&str>) -> Markup {
    html! {
        @if let Some(message) = message {
            div.alert role="alert" { (message) }
        }
    }
}

/// Links to the previous and next page. `address` returns the address for an offset.
pub(super) fn pager(
    offset: u64,
    shown: u64,
    total: u64,
    limit: u64,
    address: &dyn Fn(u64) -> String,
) -> Markup {
    if total <= shown {
        return html! {};
    }
    html! {
        nav.pager aria-label="Pages" {
            span { (number(offset.saturating_add(1))) "–" (number(offset.saturating_add(shown))) " of " (number(total)) }
            span.gap {}
            @if offset > 0 {
                a.button rel="prev" href=(address(offset.saturating_sub(limit))) { "Previous" }
            }
            @if offset.saturating_add(shown) < total {
                a.button rel="next" href=(address(offset.saturating_add(limit))) { "Next" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let of = |ms: i64| ago(Timestamp::from_millis(now.as_millis() + ms), now);
        assert_eq!(of(-1_000), "now");
        assert_eq!(of(-59_000), "59 s ago");
        assert_eq!(of(-3_600_000), "1 h ago");
        assert_eq!(of(-200_000_000), "2 days ago");
        assert_eq!(of(7_200_000), "in 2 h");
        assert_eq!(duration(340), "340 ms");
        assert_eq!(duration(12_480), "12.4 s");
        assert_eq!(duration(200_000), "3 min 20 s");
        assert_eq!(duration(86_400_000), "1 d");
    }

    #[test]
    fn numbers_are_grouped_and_costs_have_cents() {
        assert_eq!(number(7), "7");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(cost(0.0), "–");
        assert_eq!(cost(0.0012), "$0.0012");
        assert_eq!(cost(0.000_01), "< $0.0001");
        assert_eq!(cost(12.5), "$12.50");
        assert_eq!(cost(999.999), "$1,000.00");
        assert_eq!(cost(2_000_000.52), "$2,000,000.52");
        assert_eq!(size(1_400), "1.4 kB");
    }

    #[test]
    fn text_in_an_attribute_stays_there() {
        let shown = id("\"><script>alert(1)</script>").into_string();
        assert!(!shown.contains("<script"), "{shown}");
    }
}
