//! What a team connects errand with: MCP servers, model providers, and the secrets that both use.

pub(crate) mod connections;
pub(crate) mod providers;
pub(crate) mod secrets;
