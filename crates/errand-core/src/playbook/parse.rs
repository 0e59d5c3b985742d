//! Reading and checking a playbook.
//!
//! Whatever can be known before a run is an error here, at the path of the key that is wrong.

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

/// Words of the template language: a variable of that name could not be read.
const TEMPLATE_WORDS: [&str; 15] = [
    "true", "True", "false", "False", "none", "None", "loop", "self", "not", "and", "or", "in",
    "is", "if", "else",
];

/// Most places of a light playbook where a value is put in.
const LIGHT_TEMPLATES_MAX: usize = 1_000;
/// Texts with templates in one playbook. Each is parsed several times, which costs more than reading it.
const TEMPLATES_MAX: usize = 10_000;
/// Characters of an unknown key that are compared with those that are known.
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
                "it has {TEMPLATES_MAX} texts with templates at most; give a long list to the run as a file or a message"
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

/// How many texts of it are templates.
fn templates(value: &Json) -> usize {
    match value {
        Json::String(text) => usize::from(text.contains("{{") || text.contains("{%")),
        Json::Array(items) => items.iter().map(templates).sum(),
        Json::Object(fields) => fields.values().map(templates).sum(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    }
}

/// Whether no string of it computes: each is fixed, or puts in values that are there, by name. No loops of steps, and
/// few templates (`left`), so that a move is decided in no time worth speaking of.
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
            Some(_) => return bad(path, "it takes a list of at least one step"),
            None => return bad(path, "it is missing; it takes a list of steps"),
        };
        if depth > NESTING_MAX {
            return bad(
                path,
                format!("`for_each` steps stand in each other {NESTING_MAX} deep at most"),
            );
        }
        self.count += list.len();
        if self.count > STEPS_MAX {
            return bad(
                path,
                format!("a playbook has {STEPS_MAX} steps at most, inner ones included"),
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
                        "a step with `{action}` does not take it; it goes with {}",
                        of.join(", ")
                    ),
                );
            }
        }
        let only_if = step
            .get("if")
            .map(|value| condition(&format!("{path}.if"), value))
            .transpose()?;
        let gives = step
            .get("as")
            .map(|value| given_name(&format!("{path}.as"), value))
            .transpose()?;
        if gives.is_some() && ["fail", "finish"].contains(&action) {
            return bad(
                format!("{path}.as"),
                format!("nothing follows a `{action}`, so its value needs no name"),
            );
        }
        let continues_on_error = match step.get("on_error") {
            None => false,
            Some(Json::String(word)) if word == "continue" => true,
            Some(_) => {
                return bad(
                    format!("{path}.on_error"),
                    "it takes `continue`; without it a failure ends the run",
                );
            }
        };
        let action = self.action(&path, action, step, depth)?;
        let step = Step {
            path,
            action,
            gives,
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
                let name = plain(&at, value)?;
                if let Err(why) = (self.known.tool)(name) {
                    return bad(at, why);
                }
                let with = match step.get("with") {
                    None => Vec::new(),
                    Some(Json::Object(map)) => parts(&format!("{path}.with"), map)?,
                    Some(_) => {
                        return bad(
                            format!("{path}.with"),
                            "it takes an object: the tool's arguments",
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
                            "the build says `human_in_the_loop: false`, so a step cannot `{action}`"
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
            "say" => filled(&at, value).map(Action::Say),
            "fail" => filled(&at, value).map(Action::Fail),
            _ => filled(&at, value).map(Action::Finish),
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
            format!("it has no action; it takes one of {}", ACTIONS.join(", ")),
        ),
        several => bad(
            path,
            format!(
                "it has more than one action ({}); make a step of each",
                several.join(", ")
            ),
        ),
    }
}

/// What is evaluated again after a restart cannot read what changes while the run works.
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
            "`run.sandbox_id` changes while the run works; use it in the steps that make a move, not in `set` or `for_each`",
        ),
        None => Ok(()),
    }
}

fn object<'v>(path: &str, value: &'v Json, keys: &[&str]) -> Parsed<&'v Map<String, Json>> {
    let Some(map) = value.as_object() else {
        return bad(path, format!("it takes an object with {}", keys.join(", ")));
    };
    match map.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(map),
        Some(unknown) => {
            // The comparison takes room for each pair of characters.
            let start: String = unknown.chars().take(COMPARED_CHARS_MAX).collect();
            let nearest = keys
                .iter()
                .min_by_key(|key| strsim::damerau_levenshtein(key, &start));
            bad(
                place::of_key(path, unknown),
                format!(
                    "there is no such key; the nearest one is `{}`",
                    nearest.unwrap_or(&"")
                ),
            )
        }
    }
}

fn parts(path: &str, map: &Map<String, Json>) -> Parsed<Vec<(String, Node)>> {
    map.iter()
        .map(|(key, value)| Ok((key.clone(), Node::parse(&place::of_key(path, key), value)?)))
        .collect()
}

fn set(path: &str, value: &Json) -> Parsed<Action> {
    let Some(map) = value.as_object().filter(|map| !map.is_empty()) else {
        return bad(path, "it takes an object: names and their values");
    };
    let values = parts(path, map)?;
    let named = values
        .into_iter()
        .map(|(key, node)| Ok((name(&place::of_key(path, &key), &key)?, node)));
    named.collect::<Parsed<_>>().map(Action::Set)
}

fn given_name(path: &str, value: &Json) -> Parsed<Arc<str>> {
    match value {
        Json::String(text) => name(path, text),
        _ => bad(path, "it takes a name"),
    }
}

fn name(path: &str, text: &str) -> Parsed<Arc<str>> {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let text = place::start_of(text);
        return bad(
            path,
            format!(
                "{text:?} is not a name; it takes letters, digits and `_`, and begins with no digit"
            ),
        );
    }
    if RESERVED.contains(&text) {
        return bad(
            path,
            format!("`{text}` has its meaning already; take another name"),
        );
    }
    if TEMPLATE_WORDS.contains(&text) {
        return bad(
            path,
            format!("`{text}` is a word of the template language; take another name"),
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
                    "a text is never true; it takes one whole `{{ expression }}`, or true or false",
                )
            }
        },
        _ => bad(
            path,
            "it takes one whole `{{ expression }}`, or true or false",
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
                    "a text is no list; it takes one whole `{{ expression }}` that gives a list, or a list",
                )
            }
        },
        _ => bad(
            path,
            "it takes a list, or one whole `{{ expression }}` that gives a list",
        ),
    }
}

/// A text that is not a template.
fn plain<'v>(path: &str, value: &'v Json) -> Parsed<&'v str> {
    match value.as_str() {
        Some(text) if text.contains("{{") || text.contains("{%") => {
            bad(path, "it takes a plain name, not a template")
        }
        Some(text) if !text.is_empty() => Ok(text),
        _ => bad(path, "it takes a name"),
    }
}

fn text(path: &str, value: &Json) -> Parsed<Text> {
    match value {
        Json::String(source) => Text::parse(path.to_owned(), source),
        _ => bad(path, "it takes a text"),
    }
}

/// A text that is not empty, as far as that can be known.
fn filled(path: &str, value: &Json) -> Parsed<Text> {
    let text = text(path, value)?;
    match text.fixed() {
        Some(fixed) if fixed.trim().is_empty() => bad(path, "it takes a text that is not empty"),
        _ => Ok(text),
    }
}

fn duration(path: &str, value: &Json) -> Parsed<Text> {
    let text = filled(path, value)?;
    match text.fixed().map(parse_duration_ms) {
        Some(Err(error)) => bad(path, error.to_string()),
        _ => Ok(text),
    }
}

fn boolean(path: &str, value: Option<&Json>, default: bool) -> Parsed<bool> {
    match value {
        None => Ok(default),
        Some(Json::Bool(value)) => Ok(*value),
        Some(_) => bad(path, "it takes true or false"),
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
        return bad(at, "it takes a list of questions");
    };
    let each = list
        .iter()
        .enumerate()
        .map(|(index, value)| question(&format!("{at}[{index}]"), value));
    let questions = each.collect::<Parsed<Vec<_>>>()?;
    // What is wrong with the templates' own texts is wrong with what they give: equal ones give equal ones.
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
        return bad(format!("{path}.title"), "it is missing; it takes a text");
    };
    let on_expire = match map.get("on_expire") {
        None => None,
        Some(word) => match serde_json::from_value(word.clone()) {
            Ok(on_expire) => Some(on_expire),
            Err(_) => {
                return bad(
                    format!("{path}.on_expire"),
                    "it takes `deny`, `fail` or `continue`",
                );
            }
        },
    };
    Ok(Request {
        title: filled(&format!("{path}.title"), title)?,
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
        return bad(format!("{path}.question"), "it is missing; it takes a text");
    };
    let options = match map.get("options") {
        None => &Vec::new(),
        Some(Json::Array(options)) => options,
        Some(_) => {
            return bad(
                format!("{path}.options"),
                "it takes a list of {label, description}",
            );
        }
    };
    let options = options
        .iter()
        .enumerate()
        .map(|(index, value)| option(&format!("{path}.options[{index}]"), value));
    Ok(Question {
        question: filled(&format!("{path}.question"), asked)?,
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
        return bad(format!("{path}.label"), "it is missing; it takes a text");
    };
    let description = map
        .get("description")
        .map(|value| text(&format!("{path}.description"), value))
        .transpose()?;
    Ok((filled(&format!("{path}.label"), label)?, description))
}
