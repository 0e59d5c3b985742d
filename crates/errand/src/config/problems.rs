//! Problems in the settings, and the origins of values.

use std::fmt;

use serde::{Serialize, Serializer};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A settings file, with its path as given.
    File(String),
    /// An environment variable, with its name.
    Environment(String),
    /// A command-line flag, such as `--listen`.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File(text) | Self::Environment(text) => text,
            Self::Flag(flag) => flag,
        })
    }
}

/// Serialized like [`Display`](fmt::Display).
impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A problem, for example `errand.toml: engine.max_concurrent_runs: 0 is not in 1..=10000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub origin: Origin,
    /// Name of the setting (`section.name`), or the unknown name. `None` if the whole file is invalid.
    pub name: Option<String>,
    /// What is wrong, and which values are valid.
    pub message: String,
}

impl fmt::Display for Problem {
    /// Variables and flags identify their setting by themselves; a file does not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, &self.name) {
            (Origin::File(path), Some(name)) => write!(f, "{path}: {name}: {}", self.message),
            (origin, _) => write!(f, "{origin}: {}", self.message),
        }
    }
}

/// All problems in the settings, at least one. Displayed one per line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    /// `None` if there are no problems.
    pub(super) fn of(problems: Vec<Problem>) -> Option<Self> {
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// The problems: first those of values, in the order of the settings, then unknown names.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Problem> for ConfigErrors {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
