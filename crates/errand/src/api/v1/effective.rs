//! Computes the tools that a build has now, for the API and the pages.

use errand_core::config::{self, BuildConfig};
use errand_core::effective;
use errand_core::id::TeamId;
use errand_core::warning::Warning;
use errand_store::StoreError;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::AppState;

/// A tool that a build's runs have now.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct EffectiveToolBody {
    /// The name that the model sees.
    #[schema(example = "mail__search")]
    pub(crate) name: String,
    /// `allow`, `ask`, `guard` or `deny`. A denied tool is not offered to the model.
    #[schema(example = "guard")]
    pub(crate) policy: &'static str,
    /// The source of the policy: `default` (the build lists no tools), `build` (the build lists this tool),
    /// `connection` (the build sets one policy for all tools of the connection), `hints` (the build uses all tools of
    /// the connection, each with the policy that follows from its hints), or `floor` (an admin's minimum).
    #[schema(example = "hints")]
    pub(crate) from: &'static str,
}

/// The tools of a build, according to the last probe of its connections and the current floors.
pub(crate) async fn tools_of(
    app: &AppState,
    team: TeamId,
    build: &BuildConfig,
) -> Result<Vec<EffectiveToolBody>, StoreError> {
    let ids = build.reach.connections.clone();
    let connections = if ids.is_empty() {
        Vec::new()
    } else {
        app.store.connections_of(team, ids).await?
    };
    let views: Vec<_> = connections.iter().map(|one| one.view()).collect();
    let has = |name: &str| app.tools.get(name).map(|tool| tool.hints());
    let tools = effective::tools(build, &has, &views, None);
    Ok(tools
        .into_iter()
        .map(|tool| EffectiveToolBody {
            name: tool.name.to_owned(),
            policy: tool.policy.as_str(),
            from: tool.by.as_str(),
        })
        .collect())
}

/// Warnings about a stored config. Empty for a config that can no longer be parsed.
pub(crate) async fn warnings_of_config(
    app: &AppState,
    team: TeamId,
    config: &Value,
) -> Result<Vec<Warning>, StoreError> {
    let Ok(build) = app.store.parse_config(config) else {
        return Ok(Vec::new());
    };
    let ids = build.reach.connections.clone();
    let connections = app.store.connections_of(team, ids).await?;
    let names: Vec<&str> = connections.iter().map(|one| one.name.as_str()).collect();
    let mut found = config::warnings(&build, &names, "");
    found.extend(config::ignored(config, ""));
    Ok(found)
}

/// The tools of a stored config. Empty for a config that can no longer be parsed.
pub(crate) async fn tools_of_config(
    app: &AppState,
    team: TeamId,
    config: &Value,
) -> Result<Vec<EffectiveToolBody>, StoreError> {
    match app.store.parse_config(config) {
        Ok(build) => tools_of(app, team, &build).await,
        Err(_) => Ok(Vec::new()),
    }
}
