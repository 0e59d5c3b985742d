//! `[models]`: model providers on the network.
//!
//! Five tables are not in the list of settings. Four have keys that the operator chooses: `[models.providers.NAME]`,
//! `[models.prices."NAME"]`, `[models.windows]` and `[models.aliases]`. `[models.default_price]` is a single price.
//! Their problems are reported with all others. The well-known environment variables can also set the keys and
//! addresses of Anthropic, OpenAI and Gemini, and override the file.

use std::collections::BTreeMap;
use std::time::Duration;

use errand_core::config::ModelAliases;
use errand_engine::model::network::{
    Kind, NetworkSettings, Overrides, Price, ProviderKey, ProviderSettings,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::kinds::{boolean, duration, list, whole};
use super::problems::Origin;
use super::reader::{Reader, section};

section! {
    /// Model providers on the network.
    pub struct ModelsConfig["models"] {
        /// Maximum number of attempts until a model returns a usable answer; between attempts, the run waits without a
        /// slot.
        attempts: u32 = whole(12, 1..=100).unit("attempts"),
        /// Time without any data from a model after which an attempt fails.
        idle_timeout: Duration = duration(Duration::from_secs(120), Duration::from_secs(1)..=Duration::from_secs(3600)),
        /// Maximum number of calls to one provider in flight, at most three quarters of `engine.max_concurrent_runs`,
        /// so that a slow provider does not block other runs; further runs wait for their turn without a slot.
        concurrency: u32 = whole(48, 1..=10_000).unit("calls"),
        /// Whether the provider addresses that teams set can be in private networks, such as 127.0.0.1 and 10.0.0.0/8;
        /// addresses that the operator sets always can.
        allow_private_networks: bool = boolean(false),
        /// Models that accept images, in addition to those of Anthropic, OpenAI and Gemini.
        vision: Vec<String> = list("provider/name", |text| Ok(text.to_owned())),
    }
}

/// The tables whose keys the operator chooses, and the default price.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelTables {
    /// `[models.providers.NAME]`, sorted by name.
    pub providers: Vec<(String, ProviderSettings)>,
    /// `[models.prices."NAME"]`.
    pub prices: BTreeMap<String, Price>,
    /// `[models.default_price]`.
    pub default_price: Option<Price>,
    /// `[models.windows]`: sizes of context windows in tokens.
    pub windows: BTreeMap<String, u64>,
    /// `[models.aliases]`.
    pub aliases: ModelAliases,
}

/// The names of these tables. The reader keeps their content unparsed.
pub(super) const TABLES: [&str; 5] = [
    "models.providers",
    "models.prices",
    "models.default_price",
    "models.windows",
    "models.aliases",
];

/// The well-known environment variables for the key and address of a provider.
const VARIABLES: [(Kind, &str, &str); 3] = [
    (Kind::Anthropic, "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
    (Kind::OpenAi, "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    (Kind::Gemini, "GEMINI_API_KEY", "GEMINI_BASE_URL"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderTable {
    kind: Option<String>,
    base_url: Option<String>,
    api_key: Option<String>,
    api_key_env: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceTable {
    input: f64,
    output: f64,
    cached_input: Option<f64>,
    cache_write: Option<f64>,
}

impl ModelTables {
    /// Reads the tables. `env`: the environment, for keys of providers.
    pub(super) fn read(reader: &mut Reader<'_>, env: &BTreeMap<String, String>) -> Self {
        let mut tables = Self::default();
        let mut providers = BTreeMap::new();
        for (origin, name, value) in reader.table("models.providers") {
            let path = format!("models.providers.{name}");
            let read = fitting::<ProviderTable>(value).and_then(|t| provider(&name, t, env));
            match read {
                Ok(settings) => {
                    providers.insert(name, settings);
                }
                Err(message) => reader.report(origin, path, message),
            }
        }
        for (kind, key, base) in VARIABLES {
            well_known(reader, &mut providers, env, (kind, key, base));
        }
        tables.providers = providers.into_iter().collect();
        for (origin, name, value) in reader.table("models.prices") {
            match fitting::<PriceTable>(value).and_then(price) {
                Ok(price) => {
                    tables.prices.insert(name, price);
                }
                Err(message) => reader.report(origin, format!("models.prices.{name:?}"), message),
            }
        }
        tables.default_price = default_price(reader);
        for (origin, name, value) in reader.table("models.windows") {
            let tokens = value.as_integer().and_then(|n| u64::try_from(n).ok());
            match tokens.filter(|n| (1_000..=100_000_000).contains(n)) {
                Some(tokens) => {
                    tables.windows.insert(name, tokens);
                }
                None => reader.report(
                    origin,
                    format!("models.windows.{name:?}"),
                    "must be a number of tokens in 1000..=100000000".to_owned(),
                ),
            }
        }
        for (origin, alias, value) in reader.table("models.aliases") {
            let added = value
                .as_str()
                .ok_or_else(|| "must be a quoted string: provider/name".to_owned())
                .and_then(|model| tables.aliases.add(&alias, model));
            if let Err(message) = added {
                reader.report(origin, format!("models.aliases.{alias:?}"), message);
            }
        }
        tables
    }

    /// The settings for the engine. `places`: maximum number of concurrent runs.
    #[must_use]
    pub fn settings(&self, config: &ModelsConfig, places: u32) -> NetworkSettings {
        NetworkSettings {
            providers: self.providers.clone(),
            overrides: Overrides {
                prices: self.prices.clone(),
                default_price: self.default_price,
                windows: self.windows.clone(),
                vision: config.vision.clone(),
            },
            attempts: config.attempts,
            idle_ms: u64::try_from(config.idle_timeout.as_millis()).unwrap_or(u64::MAX),
            concurrency: config.concurrency.min((places * 3 / 4).max(1)) as usize,
            allow_private: config.allow_private_networks,
        }
    }
}

/// Deserializes a table. The message does not quote the value, which may be a key.
fn fitting<T: DeserializeOwned>(value: toml::Value) -> Result<T, String> {
    value
        .try_into()
        .map_err(|error: toml::de::Error| error.message().replace('\n', "; "))
}

fn provider(
    name: &str,
    table: ProviderTable,
    env: &BTreeMap<String, String>,
) -> Result<ProviderSettings, String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    if name.is_empty() || !name.chars().all(is_name) || name == "builtin" {
        return Err(
            "a provider's name must consist of lowercase letters, digits, _ and -, and must not be builtin"
                .to_owned(),
        );
    }
    let kinds = || Kind::ALL.map(Kind::as_str).join(" | ");
    let kind = match &table.kind {
        None => Kind::well_known(name)
            .ok_or_else(|| format!("kind is missing; it must be one of {}", kinds()))?,
        Some(text) => {
            Kind::parse(text).ok_or_else(|| format!("kind must be one of {}", kinds()))?
        }
    };
    if let Some(text) = &table.base_url {
        base_url(text)?;
    } else if kind == Kind::OpenAiCompatible {
        return Err("base_url is missing".to_owned());
    }
    let key = match (table.api_key, table.api_key_env) {
        (Some(_), Some(_)) => {
            return Err("api_key and api_key_env are both set; set one".to_owned());
        }
        (Some(key), None) => Some(key),
        (None, Some(variable)) => Some(env.get(&variable).cloned().ok_or_else(|| {
            format!("api_key_env names the variable {variable}, which is not set")
        })?),
        (None, None) => None,
    };
    Ok(ProviderSettings {
        kind,
        base_url: table.base_url,
        key: key.filter(|key| !key.is_empty()).map(ProviderKey),
    })
}

/// Checks that request paths can be appended to an address.
pub(super) fn base_url(text: &str) -> Result<(), String> {
    let wrong = || {
        "base_url must be an http or https URL without a query, such as http://127.0.0.1:11434/v1"
            .to_owned()
    };
    let url = Url::parse(text).map_err(|_| wrong())?;
    let fits = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none();
    fits.then_some(()).ok_or_else(wrong)
}

fn price(table: PriceTable) -> Result<Price, String> {
    let price = Price {
        input: table.input,
        output: table.output,
        cached_input: table.cached_input.unwrap_or(table.input),
        cache_write: table.cache_write.unwrap_or(table.input),
    };
    let all = [
        price.input,
        price.output,
        price.cached_input,
        price.cache_write,
    ];
    if all.iter().all(|n| n.is_finite() && *n >= 0.0) {
        Ok(price)
    } else {
        Err("a price must be an amount in US dollars per million tokens, 0 or more".to_owned())
    }
}

/// The price of models that have no price of their own.
fn default_price(reader: &mut Reader<'_>) -> Option<Price> {
    let given = reader.table("models.default_price");
    let (origin, _, _) = given.first()?;
    let origin = origin.clone();
    let table = given.into_iter().map(|(_, name, value)| (name, value));
    match fitting::<PriceTable>(toml::Value::Table(table.collect())).and_then(price) {
        Ok(price) => Some(price),
        Err(message) => {
            reader.report(origin, "models.default_price".to_owned(), message);
            None
        }
    }
}

/// Applies a provider's well-known variables over the file's values.
fn well_known(
    reader: &mut Reader<'_>,
    providers: &mut BTreeMap<String, ProviderSettings>,
    env: &BTreeMap<String, String>,
    (kind, key, base): (Kind, &str, &str),
) {
    let given = |name: &str| env.get(name).map(|v| v.trim()).filter(|v| !v.is_empty());
    if given(key).is_none() && given(base).is_none() {
        return;
    }
    let settings = providers
        .entry(kind.as_str().to_owned())
        .or_insert(ProviderSettings {
            kind,
            base_url: None,
            key: None,
        });
    if let Some(value) = given(key) {
        settings.key = Some(ProviderKey(value.to_owned()));
    }
    if let Some(value) = given(base) {
        match base_url(value) {
            Ok(()) => settings.base_url = Some(value.to_owned()),
            Err(message) => reader.report(
                Origin::Environment(base.to_owned()),
                base.to_owned(),
                message,
            ),
        }
    }
}

#[cfg(test)]
#[path = "models/tests.rs"]
mod tests;
