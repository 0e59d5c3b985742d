//! Parses the YAML that people type into the editor.
//!
//! Guarantees: a text has at most 256 KiB and 20,000 values, including aliases, so that parsing takes milliseconds for
//! any input. An error is one sentence for the person who typed the text.

use errand_core::limits::CONFIG_BYTES_MAX;
use serde::de::DeserializeOwned;
use serde_saphyr::Error;

/// Maximum number of values (scalars, lists and maps). A playbook has at most 1,000 steps with about ten values each.
const VALUES_MAX: usize = 20_000;

/// Why a text cannot be parsed.
#[derive(Debug)]
pub(in crate::web) struct NotYaml {
    pub(in crate::web) message: String,
    /// The line, starting at 1.
    pub(in crate::web) line: Option<u64>,
}

/// Parses a text.
///
/// # Errors
/// The text is too large or is not YAML.
pub(in crate::web) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, NotYaml> {
    if text.len() > CONFIG_BYTES_MAX {
        return Err(NotYaml {
            message: format!("Must not exceed {CONFIG_BYTES_MAX} bytes."),
            line: None,
        });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: VALUES_MAX,
            max_aliases: VALUES_MAX,
            max_anchors: VALUES_MAX,
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| of(&error))
}

fn of(error: &Error) -> NotYaml {
    // The library wraps an error with an excerpt of the text, and with the alias that led to it.
    let mut cause = error.without_snippet();
    while let Error::AliasError { error, .. } | Error::WithSnippet { error, .. } = cause {
        cause = error;
    }
    let message = match cause {
        Error::Budget { .. } => format!(
            "Too large: at most {VALUES_MAX} values are allowed, and an alias counts each time it is used."
        ),
        Error::DuplicateMappingKey { key, .. } => match key {
            Some(key) => format!("The key {key:?} occurs twice in the same mapping."),
            None => "A key occurs twice in the same mapping.".to_owned(),
        },
        other => format!(
            "Invalid YAML: {}",
            other.to_string().lines().next().unwrap_or_default()
        ),
    };
    NotYaml {
        message,
        line: error
            .location()
            .map(|location| location.line())
            .filter(|line| *line > 0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn yaml_is_parsed() {
        let read: Value = parse("- a: &x 1\n- *x\n").unwrap();
        assert_eq!(read, json!([{"a": 1}, 1]));
    }

    #[test]
    fn large_and_ambiguous_yaml_is_refused_in_plain_words() {
        let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, of) in ["b", "c", "d", "e", "f"]
            .iter()
            .zip(["a", "b", "c", "d", "e"])
        {
            laughs.push_str(&format!(
                "{name}: &{name} [*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of},*{of}]\n"
            ));
        }
        for (text, words) in [
            (laughs.as_str(), "Too large"),
            (&"- &a x\n".repeat(CONFIG_BYTES_MAX / 7), "Too large"),
            (&"#\n".repeat(CONFIG_BYTES_MAX), "bytes"),
            ("a: 1\na: 2\n", "The key \"a\" occurs twice"),
            ("a: [", "Invalid YAML"),
        ] {
            let wrong = parse::<Value>(text).unwrap_err();
            assert!(wrong.message.contains(words), "{}", wrong.message);
        }
        assert_eq!(parse::<Value>("a: 1\na: 2\n").unwrap_err().line, Some(2));
    }
}
