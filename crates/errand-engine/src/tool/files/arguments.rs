//! Arguments of built-in tools: generates the JSON schema from a Rust type, and deserializes a call's arguments.
//!
//! Errors are derived from the schema, so that they name the argument and its type: the caller is usually a model,
//! which corrects its call from the message alone.

use errand_core::policy::{Hints, Settle, builtin};
use errand_core::tool_error::ToolError;
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::CallError;

/// The hints of a built-in tool. A tool that is missing in the policy's table gets the most restrictive hints.
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

/// The JSON schema of `T` in a form that every provider accepts: no references, titles or number formats, and no `null`
/// for optional arguments (which is accepted nevertheless).
pub(in crate::tool) fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    // The doc comment of the type is for developers, not for models.
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

/// Deserializes the arguments of a call.
///
/// # Errors
/// [`CallError::Arguments`] names the argument and its type.
pub(in crate::tool) fn read<T: JsonSchema + for<'a> Deserialize<'a>>(
    arguments: &Map<String, Value>,
) -> Result<T, CallError> {
    T::deserialize(arguments).map_err(|error| {
        CallError::Arguments(
            explain(&schema_of::<T>(), arguments).unwrap_or_else(|| error.to_string()),
        )
    })
}

/// Same as [`read`], with the error that the call gets.
pub(in crate::tool) fn parse<T: JsonSchema + for<'a> Deserialize<'a>>(
    arguments: &Map<String, Value>,
) -> Result<T, ToolError> {
    read(arguments).map_err(|error| error.to_tool_error())
}

/// Describes the error, as far as the schema shows it.
fn explain(schema: &Value, arguments: &Map<String, Value>) -> Option<String> {
    let properties = schema.get("properties")?.as_object()?;
    if let Some(name) = arguments
        .keys()
        .find(|name| !properties.contains_key(*name))
    {
        let mut known: Vec<_> = properties.keys().map(|name| format!("`{name}`")).collect();
        known.sort_unstable();
        return Some(format!(
            "`{name}` is not an argument of this tool; its arguments are {}",
            known.join(", ")
        ));
    }
    let required = schema.get("required").and_then(Value::as_array);
    let required = required.into_iter().flatten().filter_map(Value::as_str);
    let required: Vec<&str> = required.collect();
    if let Some(name) = required.iter().find(|name| !arguments.contains_key(**name)) {
        return Some(format!(
            "`{name}` is missing: it must be {}",
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
            "`{name}`: it must be {}, not {}",
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
        "string" => "a string",
        "integer" => "an integer from 0",
        "boolean" => "true or false",
        _ => "a value that matches the tool's schema",
    }
}

fn what_it_is(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
