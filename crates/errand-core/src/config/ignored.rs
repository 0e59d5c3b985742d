//! Settings of a build that are stored and returned but have no effect on this server.

use serde_json::Value;

use super::aliases::has_suffix;
use crate::warning::Warning;

/// Maximum warnings about one build, because a config may contain any number of unknown keys.
const WARNINGS_MAX: usize = 100;

/// The keys of `data` that have an effect.
const DATA: [&str; 11] = [
    "models",
    "input",
    "tools",
    "connections",
    "secrets",
    "assignments",
    "fetch_url",
    "limits",
    "human_in_the_loop",
    "human_requests",
    "playbook",
];

/// The roles of models that have an effect.
const MODELS: [&str; 1] = ["agent"];

/// The keys of objects in `data` that have an effect.
const WITHIN: [(&str, &[&str]); 3] = [
    (
        "limits",
        &["steps", "tokens", "cost_usd", "seconds", "children"],
    ),
    ("human_requests", &["expires_in", "on_expire"]),
    ("fetch_url", &["allow"]),
];

/// Settings that this server does not implement, and the alternative here.
const SETTINGS: [(&str, &str); 7] = [
    (
        "skills",
        "connections give a build tools: list them in data.connections and name their tools in data.tools",
    ),
    (
        "plugins",
        "connections give a build tools: list them in data.connections and name their tools in data.tools",
    ),
    (
        "subAgents",
        "to start runs of other assignments, list them in data.assignments and use the tool run_assignment",
    ),
    ("options", "remove it"),
    (
        "instructions",
        "the model never sees it, so move the text to data.input",
    ),
    (
        "files",
        "upload files to a sandbox and start the run with its sandbox_id",
    ),
    (
        "output_schema",
        "results are not validated; describe the expected form in data.input",
    ),
];

/// Returns warnings about settings without effect. `within`: the path prefix of the config in a request, such as
/// `build.`.
#[must_use]
pub fn ignored(config: &Value, within: &str) -> Vec<Warning> {
    let mut found = Vec::new();
    let Some(data) = config.get("data") else {
        return found;
    };
    let at = |path: &str| format!("{within}config.data.{path}");
    for (name, instead) in SETTINGS {
        if data.get(name).is_some_and(is_set) {
            let message = format!("stored, but without effect here; {instead}");
            found.push(Warning::new(at(name), message));
        }
    }
    let is_setting = |name: &str| SETTINGS.iter().any(|(known, _)| *known == name);
    for name in unknown_keys(data, &DATA).filter(|name| !is_setting(name)) {
        found.push(unknown(at(name), "data", &DATA));
    }
    for (object, known) in WITHIN {
        for name in data
            .get(object)
            .into_iter()
            .flat_map(|value| unknown_keys(value, known))
        {
            found.push(unknown(at(&format!("{object}.{name}")), object, known));
        }
    }
    let roles = data.get("models").into_iter();
    for role in roles.flat_map(|models| unknown_keys(models, &MODELS)) {
        found.push(Warning::new(
            at(&format!("models.{role}")),
            "stored, but without effect here: the model of models.agent is used for everything",
        ));
    }
    let agent = data.get("models").and_then(|models| models.get("agent"));
    for (name, value) in agent.and_then(Value::as_object).into_iter().flatten() {
        if name != "model" && is_set(value) {
            found.push(Warning::new(
                at(&format!("models.agent.{name}")),
                "stored, but without effect here: the provider's default applies",
            ));
        }
    }
    let model = agent.and_then(|agent| agent.get("model").unwrap_or(agent).as_str());
    if model.is_some_and(has_suffix) {
        found.push(Warning::new(
            at("models.agent.model"),
            "the suffix is removed before the provider is asked; the size of the context window comes from the server's own table",
        ));
    }
    bounded(found, &at(""))
}

/// The unknown keys of an object whose values are more than a placeholder.
fn unknown_keys<'v>(
    object: &'v Value,
    known: &'static [&'static str],
) -> impl Iterator<Item = &'v str> {
    object
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !known.contains(&name.as_str()) && is_set(value))
        .map(|(name, _)| name.as_str())
}

fn unknown(path: String, object: &str, known: &[&str]) -> Warning {
    let known = known.join(", ");
    Warning::new(
        path,
        format!("unknown setting: stored, but without effect here; {object} supports {known}"),
    )
}

/// Truncates the warnings, and appends one with the number of the others. `data`: the common path.
fn bounded(mut found: Vec<Warning>, data: &str) -> Vec<Warning> {
    let more = found.len().saturating_sub(WARNINGS_MAX);
    if more > 0 {
        found.truncate(WARNINGS_MAX);
        found.push(Warning::new(
            data.trim_end_matches('.'),
            format!("{more} more settings have no effect here"),
        ));
    }
    found
}

/// Whether a setting is more than the placeholder that some clients always send.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) | Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(data: &Value) -> Vec<String> {
        let config = json!({"version": "v2", "data": data});
        let warnings = ignored(&config, "build.");
        warnings.into_iter().map(|warning| warning.path).collect()
    }

    #[test]
    fn settings_without_effect_are_reported() {
        let data = json!({
            "skills": ["Gmail"], "plugins": [1], "subAgents": {"a": 1}, "options": {"x": true}, "instructions": "Ask first.",
            "files": ["a"], "models": {"agent": {"model": "claude-sonnet-4-5[1m]", "thinking": "high"}, "browsing": {"model": "x"}}
        });
        let named = [
            "skills",
            "plugins",
            "subAgents",
            "options",
            "instructions",
            "files",
            "models.browsing",
            "models.agent.thinking",
            "models.agent.model",
        ];
        assert_eq!(
            paths(&data),
            named.map(|name| format!("build.config.data.{name}"))
        );
    }

    #[test]
    fn unknown_keys_are_reported_with_the_known_ones() {
        let data = json!({
            "models": "gpt-5", "text": "x", "limits": {"steps": 5, "step": 5, "minutes": null},
            "human_requests": {"expires_in": "1h", "expire_in": "2h"}, "fetch_url": {"allow": ["a.example"], "hosts": ["b.example"]}
        });
        let named = [
            "text",
            "limits.step",
            "human_requests.expire_in",
            "fetch_url.hosts",
        ];
        assert_eq!(
            paths(&data),
            named.map(|name| format!("build.config.data.{name}"))
        );
        let config = json!({"version": "v2", "data": data});
        let limits = ignored(&config, "").swap_remove(1);
        assert!(
            limits
                .message
                .ends_with("limits supports steps, tokens, cost_usd, seconds, children"),
            "{limits:?}"
        );
    }

    #[test]
    fn the_number_of_warnings_is_bounded() {
        let keys = (0..1000).map(|number| (format!("key_{number}"), json!(1)));
        let data = Value::Object(keys.collect());
        let warnings = ignored(&json!({"version": "v2", "data": data}), "");
        assert_eq!(warnings.len(), WARNINGS_MAX + 1);
        let last = warnings.last().unwrap();
        assert_eq!(last.path, "config.data");
        assert!(
            last.message.starts_with("900 more settings"),
            "{}",
            last.message
        );
    }

    #[test]
    fn placeholders_are_not_reported() {
        let data = json!({
            "skills": [], "plugins": null, "subAgents": {}, "options": {}, "instructions": "", "files": [],
            "models": {"agent": {"model": "gpt-5", "thinking": null}}
        });
        assert_eq!(paths(&data), [""; 0]);
        assert_eq!(paths(&json!({"models": "gpt-5"})), [""; 0]);
        assert_eq!(paths(&json!(5)), [""; 0]);
    }
}
