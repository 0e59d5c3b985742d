//! The session cookie of the web interface.
//!
//! The cookie contains a random token; the store has its SHA-256. It is `HttpOnly` and `SameSite=Lax`. If people reach
//! the server over TLS, it is also `Secure` and has the prefix `__Host-`.

use http::header::{self, HeaderMap, HeaderValue};

use super::error::ApiError;
use crate::secret_key::SetUpToken;

/// Whether people reach the server over TLS.
fn is_secure(public_url: &str) -> bool {
    public_url.starts_with("https:")
}

fn cookie_name(public_url: &str) -> &'static str {
    if is_secure(public_url) {
        "__Host-errand"
    } else {
        "errand"
    }
}

/// The token in the session cookie of a request. `None` if it is absent or malformed.
pub(crate) fn token_of(public_url: &str, headers: &HeaderMap) -> Option<SetUpToken> {
    let name = cookie_name(public_url);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| SetUpToken::parse(value))
}

/// The header that sets the cookie.
pub(crate) fn cookie(
    public_url: &str,
    value: &str,
    max_age_s: u32,
) -> Result<HeaderValue, ApiError> {
    let secure = if is_secure(public_url) {
        "; Secure"
    } else {
        ""
    };
    let text = format!(
        "{}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age_s}{secure}",
        cookie_name(public_url)
    );
    HeaderValue::try_from(text).map_err(ApiError::internal)
}
