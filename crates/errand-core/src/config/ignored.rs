//! Settings of a build that are kept and given back, and have no effect here.

use serde_json::Value;

use super::aliases::has_suffix;
use crate::warning::Warning;

/// Settings of the hosted product that this server does not have, and what takes their place here.
const SETTINGS: [(&str, &str); 6] = [
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
        "data.assignments with the tool run_assignment lets a build start runs of other assignments",
    ),
    ("options", "leave it out"),
    (
        "instructions",
        "the model is never told of it: put it into data.input",
    ),
    (
        "files",
        "upload files to a sandbox, and start the run with its sandbox_id",
    ),
];

/// Warnings about what is in a config and does nothing. `within`: where the config stands in a request, such as `build.`.
#[must_use]
pub fn ignored(config: &Value, within: &str) -> Vec<Warning> {
    let mut found = Vec::new();
    let Some(data) = config.get("data") else {
        return found;
    };
    let at = |path: &str| format!("{within}config.data.{path}");
    for (name, instead) in SETTINGS {
        if data.get(name).is_some_and(says_something) {
            let message = format!("it is kept and has no effect here; {instead}");
            found.push(Warning::new(at(name), message));
        }
    }
    let agent = data.get("models").and_then(|models| models.get("agent"));
    for (name, value) in agent.and_then(Value::as_object).into_iter().flatten() {
        if name != "model" && says_something(value) {
            found.push(Warning::new(
                at(&format!("models.agent.{name}")),
                "it is kept and has no effect here: the model is asked with its provider's default",
            ));
        }
    }
    let model = agent.and_then(|agent| agent.get("model").unwrap_or(agent).as_str());
    if model.is_some_and(has_suffix) {
        found.push(Warning::new(
            at("models.agent.model"),
            "the suffix is left out when the provider is asked; the size of the window is that of the server's own table",
        ));
    }
    found
}

/// Whether a setting is more than a placeholder that clients always send.
fn says_something(value: &Value) -> bool {
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
    fn what_does_nothing_here_is_named() {
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
            "models.agent.thinking",
            "models.agent.model",
        ];
        assert_eq!(
            paths(&data),
            named.map(|name| format!("build.config.data.{name}"))
        );
    }

    #[test]
    fn placeholders_are_not_warned_of() {
        let data = json!({
            "skills": [], "plugins": null, "subAgents": {}, "options": {}, "instructions": "", "files": [],
            "models": {"agent": {"model": "gpt-5", "thinking": null}}
        });
        assert_eq!(paths(&data), [""; 0]);
        assert_eq!(paths(&json!({"models": "gpt-5"})), [""; 0]);
        assert_eq!(paths(&json!(5)), [""; 0]);
    }
}
