//! Checks that every reader of a request body makes.

use http::header::{self, HeaderMap};

use super::error::ApiError;

/// Refuses a compressed body.
pub(crate) fn refuse_compressed(headers: &HeaderMap) -> Result<(), ApiError> {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    let is_plain = |value: &http::HeaderValue| {
        value
            .to_str()
            .is_ok_and(|text| text.trim().eq_ignore_ascii_case("identity"))
    };
    match encodings.iter().find(|value| !is_plain(value)) {
        None => Ok(()),
        Some(value) => {
            let shown: String = String::from_utf8_lossy(value.as_bytes())
                .chars()
                .take(40)
                .collect();
            Err(ApiError::unsupported(format!(
                "content-encoding: {shown:?} is not supported: send the body uncompressed, without this header"
            )))
        }
    }
}

/// The declared length of the body.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// The error for a body that broke off. The client has gone, so only the log receives it.
pub(crate) fn cut_off(error: &axum::Error) -> ApiError {
    ApiError::bad_request(format!(
        "the body ended early or could not be read: {error}"
    ))
}
