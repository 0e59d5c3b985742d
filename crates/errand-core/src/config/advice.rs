//! Advice to a build's author: settings that are valid but probably do not do what the author expects.

use super::BuildConfig;
use crate::connection::{all_of, connection_of};
use crate::policy::Policy;
use crate::warning::Warning;

/// Returns warnings about a build. `connections`: the names of the connections that it lists, in the same order.
/// `within`: the path prefix of the config in a request, such as `build.`.
#[must_use]
pub fn warnings(build: &BuildConfig, connections: &[&str], within: &str) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut warn = |path: String, message: String| {
        found.push(Warning::new(format!("{within}config.data.{path}"), message));
    };
    for (place, name) in connections.iter().enumerate() {
        let is_named = build.all_of.contains_key(*name)
            || (build.tools.keys()).any(|tool| connection_of(tool) == Some(name));
        if !is_named {
            let all = all_of(name);
            warn(
                format!("connections[{place}]"),
                format!(
                    "data.tools names no tool of the connection {name}, so it offers nothing; name its tools there, or all of them with \"{all}\": \"default\""
                ),
            );
        }
    }
    let has = |tool: &str| {
        build
            .tools
            .get(tool)
            .is_some_and(|policy| *policy != Policy::Deny)
    };
    if build.tools.get("fetch_url") == Some(&Policy::Allow) && build.reach.hosts.is_none() {
        warn(
            "tools.fetch_url".to_owned(),
            "\"allow\" without data.fetch_url.allow allows the model to send anything that the run has read to any address, as part of the URL; use \"guard\", or list the permitted hosts in data.fetch_url.allow".to_owned(),
        );
    }
    if has("run_assignment") && build.reach.assignments.is_empty() {
        warn(
            "tools.run_assignment".to_owned(),
            "data.assignments is empty, so the tool cannot start anything; list the ids of the assignments that it may start there".to_owned(),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn paths(data: Value) -> Vec<String> {
        let mut data = data;
        data["models"] = json!("test/m");
        data["connections"] = json!([
            "01997e5e-7c00-7000-8000-000000000001",
            "01997e5e-7c00-7000-8000-000000000002"
        ]);
        let build = BuildConfig::parse(&json!({"version": "v2", "data": data})).unwrap();
        let found = warnings(&build, &["mail", "crm"], "");
        found.into_iter().map(|warning| warning.path).collect()
    }

    #[test]
    fn settings_without_effect_and_open_fetching_are_reported() {
        let (mail, crm) = ("config.data.connections[0]", "config.data.connections[1]");
        assert_eq!(paths(json!({})), [mail, crm]);
        assert_eq!(
            paths(json!({"tools": {"mail__*": "default", "crm__find": "off"}})),
            [crm]
        );
        assert_eq!(
            paths(
                json!({"tools": {"mail__*": "ask", "crm__find": "allow", "fetch_url": "allow", "run_assignment": "allow"}})
            ),
            [
                "config.data.tools.fetch_url",
                "config.data.tools.run_assignment"
            ]
        );
        assert!(
            paths(json!({"tools": {"mail__*": "ask", "crm__*": null, "fetch_url": "guard"}}))
                .is_empty()
        );
        assert!(paths(json!({"tools": {"mail__*": "ask", "crm__*": null, "fetch_url": "allow"}, "fetch_url": {"allow": ["example.com"]}})).is_empty());
    }
}
