//! Authors: a person, a program, or the server.

use serde::Deserialize;

use crate::names::names;

names! {
    /// The kind of an author.
    AuthorKind {
        /// A person in the web interface.
        User = "user",
        /// A program with an API key.
        ApiKey = "api_key",
        /// The server itself, for example when a deadline passes.
        System = "system",
    }
}

/// The author of a message, a run or an answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Author {
    /// A person, a program, or the server itself.
    pub kind: AuthorKind,
    /// The id of the user or of the API key.
    pub id: Option<String>,
    /// The API key's name.
    pub name: Option<String>,
    /// The user who created the API key.
    pub created_by: Option<String>,
}
