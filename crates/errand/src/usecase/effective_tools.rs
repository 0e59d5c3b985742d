//! Computes the tools that a build has now, and the warnings for its author.

use errand_core::config::{self, BuildConfig};
use errand_core::effective;
use errand_core::id::TeamId;
use errand_core::warning::Warning;
use errand_engine::EngineContext;
use errand_store::StoreError;
use serde_json::Value;

/// A tool that a build's runs have now.
pub(crate) struct EffectiveTool {
    /// The name that the model sees.
    pub(crate) name: String,
    /// `allow`, `ask`, `guard` or `deny`.
    pub(crate) policy: &'static str,
    /// The source of the policy: `default`, `build`, `connection`, `hints` or `floor`.
    pub(crate) from: &'static str,
}

/// The tools of a build, according to the last probe of its connections and the current floors.
async fn tools_of(
    engine: &EngineContext,
    team: TeamId,
    build: &BuildConfig,
) -> Result<Vec<EffectiveTool>, StoreError> {
    let ids = build.reach.connections.clone();
    let connections = if ids.is_empty() {
        Vec::new()
    } else {
        engine.store.connections_of(team, ids).await?
    };
    let views: Vec<_> = connections.iter().map(|one| one.view()).collect();
    let has = |name: &str| engine.tools.get(name).map(|tool| tool.hints());
    let tools = effective::tools(build, &has, &views, None);
    Ok(tools
        .into_iter()
        .map(|tool| EffectiveTool {
            name: tool.name.to_owned(),
            policy: tool.policy.as_str(),
            from: tool.by.as_str(),
        })
        .collect())
}

/// Warnings about a stored config. Empty for a config that can no longer be parsed.
pub(crate) async fn warnings_of_config(
    engine: &EngineContext,
    team: TeamId,
    config: &Value,
) -> Result<Vec<Warning>, StoreError> {
    let Ok(build) = engine.store.parse_config(config) else {
        return Ok(Vec::new());
    };
    let ids = build.reach.connections.clone();
    let connections = engine.store.connections_of(team, ids).await?;
    let names: Vec<&str> = connections.iter().map(|one| one.name.as_str()).collect();
    let mut found = config::warnings(&build, &names, "");
    found.extend(config::ignored(config, ""));
    Ok(found)
}

/// The tools of a stored config. Empty for a config that can no longer be parsed.
pub(crate) async fn tools_of_config(
    engine: &EngineContext,
    team: TeamId,
    config: &Value,
) -> Result<Vec<EffectiveTool>, StoreError> {
    match engine.store.parse_config(config) {
        Ok(build) => tools_of(engine, team, &build).await,
        Err(_) => Ok(Vec::new()),
    }
}
