//! `errand users`: people of the server, from the server's machine.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use errand_core::role::Role;
use serde_json::json;

use super::out::Style;
use super::teams::without_tag;
use super::{Place, Surroundings, strange_answer, terminal};
use crate::admin::{AdminAnswer, AdminRequest, LinkHolder, PasswordHash, UserLine, reach};
use crate::password::hash_password;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print a link by which somebody sets a password
    ///
    /// For the user with this address; where there is none, for the server's first owner, if nobody has claimed that
    /// place yet; else a new user is made, in the first team. With --team, the person comes into that team, whoever they
    /// are. The link works once, for a week.
    Link {
        /// The person's e-mail address
        email: String,
        /// The role of somebody who comes into the team [default: member]
        #[arg(long)]
        role: Option<RoleName>,
        /// The team that they come into, by name or id
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Set a password, read from the terminal or from standard input
    ///
    /// For the user with this address; where there is none, for the server's first owner, if nobody has claimed that
    /// place yet.
    SetPassword {
        /// The person's e-mail address
        email: String,
        #[command(flatten)]
        place: Place,
    },
    /// List people, with their teams and roles
    List {
        /// Of one team alone, by name or id
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Shut somebody out of all teams, at once
    ///
    /// Their sessions end, what they watch is cut off, their links and invitations are void, and their API keys count no
    /// more. Refused for the last owner of a team: make somebody else an owner there first.
    Disable {
        /// Their e-mail address, or their id
        user: String,
        #[command(flatten)]
        place: Place,
    },
    /// Let somebody in again who was disabled; their API keys count again
    Enable {
        /// Their e-mail address, or their id
        user: String,
        #[command(flatten)]
        place: Place,
    },
    /// Give somebody another role in a team
    Role {
        /// Their e-mail address, or their id
        user: String,
        /// The role
        role: RoleName,
        /// In which team, by name or id [default: the one that they are of]
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Take somebody out of a team, with their API keys of it
    ///
    /// They stay in their other teams. Refused for the last owner of the team.
    Remove {
        /// Their e-mail address, or their id
        user: String,
        /// Of which team, by name or id [default: the one that they are of]
        #[arg(long)]
        team: Option<String>,
        #[command(flatten)]
        place: Place,
    },
}

/// A role's word on the command line.
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

pub(super) async fn run(command: Command, with: &Surroundings) -> Result<()> {
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
                LinkHolder::User => {
                    "for a user who was there already; older links of theirs work no more"
                }
                LinkHolder::FirstOwner => "whoever opens it becomes the server's owner",
                LinkHolder::NewUser => "for a new user",
            };
            let note = format!("It works once, until {expires_at}: {whose}.");
            out.note(&out.paint_note(Style::Dim, &note))?;
        }
        AdminAnswer::PasswordSet => out.note("The password is set.")?,
        answer if out.json() => out.json_value(&without_tag(&answer)?)?,
        answer => out.note(&told(&answer)?)?,
    }
    Ok(())
}

/// What was done to a person, in a sentence.
fn told(answer: &AdminAnswer) -> Result<String> {
    let name = |user: &UserLine| user.email.clone().unwrap_or_else(|| user.id.clone());
    Ok(match answer {
        AdminAnswer::UserDisabled {
            user,
            sessions,
            api_keys,
        } => format!(
            "{} is disabled: {sessions} sessions ended, and {api_keys} API keys count no more.",
            name(user)
        ),
        AdminAnswer::UserEnabled {
            user,
            was_disabled: false,
        } => format!("{} was not disabled; nothing was changed.", name(user)),
        AdminAnswer::UserEnabled { user, .. } => format!(
            "{} may log in again, and {} API keys of theirs count again.",
            name(user),
            user.api_keys
        ),
        AdminAnswer::UserChanged { user, team } => {
            let of = user.teams.iter().find(|of| of.name == *team);
            let role = of.map_or("of the team", |of| of.role.as_str());
            format!("{} is {role} in {team:?} now.", name(user))
        }
        AdminAnswer::UserRemoved { user, team } => format!(
            "{} is of the team {team:?} no more, and their API keys of it are gone.",
            name(user)
        ),
        _ => return Err(strange_answer()),
    })
}

async fn list(team: Option<String>, place: &Place, with: &Surroundings) -> Result<()> {
    let (out, settings) = (&with.out, with.settings_of(place)?);
    let mut users: Vec<UserLine> = Vec::new();
    loop {
        let request = AdminRequest::ListUsers {
            team: team.clone(),
            offset: users.len() as u64,
        };
        let AdminAnswer::Users { users: some, more } = reach::execute(&settings, request).await?
        else {
            return Err(strange_answer());
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
            user.email
                .unwrap_or_else(|| "nobody has claimed it yet".to_owned()),
            if user.disabled { "disabled" } else { "enabled" }.to_owned(),
            user.api_keys.to_string(),
            places.join(", "),
        ]
    });
    Ok(out.table(&["id", "e-mail", "state", "keys", "teams"], rows)?)
}
