//! Checks where a playbook refers to secrets: only in the arguments of tools that accept them.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::BadPlaybook;
use super::template::names_read;
use crate::{place, secret};

const ALLOWED_PLACES: &str = "secrets are only allowed in the arguments of `fetch_url` and of connections' tools, as {{ secret.NAME }}";

/// Collects the names of the secrets that a list of steps refers to.
///
/// # Errors
/// The place of the first reference that is not allowed there.
pub(super) fn of_steps(path: &str, steps: &Json) -> Result<BTreeSet<String>, BadPlaybook> {
    let mut names = BTreeSet::new();
    for (index, step) in steps.as_array().into_iter().flatten().enumerate() {
        if let Some(step) = step.as_object() {
            of_step(&place::of_item(path, index), step, &mut names)?;
        }
    }
    Ok(names)
}

fn of_step(
    path: &str,
    step: &Map<String, Json>,
    names: &mut BTreeSet<String>,
) -> Result<(), BadPlaybook> {
    let holds = step
        .get("tool")
        .and_then(Json::as_str)
        .is_some_and(secret::accepts_marks);
    for (key, value) in step {
        let path = place::of_key(path, key);
        match key.as_str() {
            "with" if holds => collect(&path, value, names)?,
            "steps" => names.extend(of_steps(&path, value)?),
            _ => reject_in(&path, value)?,
        }
    }
    Ok(())
}

fn collect(path: &str, value: &Json, names: &mut BTreeSet<String>) -> Result<(), BadPlaybook> {
    match value {
        Json::String(source) => {
            for read in names_read(source) {
                match read.strip_prefix("secret.") {
                    Some(name) if secret::is_name(name) => {
                        names.insert(name.to_owned());
                    }
                    _ if read == "secret" || read.starts_with("secret.") => {
                        return Err(BadPlaybook {
                            path: path.to_owned(),
                            message:
                                "refer to a secret as {{ secret.NAME }}; no other form is supported"
                                    .to_owned(),
                        });
                    }
                    _ => {}
                }
            }
            Ok(())
        }
        Json::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| collect(&place::of_item(path, index), item, names)),
        Json::Object(map) => map.iter().try_for_each(|(key, item)| {
            reject_in(path, &Json::String(key.clone()))?;
            collect(&place::of_key(path, key), item, names)
        }),
        Json::Null | Json::Bool(_) | Json::Number(_) => Ok(()),
    }
}

fn reject_in(path: &str, value: &Json) -> Result<(), BadPlaybook> {
    let reads = |source: &str| {
        names_read(source)
            .iter()
            .any(|name| name == "secret" || name.starts_with("secret."))
    };
    let refused = |path: String| {
        Err(BadPlaybook {
            path,
            message: ALLOWED_PLACES.to_owned(),
        })
    };
    match value {
        Json::String(source) if reads(source) => refused(path.to_owned()),
        Json::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| reject_in(&place::of_item(path, index), item)),
        Json::Object(map) => map.iter().try_for_each(|(key, item)| {
            if reads(key) {
                return refused(place::of_key(path, key));
            }
            reject_in(&place::of_key(path, key), item)
        }),
        _ => Ok(()),
    }
}
