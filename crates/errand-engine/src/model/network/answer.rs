//! Converts a provider's answer to the run's moves.
//!
//! # Guarantees
//!
//! - Calls keep their order and get ids of ours, because provider ids may repeat.
//! - A call of an unknown tool gets an error that lists the available tools. A call whose arguments do not match the
//!   tool's schema gets an error that names the wrong argument.
//! - Three consecutive answers without text and without an executable call fail the run.
//! - An answer that the provider or the model withheld fails the run. Its text is kept, its calls are not executed.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use errand_core::connection::is_tool;
use errand_core::limits::EMPTY_ANSWERS_MAX;
use errand_core::schema::{Weight, size, weigh};
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::{AnswerKind, Body, ModelCall};
use errand_core::turn::{MarkedMove, Move};
use jsonschema::Validator;
use serde_json::{Map, Value, json};

use super::super::{ModelError, Offer, Turn};
use super::ask::{RawArguments, Reply, refused as refused_by};
use crate::evaluate::{Misfit, TeamEvaluators, first_misfit};

/// Upper bound of (schema nodes × argument values) for a check on the async thread: a few milliseconds.
const CHECKS_HERE_MAX: usize = 200_000;
/// Maximum number of characters of arguments, or of a validation error, that are repeated to the model.
const MESSAGE_CHARS_MAX: usize = 300;

/// The tools of a run, with lazily built validators.
pub(super) struct Toolbox {
    offers: BTreeMap<String, (Arc<Value>, OnceLock<Check>)>,
}

/// How the arguments of a tool's calls are checked.
enum Check {
    /// On the async thread, because schema and arguments are small. The number is the schema's node count.
    Here(Box<Validator>, usize),
    /// In a child process that can be killed.
    Elsewhere,
    /// Not checked: the schema of an MCP server is invalid, and that server checks the arguments itself.
    Nowhere,
    /// The schema is refused, so every call fails.
    Refused(String),
}

impl Check {
    fn of(name: &str, schema: &Value) -> Self {
        let nodes = if is_tool(name) {
            match weigh(schema) {
                Ok(Weight::Light { nodes }) => nodes,
                Ok(Weight::Heavy) => return Self::Elsewhere,
                Err(why) => return Self::Refused(why),
            }
        } else {
            // Schemas of our own tools are always cheap.
            1
        };
        jsonschema::validator_for(schema).map_or(Self::Nowhere, |validator| {
            Self::Here(Box::new(validator), nodes)
        })
    }
}

impl Toolbox {
    pub(super) fn new(offers: &[Offer]) -> Self {
        let offers = offers.iter().map(|offer| {
            let schema = Arc::new(offer.schema.clone());
            (offer.name.clone(), (schema, OnceLock::new()))
        });
        Self {
            offers: offers.collect(),
        }
    }

    /// Checks the calls that need a child process. Returns an entry (an error or `None`) for each such call, by its
    /// index.
    pub(super) async fn check(
        &self,
        reply: &Reply,
        evaluators: impl Fn() -> TeamEvaluators,
    ) -> BTreeMap<usize, Option<ToolError>> {
        let mut found = BTreeMap::new();
        for (number, raw) in reply.calls.iter().enumerate() {
            let Some((schema, check)) = self.offers.get(&raw.name) else {
                continue;
            };
            let Ok(arguments) = object(raw.arguments.clone(), reply.cut) else {
                continue;
            };
            let check = check.get_or_init(|| Check::of(&raw.name, schema));
            let given = Value::Object(without_nulls(&arguments, schema));
            if is_here(check, &given) {
                continue;
            }
            let error = match check {
                Check::Refused(why) => {
                    let message = format!(
                        "the tool was not called, since its server gives a schema that cannot be checked ({why}); its maker must change it"
                    );
                    Some(ToolError::with_content(
                        ToolErrorCode::UnusableSchema,
                        message,
                    ))
                }
                _ => match evaluators().misfit(schema, &given).await {
                    Ok(misfit) => misfit.map(|misfit| misfit_error(&misfit)),
                    Err(error) => Some(invalid_arguments(format!(
                        "they could not be checked against the tool's schema: {error}; the tool was not called"
                    ))),
                },
            };
            found.insert(number, error);
        }
        found
    }

    /// The error of a call, or `None` if the call can be executed.
    fn wrong_with(&self, name: &str, arguments: &Map<String, Value>) -> Option<ToolError> {
        let Some((schema, check)) = self.offers.get(name) else {
            let known: Vec<_> = self.offers.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "there are none".to_owned()
            } else {
                format!("there are {}", known.join(", "))
            };
            let message = format!("there is no tool {name:?}; {known}");
            return Some(ToolError::new(ToolErrorCode::UnknownTool, message));
        };
        let Check::Here(validator, _) = check.get_or_init(|| Check::of(name, schema)) else {
            return None;
        };
        let given = Value::Object(without_nulls(arguments, schema));
        first_misfit(validator, &given).map(|misfit| misfit_error(&misfit))
    }
}

/// Whether this value is checked on the async thread.
fn is_here(check: &Check, given: &Value) -> bool {
    match check {
        Check::Here(_, nodes) => {
            let room = CHECKS_HERE_MAX / nodes;
            *nodes == 1 || size(given, room) < room
        }
        Check::Nowhere => true,
        Check::Elsewhere | Check::Refused(_) => false,
    }
}

fn invalid_arguments(message: String) -> ToolError {
    ToolError::new(ToolErrorCode::InvalidArguments, message)
}

fn misfit_error(misfit: &Misfit) -> ToolError {
    let field = misfit.place.trim_start_matches('/').replace('/', ".");
    let field = if field.is_empty() {
        String::new()
    } else {
        format!("`{field}`: ")
    };
    // The validator's message repeats the value, which may be a whole file.
    let mut message: String = misfit.message.chars().take(MESSAGE_CHARS_MAX).collect();
    if message.chars().count() == MESSAGE_CHARS_MAX {
        message.push('…');
    }
    invalid_arguments(format!("{field}{message}"))
}

/// Removes optional arguments that are `null`: some models send `null` for an absent argument.
fn without_nulls(arguments: &Map<String, Value>, schema: &Value) -> Map<String, Value> {
    let required = schema.get("required").and_then(Value::as_array);
    let is_required =
        |name: &str| required.is_some_and(|r| r.iter().any(|n| n.as_str() == Some(name)));
    arguments
        .iter()
        .filter(|(name, value)| !value.is_null() || is_required(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Parses arguments as an object. The error holds what the transcript keeps of them, and a message for the model.
fn object(
    arguments: RawArguments,
    cut: bool,
) -> Result<Map<String, Value>, (Map<String, Value>, ToolError)> {
    let text = match arguments {
        RawArguments::Value(Value::Object(map)) => return Ok(map),
        RawArguments::Value(Value::Null) => return Ok(Map::new()),
        RawArguments::Value(other) => other.to_string(),
        RawArguments::Text(text) if text.trim().is_empty() => return Ok(Map::new()),
        RawArguments::Text(text) => text,
    };
    let why = match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(map)) => return Ok(map),
        Ok(_) => "they are JSON, but not an object".to_owned(),
        Err(_) if cut => "your answer reached its maximum length and was cut off within them; do the same in smaller parts".to_owned(),
        Err(error) => format!("they are not JSON ({error})"),
    };
    let mut start: String = text.chars().take(MESSAGE_CHARS_MAX).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    let kept = Map::from_iter([("unreadable_arguments".to_owned(), json!(start))]);
    Err((
        kept,
        invalid_arguments(format!("the arguments cannot be read: {why}")),
    ))
}

/// Converts an answer to a turn. `empty`: the number of consecutive empty answers before this one. `id` generates call
/// ids.
pub(super) fn turn(
    reply: Reply,
    (toolbox, checked): (&Toolbox, &BTreeMap<usize, Option<ToolError>>),
    mut call: ModelCall,
    empty: u32,
    id: impl Fn() -> String,
) -> Turn {
    let mut moves = Vec::new();
    let mut refused = Vec::new();
    let has_text = !reply.text.trim().is_empty();
    // A withheld answer never finishes the run and none of its calls is executed, even if it arrived completely.
    let calls = match reply.filtered {
        Some(_) => Vec::new(),
        None => reply.calls,
    };
    let ends = has_text && calls.is_empty() && !reply.cut && reply.filtered.is_none();
    if ends {
        moves.push(Move::Finish { text: reply.text });
    } else if has_text {
        moves.push(Move::Say { text: reply.text });
    }
    let has_calls = !calls.is_empty();
    for (number, raw) in calls.into_iter().enumerate() {
        let id = id();
        if !raw.signatures.is_empty() {
            call.signatures.insert(id.clone(), raw.signatures);
        }
        let (arguments, error) = match object(raw.arguments, reply.cut) {
            Ok(arguments) => {
                let known = checked.get(&number).cloned();
                let error = known.unwrap_or_else(|| toolbox.wrong_with(&raw.name, &arguments));
                (arguments, error)
            }
            Err((kept, error)) => (kept, Some(error)),
        };
        refused.extend(error.map(|error| (moves.len(), error)));
        moves.push(Move::Call {
            id: Some(id),
            name: raw.name,
            arguments,
        });
    }
    let calls = moves.len() - usize::from(has_text);
    call.answer = match (has_text, calls > refused.len()) {
        _ if reply.filtered.is_some() => AnswerKind::Refused,
        (true, _) if !has_calls && reply.cut => AnswerKind::Cut,
        (true, _) | (_, true) => AnswerKind::Whole,
        (false, false) => AnswerKind::Empty,
    };
    if let Some(word) = reply.filtered {
        let ModelError { code, message } = refused_by(&call.model, &word);
        moves.push(Move::Fail { code, message });
    } else if call.answer == AnswerKind::Empty && empty + 1 >= EMPTY_ANSWERS_MAX {
        let model = &call.model;
        moves.push(Move::Fail {
            code: "model_no_answer",
            message: format!("{EMPTY_ANSWERS_MAX} answers in a row of {model} contained neither text nor a call that could be executed; use another model, or change the instructions, then retry the run"),
        });
    }
    let mark = |action| MarkedMove { action, mark: None };
    Turn {
        notes: vec![Body::ModelCall { call }],
        moves: moves.into_iter().map(mark).collect(),
        refused,
        ..Turn::default()
    }
}
