//! Normalizes a text so that simple disguises of a secret are undone: case, separators, zero-width characters,
//! character references, escapes and percent encoding, each nested up to [`ROUNDS_MAX`] times.
//!
//! # Guarantees
//!
//! - One pass per round, over a window of bounded size.
//! - Each byte of the view maps to a range of the original text, so that a match in the view can be removed from the
//!   text.
//!
//! # Non-goals
//!
//! Encodings that change every character, such as base64. Those are searched for as forms of the value.

use std::ops::Range;

/// Maximum nesting of escapes that is undone.
const ROUNDS_MAX: usize = 3;
/// Maximum length of an escape: `&#x0010ffff;`, with some leading zeros.
const ESCAPE_CHARS_MAX: usize = 16;

/// The normalized form of a piece of text.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Lower case, without separators.
    pub(super) text: String,
    /// For each byte of the view, the range of the original text.
    places: Vec<(usize, usize)>,
}

/// A character and its range in the original text.
type Placed = (char, usize, usize);

impl View {
    /// Normalizes `text`, which begins at `offset` of the original text.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let mut placed: Vec<Placed> = text
            .char_indices()
            .map(|(at, c)| (c, offset + at, offset + at + c.len_utf8()))
            .collect();
        if text.contains(['&', '\\', '%', '=']) {
            for _ in 0..ROUNDS_MAX {
                let undone = undo(&placed);
                let is_done = undone.len() == placed.len();
                placed = undone;
                if is_done {
                    break;
                }
            }
        }
        let mut view = Self::default();
        for (c, start, end) in placed {
            if is_separator(c) {
                continue;
            }
            for lower in c.to_lowercase() {
                view.text.push(lower);
                view.places
                    .extend(std::iter::repeat_n((start, end), lower.len_utf8()));
            }
        }
        view
    }

    /// The range of the original text for a range of the view.
    pub(super) fn range(&self, of: Range<usize>) -> Option<Range<usize>> {
        let (start, _) = self.places.get(of.start)?;
        let (_, end) = self.places.get(of.end.checked_sub(1)?)?;
        Some(*start..*end)
    }
}

/// Whether a character can be inserted between the characters of a value without hiding it from a reader: punctuation,
/// white space, and zero-width characters.
fn is_separator(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || (c.is_ascii_punctuation())
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{e0000}'..='\u{e0fff}'
            | '·' | '•' | '–' | '—' | '‐' | '‑')
}

/// Undoes one level of escapes.
fn undo(placed: &[Placed]) -> Vec<Placed> {
    let mut undone: Vec<Placed> = Vec::with_capacity(placed.len());
    let mut at = 0;
    while let Some((c, start, end)) = placed.get(at).copied() {
        let rest = placed.get(at..).unwrap_or_default();
        let found = match c {
            '&' => reference(rest),
            '\\' => escape(rest),
            '%' | '=' => percent(rest),
            _ => None,
        };
        match found {
            Some((decoded, length)) => {
                let last = rest.get(length - 1).map_or(end, |(_, _, end)| *end);
                let range = (start, last);
                undone.extend(decoded.map(|c| (c, range.0, range.1)));
                at += length;
            }
            None => {
                undone.push((c, start, end));
                at += 1;
            }
        }
    }
    undone
}

/// The decoded characters, and the length of the escape.
type Undone = (std::vec::IntoIter<char>, usize);

fn one(c: Option<char>, length: usize) -> Option<Undone> {
    Some((vec![c?].into_iter(), length))
}

fn number(digits: &[Placed], radix: u32) -> Option<u32> {
    let text: String = digits.iter().map(|(c, ..)| *c).collect();
    u32::from_str_radix(&text, radix).ok()
}

/// Decodes `&#65;`, `&#x41;` and the five predefined names.
fn reference(rest: &[Placed]) -> Option<Undone> {
    let ends = rest
        .iter()
        .take(ESCAPE_CHARS_MAX)
        .position(|(c, ..)| *c == ';')?;
    let inner = rest.get(1..ends)?;
    let text: String = inner.iter().map(|(c, ..)| *c).collect();
    let named = match text.as_str() {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => None,
    };
    let decoded = named.or_else(|| {
        let digits = text.strip_prefix('#')?;
        let of_hex = digits.strip_prefix(['x', 'X']);
        let code = of_hex.map_or_else(
            || digits.parse().ok(),
            |hex| u32::from_str_radix(hex, 16).ok(),
        );
        char::from_u32(code?)
    });
    one(decoded, ends + 1)
}

/// Decodes `\u0041` (including surrogate pairs), `\u{41}` and `\x41`.
fn escape(rest: &[Placed]) -> Option<Undone> {
    match rest.get(1)?.0 {
        'x' | 'X' => one(char::from_u32(number(rest.get(2..4)?, 16)?), 4),
        'u' | 'U' if rest.get(2)?.0 == '{' => {
            let ends = rest
                .iter()
                .take(ESCAPE_CHARS_MAX)
                .position(|(c, ..)| *c == '}')?;
            one(char::from_u32(number(rest.get(3..ends)?, 16)?), ends + 1)
        }
        'u' => {
            let unit = number(rest.get(2..6)?, 16)?;
            if let Some(c) = char::from_u32(unit) {
                return one(Some(c), 6);
            }
            let low = rest.get(8..12).and_then(|digits| number(digits, 16))?;
            let pair = [u16::try_from(unit).ok()?, u16::try_from(low).ok()?];
            let decoded = char::decode_utf16(pair).next()?.ok();
            one(decoded, 12)
        }
        _ => None,
    }
}

/// Decodes `%41`, and `=41` of quoted-printable. Takes as many bytes as one UTF-8 character needs.
fn percent(rest: &[Placed]) -> Option<Undone> {
    let mark = rest.first()?.0;
    let mut bytes = Vec::new();
    for triple in rest.chunks(3).take(4) {
        let byte = match triple {
            [(c, ..), digits @ ..] if *c == mark && digits.len() == 2 => number(digits, 16),
            _ => None,
        };
        let Some(byte) = byte.and_then(|byte| u8::try_from(byte).ok()) else {
            break;
        };
        bytes.push(byte);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let decoded: Vec<char> = text.chars().collect();
            return Some((decoded.into_iter(), bytes.len() * 3));
        }
    }
    None
}
