//! Secrets as builds and transcripts name them: `{{ secret.NAME }}`, an opaque mark.
//!
//! Promised: a mark is told from every other text by one rule, the same when a build is checked and when a call is made;
//! [`fill`] puts values in for marks and nothing else, in one pass: a value that looks like a mark is not looked at
//! again.
//!
//! Left out: the values. They are opened at the moment of a call (`errand-engine`), and reach neither this crate nor a
//! transcript.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::place;

/// Most characters of a secret's name.
pub const NAME_CHARS_MAX: usize = 64;
/// Fewest characters of a secret: shorter ones occur by chance in what comes back, and would be guessed.
pub const VALUE_CHARS_MIN: usize = 12;
/// Most bytes of a secret: a private key of any kind fits.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;

/// Whether a text can be a secret's name: what a template can name.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.chars().count() <= NAME_CHARS_MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The mark that stands for a secret.
#[must_use]
pub fn mark(name: &str) -> String {
    format!("{{{{ secret.{name} }}}}")
}

/// Whether the arguments of this tool may hold marks: `fetch_url` and the tools of connections.
#[must_use]
pub fn may_hold(tool: &str) -> bool {
    tool == "fetch_url" || crate::connection::is_tool(tool)
}

/// One mark in a text.
struct Found<'a> {
    start: usize,
    end: usize,
    name: &'a str,
}

/// The first mark at or after `from`.
fn find(text: &str, from: usize) -> Option<Found<'_>> {
    let mut at = from;
    loop {
        let start = at + text.get(at..)?.find("{{")?;
        let inner = text.get(start + 2..)?;
        if let Some((expression, _)) = inner.split_once("}}")
            && let Some(name) = expression.trim().strip_prefix("secret.")
            && is_name(name)
        {
            let end = start + 2 + expression.len() + 2;
            return Some(Found { start, end, name });
        }
        at = start + 2;
    }
}

/// The names of all secrets that a text has marks of.
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

/// The names of all secrets that the values of a JSON value have marks of. Keys hold none.
#[must_use]
pub fn marks_in_value(value: &Value) -> BTreeSet<String> {
    match value {
        Value::String(text) => marks_in(text),
        Value::Array(items) => items.iter().flat_map(marks_in_value).collect(),
        Value::Object(map) => map.values().flat_map(marks_in_value).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => BTreeSet::new(),
    }
}

/// The names of all secrets that a call's arguments have marks of.
#[must_use]
pub fn marks_in_arguments(arguments: &Map<String, Value>) -> BTreeSet<String> {
    arguments.values().flat_map(marks_in_value).collect()
}

/// The path of the first text in a JSON value (keys among them) that names a secret in whatever way a template could.
#[must_use]
pub fn first_named_in(path: &str, value: &Value) -> Option<String> {
    match value {
        Value::String(text) => names_any(text).then(|| path.to_owned()),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| first_named_in(&place::of_item(path, index), item)),
        Value::Object(map) => map.iter().find_map(|(key, item)| {
            let path = place::of_key(path, key);
            if names_any(key) {
                return Some(path);
            }
            first_named_in(&path, item)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Whether a text has something that is a mark, or is meant as one: `{{ secret.X }}`, `{{-secret["X"]}}`.
fn names_any(text: &str) -> bool {
    text.split("{{").skip(1).any(|inner| {
        let inner = inner.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        inner.strip_prefix("secret").is_some_and(|rest| {
            rest.trim_start().starts_with(['.', '[']) || rest.trim_start().starts_with("}}")
        })
    })
}

/// A text with its marks filled in. The error: the name that has no value.
///
/// # Errors
/// The first name that `value_of` does not know.
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

/// A JSON value with the marks in its texts filled in.
///
/// # Errors
/// The first name that `value_of` does not know.
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

/// A call's arguments with their marks filled in.
///
/// # Errors
/// The first name that `value_of` does not know.
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
    fn a_mark_is_told_from_every_other_text() {
        let text = "a {{ secret.ONE }}{{secret.TWO}} {{ secret.ONE }} {{ secrets.X }} {{ secret.1 }} {{ secret. X }} {{ secret.THREE";
        assert_eq!(
            marks_in(text).into_iter().collect::<Vec<_>>(),
            ["ONE", "TWO"]
        );
        assert_eq!(marks_in("{{ {{ secret.IN }} }}").len(), 1);
        assert!(marks_in("no {{ marks }} here").is_empty());
    }

    #[test]
    fn values_go_in_once_and_for_marks_alone() {
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
    fn what_is_meant_as_a_mark_is_found_wherever_it_stands() {
        for text in [
            "{{ secret.A }}",
            "{{secret['A']}}",
            "{{-  secret . A }}",
            "{{ secret }}",
        ] {
            assert!(names_any(text), "{text}");
        }
        assert!(!names_any("{{ secretary.name }} secret.A"));
        let value = json!({"a": [{"b": "{{ secret.X }}"}]});
        assert_eq!(first_named_in("", &value).unwrap(), "a[0].b");
        assert_eq!(
            first_named_in("data", &json!({"{{ secret.X }}": 1})).unwrap(),
            "data.{{ secret.X }}"
        );
    }

    #[test]
    fn names() {
        assert!(is_name("API_TOKEN_2") && is_name("_x"));
        for bad in ["", "2X", "A-B", "a.b", "ä", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
