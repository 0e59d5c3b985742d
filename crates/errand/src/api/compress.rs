//! Responses in gzip or brotli, for clients that accept it.
//!
//! Compressed are the API's JSON, the documentation, and what pages are made of besides their HTML. Left out: event
//! streams, which must not wait for a full block; files of sandboxes, whose length and ranges count; the HTML of pages,
//! which holds a form token beside what a visitor sent; and bodies that are too small to gain by it.

use axum::body::HttpBody;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::header::{self, HeaderMap};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::Predicate;

/// Least bytes that are compressed: fewer fit into one packet in any form.
const BYTES_MIN: u64 = 1_400;

/// Types that are compressed.
const TYPES: [&str; 6] = [
    "application/json",
    "application/yaml",
    "text/css",
    "text/csv",
    "text/javascript",
    "image/svg+xml",
];

/// Put into a response whose body is to be sent as it is.
#[derive(Clone, Copy)]
pub(crate) struct AsItIs;

/// Put into a response of HTML in which nothing is secret.
#[derive(Clone, Copy)]
pub(crate) struct PublicPage;

/// Which responses are compressed.
#[derive(Clone, Copy)]
pub(crate) struct Worth;

impl Predicate for Worth {
    fn should_compress<B: HttpBody>(&self, response: &http::Response<B>) -> bool {
        let kind = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let is_page = kind == "text/html" && response.extensions().get::<PublicPage>().is_some();
        (TYPES.contains(&kind) || is_page)
            && response.extensions().get::<AsItIs>().is_none()
            && response
                .body()
                .size_hint()
                .exact()
                .is_some_and(|bytes| bytes >= BYTES_MIN)
    }
}

/// The layer. The fastest level: most of what can be gained, at a tenth of the time.
pub(crate) fn layer() -> CompressionLayer<Worth> {
    CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(Worth)
}

/// Before it: a client that refuses everything but what we do not have gets the plain form, and not an error after the
/// effect.
pub(crate) async fn before(mut request: Request, next: Next) -> Response {
    if refuses_plain(request.headers()) {
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    next.run(request).await
}

fn refuses_plain(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let texts = values.map(|value| value.to_str().unwrap_or_default());
    texts.flat_map(|text| text.split(',')).any(|one| {
        let mut parts = one.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        let is_zero = weight.is_some_and(|weight| weight.parse::<f32>().is_ok_and(|q| q <= 0.0));
        is_zero && (coding == "*" || coding.eq_ignore_ascii_case("identity"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn who_refuses_the_plain_form_is_told_from_who_does_not() {
        let refuses = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(text));
            refuses_plain(&headers)
        };
        assert!(refuses("gzip, identity;q=0"));
        assert!(refuses("*; q=0.0"));
        assert!(!refuses("gzip;q=0, br"));
        assert!(!refuses("identity;q=0.5, *;q=0.1"));
        assert!(!refuses_plain(&HeaderMap::new()));
    }
}
