//! The part of a build's `config` that sets what it reaches outside its sandbox: connections, secrets, hosts,
//! assignments.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{BadConfig, bad};
use crate::id::{AgentId, ConnectionId};
use crate::{place, secret};

/// Maximum connections of a build.
const CONNECTIONS_MAX: usize = 32;
/// Maximum hosts in an allow list.
const HOSTS_MAX: usize = 1_000;

/// Maximum assignments that a build may start.
const ASSIGNMENTS_MAX: usize = 1_000;

/// The connections, secrets, hosts and assignments that a build may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The connections whose tools the build may have.
    pub connections: Vec<ConnectionId>,
    /// The secrets that arguments of its calls may name: those listed, plus those that its playbook refers to.
    pub secrets: BTreeSet<String>,
    /// The hosts that `fetch_url` may contact. `None`: every public host.
    pub hosts: Option<Vec<HostPattern>>,
    /// The assignments that `run_assignment` may start.
    pub assignments: Vec<AgentId>,
}

/// A host, or with a leading `*.` all of its subdomains. Without a port it only matches the default port of the URL's
/// scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    name: String,
    below: bool,
    port: Option<u16>,
}

impl HostPattern {
    /// Reads `example.com`, `*.example.com`, `example.com:8443` or `[2001:db8::1]:8443`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let (name, port) = match name.rsplit_once(':') {
            // An IPv6 address without brackets cannot occur in a URL; one in brackets may end with a port.
            Some((name, port)) if name.ends_with(']') || !name.contains(':') => {
                let digits = port.bytes().all(|b| b.is_ascii_digit());
                let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0);
                (name, Some(port?))
            }
            _ => (name, None),
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
            port,
        })
    }

    /// Whether the pattern matches a host and port of a parsed URL. `port`: `None` if it is the scheme's default;
    /// `default`: the scheme's default.
    #[must_use]
    pub fn matches(&self, host: &str, port: Option<u16>, default: Option<u16>) -> bool {
        let ports_fit = match self.port {
            None => port.is_none(),
            Some(own) => port.or(default) == Some(own),
        };
        ports_fit && self.is_host(host)
    }

    fn is_host(&self, host: &str) -> bool {
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
    /// Reads these settings. `of_playbook`: the secrets that the playbook refers to.
    pub(super) fn parse(data: &Value, of_playbook: BTreeSet<String>) -> Result<Self, BadConfig> {
        let given = |key: &str| data.get(key).filter(|value| !value.is_null());
        if let Some(map) = data.as_object() {
            for (key, value) in map.iter().filter(|(key, _)| *key != "playbook") {
                if let Some(at) = secret::first_named_in(&place::of_key("data", key), value) {
                    return Err(bad(
                        at,
                        "secrets are only allowed in the arguments of `fetch_url` and of connections' tools (and in the headers and the environment of a connection)",
                    ));
                }
            }
        }
        let mut secrets = of_playbook;
        if let Some(list) = given("secrets") {
            secrets.extend(parse_list(
                "data.secrets",
                list,
                "names of secrets",
                |text| secret::is_name(text).then(|| text.to_owned()),
            )?);
        }
        let connections = match given("connections") {
            None => Vec::new(),
            Some(list) => parse_list("data.connections", list, "ids of connections", |text| {
                text.parse().ok()
            })?,
        };
        let distinct: BTreeSet<ConnectionId> = connections.iter().copied().collect();
        if distinct.len() != connections.len() || connections.len() > CONNECTIONS_MAX {
            return Err(bad(
                "data.connections",
                format!("must be at most {CONNECTIONS_MAX} ids, without duplicates"),
            ));
        }
        let assignments = match given("assignments") {
            None => Vec::new(),
            Some(list) => parse_list("data.assignments", list, "ids of agents", |text| {
                text.parse().ok()
            })?,
        };
        if assignments.len() > ASSIGNMENTS_MAX {
            return Err(bad(
                "data.assignments",
                format!("must be at most {ASSIGNMENTS_MAX} ids"),
            ));
        }
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
            "must be an object such as {\"allow\": [\"example.com\", \"*.example.org\"]}",
        ));
    };
    let hosts = parse_list(
        path,
        list,
        "hosts, such as example.com, *.example.com or example.com:8443",
        HostPattern::parse,
    )?;
    if hosts.len() > HOSTS_MAX {
        return Err(bad(path, format!("must be at most {HOSTS_MAX} hosts")));
    }
    Ok(hosts)
}

fn parse_list<T>(
    path: &str,
    value: &Value,
    what: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, BadConfig> {
    let list = value
        .as_array()
        .ok_or_else(|| bad(path, format!("must be a list of {what}")))?;
    let items = list.iter().enumerate().map(|(index, item)| {
        item.as_str().and_then(&parse).ok_or_else(|| {
            bad(
                format!("{path}[{index}]"),
                format!("the list must contain {what}"),
            )
        })
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
    fn hosts_match_exactly_or_as_subdomains() {
        let hosts = of(json!({"fetch_url": {"allow": ["Example.com", "*.example.org"]}}))
            .unwrap()
            .hosts
            .unwrap();
        let allowed = |host: &str| {
            let mut patterns = hosts.iter();
            patterns.any(|pattern| pattern.matches(host, None, Some(443)))
        };
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
    fn a_host_without_a_port_matches_only_the_default_port() {
        let matches = |pattern: &str, host: &str, port: Option<u16>| {
            let pattern = HostPattern::parse(pattern).unwrap();
            pattern.matches(host, port, Some(443))
        };
        assert!(matches("example.com", "example.com", None));
        assert!(!matches("example.com", "example.com", Some(8443)));
        assert!(matches("example.com:8443", "example.com", Some(8443)));
        assert!(!matches("example.com:8443", "example.com", None));
        assert!(matches("example.com:443", "example.com", None));
        assert!(matches("*.example.com:8443", "a.example.com", Some(8443)));
        assert!(!matches("*.example.com", "a.example.com", Some(8443)));
        assert!(matches("[2001:db8::1]:8080", "[2001:db8::1]", Some(8080)));
        assert!(matches("[2001:db8::1]", "[2001:db8::1]", None));
        for bad in [
            "example.com:",
            "example.com:0",
            "example.com:99999",
            "example.com:+80",
            ":80",
            "a:b:80x",
        ] {
            assert_eq!(
                HostPattern::parse(bad).filter(|p| p.port.is_some()),
                None,
                "{bad}"
            );
        }
    }

    #[test]
    fn an_error_names_the_wrong_setting() {
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
