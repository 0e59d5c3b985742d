//! `errand users`: people of the server's first team, let in from the server's machine.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use errand_core::role::Role;
use serde_json::json;

use super::out::Style;
use super::{Place, Surroundings, strange_answer, terminal};
use crate::admin::{AdminAnswer, AdminRequest, LinkHolder, PasswordHash, reach};
use crate::password::hash_password;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print a link by which somebody sets a password
    ///
    /// For the user with this address; where there is none, for the server's first owner, if nobody has claimed that
    /// place yet; else a new user is made. The link works once, for a week.
    Link {
        /// The person's e-mail address
        email: String,
        /// The role of a new user [default: member]
        #[arg(long)]
        role: Option<RoleName>,
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
        Command::Link { email, role, place } => (
            place,
            AdminRequest::LinkUser {
                email,
                role: role.map(Role::from),
            },
        ),
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
        _ => return Err(strange_answer()),
    }
    Ok(())
}
