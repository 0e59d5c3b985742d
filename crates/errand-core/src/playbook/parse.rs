//! Parsing and checking a playbook.
//!
//! Everything that can be known before a run is reported here, with the path of the key that is wrong.

use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::secrets;
use super::template::{Expression, Node, Text};
use super::{
    Action, BadPlaybook, Condition, Known, NESTING_MAX, Playbook, Question, RESERVED, Request,
    STEPS_MAX, Step,
};
use crate::time::parse_duration_ms;
use crate::{human, place};

const ACTIONS: [&str; 9] = [
    "tool", "for_each", "set", "approve", "ask", "say", "wait", "fail", "finish",
];
const STEP_KEYS: [&str; 14] = [
    "tool", "for_each", "set", "approve", "ask", "say", "wait", "fail", "finish", "with", "steps",
    "as", "if", "on_error",
];

/// Keywords of the template language: a variable with such a name could not be read.
const TEMPLATE_WORDS: [&str; 15] = [
    "true", "True", "false", "False", "none", "None", "loop", "self", "not", "and", "or", "in",
    "is", "if", "else",
];

/// Maximum templates in a light playbook.
const LIGHT_TEMPLATES_MAX: usize = 1_000;
/// Maximum strings with templates in a playbook. Each is parsed several times, which costs more than reading it.
const TEMPLATES_MAX: usize = 10_000;
/// How many characters of an unknown key are compared with the known keys.
const COMPARED_CHARS_MAX: usize = 64;

type Parsed<T> = Result<T, BadPlaybook>;

fn bad<T>(path: impl Into<String>, message: impl Into<String>) -> Parsed<T> {
    Err(BadPlaybook {
        path: path.into(),
        message: message.into(),
    })
}

pub(super) fn playbook(value: &Json, known: &Known<'_>) -> Parsed<Playbook> {
    let whole = object("playbook", value, &["steps"])?;
    if templates(value) > TEMPLATES_MAX {
        return bad(
            "playbook",
            format!(
                "must have at most {TEMPLATES_MAX} strings with templates; pass a long list to the run as a file or a message"
            ),
        );
    }
    let mut parser = Parser {
        known,
        count: 0,
        asks: false,
    };
    let steps = parser.steps("playbook.steps", whole.get("steps"), 0)?;
    let null = Json::Null;
    let secrets = secrets::of_steps("playbook.steps", whole.get("steps").unwrap_or(&null))?;
    Ok(Playbook {
        steps,
        secrets,
        asks: parser.asks,
        light: is_light(value, &mut { LIGHT_TEMPLATES_MAX }),
    })
}

/// The number of strings that are templates.
fn templates(value: &Json) -> usize {
    match value {
        Json::String(text) => usize::from(text.contains("{{") || text.contains("{%")),
        Json::Array(items) => items.iter().map(templates).sum(),
        Json::Object(fields) => fields.values().map(templates).sum(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    }
}

/// Whether no string computes: each is fixed or only inserts existing values by name. There are no loops of steps and
/// few templates (`left`), so deciding a move takes negligible time.
fn is_light(value: &Json, left: &mut usize) -> bool {
    match value {
        Json::String(text) => {
            *left = left.saturating_sub(text.matches("{{").count());
            *left > 0
                && !text.contains("{%")
                && text.split("{{").skip(1).all(|part| {
                    part.split_once("}}").is_some_and(|(inner, _)| {
                        inner.chars().all(|c| {
                            c.is_ascii_alphanumeric() || matches!(c, ' ' | '_' | '.' | '-')
                        })
                    })
                })
        }
        Json::Array(items) => items.iter().all(|item| is_light(item, left)),
        Json::Object(fields) => {
            !fields.contains_key("for_each") && fields.values().all(|field| is_light(field, left))
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => true,
    }
}

struct Parser<'a> {
    known: &'a Known<'a>,
    count: usize,
    asks: bool,
}

impl Parser<'_> {
    fn steps(&mut self, path: &str, value: Option<&Json>, depth: usize) -> Parsed<Arc<[Step]>> {
        let list = match value {
            Some(Json::Array(list)) if !list.is_empty() => list,
            Some(_) => return bad(path, "must be a list of at least one step"),
            None => return bad(path, "is missing; must be a list of steps"),
        };
        if depth > NESTING_MAX {
            return bad(
                path,
                format!("`for_each` steps can be nested at most {NESTING_MAX} deep"),
            );
        }
        self.count += list.len();
        if self.count > STEPS_MAX {
            return bad(
                path,
                format!("a playbook can have at most {STEPS_MAX} steps, including nested ones"),
            );
        }
        let steps = list
            .iter()
            .enumerate()
            .map(|(index, step)| self.step(format!("{path}[{index}]"), step, depth));
        steps.collect::<Parsed<Vec<_>>>().map(Into::into)
    }

    fn step(&mut self, path: String, value: &Json, depth: usize) -> Parsed<Step> {
        let step = object(&path, value, &STEP_KEYS)?;
        let action = only_action(&path, step)?;
        for (key, of) in [
            ("with", &["tool"][..]),
            ("steps", &["for_each"]),
            ("on_error", &["tool", "approve", "ask"]),
        ] {
            if step.contains_key(key) && !of.contains(&action) {
                return bad(
                    format!("{path}.{key}"),
                    format!(
                        "not allowed in a step with `{action}`, only with {}",
                        of.join(", ")
                    ),
                );
            }
        }
        let only_if = step
            .get("if")
            .map(|value| condition(&format!("{path}.if"), value))
            .transpose()?;
        let assigns_to = step
            .get("as")
            .map(|value| assigned_name(&format!("{path}.as"), value))
            .transpose()?;
        if assigns_to.is_some() && ["fail", "finish"].contains(&action) {
            return bad(
                format!("{path}.as"),
                format!("a `{action}` ends the run, so its value cannot be used; remove `as`"),
            );
        }
        let continues_on_error = match step.get("on_error") {
            None => false,
            Some(Json::String(word)) if word == "continue" => true,
            Some(_) => {
                return bad(
                    format!("{path}.on_error"),
                    "must be `continue`; without `on_error`, a failure ends the run",
                );
            }
        };
        let action = self.action(&path, action, step, depth)?;
        let step = Step {
            path,
            action,
            assigns_to,
            only_if,
            continues_on_error,
        };
        check_silent(&step)?;
        Ok(step)
    }

    fn action(
        &mut self,
        path: &str,
        action: &str,
        step: &Map<String, Json>,
        depth: usize,
    ) -> Parsed<Action> {
        let null = Json::Null;
        let value = step.get(action).unwrap_or(&null);
        let at = format!("{path}.{action}");
        match action {
            "tool" => {
                let name = literal_name(&at, value)?;
                if let Err(why) = (self.known.tool)(name) {
                    return bad(at, why);
                }
                let with = match step.get("with") {
                    None => Vec::new(),
                    Some(Json::Object(map)) => nodes(&format!("{path}.with"), map)?,
                    Some(_) => {
                        return bad(
                            format!("{path}.with"),
                            "must be an object: the tool's arguments",
                        );
                    }
                };
                Ok(Action::Tool {
                    name: name.to_owned(),
                    with,
                })
            }
            "for_each" => {
                let list = list(&at, value)?;
                let steps = self.steps(&format!("{path}.steps"), step.get("steps"), depth + 1)?;
                Ok(Action::ForEach { list, steps })
            }
            "set" => set(&at, value),
            "approve" | "ask" => {
                if !self.known.human_in_the_loop {
                    return bad(
                        path,
                        format!(
                            "the build sets `human_in_the_loop: false`, so a step cannot use `{action}`"
                        ),
                    );
                }
                self.asks = true;
                if action == "ask" {
                    ask(&at, value)
                } else {
                    approve(&at, value)
                }
            }
            "wait" => duration(&at, value).map(Action::Wait),
            "say" => non_empty_text(&at, value).map(Action::Say),
            "fail" => non_empty_text(&at, value).map(Action::Fail),
            _ => non_empty_text(&at, value).map(Action::Finish),
        }
    }
}

fn only_action<'s>(path: &str, step: &'s Map<String, Json>) -> Parsed<&'s str> {
    let actions: Vec<&str> = step
        .keys()
        .map(String::as_str)
        .filter(|key| ACTIONS.contains(key))
        .collect();
    match actions.as_slice() {
        [action] => Ok(action),
        [] => bad(
            path,
            format!("has no action; add one of {}", ACTIONS.join(", ")),
        ),
        several => bad(
            path,
            format!(
                "has more than one action ({}); make a step of each",
                several.join(", ")
            ),
        ),
    }
}

/// Values that are evaluated again after a restart must not depend on anything that changes while the run works.
fn check_silent(step: &Step) -> Parsed<()> {
    let in_values = match &step.action {
        Action::Set(values) => values.iter().find_map(|(_, node)| node.reads_sandbox()),
        Action::ForEach { list, .. } => list.reads_sandbox(),
        _ => return Ok(()),
    };
    let in_condition = match &step.only_if {
        Some(Condition::Expression(expression)) if expression.reads_sandbox() => {
            Some(expression.path.as_str())
        }
        _ => None,
    };
    match in_values.or(in_condition) {
        Some(path) => bad(
            path,
            "`run.sandbox_id` changes while the run works; use it in steps that act, not in `set` or `for_each`",
        ),
        None => Ok(()),
    }
}

fn object<'v>(path: &str, value: &'v Json, keys: &[&str]) -> Parsed<&'v Map<String, Json>> {
    let Some(map) = value.as_object() else {
        return bad(path, format!("must be an object with {}", keys.join(", ")));
    };
    match map.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(map),
        Some(unknown) => {
            // The comparison allocates memory for each pair of characters.
            let start: String = unknown.chars().take(COMPARED_CHARS_MAX).collect();
            let nearest = keys
                .iter()
                .min_by_key(|key| strsim::damerau_levenshtein(key, &start));
            bad(
                place::of_key(path, unknown),
                format!(
                    "there is no such key; did you mean `{}`?",
                    nearest.unwrap_or(&"")
                ),
            )
        }
    }
}

fn nodes(path: &str, map: &Map<String, Json>) -> Parsed<Vec<(String, Node)>> {
    map.iter()
        .map(|(key, value)| Ok((key.clone(), Node::parse(&place::of_key(path, key), value)?)))
        .collect()
}

fn set(path: &str, value: &Json) -> Parsed<Action> {
    let Some(map) = value.as_object().filter(|map| !map.is_empty()) else {
        return bad(path, "must be an object of names and values");
    };
    let values = nodes(path, map)?;
    let named = values
        .into_iter()
        .map(|(key, node)| Ok((name(&place::of_key(path, &key), &key)?, node)));
    named.collect::<Parsed<_>>().map(Action::Set)
}

fn assigned_name(path: &str, value: &Json) -> Parsed<Arc<str>> {
    match value {
        Json::String(text) => name(path, text),
        _ => bad(path, "must be a name"),
    }
}

fn name(path: &str, text: &str) -> Parsed<Arc<str>> {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let text = place::start_of(text);
        return bad(
            path,
            format!(
                "{text:?} is not a name; use letters, digits and `_`, and do not start with a digit"
            ),
        );
    }
    if RESERVED.contains(&text) {
        return bad(
            path,
            format!("`{text}` has a fixed meaning; use another name"),
        );
    }
    if TEMPLATE_WORDS.contains(&text) {
        return bad(
            path,
            format!("`{text}` is a keyword of the template language; use another name"),
        );
    }
    Ok(Arc::from(text))
}

fn condition(path: &str, value: &Json) -> Parsed<Condition> {
    match value {
        Json::Bool(fixed) => Ok(Condition::Fixed(*fixed)),
        Json::String(source) => match Expression::parse(path, source.trim()) {
            Some(expression) => Ok(Condition::Expression(expression)),
            None => {
                Text::parse(path.to_owned(), source)?;
                bad(
                    path,
                    "a text is never true; must be a single `{{ expression }}`, or true or false",
                )
            }
        },
        _ => bad(
            path,
            "must be a single `{{ expression }}`, or true or false",
        ),
    }
}

fn list(path: &str, value: &Json) -> Parsed<Node> {
    match value {
        Json::Array(_) => Node::parse(path, value),
        Json::String(source) => match Expression::parse(path, source.trim()) {
            Some(expression) => Ok(Node::Expression(expression)),
            None => {
                Text::parse(path.to_owned(), source)?;
                bad(
                    path,
                    "a text is not a list; must be a list, or a single `{{ expression }}` that gives one",
                )
            }
        },
        _ => bad(
            path,
            "must be a list, or a single `{{ expression }}` that gives one",
        ),
    }
}

/// A string that is not a template.
fn literal_name<'v>(path: &str, value: &'v Json) -> Parsed<&'v str> {
    match value.as_str() {
        Some(text) if text.contains("{{") || text.contains("{%") => {
            bad(path, "must be a plain name, not a template")
        }
        Some(text) if !text.is_empty() => Ok(text),
        _ => bad(path, "must be a name"),
    }
}

fn text(path: &str, value: &Json) -> Parsed<Text> {
    match value {
        Json::String(source) => Text::parse(path.to_owned(), source),
        _ => bad(path, "must be a string"),
    }
}

/// A text that is not empty, as far as that is known before the run.
fn non_empty_text(path: &str, value: &Json) -> Parsed<Text> {
    let text = text(path, value)?;
    match text.fixed() {
        Some(fixed) if fixed.trim().is_empty() => bad(path, "must not be empty"),
        _ => Ok(text),
    }
}

fn duration(path: &str, value: &Json) -> Parsed<Text> {
    let text = non_empty_text(path, value)?;
    match text.fixed().map(parse_duration_ms) {
        Some(Err(error)) => bad(path, error.to_string()),
        _ => Ok(text),
    }
}

fn boolean(path: &str, value: Option<&Json>, default: bool) -> Parsed<bool> {
    match value {
        None => Ok(default),
        Some(Json::Bool(value)) => Ok(*value),
        Some(_) => bad(path, "must be true or false"),
    }
}

fn approve(path: &str, value: &Json) -> Parsed<Action> {
    let map = object(
        path,
        value,
        &["title", "description", "expires_in", "on_expire"],
    )?;
    request(path, map).map(Action::Approve)
}

fn ask(path: &str, value: &Json) -> Parsed<Action> {
    let map = object(
        path,
        value,
        &[
            "title",
            "description",
            "questions",
            "expires_in",
            "on_expire",
        ],
    )?;
    let request = request(path, map)?;
    let at = format!("{path}.questions");
    let Some(Json::Array(list)) = map.get("questions") else {
        return bad(at, "must be a list of questions");
    };
    let each = list
        .iter()
        .enumerate()
        .map(|(index, value)| question(&format!("{at}[{index}]"), value));
    let questions = each.collect::<Parsed<Vec<_>>>()?;
    // Checking the templates' sources also finds duplicates in their results: equal templates give equal texts.
    let raw = list
        .iter()
        .map(|value| serde_json::from_value::<human::Question>(value.clone()));
    let raw = raw
        .collect::<Result<Vec<_>, _>>()
        .or_else(|error| bad(at, error.to_string()))?;
    if let Err(error) = human::check_questions(&raw) {
        let (inner, message) = error.split_once(": ").unwrap_or(("questions", &error));
        return bad(format!("{path}.{inner}"), message);
    }
    Ok(Action::Ask(request, questions))
}

fn request(path: &str, map: &Map<String, Json>) -> Parsed<Request> {
    let Some(title) = map.get("title") else {
        return bad(format!("{path}.title"), "is missing; must be a string");
    };
    let on_expire = match map.get("on_expire") {
        None => None,
        Some(word) => match serde_json::from_value(word.clone()) {
            Ok(on_expire) => Some(on_expire),
            Err(_) => {
                return bad(
                    format!("{path}.on_expire"),
                    "must be `deny`, `fail` or `continue`",
                );
            }
        },
    };
    Ok(Request {
        title: non_empty_text(&format!("{path}.title"), title)?,
        description: map
            .get("description")
            .map(|value| text(&format!("{path}.description"), value))
            .transpose()?,
        expires_in: map
            .get("expires_in")
            .map(|value| duration(&format!("{path}.expires_in"), value))
            .transpose()?,
        on_expire,
    })
}

fn question(path: &str, value: &Json) -> Parsed<Question> {
    let map = object(
        path,
        value,
        &["question", "header", "options", "multi_select", "free_text"],
    )?;
    let Some(asked) = map.get("question") else {
        return bad(format!("{path}.question"), "is missing; must be a string");
    };
    let options = match map.get("options") {
        None => &Vec::new(),
        Some(Json::Array(options)) => options,
        Some(_) => {
            return bad(
                format!("{path}.options"),
                "must be a list of {label, description}",
            );
        }
    };
    let options = options
        .iter()
        .enumerate()
        .map(|(index, value)| option(&format!("{path}.options[{index}]"), value));
    Ok(Question {
        question: non_empty_text(&format!("{path}.question"), asked)?,
        header: map
            .get("header")
            .map(|value| text(&format!("{path}.header"), value))
            .transpose()?,
        options: options.collect::<Parsed<_>>()?,
        multi_select: boolean(
            &format!("{path}.multi_select"),
            map.get("multi_select"),
            false,
        )?,
        free_text: boolean(&format!("{path}.free_text"), map.get("free_text"), true)?,
    })
}

fn option(path: &str, value: &Json) -> Parsed<(Text, Option<Text>)> {
    let map = object(path, value, &["label", "description"])?;
    let Some(label) = map.get("label") else {
        return bad(format!("{path}.label"), "is missing; must be a string");
    };
    let description = map
        .get("description")
        .map(|value| text(&format!("{path}.description"), value))
        .transpose()?;
    Ok((
        non_empty_text(&format!("{path}.label"), label)?,
        description,
    ))
}
