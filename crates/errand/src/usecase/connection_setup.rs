//! Validates the settings of a team's connection before they are stored.

use std::collections::BTreeMap;

use errand_core::connection::{self, connection_of};
use errand_core::id::TeamId;
use errand_core::secret;
use errand_engine::EngineContext;
use errand_store::{Connection, Floors, OauthClient, Setup, ToolSettingsByName};
use serde_json::Value;
use url::Url;

use super::UseCaseError;

/// Maximum number of headers or environment variables of a connection.
const VALUES_MAX: usize = 32;
/// Maximum length of one value.
const VALUE_BYTES_MAX: usize = 8 * 1024;

/// Validates a connection's transport: its address is allowed, its secrets exist, its program is declared.
///
/// # Errors
/// `Invalid` with the field's name in the API, or the store's errors.
pub(crate) async fn check_setup(
    engine: &EngineContext,
    team: TeamId,
    setup: &Setup,
) -> Result<(), UseCaseError> {
    match setup {
        Setup::Http {
            url,
            headers,
            client,
        } => {
            let parsed = Url::parse(url)
                .map_err(|error| UseCaseError::invalid("transport.url", error.to_string()))?;
            engine
                .connections
                .guard()
                .check_url(&parsed)
                .map_err(|blocked| UseCaseError::invalid("transport.url", blocked.to_string()))?;
            let (place, query) = url.split_once('?').unwrap_or((url, ""));
            let (query, fragment) = query.split_once('#').unwrap_or((query, ""));
            let names_secret = |text: &str| {
                secret::first_named_in("url", &Value::String(text.to_owned())).is_some()
            };
            if names_secret(place) || names_secret(fragment) || parsed.password().is_some() {
                return Err(UseCaseError::invalid(
                    "transport.url",
                    "an address can contain secrets only in its query, as {{ secret.NAME }}; put other secrets into transport.headers".to_owned(),
                ));
            }
            let in_query = BTreeMap::from([("query".to_owned(), query.to_owned())]);
            check_values(engine, team, "transport.url", &in_query).await?;
            check_values(engine, team, "transport.headers", headers).await?;
            for name in headers.keys() {
                if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                    return Err(UseCaseError::invalid(
                        "transport.headers",
                        format!("{name:?} is not a valid header name"),
                    ));
                }
            }
            check_client(engine, team, client.as_ref()).await
        }
        Setup::Stdio { command, env } => {
            if !engine
                .connections
                .declared()
                .any(|name| name == command.as_str())
            {
                let known: Vec<&str> = engine.connections.declared().collect();
                let known = if known.is_empty() {
                    "no program is declared".to_owned()
                } else {
                    format!("declared programs: {}", known.join(", "))
                };
                return Err(UseCaseError::invalid(
                    "transport.command",
                    format!(
                        "the operator has not declared a program {command:?} in errand.toml ([connections.stdio.{command}]); {known}"
                    ),
                ));
            }
            check_values(engine, team, "transport.env", env).await?;
            if let Some(name) = engine.connections.not_for_teams(command, env) {
                return Err(UseCaseError::invalid(
                    "transport.env",
                    format!(
                        "a team may not set {name:?}: the operator lists the permitted variables in errand.toml (team_env of [connections.stdio.{command}])"
                    ),
                ));
            }
            Ok(())
        }
    }
}

/// Validates a pre-registered client. Its stored form refers to its secret but does not contain it.
async fn check_client(
    engine: &EngineContext,
    team: TeamId,
    client: Option<&OauthClient>,
) -> Result<(), UseCaseError> {
    const ID: &str = "transport.oauth_client.client_id";
    const SECRET: &str = "transport.oauth_client.client_secret";
    let Some(client) = client else {
        return Ok(());
    };
    if client.id.is_empty() || client.id.len() > VALUE_BYTES_MAX {
        return Err(UseCaseError::invalid(
            ID,
            "must be the client id that the authorization server issued",
        ));
    }
    if let Some(text) = &client.secret {
        let named = secret::marks_in(text);
        let is_mark = named
            .first()
            .is_some_and(|n| secret::mark(n) == text.trim());
        if named.len() != 1 || !is_mark {
            return Err(UseCaseError::invalid(
                SECRET,
                "must be {{ secret.NAME }}; set the secret with POST /v1/secrets",
            ));
        }
        let values = BTreeMap::from([("client_secret".to_owned(), text.clone())]);
        check_values(engine, team, SECRET, &values).await?;
    }
    Ok(())
}

async fn check_values(
    engine: &EngineContext,
    team: TeamId,
    path: &str,
    values: &BTreeMap<String, String>,
) -> Result<(), UseCaseError> {
    if values.len() > VALUES_MAX || values.values().any(|value| value.len() > VALUE_BYTES_MAX) {
        return Err(UseCaseError::invalid(
            path,
            format!(
                "must have at most {VALUES_MAX} values of at most {VALUE_BYTES_MAX} bytes each"
            ),
        ));
    }
    let names = engine.store.secret_names(team).await?;
    for (name, value) in values {
        let named = secret::marks_in(value);
        if named.is_empty() && secret::first_named_in("", &Value::String(value.clone())).is_some() {
            return Err(UseCaseError::invalid(
                path,
                format!("{name}: a secret must be written as {{{{ secret.NAME }}}}"),
            ));
        }
        if let Some(absent) = named.iter().find(|name| !names.contains(name)) {
            return Err(UseCaseError::invalid(
                path,
                format!("{name}: the secret {absent} does not exist; set it with POST /v1/secrets"),
            ));
        }
    }
    Ok(())
}

/// Checks that the floors are for tools of the connection.
pub(crate) fn check_floors(name: &str, floors: &Floors) -> Result<(), UseCaseError> {
    let strange = floors
        .keys()
        .find(|tool| *tool != "*" && connection_of(tool) != Some(name));
    match strange {
        None => Ok(()),
        Some(tool) => Err(UseCaseError::invalid(
            "floors",
            format!(
                "{tool:?} is not a tool of this connection: its tools are called {name}__<tool>, and `*` means all"
            ),
        )),
    }
}

/// Maximum number of tools with settings, equal to the maximum number of tools of a connection.
const SETTINGS_MAX: usize = 500;

/// Validates an admin's settings for the tools of a connection. `existing`: the connection, if its last probe is still
/// valid for them.
pub(crate) fn check_settings(
    name: &str,
    existing: Option<&Connection>,
    settings: &ToolSettingsByName,
) -> Result<(), UseCaseError> {
    if settings.len() > SETTINGS_MAX {
        return Err(UseCaseError::invalid(
            "tool_settings",
            format!("must have at most {SETTINGS_MAX} tools"),
        ));
    }
    for (tool, said) in settings {
        if connection_of(tool) != Some(name) || connection::is_all_of(tool).is_some() {
            return Err(UseCaseError::invalid(
                "tool_settings",
                format!(
                    "{tool:?} is not a tool of this connection: its tools are called {name}__<tool>"
                ),
            ));
        }
        let probed = existing.and_then(|connection| connection.tool(tool));
        if said.trusted == Some(true) && probed.is_some_and(|probed| probed.is_open(*said)) {
            return Err(UseCaseError::invalid(
                "tool_settings",
                format!(
                    "{tool} reaches the open world, so its results cannot be trusted; if it does not reach it, set \"open_world\": false too"
                ),
            ));
        }
    }
    Ok(())
}
