//! Teams and their members.

use errand_core::id::{TeamId, UserId};
use errand_core::role::{Permission, Role};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::operate::{refuse_taken, team_name};
use super::people::user_is_enabled;
use crate::crypto::seal::Sealed;
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, word};
use crate::error::{Result, StoreError};
use crate::webhooks::signing_secrets::seal_secret;

/// Name of the first team of a server.
const FIRST_TEAM: &str = "default";

/// A team, which is the tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Team {
    pub id: TeamId,
    /// Unique on the server.
    pub name: String,
    pub created_at: Timestamp,
}

/// A team to create. Deliberately without `Debug`, because it contains a secret.
#[derive(Clone)]
pub struct NewTeam {
    pub id: TeamId,
    /// Unique on the server.
    pub name: String,
    /// Its first owner.
    pub owner: UserId,
    /// Webhook secret: `whsec_` and 32 random bytes in base64.
    pub secret: String,
    pub now: Timestamp,
}

/// The first team of a server. Deliberately without `Debug`, because it contains a secret.
#[derive(Clone)]
pub struct Bootstrap {
    /// Id for the team.
    pub team: TeamId,
    /// Id for its owner.
    pub owner: UserId,
    /// Webhook secret: `whsec_` and 32 random bytes in base64.
    pub secret: String,
    pub now: Timestamp,
}

/// The server's first team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrapped {
    pub team: TeamId,
    /// Its first owner who is not disabled.
    pub owner: UserId,
    /// Whether they were created now.
    pub created: bool,
}

impl Store {
    /// Creates the team `default` and an owner without email address and password, if there is no team yet.
    /// Otherwise returns the first team and its first owner.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the first team has no owner, which no operation can cause.
    pub async fn bootstrap(&self, new: Bootstrap) -> Result<Bootstrapped> {
        self.write(move |tx| match first_team(tx)? {
            Some(found) => Ok(found),
            None => insert_first_team(tx, &new, &seal_secret(tx, new.team, &new.secret)?),
        })
        .await
    }

    /// Creates a team with its first owner and its webhook secret.
    ///
    /// # Errors
    /// `Invalid` (`name`); [`StoreError::Conflict`] if another team has the name; [`StoreError::NotFound`] if the
    /// owner does not exist or is disabled.
    pub async fn create_team(&self, new: NewTeam) -> Result<Team> {
        let new = NewTeam {
            name: team_name(&new.name)?,
            ..new
        };
        self.write(move |tx| insert_team(tx, &new, &seal_secret(tx, new.id, &new.secret)?))
            .await
    }

    /// All teams, oldest first.
    pub async fn teams(&self) -> Result<Vec<Team>> {
        self.read(select_teams).await
    }

    /// Adds a user to a team. `by_role` is the role of the user who does it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] (no such team; the user does not exist or is disabled), [`StoreError::Conflict`]
    /// (already a member), `Forbidden` (only owners can add owners).
    pub async fn add_member(
        &self,
        team: TeamId,
        user: UserId,
        role: Role,
        by_role: Role,
        now: Timestamp,
    ) -> Result<()> {
        self.write(move |tx| {
            if !team_exists(tx, team)? || !user_is_enabled(tx, user)? {
                return Err(StoreError::NotFound);
            }
            only_owners(role == Role::Owner, by_role)?;
            if role_in(tx, team, user)?.is_some() {
                return Err(StoreError::Conflict(
                    "this user is already a member of the team; change the role instead".to_owned(),
                ));
            }
            insert_member(tx, team, user, role, now)
        })
        .await
    }

    /// Changes the role of a member. `by_role` is the role of the user who does it. The member's keys have the new
    /// role from the commit on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] (not a member), `Forbidden` (only owners can promote or demote owners),
    /// [`StoreError::Refused`] (the last owner cannot be demoted).
    pub async fn set_role(
        &self,
        team: TeamId,
        user: UserId,
        role: Role,
        by_role: Role,
    ) -> Result<()> {
        self.write(move |tx| {
            let present = role_in(tx, team, user)?.ok_or(StoreError::NotFound)?;
            only_owners(
                present != role && (present == Role::Owner || role == Role::Owner),
                by_role,
            )?;
            update_role(tx, team, user, role)
        })
        .await
    }

    /// Removes a member from a team, together with the member's keys and invitations of this team. `by_role` is the
    /// role of the user who does it, who may be the member.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] (not a member), `Forbidden` (only owners can remove owners), `Refused` (the last
    /// owner cannot be removed).
    pub async fn remove_member(&self, team: TeamId, user: UserId, by_role: Role) -> Result<()> {
        self.write(move |tx| {
            let present = role_in(tx, team, user)?.ok_or(StoreError::NotFound)?;
            only_owners(present == Role::Owner, by_role)?;
            tx.ring_all();
            delete_member(tx, team, user)
        })
        .await
    }
}

/// Refuses changes that concern owners, unless an owner makes them.
pub(super) fn only_owners(concerns_owners: bool, by_role: Role) -> Result<()> {
    if concerns_owners && !by_role.may(Permission::ManageOwners) {
        return Err(StoreError::Forbidden(
            "only an owner can add, change or remove owners; ask one".to_owned(),
        ));
    }
    Ok(())
}

fn last_owner() -> StoreError {
    StoreError::Refused(
        "this is the team's last owner; make another member an owner first".to_owned(),
    )
}

fn first_team(tx: &Connection) -> Result<Option<Bootstrapped>> {
    let row = |row: &Row<'_>| Ok((row.get::<_, Blob>(0)?, row.get::<_, Option<Blob>>(1)?));
    let found = tx
        .prepare_cached(
            "SELECT t.id, (SELECT m.user_id FROM memberships m JOIN users u ON u.id = m.user_id AND u.disabled_at IS NULL
                           WHERE m.team_id = t.id AND m.role = 'owner' ORDER BY m.created_at, m.user_id LIMIT 1)
             FROM teams t ORDER BY t.created_at, t.id LIMIT 1",
        )?
        .query_row([], row)
        .optional()?;
    match found {
        None => Ok(None),
        Some((team, Some(owner))) => Ok(Some(Bootstrapped {
            team: TeamId::from_stored(team.0),
            owner: UserId::from_stored(owner.0),
            created: false,
        })),
        Some((_, None)) => Err(StoreError::Refused(
            "the first team has no owner".to_owned(),
        )),
    }
}

fn insert_first_team(tx: &Connection, new: &Bootstrap, sealed: &Sealed) -> Result<Bootstrapped> {
    tx.prepare_cached("INSERT INTO users (id, created_at) VALUES (?1, ?2)")?
        .execute(params![Blob(new.owner.as_uuid()), Ms(new.now)])?;
    insert_team_row(tx, new.team, FIRST_TEAM, sealed, new.now)?;
    insert_member(tx, new.team, new.owner, Role::Owner, new.now)?;
    Ok(Bootstrapped {
        team: new.team,
        owner: new.owner,
        created: true,
    })
}

fn insert_team(tx: &Connection, new: &NewTeam, sealed: &Sealed) -> Result<Team> {
    if !user_is_enabled(tx, new.owner)? {
        return Err(StoreError::NotFound);
    }
    refuse_taken(tx, new.id, &new.name)?;
    insert_team_row(tx, new.id, &new.name, sealed, new.now)?;
    insert_member(tx, new.id, new.owner, Role::Owner, new.now)?;
    Ok(Team {
        id: new.id,
        name: new.name.clone(),
        created_at: new.now,
    })
}

fn insert_team_row(
    tx: &Connection,
    team: TeamId,
    name: &str,
    sealed: &Sealed,
    now: Timestamp,
) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO teams (id, name, created_at, webhook_secret) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![Blob(team.as_uuid()), name, Ms(now), sealed.0])?;
    Ok(())
}

fn select_teams(conn: &Connection) -> Result<Vec<Team>> {
    conn.prepare_cached("SELECT id, name, created_at FROM teams ORDER BY created_at, id")?
        .query_and_then([], |row| {
            Ok(Team {
                id: TeamId::from_stored(row.get::<_, Blob>(0)?.0),
                name: row.get(1)?,
                created_at: row.get::<_, Ms>(2)?.0,
            })
        })?
        .collect()
}

fn team_exists(conn: &Connection, team: TeamId) -> Result<bool> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM teams WHERE id = ?1")?
        .exists(params![Blob(team.as_uuid())])?)
}

pub(super) fn role_in(conn: &Connection, team: TeamId, user: UserId) -> Result<Option<Role>> {
    conn.prepare_cached("SELECT role FROM memberships WHERE team_id = ?1 AND user_id = ?2")?
        .query_row(params![Blob(team.as_uuid()), Blob(user.as_uuid())], |row| {
            row.get::<_, String>(0)
        })
        .optional()?
        .map(|text| word("memberships", "role", &text, Role::parse))
        .transpose()
}

pub(super) fn insert_member(
    tx: &Connection,
    team: TeamId,
    user: UserId,
    role: Role,
    now: Timestamp,
) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO memberships (team_id, user_id, role, created_at) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        Blob(team.as_uuid()),
        Blob(user.as_uuid()),
        role.as_str(),
        Ms(now)
    ])?;
    Ok(())
}

pub(super) fn update_role(tx: &Connection, team: TeamId, user: UserId, role: Role) -> Result<()> {
    let changed = tx
        .prepare_cached(
            "UPDATE memberships SET role = ?3
             WHERE team_id = ?1 AND user_id = ?2 AND (role <> 'owner' OR ?3 = 'owner' OR EXISTS (
                 SELECT 1 FROM memberships o JOIN users u ON u.id = o.user_id AND u.disabled_at IS NULL
                 WHERE o.team_id = ?1 AND o.user_id <> ?2 AND o.role = 'owner'))",
        )?
        .execute(params![Blob(team.as_uuid()), Blob(user.as_uuid()), role.as_str()])?;
    if changed == 0 {
        Err(last_owner())
    } else {
        Ok(())
    }
}

pub(super) fn delete_member(tx: &Connection, team: TeamId, user: UserId) -> Result<()> {
    let deleted = tx
        .prepare_cached(
            "DELETE FROM memberships
             WHERE team_id = ?1 AND user_id = ?2 AND (role <> 'owner' OR EXISTS (
                 SELECT 1 FROM memberships o JOIN users u ON u.id = o.user_id AND u.disabled_at IS NULL
                 WHERE o.team_id = ?1 AND o.user_id <> ?2 AND o.role = 'owner'))",
        )?
        .execute(params![Blob(team.as_uuid()), Blob(user.as_uuid())])?;
    if deleted == 0 {
        return Err(last_owner());
    }
    // These must not come back if the user joins again.
    for sql in [
        "DELETE FROM api_keys WHERE created_by = ?2 AND team_id = ?1",
        "DELETE FROM invitations WHERE created_by = ?2 AND team_id = ?1 AND used_at IS NULL",
    ] {
        tx.prepare_cached(sql)?
            .execute(params![Blob(team.as_uuid()), Blob(user.as_uuid())])?;
    }
    Ok(())
}
