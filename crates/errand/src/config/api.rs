//! `[api]`: how strictly requests are parsed, and from which origins browsers may send them.

use url::Url;

use super::kinds::{Worded, list, whole, words};
use super::reader::section;

section! {
    /// How strictly requests are parsed, and from which origins browsers may send them.
    pub struct ApiConfig["api"] {
        /// What happens to a request whose body has an unknown field.
        unknown_fields: UnknownFields = words(UnknownFields::Refuse, &UnknownFields::WORDS),
        /// Origins whose scripts may call the API from a browser, for example https://app.example.com; * for all.
        allowed_origins: Vec<String> = list("scheme://host, or *", origin),
        /// Maximum number of open event streams per API key, and per user in the web interface.
        event_streams_per_key: u32 = whole(50, 1..=10_000),
    }
}

/// Parses an origin in the form that browsers send.
fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let form = "write https://app.example.com, optionally with a port, or *";
    let url = Url::parse(text).map_err(|error| format!("is not an origin ({error}); {form}"))?;
    let origin = url.origin().ascii_serialization();
    let is_web = matches!(url.scheme(), "http" | "https");
    if is_web && text.trim_end_matches('/').eq_ignore_ascii_case(&origin) {
        Ok(origin)
    } else {
        Err(format!(
            "must consist of scheme, host and optional port; {form}"
        ))
    }
}

/// How unknown fields of a request's body are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// Refuse the request with an error that names the field.
    Refuse,
    /// Ignore the field, for clients that were written for another server.
    Ignore,
}

impl UnknownFields {
    const WORDS: [(&str, Self); 2] = [("refuse", Self::Refuse), ("ignore", Self::Ignore)];
}

impl Worded for UnknownFields {
    fn word(&self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Ignore => "ignore",
        }
    }
}
