//! Provider settings: protocol, address and key.
//!
//! # Guarantees
//!
//! - An address that a team set is called through the address guard, and never with the operator's key.
//! - If a provider needs a key and has none, the run is refused at its start with a message that says what to set.
//! - A key can be neither printed nor logged.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use errand_core::config::ModelName;
use errand_core::id::TeamId;
use errand_store::{Store, StoreError};
use genai::Client;
use genai::adapter::AdapterKind;
use url::Url;

use crate::net::{Blocked, ClientError, Guard, operator_client};

/// The timeout for establishing a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The protocol of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anthropic's Messages API.
    Anthropic,
    /// OpenAI's Chat Completions API.
    OpenAi,
    /// Google's Gemini API.
    Gemini,
    /// Chat Completions as other servers offer it (Ollama, vLLM, llama.cpp). A key is optional.
    OpenAiCompatible,
}

impl Kind {
    pub const ALL: [Self; 4] = [
        Self::Anthropic,
        Self::OpenAi,
        Self::Gemini,
        Self::OpenAiCompatible,
    ];

    /// The name in settings and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
            Self::Gemini => "gemini",
            Self::OpenAiCompatible => "openai_compatible",
        }
    }

    /// Parses the result of [`Kind::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The protocol of a provider that is built in under this name.
    #[must_use]
    pub fn well_known(name: &str) -> Option<Self> {
        Self::parse(name).filter(|kind| *kind != Self::OpenAiCompatible)
    }

    pub(super) fn adapter(self) -> AdapterKind {
        match self {
            Self::Anthropic => AdapterKind::Anthropic,
            Self::OpenAi | Self::OpenAiCompatible => AdapterKind::OpenAI,
            Self::Gemini => AdapterKind::Gemini,
        }
    }

    fn needs_key(self) -> bool {
        self != Self::OpenAiCompatible
    }

    fn default_base(self) -> Option<&'static str> {
        match self {
            Self::Anthropic => Some("https://api.anthropic.com"),
            Self::OpenAi => Some("https://api.openai.com/v1"),
            Self::Gemini => Some("https://generativelanguage.googleapis.com"),
            Self::OpenAiCompatible => None,
        }
    }

    /// The base address for requests. The version is appended for Anthropic and Gemini; for OpenAI's protocol it is
    /// part of `base`.
    fn endpoint(self, base: &str) -> String {
        let base = base.trim_end_matches('/');
        match self {
            Self::Anthropic => format!("{}/v1/", base.trim_end_matches("/v1")),
            Self::Gemini => format!("{}/v1beta/", base.trim_end_matches("/v1beta")),
            Self::OpenAi | Self::OpenAiCompatible => format!("{base}/"),
        }
    }
}

/// An API key. `Debug` hides it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProviderKey(pub String);

impl fmt::Debug for ProviderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(set)")
    }
}

/// The settings of one provider, either the operator's or a team's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderSettings {
    pub kind: Kind,
    /// `None`: the default address of the protocol.
    pub base_url: Option<String>,
    pub key: Option<ProviderKey>,
}

/// A summary of a team's provider settings, without keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnProviders {
    pub by_name: BTreeMap<String, OwnProvider>,
    /// Whether the team has a monthly spending limit. If so, models without a known price are refused.
    pub limits_month: bool,
}

impl OwnProviders {
    /// Reads the settings of a team.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn of(store: &Store, team: TeamId) -> Result<Self, StoreError> {
        let rows = store.providers(team).await?;
        let own = rows.into_iter().filter_map(|row| {
            let own = OwnProvider {
                kind: Kind::parse(&row.kind)?,
                has_base_url: row.base_url.is_some(),
                has_key: row.has_key,
            };
            Some((row.name, own))
        });
        Ok(Self {
            by_name: own.collect(),
            limits_month: store.team_limit_usd(team).await?.is_some(),
        })
    }
}

/// A team's settings for one provider, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnProvider {
    pub kind: Kind,
    /// Whether the team set its own address.
    pub has_base_url: bool,
    /// Whether the team set a key.
    pub has_key: bool,
}

/// The resolved destination of a model call.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) kind: Kind,
    pub(super) endpoint: String,
    pub(super) key: String,
    pub(super) client: Client,
}

/// Resolves models to destinations, from the operator's and the team's settings.
pub(super) struct Registry {
    operator: BTreeMap<String, ProviderSettings>,
    guard: Guard,
    open: Client,
    guarded: Client,
}

impl Registry {
    pub(super) fn new(
        operator: impl IntoIterator<Item = (String, ProviderSettings)>,
        allow_private: bool,
    ) -> Result<Self, ClientError> {
        let guard = Guard::new(allow_private, "models.allow_private_networks");
        let client = |http| {
            Client::builder()
                .with_reqwest(http)
                .build()
                .map_err(|error| ClientError::other(error.to_string()))
        };
        let mut all: BTreeMap<_, _> = [Kind::Anthropic, Kind::OpenAi, Kind::Gemini]
            .into_iter()
            .map(|kind| {
                let settings = ProviderSettings {
                    kind,
                    base_url: None,
                    key: None,
                };
                (kind.as_str().to_owned(), settings)
            })
            .collect();
        all.extend(operator);
        Ok(Self {
            operator: all,
            guard,
            open: client(operator_client(CONNECT)?)?,
            guarded: client(guard.streaming_client()?)?,
        })
    }

    /// Checks an address that a team sets, as far as possible without resolving its name.
    pub(super) fn check_base_url(&self, url: &Url) -> Result<(), Blocked> {
        self.guard.check_url(url)
    }

    /// Checks that the model's provider exists and has a key if it needs one.
    pub(super) fn check(&self, name: &ModelName, own: &OwnProviders) -> Result<(), String> {
        let provider = &name.provider;
        let operators = self.operator.get(provider);
        let (kind, has_key) = match (own.by_name.get(provider), operators) {
            (Some(own), _) if own.has_base_url || own.has_key => (own.kind, own.has_key),
            (_, Some(operators)) => (operators.kind, operators.key.is_some()),
            (Some(own), None) => (own.kind, own.has_key),
            (None, None) => return Err(self.unknown(name)),
        };
        if kind.needs_key() && !has_key {
            return Err(no_key(name, kind));
        }
        Ok(())
    }

    /// Resolves a model, by the team's settings if it has any, otherwise by the operator's.
    pub(super) fn target(
        &self,
        name: &ModelName,
        own: Option<&ProviderSettings>,
    ) -> Result<Target, String> {
        let operators = self.operator.get(&name.provider);
        let target = |settings: &ProviderSettings, base: &str, client: &Client| {
            if settings.kind.needs_key() && settings.key.is_none() {
                return Err(no_key(name, settings.kind));
            }
            let key = settings.key.as_ref().map(|key| key.0.clone());
            Ok(Target {
                kind: settings.kind,
                endpoint: settings.kind.endpoint(base),
                // The client library requires a key. Servers that need none ignore it.
                key: key.unwrap_or_else(|| "none".to_owned()),
                client: client.clone(),
            })
        };
        if let Some(own) = own
            && let Some(base) = &own.base_url
        {
            let url = Url::parse(base)
                .map_err(|e| format!("the address of the provider {}: {e}", name.provider))?;
            self.guard
                .check_url(&url)
                .map_err(|e| format!("the address of the provider {}: {e}", name.provider))?;
            return target(own, base, &self.guarded);
        }
        let settings = match (own, operators) {
            // The team's key, with the operator's address or the default one.
            (Some(own), Some(operators)) if own.key.is_some() => ProviderSettings {
                kind: operators.kind,
                base_url: operators.base_url.clone(),
                key: own.key.clone(),
            },
            (_, Some(operators)) => operators.clone(),
            (Some(own), None) => own.clone(),
            (None, None) => return Err(self.unknown(name)),
        };
        let base = settings.base_url.clone();
        let base = base.or_else(|| settings.kind.default_base().map(str::to_owned));
        let base = base.ok_or_else(|| {
            format!(
                "the provider {} has no address; set its base_url",
                name.provider
            )
        })?;
        target(&settings, &base, &self.open)
    }

    fn unknown(&self, name: &ModelName) -> String {
        let known: Vec<_> = self.operator.keys().map(String::as_str).collect();
        format!(
            "the model {name} cannot be run: there is no provider {:?}; there are builtin, {}. The operator adds one with [models.providers.{}] in errand.toml, a team with PUT /v1/providers/{}",
            name.provider,
            known.join(", "),
            name.provider,
            name.provider
        )
    }
}

fn no_key(name: &ModelName, kind: Kind) -> String {
    let provider = &name.provider;
    let variable = match (Kind::well_known(provider), kind) {
        (Some(Kind::Anthropic), _) => "set ANTHROPIC_API_KEY in the server's environment, or",
        (Some(Kind::OpenAi), _) => "set OPENAI_API_KEY in the server's environment, or",
        (Some(Kind::Gemini), _) => "set GEMINI_API_KEY in the server's environment, or",
        _ => "set",
    };
    format!(
        "the model {name} cannot be run: the provider {provider} has no key. The operator can {variable} api_key_env in [models.providers.{provider}] of errand.toml; a team can give its own with PUT /v1/providers/{provider}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(provider: &str) -> ModelName {
        ModelName {
            provider: provider.to_owned(),
            name: "m".to_owned(),
        }
    }

    fn settings(kind: Kind, base_url: Option<&str>, key: Option<&str>) -> ProviderSettings {
        ProviderSettings {
            kind,
            base_url: base_url.map(str::to_owned),
            key: key.map(|key| ProviderKey(key.to_owned())),
        }
    }

    fn registry() -> Registry {
        let operator = [
            (
                "anthropic".to_owned(),
                settings(Kind::Anthropic, None, Some("operators")),
            ),
            (
                "gemini".to_owned(),
                settings(Kind::Gemini, Some("http://127.0.0.1:9/"), Some("g")),
            ),
            (
                "local".to_owned(),
                settings(
                    Kind::OpenAiCompatible,
                    Some("http://127.0.0.1:11434/v1"),
                    None,
                ),
            ),
        ];
        Registry::new(operator, false).unwrap()
    }

    #[test]
    fn addresses_have_their_version_once() {
        assert_eq!(Kind::Anthropic.endpoint("https://a"), "https://a/v1/");
        assert_eq!(Kind::Anthropic.endpoint("https://a/v1/"), "https://a/v1/");
        assert_eq!(Kind::Gemini.endpoint("https://g/"), "https://g/v1beta/");
        assert_eq!(Kind::OpenAi.endpoint("https://o/v1"), "https://o/v1/");
    }

    #[test]
    fn a_provider_without_a_key_says_what_to_set() {
        let registry = registry();
        let none = OwnProviders::default();
        let error = registry.check(&name("openai"), &none).unwrap_err();
        assert!(error.contains("OPENAI_API_KEY"), "{error}");
        assert!(error.contains("PUT /v1/providers/openai"), "{error}");
        assert!(registry.check(&name("anthropic"), &none).is_ok());
        assert!(registry.check(&name("local"), &none).is_ok());
        let error = registry.check(&name("nowhere"), &none).unwrap_err();
        assert!(error.contains("[models.providers.nowhere]"), "{error}");
    }

    #[test]
    fn a_team_address_never_gets_the_operators_key() {
        let registry = registry();
        let own = settings(Kind::Anthropic, Some("https://proxy.example"), None);
        let error = registry.target(&name("anthropic"), Some(&own)).err();
        assert!(error.unwrap().contains("has no key"));
        let own = settings(
            Kind::OpenAiCompatible,
            Some("https://proxy.example/v1"),
            None,
        );
        let target = registry.target(&name("anthropic"), Some(&own)).ok();
        assert_eq!(target.unwrap().key, "none");
    }

    #[test]
    fn only_a_teams_address_is_guarded() {
        let registry = registry();
        let own = settings(Kind::OpenAiCompatible, Some("http://127.0.0.1:1/v1"), None);
        let error = registry.target(&name("mine"), Some(&own)).err().unwrap();
        assert!(error.contains("models.allow_private_networks"), "{error}");
        let target = registry.target(&name("local"), None).ok().unwrap();
        assert_eq!(target.endpoint, "http://127.0.0.1:11434/v1/");
    }

    #[test]
    fn a_teams_key_precedes_the_operators() {
        let registry = registry();
        let own = settings(Kind::Gemini, None, Some("teams"));
        let target = registry.target(&name("gemini"), Some(&own)).ok().unwrap();
        assert_eq!(target.key, "teams");
        assert_eq!(target.endpoint, "http://127.0.0.1:9/v1beta/");
    }

    #[test]
    fn a_key_is_not_shown() {
        let shown = format!("{:?}", settings(Kind::OpenAi, None, Some("sk-1234")));
        assert!(!shown.contains("1234"), "{shown}");
    }
}
