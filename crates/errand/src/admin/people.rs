//! Operations on teams and users. The operator is not restricted by roles.
//!
//! A team is named by its name or id, a user by email address or id. If no team is named, the first team is used; for
//! changing a user's role and for removing a user, the user's only team.

use errand_core::id::{TeamId, UserId};
use errand_core::role::Role;
use errand_core::time::Timestamp;
use errand_store::{NewTeam, NewUser, Person, StoreError, Team, TeamFacts};
use serde::{Deserialize, Serialize};

use super::{Admin, AdminAnswer, AdminError, SET_UP_LINK_TTL_MS};
use crate::secret_key::{SetUpToken, webhook_secret};

/// Users per response. A response must fit into one line of the socket.
const USERS_PAGE: u32 = 200;

/// A team in a response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamLine {
    pub id: String,
    pub name: String,
    pub created_at: Timestamp,
    /// Number of members.
    pub members: u64,
    /// Email addresses of its owners. Null for an unclaimed owner.
    pub owners: Vec<Option<String>>,
}

impl From<TeamFacts> for TeamLine {
    fn from(facts: TeamFacts) -> Self {
        Self {
            id: facts.team.id.to_string(),
            name: facts.team.name,
            created_at: facts.team.created_at,
            members: facts.members,
            owners: facts.owners,
        }
    }
}

/// A user in a response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserLine {
    pub id: String,
    /// Null for an unclaimed owner.
    pub email: Option<String>,
    pub created_at: Timestamp,
    /// Whether the user may not do anything.
    pub disabled: bool,
    /// Number of API keys that the user created, in all teams.
    pub api_keys: u64,
    pub teams: Vec<PlaceLine>,
}

/// A user's membership in a team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceLine {
    /// Id of the team.
    pub id: String,
    /// Name of the team.
    pub name: String,
    pub role: Role,
}

impl From<Person> for UserLine {
    fn from(person: Person) -> Self {
        Self {
            id: person.user.id.to_string(),
            email: person.user.email,
            created_at: person.user.created_at,
            disabled: person.user.disabled,
            api_keys: person.api_keys,
            teams: person
                .teams
                .into_iter()
                .map(|(team, role)| PlaceLine {
                    id: team.id.to_string(),
                    name: team.name,
                    role,
                })
                .collect(),
        }
    }
}

/// A link for setting a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewLink {
    /// The complete address.
    pub url: String,
    /// The time when the link expires.
    pub expires_at: Timestamp,
}

fn bad(text: String) -> AdminError {
    AdminError::Bad(text)
}

/// Converts an error of the store. Errors that are caused by the request become messages.
fn admin_error(error: StoreError) -> AdminError {
    match error {
        StoreError::Invalid { message, .. } => bad(message),
        error => error.into(),
    }
}

impl Admin {
    /// The named team; otherwise the first team, which is created if necessary.
    pub(super) async fn team_of(
        &self,
        named: Option<&str>,
        now: Timestamp,
    ) -> Result<TeamId, AdminError> {
        match named {
            None => Ok(self.first_team(now).await?.team),
            Some(named) => Ok(self.named_team(named).await?.id),
        }
    }

    async fn named_team(&self, named: &str) -> Result<Team, AdminError> {
        let teams = self.store.teams().await?;
        let by_id = named.parse::<TeamId>().ok();
        let found = teams
            .iter()
            .find(|team| Some(team.id) == by_id)
            .or_else(|| teams.iter().find(|team| team.name == named.trim()));
        found.cloned().ok_or_else(|| {
            bad(format!(
                "there is no team {named:?}; `errand teams list` shows all teams"
            ))
        })
    }

    async fn named_user(&self, named: &str) -> Result<Person, AdminError> {
        let id = match named.parse::<UserId>() {
            Ok(id) => Some(id),
            Err(_) => self.store.user_by_email(named).await?.map(|user| user.id),
        };
        let unknown = || {
            bad(format!(
                "there is no user {named:?}; `errand users list` shows all users"
            ))
        };
        match self.store.person(id.ok_or_else(unknown)?).await {
            Err(StoreError::NotFound) => Err(unknown()),
            person => Ok(person?),
        }
    }

    /// The named team; otherwise the user's only team.
    async fn team_of_user(&self, person: &Person, named: Option<&str>) -> Result<Team, AdminError> {
        let who = name_of(person);
        if let Some(named) = named {
            let team = self.named_team(named).await?;
            return match person.teams.iter().any(|(of, _)| of.id == team.id) {
                true => Ok(team),
                false => Err(bad(format!(
                    "{who} is not a member of the team {:?}",
                    team.name
                ))),
            };
        }
        match person.teams.as_slice() {
            [] => Err(bad(format!("{who} is not a member of any team"))),
            [(team, _)] => Ok(team.clone()),
            several => {
                let names: Vec<String> = several
                    .iter()
                    .map(|(team, _)| format!("{:?}", team.name))
                    .collect();
                Err(bad(format!(
                    "{who} is a member of several teams ({}): select one with --team",
                    names.join(", ")
                )))
            }
        }
    }

    pub(super) async fn list_teams(&self) -> Result<AdminAnswer, AdminError> {
        let teams = self.store.team_facts().await?;
        Ok(AdminAnswer::Teams {
            teams: teams.into_iter().map(TeamLine::from).collect(),
        })
    }

    pub(super) async fn create_team(
        &self,
        name: String,
        owner: Option<String>,
        now: Timestamp,
    ) -> Result<AdminAnswer, AdminError> {
        let first = self.first_team(now).await?;
        // Checked before a user is created for the team.
        if self
            .store
            .teams()
            .await?
            .iter()
            .any(|team| team.name == name.trim())
        {
            return Err(bad(format!(
                "a team with the name {:?} already exists; choose another name",
                name.trim()
            )));
        }
        let (owner, is_new) = match owner {
            None => (first.owner, false),
            Some(email) => match self.store.user_by_email(&email).await? {
                Some(user) => (user.id, false),
                None => {
                    let id = self.ids.user(now);
                    let new = NewUser { id, email, now };
                    (
                        self.store.create_user(new).await.map_err(admin_error)?.id,
                        true,
                    )
                }
            },
        };
        let new = NewTeam {
            id: self.ids.team(now),
            name,
            owner,
            secret: webhook_secret()?,
            now,
        };
        let team = match self.store.create_team(new).await {
            Err(StoreError::NotFound) => {
                return Err(bad(
                    "the owner of the new team is disabled; `errand users enable` enables them again".to_owned(),
                ));
            }
            made => made.map_err(admin_error)?,
        };
        let link = if is_new {
            Some(self.new_link(owner, now).await?)
        } else {
            None
        };
        Ok(AdminAnswer::TeamMade {
            team: self.team_line(team.id).await?,
            link,
        })
    }

    async fn team_line(&self, team: TeamId) -> Result<TeamLine, AdminError> {
        let all = self.store.team_facts().await?;
        let found = all.into_iter().find(|facts| facts.team.id == team);
        Ok(found.ok_or(StoreError::NotFound)?.into())
    }

    async fn new_link(&self, user: UserId, now: Timestamp) -> Result<NewLink, AdminError> {
        let token = SetUpToken::generate()?;
        let expires_at = now.plus_ms(SET_UP_LINK_TTL_MS);
        self.store
            .create_set_up_link(user, token.hash(), expires_at, now)
            .await?;
        Ok(NewLink {
            url: format!("{}/set-up/{}", self.url, token.expose()),
            expires_at,
        })
    }

    pub(super) async fn rename_team(
        &self,
        team: &str,
        name: String,
    ) -> Result<AdminAnswer, AdminError> {
        let team = self.named_team(team).await?;
        let renamed = self.store.rename_team(team.id, name, Role::Owner).await;
        renamed.map_err(admin_error)?;
        Ok(AdminAnswer::TeamRenamed {
            team: self.team_line(team.id).await?,
            was: team.name,
        })
    }

    pub(super) async fn list_users(
        &self,
        team: Option<&str>,
        offset: u64,
    ) -> Result<AdminAnswer, AdminError> {
        let team = match team {
            Some(named) => Some(self.named_team(named).await?.id),
            None => None,
        };
        let people = self.store.people(team, offset, USERS_PAGE).await?;
        let more = people.len() == USERS_PAGE as usize;
        Ok(AdminAnswer::Users {
            users: people.into_iter().map(UserLine::from).collect(),
            more,
        })
    }

    pub(super) async fn disable_user(
        &self,
        user: &str,
        now: Timestamp,
    ) -> Result<AdminAnswer, AdminError> {
        let person = self.named_user(user).await?;
        let ended = self.store.disable_user(person.user.id, now).await?;
        Ok(AdminAnswer::UserDisabled {
            user: self.user_line(person.user.id).await?,
            sessions: ended.sessions,
            api_keys: ended.api_keys,
        })
    }

    pub(super) async fn enable_user(&self, user: &str) -> Result<AdminAnswer, AdminError> {
        let person = self.named_user(user).await?;
        let was_disabled = self.store.enable_user(person.user.id).await?;
        Ok(AdminAnswer::UserEnabled {
            user: self.user_line(person.user.id).await?,
            was_disabled,
        })
    }

    pub(super) async fn set_user_role(
        &self,
        user: &str,
        role: Role,
        team: Option<&str>,
    ) -> Result<AdminAnswer, AdminError> {
        let person = self.named_user(user).await?;
        let team = self.team_of_user(&person, team).await?;
        // An operator who can write to the data directory is not restricted by roles.
        self.store
            .set_role(team.id, person.user.id, role, Role::Owner)
            .await
            .map_err(|error| of_team(error, &team))?;
        Ok(AdminAnswer::UserChanged {
            user: self.user_line(person.user.id).await?,
            team: team.name,
        })
    }

    pub(super) async fn remove_user(
        &self,
        user: &str,
        team: Option<&str>,
    ) -> Result<AdminAnswer, AdminError> {
        let person = self.named_user(user).await?;
        let team = self.team_of_user(&person, team).await?;
        self.store
            .remove_member(team.id, person.user.id, Role::Owner)
            .await
            .map_err(|error| of_team(error, &team))?;
        Ok(AdminAnswer::UserRemoved {
            user: self.user_line(person.user.id).await?,
            team: team.name,
        })
    }

    async fn user_line(&self, user: UserId) -> Result<UserLine, AdminError> {
        Ok(self.store.person(user).await?.into())
    }
}

/// Adds to the error about the last owner the team's name and what the operator can do.
fn of_team(error: StoreError, team: &Team) -> AdminError {
    match error {
        StoreError::Refused(why) => bad(format!(
            "{why} (team {:?}: `errand users link EMAIL --team {} --role owner`, or `errand users role EMAIL owner`)",
            team.name, team.id
        )),
        error => error.into(),
    }
}

fn name_of(person: &Person) -> String {
    match &person.user.email {
        Some(email) => email.clone(),
        None => person.user.id.to_string(),
    }
}
