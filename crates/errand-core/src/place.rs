//! Where something is in a JSON value, as people read it: `data.tools.read_file`, `steps[2].with.path`.
//!
//! Guarantees: a place takes at most [`CHARS_MAX`] characters and a few more, however long the keys are and however deep
//! the value is nested. Who goes over a value makes a place for each of its items: without the bound, one key of half a
//! request's size above a list of the other half would cost gigabytes.

use std::borrow::Cow;

/// Characters of a place, about. One that would be longer ends with `…`.
const CHARS_MAX: usize = 500;
/// Characters of one key, and of a text that an error repeats.
const KEY_CHARS_MAX: usize = 100;

/// A text of somebody else's, for an error: its start alone, where it is long.
pub(crate) fn start_of(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(KEY_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()).into(),
        None => text.into(),
    }
}

/// The place of a key's value.
pub(crate) fn of_key(within: &str, key: &str) -> String {
    if is_full(within) {
        return within.to_owned();
    }
    let dot = if within.is_empty() { "" } else { "." };
    ended(format!("{within}{dot}{}", start_of(key)))
}

/// The place of an item of a list.
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
    fn a_place_is_read_and_stays_short() {
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
