//! The sources of values: settings file, environment, flags. Also finds unknown names.
//!
//! Only [`read_file`] and [`environment`] access the outside world. Everything else is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use super::connections::{STDIO, Table};
use super::kinds::Shape;
use super::models::TABLES;
use super::problems::{ConfigErrors, Origin, Problem};
use super::secret::MASTER_KEY;

/// The settings file that is read if none is named, provided it exists.
pub const DEFAULT_FILE: &str = "errand.toml";

const PREFIX: &str = "ERRAND_";
const CONFIG_VARIABLE: &str = "ERRAND_CONFIG";

/// `ERRAND_*` environment variables that are not settings of the server.
const OTHER_VARIABLES: [&str; 5] = [
    "ERRAND_API_KEY",
    "ERRAND_URL",
    CONFIG_VARIABLE,
    "ERRAND_SEED",
    "ERRAND_NEW_MASTER_KEY",
];

/// Settings of earlier versions, whose values are fixed now.
const REMOVED: [&str; 3] = [
    "sandbox.waiting_shells_max",
    "store.cache_kib",
    "store.read_connections",
];

/// The content of a settings file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsFile {
    /// Path as given, for messages.
    pub path: PathBuf,
    /// Content, in TOML.
    pub text: String,
}

/// Reads the settings file: the one that `--config` names, otherwise the one that `ERRAND_CONFIG` names, otherwise
/// `errand.toml` in the working directory. Returns `None` if that last one does not exist.
///
/// # Errors
/// One problem, if a named file does not exist, or if the file cannot be read or is not UTF-8.
pub fn read_file(
    flags: &super::Flags,
    env: &BTreeMap<String, String>,
) -> Result<Option<SettingsFile>, ConfigErrors> {
    let variable = env.get(CONFIG_VARIABLE).filter(|value| !value.is_empty());
    let (path, origin) = match (&flags.config, variable) {
        (Some(path), _) => (path.clone(), Some(Origin::Flag("--config"))),
        (None, Some(path)) => (
            PathBuf::from(path),
            Some(Origin::Environment(CONFIG_VARIABLE.to_owned())),
        ),
        (None, None) => (PathBuf::from(DEFAULT_FILE), None),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(SettingsFile { path, text })),
        Err(error) if origin.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot_read(&path, origin, &error)),
    }
}

fn cannot_read(path: &Path, origin: Option<Origin>, error: &io::Error) -> ConfigErrors {
    let origin = origin.unwrap_or_else(|| Origin::File(path.display().to_string()));
    let message = format!(
        "the settings file {} cannot be read: {error}",
        path.display()
    );
    ConfigErrors::from(Problem {
        origin,
        name: None,
        message,
    })
}

/// The variables in `std::env::vars_os()` that are text: those of the program, which begin with `ERRAND_`, and others
/// that settings can name (keys of providers).
///
/// # Errors
/// A problem for each `ERRAND_` variable whose value is not UTF-8, because a path that is only partly read would be
/// another path.
pub fn environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigErrors> {
    let (mut ours, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, value) in variables {
        let Some(name) = name.to_str() else {
            continue;
        };
        match value.into_string() {
            Ok(value) => {
                ours.insert(name.to_owned(), value);
            }
            Err(_) if !name.starts_with(PREFIX) => {}
            Err(_) => problems.push(Problem {
                origin: Origin::Environment(name.to_owned()),
                name: None,
                message: "is not UTF-8".to_owned(),
            }),
        }
    }
    ConfigErrors::of(problems).map_or(Ok(ours), Err)
}

/// The variable of a setting: `server.tls.cert` is `ERRAND_SERVER__TLS__CERT`.
pub(super) fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('.', "__").to_ascii_uppercase())
}

/// A value in the form of its source.
#[derive(Clone, Debug)]
pub(super) enum Given {
    Toml(toml::Value),
    Text(String),
}

impl Given {
    /// The value as text, if its TOML type is accepted.
    pub(super) fn text(&self, shape: Shape) -> Result<String, String> {
        use toml::Value;
        let value = match self {
            Self::Text(text) => return Ok(text.trim().to_owned()),
            Self::Toml(value) => value,
        };
        match (shape, value) {
            (Shape::Bool, Value::Boolean(value)) => Ok(value.to_string()),
            (Shape::Whole | Shape::WholeOrText, Value::Integer(value)) => Ok(value.to_string()),
            (Shape::Text | Shape::WholeOrText | Shape::List, Value::String(text)) => {
                Ok(text.clone())
            }
            (Shape::List, Value::Array(items)) => {
                let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                texts
                    .map(|texts| texts.join(","))
                    .ok_or_else(|| "must be a list of quoted strings".to_owned())
            }
            (shape, value) => Err(wrong_type(shape, value)),
        }
    }
}

fn wrong_type(shape: Shape, value: &toml::Value) -> String {
    let expected = match shape {
        Shape::Bool => "true or false (without quotes)",
        Shape::Whole => "a whole number (without quotes)",
        Shape::Text => "a quoted string",
        Shape::WholeOrText => "a whole number or a quoted string",
        Shape::List => "a list of quoted strings",
    };
    format!("has the type {}, but must be {expected}", value.type_str())
}

/// The values of all sources, in order of increasing precedence.
#[derive(Default)]
pub(super) struct Sources {
    values: BTreeMap<String, Vec<(Origin, Given)>>,
    /// Names of variables that cannot belong to a setting.
    strange: Vec<String>,
    /// Variables without `__`, which are not settings but may be meant as such.
    single: Vec<String>,
    unreadable: Vec<Problem>,
    /// Tables whose keys the operator chooses, unparsed.
    tables: BTreeMap<&'static str, Vec<(Origin, toml::Table)>>,
}

impl Sources {
    fn add(&mut self, name: String, origin: Origin, given: Given) {
        self.values.entry(name).or_default().push((origin, given));
    }

    /// Adds a file. Invalid TOML becomes a problem, whose message does not quote the file, because it may contain
    /// secrets.
    pub(super) fn add_file(&mut self, file: &SettingsFile) {
        let origin = Origin::File(file.path.display().to_string());
        match file.text.parse::<toml::Table>() {
            Ok(table) => self.add_table("", table, &origin),
            Err(error) => {
                let before = error.span().and_then(|span| file.text.get(..span.start));
                let line = before.map(|text| format!("line {}: ", text.matches('\n').count() + 1));
                let message = format!(
                    "{}{}",
                    line.unwrap_or_default(),
                    error.message().replace('\n', "; ")
                );
                self.unreadable.push(Problem {
                    origin,
                    name: None,
                    message,
                });
            }
        }
    }

    fn add_table(&mut self, prefix: &str, table: toml::Table, origin: &Origin) {
        for (key, value) in table {
            // A quoted key with a dot is a different key from the path that it looks like.
            let key = if key.contains('.') {
                format!("{key:?}")
            } else {
                key
            };
            let name = if prefix.is_empty() {
                key
            } else {
                format!("{prefix}.{key}")
            };
            if let Some(own) = TABLES.into_iter().find(|own| *own == name)
                && let toml::Value::Table(table) = value
            {
                let given = self.tables.entry(own).or_default();
                given.push((origin.clone(), table));
                continue;
            }
            match value {
                toml::Value::Table(table) if !table.is_empty() => {
                    self.add_table(&name, table, origin)
                }
                value => self.add(name, origin.clone(), Given::Toml(value)),
            }
        }
    }

    pub(super) fn add_environment(&mut self, env: &BTreeMap<String, String>) {
        for (variable_name, value) in env {
            let Some(rest) = variable_name.strip_prefix(PREFIX) else {
                continue;
            };
            let name = rest.to_ascii_lowercase().replace("__", ".");
            if !rest.contains("__") && name != MASTER_KEY {
                self.single.push(variable_name.clone());
            } else if variable(&name) == *variable_name {
                self.add(
                    name,
                    Origin::Environment(variable_name.clone()),
                    Given::Text(value.clone()),
                );
            } else {
                self.strange.push(variable_name.clone());
            }
        }
    }

    pub(super) fn add_flag(&mut self, name: &str, flag: &'static str, value: &str) {
        self.add(
            name.to_owned(),
            Origin::Flag(flag),
            Given::Text(value.to_owned()),
        );
    }

    /// The values for a setting, in order of increasing precedence.
    pub(super) fn given(&self, name: &str) -> &[(Origin, Given)] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// The entries of a table whose keys the operator chooses.
    pub(super) fn table(&self, name: &str) -> Vec<(Origin, String, toml::Value)> {
        let given = self.tables.get(name).into_iter().flatten();
        given
            .flat_map(|(origin, table)| {
                table
                    .iter()
                    .map(|(key, value)| (origin.clone(), key.clone(), value.clone()))
            })
            .collect()
    }

    /// The tables of the settings file below a prefix, by the next part of the name. Other sources cannot set them.
    pub(super) fn tables(&self, prefix: &str) -> BTreeMap<String, Table> {
        let mut tables: BTreeMap<String, Table> = BTreeMap::new();
        for (name, given) in &self.values {
            let Some((table, key)) = name.strip_prefix(prefix).and_then(|n| n.split_once('.'))
            else {
                continue;
            };
            for (origin, value) in given {
                if let Given::Toml(value) = value {
                    tables
                        .entry(table.to_owned())
                        .or_insert_with(|| Table {
                            origin: origin.clone(),
                            values: BTreeMap::new(),
                        })
                        .values
                        .insert(key.to_owned(), value.clone());
                }
            }
        }
        tables
    }

    pub(super) fn unreadable(&self) -> Vec<Problem> {
        self.unreadable.clone()
    }

    /// A problem for each name that is not in `known`.
    pub(super) fn unknown(&self, known: &[&'static str]) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, values) in &self.values {
            if known.contains(&name.as_str()) {
                continue;
            }
            // These are read as tables from the file.
            let tables = name.starts_with(STDIO) && name.matches('.').count() > 2;
            for (origin, given) in values {
                if tables && matches!(given, Given::Toml(_)) {
                    continue;
                }
                problems.extend(unknown_name(name, origin, given, known));
            }
        }
        let meant = self
            .single
            .iter()
            .filter(|variable_name| is_misspelt(variable_name, known));
        for variable_name in self.strange.iter().chain(meant) {
            problems.push(unknown_variable(variable_name, known));
        }
        problems
    }

    /// Warnings about variables that are not read although their last word is that of a setting: `ERRAND_LISTEN`. Not
    /// errors, because other programs (such as an orchestrator's service links) may set these names.
    pub(super) fn doubtful_variables(&self, known: &[&'static str]) -> Vec<String> {
        let mut sentences = Vec::new();
        for variable_name in &self.single {
            let rest = variable_name
                .strip_prefix(PREFIX)
                .unwrap_or(variable_name)
                .to_ascii_lowercase();
            let meant: BTreeSet<_> = known
                .iter()
                .filter(|name| name.ends_with(&format!(".{rest}")))
                .map(|name| format!("the variable of {name} is {}", variable(name)))
                .collect();
            if !meant.is_empty() {
                let meant: Vec<String> = meant.into_iter().collect();
                sentences.push(format!(
                    "{variable_name} is not read; {}.",
                    meant.join(", ")
                ));
            }
        }
        sentences
    }
}

fn unknown_name(
    name: &str,
    origin: &Origin,
    given: &Given,
    known: &[&'static str],
) -> Option<Problem> {
    if let Origin::Environment(variable_name) = origin {
        return Some(unknown_variable(variable_name, known));
    }
    let is_section = known.iter().any(|known| {
        known
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'))
    });
    let empty_table = matches!(given, Given::Toml(toml::Value::Table(table)) if table.is_empty());
    let message = match is_section {
        true if empty_table => return None,
        true => format!("is a section; write [{name}] with its settings below it"),
        false => not_a_setting(name, nearest(name, known)),
    };
    Some(Problem {
        origin: origin.clone(),
        name: Some(name.to_owned()),
        message,
    })
}

fn unknown_variable(variable_name: &str, known: &[&'static str]) -> Problem {
    let name = setting_like(variable_name);
    let message = not_a_setting(&name, nearest(&name, known).map(variable));
    Problem {
        origin: Origin::Environment(variable_name.to_owned()),
        name: Some(name),
        message,
    }
}

fn not_a_setting(name: &str, nearest: Option<impl Display>) -> String {
    if REMOVED.contains(&name) {
        return "was removed, because the server uses a fixed value; delete it".to_owned();
    }
    match nearest {
        Some(nearest) => format!("is not a setting; did you mean {nearest}?"),
        None => "is not a setting; `errand config` lists all settings".to_owned(),
    }
}

fn setting_like(variable_name: &str) -> String {
    variable_name
        .strip_prefix(PREFIX)
        .unwrap_or(variable_name)
        .to_ascii_lowercase()
        .replace("__", ".")
}

/// Whether a variable without `__` is so similar to a setting's that it must be a misspelling: `ERRAND_SERVER_LISTEN`,
/// `ERRAND_MASTERKEY`.
fn is_misspelt(variable_name: &str, known: &[&'static str]) -> bool {
    let rest = setting_like(variable_name);
    !OTHER_VARIABLES.contains(&variable_name)
        && known
            .iter()
            .any(|name| strsim::damerau_levenshtein(&rest, &name.replace('.', "_")) <= 1)
}

/// Minimum similarity, on a scale up to 2. Below it, a name is not a misspelling of the nearest setting, and a
/// suggestion would mislead.
const LIKENESS_MIN: f64 = 1.0;

/// The setting with the most similar name, if any is similar enough. The last word counts as much as the whole name, so
/// that a setting in the wrong section is found.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let inside = |known: &str| {
        name.strip_prefix(known)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    if let Some(outer) = known.iter().find(|known| inside(known)) {
        return Some(outer);
    }
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |known: &str| {
        strsim::normalized_damerau_levenshtein(&name.replace('.', "_"), &known.replace('.', "_"))
            + strsim::normalized_damerau_levenshtein(&last(name), &last(known))
    };
    let scored = known.iter().map(|known| (likeness(known), *known));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(score, _)| *score >= LIKENESS_MIN)
        .map(|(_, known)| known)
}
