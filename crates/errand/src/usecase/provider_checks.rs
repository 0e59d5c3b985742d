//! Validates a team's settings for a model provider before they are stored.

use errand_core::id::TeamId;
use errand_engine::EngineContext;
use errand_engine::model::network::Kind;
use errand_store::model::PutProvider;
use url::Url;

use super::UseCaseError;

/// Maximum length of a key or an address.
const TEXT_CHARS_MAX: usize = 2_000;

/// The settings of a provider to store.
pub(crate) struct NewProvider {
    pub(crate) team: TeamId,
    /// The part before the slash in a model's name, `<name>/<model>`.
    pub(crate) name: String,
    /// The protocol. Optional for well-known names.
    pub(crate) kind: Option<String>,
    pub(crate) base_url: Option<String>,
    /// `None` keeps the stored key, unless the kind or the address changes.
    pub(crate) api_key: Option<String>,
}

/// Validates the settings and converts them to their stored form.
///
/// # Errors
/// `Invalid` with the field: `kind`, `base_url` or `api_key`.
pub(crate) fn checked_provider(
    engine: &EngineContext,
    new: NewProvider,
) -> Result<PutProvider, UseCaseError> {
    let kinds = Kind::ALL.map(Kind::as_str).join(", ");
    let kind = match &new.kind {
        Some(text) => Kind::parse(text),
        None => Kind::well_known(&new.name),
    };
    let kind =
        kind.ok_or_else(|| UseCaseError::invalid("kind", format!("must be one of {kinds}")))?;
    if let Some(text) = &new.base_url {
        check_base_url(engine, text)?;
    } else if kind == Kind::OpenAiCompatible {
        return Err(UseCaseError::invalid(
            "base_url",
            "it is missing: send an http or https address",
        ));
    }
    if let Some(key) = &new.api_key {
        let fits =
            (1..=TEXT_CHARS_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        if !fits {
            return Err(UseCaseError::invalid(
                "api_key",
                "must have 1 to 2000 visible ASCII characters",
            ));
        }
    }
    Ok(PutProvider {
        team: new.team,
        name: new.name,
        kind: kind.as_str().to_owned(),
        base_url: new.base_url,
        key: new.api_key,
        now: engine.clock.now(),
    })
}

fn check_base_url(engine: &EngineContext, text: &str) -> Result<(), UseCaseError> {
    let wrong = |message: String| UseCaseError::invalid("base_url", message);
    let url = Url::parse(text).map_err(|e| wrong(format!("it is not a valid address: {e}")))?;
    if url.query().is_some() || url.fragment().is_some() || text.len() > TEXT_CHARS_MAX {
        return Err(wrong("must not have a query".to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "must not contain a user name or password: every member of the team can read it. Put the \
             provider's key into api_key"
                .to_owned(),
        ));
    }
    match engine.models.network() {
        Some(network) => network
            .check_base_url(&url)
            .map_err(|e| wrong(e.to_string())),
        None => Ok(()),
    }
}
