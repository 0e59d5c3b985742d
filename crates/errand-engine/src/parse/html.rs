//! Converts HTML to Markdown with `htmd`.
//!
//! A page with excessive nesting (which could overflow the stack) or too many open formatting elements (which a parser
//! must reopen again and again) is converted to plain text instead. This is detected by counting tags, which a page can
//! trick; the real protection is the process's limits.

use std::collections::HashMap;

use htmd::HtmlToMarkdown;

/// Maximum nesting depth. The 64 MiB stack could bear more.
const DEPTH_MAX: usize = 400;
/// Maximum number of formatting elements that are open at the same time.
const FORMATTING_MAX: usize = 100;

/// Elements that an HTML parser reopens in each following block.
const FORMATTING: [&str; 14] = [
    "a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u",
];
/// Elements without an end tag.
const VOID: [&str; 16] = [
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source",
    "track", "wbr", "p", "li",
];
/// Elements whose content is not part of the page's text.
const SILENT: [&str; 8] = [
    "script", "style", "noscript", "template", "svg", "iframe", "object", "head",
];

/// Converts a page to Markdown.
pub(super) fn of(html: &str) -> String {
    let title = title(html);
    let body = if is_harmless(html) {
        HtmlToMarkdown::builder()
            .skip_tags(vec![
                "script", "style", "noscript", "template", "svg", "iframe", "object", "head",
            ])
            .build()
            .convert(html)
            .unwrap_or_else(|_| bare(html))
    } else {
        bare(html)
    };
    match title {
        Some(title) if !body.contains(&title) => format!("# {title}\n\n{body}"),
        _ => body,
    }
}

fn title(html: &str) -> Option<String> {
    let start = html.find("<title")?;
    let rest = html.get(start..)?.split_once('>')?.1;
    let text = rest.split_once("</title")?.0;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (!line.is_empty() && line.len() <= 500).then(|| {
        line.replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&#39;", "'")
            .replace("&amp;", "&")
    })
}

/// A start or end tag.
struct Tag<'h> {
    name: &'h str,
    closes: bool,
    /// The byte offset after the tag.
    end: usize,
}

/// The first tag at or after `from`, with its byte offset.
fn next_tag(html: &str, from: usize) -> Option<(usize, Tag<'_>)> {
    let mut at = from;
    loop {
        let start = at + html.get(at..)?.find('<')?;
        let rest = html.get(start + 1..)?;
        let (closes, rest) = match rest.strip_prefix('/') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        if rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let length = rest
                .find(|c: char| c.is_whitespace() || matches!(c, '>' | '/' | '<'))
                .unwrap_or(rest.len());
            let name = rest.get(..length)?;
            let after = html.len() - rest.len() + length;
            let end = html
                .get(after..)?
                .find('>')
                .map_or(html.len(), |n| after + n + 1);
            return Some((start, Tag { name, closes, end }));
        }
        at = start + 1;
    }
}

fn is_harmless(html: &str) -> bool {
    let (mut depth, mut formatting, mut open) = (0_usize, 0_usize, HashMap::new());
    let mut at = 0;
    while let Some((_, tag)) = next_tag(html, at) {
        at = tag.end;
        let name = tag.name.to_ascii_lowercase();
        if VOID.contains(&name.as_str()) {
            continue;
        }
        if FORMATTING.contains(&name.as_str()) {
            let of_name = open.entry(name).or_insert(0_usize);
            if tag.closes {
                formatting -= usize::from(*of_name > 0);
                *of_name = of_name.saturating_sub(1);
            } else {
                formatting += 1;
                *of_name += 1;
            }
        }
        depth = if tag.closes {
            depth.saturating_sub(1)
        } else {
            depth + 1
        };
        if depth > DEPTH_MAX || formatting > FORMATTING_MAX {
            return false;
        }
    }
    true
}

/// The text between the tags.
fn bare(html: &str) -> String {
    let (mut out, mut at) = (String::new(), 0);
    while let Some((start, tag)) = next_tag(html, at) {
        push(&mut out, html.get(at..start).unwrap_or_default());
        at = tag.end;
        let silent = SILENT
            .iter()
            .find(|name| !tag.closes && tag.name.eq_ignore_ascii_case(name));
        if let Some(name) = silent {
            let mut inside = at;
            while let Some((_, inner)) = next_tag(html, inside) {
                inside = inner.end;
                if inner.closes && inner.name.eq_ignore_ascii_case(name) {
                    break;
                }
            }
            at = inside.max(at);
        }
    }
    push(&mut out, html.get(at..).unwrap_or_default());
    out
}

fn push(out: &mut String, text: &str) {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if !text.is_empty() {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_markdown() {
        let page = "<html><head><title>News &amp; more</title><style>x{}</style></head><body><h1>Today</h1><p>One <a href=\"/a\">link</a>.<script>alert(1)</script><ul><li>a<li>b</ul></body></html>";
        let text = of(page);
        assert!(text.starts_with("# News & more\n\n# Today"), "{text}");
        assert!(text.contains("[link](/a)") && text.contains('a') && !text.contains("alert"));
    }

    #[test]
    fn a_malicious_page_becomes_plain_text() {
        let deep = format!("{}deep{}", "<div>".repeat(200_000), "</div>".repeat(10));
        assert_eq!(of(&deep), "deep");
        let open: String = (0..50_000).map(|n| format!("<b id={n}>")).collect();
        let again = format!("{open}{}", "<div>x</div>".repeat(50_000));
        assert_eq!(of(&again).lines().count(), 50_000);
        assert_eq!(of("<"), "<");
        assert_eq!(of("<div <div <div>x"), "x");
        assert_eq!(bare("a<script>b</script>c<svg"), "a\nc");
    }
}
