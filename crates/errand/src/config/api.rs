//! `[api]`: how strictly requests are read, and from where browsers may send them.

use url::Url;

use super::kinds::{Worded, list, whole, words};
use super::reader::section;

section! {
    /// How strictly requests are read, and from where browsers may send them.
    pub struct ApiConfig["api"] {
        /// What happens to a request whose body has a field that the API does not know.
        unknown_fields: UnknownFields = words(UnknownFields::Refuse, &UnknownFields::WORDS),
        /// The origins whose scripts may call the API from a browser, such as https://app.example.com; * for all.
        allowed_origins: Vec<String> = list("scheme://host, or *", origin),
        /// How many event streams one API key, or one person in the web interface, may have open at once.
        event_streams_per_key: u32 = whole(50, 1..=10_000),
    }
}

/// An origin, as browsers write it.
fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let form = "write https://app.example.com, perhaps with a port, or *";
    let url = Url::parse(text).map_err(|error| format!("is not an origin ({error}); {form}"))?;
    let origin = url.origin().ascii_serialization();
    let is_web = matches!(url.scheme(), "http" | "https");
    if is_web && text.trim_end_matches('/').eq_ignore_ascii_case(&origin) {
        Ok(origin)
    } else {
        Err(format!(
            "is more than scheme, host and port, or less; {form}"
        ))
    }
}

/// What happens to a body with a field that the API does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// The request is refused, and the answer names the field.
    Refuse,
    /// The field is passed over: for clients that were written for another server.
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
