//! `[connections]`: MCP servers whose tools assignments call, and local programs that are such servers.
//!
//! Programs (`[connections.stdio.NAME]`) can be declared only in the settings file: whoever names a program runs code
//! with the rights of this server, and environment variables are too easily set.

use std::collections::BTreeMap;
use std::time::Duration;

use errand_engine::connect::{Isolation, StdioServer};

use super::kinds::{boolean, duration};
use super::problems::Origin;
use super::reader::{Reader, section};

/// Prefix of the tables that declare programs.
pub(super) const STDIO: &str = "connections.stdio.";
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

section! {
    /// MCP servers whose tools assignments call.
    pub struct ConnectionsConfig["connections"] {
        /// Whether MCP servers in private networks, including this machine, are permitted.
        allow_private_networks: bool = boolean(false),
        /// Time limit for one tool call.
        call_timeout: Duration = duration(2 * MINUTE, SECOND..=60 * MINUTE),
        /// Time after which an unused session with an MCP server is closed.
        idle_close: Duration = duration(5 * MINUTE, SECOND..=1440 * MINUTE),
    } with {
        /// The programs that teams can select as servers, by name.
        stdio: BTreeMap<String, StdioServer> = stdio,
    }
}

fn stdio(reader: &mut Reader<'_>) -> BTreeMap<String, StdioServer> {
    let mut servers = BTreeMap::new();
    for (name, table) in reader.tables(STDIO) {
        let Table { origin, values } = table;
        let at = format!("{STDIO}{name}");
        match server(&values) {
            Ok(server) => {
                servers.insert(name, server);
            }
            Err((key, message)) => reader.wrong(origin, &format!("{at}{key}"), message),
        }
    }
    servers
}

/// A table below a prefix in the settings file.
pub(super) struct Table {
    pub(super) origin: Origin,
    /// Values by the rest of their names.
    pub(super) values: BTreeMap<String, toml::Value>,
}

/// Settings of a program, except `env`.
const KEYS: [&str; 5] = ["command", "args", "isolation", "read_only", "team_env"];

/// Parses a program. The error is the key and the message.
fn server(values: &BTreeMap<String, toml::Value>) -> Result<StdioServer, (String, String)> {
    let wrong = |key: &str, message: &str| (format!(".{key}"), message.to_owned());
    let texts = |key: &str| match values.get(key) {
        None => Ok(Vec::new()),
        Some(value) => value
            .as_array()
            .and_then(|items| {
                items
                    .iter()
                    .map(|item| item.as_str().map(str::to_owned))
                    .collect::<Option<Vec<_>>>()
            })
            .ok_or_else(|| wrong(key, "must be a list of quoted strings")),
    };
    let mut env = BTreeMap::new();
    for (key, value) in values {
        match key.strip_prefix("env.") {
            Some(variable) => {
                let value = value
                    .as_str()
                    .ok_or_else(|| wrong(key, "must be a quoted string"))?;
                env.insert(variable.to_owned(), value.to_owned());
            }
            None if KEYS.contains(&key.as_str()) => {}
            // An empty table of variables.
            None if key == "env" && value.as_table().is_some_and(toml::Table::is_empty) => {}
            None => {
                return Err(wrong(
                    key,
                    "is not a setting of a program; these are command, args, env, team_env, isolation and read_only",
                ));
            }
        }
    }
    let command = values
        .get("command")
        .and_then(toml::Value::as_str)
        .filter(|command| !command.is_empty())
        .ok_or_else(|| {
            wrong(
                "command",
                "must be the path or name of a program, as a quoted string",
            )
        })?;
    let isolation = match values.get("isolation").map(|value| value.as_str()) {
        None | Some(Some("sandbox")) => Isolation::Sandbox,
        Some(Some("none")) => Isolation::None,
        Some(_) => return Err(wrong("isolation", "must be sandbox or none")),
    };
    let team_env = texts("team_env")?;
    if let Some(name) = team_env.iter().find(|name| env.contains_key(*name)) {
        let said = format!("contains {name}, which env already sets; a team cannot override it");
        return Err(wrong("team_env", &said));
    }
    if team_env
        .iter()
        .any(|name| name.is_empty() || name.contains(['=', '\0']))
    {
        return Err(wrong("team_env", "must be names of environment variables"));
    }
    Ok(StdioServer {
        command: command.to_owned(),
        args: texts("args")?,
        env,
        team_env,
        isolation,
        read_only: texts("read_only")?,
    })
}
