//! Checks the config of a build against the team's secrets, connections and assignments.

use errand_core::config::{self, BuildConfig};
use errand_core::connection::connection_of;
use errand_core::id::TeamId;
use errand_core::limits::CONFIG_BYTES_MAX;
use errand_core::policy::Policy;
use errand_core::warning::Warning;
use errand_engine::EngineContext;
use errand_store::Connection;
use serde_json::Value;

use super::UseCaseError;

/// Validates a config, and returns warnings for its author.
pub(crate) async fn check_config(
    engine: &EngineContext,
    team: TeamId,
    config: &Value,
    within: &str,
) -> Result<Vec<Warning>, UseCaseError> {
    let parsed = engine
        .store
        .parse_config(config)
        .map_err(|error| UseCaseError::Refused(format!("{within}{error}")))?;
    let mut warnings = check_reach(engine, team, &parsed, within).await?;
    warnings.extend(config::ignored(config, within));
    if config.to_string().len() > CONFIG_BYTES_MAX {
        return Err(UseCaseError::invalid(
            &format!("{within}config"),
            format!("must be at most {CONFIG_BYTES_MAX} bytes long"),
        ));
    }
    Ok(warnings)
}

/// Checks the secrets, connections, tools and agents to which a build refers, and returns warnings for its author.
pub(crate) async fn check_reach(
    engine: &EngineContext,
    team: TeamId,
    config: &BuildConfig,
    within: &str,
) -> Result<Vec<Warning>, UseCaseError> {
    check_assignments(engine, team, config, within).await?;
    if !config.reach.secrets.is_empty() {
        let there = engine.store.secret_names(team).await?;
        if let Some(absent) = config
            .reach
            .secrets
            .iter()
            .find(|name| !there.contains(name))
        {
            return Err(UseCaseError::invalid(
                &format!("{within}config"),
                format!(
                    "the secret {absent} does not exist; an admin or owner can set it with POST /v1/secrets"
                ),
            ));
        }
    }
    let ids = config.reach.connections.clone();
    let there = engine.store.connections_of(team, ids.clone()).await?;
    if let Some(absent) = ids
        .iter()
        .find(|id| !there.iter().any(|connection| connection.id == **id))
    {
        return Err(UseCaseError::invalid(
            &format!("{within}config.data.connections"),
            format!("the connection {absent} does not exist"),
        ));
    }
    let mut named: Vec<(String, &str, Option<Policy>)> = Vec::new();
    for (tool, policy) in &config.tools {
        named.push((format!("data.tools.{tool}"), tool, Some(*policy)));
    }
    for name in config.all_of.keys() {
        if !there.iter().any(|connection| connection.name == *name) {
            return Err(UseCaseError::invalid(
                &format!("{within}config.data.tools.{name}__*"),
                format!("none of the connections in data.connections is named {name:?}"),
            ));
        }
    }
    for (path, tool) in config.playbook.iter().flat_map(|p| p.tools()) {
        if connection_of(tool).is_some() && !config.names(tool) {
            return Err(UseCaseError::invalid(
                &format!("{within}config.data.{path}.tool"),
                format!(
                    "this build does not have the tool {tool:?}; add it to data.tools, or add all tools of its connection with <connection>__*"
                ),
            ));
        }
        named.push((format!("data.{path}.tool"), tool, None));
    }
    for (path, tool, policy) in named {
        if let Some(connection) = connection_of(tool) {
            check_tool(&there, connection, tool, policy)
                .map_err(|why| UseCaseError::invalid(&format!("{within}config.{path}"), why))?;
        }
    }
    // `connections_of` returns the rows in the order of the build's ids.
    let names: Vec<&str> = there
        .iter()
        .map(|connection| connection.name.as_str())
        .collect();
    Ok(config::warnings(config, &names, within))
}

/// Checks that the agents that a build may start belong to the team.
async fn check_assignments(
    engine: &EngineContext,
    team: TeamId,
    config: &BuildConfig,
    within: &str,
) -> Result<(), UseCaseError> {
    let ids = &config.reach.assignments;
    if ids.is_empty() {
        return Ok(());
    }
    let there = engine.store.agents_among(team, ids.clone()).await?;
    match ids.iter().position(|id| !there.contains(id)) {
        None => Ok(()),
        Some(place) => Err(UseCaseError::invalid(
            &format!("{within}config.data.assignments[{place}]"),
            "the team does not have this assignment; GET /v1/agents lists the existing ones",
        )),
    }
}

/// Checks a tool against the connection's last probe, if there was one, and its policy against the floor.
fn check_tool(
    there: &[Connection],
    name: &str,
    tool: &str,
    policy: Option<Policy>,
) -> Result<(), String> {
    let connection = there
        .iter()
        .find(|connection| connection.name == name)
        .ok_or_else(|| format!("none of the connections in data.connections is named {name:?}"))?;
    if connection.tools.is_some() && connection.tool(tool).is_none() {
        return Err(format!(
            "the connection {name} had no tool {tool:?} at its last probe; GET /v1/connections/{} lists its tools",
            connection.id
        ));
    }
    let floor = connection.floor(tool);
    match policy {
        Some(policy) if policy.or_stricter(floor) != policy => Err(format!(
            "it cannot be {:?}: an admin of the team requires at least {:?} for this tool",
            policy.as_str(),
            floor.as_str()
        )),
        _ => Ok(()),
    }
}
