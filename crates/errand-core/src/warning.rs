//! Warnings: settings that are accepted and may not do what their author expects.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A setting that is accepted, and what its author should know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// The setting, such as `config.data.connections`.
    pub path: String,
    /// What is the case, and what to do.
    pub message: String,
}

impl Warning {
    /// A warning about a setting.
    #[must_use]
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}
