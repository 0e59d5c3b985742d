//! Request fields that are texts: names and addresses.

use errand_core::display::is_name;
use errand_core::limits::NAME_CHARS_MAX;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::http::error::ApiError;

/// Maximum length of an address from a team. Servers commonly accept this much.
const URL_BYTES_MAX: usize = 2_048;

/// A name of 1 to 200 characters in one line, at least one of them visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if is_name(&text) {
            Ok(Self(text))
        } else {
            Err(D::Error::custom(format!(
                "must have 1 to {NAME_CHARS_MAX} characters in one line, at least one of them visible"
            )))
        }
    }
}

/// Validates a webhook's address as far as possible without calling it.
pub(crate) fn webhook_url(
    name: &str,
    text: Option<String>,
    allow_private_networks: bool,
) -> Result<Option<String>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    if text.len() > URL_BYTES_MAX {
        return Err(ApiError::invalid(
            name,
            format!("must be at most {URL_BYTES_MAX} bytes long"),
        ));
    }
    let url = url::Url::parse(&text).map_err(|error| {
        ApiError::invalid(
            name,
            format!("must be an http or https address, such as https://example.com/hook: {error}"),
        )
    })?;
    errand_engine::net::Guard::webhooks(allow_private_networks)
        .check_url(&url)
        .map_err(|error| ApiError::invalid(name, error))?;
    Ok(Some(text))
}

/// An address for display: complete, or, for callers who do not manage webhooks, without the parts that may be secret
/// (user name, password, query).
pub(crate) fn address_to_show(text: &str, whole: bool) -> String {
    if whole {
        return text.to_owned();
    }
    let Ok(mut url) = url::Url::parse(text) else {
        return "…".to_owned();
    };
    let hides = url.query().is_some() || url.has_authority() && !url.username().is_empty();
    url.set_query(None);
    url.set_fragment(None);
    // An http address has a host, so removing the user name and password cannot fail.
    let _ = (url.set_username(""), url.set_password(None));
    if hides {
        format!("{url}…")
    } else {
        url.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_length() {
        let fits = |text: &str| serde_json::from_value::<Name>(serde_json::json!(text)).is_ok();
        assert!(fits("a"));
        assert!(fits(&"é".repeat(200)));
        assert!(!fits(""));
        assert!(!fits("  "));
        assert!(!fits("\u{200b}"));
        assert!(!fits("a\u{0}b"));
        assert!(!fits("a\nb"));
        assert!(!fits(&"a".repeat(201)));
    }

    #[test]
    fn addresses_of_webhooks() {
        let fits = |text: &str, private| {
            webhook_url("webhook_url", Some(text.to_owned()), private).is_ok()
        };
        assert!(fits("https://example.com/hook?x=1", false));
        assert!(!fits("http://127.0.0.1:9/", false));
        assert!(fits("http://127.0.0.1:9/", true));
        for bad in ["ftp://example.com", "example.com", "", "/hook"] {
            assert!(!fits(bad, true), "{bad}");
        }
        assert!(webhook_url("webhook_url", None, false).unwrap().is_none());
    }

    #[test]
    fn secret_parts_of_an_address_are_hidden() {
        for (address, shown) in [
            ("https://example.com/hook", "https://example.com/hook"),
            (
                "https://example.com/hook?token=x",
                "https://example.com/hook…",
            ),
            ("https://ann:x@example.com/", "https://example.com/…"),
            ("no address", "…"),
        ] {
            assert_eq!(address_to_show(address, false), shown);
            assert_eq!(address_to_show(address, true), address);
        }
    }
}
