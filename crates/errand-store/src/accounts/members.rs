//! The members of a team, as the team sees and changes them.
//!
//! # Guarantees
//!
//! Permissions are checked here, by the role of the acting user, in the same transaction. Removing a member deletes
//! the member's keys and invitations of the team, so that they do not come back if the member joins again.

use errand_core::id::{ApiKeyId, TeamId, UserId};
use errand_core::role::{Permission, Role};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::teams::{Team, delete_member, only_owners, role_in, update_role};
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, word};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{ApiKey, Page, PageQuery};

/// A member of a team.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub user: UserId,
    /// `None` for an owner whose account has not been claimed yet.
    pub email: Option<String>,
    pub role: Role,
    /// When they joined the team.
    pub joined_at: Timestamp,
    /// Whether the user is disabled, which applies to all teams.
    pub disabled: bool,
    /// Number of the team's API keys that have this member's role.
    pub api_keys: u64,
}

/// Identifies a member to change or remove, and the acting user.
#[derive(Clone, Copy, Debug)]
pub struct OfMember {
    pub team: TeamId,
    pub user: UserId,
    /// The acting user.
    pub by: UserId,
    /// The acting user's current role.
    pub by_role: Role,
    pub now: Timestamp,
}

impl Store {
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn team(&self, team: TeamId) -> Result<Team> {
        self.read_for(team, move |conn| select_team(conn, team))
            .await
    }

    /// A page of a team's members, by the time at which they joined.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a role cannot be read.
    pub async fn members(&self, team: TeamId, page: PageQuery) -> Result<Page<Member>> {
        self.read_for(team, move |conn| select_members(conn, team, page))
            .await
    }

    /// A member, and the team's keys that have this member's role, newest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn member(&self, team: TeamId, user: UserId) -> Result<(Member, Vec<ApiKey>)> {
        self.read_for(team, move |conn| {
            Ok((select_member(conn, team, user)?, keys_of(conn, team, user)?))
        })
        .await
    }

    /// Changes the role of a member. The member's keys have it from the commit on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Forbidden` (the role member cannot change roles; only owners can promote or demote
    /// owners); `Refused` (the last owner cannot be demoted).
    pub async fn change_role(
        &self,
        of: OfMember,
        role: Role,
        recorded: Idempotent<Member>,
    ) -> Result<Outcome<Member>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, of.now, || {
                let present = role_in(tx, of.team, of.user)?.ok_or(StoreError::NotFound)?;
                may_change(of.by_role)?;
                let concerns_owners =
                    present != role && (present == Role::Owner || role == Role::Owner);
                only_owners(concerns_owners, of.by_role)?;
                update_role(tx, of.team, of.user, role)?;
                // Event streams that use the member's keys must check them again.
                tx.ring_all();
                select_member(tx, of.team, of.user)
            })
        })
        .await
    }

    /// Removes a member from a team, together with the member's keys and invitations of this team. All members may
    /// remove themselves.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Forbidden` (the role member cannot remove others; only owners can remove owners);
    /// `Refused` (the last owner cannot be removed).
    pub async fn remove(&self, of: OfMember, recorded: Idempotent<()>) -> Result<Outcome<()>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, of.now, || {
                let present = role_in(tx, of.team, of.user)?.ok_or(StoreError::NotFound)?;
                if of.user != of.by {
                    may_change(of.by_role)?;
                }
                only_owners(present == Role::Owner, of.by_role)?;
                tx.ring_all();
                delete_member(tx, of.team, of.user)
            })
        })
        .await
    }
}

fn may_change(by_role: Role) -> Result<()> {
    if by_role.may(Permission::ManageMembers) {
        return Ok(());
    }
    Err(StoreError::Forbidden(
        "the role member does not allow this; ask an admin or owner of the team".to_owned(),
    ))
}

pub(super) fn select_team(conn: &Connection, team: TeamId) -> Result<Team> {
    conn.prepare_cached("SELECT id, name, created_at FROM teams WHERE id = ?1")?
        .query_row(params![Blob(team.as_uuid())], team_row)
        .optional()?
        .ok_or(StoreError::NotFound)
}

pub(super) fn team_row(row: &Row<'_>) -> rusqlite::Result<Team> {
    Ok(Team {
        id: TeamId::from_stored(row.get::<_, Blob>(0)?.0),
        name: row.get(1)?,
        created_at: row.get::<_, Ms>(2)?.0,
    })
}

/// Columns of a member.
const MEMBER: &str = "SELECT m.user_id, u.email, m.role, m.created_at, u.disabled_at IS NOT NULL,
        (SELECT count(*) FROM api_keys k WHERE k.created_by = m.user_id AND k.team_id = m.team_id)
    FROM memberships m JOIN users u ON u.id = m.user_id WHERE m.team_id = ?1";

fn member_row(row: &Row<'_>) -> Result<Member> {
    let role: String = row.get(2)?;
    Ok(Member {
        user: UserId::from_stored(row.get::<_, Blob>(0)?.0),
        email: row.get(1)?,
        role: word("memberships", "role", &role, Role::parse)?,
        joined_at: row.get::<_, Ms>(3)?.0,
        disabled: row.get(4)?,
        api_keys: count(row.get(5)?),
    })
}

fn select_members(conn: &Connection, team: TeamId, page: PageQuery) -> Result<Page<Member>> {
    let total = conn
        .prepare_cached("SELECT count(*) FROM memberships WHERE team_id = ?1")?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))?;
    let items = conn
        .prepare_cached(&format!(
            "{MEMBER} ORDER BY m.created_at, m.user_id LIMIT ?2 OFFSET ?3"
        ))?
        .query_and_then(
            params![Blob(team.as_uuid()), page.limit, int(page.offset)],
            member_row,
        )?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: count(total),
    })
}

pub(super) fn select_member(conn: &Connection, team: TeamId, user: UserId) -> Result<Member> {
    conn.prepare_cached(&format!("{MEMBER} AND m.user_id = ?2"))?
        .query_and_then(
            params![Blob(team.as_uuid()), Blob(user.as_uuid())],
            member_row,
        )?
        .next()
        .transpose()?
        .ok_or(StoreError::NotFound)
}

fn keys_of(conn: &Connection, team: TeamId, user: UserId) -> Result<Vec<ApiKey>> {
    let keys = conn
        .prepare_cached(
            "SELECT id, name, prefix, created_by, created_at, last_used_at, expires_at FROM api_keys
             WHERE created_by = ?2 AND team_id = ?1 ORDER BY created_at DESC, id DESC",
        )?
        .query_map(
            params![Blob(team.as_uuid()), Blob(user.as_uuid())],
            |row| {
                Ok(ApiKey {
                    id: ApiKeyId::from_stored(row.get::<_, Blob>(0)?.0),
                    name: row.get(1)?,
                    prefix: row.get(2)?,
                    created_by: UserId::from_stored(row.get::<_, Blob>(3)?.0),
                    created_at: row.get::<_, Ms>(4)?.0,
                    last_used_at: row.get::<_, Option<Ms>>(5)?.map(|ms| ms.0),
                    expires_at: row.get::<_, Option<Ms>>(6)?.map(|ms| ms.0),
                })
            },
        )?
        .collect::<rusqlite::Result<_>>()?;
    Ok(keys)
}
