//! The program's settings: parsed once, at the start, into types.
//!
//! Promise: [`load`] is pure and either gives a whole [`Config`] or *all* that is wrong, each problem with its origin
//! and with what would be right. A later source wins over an earlier one: defaults, then the settings file, then
//! `ERRAND_SECTION__NAME` variables, then flags. A value that a later source overrides must be right all the same.
//! A name that is no setting is an error, never ignored.
//!
//! Each section is declared once, in its own file, by `section!`: field, type, default, range, unit and the sentence
//! that explains it. Everything else (the file's keys, the variables' names, [`table`], the check for misspelt names)
//! follows from that.
//!
//! Parts of the program take their section alone, never the whole [`Config`].
//!
//! Left out: reloading while the program runs, and settings that live in the database.

mod api;
mod connections;
mod duration;
mod engine;
mod fetch_url;
mod kinds;
mod log;
mod metrics;
mod problems;
mod proxies;
mod rate_limit;
mod reader;
mod sandbox;
mod secret;
mod server;
mod sources;
mod store;
mod uploads;
mod webhooks;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

pub use api::{ApiConfig, UnknownFields};
pub use connections::ConnectionsConfig;
pub use duration::{BadDuration, parse_duration};
pub use engine::EngineConfig;
pub use fetch_url::FetchUrlConfig;
pub use log::{LogConfig, LogFormat, LogLevel};
pub use metrics::MetricsConfig;
pub use problems::{ConfigErrors, Origin, Problem};
pub use proxies::TrustedProxies;
pub use rate_limit::RateLimitConfig;
pub use reader::SettingLine;
pub use sandbox::SandboxConfig;
pub use secret::Secret;
pub use server::{PublicUrl, ServerConfig, TlsConfig};
pub use sources::{DEFAULT_FILE, SettingsFile, environment, read_file};
pub use store::StoreConfig;
pub use uploads::UploadsConfig;
pub use webhooks::WebhookConfig;

use reader::Reader;
use sources::Sources;

/// The flags that set something. They win over every other source.
///
/// The values are kept as text, so that [`load`] can name a wrong one together with all other problems.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Address and port to listen on [default: 127.0.0.1:8700]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Directory that holds everything the server keeps [default: ./errand-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Settings file [default: errand.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl Flags {
    /// The settings that flags set: name, flag, value. `--config` is none: [`read_file`] reads it.
    fn given(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        [
            ("server.listen", "--listen", self.listen.as_deref()),
            ("server.data_dir", "--data-dir", self.data_dir.as_deref()),
        ]
        .into_iter()
        .filter_map(|(name, flag, value)| value.map(|value| (name, flag, value)))
    }
}

/// All settings, checked. Made by [`load`], or by `Config::default()` where only defaults are wanted.
#[derive(Clone)]
pub struct Config {
    /// Where the server listens and how it is reached.
    pub server: ServerConfig,
    /// What is logged.
    pub log: LogConfig,
    /// How strictly requests are read.
    pub api: ApiConfig,
    /// How many requests are let through.
    pub rate_limit: RateLimitConfig,
    /// How runs are driven.
    pub engine: EngineConfig,
    /// How webhooks are delivered.
    pub webhooks: WebhookConfig,
    /// The servers whose tools assignments call.
    pub connections: ConnectionsConfig,
    /// Pages that assignments read.
    pub fetch_url: FetchUrlConfig,
    /// How long files of a sandbox are kept.
    pub sandbox: SandboxConfig,
    /// How the embedded store works.
    pub store: StoreConfig,
    /// How large uploads may be.
    pub uploads: UploadsConfig,
    /// Where figures are shown.
    pub metrics: MetricsConfig,
    /// The 32 bytes that seal the secrets at rest; none where the data directory's own key file is used.
    pub master_key: Option<Secret<[u8; 32]>>,
    lines: Vec<SettingLine>,
    not_read: Vec<String>,
}

impl Config {
    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            server: ServerConfig::read(reader),
            log: LogConfig::read(reader),
            api: ApiConfig::read(reader),
            rate_limit: RateLimitConfig::read(reader),
            engine: EngineConfig::read(reader),
            webhooks: WebhookConfig::read(reader),
            connections: ConnectionsConfig::read(reader),
            fetch_url: FetchUrlConfig::read(reader),
            sandbox: SandboxConfig::read(reader),
            store: StoreConfig::read(reader),
            uploads: UploadsConfig::read(reader),
            metrics: MetricsConfig::read(reader),
            master_key: reader.take(
                secret::MASTER_KEY,
                "The key that seals secrets at rest; without it, the data directory holds a key file of its own.",
                secret::master_key(),
            ),
            lines: reader.lines(),
            not_read: reader.not_read(),
        }
    }
}

impl Default for Config {
    /// What holds where nothing is set.
    fn default() -> Self {
        Self::read(&mut Reader::new(&Sources::default()))
    }
}

/// Leaves the master key out: a [`Secret`] cannot be printed.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("server", &self.server)
            .field("log", &self.log)
            .field("api", &self.api)
            .field("rate_limit", &self.rate_limit)
            .field("engine", &self.engine)
            .field("webhooks", &self.webhooks)
            .field("connections", &self.connections)
            .field("fetch_url", &self.fetch_url)
            .field("sandbox", &self.sandbox)
            .field("store", &self.store)
            .field("uploads", &self.uploads)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

/// Makes the settings out of flags, variables and the settings file. Reads nothing else.
///
/// `env` may be the whole environment; only names that begin with `ERRAND_` are looked at.
/// [`environment`] and [`read_file`] fetch both from outside.
///
/// # Errors
/// All problems at once: values that do not parse or are out of range, names that are no setting (with the nearest
/// that is), combinations that cannot be.
pub fn load(
    flags: &Flags,
    env: &BTreeMap<String, String>,
    file: Option<&SettingsFile>,
) -> Result<Config, ConfigErrors> {
    let mut sources = Sources::default();
    if let Some(file) = file {
        sources.add_file(file);
    }
    sources.add_environment(env);
    for (name, flag, value) in flags.given() {
        sources.add_flag(name, flag, value);
    }
    let mut reader = Reader::new(&sources);
    let config = Config::read(&mut reader);
    reader.finish()?;
    Ok(config)
}

/// Every setting with its value, origin, default, unit, range and meaning, in the order of the sections.
/// Secrets are `(set)` or `(not set)`. This is what `errand config` prints, as a table or, serialised, as JSON.
#[must_use]
pub fn table(config: &Config) -> &[SettingLine] {
    &config.lines
}

/// What an operator should know though it is no error. Empty where nothing is doubtful. One sentence or two each.
#[must_use]
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = config.server.warnings();
    warnings.extend(config.metrics.warnings());
    warnings.extend(config.not_read.iter().cloned());
    warnings
}
