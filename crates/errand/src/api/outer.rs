//! The base address for links in responses.
//!
//! It is `server.public_url` if that is set. Otherwise it is the host to which the request was sent, because a server
//! that listens on all addresses cannot know which of them its clients use. Such links are returned only to callers
//! with a key and contain only a host and a port, so an attacker's `Host` header cannot reach anybody else.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;
use url::Url;

use crate::state::AppState;

/// The base address, without a trailing slash.
pub(crate) struct OuterUrl(pub(crate) String);

impl FromRequestParts<AppState> for OuterUrl {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Infallible> {
        let settings = &app.settings;
        if settings.has_public_url {
            return Ok(Self(settings.public_url.clone()));
        }
        let scheme = settings.public_url.split("://").next().unwrap_or("http");
        let host = parts.uri.authority().map(http::uri::Authority::as_str);
        let host = host.or_else(|| parts.headers.get(header::HOST)?.to_str().ok());
        let of_host = host.and_then(|host| origin(scheme, host));
        Ok(Self(of_host.unwrap_or_else(|| settings.public_url.clone())))
    }
}

/// The origin for a host with an optional port. `None` for anything else.
fn origin(scheme: &str, host: &str) -> Option<String> {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(plain) {
        return None;
    }
    let url = Url::parse(&format!("{scheme}://{host}/")).ok()?;
    url.has_host().then(|| url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_with_a_port_is_used() {
        let of = |host: &str| origin("http", host);
        assert_eq!(
            of("errand.lan:2025").as_deref(),
            Some("http://errand.lan:2025")
        );
        assert_eq!(of("[::1]:80").as_deref(), Some("http://[::1]"));
        for bad in [
            "", "a@b", "a/b", "a?b", "a b", "a\\b", "http://a", "a:b", ":80", "ü",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
