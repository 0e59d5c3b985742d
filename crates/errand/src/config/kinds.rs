//! The types of values: how each is parsed, which values are valid, and how it is displayed.
//!
//! All sources use text. A value of the settings file is first checked for its TOML type ([`Shape`]) and then parsed
//! like the text of an environment variable.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::duration::{parse_duration, show_duration};

/// The TOML types that a setting accepts in the settings file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Bool,
    Whole,
    Text,
    WholeOrText,
    /// An array of strings, or one string.
    List,
}

/// Parses a value. The error says what is wrong and which values are valid.
type Parse<T> = Box<dyn Fn(&str) -> Result<T, String>>;

/// How one setting is parsed and displayed.
pub(super) struct Setting<T> {
    pub(super) default: T,
    pub(super) shape: Shape,
    pub(super) unit: &'static str,
    pub(super) allowed: String,
    /// A secret, which is accepted neither in the file nor on the command line.
    pub(super) environment_only: bool,
    pub(super) parse: Parse<T>,
    /// Formats a value as text that `parse` accepts. `None` if there is no value.
    pub(super) show: fn(&T) -> Option<String>,
}

impl<T: 'static> Setting<T> {
    pub(super) fn new(
        default: T,
        shape: Shape,
        allowed: impl Into<String>,
        parse: impl Fn(&str) -> Result<T, String> + 'static,
        show: fn(&T) -> Option<String>,
    ) -> Self {
        let parse = Box::new(parse);
        Self {
            default,
            shape,
            unit: "",
            allowed: allowed.into(),
            environment_only: false,
            parse,
            show,
        }
    }

    pub(super) fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }
}

/// A whole number in a range.
pub(super) fn whole(default: u32, range: RangeInclusive<u32>) -> Setting<u32> {
    let allowed = format!("{}..={}", range.start(), range.end());
    let expected = allowed.clone();
    let parse = move |text: &str| {
        let number: i128 = text
            .parse()
            .map_err(|_| format!("{text:?} is not a whole number in {expected}"))?;
        let inside = u32::try_from(number)
            .ok()
            .filter(|number| range.contains(number));
        inside.ok_or_else(|| format!("{number} is not in {expected}"))
    };
    Setting::new(default, Shape::Whole, allowed, parse, |value| {
        Some(value.to_string())
    })
}

pub(super) fn boolean(default: bool) -> Setting<bool> {
    choice(default, Shape::Bool, &[("true", true), ("false", false)])
}

/// One of several words.
pub(super) fn words<T: Copy + Worded + 'static>(
    default: T,
    words: &'static [(&'static str, T)],
) -> Setting<T> {
    choice(default, Shape::Text, words)
}

/// A type in which each value has a word.
pub(super) trait Worded {
    fn word(&self) -> &'static str;
}

impl Worded for bool {
    fn word(&self) -> &'static str {
        if *self { "true" } else { "false" }
    }
}

fn choice<T: Copy + Worded + 'static>(
    default: T,
    shape: Shape,
    words: &'static [(&'static str, T)],
) -> Setting<T> {
    let allowed = words
        .iter()
        .map(|(word, _)| *word)
        .collect::<Vec<_>>()
        .join(" | ");
    let expected = allowed.clone();
    let parse = move |text: &str| {
        let found = words.iter().find(|(word, _)| *word == text);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("{text:?} is not one of {expected}"))
    };
    Setting::new(default, shape, allowed, parse, |value| {
        Some(value.word().to_owned())
    })
}

/// A duration such as `30s`, in a range.
pub(super) fn duration(default: Duration, range: RangeInclusive<Duration>) -> Setting<Duration> {
    let allowed = format!(
        "{}..={}",
        show_duration(*range.start()),
        show_duration(*range.end())
    );
    let expected = allowed.clone();
    let parse = move |text: &str| {
        let value = parse_duration(text).map_err(|bad| bad.to_string())?;
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(format!("{text} is not in {expected}"))
        }
    };
    let show = |value: &Duration| Some(show_duration(*value));
    Setting::new(default, Shape::Text, allowed, parse, show).unit("duration (ms, s, m, h, d)")
}

/// A size in bytes, as a number or in the form `10MiB`, in a range.
pub(super) fn size(default: u64, range: RangeInclusive<u64>) -> Setting<u64> {
    let allowed = format!(
        "{}..={}",
        show_size(*range.start()),
        show_size(*range.end())
    );
    let expected = allowed.clone();
    let parse = move |text: &str| {
        let value = parse_size(text).ok_or_else(|| {
            format!("{text:?} is not a size; write bytes, or a number with KiB, MiB, GiB or TiB")
        })?;
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(format!("{text} is not in {expected}"))
        }
    };
    let show = |value: &u64| Some(show_size(*value));
    Setting::new(default, Shape::WholeOrText, allowed, parse, show)
        .unit("bytes (KiB, MiB, GiB, TiB)")
}

const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("", 1),
];

fn parse_size(text: &str) -> Option<u64> {
    let (unit, factor) = SIZES.iter().find(|(unit, _)| text.ends_with(unit))?;
    let digits = text.strip_suffix(unit)?.trim_end();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

fn show_size(bytes: u64) -> String {
    let fits = SIZES
        .iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    fits.map_or_else(
        || bytes.to_string(),
        |(unit, factor)| format!("{}{unit}", bytes / factor),
    )
}

/// A path. Relative paths are relative to the working directory.
pub(super) fn path(default: &str) -> Setting<PathBuf> {
    let show = |value: &PathBuf| Some(value.display().to_string());
    Setting::new(
        PathBuf::from(default),
        Shape::Text,
        "a path",
        parse_path,
        show,
    )
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!("{text:?} is not a path"));
    }
    Ok(Path::new(text).to_owned())
}

/// A path without a default.
pub(super) fn optional_path() -> Setting<Option<PathBuf>> {
    let show = |value: &Option<PathBuf>| value.as_ref().map(|path| path.display().to_string());
    optional("a path", parse_path, show)
}

/// A value without a default. Empty text means no value.
pub(super) fn optional<T: 'static>(
    allowed: &str,
    parse: impl Fn(&str) -> Result<T, String> + 'static,
    show: fn(&Option<T>) -> Option<String>,
) -> Setting<Option<T>> {
    let parse = move |text: &str| {
        if text.is_empty() {
            Ok(None)
        } else {
            parse(text).map(Some)
        }
    };
    Setting::new(None, Shape::Text, allowed, parse, show)
}

/// Several values, separated by commas. The error names all invalid ones.
pub(super) fn list<T: Display + 'static>(
    allowed: &str,
    parse: impl Fn(&str) -> Result<T, String> + 'static,
) -> Setting<Vec<T>> {
    let parse = move |text: &str| {
        let (mut values, mut wrong) = (Vec::new(), Vec::new());
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            match parse(item) {
                Ok(value) => values.push(value),
                Err(message) => wrong.push(message),
            }
        }
        if wrong.is_empty() {
            Ok(values)
        } else {
            Err(wrong.join("; "))
        }
    };
    let show = |values: &Vec<T>| {
        let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
        (!texts.is_empty()).then(|| texts.join(","))
    };
    Setting::new(Vec::new(), Shape::List, allowed, parse, show)
}
