//! Warnings: settings that are valid but may not do what their author expects.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A remark about one accepted setting. Warnings never reject a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// The setting's path, such as `config.data.connections`.
    pub path: String,
    /// The problem and the remedy, in one or two sentences.
    pub message: String,
}

impl Warning {
    #[must_use]
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}
