//! `[log]`: what is logged, and in which form.

use super::kinds::{Worded, words};
use super::reader::section;

section! {
    /// What is logged, and in which form.
    pub struct LogConfig["log"] {
        /// The least severe level that is logged.
        level: LogLevel = words(LogLevel::Info, &LogLevel::WORDS),
        /// The form of a log line: text for people, json for programs.
        format: LogFormat = words(LogFormat::Text, &LogFormat::WORDS),
    }
}

/// How severe a log line is; each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Something is broken.
    Error,
    /// Something may be.
    Warn,
    /// What happened, a line for each request.
    Info,
    /// What happened inside.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    const WORDS: [(&str, Self); 5] = [
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    /// The level's word, as a log filter takes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Worded for LogLevel {
    fn word(&self) -> &'static str {
        self.as_str()
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    const WORDS: [(&str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

impl Worded for LogFormat {
    fn word(&self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}
