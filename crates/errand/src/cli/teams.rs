//! `errand teams`: teams, on the server's machine.

use anyhow::Result;
use clap::Subcommand;

use super::out::Style;
use super::{CommandContext, LocalServer, unexpected_response};
use crate::admin::{AdminAnswer, AdminRequest, reach};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a team
    ///
    /// Teams share a server and nothing else: each has its own users, API keys, agents, runs, secrets and connections.
    /// With --owner, the user with this address becomes its owner. For a new user, a link to set a password is printed.
    Create {
        /// Unique name of the team
        name: String,
        /// Email address of its owner [default: the owner of the first team]
        #[arg(long, value_name = "EMAIL")]
        owner: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
    /// List the teams
    List {
        #[command(flatten)]
        place: LocalServer,
    },
    /// Rename a team
    Rename {
        /// Name or ID of the team
        team: String,
        /// New name
        name: String,
        #[command(flatten)]
        place: LocalServer,
    },
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let (place, request) = match command {
        Command::Create { name, owner, place } => (place, AdminRequest::CreateTeam { name, owner }),
        Command::List { place } => (place, AdminRequest::ListTeams),
        Command::Rename { team, name, place } => (place, AdminRequest::RenameTeam { team, name }),
    };
    let answer = reach::execute(&with.settings_of(&place)?, request).await?;
    if out.json() {
        let value = match &answer {
            AdminAnswer::Teams { teams } => {
                serde_json::json!({ "teams": teams, "total": teams.len() })
            }
            AdminAnswer::TeamMade { .. } | AdminAnswer::TeamRenamed { .. } => without_tag(&answer)?,
            _ => return Err(unexpected_response()),
        };
        return Ok(out.json_value(&value)?);
    }
    match answer {
        AdminAnswer::TeamMade { team, link } => {
            out.line(&team.id)?;
            let next = format!(
                "Create an API key with `errand keys create --name NAME --team {}`; add people with `errand users link EMAIL \
                 --team {} --role ROLE`.",
                team.id, team.id
            );
            out.note(&out.paint_note(Style::Dim, &next))?;
            if let Some(link) = link {
                out.line(&link.url)?;
                out.note(&format!(
                    "The link is for the new owner. It works once, until {}.",
                    link.expires_at
                ))?;
            }
        }
        AdminAnswer::Teams { teams } => {
            let rows = teams.into_iter().map(|team| {
                let owners: Vec<String> = team
                    .owners
                    .into_iter()
                    .map(|email| email.unwrap_or_else(|| "unclaimed".to_owned()))
                    .collect();
                [
                    team.id,
                    team.name,
                    team.members.to_string(),
                    owners.join(", "),
                    team.created_at.to_string(),
                ]
            });
            out.table(&["id", "name", "people", "owners", "created"], rows)?;
        }
        AdminAnswer::TeamRenamed { team, was } => {
            out.note(&format!("Team {was:?} was renamed to {:?}.", team.name))?;
        }
        _ => return Err(unexpected_response()),
    }
    Ok(())
}

/// The response as JSON, without the tag of its variant.
pub(super) fn without_tag(answer: &AdminAnswer) -> Result<serde_json::Value> {
    let mut value = serde_json::to_value(answer)?;
    if let Some(object) = value.as_object_mut() {
        object.remove("answer");
    }
    Ok(value)
}
