//! Converts between a build's `config` and the fields of the editor.

use std::collections::BTreeSet;

use errand_core::connection::{all_of, connection_of, is_all_of};
use errand_core::policy;
use errand_store::Connection;
use serde_json::{Map, Value, json};

use super::FieldError;
use crate::web::assignments::yaml;
use crate::web::form::Fields;

/// The choices in a tool's row, in this order.
pub(super) const POLICIES: [&str; 5] = ["allow", "ask", "guard", "deny", "off"];
const PLAYBOOK_MODEL: &str = "builtin/playbook";

/// The fields for a configuration. For a connection that the configuration lists, each tool shows its configured
/// policy, or `off` if the build does not have the tool. For other connections, each tool shows its default policy,
/// which applies once the connection is selected.
pub(super) fn of_config(config: &Value, connections: &[Connection]) -> Fields {
    let empty = Map::new();
    let data = config
        .get("data")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let mut fields = Fields::default();
    fields.set("model", &model_of(data));
    fields.set("instructions", &instructions_of(data));
    let tools = data.get("tools").and_then(Value::as_object);
    let by_default = |name: &str| policy::BUILTIN.iter().any(|(known, _)| *known == name);
    for name in policy::names() {
        let word = match tools {
            // Without `tools`, a build has the sandbox tools and the tools that ask people.
            None if by_default(name) => "allow",
            None => "off",
            Some(tools) => tools.get(name).and_then(Value::as_str).unwrap_or("off"),
        };
        fields.set(&format!("tool.{name}"), word);
    }
    for (name, word) in tools.into_iter().flatten() {
        if policy::builtin(name).is_none() && is_all_of(name).is_none() {
            fields.set(&format!("tool.{name}"), word.as_str().unwrap_or("off"));
        }
    }
    for connection in connections {
        let listed = lists(data, &connection.id.to_string());
        for (tool, policy) in words_of(data, connection, listed) {
            fields.set(&format!("tool.{tool}"), policy);
        }
    }
    let assignments = data.get("assignments").and_then(Value::as_array);
    for id in assignments.into_iter().flatten().filter_map(Value::as_str) {
        fields.add("assignment", id);
    }
    if data.get("human_in_the_loop") != Some(&Value::Bool(false)) {
        fields.set("people", "on");
    }
    let inside = |of: &str, name: &str| {
        let value = data.get(of).and_then(|object| object.get(name));
        value.map(plain_text).unwrap_or_default()
    };
    fields.set("expires_in", &inside("human_requests", "expires_in"));
    fields.set("on_expire", &inside("human_requests", "on_expire"));
    for name in ["steps", "tokens", "cost_usd", "seconds", "children"] {
        fields.set(&format!("limit_{name}"), &inside("limits", name));
    }
    let connections = data.get("connections").and_then(Value::as_array);
    for id in connections.into_iter().flatten().filter_map(Value::as_str) {
        fields.add("connection", id);
    }
    if let Some(playbook) = data.get("playbook").filter(|value| !value.is_null()) {
        fields.set("playbook", &yaml(playbook));
    }
    fields
}

/// Whether a configuration lists a connection.
fn lists(data: &Map<String, Value>, id: &str) -> bool {
    let listed = data.get("connections").and_then(Value::as_array);
    listed.is_some_and(|ids| ids.iter().any(|of| of.as_str() == Some(id)))
}

/// The choice shown for each tool of a connection.
fn words_of<'c>(
    data: &Map<String, Value>,
    connection: &'c Connection,
    listed: bool,
) -> Vec<(&'c str, &'static str)> {
    let tools = data.get("tools").and_then(Value::as_object);
    let word = |name: &str| tools.and_then(|tools| tools.get(name));
    let of_all = word(&all_of(&connection.name));
    let view = connection.view();
    let mut words = Vec::new();
    for tool in connection.tools.iter().flatten() {
        let by_default = || view.default_policy(tool).as_str();
        let said = match (word(&tool.name), of_all) {
            (Some(own), _) => own.as_str().map_or("off", known),
            (None, Some(all)) if all.is_null() || all == "default" => by_default(),
            (None, Some(all)) => all.as_str().map_or("off", known),
            (None, None) if listed => "off",
            (None, None) => by_default(),
        };
        words.push((tool.name.as_str(), said));
    }
    words
}

/// The choice for a policy word; unknown words count as `off`.
fn known(word: &str) -> &'static str {
    POLICIES
        .into_iter()
        .find(|known| *known == word)
        .unwrap_or("off")
}

/// The `tools` that a form describes: one entry per tool of the selected connections. If none of a connection's rows
/// was changed, the configuration keeps its own notation, such as `mail__*`.
fn tools_of(
    sent: &Fields,
    data: &Map<String, Value>,
    connections: &[Connection],
) -> Map<String, Value> {
    let ticked: Vec<&str> = sent.all("connection").collect();
    let before = data.get("tools").and_then(Value::as_object);
    let mut said: Map<String, Value> = Map::new();
    for name in tools(sent) {
        let owner = connections
            .iter()
            .find(|of| connection_of(&name) == Some(&of.name));
        let is_had = owner.is_none_or(|of| ticked.contains(&of.id.to_string().as_str()));
        let word = sent
            .given(&format!("tool.{name}"))
            .filter(|word| *word != "off");
        if let Some(word) = word.filter(|_| is_had) {
            said.insert(name, json!(word));
        }
    }
    for connection in connections {
        let id = connection.id.to_string();
        let rows = words_of(data, connection, true);
        let is_untouched = (rows.iter())
            .all(|(tool, word)| sent.given(&format!("tool.{tool}")).unwrap_or("off") == *word);
        if !(ticked.contains(&id.as_str()) && lists(data, &id) && is_untouched) {
            continue;
        }
        said.retain(|name, _| connection_of(name) != Some(&connection.name));
        let own = before.into_iter().flatten();
        let own = own.filter(|(name, _)| connection_of(name) == Some(&connection.name));
        said.extend(own.map(|(name, word)| (name.clone(), word.clone())));
    }
    said
}

/// A value as YAML, or as JSON if it cannot be represented as YAML.
pub(in crate::web::assignments) fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_else(|_| crate::web::text::pretty(value))
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn model_of(data: &Map<String, Value>) -> String {
    let models = data.get("models");
    let agent = models.and_then(|models| models.get("agent"));
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    text(models)
        .or_else(|| text(agent))
        .or_else(|| text(agent.and_then(|agent| agent.get("model"))))
        .unwrap_or_default()
}

/// The instructions, if they are a single message. An opening of several messages is not shown as text; [`to_config`]
/// keeps it unchanged.
fn instructions_of(data: &Map<String, Value>) -> String {
    match data.get("input") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(list)) => match list.as_slice() {
            [one] if one.get("role").and_then(Value::as_str) == Some("system") => {
                one.get("content").map(plain_text).unwrap_or_default()
            }
            _ => String::new(),
        },
        _ => String::new(),
    }
}

/// All tools that have a row in the form, built-in ones first.
pub(super) fn tools(fields: &Fields) -> Vec<String> {
    let mut names: Vec<String> = policy::names().map(str::to_owned).collect();
    let others: BTreeSet<String> = fields
        .names()
        .filter_map(|name| name.strip_prefix("tool."))
        .filter(|name| policy::builtin(name).is_none())
        .map(str::to_owned)
        .collect();
    names.extend(others);
    names
}

/// Applies the fields to the previous configuration.
pub(super) fn to_config(
    sent: &Fields,
    base: Value,
    connections: &[Connection],
) -> Result<Value, FieldError> {
    let mut config = base;
    let data = match config.get_mut("data").and_then(Value::as_object_mut) {
        Some(data) => data,
        None => {
            config = json!({ "version": "v2", "data": {} });
            return to_config(sent, config, connections);
        }
    };
    set_model(data, sent);
    let instructions = sent.get("instructions").replace("\r\n", "\n");
    if instructions != instructions_of(data) {
        if instructions.trim().is_empty() {
            data.remove("input");
        } else {
            data.insert("input".to_owned(), json!(instructions));
        }
    }
    let tools = tools_of(sent, data, connections);
    data.insert("tools".to_owned(), Value::Object(tools));
    for (field, name) in [("connection", "connections"), ("assignment", "assignments")] {
        let ids: Vec<&str> = sent.all(field).collect();
        if ids.is_empty() {
            data.remove(name);
        } else {
            data.insert(name.to_owned(), json!(ids));
        }
    }
    if sent.is_on("people") {
        data.remove("human_in_the_loop");
    } else {
        data.insert("human_in_the_loop".to_owned(), json!(false));
    }
    let mut requests = inside(data, "human_requests");
    set_text(&mut requests, "expires_in", sent.given("expires_in"));
    let on_expire = sent
        .given("on_expire")
        .filter(|word| *word != "deny" || requests.contains_key("on_expire"));
    set_text(&mut requests, "on_expire", on_expire);
    put_back(data, "human_requests", requests);
    let mut limits = inside(data, "limits");
    for name in ["steps", "tokens", "cost_usd", "seconds", "children"] {
        let field = format!("limit_{name}");
        match sent.given(&field) {
            None => {
                limits.remove(name);
            }
            Some(text) => {
                let number: serde_json::Number = text
                    .parse()
                    .map_err(|_| FieldError::new(&field, "Must be a number."))?;
                limits.insert(name.to_owned(), Value::Number(number));
            }
        }
    }
    put_back(data, "limits", limits);
    set_playbook(data, sent)?;
    Ok(config)
}

fn set_model(data: &mut Map<String, Value>, sent: &Fields) {
    let model = sent.given("model").unwrap_or_default();
    if model == model_of(data) {
        return;
    }
    if model.is_empty() {
        data.remove("models");
        return;
    }
    data.insert("models".to_owned(), json!({ "agent": { "model": model } }));
}

fn inside(data: &Map<String, Value>, name: &str) -> Map<String, Value> {
    let object = data.get(name).and_then(Value::as_object);
    object.cloned().unwrap_or_default()
}

fn put_back(data: &mut Map<String, Value>, name: &str, object: Map<String, Value>) {
    if object.is_empty() {
        data.remove(name);
    } else {
        data.insert(name.to_owned(), Value::Object(object));
    }
}

fn set_text(object: &mut Map<String, Value>, name: &str, text: Option<&str>) {
    match text {
        None => object.remove(name),
        Some(text) => object.insert(name.to_owned(), json!(text)),
    };
}

fn set_playbook(data: &mut Map<String, Value>, sent: &Fields) -> Result<(), FieldError> {
    let text = sent.get("playbook").replace("\r\n", "\n");
    if text.trim().is_empty() {
        data.remove("playbook");
        return Ok(());
    }
    let playbook: Value = yaml::parse(&text).map_err(|error| FieldError {
        field: "playbook".to_owned(),
        message: error.message,
        line: error.line,
    })?;
    // A list without a mapping around it is the steps.
    let playbook = if playbook.is_array() {
        json!({ "steps": playbook })
    } else {
        playbook
    };
    data.insert("playbook".to_owned(), playbook);
    if sent.given("model").is_none() {
        data.insert(
            "models".to_owned(),
            json!({ "agent": { "model": PLAYBOOK_MODEL } }),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Value {
        json!({ "version": "v2", "data": {
            "models": {"agent": {"model": "builtin/playbook", "temperature": 0.2}},
            "input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            "tools": {"read_file": "allow", "write_file": "ask", "crm.search": "guard"},
            "limits": {"steps": 5, "cost_usd": 1.5},
            "human_requests": {"expires_in": "3d", "on_expire": "deny"},
            "connections": ["x"],
            "of_a_later_version": {"a": 1},
            "playbook": {"steps": [{"say": "Hello {{ message }}: \"quoted\""}, {"finish": "a\nb\n"}]},
        }})
    }

    #[test]
    fn a_config_that_is_not_touched_stays_as_it_is() {
        let config = config();
        assert_eq!(
            to_config(&of_config(&config, &[]), config.clone(), &[]).ok(),
            Some(config)
        );
    }

    #[test]
    fn only_edited_fields_change() {
        let mut fields = of_config(&config(), &[]);
        fields.set("limit_steps", "9");
        fields.set("tool.write_file", "off");
        fields.set("people", "");
        let changed = to_config(&fields, config(), &[]).ok().unwrap();
        let mut expected = config();
        expected["data"]["limits"]["steps"] = json!(9);
        expected["data"]["tools"]
            .as_object_mut()
            .unwrap()
            .remove("write_file");
        expected["data"]["human_in_the_loop"] = json!(false);
        assert_eq!(changed, expected);
    }

    #[test]
    fn without_a_word_on_tools_all_are_allowed() {
        let fields = of_config(&json!({"version": "v2", "data": {}}), &[]);
        assert_eq!(fields.get("tool.ask_human"), "allow");
        assert_eq!(fields.get("people"), "on");
    }

    fn mail() -> Connection {
        let tool = |name: &str, reads: bool| {
            json!({"name": format!("mail__{name}"), "server_name": name, "input_schema": {},
                "hints": {"read_only": reads, "open_world": false}})
        };
        let tools = json!([tool("read", true), tool("send", false)]);
        Connection {
            id: "01997e5e-7c00-7000-8000-000000000001".parse().unwrap(),
            team: "01997e5e-7c00-7000-8000-000000000002".parse().unwrap(),
            name: "mail".to_owned(),
            setup: errand_store::Setup::Stdio {
                command: "mail".to_owned(),
                env: std::collections::BTreeMap::new(),
            },
            floors: errand_store::Floors::new(),
            trusted: false,
            settings: errand_store::ToolSettingsByName::new(),
            tools: serde_json::from_value(tools).unwrap(),
            probed_at: None,
            signed_in_at: None,
            created_by: None,
            created_at: errand_core::time::Timestamp::default(),
            updated_at: errand_core::time::Timestamp::default(),
        }
    }

    #[test]
    fn a_ticked_connection_is_written_tool_by_tool_and_off_is_off() {
        let connections = [mail()];
        let id = connections[0].id.to_string();
        let of = |tools: Value, listed: bool| {
            let connections = if listed { json!([id]) } else { json!([]) };
            json!({"version": "v2", "data": {"models": "test/m", "tools": tools, "connections": connections}})
        };
        let tools_of = |config: Value, change: &dyn Fn(&mut Fields)| {
            let mut fields = of_config(&config, &connections);
            change(&mut fields);
            let made = to_config(&fields, config, &connections).ok().unwrap();
            made["data"]["tools"].clone()
        };
        // For an unlisted connection, the rows show defaults, which count once it is selected.
        assert_eq!(tools_of(of(json!({}), false), &|_| {}), json!({}));
        let tick = |fields: &mut Fields| fields.add("connection", &id);
        assert_eq!(
            tools_of(of(json!({}), false), &tick),
            json!({"mail__read": "allow", "mail__send": "guard"})
        );
        // A listed connection whose tools are not named has none.
        assert_eq!(tools_of(of(json!({}), true), &|_| {}), json!({}));
        // Unchanged rows keep their notation; changed ones are written out.
        let all = json!({"mail__*": "default", "mail__send": "off"});
        assert_eq!(tools_of(of(all.clone(), true), &|_| {}), all);
        let allow = |fields: &mut Fields| fields.set("tool.mail__send", "ask");
        assert_eq!(
            tools_of(of(all.clone(), true), &allow),
            json!({"mail__read": "allow", "mail__send": "ask"})
        );
        let off = |fields: &mut Fields| fields.set("tool.mail__read", "off");
        assert_eq!(tools_of(of(all, true), &off), json!({}));
    }

    #[test]
    fn invalid_yaml_names_its_line() {
        let mut fields = of_config(&config(), &[]);
        fields.set("playbook", "steps:\n  - say: [unclosed\n");
        let error = to_config(&fields, config(), &[]).err().unwrap();
        assert_eq!(error.field, "playbook");
        assert!(error.line.is_some(), "{}", error.message);
    }
}
