//! Reads settings out of the sources, one after the other, and keeps the account of it: a line for the table and a
//! problem for each value that is wrong. The calls of [`Reader::take`] *are* the list of settings.

use std::collections::BTreeMap;

use serde::Serialize;

use super::connections::Table;
use super::kinds::Setting;
use super::problems::{ConfigErrors, Origin, Problem};
use super::sources::{Sources, variable};

/// One setting as `errand config` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingLine {
    /// `section.name`: the key in the settings file.
    pub name: &'static str,
    /// The environment variable.
    pub env: String,
    /// The value that holds, as the environment variable would take it; null where there is none.
    /// A secret is `(set)` or `(not set)`.
    pub value: Option<String>,
    /// Where the value came from: `default`, the file's path, the variable's name, the flag.
    pub origin: Origin,
    /// The value that holds where nothing is set, in the same form.
    pub default: Option<String>,
    /// What is counted; empty where that goes without saying.
    pub unit: &'static str,
    /// Which values are right: a range, a list of words, or a form.
    pub allowed: String,
    /// What the setting does, in one sentence.
    pub doc: &'static str,
}

/// See the module's document.
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

    /// The value of `name` by the last source that gives it; every source's value is checked.
    /// Where one is wrong, the problem is recorded and reading goes on.
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
                let message = format!("is a secret and may stand in {} alone", variable(name));
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

    /// Two settings that are set together or not at all. Says nothing where one of them is wrong anyway.
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
            let message = format!("is set without {missing}; set both, or neither");
            self.problem(origin, there, message);
        }
        None
    }

    /// The tables of a settings file below a name, by the next part of their names.
    pub(super) fn tables(&self, prefix: &str) -> BTreeMap<String, Table> {
        self.sources.tables(prefix)
    }

    /// Notes a problem that a section found by itself.
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

    pub(super) fn lines(&self) -> Vec<SettingLine> {
        self.lines.clone()
    }

    /// Variables that look like a setting, may be something else, and are not read; a sentence for each.
    pub(super) fn not_read(&self) -> Vec<String> {
        self.sources.doubtful_variables(&self.names())
    }

    fn names(&self) -> Vec<&'static str> {
        self.lines.iter().map(|line| line.name).collect()
    }

    /// To be called once every setting has been taken: adds the names that are none.
    pub(super) fn finish(mut self) -> Result<(), ConfigErrors> {
        let mut problems = self.sources.unreadable();
        problems.append(&mut self.problems);
        problems.extend(self.sources.unknown(&self.names()));
        ConfigErrors::of(problems).map_or(Ok(()), Err)
    }
}

/// Declares a section: its struct, and how it is read. A field's document is one sentence; it is what `errand config`
/// says about the setting. Fields after `with` are read by a function of their own, from settings of their own.
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
