//! `vary`: which headers of the request a response depends on.
//!
//! # Guarantees
//!
//! Each layer adds what its part of the response depends on: `origin` where other origins are allowed, `accept-encoding`
//! where the body may be compressed, `accept` where there is another form. The response has all of it in one line, because
//! some clients and caches only read one.

use axum::response::Response;
use http::header::{self, HeaderValue};

/// Adds a request header to the response's `Vary` header.
pub(crate) fn depends_on(response: &mut Response, name: &'static str) {
    let name = HeaderValue::from_static(name);
    response.headers_mut().append(header::VARY, name);
}

/// Joins the lines of a complete response, each name once.
pub(crate) fn join(response: &mut Response) {
    let headers = response.headers_mut();
    let mut names: Vec<String> = Vec::new();
    for line in headers.get_all(header::VARY) {
        let line = line.to_str().unwrap_or_default();
        for name in line.split(',').map(str::trim) {
            let name = name.to_ascii_lowercase();
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    if let Ok(joined) = HeaderValue::try_from(names.join(", "))
        && !names.is_empty()
    {
        headers.insert(header::VARY, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_one_with_each_name_once() {
        let mut response = Response::new(axum::body::Body::empty());
        join(&mut response);
        assert!(response.headers().get(header::VARY).is_none());
        for name in ["origin", "Accept-Encoding, accept", "accept-encoding"] {
            depends_on(&mut response, name);
        }
        join(&mut response);
        let lines: Vec<_> = response.headers().get_all(header::VARY).iter().collect();
        assert_eq!(lines, ["origin, accept-encoding, accept"]);
    }
}
