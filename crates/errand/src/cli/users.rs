//! `errand users`: manages users, on the server's machine.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use errand_core::role::Role;
use serde_json::json;

use super::out::Style;
use super::teams::without_tag;
use super::{CommandContext, LocalServer, terminal, unexpected_response};
use crate::admin::{AdminAnswer, AdminRequest, LinkHolder, PasswordHash, UserLine, reach};
use crate::password::hash_password;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print a link with which a user sets a password
    ///
    /// For the user with this address. If there is none, the link is for the server's first owner if the server is
    /// unclaimed; otherwise a new user is created in the first team. With --team, the user is added to that team. The
    /// link works once and expires after a week.
    Link {
        /// Email address of the user
        email: String,
        /// Role of a user who is added to the team [default: member]
        #[arg(long)]
        role: Option<RoleName>,
        /// Name or ID of the team that the user is added to
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
    /// Set a password, read from the terminal or from standard input
    ///
    /// For the user with this address. If there is none, for the server's first owner if the server is unclaimed.
    SetPassword {
        /// Email address of the user
        email: String,
        #[command(flatten)]
        place: LocalServer,
    },
    /// List users with their teams and roles
    List {
        /// Only users of this team (name or ID)
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
    /// Disable a user in all teams immediately
    ///
    /// The user's sessions end, open streams are cut, links and invitations become invalid, and API keys stop working.
    /// Refused for the last owner of a team: make another user an owner first.
    Disable {
        /// Email address or ID of the user
        user: String,
        #[command(flatten)]
        place: LocalServer,
    },
    /// Enable a disabled user; their API keys work again
    Enable {
        /// Email address or ID of the user
        user: String,
        #[command(flatten)]
        place: LocalServer,
    },
    /// Change a user's role in a team
    Role {
        /// Email address or ID of the user
        user: String,
        /// New role
        role: RoleName,
        /// Name or ID of the team [default: the user's only team]
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
    /// Remove a user from a team, and delete their API keys for it
    ///
    /// The user stays in other teams. Refused for the last owner of the team.
    Remove {
        /// Email address or ID of the user
        user: String,
        /// Name or ID of the team [default: the user's only team]
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: LocalServer,
    },
}

/// A role on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RoleName {
    Owner,
    Admin,
    Member,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Owner => Self::Owner,
            RoleName::Admin => Self::Admin,
            RoleName::Member => Self::Member,
        }
    }
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let (place, request) = match command {
        Command::Link {
            email,
            role,
            team,
            place,
        } => (
            place,
            AdminRequest::LinkUser {
                email,
                role: role.map(Role::from),
                team,
            },
        ),
        Command::List { team, place } => return list(team, &place, with).await,
        Command::Disable { user, place } => (place, AdminRequest::DisableUser { user }),
        Command::Enable { user, place } => (place, AdminRequest::EnableUser { user }),
        Command::Role {
            user,
            role,
            team,
            place,
        } => (
            place,
            AdminRequest::SetUserRole {
                user,
                role: role.into(),
                team,
            },
        ),
        Command::Remove { user, team, place } => (place, AdminRequest::RemoveUser { user, team }),
        Command::SetPassword { email, place } => {
            let password = terminal::new_password(out).await?;
            let phc_hash = PasswordHash(hash_password(&password)?);
            (place, AdminRequest::SetPassword { email, phc_hash })
        }
    };
    match reach::execute(&with.settings_of(&place)?, request).await? {
        AdminAnswer::Link {
            url,
            expires_at,
            holder,
        } if out.json() => {
            out.json_value(&json!({ "url": url, "expires_at": expires_at, "holder": holder }))?;
        }
        AdminAnswer::Link {
            url,
            expires_at,
            holder,
        } => {
            out.line(&url)?;
            let whose = match holder {
                LinkHolder::User => "for an existing user, whose older links no longer work",
                LinkHolder::FirstOwner => "the person who opens it becomes the server's owner",
                LinkHolder::NewUser => "for a new user",
            };
            let note = format!("It works once, until {expires_at}: {whose}.");
            out.note(&out.paint_note(Style::Dim, &note))?;
        }
        AdminAnswer::PasswordSet => out.note("The password was set.")?,
        answer if out.json() => out.json_value(&without_tag(&answer)?)?,
        answer => out.note(&describe(&answer)?)?,
    }
    Ok(())
}

/// Describes what was done to a user, in a sentence.
fn describe(answer: &AdminAnswer) -> Result<String> {
    let name = |user: &UserLine| user.email.clone().unwrap_or_else(|| user.id.clone());
    Ok(match answer {
        AdminAnswer::UserDisabled {
            user,
            sessions,
            api_keys,
        } => format!(
            "{} was disabled: {sessions} sessions ended, and {api_keys} API keys no longer work.",
            name(user)
        ),
        AdminAnswer::UserEnabled {
            user,
            was_disabled: false,
        } => format!("{} was not disabled. Nothing was changed.", name(user)),
        AdminAnswer::UserEnabled { user, .. } => format!(
            "{} can log in again, and {} of their API keys work again.",
            name(user),
            user.api_keys
        ),
        AdminAnswer::UserChanged { user, team } => {
            let of = user.teams.iter().find(|of| of.name == *team);
            let role = of.map_or("a member", |of| of.role.as_str());
            format!("{} is now {role} in team {team:?}.", name(user))
        }
        AdminAnswer::UserRemoved { user, team } => format!(
            "{} was removed from team {team:?}, and their API keys for it were deleted.",
            name(user)
        ),
        _ => return Err(unexpected_response()),
    })
}

async fn list(team: Option<String>, place: &LocalServer, with: &CommandContext) -> Result<()> {
    let (out, settings) = (&with.out, with.settings_of(place)?);
    let mut users: Vec<UserLine> = Vec::new();
    loop {
        let request = AdminRequest::ListUsers {
            team: team.clone(),
            offset: users.len() as u64,
        };
        let AdminAnswer::Users { users: some, more } = reach::execute(&settings, request).await?
        else {
            return Err(unexpected_response());
        };
        users.extend(some);
        if !more {
            break;
        }
    }
    if out.json() {
        let total = users.len();
        return Ok(out.json_value(&json!({ "users": users, "total": total }))?);
    }
    let rows = users.into_iter().map(|user| {
        let places: Vec<String> = user
            .teams
            .iter()
            .map(|of| format!("{} ({})", of.name, of.role.as_str()))
            .collect();
        [
            user.id,
            user.email.unwrap_or_else(|| "unclaimed".to_owned()),
            if user.disabled { "disabled" } else { "enabled" }.to_owned(),
            user.api_keys.to_string(),
            places.join(", "),
        ]
    });
    Ok(out.table(&["id", "email", "state", "keys", "teams"], rows)?)
}
