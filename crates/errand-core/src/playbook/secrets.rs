//! Where a playbook names secrets: in the arguments of the tools that may have them, and nowhere else.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::BadPlaybook;
use super::template::names_read;
use crate::{place, secret};

const WHERE: &str = "a secret stands in the arguments of `fetch_url` and of connections' tools alone, as {{ secret.NAME }}";

/// The names of the secrets that a list of steps has marks of.
///
/// # Errors
/// The place of the first mark that may not stand where it does.
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
        .is_some_and(secret::may_hold);
    for (key, value) in step {
        let path = place::of_key(path, key);
        match key.as_str() {
            "with" if holds => collect(&path, value, names)?,
            "steps" => names.extend(of_steps(&path, value)?),
            _ => none_in(&path, value)?,
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
                            message: "a secret is named as {{ secret.NAME }}, and in no other way"
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
            none_in(path, &Json::String(key.clone()))?;
            collect(&place::of_key(path, key), item, names)
        }),
        Json::Null | Json::Bool(_) | Json::Number(_) => Ok(()),
    }
}

fn none_in(path: &str, value: &Json) -> Result<(), BadPlaybook> {
    let reads = |source: &str| {
        names_read(source)
            .iter()
            .any(|name| name == "secret" || name.starts_with("secret."))
    };
    let refused = |path: String| {
        Err(BadPlaybook {
            path,
            message: WHERE.to_owned(),
        })
    };
    match value {
        Json::String(source) if reads(source) => refused(path.to_owned()),
        Json::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| none_in(&place::of_item(path, index), item)),
        Json::Object(map) => map.iter().try_for_each(|(key, item)| {
            if reads(key) {
                return refused(place::of_key(path, key));
            }
            none_in(&place::of_key(path, key), item)
        }),
        _ => Ok(()),
    }
}
