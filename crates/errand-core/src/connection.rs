//! Connections as builds name them: names, names of tools, policies by hints.
//!
//! Promised: the name under which a connection's tool is offered fits every provider (at most 64 of `[A-Za-z0-9_-]`), is
//! the same each time, and two tools of one connection never share one; a policy that several have a word on is the
//! strictest of their words.

use std::collections::BTreeSet;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::policy::{Hints, Policy, Settle};
use crate::transcript::hex;

/// What stands between a connection's name and its tool's.
pub const SEPARATOR: &str = "__";
/// Most characters of a connection's name: enough is left for the tool's.
pub const NAME_CHARS_MAX: usize = 24;
/// Most characters of a tool's name, by what providers take.
pub const TOOL_NAME_CHARS_MAX: usize = 64;
/// Characters of the digest in a name that was cut.
const DIGEST_CHARS: usize = 8;

/// Whether a text can be a connection's name: small letters, digits and single `-` or `_`, a letter first.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME_CHARS_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('_')
        && !text.contains(SEPARATOR)
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
}

/// Whether a tool's name is that of a connection's tool.
#[must_use]
pub fn is_tool(name: &str) -> bool {
    connection_of(name).is_some()
}

/// The name of the connection that a tool belongs to by its name.
#[must_use]
pub fn connection_of(tool: &str) -> Option<&str> {
    let (connection, rest) = tool.split_once(SEPARATOR)?;
    (is_name(connection) && !rest.is_empty()).then_some(connection)
}

/// The name under which a server's tool is offered. What providers do not take is replaced, what is too long cut, and
/// then a digest of the server's name stands at the end.
#[must_use]
pub fn offered_name(connection: &str, tool: &str) -> String {
    let plain: String = tool
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') {
                c
            } else {
                '_'
            }
        })
        .collect();
    let whole = format!("{connection}{SEPARATOR}{plain}");
    if plain == tool && !plain.is_empty() && whole.len() <= TOOL_NAME_CHARS_MAX {
        return whole;
    }
    let digest: String = hex(&Sha256::digest(tool.as_bytes()))
        .chars()
        .take(DIGEST_CHARS)
        .collect();
    let kept: String = whole
        .chars()
        .take(TOOL_NAME_CHARS_MAX - DIGEST_CHARS - 1)
        .collect();
    format!("{kept}_{digest}")
}

/// The names under which a server's tools are offered, in their order; none for one that no name is left for.
#[must_use]
pub fn offered_names<'t>(
    connection: &str,
    tools: impl IntoIterator<Item = &'t str>,
) -> Vec<Option<String>> {
    let mut taken = BTreeSet::new();
    tools
        .into_iter()
        .map(|tool| {
            let name = offered_name(connection, tool);
            taken.insert(name.clone()).then_some(name)
        })
        .collect()
}

/// What a server says of a tool (MCP's annotations), with MCP's meaning where it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ToolHints {
    /// Changes nothing.
    #[serde(default)]
    pub read_only: bool,
    /// May remove or overwrite.
    #[serde(default = "yes")]
    pub destructive: bool,
    /// Twice is as good as once.
    #[serde(default)]
    pub idempotent: bool,
    /// Reaches beyond the server itself.
    #[serde(default = "yes")]
    pub open_world: bool,
    /// Whether the server says itself that the tool may destroy, or says nothing.
    #[serde(default)]
    pub says_destructive: bool,
}

fn yes() -> bool {
    true
}

impl ToolHints {
    /// The policy that follows: what reads is allowed, what the server says may destroy asks, all else is guarded.
    #[must_use]
    pub fn policy(self) -> Policy {
        if self.read_only {
            Policy::Allow
        } else if self.says_destructive && self.destructive {
            Policy::Ask
        } else {
            Policy::Guard
        }
    }

    /// What the engine goes by. `trusted`: the team's admins trust what the connection's closed tools give.
    #[must_use]
    pub fn hints(self, trusted: bool) -> Hints {
        let again = self.read_only || self.idempotent;
        Hints {
            read_only: self.read_only,
            destructive: !self.read_only && self.destructive,
            idempotent: again,
            open_world: true,
            asks: false,
            untrusted: self.open_world || !trusted,
            settle: if again {
                Settle::RunAgain
            } else {
                Settle::AskPerson
            },
        }
    }
}

/// A tool as the last probe found it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ProbedTool {
    /// The name under which it is offered.
    pub name: String,
    /// The server's own name for it.
    pub server_name: String,
    /// What the server says of it.
    #[serde(default)]
    pub description: String,
    /// The JSON schema of its arguments.
    pub input_schema: Value,
    /// What the server says that it does.
    pub hints: ToolHints,
}

impl ProbedTool {
    /// Tells a tool from what it was before.
    #[must_use]
    pub fn digest(&self) -> String {
        let exact = serde_json::json!([
            self.server_name,
            self.description,
            self.input_schema,
            self.hints
        ]);
        hex(&Sha256::digest(exact.to_string().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_every_provider_and_stay_apart() {
        assert_eq!(offered_name("mail", "search"), "mail__search");
        let (dot, slash) = (offered_name("mail", "a.b"), offered_name("mail", "a/b"));
        assert!(
            dot.starts_with("mail__a_b_") && dot != slash,
            "{dot} {slash}"
        );
        let long = offered_name("a-connection-of-24-chars", &"x".repeat(80));
        assert_eq!(long.len(), TOOL_NAME_CHARS_MAX);
        assert_ne!(
            long,
            offered_name("a-connection-of-24-chars", &"x".repeat(81))
        );
        assert!(!offered_name("m", "").is_empty());
        for name in [dot, slash, long] {
            assert!(name.len() <= TOOL_NAME_CHARS_MAX);
            assert!(
                name.chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
            );
        }
        assert_eq!(
            offered_names("m", ["a", "a"]),
            [Some("m__a".to_owned()), None]
        );
    }

    #[test]
    fn a_tool_names_its_connection() {
        assert_eq!(connection_of("mail__search__all"), Some("mail"));
        for none in ["read_file", "__x", "mail__", "Mail__x", "a b__c"] {
            assert_eq!(connection_of(none), None, "{none}");
        }
        for bad in ["", "Mail", "a__b", "a_", "1a", &"a".repeat(25)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn policies_follow_from_hints() {
        let says = |read_only, destructive, says_destructive| ToolHints {
            read_only,
            destructive,
            idempotent: false,
            open_world: true,
            says_destructive,
        };
        assert_eq!(says(true, true, true).policy(), Policy::Allow);
        assert_eq!(says(false, true, true).policy(), Policy::Ask);
        assert_eq!(says(false, true, false).policy(), Policy::Guard);
        assert_eq!(says(false, false, true).policy(), Policy::Guard);
        assert_eq!(
            says(false, true, false).hints(false).settle,
            Settle::AskPerson
        );
        assert_eq!(
            says(true, true, false).hints(false).settle,
            Settle::RunAgain
        );
        let closed = ToolHints {
            open_world: false,
            ..says(true, false, true)
        };
        assert!(closed.hints(false).untrusted);
        assert!(!closed.hints(true).untrusted);
    }
}
