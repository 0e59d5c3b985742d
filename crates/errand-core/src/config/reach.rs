//! What of a build's `config` says how far it reaches: connections, secrets, pages, assignments.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{BadConfig, bad};
use crate::id::{AgentId, ConnectionId};
use crate::secret;

/// Most connections of a build.
const CONNECTIONS_MAX: usize = 32;
/// Most hosts of an allow-list.
const HOSTS_MAX: usize = 1_000;

/// How far a build reaches beyond its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The connections whose tools it has.
    pub connections: Vec<ConnectionId>,
    /// The secrets that arguments of its calls may name: those it lists, and those its playbook has marks of.
    pub secrets: BTreeSet<String>,
    /// The hosts that `fetch_url` may ask; none: every public one.
    pub hosts: Option<Vec<HostPattern>>,
    /// The assignments that `run_assignment` may start; none: every one of the team.
    pub assignments: Option<Vec<AgentId>>,
}

/// A host, or with `*.` before it all that are below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    name: String,
    below: bool,
}

impl HostPattern {
    /// Reads `example.com` or `*.example.com`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let fits = !name.is_empty()
            && name.len() <= 253
            && !name.starts_with('.')
            && !name.ends_with('.')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']'));
        fits.then(|| Self {
            name: name.to_ascii_lowercase(),
            below,
        })
    }

    /// Whether a host, as a parsed URL has it, is meant.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if self.below {
            host.strip_suffix(&self.name)
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        } else {
            host == self.name
        }
    }
}

impl Reach {
    /// Reads it. `of_playbook`: the secrets that the playbook has marks of.
    pub(super) fn parse(data: &Value, of_playbook: BTreeSet<String>) -> Result<Self, BadConfig> {
        let given = |key: &str| data.get(key).filter(|value| !value.is_null());
        if let Some(map) = data.as_object() {
            for (key, value) in map.iter().filter(|(key, _)| *key != "playbook") {
                if let Some(at) = secret::first_named_in(&format!("data.{key}"), value) {
                    return Err(bad(
                        at,
                        "a secret stands in the arguments of `fetch_url` and of connections' tools alone (and in the headers and the environment of a connection)",
                    ));
                }
            }
        }
        let mut secrets = of_playbook;
        if let Some(list) = given("secrets") {
            secrets.extend(texts("data.secrets", list, "names of secrets", |text| {
                secret::is_name(text).then(|| text.to_owned())
            })?);
        }
        let connections = match given("connections") {
            None => Vec::new(),
            Some(list) => texts("data.connections", list, "ids of connections", |text| {
                text.parse().ok()
            })?,
        };
        let distinct: BTreeSet<ConnectionId> = connections.iter().copied().collect();
        if distinct.len() != connections.len() || connections.len() > CONNECTIONS_MAX {
            return Err(bad(
                "data.connections",
                format!("it takes at most {CONNECTIONS_MAX} ids, each once"),
            ));
        }
        let assignments = given("assignments")
            .map(|list| {
                texts("data.assignments", list, "ids of agents", |text| {
                    text.parse().ok()
                })
            })
            .transpose()?;
        Ok(Self {
            connections,
            secrets,
            hosts: given("fetch_url").map(hosts).transpose()?,
            assignments,
        })
    }
}

fn hosts(value: &Value) -> Result<Vec<HostPattern>, BadConfig> {
    let path = "data.fetch_url.allow";
    let Some(list) = value.get("allow") else {
        return Err(bad(
            "data.fetch_url",
            "it takes {\"allow\": [\"example.com\", \"*.example.org\"]}",
        ));
    };
    let hosts = texts(
        path,
        list,
        "hosts, such as example.com or *.example.com",
        HostPattern::parse,
    )?;
    if hosts.len() > HOSTS_MAX {
        return Err(bad(path, format!("it takes at most {HOSTS_MAX} hosts")));
    }
    Ok(hosts)
}

fn texts<T>(
    path: &str,
    value: &Value,
    what: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, BadConfig> {
    let list = value
        .as_array()
        .ok_or_else(|| bad(path, format!("it takes a list of {what}")))?;
    let items = list.iter().enumerate().map(|(index, item)| {
        item.as_str()
            .and_then(&parse)
            .ok_or_else(|| bad(format!("{path}[{index}]"), format!("the list takes {what}")))
    });
    items.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(data: Value) -> Result<Reach, BadConfig> {
        Reach::parse(&data, BTreeSet::new())
    }

    #[test]
    fn hosts_are_matched_whole_or_below() {
        let hosts = of(json!({"fetch_url": {"allow": ["Example.com", "*.example.org"]}}))
            .unwrap()
            .hosts
            .unwrap();
        let allowed = |host: &str| hosts.iter().any(|pattern| pattern.matches(host));
        for host in [
            "example.com",
            "EXAMPLE.com.",
            "a.example.org",
            "a.b.example.org",
        ] {
            assert!(allowed(host), "{host}");
        }
        for host in [
            "a.example.com",
            "example.org",
            "badexample.com",
            ".example.org",
            "example.com.evil.test",
        ] {
            assert!(!allowed(host), "{host}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (data, path) in [
            (json!({"connections": "x"}), "data.connections"),
            (json!({"connections": ["x"]}), "data.connections[0]"),
            (json!({"secrets": ["A-B"]}), "data.secrets[0]"),
            (json!({"fetch_url": {}}), "data.fetch_url"),
            (
                json!({"fetch_url": {"allow": ["a b"]}}),
                "data.fetch_url.allow[0]",
            ),
            (json!({"assignments": [7]}), "data.assignments[0]"),
            (json!({"input": "Use {{ secret.X }}."}), "data.input"),
            (
                json!({"other": [{"{{secret.X}}": 1}]}),
                "data.other[0].{{secret.X}}",
            ),
        ] {
            assert_eq!(of(data).unwrap_err().path, path);
        }
        assert_eq!(of(json!({"secrets": ["A", "B"]})).unwrap().secrets.len(), 2);
    }
}
