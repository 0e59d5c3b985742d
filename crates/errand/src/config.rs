//! The settings of the program, parsed into types once at the start.
//!
//! Guarantees: [`load`] is pure, and returns either a complete [`Config`] or *all* problems, each with its origin and
//! the values that would be valid. A later source overrides an earlier one: defaults, the settings file,
//! `ERRAND_SECTION__NAME` variables, flags. An overridden value must be valid as well. An unknown name is an error and
//! is never ignored.
//!
//! Each section is declared once, in its own file, with `section!`: field, type, default, range, unit and description.
//! Everything else follows from that: the keys of the file, the names of variables, [`table`], and the detection of
//! misspelled names.
//!
//! Other modules take only their section, never the whole [`Config`].
//!
//! Non-goals: reloading while the program runs (see `cli::serve`), and settings that are stored in the database.

mod api;
mod connections;
mod duration;
mod engine;
mod fetch_url;
mod kinds;
mod log;
mod metrics;
mod models;
mod problems;
mod proxies;
mod rate_limit;
mod reader;
mod sandbox;
mod secret;
mod server;
mod sources;
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
pub use models::{ModelTables, ModelsConfig};
pub use problems::{ConfigErrors, Origin, Problem};
pub use proxies::TrustedProxies;
pub use rate_limit::RateLimitConfig;
pub use reader::SettingLine;
pub use sandbox::SandboxConfig;
pub use secret::Secret;
pub use server::{PublicUrl, ServerConfig, TlsConfig};
pub use sources::{DEFAULT_FILE, SettingsFile, environment, read_file};
pub use uploads::UploadsConfig;
pub use webhooks::WebhookConfig;

use reader::Reader;
use sources::Sources;

/// The flags that are settings. They override every other source.
///
/// Values stay text, so that [`load`] can report an invalid one together with all other problems.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Address and port to listen on [default: 127.0.0.1:8700]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Directory with all data of the server [default: ./errand-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Settings file [default: errand.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl Flags {
    /// The settings given as flags: name, flag, value. `--config` is not a setting: [`read_file`] handles it.
    fn given(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        [
            ("server.listen", "--listen", self.listen.as_deref()),
            ("server.data_dir", "--data-dir", self.data_dir.as_deref()),
        ]
        .into_iter()
        .filter_map(|(name, flag, value)| value.map(|value| (name, flag, value)))
    }
}

/// All settings, validated. Created by [`load`], or by `Config::default()` for the defaults.
#[derive(Clone)]
pub struct Config {
    pub server: ServerConfig,
    pub log: LogConfig,
    pub api: ApiConfig,
    pub rate_limit: RateLimitConfig,
    pub engine: EngineConfig,
    pub models: ModelsConfig,
    /// Providers, prices, context windows and aliases of models: tables whose keys the operator chooses.
    pub model_tables: ModelTables,
    pub webhooks: WebhookConfig,
    pub connections: ConnectionsConfig,
    pub fetch_url: FetchUrlConfig,
    pub sandbox: SandboxConfig,
    pub uploads: UploadsConfig,
    pub metrics: MetricsConfig,
    /// The 32-byte key that encrypts stored secrets. `None`: the key file in the data directory is used.
    pub master_key: Option<Secret<[u8; 32]>>,
    lines: Vec<SettingLine>,
    not_read: Vec<String>,
}

impl Config {
    fn read(reader: &mut Reader<'_>, env: &BTreeMap<String, String>) -> Self {
        Self {
            server: ServerConfig::read(reader),
            log: LogConfig::read(reader),
            api: ApiConfig::read(reader),
            rate_limit: RateLimitConfig::read(reader),
            engine: EngineConfig::read(reader),
            models: ModelsConfig::read(reader),
            model_tables: ModelTables::read(reader, env),
            webhooks: WebhookConfig::read(reader),
            connections: ConnectionsConfig::read(reader),
            fetch_url: FetchUrlConfig::read(reader),
            sandbox: SandboxConfig::read(reader),
            uploads: UploadsConfig::read(reader),
            metrics: MetricsConfig::read(reader),
            master_key: reader.take(
                secret::MASTER_KEY,
                "Key that encrypts stored secrets; without it, a key file in the data directory is used.",
                secret::master_key(),
            ),
            lines: reader.lines(),
            not_read: reader.not_read(),
        }
    }
}

impl Default for Config {
    /// The settings without any source.
    fn default() -> Self {
        Self::read(&mut Reader::new(&Sources::default()), &BTreeMap::new())
    }
}

/// Leaves out the master key, because a [`Secret`] cannot be printed.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("server", &self.server)
            .field("log", &self.log)
            .field("api", &self.api)
            .field("rate_limit", &self.rate_limit)
            .field("engine", &self.engine)
            .field("models", &self.models)
            .field("model_tables", &self.model_tables)
            .field("webhooks", &self.webhooks)
            .field("connections", &self.connections)
            .field("fetch_url", &self.fetch_url)
            .field("sandbox", &self.sandbox)
            .field("uploads", &self.uploads)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

/// Computes the settings from flags, variables and the settings file. Reads nothing else.
///
/// `env` may be the whole environment. Only these variables are used: names that begin with `ERRAND_`, the well-known
/// keys and addresses of providers (`ANTHROPIC_API_KEY` …), and the variables that the settings file names as
/// `api_key_env`. [`environment`] and [`read_file`] read both sources.
///
/// # Errors
/// All problems at once: values that cannot be parsed or are out of range, unknown names (with the nearest setting),
/// invalid combinations.
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
    let config = Config::read(&mut reader, env);
    reader.finish()?;
    Ok(config)
}

/// All settings with value, origin, default, unit, range and description, in the order of the sections. Secrets are
/// `(set)` or `(not set)`. `errand config` prints this as a table, or serialized as JSON.
#[must_use]
pub fn table(config: &Config) -> &[SettingLine] {
    &config.lines
}

/// Warnings for the operator about settings that are valid but questionable. One or two sentences each.
#[must_use]
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = config.server.warnings();
    warnings.extend(config.metrics.warnings());
    warnings.extend(config.not_read.iter().cloned());
    warnings
}
