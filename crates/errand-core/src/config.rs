//! A build's `config`, parsed into types.
//!
//! # Guarantees
//!
//! The stored text of a config is never changed. Unknown settings are kept there and ignored here, so that configs
//! written for other versions are accepted.

mod advice;
mod aliases;
#[cfg(test)]
mod fuzz;
mod ignored;
mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::connection;
use crate::human::OnExpire;
use crate::playbook::{Known, Playbook};
use crate::policy::{self, Policy};
use crate::time::parse_duration_ms;
use crate::{limits, place};

pub use advice::warnings;
pub use aliases::ModelAliases;
pub use ignored::ignored;
pub use reach::{HostPattern, Reach};

/// A model as `provider/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    /// Such as `builtin`, `anthropic`, `openai`, `gemini`.
    pub provider: String,
    /// The model's name at the provider.
    pub name: String,
}

impl ModelName {
    /// The built-in model, which needs no network.
    pub const PLAYBOOK: (&'static str, &'static str) = ("builtin", "playbook");

    #[must_use]
    pub fn is_playbook(&self) -> bool {
        (self.provider.as_str(), self.name.as_str()) == Self::PLAYBOOK
    }

    /// Reads `provider/name`, or a bare name whose prefix identifies the provider.
    fn parse(text: &str) -> Option<Self> {
        let of = |provider: &str, name: &str| Self {
            provider: provider.to_owned(),
            name: name.to_owned(),
        };
        if let Some((provider, name)) = text.split_once('/') {
            return (!provider.is_empty() && !name.is_empty()).then(|| of(provider, name));
        }
        let known = [
            ("claude-", "anthropic"),
            ("gpt-", "openai"),
            ("chatgpt-", "openai"),
            ("gemini-", "gemini"),
        ];
        // `o3`, `o4-mini`: an o and a number.
        let is_o = text
            .strip_prefix('o')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if is_o {
            return Some(of("openai", text));
        }
        known
            .into_iter()
            .find(|(start, _)| text.starts_with(start))
            .map(|(_, provider)| of(provider, text))
    }
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.provider, self.name)
    }
}

/// One message of an `input` that is a list. All of them are part of what the model sees first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

/// The limits of a run. `None`: no limit.
#[derive(Clone, Debug, PartialEq)]
pub struct RunLimits {
    /// Model calls plus tool calls.
    pub steps: Option<u64>,
    /// Input plus output tokens.
    pub tokens: Option<u64>,
    /// US dollars.
    pub cost_usd: Option<f64>,
    /// Active time, in seconds.
    pub seconds: u64,
    /// Runs started below this one, at all depths together.
    pub children: u64,
    /// `tokens` is what the calling run had left, not the build's own limit.
    pub tokens_of_caller: bool,
    /// `cost_usd` is what the calling run had left, not the build's own limit.
    pub cost_of_caller: bool,
}

impl RunLimits {
    /// The smaller of these limits and what the calling run had left.
    #[must_use]
    pub fn within(mut self, left: Left) -> Self {
        if let Some(tokens) = left.tokens
            && self.tokens.is_none_or(|own| tokens < own)
        {
            self.tokens = Some(tokens);
            self.tokens_of_caller = true;
        }
        if let Some(usd) = left.cost_usd
            && self.cost_usd.is_none_or(|own| usd < own)
        {
            self.cost_usd = Some(usd);
            self.cost_of_caller = true;
        }
        self
    }
}

/// The rest of the limits that a run shares with the runs below it. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// Input plus output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// US dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}

/// Defaults for human requests that do not set these themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDefaults {
    /// How long a request can be answered, in milliseconds. `None`: it never expires.
    pub expires_in_ms: Option<u64>,
    /// The consequence if it expires.
    pub on_expire: OnExpire,
}

/// A build's `config`, parsed.
#[derive(Clone)]
pub struct BuildConfig {
    /// The model that decides.
    pub model: ModelName,
    /// The system prompt, or the messages that open the conversation.
    pub input: Vec<InputMessage>,
    /// The tools that the build names individually, with their policies. Without `data.tools`: the sandbox's tools and
    /// those that ask people.
    pub tools: BTreeMap<String, Policy>,
    /// Connections of which the build has all tools except those it names individually, with one policy for them.
    /// `None`: each tool gets the policy of its hints.
    pub all_of: BTreeMap<String, Option<Policy>>,
    /// Tools excluded from `all_of`.
    pub off: BTreeSet<String>,
    /// Whether the config has `data.tools`.
    pub has_tools: bool,
    pub limits: RunLimits,
    /// Whether the build may ask people.
    pub human_in_the_loop: bool,
    /// Defaults for human requests.
    pub human_requests: RequestDefaults,
    /// The steps of `builtin/playbook`.
    pub playbook: Option<Arc<Playbook>>,
    /// The connections, secrets, hosts and assignments that the build may use.
    pub reach: Reach,
}

/// A `config` that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("config.{path}: {message}")]
pub struct BadConfig {
    /// The setting, such as `data.tools.read_files` or `data.playbook.steps[2].with.path`.
    pub path: String,
    /// The problem, or the expected form.
    pub message: String,
}

fn bad(path: impl Into<String>, message: impl Into<String>) -> BadConfig {
    BadConfig {
        path: path.into(),
        message: message.into(),
    }
}

impl BuildConfig {
    /// Reads `{"version": "v2", "data": {…}}`.
    ///
    /// # Errors
    /// [`BadConfig`] for the first setting that is not valid.
    pub fn parse(config: &Value) -> Result<Self, BadConfig> {
        Self::parse_with(config, &ModelAliases::default())
    }

    /// Like [`BuildConfig::parse`], with the operator's aliases for models.
    ///
    /// # Errors
    /// [`BadConfig`] for the first setting that is not valid.
    pub fn parse_with(config: &Value, aliases: &ModelAliases) -> Result<Self, BadConfig> {
        let whole = config.as_object().ok_or_else(|| BadConfig {
            path: String::new(),
            message: "must be an object: {\"version\": \"v2\", \"data\": {…}}".to_owned(),
        })?;
        match whole.get("version").and_then(Value::as_str) {
            Some("v2") => {}
            Some(other) => {
                let other = place::start_of(other);
                return Err(bad(
                    "version",
                    format!("{other:?} is not supported; must be \"v2\""),
                ));
            }
            None => return Err(bad("version", "is missing; must be \"v2\"")),
        }
        let empty = Value::Object(serde_json::Map::new());
        let data = match whole.get("data") {
            Some(data) if data.is_object() => data,
            Some(_) => return Err(bad("data", "must be an object")),
            None => &empty,
        };
        let human_in_the_loop = match data.get("human_in_the_loop") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(value)) => *value,
            Some(_) => return Err(bad("data.human_in_the_loop", "must be true or false")),
        };
        let NamedTools { tools, all_of, off } = tools(data.get("tools"), human_in_the_loop)?;
        let playbook = playbook(data.get("playbook"), &tools, human_in_the_loop)?;
        let model = model(data.get("models"), playbook.is_some(), aliases)?;
        if model.is_playbook() && playbook.is_none() {
            return Err(bad(
                "data.playbook",
                "is missing; the model builtin/playbook reads its steps from it",
            ));
        }
        let of_playbook = playbook.as_ref().map(|p| p.secrets().clone());
        let reach = Reach::parse(data, of_playbook.unwrap_or_default())?;
        let mut named = tools
            .keys()
            .cloned()
            .chain(all_of.keys().map(|of| connection::all_of(of)));
        if reach.connections.is_empty()
            && let Some(name) = named.find(|name| connection::is_tool(name))
        {
            return Err(bad(
                place::of_key("data.tools", &name),
                "is a tool of a connection, but the build lists no connection; add the connection's id to data.connections",
            ));
        }
        Ok(Self {
            reach,
            model,
            input: input(data.get("input"))?,
            tools,
            all_of,
            off,
            has_tools: data.get("tools").is_some_and(|tools| !tools.is_null()),
            limits: run_limits(data.get("limits"))?,
            human_in_the_loop,
            human_requests: human_requests(data.get("human_requests"))?,
            playbook,
        })
    }

    /// Whether the config names a tool, individually or with all tools of its connection.
    #[must_use]
    pub fn names(&self, tool: &str) -> bool {
        let all_of = || {
            let connection = connection::connection_of(tool)?;
            (self.all_of.contains_key(connection) && !self.off.contains(tool)).then_some(())
        };
        self.tools.contains_key(tool) || all_of().is_some()
    }
}

fn model(
    value: Option<&Value>,
    has_playbook: bool,
    aliases: &ModelAliases,
) -> Result<ModelName, BadConfig> {
    let of = |path: &str, text: &str| {
        aliases.model(text).ok_or_else(|| {
            let text = place::start_of(text);
            bad(path, format!("{text:?} does not identify a provider; must be <provider>/<model>, such as builtin/playbook, a name that begins with claude-, gpt-, o1 (o3, o4-mini …) or gemini-, or an alias from [models.aliases]; the only suffix in brackets that is supported is [1m]"))
        })
    };
    let Some(models) = value.filter(|v| !v.is_null()) else {
        if has_playbook {
            let (provider, name) = ModelName::PLAYBOOK;
            return Ok(ModelName {
                provider: provider.to_owned(),
                name: name.to_owned(),
            });
        }
        return Err(bad(
            "data.models",
            "is missing; must be {\"agent\": {\"model\": \"<provider>/<model>\"}}",
        ));
    };
    if let Some(text) = models.as_str() {
        return of("data.models", text);
    }
    let agent = models.get("agent").ok_or_else(|| {
        bad(
            "data.models.agent",
            "is missing; must be {\"model\": \"<provider>/<model>\"}",
        )
    })?;
    if let Some(text) = agent.as_str() {
        return of("data.models.agent", text);
    }
    match agent.get("model").and_then(Value::as_str) {
        Some(text) => of("data.models.agent.model", text),
        None => Err(bad(
            "data.models.agent.model",
            "must be a string: <provider>/<model>",
        )),
    }
}

fn input(value: Option<&Value>) -> Result<Vec<InputMessage>, BadConfig> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![InputMessage {
            role: "system".to_owned(),
            content: text.clone(),
        }]),
        Some(Value::Array(list)) => list
            .iter()
            .enumerate()
            .map(|(index, item)| input_message(index, item))
            .collect(),
        Some(_) => Err(bad(
            "data.input",
            "must be a string, or a list of {role, content}",
        )),
    }
}

fn input_message(index: usize, item: &Value) -> Result<InputMessage, BadConfig> {
    // A text part outside a message belongs to the system prompt.
    if item.get("role").is_none() && item.get("type").is_some() {
        return Ok(InputMessage {
            role: "system".to_owned(),
            content: text_part(&format!("data.input[{index}]"), item)?.to_owned(),
        });
    }
    let text = |key: &str| {
        item.get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| bad(format!("data.input[{index}].{key}"), "must be a string"))
    };
    let role = text("role")?;
    if !["system", "user", "assistant"].contains(&role) {
        let role = place::start_of(role);
        return Err(bad(
            format!("data.input[{index}].role"),
            format!("{role:?} is not a role; must be system, user or assistant"),
        ));
    }
    Ok(InputMessage {
        role: role.to_owned(),
        content: content(index, item.get("content"))?,
    })
}

/// The content of an input message: a string, or a list of text parts that are joined with newlines.
fn content(index: usize, value: Option<&Value>) -> Result<String, BadConfig> {
    let path = format!("data.input[{index}].content");
    let parts = match value {
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        _ => return Err(bad(path, "must be a string, or a list of text parts")),
    };
    let texts: Vec<&str> = parts
        .iter()
        .enumerate()
        .map(|(at, part)| text_part(&format!("{path}[{at}]"), part))
        .collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

fn text_part<'v>(path: &str, part: &'v Value) -> Result<&'v str, BadConfig> {
    let kind = part.get("type").and_then(Value::as_str);
    if !matches!(kind, Some("text" | "input_text" | "output_text")) {
        return Err(bad(
            format!("{path}.type"),
            "only text parts are supported: {\"type\": \"input_text\", \"text\": \"…\"}",
        ));
    }
    part.get("text")
        .and_then(Value::as_str)
        .ok_or_else(|| bad(format!("{path}.text"), "must be a string"))
}

/// `data.tools`, sorted by kind of entry. The fields are those of [`BuildConfig`].
struct NamedTools {
    tools: BTreeMap<String, Policy>,
    all_of: BTreeMap<String, Option<Policy>>,
    off: BTreeSet<String>,
}

fn tools(value: Option<&Value>, human_in_the_loop: bool) -> Result<NamedTools, BadConfig> {
    let mut named = NamedTools {
        tools: BTreeMap::new(),
        all_of: BTreeMap::new(),
        off: BTreeSet::new(),
    };
    let Some(value) = value.filter(|v| !v.is_null()) else {
        let offered = policy::BUILTIN
            .into_iter()
            .filter(|(_, hints)| human_in_the_loop || !hints.asks);
        named.tools = offered
            .map(|(name, _)| (name.to_owned(), Policy::Allow))
            .collect();
        return Ok(named);
    };
    let object = value.as_object().ok_or_else(|| {
        bad(
            "data.tools",
            "must be an object: {\"<tool>\": \"allow\" | \"ask\" | \"guard\" | \"deny\" | \"off\"}",
        )
    })?;
    for (name, word) in object {
        if policy::builtin(name).is_none() && !connection::is_tool(name) {
            let known: Vec<_> = policy::names().collect();
            return Err(bad(
                place::of_key("data.tools", name),
                format!(
                    "there is no such tool; choose from: {}, and tools of connections, as <connection>__<tool>, or <connection>__* for all tools of one connection",
                    known.join(", ")
                ),
            ));
        }
        let all_of = connection::is_all_of(name);
        let is_default = word.is_null() || word == "default";
        match (all_of, word.as_str()) {
            (None, Some("off")) => {
                named.off.insert(name.clone());
            }
            (Some(_), Some("off")) => {}
            (Some(connection), _) if is_default => {
                named.all_of.insert(connection.to_owned(), None);
            }
            _ => {
                let policy: Policy = serde_json::from_value(word.clone()).map_err(|_| {
                    let more = if all_of.is_some() {
                        "\"default\", "
                    } else {
                        ""
                    };
                    bad(
                        place::of_key("data.tools", name),
                        format!("must be {more}\"allow\", \"ask\", \"guard\", \"deny\" or \"off\""),
                    )
                })?;
                match all_of {
                    Some(connection) => {
                        named.all_of.insert(connection.to_owned(), Some(policy));
                    }
                    None => {
                        named.tools.insert(name.clone(), policy);
                    }
                }
            }
        }
    }
    Ok(named)
}

fn playbook(
    value: Option<&Value>,
    tools: &BTreeMap<String, Policy>,
    human_in_the_loop: bool,
) -> Result<Option<Arc<Playbook>>, BadConfig> {
    let Some(value) = value.filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let tool = |name: &str| match (tools.get(name), policy::builtin(name)) {
        (Some(_), _) => Ok(()),
        // Checked against the last probe when the build is created, otherwise at the call.
        (None, None) if connection::is_tool(name) => Ok(()),
        (None, Some(_)) => Err(format!(
            "this build does not have the tool {name:?}; add it to data.tools"
        )),
        (None, None) => Err(format!("there is no tool {:?}", place::start_of(name))),
    };
    let known = Known {
        tool: &tool,
        human_in_the_loop,
    };
    match Playbook::parse(value, &known) {
        Ok(playbook) => Ok(Some(Arc::new(playbook))),
        Err(e) => Err(bad(format!("data.{}", e.path), e.message)),
    }
}

fn run_limits(value: Option<&Value>) -> Result<RunLimits, BadConfig> {
    let mut limits = RunLimits {
        steps: None,
        tokens: None,
        cost_usd: None,
        seconds: limits::RUN_SECONDS_DEFAULT,
        children: limits::RUN_CHILDREN_DEFAULT,
        tokens_of_caller: false,
        cost_of_caller: false,
    };
    let Some(value) = value.filter(|v| !v.is_null()) else {
        return Ok(limits);
    };
    let object = value.as_object().ok_or_else(|| {
        bad(
            "data.limits",
            "must be an object: {steps, tokens, cost_usd, seconds, children}",
        )
    })?;
    for (name, value) in object {
        let path = format!("data.limits.{name}");
        let whole = || {
            whole_number(value)
                .filter(|n| (1..=1_000_000_000_000).contains(n))
                .ok_or_else(|| bad(path.clone(), "must be a whole number, at least 1"))
        };
        match name.as_str() {
            "steps" => limits.steps = Some(whole()?),
            "tokens" => limits.tokens = Some(whole()?),
            "seconds" => limits.seconds = whole()?,
            "children" => {
                let children = whole_number(value).filter(|n| *n <= limits::RUN_CHILDREN_MAX);
                limits.children = children.ok_or_else(|| {
                    let max = limits::RUN_CHILDREN_MAX;
                    bad(
                        path.clone(),
                        format!("must be a whole number from 0 to {max}"),
                    )
                })?;
            }
            "cost_usd" => {
                let usd = value
                    .as_f64()
                    .filter(|n| n.is_finite() && *n > 0.0)
                    .ok_or_else(|| bad(path.clone(), "must be a number above 0"))?;
                limits.cost_usd = Some(usd);
            }
            _ => {} // Unknown settings are kept in the stored text and ignored.
        }
    }
    Ok(limits)
}

/// A non-negative whole number, also if it is written as `5.0`.
#[must_use]
pub fn whole_number(value: &Value) -> Option<u64> {
    /// 2^53: up to here, a double represents every whole number exactly.
    const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let double = value.as_f64()?;
        let is_whole = (0.0..EXACT_BELOW).contains(&double) && double.fract() == 0.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is whole, not negative and below 2^53"
        )]
        is_whole.then_some(double as u64)
    })
}

fn human_requests(value: Option<&Value>) -> Result<RequestDefaults, BadConfig> {
    let mut defaults = RequestDefaults::default();
    let Some(value) = value.filter(|v| !v.is_null()) else {
        return Ok(defaults);
    };
    if !value.is_object() {
        return Err(bad(
            "data.human_requests",
            "must be an object: {expires_in, on_expire}",
        ));
    }
    if let Some(text) = value.get("expires_in").filter(|v| !v.is_null()) {
        let text = text.as_str().ok_or_else(|| {
            bad(
                "data.human_requests.expires_in",
                "must be a duration, such as 12h",
            )
        })?;
        let ms = parse_duration_ms(text)
            .map_err(|e| bad("data.human_requests.expires_in", e.to_string()))?;
        defaults.expires_in_ms = Some(ms);
    }
    if let Some(word) = value.get("on_expire").filter(|v| !v.is_null()) {
        defaults.on_expire = serde_json::from_value(word.clone()).map_err(|_| {
            bad(
                "data.human_requests.on_expire",
                "must be \"deny\", \"fail\" or \"continue\"",
            )
        })?;
    }
    Ok(defaults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(data: Value) -> Result<BuildConfig, BadConfig> {
        BuildConfig::parse(&json!({"version": "v2", "data": data}))
    }

    fn path_of(data: Value) -> String {
        of(data).err().unwrap().path
    }

    #[test]
    fn the_documented_form_is_accepted() {
        let config = of(json!({"models": {"agent": {"model": "anthropic/claude-x"}}, "input": "You help.", "something_else": 1})).unwrap();
        assert_eq!(config.model.to_string(), "anthropic/claude-x");
        assert_eq!(config.input[0].role, "system");
        assert_eq!(config.tools.len(), 8);
        assert!(config.human_in_the_loop);
        assert_eq!(config.limits.seconds, 86_400);
    }

    #[test]
    fn a_bare_model_name_finds_its_provider() {
        for (name, provider) in [
            ("claude-x", "anthropic"),
            ("gpt-5", "openai"),
            ("gemini-3", "gemini"),
        ] {
            assert_eq!(
                of(json!({"models": {"agent": {"model": name}}}))
                    .unwrap()
                    .model
                    .provider,
                provider
            );
        }
        assert_eq!(
            path_of(json!({"models": {"agent": {"model": "llama"}}})),
            "data.models.agent.model"
        );
    }

    #[test]
    fn an_error_names_the_wrong_setting() {
        assert_eq!(
            BuildConfig::parse(&json!({"version": "v1", "data": {}}))
                .err()
                .unwrap()
                .path,
            "version"
        );
        let m = json!("builtin/x");
        assert_eq!(path_of(json!({})), "data.models");
        assert_eq!(
            path_of(json!({"models": "builtin/playbook"})),
            "data.playbook"
        );
        assert_eq!(
            path_of(json!({"models": m, "tools": {"read_files": "allow"}})),
            "data.tools.read_files"
        );
        assert_eq!(
            path_of(json!({"models": m, "tools": {"read_file": "maybe"}})),
            "data.tools.read_file"
        );
        assert_eq!(
            path_of(json!({"models": m, "limits": {"seconds": 0}})),
            "data.limits.seconds"
        );
        assert_eq!(
            path_of(json!({"models": m, "human_requests": {"expires_in": "soon"}})),
            "data.human_requests.expires_in"
        );
        assert_eq!(
            path_of(json!({"models": m, "human_requests": {"on_expire": "approve"}})),
            "data.human_requests.on_expire"
        );
        assert_eq!(
            path_of(json!({"models": m, "input": [{"role": "tool", "content": ""}]})),
            "data.input[0].role"
        );
        assert_eq!(
            path_of(json!({"models": m, "human_in_the_loop": "yes"})),
            "data.human_in_the_loop"
        );
    }

    #[test]
    fn whole_numbers_may_have_a_decimal_point() {
        let limits = json!({"steps": 5.0, "tokens": 5.0, "seconds": 5.0, "children": 5.0});
        let config = of(json!({"models": "builtin/x", "limits": limits})).unwrap();
        assert_eq!((config.limits.steps, config.limits.children), (Some(5), 5));
        let m = json!("builtin/x");
        let half = json!({"models": m, "limits": {"children": 0.5}});
        assert_eq!(path_of(half), "data.limits.children");
    }

    #[test]
    fn without_people_the_tools_that_ask_are_not_offered() {
        let config = of(json!({"models": "builtin/x", "human_in_the_loop": false})).unwrap();
        assert!(!config.tools.contains_key("ask_human"));
        assert!(!config.names("ask_human"));
    }
}
