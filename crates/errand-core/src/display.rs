//! Display form of text from outside: characters that a reader cannot see are replaced by their code points.
//!
//! # Guarantees
//!
//! Unicode properties decide which characters are hidden, so a new version of Unicode needs no change here. Hidden are:
//! controls, format characters, private use and unassigned code points, line and paragraph separators, every space
//! other than U+0020, everything that a renderer may ignore (`Default_Ignorable_Code_Point`, which includes the Hangul
//! fillers and all variation selectors), and each combining mark after the second in a row.
//!
//! # Non-goals
//!
//! Letters that resemble others (homoglyphs).

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory, WhiteSpace};
use icu_properties::{CodePointMapData, CodePointSetData};

use crate::limits::NAME_CHARS_MAX;

/// Characters that fonts draw as blank although no property says so: BRAILLE PATTERN BLANK, EGYPTIAN HIEROGLYPH FULL
/// BLANK and HALF BLANK, KHITAN SMALL SCRIPT FILLER, MUSICAL SYMBOL NULL NOTEHEAD.
const BLANK_BY_DRAWING: [char; 5] = [
    '\u{2800}',
    '\u{13441}',
    '\u{13442}',
    '\u{16fe4}',
    '\u{1d159}',
];
/// Maximum combining marks in a row that are displayed as they are. More would pile up over the neighboring text.
const MARKS_MAX: usize = 2;

/// A part of a text, as split by [`pieces`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text to display as it is.
    Seen(&'a str),
    /// A character to display as its code point.
    Hidden(char),
}

/// Whether line breaks and tabs count as layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Text of several lines: U+000A and U+0009 are kept.
    Lines,
    /// Text that must stay on one line, such as a name: they are replaced, too.
    OneLine,
}

/// Replaces hidden characters by their code points. Line breaks and tabs are kept.
#[must_use]
pub fn display(text: &str) -> String {
    display_as(text, Layout::Lines)
}

/// Like [`display`] for text that must stay on one line, such as a name: line breaks and tabs are replaced, too.
#[must_use]
pub fn one_line(text: &str) -> String {
    display_as(text, Layout::OneLine)
}

/// The display form of a hidden character: `\u{200b}`.
#[must_use]
pub fn code_point(c: char) -> String {
    format!("\\u{{{:x}}}", u32::from(c))
}

/// Splits a text into visible parts and hidden characters. Together they are the whole text.
pub fn pieces(text: &str, layout: Layout) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    // Combining marks at the end of the previous piece, which count toward the next one.
    let mut marks = 0;
    std::iter::from_fn(move || {
        // Most text is printable ASCII, whose properties need no lookup.
        let plain = rest
            .bytes()
            .take_while(|b| matches!(b, b' '..=b'~'))
            .count();
        if plain > 0 {
            marks = 0;
        }
        let mut end = plain;
        let (_, unknown) = rest.split_at(plain);
        for (at, c) in unknown.char_indices() {
            if is_hidden_here(c, layout, &mut marks) {
                if end > 0 {
                    break;
                }
                let (_, after) = rest.split_at(c.len_utf8());
                rest = after;
                return Some(Piece::Hidden(c));
            }
            end = plain + at + c.len_utf8();
        }
        let (seen, after) = rest.split_at(end);
        rest = after;
        (!seen.is_empty()).then_some(Piece::Seen(seen))
    })
}

/// `marks`: the number of combining marks directly before `c`; updated.
fn is_hidden_here(c: char, layout: Layout, marks: &mut usize) -> bool {
    if is_mark(c) {
        // At the bound, do not count further: `pieces` asks again for the character at which it ended a piece.
        if *marks >= MARKS_MAX {
            return true;
        }
        if is_hidden(c) {
            return true;
        }
        *marks += 1;
        return false;
    }
    if matches!(c, '\n' | '\t') {
        *marks = 0;
        return layout == Layout::OneLine;
    }
    if is_hidden(c) {
        // It may have no width, so the marks around it would still pile up: keep the count.
        return true;
    }
    *marks = 0;
    false
}

fn display_as(text: &str, layout: Layout) -> String {
    let mut shown = String::with_capacity(text.len());
    for piece in pieces(text, layout) {
        match piece {
            Piece::Seen(text) => shown.push_str(text),
            Piece::Hidden(c) => shown.push_str(&code_point(c)),
        }
    }
    shown
}

fn category(c: char) -> GeneralCategory {
    CodePointMapData::<GeneralCategory>::new().get(c)
}

fn is_mark(c: char) -> bool {
    !c.is_ascii()
        && matches!(
            category(c),
            GeneralCategory::NonspacingMark
                | GeneralCategory::SpacingMark
                | GeneralCategory::EnclosingMark
        )
}

/// Whether a reader cannot see this character by itself. Includes line breaks and tabs.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    let by_category = matches!(
        category(c),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::PrivateUse
            | GeneralCategory::Surrogate
            | GeneralCategory::Unassigned
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
            | GeneralCategory::SpaceSeparator
    );
    by_category
        || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
        || CodePointSetData::new::<WhiteSpace>().contains(c)
        || BLANK_BY_DRAWING.contains(&c)
}

/// Whether a text can be a name that people choose: 1 to [`NAME_CHARS_MAX`] characters, no control character, and at
/// least one character that a reader can see.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.chars().nth(NAME_CHARS_MAX).is_none()
        && !text.chars().any(char::is_control)
        && text.chars().any(|c| c != ' ' && !is_hidden(c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The inverse of [`display`] for a text without backslashes.
    fn reversed(shown: &str) -> String {
        let mut text = String::new();
        let mut rest = shown;
        while let Some((before, after)) = rest.split_once("\\u{") {
            text.push_str(before);
            let (number, after) = after.split_once('}').unwrap();
            let number = u32::from_str_radix(number, 16).unwrap();
            text.push(char::from_u32(number).unwrap());
            rest = after;
        }
        text + rest
    }

    fn most_marks_in_a_row(text: &str) -> usize {
        let mut most = 0;
        let mut row = 0;
        for c in text.chars() {
            row = if is_mark(c) { row + 1 } else { 0 };
            most = most.max(row);
        }
        most
    }

    #[test]
    fn controls_and_invisible_characters_become_code_points() {
        assert_eq!(display("a\tb\nc"), "a\tb\nc");
        assert_eq!(display("\x1b]0;x\x07\r"), "\\u{1b}]0;x\\u{7}\\u{d}");
        assert_eq!(display("pay \u{202e}001"), "pay \\u{202e}001");
        assert_eq!(display("\u{e0041}x\u{200b}"), "\\u{e0041}x\\u{200b}");
        assert_eq!(one_line("a\nb\tc"), "a\\u{a}b\\u{9}c");
        assert_eq!(one_line("Grüße, 你好"), "Grüße, 你好");
    }

    #[test]
    fn text_in_the_worlds_scripts_is_unchanged() {
        for text in [
            "Łódź, naïve, ½ €, “quotes” – dash …",
            "Привет мир Ελληνικά",
            "مرحبا بالعالم שלום",
            "हिन्दी ไทยที่นี่ 한국어 日本語 ខ្មែរ",
            "e\u{301} Vie\u{302}\u{323}t",
            "😀 🎉 ★ ∑",
        ] {
            assert_eq!(display(text), text);
        }
    }

    #[test]
    fn invisible_parts_of_emoji_become_code_points() {
        assert_eq!(
            display("👩\u{200d}💻 ❤\u{fe0f} 🏴\u{e0067}"),
            "👩\\u{200d}💻 ❤\\u{fe0f} 🏴\\u{e0067}"
        );
    }

    #[test]
    fn piled_up_marks_become_code_points() {
        let piled = "a\u{301}\u{302}\u{303}\u{304}b";
        assert_eq!(display(piled), "a\u{301}\u{302}\\u{303}\\u{304}b");
        // A character without width does not reset the count.
        let joined = "a\u{301}\u{302}\u{200d}\u{303}";
        assert_eq!(display(joined), "a\u{301}\u{302}\\u{200d}\\u{303}");
    }

    /// Characters from reports of spoofed text, and others of the same categories.
    #[test]
    fn fillers_and_blanks_become_code_points() {
        for c in [
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{1160}',
            '\u{17b4}',
            '\u{180b}',
            '\u{180e}',
            '\u{200c}',
            '\u{200d}',
            '\u{2028}',
            '\u{2029}',
            '\u{2064}',
            '\u{206a}',
            '\u{2800}',
            '\u{3000}',
            '\u{3164}',
            '\u{a0}',
            '\u{1680}',
            '\u{2003}',
            '\u{202f}',
            '\u{205f}',
            '\u{fe00}',
            '\u{fe0f}',
            '\u{ffa0}',
            '\u{fff9}',
            '\u{e000}',
            '\u{378}',
            '\u{fdd0}',
            '\u{1bca0}',
            '\u{1d173}',
            '\u{e0100}',
            '\u{f0000}',
            '\u{10ffff}',
        ] {
            let number = format!("x{}y", code_point(c));
            assert_eq!(display(&format!("x{c}y")), number);
            assert_eq!(one_line(&format!("x{c}y")), number);
        }
    }

    /// All of Unicode: a displayed character is visible or U+0020, or is replaced by its own code point.
    #[test]
    fn every_unicode_character_is_visible_or_replaced() {
        for c in '\0'..=char::MAX {
            let shown = one_line(&c.to_string());
            let is_plain = shown == c.to_string();
            assert!(is_plain || shown == code_point(c), "{c:?}");
            // Checked against the standard library, which is independent of the properties above.
            let is_blank = c.is_control() || (c.is_whitespace() && c != ' ');
            assert!(!(is_plain && is_blank), "{c:?}");
            if is_plain && c != ' ' {
                let written = category(c);
                assert!(
                    !matches!(
                        written,
                        GeneralCategory::Format
                            | GeneralCategory::PrivateUse
                            | GeneralCategory::Unassigned
                            | GeneralCategory::SpaceSeparator
                            | GeneralCategory::LineSeparator
                            | GeneralCategory::ParagraphSeparator
                    ) && !CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c),
                    "{c:?} {written:?}"
                );
            }
        }
    }

    #[test]
    fn a_name_can_be_seen_and_is_one_line() {
        for name in ["a", "Łódź \u{202e}x", "日本語", "👩\u{200d}💻"] {
            assert!(is_name(name), "{name:?}");
        }
        assert!(is_name(&"é".repeat(200)) && !is_name(&"é".repeat(201)));
        for name in [
            "",
            "  ",
            "\u{200b}",
            "\u{202e}\u{2066}",
            " \u{3164}\u{a0}",
            "a\u{0}b",
            "a\nb",
            "a\tb",
            "a\u{85}b",
        ] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_has_invisible_characters_when_displayed(text in any::<String>()) {
            for shown in [display(&text), one_line(&text)] {
                prop_assert!(!shown.chars().any(|c| is_hidden(c) && !matches!(c, '\n' | '\t')));
                prop_assert!(most_marks_in_a_row(&shown) <= MARKS_MAX);
            }
            prop_assert!(!one_line(&text).contains(['\n', '\t']));
            let parts: String = pieces(&text, Layout::Lines)
                .map(|piece| match piece {
                    Piece::Seen(text) => text.to_owned(),
                    Piece::Hidden(c) => c.to_string(),
                })
                .collect();
            prop_assert_eq!(parts, text);
        }

        #[test]
        fn the_display_form_can_be_reversed(text in "[^\\\\]{0,40}") {
            prop_assert_eq!(reversed(&display(&text)), text);
        }
    }
}
