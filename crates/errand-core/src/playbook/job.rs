//! Template evaluations as data, so that another process can execute them.

use std::collections::BTreeMap;

use minijinja::value::{Object, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::json::{from_json, to_json};
use super::template::{ENVIRONMENT, Marks, RESULT};

/// The kind of result that a template has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The rendered text.
    Text,
    /// The value of the expression, with its type.
    Value,
}

/// A template together with the values of the names that it reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub(super) source: String,
    pub(super) form: Form,
    pub(super) names: Map<String, Json>,
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    pub(super) value: Json,
    /// The value's size, in units of about a byte.
    pub(super) units: u64,
    pub(super) fuel: u64,
}

/// The error of an evaluation.
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
    /// JSON cannot represent the result.
    NoJson,
    Other,
}

/// Evaluates the templates that are not cheap. A stack overflow or an endless evaluation must not harm this process.
pub trait Evaluator: Send + Sync {
    /// Blocks until the template is evaluated. The inner error is the template's own.
    ///
    /// # Errors
    /// A clause: the evaluation took too long or needed too much memory, or its result is no longer needed.
    fn evaluate(&self, job: Job) -> Result<Result<Evaluated, Failed>, String>;

    /// Checks whether the move is still needed; called between templates.
    ///
    /// # Errors
    /// A clause, if it is not needed any more.
    fn go_on(&self) -> Result<(), String>;
}

impl Job {
    /// `source`: a whole template for [`Form::Text`], or the inside of the tag for [`Form::Value`].
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

    /// Evaluates the template in this process, which may overflow its stack or never finish.
    ///
    /// # Errors
    /// The template's own error.
    pub fn evaluate(&self) -> Result<Evaluated, Failed> {
        let names = self.names.iter();
        let names = JobNames(
            names
                .map(|(name, json)| (name.clone(), from_json(json)))
                .collect(),
        );
        evaluate(&self.source, self.form, Value::from_object(names))
    }
}

/// The first line of an encoded job. The value of each name follows on a line of its own: nested in this line, values
/// would be deeper than the 128 levels that serde_json accepts.
#[derive(Serialize, Deserialize)]
struct JobHead {
    source: String,
    form: Form,
    names: Vec<String>,
}

/// The first line of an encoded reply. The value follows on the next line, if there is one.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReplyHead {
    Gave { units: u64, fuel: u64 },
    Failed(Failed),
}

/// Encodes a job for another process; see [`decode_job`].
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

/// The inverse of [`encode_job`]; `None` if the bytes are not a job.
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

/// Encodes the result of a job; see [`decode_reply`].
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

/// The inverse of [`encode_reply`]; `None` if the bytes are not a reply.
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

/// The names of a [`Job`] as the root of a template.
#[derive(Debug)]
struct JobNames(BTreeMap<String, Value>);

impl Object for JobNames {
    fn get_value(self: &std::sync::Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "secret" => Some(Value::from_object(Marks)),
            name => self.0.get(name).cloned(),
        }
    }
}

/// Evaluates a template in this process.
pub(super) fn evaluate(source: &str, form: Form, names: Value) -> Result<Evaluated, Failed> {
    let environment: &Environment<'_> = &ENVIRONMENT;
    let captured = environment
        .template_from_str(source)
        .and_then(|template| template.render_captured(names))
        .map_err(|error| failed(&error))?;
    let fuel = fuel_used(captured.state());
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

fn fuel_used(state: &State<'_, '_>) -> u64 {
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
        message: error_clause(error),
    }
}

/// Maximum length of an error's detail, which may repeat a part of the template, in characters.
const DETAIL_CHARS_MAX: usize = 500;

/// Formats an error of minijinja as a clause, without the position in a source that the reader may not know.
pub(super) fn error_clause(error: &Error) -> String {
    match error.detail() {
        Some(detail) => {
            let start: String = detail.chars().take(DETAIL_CHARS_MAX).collect();
            format!("{}: {start}", error.kind())
        }
        None => error.kind().to_string(),
    }
}
