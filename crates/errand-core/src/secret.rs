//! References to secrets in builds and transcripts: `{{ secret.NAME }}`, an opaque mark.
//!
//! # Guarantees
//!
//! - One rule distinguishes a mark from all other text, both when a build is checked and when a call is made.
//! - [`fill`] replaces marks and nothing else, in one pass: a value that looks like a mark is not replaced again.
//!
//! # Non-goals
//!
//! The values. They are decrypted at the moment of a call (`errand-engine`) and never reach this crate or a transcript.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::place;

/// Maximum length of a secret's name, in characters.
pub const NAME_CHARS_MAX: usize = 64;
/// Minimum length of a secret, in characters. Shorter ones occur in results by chance, so they could not be redacted
/// reliably, and they can be guessed.
pub const VALUE_CHARS_MIN: usize = 12;
/// Maximum size of a secret, in bytes: large enough for any private key.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;

/// Whether a text is a valid name of a secret, which is also a valid identifier in a template.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.chars().count() <= NAME_CHARS_MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The mark for a secret.
#[must_use]
pub fn mark(name: &str) -> String {
    format!("{{{{ secret.{name} }}}}")
}

/// Whether the arguments of a tool may contain marks: true for `fetch_url` and the tools of connections.
#[must_use]
pub fn accepts_marks(tool: &str) -> bool {
    tool == "fetch_url" || crate::connection::is_tool(tool)
}

struct MarkAt<'a> {
    start: usize,
    end: usize,
    name: &'a str,
}

/// Finds the first mark at or after `from`.
fn find(text: &str, from: usize) -> Option<MarkAt<'_>> {
    let mut at = from;
    loop {
        let start = at + text.get(at..)?.find("{{")?;
        let inner = text.get(start + 2..)?;
        if let Some((name, rest)) = named_at(inner) {
            let end = text.len() - rest.len();
            return Some(MarkAt { start, end, name });
        }
        // Not a mark. Continue right after these braces, because a mark may begin within them.
        at = start + 2;
    }
}

/// The name of a mark whose text begins after its `{{`, and what follows the mark.
///
/// Only the mark itself is read, and never the text up to some later `}}`: a text of nothing but `{{` takes linear time.
fn named_at(inner: &str) -> Option<(&str, &str)> {
    let name_on = inner.trim_start().strip_prefix("secret.")?;
    let length = name_on
        .bytes()
        .take(NAME_CHARS_MAX + 1)
        .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        .count();
    let (name, rest) = name_on.split_at_checked(length)?;
    let rest = rest.trim_start().strip_prefix("}}")?;
    is_name(name).then_some((name, rest))
}

/// The names in all marks of a text.
#[must_use]
pub fn marks_in(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut at = 0;
    while let Some(found) = find(text, at) {
        names.insert(found.name.to_owned());
        at = found.end;
    }
    names
}

/// The names in all marks of a JSON value's strings. Keys are not searched.
#[must_use]
pub fn marks_in_value(value: &Value) -> BTreeSet<String> {
    match value {
        Value::String(text) => marks_in(text),
        Value::Array(items) => items.iter().flat_map(marks_in_value).collect(),
        Value::Object(map) => map.values().flat_map(marks_in_value).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => BTreeSet::new(),
    }
}

/// The names in all marks of a call's arguments.
#[must_use]
pub fn marks_in_arguments(arguments: &Map<String, Value>) -> BTreeSet<String> {
    arguments.values().flat_map(marks_in_value).collect()
}

/// The path of the first string in a JSON value (including keys) that refers to a secret in any form that a template
/// might accept.
#[must_use]
pub fn first_named_in(path: &str, value: &Value) -> Option<String> {
    match value {
        Value::String(text) => refers_to_secret(text).then(|| path.to_owned()),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| first_named_in(&place::of_item(path, index), item)),
        Value::Object(map) => map.iter().find_map(|(key, item)| {
            let path = place::of_key(path, key);
            if refers_to_secret(key) {
                return Some(path);
            }
            first_named_in(&path, item)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Whether a text contains a mark or something meant as one, such as `{{-secret["X"]}}`.
fn refers_to_secret(text: &str) -> bool {
    text.split("{{").skip(1).any(|inner| {
        let inner = inner.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        inner.strip_prefix("secret").is_some_and(|rest| {
            rest.trim_start().starts_with(['.', '[']) || rest.trim_start().starts_with("}}")
        })
    })
}

/// Replaces the marks in a text by their values.
///
/// # Errors
/// The first name for which `value_of` has no value.
pub fn fill_text<'t>(
    text: &'t str,
    value_of: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'t, str>, String> {
    let Some(mut found) = find(text, 0) else {
        return Ok(Cow::Borrowed(text));
    };
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    loop {
        out.push_str(text.get(done..found.start).unwrap_or_default());
        out.push_str(&value_of(found.name).ok_or_else(|| found.name.to_owned())?);
        done = found.end;
        match find(text, done) {
            Some(next) => found = next,
            None => break,
        }
    }
    out.push_str(text.get(done..).unwrap_or_default());
    Ok(Cow::Owned(out))
}

/// Replaces the marks in all strings of a JSON value.
///
/// # Errors
/// The first name for which `value_of` has no value.
pub fn fill(value: &Value, value_of: &dyn Fn(&str) -> Option<String>) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => Value::String(fill_text(text, value_of)?.into_owned()),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| fill(item, value_of))
                .collect::<Result<_, _>>()?,
        ),
        Value::Object(map) => Value::Object(fill_arguments(map, value_of)?),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    })
}

/// Replaces the marks in a call's arguments.
///
/// # Errors
/// The first name for which `value_of` has no value.
pub fn fill_arguments(
    arguments: &Map<String, Value>,
    value_of: &dyn Fn(&str) -> Option<String>,
) -> Result<Map<String, Value>, String> {
    arguments
        .iter()
        .map(|(key, value)| Ok((key.clone(), fill(value, value_of)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marks_are_distinguished_from_all_other_text() {
        let text = "a {{ secret.ONE }}{{secret.TWO}} {{ secret.ONE }} {{ secrets.X }} {{ secret.1 }} {{ secret. X }} {{ secret.THREE";
        assert_eq!(
            marks_in(text).into_iter().collect::<Vec<_>>(),
            ["ONE", "TWO"]
        );
        assert_eq!(marks_in("{{ {{ secret.IN }} }}").len(), 1);
        assert!(marks_in("no {{ marks }} here").is_empty());
        let longest = "N".repeat(NAME_CHARS_MAX);
        assert_eq!(marks_in(&mark(&longest)).len(), 1);
        assert!(marks_in(&mark(&(longest + "N"))).is_empty());
        assert!(marks_in("{{ secret. }} {{ secret.A\u{e9} }} {{ secret.A B }}").is_empty());
    }

    #[test]
    fn a_text_of_nothing_but_openings_takes_linear_time() {
        // Quadratic time would be minutes.
        for piece in ["{", "{{ secret.A", "{{ "] {
            let text = piece.repeat(4 * 1024 * 1024 / piece.len());
            assert!(marks_in(&text).is_empty());
        }
    }

    #[test]
    fn only_marks_are_replaced_and_only_once() {
        let value_of = |name: &str| match name {
            "A" => Some("{{ secret.B }}".to_owned()),
            "B" => Some("bee".to_owned()),
            _ => None,
        };
        let filled = fill(
            &json!({"x": ["{{ secret.A }}-{{secret.B}}", 7], "{{ secret.B }}": "é {{ other }}"}),
            &value_of,
        );
        assert_eq!(
            filled.unwrap(),
            json!({"x": ["{{ secret.B }}-bee", 7], "{{ secret.B }}": "é {{ other }}"})
        );
        assert_eq!(
            fill_text("{{ secret.NONE }}", &value_of).unwrap_err(),
            "NONE"
        );
    }

    #[test]
    fn attempted_marks_are_found_anywhere_in_a_value() {
        for text in [
            "{{ secret.A }}",
            "{{secret['A']}}",
            "{{-  secret . A }}",
            "{{ secret }}",
        ] {
            assert!(refers_to_secret(text), "{text}");
        }
        assert!(!refers_to_secret("{{ secretary.name }} secret.A"));
        let value = json!({"a": [{"b": "{{ secret.X }}"}]});
        assert_eq!(first_named_in("", &value).unwrap(), "a[0].b");
        assert_eq!(
            first_named_in("data", &json!({"{{ secret.X }}": 1})).unwrap(),
            "data.{{ secret.X }}"
        );
    }

    #[test]
    fn names_are_identifiers_of_bounded_length() {
        assert!(is_name("API_TOKEN_2") && is_name("_x"));
        for bad in ["", "2X", "A-B", "a.b", "ä", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
