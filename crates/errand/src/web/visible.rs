//! The one rule for text from outside on pages: a character that a reader cannot see appears as its code point.
//!
//! Every page, fragment and live update passes through [`visible`] when it is complete. Pages set names apart where they
//! show them ([`super::ui::name`]), but in attributes and in `<option>` and `<title>` no markup can do that, and one place
//! would be forgotten. U+202E there turns our own words around.
//!
//! # Guarantees
//!
//! Text and the attributes that people see (`title`, `aria-label`, `placeholder` and others) contain no hidden character
//! ([`errand_core::display`]), except line breaks, tabs, and joiners between visible characters of a text, without which
//! Persian and emoji cannot be read.
//!
//! # Non-goals
//!
//! Values of forms, which the browser sends back as they are, and addresses. Nobody sees them before the browser shows
//! them in a field.

use errand_core::display::{code_point, is_hidden};
use maud::Markup;

/// Attributes that people see or hear.
const SEEN: [&str; 9] = [
    "title",
    "aria-label",
    "aria-description",
    "aria-valuetext",
    "alt",
    "placeholder",
    "label",
    "summary",
    "data-title",
];
/// Characters that shape the letters around them: joiners and the selectors of the forms of emoji.
const JOINERS: [char; 4] = ['\u{200c}', '\u{200d}', '\u{fe0e}', '\u{fe0f}'];

/// Where the next character is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Text,
    /// The content of a field that the browser sends back.
    Field,
    /// Between `<` and `>`, outside of values.
    Tag,
    /// The value of an attribute that people see.
    Seen,
    /// Any other value.
    Value,
}

/// The HTML of a page or a part of one, without hidden characters where people would see them.
pub(super) fn visible(markup: Markup) -> String {
    let html = markup.0;
    if html.chars().any(is_replaced) {
        replaced(&html)
    } else {
        html
    }
}

fn is_replaced(c: char) -> bool {
    !matches!(c, '\n' | '\t' | '\r') && is_hidden(c)
}

/// Relies on the form in which our templates write HTML: values are quoted, and `<`, `>` and `"` are escaped in them and in
/// texts.
fn replaced(html: &str) -> String {
    let mut shown = String::with_capacity(html.len() + html.len() / 8);
    let mut at = At::Text;
    // The tag or attribute that is being read: its name begins here.
    let mut tag = 0;
    let mut word = 0;
    let mut before = ' ';
    for (index, c) in html.char_indices() {
        match (at, c) {
            (At::Text | At::Field, '<') => {
                (at, tag, word) = (At::Tag, index + 1, index + 1);
            }
            (At::Tag, '>') => {
                let is_field = html
                    .get(tag..index)
                    .is_some_and(|tag| tag.split([' ', '\n']).next() == Some("textarea"));
                at = if is_field { At::Field } else { At::Text };
            }
            (At::Tag, '"') => {
                let name = html.get(word..index).unwrap_or_default();
                let is_seen = SEEN.contains(&name.trim_end_matches('='));
                at = if is_seen { At::Seen } else { At::Value };
            }
            (At::Tag, ' ' | '\n') => word = index + 1,
            (At::Seen | At::Value, '"') => (at, word) = (At::Tag, index + 1),
            _ => {}
        }
        let joins =
            at == At::Text && JOINERS.contains(&c) && !before.is_ascii() && !is_hidden(before);
        if matches!(at, At::Text | At::Seen) && is_replaced(c) && !joins {
            shown.push_str(&code_point(c));
        } else {
            shown.push(c);
        }
        before = c;
    }
    shown
}

#[cfg(test)]
mod tests {
    use maud::html;

    use super::*;

    const TURNED: &str = "a\u{202e}b";
    const SHOWN: &str = "a\\u{202e}b";

    #[test]
    fn hidden_characters_are_shown_wherever_people_see_them() {
        let page = visible(html! {
            title { (TURNED) " · errand" }
            p title=(TURNED) aria-label={ "Delete \"" (TURNED) "\" > <b>" } { (TURNED) "\u{200b}\u{e0041}" }
            select { option value="1" { (TURNED) } }
            img alt=(TURNED);
        });
        assert_eq!(page.matches(SHOWN).count(), 6, "{page}");
        assert!(!page.chars().any(is_replaced), "{page}");
        assert!(page.contains("\\u{200b}\\u{e0041}"));
    }

    #[test]
    fn what_a_form_sends_back_stays_as_it_is() {
        let page = visible(html! {
            input value=(TURNED) placeholder="x";
            textarea rows="3" { (TURNED) "<" }
            a href={ "/" (TURNED) } { (TURNED) }
            option value=(TURNED) { "x" }
        });
        assert_eq!(page.matches(TURNED).count(), 4, "{page}");
        assert_eq!(page.matches(SHOWN).count(), 1, "{page}");
    }

    #[test]
    fn ordinary_text_is_unchanged() {
        for text in [
            "Grüße · 你好 – “x” …\n\ty",
            "می\u{200c}خواهم",
            "👩\u{200d}💻 ❤\u{fe0f}",
            "&lt;b&gt; \"quoted\"",
        ] {
            let markup = html! { p { (text) } };
            assert_eq!(visible(markup.clone()), markup.0);
        }
        // A joiner joins visible characters, and nothing else.
        assert_eq!(visible(html! { p { "a\u{200d}" } }), "<p>a\\u{200d}</p>");
    }
}
