//! Connections as builds name them: names, names of tools, policies by hints.
//!
//! Promised: the name under which a connection's tool is offered fits every provider (at most 64 of `[A-Za-z0-9_-]`), is
//! the same each time, and two tools of one connection never share one; a policy that several have a word on is the
//! strictest of their words.

use std::collections::{BTreeMap, BTreeSet};

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

/// What stands for all tools of a connection, in a build.
#[must_use]
pub fn all_of(connection: &str) -> String {
    format!("{connection}{SEPARATOR}*")
}

/// The connection, where a name stands for all of its tools.
#[must_use]
pub fn is_all_of(name: &str) -> Option<&str> {
    let connection = name.strip_suffix('*')?.strip_suffix(SEPARATOR)?;
    is_name(connection).then_some(connection)
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
#[expect(
    clippy::struct_excessive_bools,
    reason = "MCP's hints, and which of them the server says itself"
)]
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
    /// Whether the server says itself how far the tool reaches. Of what was probed before this was kept: yes, the stricter
    /// side.
    #[serde(default = "yes")]
    pub says_open_world: bool,
}

fn yes() -> bool {
    true
}

impl ToolHints {
    /// Whether the server says that the tool may destroy.
    #[must_use]
    pub fn destroys(self) -> bool {
        self.says_destructive && self.destructive
    }

    /// Whether the tool counts as one that changes nothing. One that also says that it may destroy does not.
    #[must_use]
    pub fn reads(self) -> bool {
        self.read_only && !self.destroys()
    }
}

/// What admins of the team say of a tool, above what its server says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolSettings {
    /// Whether it reaches the open world: what it reads is public, and its arguments leave the team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_world: Option<bool>,
    /// Whether the team's own people and programs write what it gives. Only for a tool that does not reach the open world.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted: Option<bool>,
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
    /// Tells a tool from what it was before. Policies follow from the probe, so that what a server does not say any more
    /// changes nothing.
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
        hex(&Sha256::digest(exact.to_string().as_bytes()))
    }

    /// Whether it reaches the open world: as the team's admins say, else as its server says, else where it takes an
    /// address.
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

    /// The policy that follows: what only reads is allowed, or guarded where it reaches the open world, since its
    /// arguments leave the team; what the server says may destroy asks; all else is guarded.
    #[must_use]
    pub fn policy(&self, settings: ToolSettings) -> Policy {
        if self.hints.reads() {
            if self.is_open(settings) {
                Policy::Guard
            } else {
                Policy::Allow
            }
        } else if self.hints.destroys() {
            Policy::Ask
        } else {
            Policy::Guard
        }
    }

    /// What the engine goes by. `trusted`: the team's admins trust what the connection's closed tools give, where they do
    /// not say it of the tool itself.
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

/// Most parts of a schema that are looked at; one that has more counts as taking an address.
const SCHEMA_PARTS_MAX: usize = 20_000;

/// Formats of addresses, as JSON Schema names them.
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

/// Words that name an address, in the name of an argument (`pageUrl`, `target_host`, `to`).
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

/// Whether arguments hold an address that a caller may choose: by the format of one, or by its name.
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
                if properties.is_some_and(|names| names.keys().any(|name| names_address(name))) {
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

/// Whether one of an argument's words names an address. `baseURL`, `base_url` and `base-url` are two words.
fn names_address(name: &str) -> bool {
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
        let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
        ADDRESS_WORDS.contains(&word)
    })
}

/// A connection, as far as it says which tools a build has.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its tools, by the last probe; none where there was none.
    pub tools: Option<&'a [ProbedTool]>,
    /// Policies below which no build can go: by the tool's offered name, or `*` for all that are not named.
    pub floors: &'a BTreeMap<String, Policy>,
    /// What admins say of its tools, by the offered name.
    pub settings: &'a BTreeMap<String, ToolSettings>,
}

impl<'a> ConnectionView<'a> {
    /// What admins say of a tool.
    #[must_use]
    pub fn settings_of(&self, tool: &str) -> ToolSettings {
        self.settings.get(tool).copied().unwrap_or_default()
    }

    /// One of its tools, by its offered name.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&'a ProbedTool> {
        self.tools?.iter().find(|tool| tool.name == name)
    }

    /// The floor of one of its tools. That of all tools leaves one that only reads within the team's systems alone, where
    /// it is `guard`: what it reads sends nothing.
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

    /// The policy of a tool where a build leaves it to the tool's hints.
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

    fn tool(hints: ToolHints, schema: Value) -> ProbedTool {
        ProbedTool {
            name: "web__get".to_owned(),
            server_name: "get".to_owned(),
            description: String::new(),
            input_schema: schema,
            hints,
        }
    }

    /// As of a server that says nothing.
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
        // It contradicts itself: the stricter side.
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
    fn what_reads_the_open_world_is_guarded_by_default() {
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
            // An admin may say otherwise.
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
    fn only_what_is_closed_and_named_is_trusted() {
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
    fn a_floor_of_guard_for_all_leaves_closed_reading_alone() {
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
