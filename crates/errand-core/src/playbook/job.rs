//! A template as data, so that another process can evaluate it.

use std::collections::BTreeMap;

use minijinja::value::{Object, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::json::{from_json, to_json};
use super::template::{ENVIRONMENT, Marks, RESULT};

/// What a template gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Its text.
    Text,
    /// The value of its expression.
    Value,
}

/// A template, and the names that it reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub(super) source: String,
    pub(super) form: Form,
    pub(super) names: Map<String, Json>,
}

/// What a template gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    pub(super) value: Json,
    /// Its size, about bytes.
    pub(super) units: u64,
    pub(super) fuel: u64,
}

/// Why it gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub(super) kind: FailedKind,
    pub(super) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FailedKind {
    Undefined,
    OutOfFuel,
    /// What it gives is no JSON value.
    NoJson,
    Other,
}

/// Evaluates the templates that are not cheap, where neither an overflow of the stack nor a value that is walked for ever
/// harms this process.
pub trait Evaluator: Send + Sync {
    /// Blocks until the template was evaluated. The inner error is the template's own.
    ///
    /// # Errors
    /// A clause: it took too long or needed too much, or nobody waits for it any more.
    fn evaluate(&self, job: Job) -> Result<Result<Evaluated, Failed>, String>;

    /// Whether the move is still waited for: looked at between templates.
    ///
    /// # Errors
    /// A clause, where it is not.
    fn go_on(&self) -> Result<(), String>;
}

impl Job {
    /// A template and its names. An expression is given as the text of its tag.
    #[must_use]
    pub fn new(source: &str, form: Form, names: Map<String, Json>) -> Self {
        let source = match form {
            Form::Text => source.to_owned(),
            Form::Value => format!("{{% set {RESULT} = ({source}) %}}"),
        };
        Self {
            source,
            form,
            names,
        }
    }

    /// Evaluates it in this process, which may overflow its stack or never end.
    ///
    /// # Errors
    /// The template's own.
    pub fn evaluate(&self) -> Result<Evaluated, Failed> {
        let names = self.names.iter();
        let names = Sent(
            names
                .map(|(name, json)| (name.clone(), from_json(json)))
                .collect(),
        );
        evaluate(&self.source, self.form, Value::from_object(names))
    }
}

/// The first line of an encoded job. Each name's value follows on a line of its own: within the line they would be
/// nested more deeply than they are, and JSON is read to 128 levels.
#[derive(Serialize, Deserialize)]
struct JobHead {
    source: String,
    form: Form,
    names: Vec<String>,
}

/// The first line of an encoded reply. The value follows, if there is one.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReplyHead {
    Gave { units: u64, fuel: u64 },
    Failed(Failed),
}

/// A job for another process.
#[must_use]
pub fn encode_job(job: &Job) -> Vec<u8> {
    let head = JobHead {
        source: job.source.clone(),
        form: job.form,
        names: job.names.keys().cloned().collect(),
    };
    let mut lines = serde_json::to_vec(&head).unwrap_or_default();
    for value in job.names.values() {
        lines.push(b'\n');
        lines.extend(value.to_string().into_bytes());
    }
    lines
}

/// Reads it. `None` if it is not a job.
#[must_use]
pub fn decode_job(bytes: &[u8]) -> Option<Job> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let head: JobHead = serde_json::from_slice(lines.next()?).ok()?;
    let names: Option<Map<String, Json>> = head
        .names
        .into_iter()
        .map(|name| Some((name, serde_json::from_slice(lines.next()?).ok()?)))
        .collect();
    Some(Job {
        source: head.source,
        form: head.form,
        names: names?,
    })
}

/// What came of a job, for the process that gave it.
#[must_use]
pub fn encode_reply(reply: &Result<Evaluated, Failed>) -> Vec<u8> {
    let (head, value) = match reply {
        Ok(given) => {
            let (units, fuel) = (given.units, given.fuel);
            (ReplyHead::Gave { units, fuel }, Some(&given.value))
        }
        Err(failed) => (ReplyHead::Failed(failed.clone()), None),
    };
    let mut lines = serde_json::to_vec(&head).unwrap_or_default();
    if let Some(value) = value {
        lines.push(b'\n');
        lines.extend(value.to_string().into_bytes());
    }
    lines
}

/// Reads it. `None` if it is not a reply.
#[must_use]
pub fn decode_reply(bytes: &[u8]) -> Option<Result<Evaluated, Failed>> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    Some(match serde_json::from_slice(lines.next()?).ok()? {
        ReplyHead::Failed(failed) => Err(failed),
        ReplyHead::Gave { units, fuel } => {
            let value = serde_json::from_slice(lines.next()?).ok()?;
            Ok(Evaluated { value, units, fuel })
        }
    })
}

/// The names of a [`Job`].
#[derive(Debug)]
struct Sent(BTreeMap<String, Value>);

impl Object for Sent {
    fn get_value(self: &std::sync::Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "secret" => Some(Value::from_object(Marks)),
            name => self.0.get(name).cloned(),
        }
    }
}

/// Evaluates a template with a root of names.
pub(super) fn evaluate(source: &str, form: Form, names: Value) -> Result<Evaluated, Failed> {
    let environment: &Environment<'_> = &ENVIRONMENT;
    let captured = environment
        .template_from_str(source)
        .and_then(|template| template.render_captured(names))
        .map_err(|error| failed(&error))?;
    let fuel = spent(captured.state());
    let (value, units) = match form {
        Form::Text => {
            let text = captured.into_output();
            let units = u64::try_from(text.len()).unwrap_or(u64::MAX);
            (Json::String(text), units)
        }
        Form::Value => {
            let value = captured.state().lookup(RESULT).unwrap_or_default();
            if value.is_undefined() {
                return Err(failed(&Error::from(ErrorKind::UndefinedError)));
            }
            to_json(&value).map_err(|message| Failed {
                kind: FailedKind::NoJson,
                message,
            })?
        }
    };
    Ok(Evaluated { value, units, fuel })
}

fn spent(state: &State<'_, '_>) -> u64 {
    state.fuel_levels().map_or(0, |(consumed, _)| consumed)
}

fn failed(error: &Error) -> Failed {
    let kind = match error.kind() {
        ErrorKind::UndefinedError => FailedKind::Undefined,
        ErrorKind::OutOfFuel => FailedKind::OutOfFuel,
        _ => FailedKind::Other,
    };
    Failed {
        kind,
        message: say(error),
    }
}

/// Characters of an error's detail, which may repeat a part of the template.
const DETAIL_CHARS_MAX: usize = 500;

/// An error of minijinja as a clause, without the place inside its own source.
pub(super) fn say(error: &Error) -> String {
    match error.detail() {
        Some(detail) => {
            let start: String = detail.chars().take(DETAIL_CHARS_MAX).collect();
            format!("{}: {start}", error.kind())
        }
        None => error.kind().to_string(),
    }
}
