//! Strings of a playbook: templates, and the names that they see.
//!
//! # Guarantees
//!
//! Templates are pure: no clock, no randomness, no loader. Undefined names are errors, nothing is escaped, a trailing
//! newline is kept, and each string has [`limits::TEMPLATE_FUEL`]. A string that is a single `{{ expression }}` keeps
//! the expression's type where a value is expected. In a text, everything except strings and numbers is written as JSON
//! (`true`, `null`, `[1,2]`).
//!
//! Filters besides minijinja's own: `fromjson`, `tojson` (without escaping for HTML), and `slice(start, end)` with
//! Python's meaning instead of minijinja's columns.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior};
use serde_json::Value as Json;

use super::cheap::{is_cheap, is_cheap_expression};
use super::job::{self, Evaluated, Evaluator, Failed, FailedKind, Form, Job, error_clause};
use super::json::{SENT_UNITS_MAX, from_json, to_json, to_json_within};
use super::{BadPlaybook, MOVE_FUEL, RunFacts, bounds};
use crate::{limits, place};

/// Never changed after it is created, so it is effectively a constant.
pub(super) static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(limits::TEMPLATE_FUEL));
    environment.set_debug(false);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_syntax(syntax());
    environment.set_formatter(write_json);
    // `debug` prints the context, and `namespace` can be modified in place: neither belongs in a pure template.
    environment.remove_global("debug");
    environment.remove_global("namespace");
    environment.add_filter("fromjson", fromjson);
    environment.add_filter("tojson", tojson);
    environment.add_filter("slice", slice);
    environment
});

/// Maximum depth of nested loops and macros. A macro counts four times.
const RECURSION_MAX: usize = 200;

/// The syntax of templates. [`bounds`] must tokenize with the same.
pub(super) fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder()
        .keep_trailing_newline(true)
        .build()
        .unwrap_or_default()
}

/// The variable in which the program of an [`Expression`] leaves its value.
pub(super) const RESULT: &str = "__value";

/// How moves are decided.
#[derive(Default)]
pub(super) struct EvaluationContext<'a> {
    /// Evaluates templates that are not cheap. `None`: this process does.
    pub(super) evaluator: Option<&'a dyn Evaluator>,
    /// Set for a move that must be decided immediately, with cheap templates only: its fuel.
    pub(super) immediate_fuel: Option<u64>,
    /// Set if that was not possible.
    pub(super) ran_out: Cell<bool>,
}

impl EvaluationContext<'_> {
    pub(super) fn fuel_for_one_move(&self) -> Fuel<'_> {
        Fuel {
            left: self.immediate_fuel.unwrap_or(MOVE_FUEL),
            context: self,
        }
    }
}

/// Fuel for everything that is evaluated between two moves.
pub(super) struct Fuel<'a> {
    left: u64,
    context: &'a EvaluationContext<'a>,
}

impl Fuel<'_> {
    /// Uses up fuel.
    ///
    /// # Errors
    /// A clause, if there is not enough, or if the move is no longer needed.
    pub(super) fn burn(&mut self, amount: u64) -> Result<(), String> {
        if let Some(evaluator) = self.context.evaluator {
            evaluator.go_on()?;
        }
        let Some(left) = self.left.checked_sub(amount) else {
            self.context.ran_out.set(true);
            return Err(format!(
                "the steps since the last move used up their fuel ({MOVE_FUEL}); do less between two moves"
            ));
        };
        self.left = left;
        Ok(())
    }

    /// Evaluates a template: in this process if it is cheap or there is no evaluator.
    ///
    /// # Errors
    /// A clause. It includes the undefined name if there is one.
    fn evaluate(&mut self, template: &Template<'_>, names: &Names) -> Result<Evaluated, String> {
        if !template.cheap && self.context.immediate_fuel.is_some() {
            self.context.ran_out.set(true);
            return Err("the template cannot be evaluated immediately".to_owned());
        }
        let done = match self.context.evaluator {
            Some(evaluator) if !template.cheap => {
                let job = Job {
                    source: template.source.to_owned(),
                    form: template.form,
                    names: names.values_read_by(template.source)?,
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

/// A template ready for evaluation.
struct Template<'a> {
    source: &'a str,
    form: Form,
    cheap: bool,
}

/// A template whose result is text.
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
                message: format!("the template is not valid: {}", error_clause(&error)),
            });
        }
        Ok(Self {
            path,
            source: source.to_owned(),
            fixed,
            cheap: is_cheap(source),
        })
    }

    /// The text, if it contains no tags.
    pub(super) fn fixed(&self) -> Option<&str> {
        self.fixed.then_some(self.source.as_str())
    }

    /// # Errors
    /// A sentence that begins with the path of the string.
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
            Ok(_) => Err(format!("{}: the template did not give a text", self.path)),
            Err(error) => Err(format!("{}: {error}", self.path)),
        }
    }
}

/// A string that is a single `{{ expression }}`.
#[derive(Debug)]
pub(super) struct Expression {
    pub(super) path: String,
    /// A template that assigns the value to a variable: unlike a bare expression, it reports the fuel it used.
    program: String,
    cheap: bool,
}

impl Expression {
    /// `None` if the string is anything else, such as a text, or not a valid template.
    pub(super) fn parse(path: &str, source: &str) -> Option<Self> {
        let inner = source.strip_prefix("{{")?.strip_suffix("}}")?;
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
        let inner = inner.strip_suffix(['-', '+']).unwrap_or(inner);
        bounds::check_expression(inner).ok()?;
        let environment: &Environment<'_> = &ENVIRONMENT;
        environment.compile_expression(inner).ok()?;
        // A valid expression has no `%}` outside of string literals, so it parses the same way inside this tag.
        let program = format!("{{% set {RESULT} = ({inner}) %}}");
        environment.template_from_str(&program).ok()?;
        Some(Self {
            path: path.to_owned(),
            program,
            cheap: is_cheap_expression(inner),
        })
    }

    /// The value as plain JSON, and its size in units of about a byte.
    ///
    /// # Errors
    /// A sentence that begins with the path of the string.
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

    /// The value and its size in units of about a byte.
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

    /// The path of the first string that reads `run.sandbox_id`.
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

/// Names assigned by `as` and `set`.
pub(super) type Vars = BTreeMap<Arc<str>, Value>;

/// The users' messages as (position, text), oldest first.
pub(super) type Users = Arc<Vec<(u64, Arc<str>)>>;

/// The names that a template sees.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Innermost first.
    pub(super) scopes: Vec<Arc<Vars>>,
    /// `item` and `index` of the innermost iteration.
    pub(super) iteration: Option<(Value, usize)>,
    pub(super) users: Users,
    /// How many of `users` the decision reads.
    pub(super) read: usize,
    pub(super) run: RunFacts,
    /// Whether `run.sandbox_id` is visible. It is not for values that are evaluated again after a restart.
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
            "item" => self.iteration.as_ref().map(|(item, _)| item.clone()),
            "index" => self
                .iteration
                .as_ref()
                .map(|(_, index)| Value::from(*index)),
            _ => self
                .scopes
                .iter()
                .find_map(|scope| scope.get(name))
                .cloned(),
        }
    }

    /// The names that a template might read, with their values: those whose text occurs in it.
    ///
    /// # Errors
    /// A clause, if they exceed what can be sent.
    fn values_read_by(&self, source: &str) -> Result<serde_json::Map<String, Json>, String> {
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
                        "the template reads more than {} MB of values; use less data",
                        SENT_UNITS_MAX / 1_000_000
                    )
                })?;
                sent.insert(name.to_owned(), json);
            }
        }
        Ok(sent)
    }

    /// The defined names, for an error message.
    fn list(&self) -> String {
        let mut names: Vec<&str> = self
            .scopes
            .iter()
            .flat_map(|scope| scope.keys().map(AsRef::as_ref))
            .collect();
        names.extend(["message", "messages", "run"]);
        if self.iteration.is_some() {
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

/// The variable `messages`: a list that shares the texts.
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

/// The variable `secret`: each attribute is the mark of the secret with that name, as a string.
#[derive(Debug)]
pub(super) struct Marks;

impl Object for Marks {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str().filter(|name| crate::secret::is_name(name))?;
        Some(Value::from(crate::secret::mark(name)))
    }
}

/// The names that a template reads, with plain attributes, such as `run.id`. Empty if it is not valid.
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

/// The message for a failed evaluation, with the undefined name if it can be determined.
fn explain(failed: &Failed, source: &str, names: &Names) -> String {
    match failed.kind {
        FailedKind::OutOfFuel => {
            format!(
                "the template used up its fuel ({}); make it do less, or use less data",
                limits::TEMPLATE_FUEL
            )
        }
        FailedKind::NoJson => failed.message.clone(),
        // Operators and filters report an undefined operand as a wrong type, so look for the name as well.
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

/// The alphabetically first name that the template reads and that is not defined.
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

/// Writes a value into a text: everything except strings and numbers as JSON (`true`, `null`, `[1,2]`), whereas
/// minijinja would write Python literals. Bounded, because shared parts cost nothing to build but are written each
/// time.
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
        .ok_or_else(|| invalid(format!("fromjson expects a string, not a {}", value.kind())))?;
    // Each part becomes a value, which takes more memory than its text.
    let parts = text.bytes().filter(|byte| b"[{,".contains(byte)).count();
    state.consume_fuel(fuel_of_bytes(text.len().saturating_add(16 * parts)))?;
    let json: Json = serde_json::from_str(text)
        .map_err(|e| invalid(format!("fromjson: the text is not valid JSON: {e}")))?;
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

/// `value[start:end]` of a list or string, as in Python; negative numbers count from the end.
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
            "slice expects a list or a string, not a {other}"
        ))),
    }
}
