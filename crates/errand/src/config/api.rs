//! `[api]`: how strictly requests are read.

use super::kinds::{Worded, words};
use super::reader::section;

section! {
    /// How strictly requests are read.
    pub struct ApiConfig["api"] {
        /// What happens to a request whose body has a field that the API does not know.
        unknown_fields: UnknownFields = words(UnknownFields::Refuse, &UnknownFields::WORDS),
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
