//! Reads files that describe an agent, in YAML or JSON (which is YAML too).
//!
//! Three forms are accepted: that of `POST /v1/agents` (`name`, `build: {name, config}`); `name` and `config`; and a
//! short form, in which everything except `name` is the `data` of the build's configuration:
//!
//! ```yaml
//! name: Pay invoices
//! tools: {read_file: allow}
//! playbook: {steps: [...]}
//! ```
//!
//! In the short form, a `playbook` also selects the model that runs it. The API validates the configuration.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

/// Version of the build configuration in the short form.
const CONFIG_VERSION: &str = "v2";
const PLAYBOOK_MODEL: &str = "builtin/playbook";

/// Reads a file that describes an agent. `-` reads standard input.
///
/// # Errors
/// The file cannot be read or has none of the forms.
pub(super) fn read(path: &Path) -> Result<Value> {
    let text = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("standard input cannot be read")
    } else {
        std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    parse(&text?).with_context(|| format!("{} is not a valid agent file", path.display()))
}

/// Converts any of the forms to the body of `POST /v1/agents`.
///
/// # Errors
/// The text has none of the forms; the message says what is expected.
pub(super) fn parse(text: &str) -> Result<Value> {
    let value: Value = serde_saphyr::from_str(text).context("must be YAML or JSON")?;
    let Value::Object(mut fields) = value else {
        bail!("must contain `name: …` and the agent's configuration, such as `playbook: …`");
    };
    let name = match fields.remove("name") {
        Some(Value::String(name)) if !name.trim().is_empty() => name,
        Some(_) => bail!("`name` must be text; put it in quotes"),
        None => bail!("`name` is missing"),
    };
    if let Some(build) = fields.remove("build") {
        only(&fields, "build")?;
        return Ok(json!({ "name": name, "build": build }));
    }
    if let Some(config) = fields.remove("config") {
        only(&fields, "config")?;
        return Ok(json!({ "name": name, "build": { "name": name, "config": config } }));
    }
    if fields.is_empty() {
        return Ok(json!({ "name": name }));
    }
    if fields.contains_key("playbook") && !fields.contains_key("models") {
        fields.insert(
            "models".to_owned(),
            json!({ "agent": { "model": PLAYBOOK_MODEL } }),
        );
    }
    let config = json!({ "version": CONFIG_VERSION, "data": fields });
    Ok(json!({ "name": name, "build": { "name": name, "config": config } }))
}

/// Reads the body of a new build (`name`, `config`) from a file in any of the forms.
///
/// # Errors
/// The file has none of the forms, or contains no build.
pub(super) fn read_build(path: &Path) -> Result<Value> {
    let agent = read(path)?;
    let build = agent
        .get("build")
        .filter(|build| build.is_object())
        .cloned();
    build.with_context(|| format!("{} contains an agent without a build", path.display()))
}

fn only(rest: &Map<String, Value>, form: &str) -> Result<()> {
    let rest: Vec<_> = rest.keys().map(|key| format!("`{key}`")).collect();
    if rest.is_empty() {
        return Ok(());
    }
    bail!(
        "{} cannot be combined with `{form}`; remove one of them",
        rest.join(", ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn the_form_of_the_api_stays_as_it_is() {
        let text = r#"{"name": "A", "build": {"name": "b", "config": {"version": "v2", "data": {"x": 1}}}}"#;
        assert_eq!(
            parse(text).unwrap(),
            serde_json::from_str::<Value>(text).unwrap()
        );
        assert_eq!(parse("name: A").unwrap(), json!({"name": "A"}));
    }

    #[test]
    fn a_config_becomes_a_build() {
        let agent =
            parse("name: A\nconfig: {version: v2, data: {models: builtin/playbook}}").unwrap();
        let config = json!({"version": "v2", "data": {"models": "builtin/playbook"}});
        assert_eq!(
            agent,
            json!({"name": "A", "build": {"name": "A", "config": config}})
        );
    }

    #[test]
    fn the_short_form_is_the_data_of_a_build() {
        let agent = parse("name: A\ntools: {read_file: ask}\nplaybook:\n  steps:\n  - wait: 2s\n  - say: \"{{ 1 }}\"\n").unwrap();
        let data = json!({
            "tools": {"read_file": "ask"},
            "playbook": {"steps": [{"wait": "2s"}, {"say": "{{ 1 }}"}]},
            "models": {"agent": {"model": "builtin/playbook"}},
        });
        assert_eq!(
            agent,
            json!({"name": "A", "build": {"name": "A", "config": {"version": "v2", "data": data}}})
        );
        let own = parse("{name: A, models: anthropic/claude-x, input: You help.}").unwrap();
        assert_eq!(
            own["build"]["config"]["data"]["models"],
            "anthropic/claude-x"
        );
    }

    #[test]
    fn invalid_files_are_refused_with_a_reason() {
        assert!(error("- a\n").contains("must contain `name: …`"));
        assert!(error("playbook: {}").contains("`name` is missing"));
        assert!(error("name: 7").contains("must be text"));
        assert!(error("name: A\nbuild: {}\ntools: {}").contains("`tools` cannot be combined"));
        assert!(error("name: [").contains("must be YAML or JSON"));
        assert!(error("name: A\nname: B\n").contains("must be YAML or JSON"));
    }

    #[test]
    fn the_example_for_curl_is_what_the_short_form_means() {
        let text = include_str!("../../../../examples/invoices.json");
        let short = parse(include_str!("../../../../examples/invoices.yaml")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), short);
    }

    #[test]
    fn the_examples_are_of_the_short_form() {
        for text in [
            include_str!("../../../../examples/invoices.yaml"),
            include_str!("../../../../examples/ask-and-wait.yaml"),
            include_str!("../../../../examples/mailbox/triage.yaml"),
            include_str!("../../../../examples/research-brief.yaml"),
        ] {
            let agent = parse(text).unwrap();
            let config = &agent["build"]["config"];
            assert!(
                errand_core::config::BuildConfig::parse(config).is_ok(),
                "{agent}"
            );
        }
    }
}
