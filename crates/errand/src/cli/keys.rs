//! `errand keys`: API keys of a team, on the server's machine.

use anyhow::Result;
use clap::Subcommand;
use errand_core::time::{Timestamp, parse_duration_ms};
use serde_json::json;

use super::{CommandContext, LocalServer, unexpected_response};
use crate::admin::{AdminAnswer, AdminRequest, reach};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create an API key and print it; it cannot be shown again
    Create {
        /// Name that says what the key is for
        #[arg(long)]
        name: String,
        /// Lifetime, for example 12h or 30d [default: no expiry]
        #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
        expires_in: Option<u64>,
        /// Name or ID of the team [default: the first team]
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
    /// List the API keys
    List {
        /// Name or ID of the team [default: the first team]
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
    /// Delete an API key; it stops working immediately
    Delete {
        /// ID of the key, from `errand keys list`
        id: String,
        /// Name or ID of the team [default: the first team]
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let (place, request) = match command {
        Command::Create {
            name,
            expires_in,
            team,
            place,
        } => (
            place,
            AdminRequest::CreateKey {
                name,
                expires_in_ms: expires_in,
                team,
            },
        ),
        Command::List { team, place } => (place, AdminRequest::ListKeys { team }),
        Command::Delete { id, team, place } => (place, AdminRequest::DeleteKey { id, team }),
    };
    match reach::execute(&with.settings_of(&place)?, request).await? {
        AdminAnswer::Key { secret, key } if out.json() => {
            let mut object = serde_json::to_value(&key)?;
            if let Some(object) = object.as_object_mut() {
                object.insert("key".to_owned(), json!(secret));
            }
            out.json_value(&object)?;
        }
        AdminAnswer::Key { secret, key: _ } => out.line(&secret)?,
        AdminAnswer::Keys { keys } if out.json() => {
            out.json_value(&json!({ "api_keys": keys, "total": keys.len() }))?;
        }
        AdminAnswer::Keys { keys } => {
            let moment =
                |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
            let rows = keys.into_iter().map(|key| {
                [
                    key.id,
                    key.name,
                    format!("{}…", key.prefix),
                    key.created_at.to_string(),
                    moment(key.last_used_at),
                    moment(key.expires_at),
                ]
            });
            out.table(
                &["id", "name", "key", "created", "last used", "expires"],
                rows,
            )?;
        }
        AdminAnswer::KeyDeleted => out.note("The key was deleted and no longer works.")?,
        _ => return Err(unexpected_response()),
    }
    Ok(())
}
