//! What an operator does on the server's own machine: keys, people, the webhook secret, runs that are to be repaired, a
//! look at everything.
//!
//! One request is one [`AdminRequest`], carried out by [`Admin::execute`] on the store. The command line has two ways
//! there: through the running server's socket ([`socket`]), or, where no server runs, on the store itself
//! ([`reach`]), which then takes the directory's lock. Either way the same function does the work.
//!
//! Who may: whoever may write to the data directory. No key is asked for. Where no team is named, the server's *first*
//! team is meant, which is made by the first request that needs one: named `default`, with an owner who has neither e-mail
//! nor password until a set-up link is claimed. A repair ([`repair`]) takes a run of any team.
//!
//! Left out: anything that the API can do.

mod backup;
mod people;
pub mod reach;
pub mod repair;
pub mod socket;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use errand_core::id::{ApiKeyId, IdGen, UserId};
use errand_core::role::Role;
use errand_core::shown::is_name;
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use errand_sandbox::Changes;
use errand_store::model::{ApiKey, PageQuery};
use errand_store::seal::MasterKey;
use errand_store::{Bootstrap, Bootstrapped, NewApiKey, NewUser, Once, Store, StoreError};
use serde::{Deserialize, Serialize};

pub use backup::BackupLine;
use backup::Backups;
pub use people::{NewLink, PlaceLine, TeamLine, UserLine};
pub use repair::{RepairLine, RepairWay};

use crate::backup::ProgressLine;
use crate::doctor::{self, Check, Subject};
use crate::secret_key::{ApiKeySecret, NoRandomness, SetUpToken, webhook_secret};

/// How long a set-up link works: a week, so that somebody on holiday can still use it.
pub const SET_UP_LINK_TTL_MS: u64 = 7 * 24 * 3_600_000;
/// How long the link works by which the first owner is claimed after a start.
pub const CLAIM_LINK_TTL_MS: u64 = 24 * 3_600_000;
/// How many keys one page of the store has.
const KEYS_PAGE: u32 = 100;
/// Most characters of a key's name.
const NAME_CHARS_MAX: usize = errand_core::limits::NAME_CHARS_MAX;

/// What can be asked for. One JSON object in one line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// A new API key of the first team's owner.
    CreateKey {
        /// Its name, 1–200 characters.
        name: String,
        /// How long it works, in milliseconds. None: until it is deleted.
        expires_in_ms: Option<u64>,
        /// Of which team, by name or id. None: the first.
        #[serde(default)]
        team: Option<String>,
    },
    /// The team's keys.
    ListKeys {
        /// Of which team, by name or id. None: the first.
        #[serde(default)]
        team: Option<String>,
    },
    /// Deletes a key of the team.
    DeleteKey {
        /// Its id.
        id: String,
        /// Of which team, by name or id. None: the first.
        #[serde(default)]
        team: Option<String>,
    },
    /// A new team. Its owner is the user with this address, who is made where there is none; none given: the first team's.
    CreateTeam {
        /// Its name.
        name: String,
        /// The e-mail address of its owner.
        owner: Option<String>,
    },
    /// All teams.
    ListTeams,
    /// Another name for a team.
    RenameTeam {
        /// Its name or id.
        team: String,
        /// The new name.
        name: String,
    },
    /// A part of the people: of one team, else of all.
    ListUsers {
        /// By name or id.
        team: Option<String>,
        /// How many come before.
        offset: u64,
    },
    /// Disables a person in all teams.
    DisableUser {
        /// Their e-mail address or id.
        user: String,
    },
    /// Lets a disabled person in again.
    EnableUser {
        /// Their e-mail address or id.
        user: String,
    },
    /// Gives a person another role in a team.
    SetUserRole {
        /// Their e-mail address or id.
        user: String,
        /// The role.
        role: Role,
        /// By name or id. None: the only one that they are of.
        team: Option<String>,
    },
    /// Takes a person out of a team, with their keys of it.
    RemoveUser {
        /// Their e-mail address or id.
        user: String,
        /// By name or id. None: the only one that they are of.
        team: Option<String>,
    },
    /// A set-up link: for the user with this address, else for the owner whom nobody has claimed, else for a new user.
    LinkUser {
        /// The e-mail address.
        email: String,
        /// The role of somebody who comes into the team. None: member.
        role: Option<Role>,
        /// The team that they come into, by name or id. None: the first, for a new user alone.
        #[serde(default)]
        team: Option<String>,
    },
    /// Sets the password of the user with this address, else of the owner whom nobody has claimed, who gets it.
    SetPassword {
        /// The e-mail address.
        email: String,
        /// The password as a PHC string (argon2id): the password itself never travels.
        phc_hash: PasswordHash,
    },
    /// The team's webhook secret.
    WebhookSecret {
        /// Of which team, by name or id. None: the first.
        #[serde(default)]
        team: Option<String>,
    },
    /// Seals every secret anew, under another master key.
    RotateMasterKey {
        /// The new key as text, where the key comes from the environment.
        new_key: Option<KeyText>,
    },
    /// Sets a damaged or stuck run of any team right.
    Repair {
        /// The run's id.
        run: String,
        /// How.
        way: RepairWay,
    },
    /// Puts a failed run of any team in line again, also one that is parked as poisoned.
    Retry {
        /// The run's id.
        run: String,
    },
    /// Whether all is well.
    Doctor,
    /// A backup, made by the server that works on the store. Called off where the caller goes away.
    Backup {
        /// Where: a whole path.
        dir: PathBuf,
    },
    /// How far the backup has come that is being made.
    BackupProgress,
}

impl AdminRequest {
    /// Whether it is broken off where its caller goes away.
    #[must_use]
    pub fn ends_with_caller(&self) -> bool {
        matches!(self, Self::Backup { .. })
    }

    /// How long it may take: looking at everything reads the whole database, a backup all files too, all else a few rows.
    #[must_use]
    pub fn time_max(&self) -> Duration {
        match self {
            Self::Doctor | Self::RotateMasterKey { .. } => Duration::from_secs(3600),
            Self::Backup { .. } => Duration::from_secs(24 * 3600),
            _ => Duration::from_secs(10),
        }
    }
}

/// A password's PHC string. Its `Debug` shows nothing of it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PasswordHash(pub String);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash")
    }
}

/// A master key as text. Its `Debug` shows nothing of it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyText(pub String);

impl std::fmt::Debug for KeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyText")
    }
}

/// What comes back. Without `Debug`: some hold secrets.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum AdminAnswer {
    /// The new key.
    Key {
        /// The key itself; it cannot be had again.
        secret: String,
        /// What is known of it.
        key: KeyLine,
    },
    /// The keys, newest first.
    Keys {
        /// All of them.
        keys: Vec<KeyLine>,
    },
    /// The key is gone.
    KeyDeleted,
    /// The team is there.
    TeamMade {
        /// The team.
        team: TeamLine,
        /// For an owner who is new: the link by which they set a password.
        link: Option<NewLink>,
    },
    /// The teams.
    Teams {
        /// All of them, oldest first.
        teams: Vec<TeamLine>,
    },
    /// The team has another name.
    TeamRenamed {
        /// The team.
        team: TeamLine,
        /// Its name before.
        was: String,
    },
    /// People.
    Users {
        /// Some of them, oldest first.
        users: Vec<UserLine>,
        /// Whether there may be more.
        more: bool,
    },
    /// The person may do nothing any more.
    UserDisabled {
        /// The person.
        user: UserLine,
        /// How many sessions ended.
        sessions: u64,
        /// How many keys count no more.
        api_keys: u64,
    },
    /// The person may log in.
    UserEnabled {
        /// The person.
        user: UserLine,
        /// Whether they were disabled before.
        was_disabled: bool,
    },
    /// The person has another role.
    UserChanged {
        /// The person.
        user: UserLine,
        /// The team's name.
        team: String,
    },
    /// The person is of the team no more.
    UserRemoved {
        /// The person.
        user: UserLine,
        /// The team's name.
        team: String,
    },
    /// The link.
    Link {
        /// The whole address.
        url: String,
        /// When it stops working.
        expires_at: Timestamp,
        /// For whom it was made.
        holder: LinkHolder,
    },
    /// The password holds from now on.
    PasswordSet,
    /// The secret.
    WebhookSecret {
        /// `whsec_…`.
        secret: String,
    },
    /// Every secret is under the new key.
    Rotated {
        /// How many were sealed anew.
        secrets: u64,
        /// How many could not be opened before, and are as they were.
        lost: u64,
        /// The new key's id: 16 hexadecimal digits that say nothing about the key.
        key_id: String,
    },
    /// What became of the run.
    Repaired {
        /// What was done.
        repaired: RepairLine,
    },
    /// What was looked at.
    Examined {
        /// In the order in which it is shown.
        checks: Vec<Check>,
    },
    /// The backup is whole.
    BackedUp {
        /// What is in it.
        backup: BackupLine,
    },
    /// How far the backup has come. None: none is being made.
    BackupProgress {
        /// How far.
        progress: Option<ProgressLine>,
    },
}

/// For whom a set-up link was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkHolder {
    /// A user who was there already.
    User,
    /// The owner whom nobody had claimed yet.
    FirstOwner,
    /// A user who was made for it.
    NewUser,
}

/// An API key without its secret, as `GET /v1/api-keys` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyLine {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its first characters.
    pub prefix: String,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

impl From<&ApiKey> for KeyLine {
    fn from(key: &ApiKey) -> Self {
        Self {
            id: key.id.to_string(),
            name: key.name.clone(),
            prefix: key.prefix.clone(),
            created_by: key.created_by.to_string(),
            created_at: key.created_at,
            last_used_at: key.last_used_at,
            expires_at: key.expires_at,
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Something in the request is wrong: a sentence says what, and what to do.
    #[error("{0}")]
    Bad(String),
    /// The store refused, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No secret could be drawn.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Carries requests out.
pub struct Admin {
    store: Store,
    ids: IdGen,
    clock: Clock,
    url: String,
    places: u32,
    is_serving: bool,
    backups: Backups,
}

impl Admin {
    /// `seed`: from the system's random source. `url`: the server's outer address, without a slash at its end.
    #[must_use]
    pub fn new(store: Store, seed: [u8; 32], clock: Clock, url: String) -> Self {
        Self {
            store,
            ids: IdGen::new(seed),
            clock,
            url,
            places: 0,
            is_serving: false,
            backups: Backups::default(),
        }
    }

    /// Closes the store, of which this is the only user.
    pub(crate) async fn close(&self) {
        self.store.close().await;
    }

    /// For a server that works on the store, with so many places for runs. `changes`: who changes files meanwhile.
    #[must_use]
    pub fn serving(self, places: u32, changes: Changes) -> Self {
        Self {
            places,
            is_serving: true,
            backups: Backups {
                changes: Some(changes),
                ..Backups::default()
            },
            ..self
        }
    }

    /// Carries one request out.
    ///
    /// # Errors
    /// [`AdminError`]; nothing was changed then, but that the first team may have been made.
    pub async fn execute(&self, request: AdminRequest) -> Result<AdminAnswer, AdminError> {
        let now = self.clock.now();
        match request {
            AdminRequest::CreateKey {
                name,
                expires_in_ms,
                team,
            } => self.create_key(name, expires_in_ms, team, now).await,
            AdminRequest::ListKeys { team } => self.list_keys(team, now).await,
            AdminRequest::DeleteKey { id, team } => self.delete_key(&id, team, now).await,
            AdminRequest::LinkUser { email, role, team } => {
                self.link_user(email, role, team, now).await
            }
            AdminRequest::SetPassword { email, phc_hash } => {
                self.set_password(email, phc_hash.0, now).await
            }
            AdminRequest::WebhookSecret { team } => {
                let team = self.team_of(team.as_deref(), now).await?;
                let secret = self.store.webhook_secret(team).await?;
                Ok(AdminAnswer::WebhookSecret { secret })
            }
            AdminRequest::CreateTeam { name, owner } => self.create_team(name, owner, now).await,
            AdminRequest::ListTeams => self.list_teams().await,
            AdminRequest::RenameTeam { team, name } => self.rename_team(&team, name).await,
            AdminRequest::ListUsers { team, offset } => {
                self.list_users(team.as_deref(), offset).await
            }
            AdminRequest::DisableUser { user } => self.disable_user(&user, now).await,
            AdminRequest::EnableUser { user } => self.enable_user(&user).await,
            AdminRequest::SetUserRole { user, role, team } => {
                self.set_user_role(&user, role, team.as_deref()).await
            }
            AdminRequest::RemoveUser { user, team } => {
                self.remove_user(&user, team.as_deref()).await
            }
            AdminRequest::RotateMasterKey { new_key } => {
                let new_key = new_key
                    .map(|text| MasterKey::from_text(&text.0))
                    .transpose()
                    .map_err(|bad| AdminError::Bad(format!("ERRAND_NEW_MASTER_KEY: {bad}")))?;
                let done = self.store.rotate_master_key(new_key).await?;
                Ok(AdminAnswer::Rotated {
                    secrets: done.secrets,
                    lost: done.lost,
                    key_id: done.key_id,
                })
            }
            AdminRequest::Backup { dir } => self.back_up(dir).await,
            AdminRequest::BackupProgress => Ok(self.backup_progress()),
            AdminRequest::Retry { run } => self.retry(&run, now).await,
            AdminRequest::Repair { run, way } => self.repair(&run, way, now).await,
            AdminRequest::Doctor => {
                let subject = Subject {
                    store: self.store.clone(),
                    clock: self.clock.clone(),
                    places: self.places,
                    is_served: self.is_serving,
                };
                let checks = doctor::examine(&subject).await;
                Ok(AdminAnswer::Examined { checks })
            }
        }
    }

    /// The link by which the server's first owner is claimed, new with each call. None once there is an owner.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn claim_link(&self) -> Result<Option<String>, AdminError> {
        let now = self.clock.now();
        let token = SetUpToken::generate()?;
        let first = self.first_team(now).await?;
        let expires_at = now.plus_ms(CLAIM_LINK_TTL_MS);
        let is_unclaimed = self
            .link_unclaimed(first.owner, &token, expires_at, now)
            .await?;
        Ok(is_unclaimed.then(|| format!("{}/set-up/{}", self.url, token.expose())))
    }

    async fn first_team(&self, now: Timestamp) -> Result<Bootstrapped, AdminError> {
        let new = Bootstrap {
            team: self.ids.team(now),
            owner: self.ids.user(now),
            secret: webhook_secret()?,
            now,
        };
        Ok(self.store.bootstrap(new).await?)
    }

    async fn create_key(
        &self,
        name: String,
        expires_in_ms: Option<u64>,
        team: Option<String>,
        now: Timestamp,
    ) -> Result<AdminAnswer, AdminError> {
        let name = name.trim().to_owned();
        if !is_name(&name) {
            return Err(AdminError::Bad(format!(
                "the key's name takes 1 to {NAME_CHARS_MAX} characters in one line"
            )));
        }
        let team = self.team_of(team.as_deref(), now).await?;
        let owner = self.store.owner_of(team).await?;
        let secret = ApiKeySecret::generate()?;
        let new = NewApiKey {
            id: self.ids.api_key(now),
            team,
            created_by: owner,
            name,
            prefix: secret.prefix().to_owned(),
            hash: secret.hash(),
            expires_at: expires_in_ms.map(|ms| now.plus_ms(ms)),
            not_after: None,
            now,
        };
        let key = self
            .store
            .create_api_key(new, Once::not_recorded())
            .await?
            .fresh()?;
        Ok(AdminAnswer::Key {
            secret: secret.expose().to_owned(),
            key: KeyLine::from(&key),
        })
    }

    async fn list_keys(
        &self,
        team: Option<String>,
        now: Timestamp,
    ) -> Result<AdminAnswer, AdminError> {
        let team = self.team_of(team.as_deref(), now).await?;
        let mut keys = Vec::new();
        loop {
            let page = PageQuery {
                limit: KEYS_PAGE,
                offset: keys.len() as u64,
            };
            let page = self.store.list_api_keys(team, page).await?;
            keys.extend(page.items.iter().map(KeyLine::from));
            if page.items.is_empty() || keys.len() as u64 >= page.total {
                return Ok(AdminAnswer::Keys { keys });
            }
        }
    }

    async fn delete_key(
        &self,
        id: &str,
        team: Option<String>,
        now: Timestamp,
    ) -> Result<AdminAnswer, AdminError> {
        let key = ApiKeyId::from_str(id).map_err(|bad| AdminError::Bad(bad.to_string()))?;
        let team = self.team_of(team.as_deref(), now).await?;
        match self
            .store
            .delete_api_key(team, key, now, Once::not_recorded())
            .await
        {
            Ok(_) => Ok(AdminAnswer::KeyDeleted),
            Err(StoreError::NotFound) => Err(AdminError::Bad(format!(
                "there is no key {id} in this team; `errand keys list` shows those there are, with --team those of another team"
            ))),
            Err(error) => Err(error.into()),
        }
    }

    async fn link_user(
        &self,
        email: String,
        role: Option<Role>,
        team: Option<String>,
        now: Timestamp,
    ) -> Result<AdminAnswer, AdminError> {
        let token = SetUpToken::generate()?;
        let expires_at = now.plus_ms(SET_UP_LINK_TTL_MS);
        let first = self.first_team(now).await?;
        let into = self.team_of(team.as_deref(), now).await?;
        let known = self.store.user_by_email(&email).await?;
        let holder = match &known {
            Some(_) => LinkHolder::User,
            None if team.is_none()
                && self
                    .link_unclaimed(first.owner, &token, expires_at, now)
                    .await? =>
            {
                LinkHolder::FirstOwner
            }
            None => LinkHolder::NewUser,
        };
        let joins = match &known {
            Some(user) if team.is_some() => {
                let of = self.store.person(user.id).await?.teams;
                !of.iter().any(|(team, _)| team.id == into)
            }
            _ => holder == LinkHolder::NewUser,
        };
        if role.is_some() && !joins {
            return Err(AdminError::Bad(
                "a role is for somebody who comes into the team, and this one is there already: leave --role out, \
                 or use `errand users role`"
                    .to_owned(),
            ));
        }
        let user = match known {
            Some(user) => Some(user.id),
            None if holder == LinkHolder::NewUser => Some(self.new_user(email, now).await?),
            None => None,
        };
        if let Some(user) = user {
            if joins {
                // Whoever may write to the data directory stands above the roles.
                self.store
                    .add_member(into, user, role.unwrap_or(Role::Member), Role::Owner, now)
                    .await?;
            }
            self.store
                .create_set_up_link(user, token.hash(), expires_at, now)
                .await?;
        }
        let url = format!("{}/set-up/{}", self.url, token.expose());
        Ok(AdminAnswer::Link {
            url,
            expires_at,
            holder,
        })
    }

    async fn new_user(&self, email: String, now: Timestamp) -> Result<UserId, AdminError> {
        let id = self.ids.user(now);
        Ok(self.store.create_user(NewUser { id, email, now }).await?.id)
    }

    async fn set_password(
        &self,
        email: String,
        phc_hash: String,
        now: Timestamp,
    ) -> Result<AdminAnswer, AdminError> {
        if !phc_hash.starts_with("$argon2id$") {
            return Err(AdminError::Bad(
                "the password's hash is not one of argon2id".to_owned(),
            ));
        }
        if self.store.user_by_email(&email).await?.is_some() {
            self.store.set_password(&email, phc_hash).await?;
            return Ok(AdminAnswer::PasswordSet);
        }
        // The owner whom nobody has claimed is claimed by a link that nobody else gets to see.
        let token = SetUpToken::generate()?;
        let first = self.first_team(now).await?;
        let expires_at = now.plus_ms(SET_UP_LINK_TTL_MS);
        if !self
            .link_unclaimed(first.owner, &token, expires_at, now)
            .await?
        {
            return Err(AdminError::Bad(format!(
                "no user has the e-mail address {email}; `errand users link {email}` makes one"
            )));
        }
        self.store
            .claim_set_up_link(token.hash(), Some(email), phc_hash, now)
            .await?;
        Ok(AdminAnswer::PasswordSet)
    }

    /// Makes a set-up link for the owner whom nobody has claimed yet. False where the owner has been claimed.
    async fn link_unclaimed(
        &self,
        owner: UserId,
        token: &SetUpToken,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<bool, AdminError> {
        // Claiming sets e-mail address and password together: who has a password has been claimed.
        if self.store.password_hash(owner).await?.is_some() {
            return Ok(false);
        }
        let user = self
            .store
            .create_set_up_link(owner, token.hash(), expires_at, now)
            .await?;
        Ok(user.email.is_none())
    }
}
