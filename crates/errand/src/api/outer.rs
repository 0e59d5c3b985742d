//! The address at which the caller reaches the server, for the addresses in answers.
//!
//! It is `server.public_url` where that is set. Otherwise it is the host that the request itself was sent to: a server that
//! listens on all addresses cannot know which of them its clients use. Only callers with a key are answered so, and with
//! nothing but a host and a port: what a stranger writes into `Host` reaches nobody else.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;
use url::Url;

use super::AppState;

/// Without a slash at its end.
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

/// The origin of a host with, perhaps, a port. None: it is more than that, or no host.
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
    fn a_host_is_taken_and_nothing_more() {
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
