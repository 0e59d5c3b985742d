//! `[connections]`: the servers whose tools assignments call, and the programs that may be such servers.
//!
//! The programs, `[connections.stdio.NAME]`, stand in the settings file alone: who names a program runs code as this
//! server does, and a variable is too easily set.

use std::collections::BTreeMap;
use std::time::Duration;

use errand_engine::connect::{Isolation, StdioServer};

use super::kinds::{boolean, duration};
use super::problems::Origin;
use super::reader::{Reader, section};

/// What stands before the name of a program in the settings' names.
pub(super) const STDIO: &str = "connections.stdio.";
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

section! {
    /// The servers whose tools assignments call.
    pub struct ConnectionsConfig["connections"] {
        /// Whether servers in private networks may be reached, the server's own machine among them.
        allow_private_networks: bool = boolean(false),
        /// How long one call of a tool may take.
        call_timeout: Duration = duration(2 * MINUTE, SECOND..=60 * MINUTE),
        /// How long a session with a server is kept that nobody uses.
        idle_close: Duration = duration(5 * MINUTE, SECOND..=1440 * MINUTE),
    } with {
        /// The programs that teams may name as servers.
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

/// What a settings file says below a name.
pub(super) struct Table {
    pub(super) origin: Origin,
    /// By the rest of the name.
    pub(super) values: BTreeMap<String, toml::Value>,
}

/// What a program has, beside `env`.
const KEYS: [&str; 5] = ["command", "args", "isolation", "read_only", "team_env"];

/// The error: where, and what it takes.
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
            .ok_or_else(|| wrong(key, "is not a list of texts in quotes")),
    };
    let mut env = BTreeMap::new();
    for (key, value) in values {
        match key.strip_prefix("env.") {
            Some(variable) => {
                let value = value
                    .as_str()
                    .ok_or_else(|| wrong(key, "is not a text in quotes"))?;
                env.insert(variable.to_owned(), value.to_owned());
            }
            None if KEYS.contains(&key.as_str()) => {}
            // An empty table of variables.
            None if key == "env" && value.as_table().is_some_and(toml::Table::is_empty) => {}
            None => {
                return Err(wrong(
                    key,
                    "is not a setting; a program has command, args, env, team_env, isolation and read_only",
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
                "is missing, or is not a text in quotes: it takes a program",
            )
        })?;
    let isolation = match values.get("isolation").map(|value| value.as_str()) {
        None | Some(Some("sandbox")) => Isolation::Sandbox,
        Some(Some("none")) => Isolation::None,
        Some(_) => return Err(wrong("isolation", "is not one of sandbox | none")),
    };
    let team_env = texts("team_env")?;
    if let Some(name) = team_env.iter().find(|name| env.contains_key(*name)) {
        let said = format!("names {name}, which env sets: a team sets nothing over it");
        return Err(wrong("team_env", &said));
    }
    if team_env
        .iter()
        .any(|name| name.is_empty() || name.contains(['=', '\0']))
    {
        return Err(wrong("team_env", "takes names of variables"));
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
