//! HTML to Markdown, by `htmd`.
//!
//! A page whose elements seem to stand so deep in each other that walking them would overflow a stack, or that leaves so
//! many formatting elements open that a parser would have to repeat them without end, is given as its bare text. That is
//! told by counting tags, which a page can mislead: what bounds the parser is its process.

use std::collections::HashMap;

use htmd::HtmlToMarkdown;

/// How deep elements may stand in each other: a stack of 64 MiB bears more.
const DEPTH_MAX: usize = 400;
/// How many formatting elements may be open at once.
const FORMATTING_MAX: usize = 100;

/// Elements that an HTML parser opens anew in each block that follows.
const FORMATTING: [&str; 14] = [
    "a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u",
];
/// Elements that have no end.
const VOID: [&str; 16] = [
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source",
    "track", "wbr", "p", "li",
];
/// Elements whose content is no text of the page.
const SILENT: [&str; 8] = [
    "script", "style", "noscript", "template", "svg", "iframe", "object", "head",
];

/// The Markdown of a page.
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

/// A tag of a page.
struct Tag<'h> {
    name: &'h str,
    closes: bool,
    /// Where it ends.
    end: usize,
}

/// The first tag at or after a place, and where it begins.
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
    fn a_page_that_is_an_attack_is_given_as_its_text() {
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
