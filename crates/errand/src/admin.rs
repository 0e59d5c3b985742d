//! Operations for an operator on the server's own machine: API keys, users, the webhook secret, repairing runs, and
//! diagnostics.
//!
//! A request is an [`AdminRequest`], executed by [`Admin::execute`] on the store. The command line reaches it in two
//! ways: through the running server's socket ([`socket`]) or, if no server runs, on the store itself after locking the
//! data directory ([`reach`]). The same function does the work in both cases.
//!
//! Write access to the data directory is the authorization; no API key is required. If no team is named, the server's
//! *first* team is used. The first request that needs it creates it, with the name `default` and an owner without
//! email address and password until a set-up link is used. A repair ([`repair`]) finds a run in any team.
//!
//! # Non-goals
//!
//! Operations that the API offers.

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

use errand_core::display::is_name;
use errand_core::id::{ApiKeyId, IdGen, UserId};
use errand_core::role::Role;
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use errand_sandbox::Changes;
use errand_store::model::{ApiKey, PageQuery};
use errand_store::seal::MasterKey;
use errand_store::{Bootstrap, Bootstrapped, Idempotent, NewApiKey, NewUser, Store, StoreError};
use serde::{Deserialize, Serialize};

pub use backup::BackupLine;
use backup::Backups;
pub use people::{NewLink, PlaceLine, TeamLine, UserLine};
pub use repair::{RepairLine, RepairWay};

use crate::backup::ProgressLine;
use crate::doctor::{self, Check, Subject};
use crate::secret_key::{ApiKeySecret, NoRandomness, SetUpToken, webhook_secret};

/// Validity of a set-up link: a week, so that a person on vacation can still use it.
pub const SET_UP_LINK_TTL_MS: u64 = 7 * 24 * 3_600_000;
/// Validity of the link with which the first owner's account is claimed after a start.
pub const CLAIM_LINK_TTL_MS: u64 = 24 * 3_600_000;
/// Keys per page of a store query.
const KEYS_PAGE: u32 = 100;
const NAME_CHARS_MAX: usize = errand_core::limits::NAME_CHARS_MAX;

/// A request. On the wire, one JSON object in one line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// Creates an API key of the first team's owner.
    CreateKey {
        /// 1 to 200 characters.
        name: String,
        /// Lifetime in milliseconds. `None`: until it is deleted.
        expires_in_ms: Option<u64>,
        /// Name or id of the team. `None`: the first team.
        #[serde(default)]
        team: Option<String>,
    },
    /// Lists the team's API keys.
    ListKeys {
        /// Name or id of the team. `None`: the first team.
        #[serde(default)]
        team: Option<String>,
    },
    /// Deletes an API key.
    DeleteKey {
        id: String,
        /// Name or id of the team. `None`: the first team.
        #[serde(default)]
        team: Option<String>,
    },
    /// Creates a team. The user with the email address becomes its owner, and is created if necessary. Without an
    /// address, the first team's owner becomes its owner.
    CreateTeam {
        name: String,
        /// Email address of the owner.
        owner: Option<String>,
    },
    ListTeams,
    RenameTeam {
        /// Current name or id of the team.
        team: String,
        /// New name.
        name: String,
    },
    /// Lists a page of the users of one team, or of all teams.
    ListUsers {
        /// Name or id of the team.
        team: Option<String>,
        /// Number of users to skip.
        offset: u64,
    },
    /// Disables a user in all teams.
    DisableUser {
        /// Email address or id of the user.
        user: String,
    },
    /// Enables a disabled user.
    EnableUser {
        /// Email address or id of the user.
        user: String,
    },
    /// Changes a user's role in a team.
    SetUserRole {
        /// Email address or id of the user.
        user: String,
        role: Role,
        /// Name or id of the team. `None`: the only team of the user.
        team: Option<String>,
    },
    /// Removes a user from a team, with their API keys for it.
    RemoveUser {
        /// Email address or id of the user.
        user: String,
        /// Name or id of the team. `None`: the only team of the user.
        team: Option<String>,
    },
    /// Creates a set-up link: for the user with this address; otherwise for the first owner, if the account is
    /// unclaimed; otherwise for a new user.
    LinkUser {
        email: String,
        /// Role of a user who joins the team. `None`: member.
        role: Option<Role>,
        /// Name or id of the team to join. `None`: the first team, only for a new user.
        #[serde(default)]
        team: Option<String>,
    },
    /// Sets the password of the user with this address; otherwise claims the first owner's account, which gets the
    /// address.
    SetPassword {
        email: String,
        /// The password as a PHC string (argon2id). The password itself is never sent.
        phc_hash: PasswordHash,
    },
    /// Returns the team's webhook secret.
    WebhookSecret {
        /// Name or id of the team. `None`: the first team.
        #[serde(default)]
        team: Option<String>,
    },
    /// Encrypts every secret again with a new master key.
    RotateMasterKey {
        /// The new key as text, if it comes from the environment.
        new_key: Option<KeyText>,
    },
    /// Repairs a damaged or stuck run of any team.
    Repair {
        /// Id of the run.
        run: String,
        way: RepairWay,
    },
    /// Queues a failed run of any team again, even one that is parked as poisoned.
    Retry {
        /// Id of the run.
        run: String,
    },
    /// Runs all diagnostic checks.
    Doctor,
    /// Makes a backup with the running server. It is canceled if the caller disconnects.
    Backup {
        /// Absolute path of the target directory.
        dir: PathBuf,
    },
    /// Returns the progress of the running backup.
    BackupProgress,
}

impl AdminRequest {
    /// Whether the request is canceled if its caller disconnects.
    #[must_use]
    pub fn ends_with_caller(&self) -> bool {
        matches!(self, Self::Backup { .. })
    }

    /// Time limit. The checks read the whole database, a backup also reads all files; other requests touch a few rows.
    #[must_use]
    pub fn time_max(&self) -> Duration {
        match self {
            Self::Doctor | Self::RotateMasterKey { .. } => Duration::from_secs(3600),
            Self::Backup { .. } => Duration::from_secs(24 * 3600),
            _ => Duration::from_secs(10),
        }
    }
}

/// A password's PHC string. `Debug` hides it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PasswordHash(pub String);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash")
    }
}

/// A master key as text. `Debug` hides it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyText(pub String);

impl std::fmt::Debug for KeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyText")
    }
}

/// The response. Deliberately without `Debug`, because some variants contain secrets.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum AdminAnswer {
    /// An API key was created.
    Key {
        /// The secret key, which cannot be shown again.
        secret: String,
        /// The other properties of the key.
        key: KeyLine,
    },
    /// All keys, newest first.
    Keys { keys: Vec<KeyLine> },
    /// The key was deleted.
    KeyDeleted,
    /// A team was created.
    TeamMade {
        team: TeamLine,
        /// For a new owner: the link for setting a password.
        link: Option<NewLink>,
    },
    /// All teams.
    Teams {
        /// Oldest first.
        teams: Vec<TeamLine>,
    },
    /// The team was renamed.
    TeamRenamed {
        team: TeamLine,
        /// The previous name.
        was: String,
    },
    /// A page of users.
    Users {
        /// Oldest first.
        users: Vec<UserLine>,
        /// Whether there may be more users.
        more: bool,
    },
    /// The user was disabled.
    UserDisabled {
        user: UserLine,
        /// Number of sessions that ended.
        sessions: u64,
        /// Number of API keys that became invalid.
        api_keys: u64,
    },
    /// The user was enabled.
    UserEnabled {
        user: UserLine,
        /// Whether the user was disabled before.
        was_disabled: bool,
    },
    /// The user has the new role.
    UserChanged {
        user: UserLine,
        /// Name of the team.
        team: String,
    },
    /// The user was removed from the team.
    UserRemoved {
        user: UserLine,
        /// Name of the team.
        team: String,
    },
    /// A set-up link was created.
    Link {
        /// The complete address.
        url: String,
        /// The time when the link expires.
        expires_at: Timestamp,
        /// The user for whom it was created.
        holder: LinkHolder,
    },
    /// The password was set.
    PasswordSet,
    /// The webhook secret.
    WebhookSecret {
        /// In the form `whsec_…`.
        secret: String,
    },
    /// Every secret is encrypted with the new master key.
    Rotated {
        /// Number of secrets that were encrypted again.
        secrets: u64,
        /// Number of secrets that could not be decrypted and were left unchanged.
        lost: u64,
        /// Id of the new key: 16 hexadecimal digits that do not reveal the key.
        key_id: String,
    },
    /// The result of a repair.
    Repaired { repaired: RepairLine },
    /// The results of all checks.
    Examined {
        /// In display order.
        checks: Vec<Check>,
    },
    /// A backup is complete.
    BackedUp { backup: BackupLine },
    /// The progress of the running backup. `None` if there is none.
    BackupProgress { progress: Option<ProgressLine> },
}

/// The user for whom a set-up link was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkHolder {
    /// An existing user.
    User,
    /// The first owner, whose account was unclaimed.
    FirstOwner,
    /// A user who was created for the link.
    NewUser,
}

/// An API key without its secret, in the form of `GET /v1/api-keys`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyLine {
    pub id: String,
    pub name: String,
    /// The first characters of the key.
    pub prefix: String,
    /// Id of the user who created the key.
    pub created_by: String,
    pub created_at: Timestamp,
    /// Accurate to the minute.
    pub last_used_at: Option<Timestamp>,
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

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The request is invalid. The message says what is wrong and what to do.
    #[error("{0}")]
    Bad(String),
    /// The store refused the request or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system's random source failed.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Executes requests.
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
    /// `seed`: from the system's random source. `url`: the server's public address, without a trailing slash.
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

    /// Closes the store. The caller must be its only user.
    pub(crate) async fn close(&self) {
        self.store.close().await;
    }

    /// Enables operations of a running server. `places`: the maximum number of concurrent runs. `changes`: coordinates
    /// backups with changes of files.
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

    /// Executes a request.
    ///
    /// # Errors
    /// After an [`AdminError`] nothing was changed, except that the first team may have been created.
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

    /// A new link for claiming the first owner's account. `None` if it was already claimed.
    ///
    /// # Errors
    /// The store failed.
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
                "the key's name must have 1 to {NAME_CHARS_MAX} characters in one line"
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
            .create_api_key(new, Idempotent::not_recorded())
            .await?
            .executed()?;
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
            .delete_api_key(team, key, now, Idempotent::not_recorded())
            .await
        {
            Ok(_) => Ok(AdminAnswer::KeyDeleted),
            Err(StoreError::NotFound) => Err(AdminError::Bad(format!(
                "this team has no key {id}; `errand keys list` shows its keys, `--team` selects another team"
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
                "a role is for a new member, and this user is already a member of the team: leave --role out, \
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
                // An operator who can write to the data directory is not restricted by roles.
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
                "the password's hash is not an argon2id hash".to_owned(),
            ));
        }
        if self.store.user_by_email(&email).await?.is_some() {
            self.store.set_password(&email, phc_hash).await?;
            return Ok(AdminAnswer::PasswordSet);
        }
        // The unclaimed owner is claimed with a link that is used immediately and never shown.
        let token = SetUpToken::generate()?;
        let first = self.first_team(now).await?;
        let expires_at = now.plus_ms(SET_UP_LINK_TTL_MS);
        if !self
            .link_unclaimed(first.owner, &token, expires_at, now)
            .await?
        {
            return Err(AdminError::Bad(format!(
                "no user has the email address {email}; `errand users link {email}` creates one"
            )));
        }
        self.store
            .claim_set_up_link(token.hash(), Some(email), phc_hash, now)
            .await?;
        Ok(AdminAnswer::PasswordSet)
    }

    /// Creates a set-up link for the first owner. Returns false if the account was already claimed.
    async fn link_unclaimed(
        &self,
        owner: UserId,
        token: &SetUpToken,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<bool, AdminError> {
        // Claiming sets the email address and the password together, so a password shows that the account was claimed.
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
