//! Validates the `Host` of a request before anything else uses it.
//!
//! # Guarantees
//!
//! - An HTTP/1.1 request without exactly one valid `Host` gets 400 (RFC 9112, section 3.2). Code that compares origins
//!   or builds addresses from the host must never see two hosts or none.
//! - In HTTP/2, `:authority` takes its place, and a `Host` header must be equal to it.
//!
//! The check runs where connections are accepted ([`crate::app`]). Calls within the process have no `Host`.

use axum::extract::Request;
use http::header;
use http::uri::Authority;
use http::{HeaderMap, Uri, Version};

/// The problem with the `Host` of a request. The request is answered with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadHost(pub(crate) &'static str);

/// Marks a request with a missing, repeated or invalid `Host`. It is refused later, so that it gets a request id and a
/// log line like any other.
pub(crate) fn mark(request: &mut Request) {
    if let Err(bad) = check(request.version(), request.uri(), request.headers()) {
        request.extensions_mut().insert(bad);
    }
}

fn check(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), BadHost> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(BadHost("the request has several `Host` headers: send one"));
    }
    let Some(host) = host else {
        // HTTP/1.0 did not require it, and HTTP/2 has the authority.
        let is_needed = version == Version::HTTP_11;
        let is_missing = version >= Version::HTTP_2 && uri.authority().is_none();
        return if is_needed || is_missing {
            Err(BadHost(
                "the request has no `Host` header: send the name of the server",
            ))
        } else {
            Ok(())
        };
    };
    let authority = host
        .to_str()
        .ok()
        .and_then(|host| host.parse::<Authority>().ok())
        .filter(|authority| !authority.as_str().contains('@'))
        .ok_or(BadHost(
            "the `Host` header is not a host name with an optional port",
        ))?;
    match uri.authority() {
        // In HTTP/1.1, an absolute address takes precedence over the header (RFC 9112, section 3.2.2).
        Some(other) if version >= Version::HTTP_2 && *other != authority => Err(BadHost(
            "the `Host` header and `:authority` name different hosts",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn checked(version: Version, uri: &str, hosts: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        check(version, &uri.parse().unwrap(), &headers).is_ok()
    }

    #[test]
    fn http_1_1_needs_exactly_one_host() {
        let v = Version::HTTP_11;
        for host in ["a", "a:80", "[::1]:80", "127.0.0.1", "a.example"] {
            assert!(checked(v, "/", &[host]), "{host}");
        }
        assert!(!checked(v, "/", &[]));
        assert!(!checked(v, "http://a/", &[]));
        assert!(!checked(v, "/", &["a", "a"]));
        assert!(!checked(v, "/", &["a", "b"]));
        for host in ["", "a b", "u@a", "a,b c", "http://a/", "a/b"] {
            assert!(!checked(v, "/", &[host]), "{host:?}");
        }
        assert!(checked(v, "http://other/", &["a"]));
    }

    #[test]
    fn older_and_newer_versions_have_their_own_rule() {
        assert!(checked(Version::HTTP_10, "/", &[]));
        assert!(!checked(Version::HTTP_10, "/", &["a", "b"]));
        assert!(checked(Version::HTTP_2, "http://a/", &[]));
        assert!(checked(Version::HTTP_2, "http://a/", &["a"]));
        assert!(checked(Version::HTTP_2, "http://a:80/", &["A:80"]));
        assert!(!checked(Version::HTTP_2, "http://a/", &["b"]));
        assert!(!checked(Version::HTTP_2, "/", &[]));
    }
}
