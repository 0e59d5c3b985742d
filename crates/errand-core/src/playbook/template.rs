//! Strings of a playbook: templates, and the names they see.
//!
//! Pure: no clock, no randomness, no loader. Undefined names are errors, nothing is escaped, a trailing newline stays,
//! and each string has the fuel of [`limits::TEMPLATE_FUEL`]. A string that is one whole `{{ expression }}` keeps the
//! expression's type where a value is wanted. In a text, what is not a text or a number stands as JSON (`true`, `null`,
//! `[1,2]`).
//!
//! Filters beyond minijinja's own: `fromjson`, `tojson` (nothing escaped for HTML), and `slice(start, end)` with Python's
//! meaning instead of minijinja's columns.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior};
use serde_json::Value as Json;

use super::cheap::{is_cheap, is_cheap_expression};
use super::job::{self, Evaluated, Evaluator, Failed, FailedKind, Form, Job, say};
use super::json::{SENT_UNITS_MAX, from_json, to_json, to_json_within};
use super::{BadPlaybook, MOVE_FUEL, RunFacts, bounds};
use crate::{limits, place};

/// A constant: it is never changed after it is made.
pub(super) static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(limits::TEMPLATE_FUEL));
    environment.set_debug(false);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_syntax(syntax());
    environment.set_formatter(write_json);
    // `debug` prints what it finds, `namespace` is changed in place: neither has a place in a pure string.
    environment.remove_global("debug");
    environment.remove_global("namespace");
    environment.add_filter("fromjson", fromjson);
    environment.add_filter("tojson", tojson);
    environment.add_filter("slice", slice);
    environment
});

/// How deep loops and macros call each other. A macro counts four times.
const RECURSION_MAX: usize = 200;

/// What a template looks like.
pub(super) fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder()
        .keep_trailing_newline(true)
        .build()
        .unwrap_or_default()
}

/// The name under which the program of an [`Expression`] leaves its value.
pub(super) const RESULT: &str = "__value";

/// What moves are decided with.
#[derive(Default)]
pub(super) struct Means<'a> {
    /// Who evaluates what is not cheap; this process, if there is nobody.
    pub(super) evaluator: Option<&'a dyn Evaluator>,
    /// Fuel of a move that is to be decided at once, with cheap templates alone.
    pub(super) at_once: Option<u64>,
    /// Whether that was not possible.
    pub(super) ran_out: Cell<bool>,
}

impl Means<'_> {
    pub(super) fn for_one_move(&self) -> Fuel<'_> {
        Fuel {
            left: self.at_once.unwrap_or(MOVE_FUEL),
            means: self,
        }
    }
}

/// Fuel for all that is evaluated from one move to the next.
pub(super) struct Fuel<'a> {
    left: u64,
    means: &'a Means<'a>,
}

impl Fuel<'_> {
    /// # Errors
    /// A clause, where it is used up, or nobody waits for the move any more.
    pub(super) fn burn(&mut self, amount: u64) -> Result<(), String> {
        if let Some(evaluator) = self.means.evaluator {
            evaluator.go_on()?;
        }
        let Some(left) = self.left.checked_sub(amount) else {
            self.means.ran_out.set(true);
            return Err(format!(
                "the steps since the last move used up their fuel ({MOVE_FUEL}); let them do less between two moves"
            ));
        };
        self.left = left;
        Ok(())
    }

    /// Evaluates a template: here if it is cheap or there is no evaluator.
    ///
    /// # Errors
    /// A clause, with the name that is not defined where that is the reason.
    fn evaluate(&mut self, template: &Template<'_>, names: &Names) -> Result<Evaluated, String> {
        if !template.cheap && self.means.at_once.is_some() {
            self.means.ran_out.set(true);
            return Err("the template is not evaluated at once".to_owned());
        }
        let done = match self.means.evaluator {
            Some(evaluator) if !template.cheap => {
                let job = Job {
                    source: template.source.to_owned(),
                    form: template.form,
                    names: names.sent(template.source)?,
                };
                evaluator.evaluate(job)?
            }
            _ => job::evaluate(
                template.source,
                template.form,
                Value::from_object(names.clone()),
            ),
        };
        let evaluated = done.map_err(|failed| explain(&failed, template.source, names))?;
        self.burn(evaluated.fuel)?;
        Ok(evaluated)
    }
}

/// A template as it is evaluated.
struct Template<'a> {
    source: &'a str,
    form: Form,
    cheap: bool,
}

/// A template that gives text.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) path: String,
    source: String,
    fixed: bool,
    cheap: bool,
}

impl Text {
    pub(super) fn parse(path: String, source: &str) -> Result<Self, BadPlaybook> {
        let fixed = !["{{", "{%", "{#"].iter().any(|open| source.contains(open));
        if fixed {
            return Ok(Self {
                path,
                source: source.to_owned(),
                fixed,
                cheap: true,
            });
        }
        if let Err(message) = bounds::check(source) {
            return Err(BadPlaybook { path, message });
        }
        let environment: &Environment<'_> = &ENVIRONMENT;
        if let Err(error) = environment.template_from_str(source) {
            return Err(BadPlaybook {
                path,
                message: format!("the template does not parse: {}", say(&error)),
            });
        }
        Ok(Self {
            path,
            source: source.to_owned(),
            fixed,
            cheap: is_cheap(source),
        })
    }

    /// The text, where it is the same each time.
    pub(super) fn fixed(&self) -> Option<&str> {
        self.fixed.then_some(self.source.as_str())
    }

    /// # Errors
    /// A sentence that begins with the string's path.
    pub(super) fn render(&self, names: &Names, fuel: &mut Fuel<'_>) -> Result<String, String> {
        if self.fixed {
            return Ok(self.source.clone());
        }
        let template = Template {
            source: &self.source,
            form: Form::Text,
            cheap: self.cheap,
        };
        match fuel.evaluate(&template, names) {
            Ok(Evaluated {
                value: Json::String(text),
                ..
            }) => Ok(text),
            Ok(_) => Err(format!("{}: the template gave no text", self.path)),
            Err(error) => Err(format!("{}: {error}", self.path)),
        }
    }
}

/// A string that is one whole `{{ expression }}`.
#[derive(Debug)]
pub(super) struct Expression {
    pub(super) path: String,
    /// A template that stores the value: unlike a bare expression it tells how much fuel it took.
    program: String,
    cheap: bool,
}

impl Expression {
    /// None where the string is something else (a text, or no template).
    pub(super) fn parse(path: &str, source: &str) -> Option<Self> {
        let inner = source.strip_prefix("{{")?.strip_suffix("}}")?;
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
        let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
        bounds::check_expression(inner).ok()?;
        let environment: &Environment<'_> = &ENVIRONMENT;
        environment.compile_expression(inner).ok()?;
        // What parses as an expression alone has no `%}` outside of its strings, so it parses to the same in here.
        let program = format!("{{% set {RESULT} = ({inner}) %}}");
        environment.template_from_str(&program).ok()?;
        Some(Self {
            path: path.to_owned(),
            program,
            cheap: is_cheap_expression(inner),
        })
    }

    /// The value, as plain JSON, and its size in units.
    ///
    /// # Errors
    /// A sentence that begins with the string's path.
    pub(super) fn value(&self, names: &Names, fuel: &mut Fuel<'_>) -> Result<(Json, u64), String> {
        let template = Template {
            source: &self.program,
            form: Form::Value,
            cheap: self.cheap,
        };
        let at = |message: String| format!("{}: {message}", self.path);
        let Evaluated { value, units, .. } = fuel.evaluate(&template, names).map_err(at)?;
        fuel.burn(units / 64).map_err(at)?;
        Ok((value, units))
    }

    /// Whether it reads `run.sandbox_id`.
    pub(super) fn reads_sandbox(&self) -> bool {
        reads_sandbox(&self.program)
    }
}

/// A JSON value whose strings are templates.
#[derive(Debug)]
pub(super) enum Node {
    Fixed(Json),
    Text(Text),
    Expression(Expression),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(super) fn parse(path: &str, value: &Json) -> Result<Self, BadPlaybook> {
        match value {
            Json::Null | Json::Bool(_) | Json::Number(_) => Ok(Self::Fixed(value.clone())),
            Json::String(source) => {
                if let Some(expression) = Expression::parse(path, source) {
                    return Ok(Self::Expression(expression));
                }
                let text = Text::parse(path.to_owned(), source)?;
                Ok(if text.fixed {
                    Self::Fixed(value.clone())
                } else {
                    Self::Text(text)
                })
            }
            Json::Array(items) => {
                let items = items.iter().enumerate();
                items
                    .map(|(index, item)| Self::parse(&place::of_item(path, index), item))
                    .collect::<Result<_, _>>()
                    .map(Self::List)
            }
            Json::Object(map) => {
                let parts = map.iter().map(|(key, part)| {
                    Ok((key.clone(), Self::parse(&place::of_key(path, key), part)?))
                });
                parts.collect::<Result<_, _>>().map(Self::Map)
            }
        }
    }

    /// The value and its size in units.
    ///
    /// # Errors
    /// A sentence that begins with the path of the string that failed.
    pub(super) fn value(&self, names: &Names, fuel: &mut Fuel<'_>) -> Result<(Json, u64), String> {
        match self {
            Self::Fixed(json) => Ok((json.clone(), 0)),
            Self::Text(text) => {
                let text = text.render(names, fuel)?;
                let units = u64::try_from(text.len()).unwrap_or(u64::MAX);
                Ok((Json::String(text), units))
            }
            Self::Expression(expression) => expression.value(names, fuel),
            Self::List(items) => {
                let mut sum = 0_u64;
                let values = items.iter().map(|item| {
                    item.value(names, fuel).map(|(json, units)| {
                        sum = sum.saturating_add(units);
                        json
                    })
                });
                let list = values.collect::<Result<Vec<_>, _>>()?;
                Ok((Json::Array(list), sum))
            }
            Self::Map(parts) => {
                let mut sum = 0_u64;
                let values = parts.iter().map(|(key, part)| {
                    part.value(names, fuel).map(|(json, units)| {
                        sum = sum.saturating_add(units);
                        (key.clone(), json)
                    })
                });
                let map = values.collect::<Result<serde_json::Map<_, _>, _>>()?;
                Ok((Json::Object(map), sum))
            }
        }
    }

    /// The path of the first string in it that reads `run.sandbox_id`.
    pub(super) fn reads_sandbox(&self) -> Option<&str> {
        match self {
            Self::Fixed(_) => None,
            Self::Text(text) => reads_sandbox(&text.source).then_some(text.path.as_str()),
            Self::Expression(expression) => expression
                .reads_sandbox()
                .then_some(expression.path.as_str()),
            Self::List(items) => items.iter().find_map(Self::reads_sandbox),
            Self::Map(parts) => parts.iter().find_map(|(_, part)| part.reads_sandbox()),
        }
    }
}

/// Names given by `as` and `set`.
pub(super) type Vars = BTreeMap<Arc<str>, Value>;

/// The users' messages: position and text, oldest first.
pub(super) type Users = Arc<Vec<(u64, Arc<str>)>>;

/// The names that a template sees.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Innermost first.
    pub(super) scopes: Vec<Arc<Vars>>,
    /// `item` and `index` of the innermost round.
    pub(super) round: Option<(Value, usize)>,
    pub(super) users: Users,
    /// How many of `users` are read.
    pub(super) read: usize,
    pub(super) run: RunFacts,
    /// Whether `run.sandbox_id` is there: not for what is evaluated again after a restart.
    pub(super) with_sandbox: bool,
}

impl Names {
    fn find(&self, name: &str) -> Option<Value> {
        match name {
            "message" => {
                let newest = self
                    .read
                    .checked_sub(1)
                    .and_then(|last| self.users.get(last));
                Some(newest.map_or_else(
                    || Value::from(()),
                    |(_, text)| Value::from(Arc::clone(text)),
                ))
            }
            "messages" => Some(Value::from_object(Messages {
                users: Arc::clone(&self.users),
                read: self.read,
            })),
            "run" => {
                let id = ("id", Value::from(self.run.id.as_str()));
                let sandbox = self
                    .with_sandbox
                    .then(|| ("sandbox_id", Value::from(self.run.sandbox_id.clone())));
                Some(Value::from_pairs(std::iter::once(id).chain(sandbox)))
            }
            "secret" => Some(Value::from_object(Marks)),
            "item" => self.round.as_ref().map(|(item, _)| item.clone()),
            "index" => self.round.as_ref().map(|(_, index)| Value::from(*index)),
            _ => self
                .scopes
                .iter()
                .find_map(|scope| scope.get(name))
                .cloned(),
        }
    }

    /// The names that a template can read, with their values: each whose letters are in it.
    ///
    /// # Errors
    /// A clause, where they are more than is sent.
    fn sent(&self, source: &str) -> Result<serde_json::Map<String, Json>, String> {
        let mut sent = serde_json::Map::new();
        let mut left = SENT_UNITS_MAX;
        let own = self.scopes.iter().flat_map(|scope| scope.keys());
        let ours = ["message", "messages", "run", "item", "index"];
        for name in own.map(AsRef::as_ref).chain(ours) {
            if !source.contains(name) || sent.contains_key(name) {
                continue;
            }
            if let Some(value) = self.find(name) {
                let json = to_json_within(&value, &mut left).map_err(|_| {
                    format!(
                        "the template reads more than {} MB of values; take less data",
                        SENT_UNITS_MAX / 1_000_000
                    )
                })?;
                sent.insert(name.to_owned(), json);
            }
        }
        Ok(sent)
    }

    /// What is defined, for an error's text.
    fn list(&self) -> String {
        let mut names: Vec<&str> = self
            .scopes
            .iter()
            .flat_map(|scope| scope.keys().map(AsRef::as_ref))
            .collect();
        names.extend(["message", "messages", "run"]);
        if self.round.is_some() {
            names.extend(["item", "index"]);
        }
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }
}

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.find(key.as_str()?)
    }
}

/// The variable `messages`: a list that is not copied.
#[derive(Debug)]
struct Messages {
    users: Users,
    read: usize,
}

impl Object for Messages {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = key.as_usize().filter(|index| *index < self.read)?;
        self.users
            .get(index)
            .map(|(_, text)| Value::from(Arc::clone(text)))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.read)
    }
}

/// The variable `secret`: each of its attributes is the mark that stands for the secret of that name, itself a text.
#[derive(Debug)]
pub(super) struct Marks;

impl Object for Marks {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str().filter(|name| crate::secret::is_name(name))?;
        Some(Value::from(crate::secret::mark(name)))
    }
}

/// The names that a template reads, with their attributes where they are plain: `run.id`. None where it does not parse.
pub(super) fn names_read(source: &str) -> Vec<String> {
    if !source.contains('{') || bounds::check(source).is_err() {
        return Vec::new();
    }
    let environment: &Environment<'_> = &ENVIRONMENT;
    environment
        .template_from_str(source)
        .map(|template| template.undeclared_variables(true).into_iter().collect())
        .unwrap_or_default()
}

fn reads_sandbox(source: &str) -> bool {
    let environment: &Environment<'_> = &ENVIRONMENT;
    environment.template_from_str(source).is_ok_and(|template| {
        template
            .undeclared_variables(true)
            .contains("run.sandbox_id")
    })
}

/// Why an evaluation failed, with the name that is not defined, where it can be found.
fn explain(failed: &Failed, source: &str, names: &Names) -> String {
    match failed.kind {
        FailedKind::OutOfFuel => {
            format!(
                "the template used up its fuel ({}); let it do less, or take less data",
                limits::TEMPLATE_FUEL
            )
        }
        FailedKind::NoJson => failed.message.clone(),
        // Operators and filters tell it as a wrong type: `undefined` and a number, say.
        kind => match undefined_name(source, names) {
            Some(name) if kind == FailedKind::Undefined => {
                format!("`{name}` is not defined; defined here: {}", names.list())
            }
            Some(name) => format!(
                "{} (`{name}` is not defined; defined here: {})",
                failed.message,
                names.list()
            ),
            None => failed.message.clone(),
        },
    }
}

/// The first name, in the alphabet's order, that the template reads and that is not there.
fn undefined_name(source: &str, names: &Names) -> Option<String> {
    let environment: &Environment<'_> = &ENVIRONMENT;
    let template = environment.template_from_str(source).ok()?;
    let mut read: Vec<String> = template.undeclared_variables(true).into_iter().collect();
    read.sort_unstable();
    read.into_iter().find(|name| {
        let mut parts = name.split('.');
        let first = parts.next().unwrap_or_default();
        if names.find(first).is_none() {
            return environment.globals().all(|(global, _)| global != first);
        }
        let found = parts.try_fold(names.find(first).unwrap_or_default(), |value, part| {
            value
                .get_attr(part)
                .ok()
                .filter(|inner| !inner.is_undefined())
        });
        found.is_none()
    })
}

/// Writes a value into a text: what is not a text or a number as JSON (`true`, `null`, `[1,2]`), where minijinja would
/// write it as Python does. Bounded: parts that are shared cost nothing to build, but are written each time.
fn write_json(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None
        | ValueKind::Bool
        | ValueKind::Seq
        | ValueKind::Iterable
        | ValueKind::Map => {
            let (json, units) = to_json(value).map_err(invalid)?;
            state.consume_fuel(units / 64)?;
            write!(out, "{json}").map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn defined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        Err(Error::from(ErrorKind::UndefinedError))
    } else {
        Ok(())
    }
}

fn fuel_of_bytes(bytes: usize) -> u64 {
    u64::try_from(bytes / 64).unwrap_or(u64::MAX)
}

fn fromjson(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    defined(&value)?;
    let text = value
        .as_str()
        .ok_or_else(|| invalid(format!("fromjson takes a text, not a {}", value.kind())))?;
    // Each part is a value, which takes more memory than its text.
    let parts = text.bytes().filter(|byte| b"[{,".contains(byte)).count();
    state.consume_fuel(fuel_of_bytes(text.len().saturating_add(16 * parts)))?;
    let json: Json = serde_json::from_str(text)
        .map_err(|e| invalid(format!("fromjson: the text is no JSON: {e}")))?;
    Ok(from_json(&json))
}

fn tojson(
    state: &State<'_, '_>,
    value: Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    defined(&value)?;
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    options.assert_all_used()?;
    let (json, units) = to_json(&value).map_err(|e| invalid(format!("tojson {e}")))?;
    state.consume_fuel(units / 64)?;
    let Some(indent) = indent else {
        return Ok(json.to_string());
    };
    let spaces = vec![b' '; indent.min(16)];
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde::Serialize::serialize(&json, &mut serializer)
        .map_err(|e| invalid(format!("tojson: {e}")))?;
    String::from_utf8(out).map_err(|e| invalid(format!("tojson: {e}")))
}

/// `value[start:end]`: a part of a list or of a text; negative numbers count from the end.
fn slice(
    state: &State<'_, '_>,
    value: Value,
    start: i64,
    end: Option<i64>,
) -> Result<Value, Error> {
    defined(&value)?;
    let place = |at: i64, len: usize| {
        let len = i64::try_from(len).unwrap_or(i64::MAX);
        let at = if at < 0 {
            at.saturating_add(len).max(0)
        } else {
            at.min(len)
        };
        usize::try_from(at).unwrap_or(0)
    };
    let bounds = |len: usize| {
        let start = place(start, len);
        (
            start,
            end.map_or(len, |end| place(end, len)).saturating_sub(start),
        )
    };
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            state.consume_fuel(fuel_of_bytes(text.len()))?;
            let (skip, take) = bounds(text.chars().count());
            Ok(Value::from(
                text.chars().skip(skip).take(take).collect::<String>(),
            ))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            state.consume_fuel(u64::try_from(items.len() / 2).unwrap_or(u64::MAX))?;
            let (skip, take) = bounds(items.len());
            Ok(items
                .into_iter()
                .skip(skip)
                .take(take)
                .collect::<Vec<_>>()
                .into())
        }
        other => Err(invalid(format!(
            "slice takes a list or a text, not a {other}"
        ))),
    }
}
