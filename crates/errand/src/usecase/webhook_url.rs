//! Webhook URLs: validation, and their form for display.

use super::UseCaseError;

/// Maximum length of an address from a team. Servers commonly accept this much.
const URL_BYTES_MAX: usize = 2_048;

/// Validates a webhook's address as far as possible without calling it.
pub(crate) fn webhook_url(
    name: &str,
    text: Option<String>,
    allow_private_networks: bool,
) -> Result<Option<String>, UseCaseError> {
    let Some(text) = text else { return Ok(None) };
    if text.len() > URL_BYTES_MAX {
        return Err(UseCaseError::invalid(
            name,
            format!("must be at most {URL_BYTES_MAX} bytes long"),
        ));
    }
    let url = url::Url::parse(&text).map_err(|error| {
        UseCaseError::invalid(
            name,
            format!("must be an http or https address, such as https://example.com/hook: {error}"),
        )
    })?;
    errand_engine::net::Guard::webhooks(allow_private_networks)
        .check_url(&url)
        .map_err(|error| UseCaseError::invalid(name, error))?;
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
