//! Services that a team connects errand to: MCP servers, model providers, and the secrets that both use.

pub(crate) mod connections;
pub(crate) mod providers;
pub(crate) mod secrets;
