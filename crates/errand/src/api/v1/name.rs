//! Names in requests.

use errand_core::display::is_name;
use errand_core::limits::NAME_CHARS_MAX;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A name of 1 to 200 characters in one line, at least one of them visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if is_name(&text) {
            Ok(Self(text))
        } else {
            Err(D::Error::custom(format!(
                "must have 1 to {NAME_CHARS_MAX} characters in one line, at least one of them visible"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_length() {
        let fits = |text: &str| serde_json::from_value::<Name>(serde_json::json!(text)).is_ok();
        assert!(fits("a"));
        assert!(fits(&"é".repeat(200)));
        assert!(!fits(""));
        assert!(!fits("  "));
        assert!(!fits("\u{200b}"));
        assert!(!fits("a\u{0}b"));
        assert!(!fits("a\nb"));
        assert!(!fits(&"a".repeat(201)));
    }
}
