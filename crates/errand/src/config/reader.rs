//! Reads one setting after another from the sources, and records a table line for each setting and a problem for each
//! invalid value. The calls of [`Reader::take`] *are* the list of settings.

use std::collections::BTreeMap;

use serde::Serialize;

use super::connections::Table;
use super::kinds::Setting;
use super::problems::{ConfigErrors, Origin, Problem};
use super::sources::{Sources, variable};

/// A setting as displayed by `errand config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingLine {
    /// `section.name`, as in the settings file.
    pub name: &'static str,
    /// Name of the environment variable.
    pub env: String,
    /// The effective value, in the form of the environment variable; null if there is none. Secrets are `(set)` or
    /// `(not set)`.
    pub value: Option<String>,
    /// Origin of the value: `default`, path of the file, name of the variable, or flag.
    pub origin: Origin,
    /// The default, in the same form; null if there is none.
    pub default: Option<String>,
    /// Unit of the value; empty if it needs none.
    pub unit: &'static str,
    /// The valid values: a range, a list of words, or a form.
    pub allowed: String,
    /// Description in one or two sentences.
    pub doc: &'static str,
}

/// See the module documentation.
pub(super) struct Reader<'s> {
    sources: &'s Sources,
    lines: Vec<SettingLine>,
    problems: Vec<Problem>,
}

impl<'s> Reader<'s> {
    pub(super) fn new(sources: &'s Sources) -> Self {
        Self {
            sources,
            lines: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Reads a setting and returns the value of the last source that sets it. The values of all sources are checked; an
    /// invalid one is recorded as a problem, and reading continues.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        doc: &'static str,
        setting: Setting<T>,
    ) -> T {
        let default = (setting.show)(&setting.default);
        let (mut value, mut from) = (setting.default, Origin::Default);
        for (origin, given) in self.sources.given(name) {
            if setting.environment_only && !matches!(origin, Origin::Environment(_)) {
                let message = format!("is a secret and can only be set with {}", variable(name));
                self.problem(origin.clone(), name, message);
                continue;
            }
            match given
                .text(setting.shape)
                .and_then(|text| (setting.parse)(&text))
            {
                Ok(parsed) => (value, from) = (parsed, origin.clone()),
                Err(message) => self.problem(origin.clone(), name, message),
            }
        }
        self.lines.push(SettingLine {
            name,
            env: variable(name),
            value: (setting.show)(&value),
            origin: from,
            default,
            unit: setting.unit,
            allowed: setting.allowed,
            doc: doc.trim_start(),
        });
        value
    }

    /// Two settings that must be set together. Reports nothing if one of them is invalid anyway.
    pub(super) fn both<A, B>(
        &mut self,
        a: (&str, Option<A>),
        b: (&str, Option<B>),
    ) -> Option<(A, B)> {
        let ((a, first), (b, second)) = (a, b);
        let (there, missing) = match (first, second) {
            (Some(first), Some(second)) => return Some((first, second)),
            (None, None) => return None,
            (Some(_), None) => (a, b),
            (None, Some(_)) => (b, a),
        };
        if !self
            .problems
            .iter()
            .any(|problem| problem.name.as_deref() == Some(missing))
        {
            let line = self.lines.iter().find(|line| line.name == there);
            let origin = line.map_or(Origin::Default, |line| line.origin.clone());
            let message = format!("is set without {missing}; set both or neither");
            self.problem(origin, there, message);
        }
        None
    }

    /// The tables of the settings file below a prefix, by the next part of their names.
    pub(super) fn tables(&self, prefix: &str) -> BTreeMap<String, Table> {
        self.sources.tables(prefix)
    }

    /// Records a problem that a section has found.
    pub(super) fn wrong(&mut self, origin: Origin, name: &str, message: String) {
        self.problem(origin, name, message);
    }

    fn problem(&mut self, origin: Origin, name: &str, message: String) {
        self.problems.push(Problem {
            origin,
            name: Some(name.to_owned()),
            message,
        });
    }

    /// The entries of a table whose keys the operator chooses.
    pub(super) fn table(&self, name: &str) -> Vec<(Origin, String, toml::Value)> {
        self.sources.table(name)
    }

    /// Records a problem in such a table.
    pub(super) fn report(&mut self, origin: Origin, name: String, message: String) {
        self.problems.push(Problem {
            origin,
            name: Some(name),
            message,
        });
    }

    pub(super) fn lines(&self) -> Vec<SettingLine> {
        self.lines.clone()
    }

    /// Warnings about variables that resemble a setting but are not read.
    pub(super) fn not_read(&self) -> Vec<String> {
        self.sources.doubtful_variables(&self.names())
    }

    fn names(&self) -> Vec<&'static str> {
        self.lines.iter().map(|line| line.name).collect()
    }

    /// Must be called after all settings have been read. Adds the unknown names.
    pub(super) fn finish(mut self) -> Result<(), ConfigErrors> {
        let mut problems = self.sources.unreadable();
        problems.append(&mut self.problems);
        problems.extend(self.sources.unknown(&self.names()));
        ConfigErrors::of(problems).map_or(Ok(()), Err)
    }
}

/// Declares a section: its struct, and how it is read. A field's doc comment is one or two sentences, which `errand
/// config` displays as the description of the setting. Fields after `with` have their own functions, which read further
/// settings.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $Section:ident[$prefix:literal] {
            $( $(#[doc = $doc:literal])+ $field:ident: $T:ty = $setting:expr, )+
        }
        $( with { $( $(#[doc = $more:literal])+ $other:ident: $U:ty = $read:path, )+ } )?
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $Section {
            $( $(#[doc = $doc])+ pub $field: $T, )+
            $( $( $(#[doc = $more])+ pub $other: $U, )+ )?
        }

        impl $Section {
            pub(super) fn read(reader: &mut $crate::config::reader::Reader<'_>) -> Self {
                Self {
                    $( $field: reader.take(concat!($prefix, ".", stringify!($field)), concat!($($doc),+), $setting), )+
                    $( $( $other: $read(reader), )+ )?
                }
            }
        }
    };
}
pub(super) use section;
