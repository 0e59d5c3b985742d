//! Errors as one text, for logs and for people: each layer says its own part only.

use std::error::Error;

/// The error and its causes, from the outside in, separated by colons. A cause that says what was said already is left
/// out.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in std::iter::successors(Some(error), |&error| error.source()) {
        let part = cause.to_string();
        if text.ends_with(&part) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    text
}
