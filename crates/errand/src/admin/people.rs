//! Teams and people, for the operator: who stands above the roles.
//!
//! A team is named by its name or its id, a person by their e-mail address or their id. Where no team is named, the first
//! one is meant; for a person's role and removal the one team that they are of.

use errand_core::id::{TeamId, UserId};
use errand_core::role::Role;
use errand_core::time::Timestamp;
use errand_store::{NewTeam, NewUser, Person, StoreError, Team, TeamFacts};
use serde::{Deserialize, Serialize};

use super::{Admin, AdminAnswer, AdminError, SET_UP_LINK_TTL_MS};
use crate::secret_key::{SetUpToken, webhook_secret};

/// People of one answer: it must fit into a line of the socket.
const USERS_PAGE: u32 = 200;

/// A team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamLine {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// How many people are of it.
    pub members: u64,
    /// The e-mail addresses of its owners. Null: one whom nobody has claimed yet.
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

/// A person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserLine {
    /// Their id.
    pub id: String,
    /// Their e-mail address. Null: an owner whom nobody has claimed yet.
    pub email: Option<String>,
    /// When they were made.
    pub created_at: Timestamp,
    /// Whether they may do nothing any more.
    pub disabled: bool,
    /// How many API keys they made, in all teams.
    pub api_keys: u64,
    /// Their teams.
    pub teams: Vec<PlaceLine>,
}

/// A person's place in a team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceLine {
    /// The team's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Their role in it.
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

/// A link by which somebody sets a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewLink {
    /// The whole address.
    pub url: String,
    /// When it stops working.
    pub expires_at: Timestamp,
}

fn bad(text: String) -> AdminError {
    AdminError::Bad(text)
}

/// A refusal for a reason that the request gives, as a sentence.
fn told(error: StoreError) -> AdminError {
    match error {
        StoreError::Invalid { message, .. } => bad(message),
        error => error.into(),
    }
}

impl Admin {
    /// The team of this name or id; none named: the first one, which is made where there is none.
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
                "there is no team {named:?}; `errand teams list` shows those there are"
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
                "there is no user {named:?}; `errand users list` shows those there are"
            ))
        };
        match self.store.person(id.ok_or_else(unknown)?).await {
            Err(StoreError::NotFound) => Err(unknown()),
            person => Ok(person?),
        }
    }

    /// The team that is named, else the only one that the person is of.
    async fn team_of_user(&self, person: &Person, named: Option<&str>) -> Result<Team, AdminError> {
        let who = name_of(person);
        if let Some(named) = named {
            let team = self.named_team(named).await?;
            return match person.teams.iter().any(|(of, _)| of.id == team.id) {
                true => Ok(team),
                false => Err(bad(format!("{who} is not of the team {:?}", team.name))),
            };
        }
        match person.teams.as_slice() {
            [] => Err(bad(format!("{who} is of no team"))),
            [(team, _)] => Ok(team.clone()),
            several => {
                let names: Vec<String> = several
                    .iter()
                    .map(|(team, _)| format!("{:?}", team.name))
                    .collect();
                Err(bad(format!(
                    "{who} is of several teams ({}): say which with --team",
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
        // Before a user is made for it.
        if self
            .store
            .teams()
            .await?
            .iter()
            .any(|team| team.name == name.trim())
        {
            return Err(bad(format!(
                "a team is named {:?} already; take another name",
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
                    (self.store.create_user(new).await.map_err(told)?.id, true)
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
                    "the owner of the new team is disabled; `errand users enable` lets them in again".to_owned(),
                ));
            }
            made => made.map_err(told)?,
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
        renamed.map_err(told)?;
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
        // Whoever may write to the data directory stands above the roles.
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

/// The refusal for the last owner names the team, and what the operator can do.
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
