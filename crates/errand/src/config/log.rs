//! `[log]`: what is logged, and in which format.

use super::kinds::{Worded, words};
use super::reader::section;

section! {
    /// What is logged, and in which format.
    pub struct LogConfig["log"] {
        /// The least severe level that is logged.
        level: LogLevel = words(LogLevel::Info, &LogLevel::WORDS),
        /// Format of log lines: text for people, json for programs.
        format: LogFormat = words(LogFormat::Text, &LogFormat::WORDS),
    }
}

/// Severity of a log line. Each level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Something is broken.
    Error,
    /// Something may be broken.
    Warn,
    /// Normal events, with one line per request.
    Info,
    /// Internal events.
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

    /// The level as a log filter expects it.
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

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
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
