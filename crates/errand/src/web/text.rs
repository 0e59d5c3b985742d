//! Renders content of models, tools and files: Markdown, JSON, tables.
//!
//! Guarantees: any text is shown and never acts. HTML in Markdown is shown as text; links lead only to `http`, `https`
//! and `mailto`; nothing is loaded from other servers. Long content is cut, and the page says so.

use std::borrow::Cow;

use errand_core::display::{Layout, Piece, code_point, one_line, pieces};
use maud::{Markup, PreEscaped, Render as _, html};
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd};
use serde_json::{Map, Value};

/// Maximum length in characters of a text shown for one result.
const CHARS_MAX: usize = 16_000;
const ROWS_MAX: usize = 200;
const COLUMNS_MAX: usize = 40;
/// Maximum size in bytes of rendered Markdown. A longer text is shown as plain text.
const MARKDOWN_BYTES_MAX: usize = 64 * 1024;
/// Maximum size in bytes of the HTML of Markdown. Beyond that, the text is shown as plain text.
const HTML_BYTES_MAX: usize = 512 * 1024;
/// Maximum number of Markdown events. Beyond that, the text is shown as plain text.
const EVENTS_MAX: usize = 20_000;
/// Maximum size in bytes of the HTML of preformatted text.
const CODE_BYTES_MAX: usize = 64 * 1024;
/// Fields of an object that are shown by name.
const FIELDS_MAX: usize = 200;
/// Maximum length in characters of a field's name.
const FIELD_NAME_CHARS_MAX: usize = 200;

/// Renders Markdown as models write it.
pub(super) fn markdown(text: &str) -> Markup {
    if text.len() > MARKDOWN_BYTES_MAX {
        return plain(text);
    }
    let options =
        Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let mut safe = Vec::new();
    let mut links: Vec<Option<String>> = Vec::new();
    for event in Parser::new_ext(text, options) {
        filter_event(event, &mut links, &mut safe);
        if safe.len() > EVENTS_MAX {
            return plain(text);
        }
    }
    let mut markup = String::new();
    pulldown_cmark::html::push_html(&mut markup, safe.into_iter());
    // The content security policy forbids style attributes. Text content has `<` escaped, so these matches are tags.
    for (word, class) in [("right", "num"), ("center", "mid"), ("left", "left")] {
        for tag in ["th", "td"] {
            markup = markup.replace(
                &format!("<{tag} style=\"text-align: {word}\">"),
                &format!("<{tag} class=\"{class}\">"),
            );
        }
    }
    for block in [
        "p",
        "li",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "td",
        "th",
        "blockquote",
    ] {
        markup = markup.replace(&format!("<{block}>"), &format!("<{block} dir=\"auto\">"));
    }
    if markup.len() > HTML_BYTES_MAX {
        return plain(text);
    }
    html! { div.prose dir="auto" { (PreEscaped(markup)) } }
}

/// The target of a link: the host of a web address, or the recipients of a mail. `None` if the link is not permitted.
fn link_target(address: &str) -> Option<String> {
    let parsed = url::Url::parse(address).ok()?;
    match parsed.scheme() {
        "http" | "https" => parsed.host_str().map(|host| {
            parsed
                .port()
                .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
        }),
        "mailto" => Some(format!("mail to {}", parsed.path())),
        _ => None,
    }
}

/// Passes on the events that cannot act. `links`: the target of each open link; `None` for links that were removed.
fn filter_event<'a>(event: Event<'a>, links: &mut Vec<Option<String>>, safe: &mut Vec<Event<'a>>) {
    match event {
        Event::Html(text) | Event::InlineHtml(text) => safe.push(Event::Text(text)),
        Event::Start(Tag::Link {
            dest_url,
            link_type,
            title,
            id,
        }) => {
            let host = link_target(&dest_url);
            if host.is_some() {
                safe.push(Event::Start(Tag::Link {
                    link_type,
                    dest_url,
                    title,
                    id,
                }));
            }
            links.push(host);
        }
        Event::End(TagEnd::Link) => {
            // The target follows the link, whatever its text claims.
            if let Some(host) = links.pop().flatten() {
                safe.push(Event::End(TagEnd::Link));
                let host = html! { " " span.host { "(" bdi { (one_line(&host)) } ")" } };
                safe.push(Event::InlineHtml(CowStr::from(host.into_string())));
            }
        }
        // An image would be loaded from another server; its text takes its place.
        Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => {}
        Event::Start(Tag::HtmlBlock) => safe.push(Event::Start(Tag::Paragraph)),
        Event::End(TagEnd::HtmlBlock) => safe.push(Event::End(TagEnd::Paragraph)),
        Event::TaskListMarker(done) => {
            safe.push(Event::Text(CowStr::Borrowed(if done {
                "☑ "
            } else {
                "☐ "
            })));
        }
        // Models and people who type a line break expect one.
        Event::SoftBreak => safe.push(Event::HardBreak),
        other => safe.push(other),
    }
}

/// Plain text with its line breaks.
pub(super) fn plain(text: &str) -> Markup {
    let (shown, rest) = cut(text);
    html! {
        div.text dir="auto" { (shown) }
        (and_more(rest))
    }
}

/// A text of several lines in which every invisible character appears as its code point.
pub(super) fn exact(text: &str) -> Markup {
    parts(text, Layout::Lines)
}

/// Like [`exact`], for one line: line ends and tabs appear as code points too.
pub(super) fn exact_line(text: &str) -> Markup {
    parts(text, Layout::OneLine)
}

fn parts(text: &str, layout: Layout) -> Markup {
    exact_within(text, layout, usize::MAX).0
}

/// A text cut to about `most` bytes of HTML, with an ellipsis if it was cut.
pub(super) fn exact_cut(text: &str, layout: Layout, most: usize) -> Markup {
    let (shown, bytes) = exact_within(text, layout, most);
    html! { (shown) @if bytes < text.len() { "…" } }
}

/// The beginning of a text with about `most` bytes of HTML, and its length in bytes of text. A run of equal hidden
/// characters is one mark with a count, however long it is. The time depends on what is shown and on the length of such
/// runs.
pub(super) fn exact_within(text: &str, layout: Layout, most: usize) -> (Markup, usize) {
    let mut markup = String::new();
    let mut shown = 0;
    loop {
        let rest = text.get(shown..).unwrap_or_default();
        let room = most.saturating_sub(markup.len());
        if rest.is_empty() || room == 0 {
            return (PreEscaped(markup), shown);
        }
        // Renders no more than fits. After a long run, the next part starts.
        let mut pieces = pieces(prefix(rest, room), layout).peekable();
        while let Some(piece) = pieces.next() {
            let room = most.saturating_sub(markup.len());
            match piece {
                _ if room == 0 => break,
                Piece::Seen(seen) => {
                    let part = fitting_prefix(seen, room);
                    part.render_to(&mut markup);
                    shown += part.len();
                    if part.len() < seen.len() {
                        return (PreEscaped(markup), shown);
                    }
                }
                Piece::Hidden(c) => {
                    let run = text.get(shown..).unwrap_or_default();
                    let count = run.chars().take_while(|one| *one == c).count();
                    while pieces.next_if_eq(&Piece::Hidden(c)).is_some() {}
                    hidden(c, count).render_to(&mut markup);
                    shown += count * c.len_utf8();
                }
            }
        }
    }
}

/// The mark for an invisible character, or for several equal ones in a row.
fn hidden(c: char, count: usize) -> Markup {
    html! {
        span.hidden-char title="An invisible character" {
            (code_point(c)) @if count > 1 { " × " (super::ui::number(count as u64)) }
        }
    }
}

/// The beginning of a text: at most `most` bytes, but at least one character.
pub(super) fn prefix(text: &str, most: usize) -> &str {
    let first = text.chars().next().map_or(0, char::len_utf8);
    let mut end = most.max(first).min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The beginning of a text that takes at most `room` bytes of HTML, but at least one character.
fn fitting_prefix(text: &str, room: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += match c {
            '"' => 6,
            '&' => 5,
            '<' | '>' => 4,
            c => c.len_utf8(),
        };
        if used > room && at > 0 {
            return text.get(..at).unwrap_or_default();
        }
    }
    text
}

/// At most `most` characters of a text, with an ellipsis if it was cut.
pub(super) fn start(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((at, _)) => Cow::Owned(format!("{}…", text.get(..at).unwrap_or_default())),
    }
}

/// At most `most` characters of a text on one line, with an ellipsis if it was cut.
pub(super) fn clip(text: &str, most: usize) -> String {
    let cut: String = text
        .chars()
        .take(most)
        .map(|c| if c == '\n' { ' ' } else { c })
        .collect();
    if cut.len() < text.len() {
        return cut + "…";
    }
    cut
}

/// Preformatted text.
pub(super) fn code(text: &str) -> Markup {
    let (shown, rest) = cut(text);
    let (markup, bytes) = exact_within(shown, Layout::Lines, CODE_BYTES_MAX);
    let left = shown.get(bytes..).unwrap_or_default();
    html! {
        pre.block-code tabindex="0" { (markup) }
        (and_more(rest + left.chars().count()))
    }
}

/// The beginning of a text, and the number of characters left out.
fn cut(text: &str) -> (&str, usize) {
    match text.char_indices().nth(CHARS_MAX) {
        None => (text, 0),
        Some((at, _)) => {
            let (shown, rest) = text.split_at(at);
            (shown, rest.chars().count())
        }
    }
}

fn and_more(rest: usize) -> Markup {
    html! {
        @if rest > 0 {
            p.small.dim { (super::ui::number(rest as u64)) " more characters are not shown." }
        }
    }
}

/// A JSON value: a table for a list of similar objects, a list of fields for a flat object, otherwise text.
pub(super) fn value(value: &Value) -> Markup {
    match value {
        Value::String(text) => code(text),
        Value::Array(rows) if is_table(rows) => json_table(rows),
        Value::Object(fields) if !fields.is_empty() && fields.values().all(is_short) => {
            names_and_values(fields)
        }
        other => code(&pretty(other)),
    }
}

/// The arguments of a call. Long texts keep their lines.
pub(super) fn arguments(fields: &Map<String, Value>) -> Markup {
    if fields.is_empty() {
        return html! { p.dim { "No arguments." } };
    }
    html! {
        dl.facts {
            @for (name, value) in fields.iter().take(FIELDS_MAX) {
                dt.mono { (super::ui::name(&start(name, FIELD_NAME_CHARS_MAX))) }
                dd {
                    @match value {
                        Value::String(text) if text.contains('\n') || text.chars().count() > 120 => (code(text)),
                        Value::String(text) => code { (exact_line(text)) },
                        other if is_short(other) => code { (other) },
                        other => (code(&pretty(other))),
                    }
                }
            }
        }
        (more_fields(fields.len()))
    }
}

fn more_fields(all: usize) -> Markup {
    let more = all.saturating_sub(FIELDS_MAX);
    html! {
        @if more > 0 {
            p.small.dim { (super::ui::number(more as u64)) " more fields are not shown." }
        }
    }
}

/// Arguments or a value on one short line.
pub(super) fn brief(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let parts = fields.iter().map(|(name, value)| match value {
                Value::String(text) => format!("{name}: {text}"),
                other => format!("{name}: {other}"),
            });
            parts.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    let line: String = text
        .chars()
        .map(|c| {
            if matches!(c, '\n' | '\r' | '\t') {
                ' '
            } else {
                c
            }
        })
        .take(120)
        .collect();
    one_line(&line)
}

pub(super) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// The first `most` bytes of indented JSON, and whether that is everything. Stops serializing after that.
pub(super) fn pretty_within(value: &Value, most: usize) -> (String, bool) {
    let mut kept = Truncated {
        bytes: Vec::new(),
        most,
    };
    let is_all = serde_json::to_writer_pretty(&mut kept, value).is_ok();
    let text = match String::from_utf8(kept.bytes) {
        Ok(text) => text,
        // The cut was within a character.
        Err(error) => {
            let whole = error.utf8_error().valid_up_to();
            let mut bytes = error.into_bytes();
            bytes.truncate(whole);
            String::from_utf8(bytes).unwrap_or_default()
        }
    };
    (text, is_all)
}

/// Keeps the first bytes that are written, and fails if there are more.
struct Truncated {
    bytes: Vec<u8>,
    most: usize,
}

impl std::io::Write for Truncated {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = self.most.saturating_sub(self.bytes.len());
        if room == 0 && !bytes.is_empty() {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        let part = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn is_short(value: &Value) -> bool {
    match value {
        Value::String(text) => text.chars().count() <= 120 && !text.contains('\n'),
        Value::Array(_) | Value::Object(_) => false,
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

fn is_table(rows: &[Value]) -> bool {
    rows.len() > 1
        && rows.iter().all(|row| {
            row.as_object()
                .is_some_and(|fields| !fields.is_empty() && fields.values().all(is_short))
        })
}

fn names_and_values(fields: &Map<String, Value>) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in fields.iter().take(FIELDS_MAX) {
                dt.mono { (super::ui::name(&start(name, FIELD_NAME_CHARS_MAX))) }
                dd { code { (exact_line(&plain_text(value))) } }
            }
        }
        (more_fields(fields.len()))
    }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn json_table(rows: &[Value]) -> Markup {
    let mut columns: Vec<&String> = Vec::new();
    for fields in rows.iter().filter_map(Value::as_object) {
        for name in fields.keys() {
            if !columns.contains(&name) && columns.len() < COLUMNS_MAX {
                columns.push(name);
            }
        }
    }
    let cells = rows.iter().filter_map(Value::as_object).map(|fields| {
        columns
            .iter()
            .map(|name| fields.get(*name).map(plain_text).unwrap_or_default())
            .collect()
    });
    let heading: Vec<String> = columns.iter().map(|name| (*name).clone()).collect();
    table(&heading, cells.collect())
}

/// Whether a file name has the extension of a table.
pub(super) fn is_csv(name: &str) -> bool {
    let name = name.to_lowercase();
    name.ends_with(".csv") || name.ends_with(".tsv")
}

/// Renders CSV as a table. The file name tells whether tabs separate the fields.
pub(super) fn csv(name: &str, text: &str) -> Markup {
    let separator = if name.to_lowercase().ends_with(".tsv") {
        '\t'
    } else {
        separator_of(text)
    };
    let mut rows = csv_rows(text, separator).into_iter();
    let heading = rows.next().unwrap_or_default();
    table(&heading, rows.collect())
}

/// Guesses the separator from the first line: spreadsheets write semicolons in locales with decimal commas.
fn separator_of(text: &str) -> char {
    let line = text.lines().next().unwrap_or_default();
    if line.matches(';').count() > line.matches(',').count() {
        ';'
    } else {
        ','
    }
}

/// Parses rows as in RFC 4180. Stops when there are more rows than are shown.
fn csv_rows(text: &str, separator: char) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let mut is_quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if is_quoted || field.is_empty() => is_quoted = !is_quoted,
            '\r' if !is_quoted => {}
            '\n' if !is_quoted => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
                if rows.len() > ROWS_MAX + 1 {
                    return rows;
                }
            }
            c if c == separator && !is_quoted => row.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push(row);
    }
    rows
}

fn table(heading: &[String], rows: Vec<Vec<String>>) -> Markup {
    let is_cut = rows.len() > ROWS_MAX;
    // A column is numeric if it contains only numbers.
    let numbers: Vec<bool> = (0..heading.len().min(COLUMNS_MAX))
        .map(|column| {
            let mut cells = rows.iter().filter_map(|row| row.get(column));
            cells.clone().any(|cell| is_number(cell))
                && cells.all(|cell| cell.is_empty() || is_number(cell))
        })
        .collect();
    let class = |column: usize| {
        let is_one = numbers.get(column).is_some_and(|is_one| *is_one);
        is_one.then_some("num")
    };
    html! {
        div.data tabindex="0" role="group" aria-label="Table" {
            table {
                thead { tr { @for (column, name) in heading.iter().take(COLUMNS_MAX).enumerate() { th scope="col" class=[class(column)] { (exact_line(name)) } } } }
                tbody {
                    @for row in rows.iter().take(ROWS_MAX) {
                        tr {
                            @for (column, cell) in row.iter().take(COLUMNS_MAX).enumerate() {
                                td class=[class(column)] { (exact(cell)) }
                            }
                        }
                    }
                }
            }
        }
        @if is_cut { p.small.dim { "The first " (ROWS_MAX) " rows are shown." } }
    }
}

fn is_number(cell: &str) -> bool {
    !cell.is_empty() && cell.trim().parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn html_in_markdown_is_shown_as_text() {
        for text in [
            "<script>alert(1)</script>",
            "a <img src=x onerror=alert(1)> b",
            "<div onclick=\"x\">\n\nx\n\n</div>",
            "```html\n<script>alert(1)</script>\n```",
            "| a |\n|---|\n| <script>x</script> |",
        ] {
            let shown = markdown(text).into_string();
            assert!(!shown.contains("<script"), "{shown}");
            assert!(!shown.contains("<img"), "{shown}");
            assert!(!shown.contains("<div onclick"), "{shown}");
        }
    }

    #[test]
    fn links_lead_only_to_the_web_and_nothing_is_loaded() {
        let shown = markdown("[a](javascript:alert(1)) [b](JAVASCRIPT:x) [c](data:text/html,x) [d](https://example.com)")
            .into_string();
        assert_eq!(shown.matches("<a ").count(), 1, "{shown}");
        assert!(shown.contains("href=\"https://example.com\""), "{shown}");
        let shown = markdown("![alt](https://example.com/x.png)").into_string();
        assert!(shown.contains("alt") && !shown.contains("<img"), "{shown}");
    }

    #[test]
    fn a_link_shows_its_target_whatever_its_text() {
        let shown = |text: &str| markdown(text).into_string();
        let named = shown("[https://bank.example](https://evil.example:8443/?d=1)");
        assert!(
            named.contains("</a> <span class=\"host\">(<bdi>evil.example:8443</bdi>)</span>"),
            "{named}"
        );
        let mail = shown("[the team](mailto:thief@evil.example?bcc=x)");
        assert!(
            mail.contains("(<bdi>mail to thief@evil.example</bdi>)"),
            "{mail}"
        );
        let user = shown("[x](https://bank.example@evil.example/)");
        assert!(user.contains("(<bdi>evil.example</bdi>)"), "{user}");
        let foreign = shown("<https://b\u{fc}cher.example/>");
        assert!(
            foreign.contains("(<bdi>xn--bcher-kva.example</bdi>)"),
            "{foreign}"
        );
        assert!(
            !shown("[x](/runs)").contains("<a "),
            "no address of ours is made up"
        );
    }

    #[test]
    fn columns_are_aligned_without_style_attributes() {
        let shown = markdown("| a | b |\n|:-:|--:|\n| 1 | <td style=\"text-align: right\"> |")
            .into_string();
        assert!(
            shown.contains("<th class=\"mid\">a")
                && shown.contains("<td class=\"num\">&lt;td style="),
            "{shown}"
        );
        assert!(!shown.contains("<td style"), "{shown}");
    }

    #[test]
    fn similar_objects_become_a_table() {
        let rows = json!([{"a": 1, "b": "<i>"}, {"a": 2}]);
        let shown = value(&rows).into_string();
        assert!(shown.contains("<table>"), "{shown}");
        assert!(shown.contains("&lt;i&gt;"), "{shown}");
        assert!(!value(&json!([1, 2])).into_string().contains("<table>"));
    }

    #[test]
    fn quoted_fields_contain_separators_and_line_breaks() {
        let rows = csv_rows("a,b\r\n\"1,\n2\",\"say \"\"x\"\"\"\n", ',');
        assert_eq!(rows, [["a", "b"], ["1,\n2", "say \"x\""]]);
        assert_eq!(separator_of("a;b;c\n1,5;2"), ';');
    }

    #[test]
    fn long_text_is_cut_and_says_so() {
        let shown = code(&"é".repeat(20_000)).into_string();
        assert!(shown.contains("4,000 more characters"), "{}", shown.len());
    }

    #[test]
    fn equal_hidden_characters_become_one_mark_with_a_count() {
        let long = "\u{200b}".repeat(1_250_000);
        let shown = exact(&format!("a{long}b")).into_string();
        assert!(shown.contains("\\u{200b} × 1,250,000<"), "{shown}");
        assert!(shown.starts_with('a') && shown.ends_with('b') && shown.len() < 200);
        let (shown, bytes) = exact_within(&long, Layout::Lines, 100);
        assert_eq!(bytes, long.len());
        assert!(shown.into_string().contains("× 1,250,000<"));
        let lines = exact_line(&"\n".repeat(1_000)).into_string();
        assert!(lines.contains("\\u{a} × 1,000<"), "{lines}");
        let mixed = exact("\u{200b}\u{200c}\u{200b}").into_string();
        assert_eq!(mixed.matches("\\u{200b}<").count(), 2, "{mixed}");
    }

    #[test]
    fn rendered_text_is_bounded_and_reports_its_length() {
        for unit in [
            "\u{200b}\u{200c}",
            "é",
            "<\"&",
            "a\u{1}",
            "x\n",
            "\u{301}\u{302}",
        ] {
            let text = unit.repeat(100_000);
            let (shown, bytes) = exact_within(&text, Layout::OneLine, 10_000);
            let shown = shown.into_string();
            assert!(shown.len() > 9_800 && shown.len() < 10_200, "{unit:?}");
            assert!(bytes > 0 && text.is_char_boundary(bytes), "{unit:?}");
            let again = exact_within(&text[..bytes], Layout::OneLine, usize::MAX);
            assert_eq!(again.1, bytes, "{unit:?}");
        }
        let (shown, bytes) = exact_within("😀😀", Layout::Lines, 1);
        assert_eq!((shown.into_string().as_str(), bytes), ("😀", 4));
        assert_eq!(exact_cut("ab", Layout::Lines, 1).into_string(), "a…");
        assert_eq!(exact_cut("ab", Layout::Lines, 2).into_string(), "ab");
    }

    #[test]
    fn markdown_that_grows_is_shown_as_plain_text() {
        let table = format!(
            "{}|\n{}|\n{}",
            "|a".repeat(2_000),
            "|-".repeat(2_000),
            "|x|\n".repeat(4_000)
        );
        let shown = markdown(&table).into_string();
        assert!(shown.len() < HTML_BYTES_MAX && !shown.contains("<table"));
    }

    #[test]
    fn an_object_of_many_fields_is_cut_and_says_so() {
        let fields: Map<String, Value> = (0..1_200)
            .map(|number| (format!("f{number}"), json!(number)))
            .collect();
        let shown = arguments(&fields).into_string();
        assert_eq!(shown.matches("<dt").count(), FIELDS_MAX);
        assert!(shown.contains("1,000 more fields are not shown."));
        let shown = value(&Value::Object(fields)).into_string();
        assert!(shown.contains("1,000 more fields are not shown."));
    }

    #[test]
    fn json_is_serialized_no_further_than_it_is_shown() {
        let value = json!({"a": ["é", 1]});
        let whole = pretty(&value);
        assert_eq!(pretty_within(&value, whole.len()), (whole.clone(), true));
        for most in 0..whole.len() {
            let (text, is_all) = pretty_within(&value, most);
            assert!(!is_all && whole.starts_with(&text) && text.len() + 1 >= most);
        }
    }
}
