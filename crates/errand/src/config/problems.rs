//! What can be wrong with the settings, and where it came from.

use std::fmt;

use serde::{Serialize, Serializer};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A settings file; its path as it was given.
    File(String),
    /// An environment variable; its name.
    Environment(String),
    /// A flag of the command line, such as `--listen`.
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

/// As text, the same as [`Display`](fmt::Display).
impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing that is wrong: `errand.toml: engine.max_concurrent_runs: 0 is not in 1..=10000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the value came from.
    pub origin: Origin,
    /// The setting's name (`section.name`), or the name that is no setting. None where the file itself is wrong.
    pub name: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    /// A variable or a flag names its setting by itself; a file does not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, &self.name) {
            (Origin::File(path), Some(name)) => write!(f, "{path}: {name}: {}", self.message),
            (origin, _) => write!(f, "{origin}: {}", self.message),
        }
    }
}

/// Everything that is wrong with the settings; at least one problem. Shown with a line for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    /// None where there is no problem.
    pub(super) fn of(problems: Vec<Problem>) -> Option<Self> {
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// The problems: those of values in the order of the settings, then names that are no setting.
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
