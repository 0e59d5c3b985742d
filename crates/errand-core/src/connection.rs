//! Connections as builds refer to them: their names, the names of their tools, and the policies that follow from hints.
//!
//! # Guarantees
//!
//! - The name under which a connection's tool is offered is accepted by every provider (at most 64 of `[A-Za-z0-9_-]`)
//!   and is stable; two tools of one connection never share a name.
//! - If several settings apply to one tool, its policy is the strictest of them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::policy::{Hints, Policy, Settle};

/// Separates a connection's name from its tool's name.
pub const SEPARATOR: &str = "__";
/// Maximum length of a connection's name, in characters: it leaves enough for the tool's name.
pub const NAME_CHARS_MAX: usize = 24;
/// Maximum length of a tool's name that all providers accept, in characters.
pub const TOOL_NAME_CHARS_MAX: usize = 64;
/// Hexadecimal digits of the digest that keeps truncated names distinct.
const DIGEST_CHARS: usize = 8;

/// Whether a text is a valid connection name: lowercase letters, digits and single `-` or `_`, starting with a letter.
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

/// Whether a tool's name has the form of a connection's tool.
#[must_use]
pub fn is_tool(name: &str) -> bool {
    connection_of(name).is_some()
}

/// The connection in a tool's name.
#[must_use]
pub fn connection_of(tool: &str) -> Option<&str> {
    let (connection, rest) = tool.split_once(SEPARATOR)?;
    (is_name(connection) && !rest.is_empty()).then_some(connection)
}

/// The name in a build that selects all tools of a connection, such as `mail__*`.
#[must_use]
pub fn all_of(connection: &str) -> String {
    format!("{connection}{SEPARATOR}*")
}

/// The inverse of [`all_of`]: the connection whose tools a name selects.
#[must_use]
pub fn is_all_of(name: &str) -> Option<&str> {
    let connection = name.strip_suffix('*')?.strip_suffix(SEPARATOR)?;
    is_name(connection).then_some(connection)
}

/// The name under which a server's tool is offered. Characters that providers reject are replaced, long names are
/// truncated, and in both cases a digest of the server's own name is appended.
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
    let digest: String = hex::encode(Sha256::digest(tool.as_bytes()))
        .chars()
        .take(DIGEST_CHARS)
        .collect();
    let kept: String = whole
        .chars()
        .take(TOOL_NAME_CHARS_MAX - DIGEST_CHARS - 1)
        .collect();
    format!("{kept}_{digest}")
}

/// The names under which a server's tools are offered, in the same order. `None` for a tool whose name is already
/// taken.
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

/// A server's claims about a tool (MCP's annotations), with MCP's defaults if the server makes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "MCP's hints, and which of them the server states explicitly"
)]
pub struct ToolHints {
    /// Changes nothing.
    #[serde(default)]
    pub read_only: bool,
    /// May remove or overwrite data.
    #[serde(default = "yes")]
    pub destructive: bool,
    /// Repeating a call with the same arguments has no further effect.
    #[serde(default)]
    pub idempotent: bool,
    /// Reaches beyond the server itself.
    #[serde(default = "yes")]
    pub open_world: bool,
    /// The server states `destructive` explicitly.
    #[serde(default)]
    pub says_destructive: bool,
    /// The server states `open_world` explicitly. Tools probed before this field existed count as stating it, which is
    /// the stricter side.
    #[serde(default = "yes")]
    pub says_open_world: bool,
}

fn yes() -> bool {
    true
}

impl ToolHints {
    /// Whether the server states explicitly that the tool may destroy data.
    #[must_use]
    pub fn is_destructive(self) -> bool {
        self.says_destructive && self.destructive
    }

    /// Whether the tool counts as read-only. One that also claims to be destructive does not.
    #[must_use]
    pub fn reads(self) -> bool {
        self.read_only && !self.is_destructive()
    }
}

/// A team admin's settings for a tool. They override what its server claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolSettings {
    /// The tool reaches the open world: it reads public content, and its arguments leave the team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_world: Option<bool>,
    /// The team's own people and programs write its results. Has no effect on a tool that reaches the open world.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted: Option<bool>,
}

/// A tool as the last probe found it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ProbedTool {
    /// The name under which it is offered to models.
    pub name: String,
    pub server_name: String,
    #[serde(default)]
    pub description: String,
    /// The JSON schema of its arguments.
    pub input_schema: Value,
    pub hints: ToolHints,
}

impl ProbedTool {
    /// Identifies this version of the tool, to detect changes on the server. `says_open_world` is omitted: policies
    /// follow from the last probe, so that a server that no longer states it changes nothing.
    #[must_use]
    pub fn digest(&self) -> String {
        let ToolHints {
            read_only,
            destructive,
            idempotent,
            open_world,
            says_destructive,
            says_open_world: _,
        } = self.hints;
        let exact = serde_json::json!([
            self.server_name,
            self.description,
            self.input_schema,
            {
                "read_only": read_only,
                "destructive": destructive,
                "idempotent": idempotent,
                "open_world": open_world,
                "says_destructive": says_destructive,
            }
        ]);
        hex::encode(Sha256::digest(exact.to_string().as_bytes()))
    }

    /// Whether the tool reaches the open world: the admins' setting, else the server's claim, else whether an argument
    /// looks like an address.
    #[must_use]
    pub fn is_open(&self, settings: ToolSettings) -> bool {
        settings.open_world.unwrap_or_else(|| {
            if self.hints.says_open_world {
                self.hints.open_world
            } else {
                takes_address(&self.input_schema)
            }
        })
    }

    /// The default policy: read-only tools are allowed, or guarded if they reach the open world, because their
    /// arguments leave the team; tools that claim to be destructive ask; all others are guarded.
    #[must_use]
    pub fn policy(&self, settings: ToolSettings) -> Policy {
        if self.hints.reads() {
            if self.is_open(settings) {
                Policy::Guard
            } else {
                Policy::Allow
            }
        } else if self.hints.is_destructive() {
            Policy::Ask
        } else {
            Policy::Guard
        }
    }

    /// The hints for the engine. `trusted`: the admins trust the results of the connection's closed tools, unless the
    /// tool's own setting differs.
    #[must_use]
    pub fn engine_hints(&self, settings: ToolSettings, trusted: bool) -> Hints {
        let (reads, open) = (self.hints.reads(), self.is_open(settings));
        let again = reads || self.hints.idempotent;
        Hints {
            read_only: reads,
            destructive: !reads && self.hints.destructive,
            idempotent: again,
            open_world: open,
            asks: false,
            untrusted: open || !settings.trusted.unwrap_or(trusted),
            private: !open,
            settle: if again {
                Settle::RunAgain
            } else {
                Settle::AskPerson
            },
        }
    }
}

/// Maximum parts of a schema that are searched for addresses. A larger schema counts as taking one.
const SCHEMA_PARTS_MAX: usize = 20_000;

/// Names of address formats in JSON Schema, and common variants of them.
const ADDRESS_FORMATS: [&str; 13] = [
    "uri",
    "uri-reference",
    "uri-template",
    "iri",
    "iri-reference",
    "url",
    "email",
    "idn-email",
    "hostname",
    "idn-hostname",
    "ipv4",
    "ipv6",
    "host",
];

/// Words that suggest an address in an argument's name (`pageUrl`, `target_host`, `to`).
const ADDRESS_WORDS: [&str; 40] = [
    "url",
    "urls",
    "uri",
    "uris",
    "iri",
    "link",
    "links",
    "href",
    "hrefs",
    "address",
    "addresses",
    "endpoint",
    "endpoints",
    "host",
    "hosts",
    "hostname",
    "hostnames",
    "domain",
    "domains",
    "site",
    "sites",
    "website",
    "websites",
    "webhook",
    "webhooks",
    "callback",
    "origin",
    "ip",
    "to",
    "cc",
    "bcc",
    "recipient",
    "recipients",
    "receiver",
    "receivers",
    "email",
    "emails",
    "mail",
    "destination",
    "server",
];

/// Whether the caller may choose an address: by an argument's format or its name.
fn takes_address(schema: &Value) -> bool {
    let mut parts = vec![schema];
    let mut seen = 0;
    while let Some(part) = parts.pop() {
        seen += 1;
        if seen > SCHEMA_PARTS_MAX {
            return true;
        }
        match part {
            Value::Object(map) => {
                let format = map.get("format").and_then(Value::as_str);
                if format
                    .is_some_and(|f| ADDRESS_FORMATS.contains(&f.to_ascii_lowercase().as_str()))
                {
                    return true;
                }
                let properties = map.get("properties").and_then(Value::as_object);
                if properties.is_some_and(|names| names.keys().any(|name| suggests_address(name))) {
                    return true;
                }
                parts.extend(map.values());
            }
            Value::Array(items) => parts.extend(items),
            _ => {}
        }
    }
    false
}

/// Whether a word of an argument's name suggests an address. `baseURL`, `base_url` and `base-url` have two words each.
fn suggests_address(name: &str) -> bool {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        let begins = !c.is_alphanumeric() || (c.is_uppercase() && before.is_lowercase());
        if begins {
            words.push(String::new());
        }
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.iter().any(|word| {
        // `url2` names an address as well as `url` does.
        let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
        ADDRESS_WORDS.contains(&word)
    })
}

/// The parts of a connection that decide which tools a build has.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionView<'a> {
    pub name: &'a str,
    /// Its tools, as the last probe found them. `None` before the first probe.
    pub tools: Option<&'a [ProbedTool]>,
    /// Minimum policies that no build can undercut, by the tool's offered name, or `*` for all tools without an entry.
    pub floors: &'a BTreeMap<String, Policy>,
    /// The admins' settings, by the tool's offered name.
    pub settings: &'a BTreeMap<String, ToolSettings>,
}

impl<'a> ConnectionView<'a> {
    /// The admins' settings for a tool.
    #[must_use]
    pub fn settings_of(&self, tool: &str) -> ToolSettings {
        self.settings.get(tool).copied().unwrap_or_default()
    }

    /// Finds a tool by its offered name.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&'a ProbedTool> {
        self.tools?.iter().find(|tool| tool.name == name)
    }

    /// The minimum policy of a tool. A `*` of `guard` does not apply to tools that only read within the team's own
    /// systems, because they send nothing out of the team.
    #[must_use]
    pub fn floor(&self, name: &str) -> Policy {
        if let Some(floor) = self.floors.get(name) {
            return *floor;
        }
        let of_all = self.floors.get("*").copied().unwrap_or(Policy::Allow);
        let reads_inside = || {
            let settings = self.settings_of(name);
            let tool = self.tool(name);
            tool.is_some_and(|tool| tool.hints.reads() && !tool.is_open(settings))
        };
        if of_all == Policy::Guard && reads_inside() {
            return Policy::Allow;
        }
        of_all
    }

    /// The policy of a tool if the build does not set one.
    #[must_use]
    pub fn default_policy(&self, tool: &ProbedTool) -> Policy {
        let by_hints = tool.policy(self.settings_of(&tool.name));
        by_hints.or_stricter(self.floor(&tool.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn offered_names_fit_every_provider_and_stay_distinct() {
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
    fn a_tool_name_contains_its_connection() {
        assert_eq!(connection_of("mail__search__all"), Some("mail"));
        for none in ["read_file", "__x", "mail__", "Mail__x", "a b__c"] {
            assert_eq!(connection_of(none), None, "{none}");
        }
        for bad in ["", "Mail", "a__b", "a_", "1a", &"a".repeat(25)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    fn tool(hints: ToolHints, schema: Value) -> ProbedTool {
        ProbedTool {
            name: "web__get".to_owned(),
            server_name: "get".to_owned(),
            description: String::new(),
            input_schema: schema,
            hints,
        }
    }

    /// The hints of a server that states nothing.
    fn silent() -> ToolHints {
        ToolHints {
            read_only: false,
            destructive: true,
            idempotent: false,
            open_world: true,
            says_destructive: false,
            says_open_world: false,
        }
    }

    #[test]
    fn policies_follow_from_hints() {
        let says = |read_only, destructive, says_destructive| ToolHints {
            read_only,
            destructive,
            says_destructive,
            ..silent()
        };
        let policy = |hints| tool(hints, json!({})).policy(ToolSettings::default());
        assert_eq!(policy(says(true, true, false)), Policy::Allow);
        assert_eq!(policy(says(true, false, true)), Policy::Allow);
        // The server contradicts itself: assume the stricter side.
        assert_eq!(policy(says(true, true, true)), Policy::Ask);
        assert_eq!(policy(says(false, true, true)), Policy::Ask);
        assert_eq!(policy(says(false, true, false)), Policy::Guard);
        assert_eq!(policy(says(false, false, true)), Policy::Guard);
        let engine = |hints| tool(hints, json!({})).engine_hints(ToolSettings::default(), false);
        assert_eq!(engine(says(false, true, false)).settle, Settle::AskPerson);
        assert_eq!(engine(says(true, true, false)).settle, Settle::RunAgain);
        assert_eq!(engine(says(true, true, true)).settle, Settle::AskPerson);
        assert!(!engine(says(true, true, true)).read_only);
    }

    #[test]
    fn reading_the_open_world_is_guarded_by_default() {
        let reads = ToolHints {
            read_only: true,
            ..silent()
        };
        let says_open = |open_world| ToolHints {
            open_world,
            says_open_world: true,
            ..reads
        };
        let query = json!({"type": "object", "properties": {"query": {"type": "string"}}});
        let argument =
            |name: &str, schema: Value| json!({"type": "object", "properties": {name: schema}});
        let string = || json!({"type": "string"});
        let mut cases = vec![
            (says_open(true), query.clone(), Policy::Guard),
            (says_open(false), argument("url", string()), Policy::Allow),
            (reads, query.clone(), Policy::Allow),
            (
                reads,
                argument("page", json!({"type": "string", "format": "uri"})),
                Policy::Guard,
            ),
            (
                reads,
                argument(
                    "options",
                    argument("deep", json!({"items": {"format": "hostname"}})),
                ),
                Policy::Guard,
            ),
        ];
        for name in [
            "url",
            "pageURL",
            "target_host",
            "link1",
            "to",
            "Recipient-Address",
            "webhookUrl",
        ] {
            cases.push((reads, argument(name, string()), Policy::Guard));
        }
        for name in ["total", "curl", "ghost", "tomorrow", "id"] {
            cases.push((reads, argument(name, string()), Policy::Allow));
        }
        for (hints, schema, policy) in cases {
            let tool = tool(hints, schema);
            assert_eq!(tool.policy(ToolSettings::default()), policy, "{tool:?}");
            // An admin's setting overrides it.
            for open in [true, false] {
                let settings = ToolSettings {
                    open_world: Some(open),
                    trusted: None,
                };
                assert_eq!(tool.policy(settings) == Policy::Guard, open);
                let hints = tool.engine_hints(settings, false);
                assert_eq!((hints.open_world, hints.private), (open, !open));
            }
        }
    }

    #[test]
    fn only_closed_tools_declared_as_trusted_are_trusted() {
        let says = |open_world| ToolHints {
            open_world,
            says_open_world: true,
            ..silent()
        };
        let untrusted = |open, setting, trusted| {
            let settings = ToolSettings {
                open_world: None,
                trusted: setting,
            };
            let tool = tool(says(open), json!({}));
            tool.engine_hints(settings, trusted).untrusted
        };
        assert!(untrusted(false, None, false));
        assert!(!untrusted(false, Some(true), false));
        assert!(!untrusted(false, None, true));
        assert!(untrusted(false, Some(false), true));
        assert!(untrusted(true, Some(true), true));
    }

    #[test]
    fn a_general_guard_floor_spares_closed_read_only_tools() {
        let named = |name: &str, read_only, open_world| ProbedTool {
            name: name.to_owned(),
            ..tool(
                ToolHints {
                    read_only,
                    open_world,
                    says_open_world: true,
                    ..silent()
                },
                json!({}),
            )
        };
        let tools = [
            named("m__read", true, false),
            named("m__search", true, true),
            named("m__send", false, false),
        ];
        let settings = BTreeMap::new();
        let floor = |floors: &BTreeMap<String, Policy>, name: &str| {
            let view = ConnectionView {
                name: "m",
                tools: Some(&tools),
                floors,
                settings: &settings,
            };
            view.floor(name)
        };
        let guard = BTreeMap::from([("*".to_owned(), Policy::Guard)]);
        assert_eq!(floor(&guard, "m__read"), Policy::Allow);
        assert_eq!(floor(&guard, "m__search"), Policy::Guard);
        assert_eq!(floor(&guard, "m__send"), Policy::Guard);
        assert_eq!(floor(&guard, "m__unknown"), Policy::Guard);
        let ask = BTreeMap::from([("*".to_owned(), Policy::Ask)]);
        assert_eq!(floor(&ask, "m__read"), Policy::Ask);
        let by_name = BTreeMap::from([("m__read".to_owned(), Policy::Guard)]);
        assert_eq!(floor(&by_name, "m__read"), Policy::Guard);
    }
}
