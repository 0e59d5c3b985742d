//! Conversion between the values of templates and JSON.
//!
//! Everything that a playbook keeps is plain JSON: trees without lazy or shared parts. A value built in a template can
//! share parts and thus be far larger than what it cost to build, so each conversion is bounded.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde_json::{Map, Number, Value as Json};

use crate::limits;

/// Maximum size of one converted value, in units of about a byte: as much as the fuel of one template pays for.
const UNITS_MAX: u64 = limits::TEMPLATE_FUEL * 64;

/// Maximum size of all values that are sent to an evaluator with one template: as much as `set` may create.
pub(super) const SENT_UNITS_MAX: u64 = super::SET_BYTES_MAX;

/// Units of a value without its text.
const NODE_UNITS: u64 = 24;

/// Maximum nesting of a value: the same as in serde_json's parser.
const DEPTH_MAX: usize = 128;

/// Converts a value to JSON and returns its size in units of about a byte. Integers stay integers, floats stay floats.
///
/// # Errors
/// A clause that names what JSON cannot represent.
pub(super) fn to_json(value: &Value) -> Result<(Json, u64), String> {
    let mut left = UNITS_MAX;
    let json = convert(value, &mut left, DEPTH_MAX)?;
    Ok((json, UNITS_MAX - left))
}

/// Like [`to_json`], with a budget for several values, which it reduces.
///
/// # Errors
/// As [`to_json`].
pub(super) fn to_json_within(value: &Value, left: &mut u64) -> Result<Json, String> {
    convert(value, left, DEPTH_MAX)
}

pub(super) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => number(n),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect::<Vec<_>>().into(),
        Json::Object(map) => Value::from_pairs(
            map.iter()
                .map(|(key, value)| (key.as_str(), from_json(value))),
        ),
    }
}

fn number(n: &Number) -> Value {
    match (n.as_i64(), n.as_u64()) {
        (Some(i), _) => Value::from(i),
        (None, Some(u)) => Value::from(u),
        (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
    }
}

fn spend(left: &mut u64, units: u64) -> bool {
    match left.checked_sub(units) {
        Some(rest) => {
            *left = rest;
            true
        }
        None => false,
    }
}

fn text_units(value: &Value) -> u64 {
    let bytes = value.as_str().map_or(0, str::len);
    NODE_UNITS.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX))
}

fn convert(value: &Value, left: &mut u64, depth: usize) -> Result<Json, String> {
    if depth == 0 {
        return Err(format!(
            "gives a value that is nested deeper than {DEPTH_MAX} levels"
        ));
    }
    if !spend(left, text_units(value)) {
        return Err(format!(
            "gives a value that is too large (above about {} MB)",
            UNITS_MAX / 1_000_000
        ));
    }
    let iterate = || value.try_iter().map_err(|e| e.to_string());
    match value.kind() {
        ValueKind::None => Ok(Json::Null),
        ValueKind::Bool => Ok(Json::Bool(value.is_true())),
        ValueKind::Number => number_to_json(value),
        ValueKind::String => Ok(Json::String(value.as_str().unwrap_or_default().to_owned())),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Result<Vec<Json>, String> = iterate()?
                .map(|item| convert(&item, left, depth - 1))
                .collect();
            Ok(Json::Array(items?))
        }
        ValueKind::Map => {
            let mut map = Map::new();
            for key in iterate()? {
                let part = value.get_item(&key).map_err(|e| e.to_string())?;
                // Keys that are numbers or booleans become strings, as in JSON; containers cannot be keys.
                let name = match key.kind() {
                    ValueKind::String | ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                        key.to_string()
                    }
                    other => return Err(format!("gives an object with a {other} as a key")),
                };
                spend(left, text_units(&key));
                map.insert(name, convert(&part, left, depth - 1)?);
            }
            Ok(Json::Object(map))
        }
        ValueKind::Undefined => Err("gives a value that is not defined".to_owned()),
        other => Err(format!("gives a {other}, which JSON cannot represent")),
    }
}

fn number_to_json(value: &Value) -> Result<Json, String> {
    if value.is_integer() {
        return match (i64::try_from(value.clone()), u64::try_from(value.clone())) {
            (Ok(i), _) => Ok(Json::from(i)),
            (Err(_), Ok(u)) => Ok(Json::from(u)),
            (Err(_), Err(_)) => Err("gives a whole number beyond 64 bits".to_owned()),
        };
    }
    let float = f64::try_from(value.clone()).map_err(|e| e.to_string())?;
    Number::from_f64(float)
        .map(Json::Number)
        .ok_or_else(|| format!("gives {float}, which JSON cannot represent"))
}
