//! Places in a JSON value, as people read them: `data.tools.read_file`, `steps[2].with.path`.
//!
//! # Guarantees
//!
//! A place has little more than [`CHARS_MAX`] characters, regardless of the length of the keys and the depth of the
//! value. Code that walks a value builds a place for each item: without the bound, a key of half a request's size above
//! a list of the other half would cost gigabytes.

use std::borrow::Cow;

/// Approximate maximum length of a place, in characters. A longer one is truncated and ends with `…`.
const CHARS_MAX: usize = 500;
/// Maximum length of one key, and of a text that an error quotes, in characters.
const KEY_CHARS_MAX: usize = 100;

/// The beginning of a text from outside, to be quoted in an error.
pub(crate) fn start_of(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(KEY_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()).into(),
        None => text.into(),
    }
}

/// The place of the value under a key.
pub(crate) fn of_key(within: &str, key: &str) -> String {
    if is_full(within) {
        return within.to_owned();
    }
    let dot = if within.is_empty() { "" } else { "." };
    ended(format!("{within}{dot}{}", start_of(key)))
}

/// The place of an item in a list.
pub(crate) fn of_item(within: &str, index: usize) -> String {
    if is_full(within) {
        return within.to_owned();
    }
    ended(format!("{within}[{index}]"))
}

fn is_full(place: &str) -> bool {
    place.ends_with('…') && place.len() > CHARS_MAX
}

fn ended(mut place: String) -> String {
    if place.len() > CHARS_MAX && !place.ends_with('…') {
        place.push('…');
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_readable_and_short() {
        assert_eq!(of_key("", "data"), "data");
        assert_eq!(of_item(&of_key("data", "steps"), 2), "data.steps[2]");
        let long = of_key("data", &"ä".repeat(1_000_000));
        assert_eq!(long.chars().count(), "data.".len() + KEY_CHARS_MAX + 1);
        let mut deep = "data".to_owned();
        for _ in 0..100 {
            deep = of_item(&of_key(&deep, &"ä".repeat(KEY_CHARS_MAX)), 7);
        }
        assert!(deep.ends_with('…') && deep.len() < 2 * CHARS_MAX, "{deep}");
    }
}
