//! Writes the server's log to standard error.
//!
//! Guarantees: each event is one line. Foreign text is escaped, so it can neither start a line nor move a terminal's
//! cursor, and a line has at most [`LINE_BYTES_MAX`] bytes. Libraries log only warnings and errors at any level.
//! Libraries that log content of foreign servers are silent.

use std::io::{self, Stderr, Write};

use anyhow::{Result, anyhow};
use errand_core::display;
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::out::Out;
use crate::config::{LogConfig, LogFormat};

/// Maximum length of a line in bytes.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Maximum length in characters of a value in a line that is too long.
const VALUE_CHARS_MAX: usize = 500;

/// The filter: errand's own lines at the configured level; from libraries, only warnings and errors.
///
/// `rmcp` and `genai` log headers, arguments and responses of foreign servers, even in error lines. The engine reports
/// what is relevant of these.
fn directives(level: &str) -> String {
    let libraries = if level == "error" { "error" } else { "warn" };
    format!("{libraries},errand={level},rmcp=off,genai=off")
}

type SetFilter = Box<dyn Fn(EnvFilter) -> Result<()> + Send + Sync>;

/// The log of the process, whose level can change.
pub(super) struct Log {
    set: SetFilter,
}

impl Log {
    /// Applies the level of new settings. The format stays.
    pub(super) fn set_level(&self, config: &LogConfig) -> Result<()> {
        (self.set)(filter(config))
    }
}

fn filter(config: &LogConfig) -> EnvFilter {
    EnvFilter::builder().parse_lossy(directives(config.level.as_str()))
}

/// Sets up the log of the process. Can be called once.
///
/// # Errors
/// The log is already set up.
pub(super) fn start(config: &LogConfig, out: &Out) -> Result<Log> {
    let lines = tracing_subscriber::fmt().with_ansi(out.log_colors());
    let filter = filter(config);
    // The format determines the types, so each branch creates its own function that changes the filter.
    let (set, started): (SetFilter, _) = match config.format {
        LogFormat::Text => {
            let lines = lines
                .with_writer(Lines { clean: clean_text })
                .with_target(false)
                .with_env_filter(filter)
                .with_filter_reloading();
            let handle = lines.reload_handle();
            let set = Box::new(move |filter| Ok(handle.reload(filter)?));
            (set, lines.try_init())
        }
        LogFormat::Json => {
            let lines = lines
                .with_writer(Lines { clean: clean_json })
                .json()
                .flatten_event(true)
                .with_env_filter(filter)
                .with_filter_reloading();
            let handle = lines.reload_handle();
            let set = Box::new(move |filter| Ok(handle.reload(filter)?));
            (set, lines.try_init())
        }
    };
    started.map_err(|error| anyhow!("the log cannot be set up: {error}"))?;
    Ok(Log { set })
}

/// Creates a writer per event. The subscriber passes each event to it in one piece.
struct Lines {
    clean: fn(&str) -> String,
}

struct Line {
    clean: fn(&str) -> String,
    to: Stderr,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            clean: self.clean,
            to: io::stderr(),
        }
    }
}

impl Write for Line {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut line = (self.clean)(text.strip_suffix('\n').unwrap_or(&text));
        line.push('\n');
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A line of text. Colors stay; other control characters and line ends are shown as code points.
fn clean_text(event: &str) -> String {
    let mut line = String::with_capacity(event.len());
    let mut rest = event;
    while let Some(at) = rest.find('\u{1b}') {
        let (before, escape) = rest.split_at(at);
        line.push_str(&display::one_line(before));
        let length = color_of(escape);
        let (kept, after) = escape.split_at(length.unwrap_or(1));
        match length {
            Some(_) => line.push_str(kept),
            None => line.push_str(&display::one_line(kept)),
        }
        rest = after;
    }
    line.push_str(&display::one_line(rest));
    cut(line)
}

/// The length of a color escape sequence at the start of a text, as the subscriber writes it.
fn color_of(text: &str) -> Option<usize> {
    let inner = text.strip_prefix("\u{1b}[")?;
    let ends = inner.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    inner.get(ends..)?.starts_with('m').then_some(2 + ends + 1)
}

fn cut(mut line: String) -> String {
    if line.len() > LINE_BYTES_MAX {
        let bytes = line.len();
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX - 64));
        line.push_str(&format!("… (truncated; {bytes} bytes)"));
    }
    line
}

/// A JSON object, whose writer has already escaped its content. If it is too long, each value is truncated.
fn clean_json(event: &str) -> String {
    if event.len() <= LINE_BYTES_MAX {
        return event.to_owned();
    }
    let shortened = serde_json::from_str(event).map(|mut value: Value| {
        shorten(&mut value);
        value.to_string()
    });
    match shortened {
        Ok(line) if line.len() <= LINE_BYTES_MAX => line,
        _ => {
            let bytes = event.len();
            serde_json::json!({"level": "WARN", "message": format!("a line of {bytes} bytes was omitted")}).to_string()
        }
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.chars().count() > VALUE_CHARS_MAX => {
            *text = text.chars().take(VALUE_CHARS_MAX).chain(['…']).collect();
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(map) => map.values_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_makes_no_line_and_moves_no_cursor() {
        let line = clean_text(
            "\u{1b}[2mtime\u{1b}[0m said: a\nERROR forged\r\u{1b}[2J\u{1b}]0;x\u{7}\u{202e}",
        );
        assert!(
            !line.contains(['\n', '\r', '\u{7}', '\u{202e}']),
            "{line:?}"
        );
        assert_eq!(line.matches('\u{1b}').count(), 2, "{line:?}");
        assert!(line.starts_with("\u{1b}[2mtime\u{1b}[0m said: a\\u{a}ERROR"));
        let long = clean_text(&"ä".repeat(100_000));
        assert!(long.len() <= LINE_BYTES_MAX && long.ends_with("(truncated; 200000 bytes)"));
    }

    #[test]
    fn a_long_json_line_is_still_json() {
        let long = serde_json::json!({"level": "INFO", "error": "x".repeat(100_000)}).to_string();
        let line = clean_json(&long);
        let read: Value = serde_json::from_str(&line).unwrap();
        assert!(line.len() <= LINE_BYTES_MAX && read["level"] == "INFO");
        let many = serde_json::json!({"all": vec!["y".repeat(400); 100]}).to_string();
        let read: Value = serde_json::from_str(&clean_json(&many)).unwrap();
        assert!(read["message"].as_str().unwrap().contains("omitted"));
    }

    #[test]
    fn libraries_that_repeat_foreign_text_are_silent_at_every_level() {
        for level in ["error", "warn", "info", "debug", "trace"] {
            let all = directives(level);
            assert!(all.contains("rmcp=off") && all.contains(&format!("errand={level}")));
            assert!(all.starts_with("warn,") || all.starts_with("error,"));
        }
    }
}
