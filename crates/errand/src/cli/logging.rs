//! Where the server's log lines go: to standard error.

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

use super::out::Out;
use crate::config::{LogConfig, LogFormat, LogLevel};

/// Libraries whose lines at `info` and below tell of their inside only.
const QUIET: [&str; 6] = [
    "hyper",
    "hyper_util",
    "h2",
    "reqwest",
    "rustls",
    "refinery_core",
];

/// A library that repeats answers of models in its lines, and tells each fault of theirs as an error: the engine tells what
/// of it matters.
const SILENT: &str = "genai";

/// Sets the process's log up. Once.
///
/// # Errors
/// Where it is set up already.
pub(super) fn start(config: &LogConfig, out: &Out) -> Result<()> {
    let mut filter = config.level.as_str().to_owned();
    if !matches!(config.level, LogLevel::Trace | LogLevel::Error) {
        QUIET
            .iter()
            .for_each(|library| filter.push_str(&format!(",{library}=warn")));
    }
    filter.push_str(&format!(",{SILENT}=off"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(filter))
        .with_writer(std::io::stderr)
        .with_ansi(out.log_colours());
    let started = match config.format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow!("the log cannot be set up: {error}"))
}
