//! Text from outside, as people are shown it.

use std::fmt::Write as _;

/// What would move a terminal's cursor, change colours, turn the direction of writing or not be seen at all is shown as
/// its number. Line ends and tabs stay.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if (c.is_control() && c != '\n' && c != '\t') || is_unseen(c) {
            number(c, &mut shown);
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The same for what is one line, such as a name: line ends and tabs are shown as their numbers too.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_unseen(c) || matches!(c, '\u{2028}' | '\u{2029}') {
            number(c, &mut shown);
        } else {
            shown.push(c);
        }
    }
    shown
}

fn number(c: char, shown: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
}

/// What turns the direction of writing, and what takes no room.
fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_or_is_not_seen_becomes_a_number() {
        assert_eq!(printable("a\tb\nc"), "a\tb\nc");
        assert_eq!(printable("\x1b]0;x\x07\r"), "\\u{1b}]0;x\\u{7}\\u{d}");
        assert_eq!(printable("pay \u{202e}001"), "pay \\u{202e}001");
        assert_eq!(printable("\u{e0041}x\u{200b}"), "\\u{e0041}x\\u{200b}");
        assert_eq!(one_line("a\nb\tc"), "a\\u{a}b\\u{9}c");
        assert_eq!(one_line("Grüße, 你好"), "Grüße, 你好");
    }
}
