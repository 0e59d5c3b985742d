//! Arguments of built-in tools: the schema of their Rust type, and reading a call's into it.
//!
//! What does not fit is explained from the schema, so that the message names the argument and what it takes: whoever
//! made the call is often a model, and repairs it from the message alone.

use errand_core::policy::{Hints, Settle, builtin};
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::CallError;

/// The hints of a built-in tool. One that the policy's table does not know counts as the worst that a tool can be.
pub(in crate::tool) fn hints_of(name: &str) -> Hints {
    builtin(name).unwrap_or(Hints {
        read_only: false,
        destructive: true,
        idempotent: false,
        open_world: true,
        asks: false,
        untrusted: true,
        private: true,
        settle: Settle::AskPerson,
    })
}

/// The JSON schema of `T`, in the plain form that every provider takes: nothing referred to, no titles, no number
/// formats, and an optional argument without `null` (which is accepted all the same).
pub(in crate::tool) fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    // The type's own document is for readers of the code.
    schema.remove("description");
    plain(&mut schema);
    schema.to_value()
}

fn plain(schema: &mut Schema) {
    for key in ["title", "format", "default"] {
        schema.remove(key);
    }
    if let Some(Value::Array(kinds)) = schema.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [kind] = kinds.as_slice() {
            let kind = kind.clone();
            schema.insert("type".to_owned(), kind);
        }
    }
    transform_subschemas(&mut plain, schema);
}

/// Reads a call's arguments.
///
/// # Errors
/// [`CallError::Arguments`] names the argument and what it takes.
pub(in crate::tool) fn read<T: JsonSchema + for<'a> Deserialize<'a>>(
    arguments: &Map<String, Value>,
) -> Result<T, CallError> {
    T::deserialize(arguments).map_err(|error| {
        CallError::Arguments(
            explain(&schema_of::<T>(), arguments).unwrap_or_else(|| error.to_string()),
        )
    })
}

/// The same for tools that are none of files: the error as the call gets it.
pub(in crate::tool) fn read_or_say<T: JsonSchema + for<'a> Deserialize<'a>>(
    arguments: &Map<String, Value>,
) -> Result<T, String> {
    read(arguments).map_err(|error| error.text())
}

/// What is wrong with the arguments, as far as the schema tells.
fn explain(schema: &Value, arguments: &Map<String, Value>) -> Option<String> {
    let properties = schema.get("properties")?.as_object()?;
    if let Some(name) = arguments
        .keys()
        .find(|name| !properties.contains_key(*name))
    {
        let mut known: Vec<_> = properties.keys().map(|name| format!("`{name}`")).collect();
        known.sort_unstable();
        return Some(format!(
            "`{name}` is not an argument of this tool: it takes {}",
            known.join(", ")
        ));
    }
    let required = schema.get("required").and_then(Value::as_array);
    let required = required.into_iter().flatten().filter_map(Value::as_str);
    let required: Vec<&str> = required.collect();
    if let Some(name) = required.iter().find(|name| !arguments.contains_key(**name)) {
        return Some(format!(
            "`{name}` is missing: it takes {}",
            what_it_takes(properties.get(*name)?)
        ));
    }
    arguments.iter().find_map(|(name, value)| {
        let property = properties.get(name)?;
        let is_left_out = value.is_null() && !required.contains(&name.as_str());
        if is_left_out || fits(property, value) {
            return None;
        }
        Some(format!(
            "`{name}`: it takes {}, not {}",
            what_it_takes(property),
            what_it_is(value)
        ))
    })
}

fn kind(property: &Value) -> &str {
    property
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn fits(property: &Value, value: &Value) -> bool {
    match kind(property) {
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        _ => true,
    }
}

fn what_it_takes(property: &Value) -> &'static str {
    match kind(property) {
        "string" => "a text",
        "integer" => "a whole number from 0 on",
        "boolean" => "true or false",
        _ => "a value as in the tool's schema",
    }
}

fn what_it_is(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
