//! Operations on a user in all teams, or on a team as a whole: renaming teams, and disabling and enabling users.
//!
//! # Guarantees
//!
//! Disabling a user permanently ends the user's sessions, set-up links and unused invitations in the same commit, and
//! notifies event streams that use a session or key of the user. The user's keys do not work as long as the user is
//! disabled. The last owner of a team cannot be disabled; the refusal names the teams.
//!
//! The operator may do all of this. A user may rename a team that they own, and disable or enable somebody if they
//! own *every* team of that person, because the effect is not limited to one team.

use errand_core::id::{TeamId, UserId};
use errand_core::limits::NAME_CHARS_MAX;
use errand_core::role::{Permission, Role};
use errand_core::time::Timestamp;
use rusqlite::{Connection, params};

use super::members::{OfMember, select_team, team_row};
use super::people::{User, select_user, user_row, void_links};
use super::sessions::end_sessions;
use super::teams::{Team, role_in};
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, word};
use crate::error::{Result, StoreError};

/// A user as an operator sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub user: User,
    /// Their teams, with the role in each, in the order of joining.
    pub teams: Vec<(Team, Role)>,
    /// Number of API keys that they created, in all teams.
    pub api_keys: u64,
}

/// A team as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeamFacts {
    pub team: Team,
    /// Number of members.
    pub members: u64,
    /// Email addresses of its owners who are not disabled; `None` for an unclaimed account.
    pub owners: Vec<Option<String>>,
}

/// Number of sessions and keys that were ended, or work again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Sessions in the web interface.
    pub sessions: u64,
    pub api_keys: u64,
}

impl Store {
    /// All teams with their members, oldest first.
    pub async fn team_facts(&self) -> Result<Vec<TeamFacts>> {
        self.read(select_team_facts).await
    }

    /// A page of the users of the server, or of one team, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a role cannot be read.
    pub async fn people(
        &self,
        team: Option<TeamId>,
        offset: u64,
        limit: u32,
    ) -> Result<Vec<Person>> {
        self.read(move |conn| select_people(conn, team, offset, limit))
            .await
    }

    /// A user with their teams and the number of their keys.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Corrupt`].
    pub async fn person(&self, user: UserId) -> Result<Person> {
        self.read(move |conn| {
            let user = select_user(conn, user)?.ok_or(StoreError::NotFound)?;
            person(conn, user)
        })
        .await
    }

    /// The first owner of a team who is not disabled.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the team has none.
    pub async fn owner_of(&self, team: TeamId) -> Result<UserId> {
        self.read_for(team, move |conn| {
            let mut select = conn.prepare_cached(
                "SELECT m.user_id FROM memberships m JOIN users u ON u.id = m.user_id AND u.disabled_at IS NULL
                 WHERE m.team_id = ?1 AND m.role = 'owner' ORDER BY m.created_at, m.user_id LIMIT 1",
            )?;
            let mut rows = select.query(params![Blob(team.as_uuid())])?;
            match rows.next()? {
                Some(row) => Ok(UserId::from_stored(row.get::<_, Blob>(0)?.0)),
                None => Err(StoreError::Refused("this team has no owner".to_owned())),
            }
        })
        .await
    }

    /// Renames a team. `by_role` is the role of the acting user.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; `Forbidden` (only owners); `Invalid` (`name`); `Conflict` if another team has the
    /// name.
    pub async fn rename_team(&self, team: TeamId, name: String, by_role: Role) -> Result<Team> {
        let name = team_name(&name)?;
        self.write(move |tx| {
            if !by_role.may(Permission::ManageOwners) {
                return Err(StoreError::Forbidden(
                    "only an owner can rename the team; ask one".to_owned(),
                ));
            }
            let present = select_team(tx, team)?;
            refuse_taken(tx, team, &name)?;
            tx.prepare_cached("UPDATE teams SET name = ?2 WHERE id = ?1")?
                .execute(params![Blob(team.as_uuid()), name])?;
            Ok(Team {
                name: name.clone(),
                ..present
            })
        })
        .await
    }

    /// Disables a user. The user cannot log in, and the user's sessions, links, invitations and keys do not work from
    /// the commit on. Succeeds if the user is already disabled.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Refused`] if a team would be left without an owner.
    pub async fn disable_user(&self, user: UserId, now: Timestamp) -> Result<Access> {
        self.write(move |tx| {
            tx.ring_all();
            disable(tx, user, now)
        })
        .await
    }

    /// Enables a disabled user, who can log in again, and whose API keys work again. Returns `true` if the user was
    /// disabled.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn enable_user(&self, user: UserId) -> Result<bool> {
        self.write(move |tx| enable(tx, user)).await
    }

    /// Disables or enables a member on behalf of another user.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] (not a member); `Forbidden` (only owners; not oneself; the person is in a team that
    /// the acting user does not own); `Refused` (the last owner of a team).
    pub async fn set_member_disabled(&self, of: OfMember, disabled: bool) -> Result<()> {
        self.write(move |tx| {
            role_in(tx, of.team, of.user)?.ok_or(StoreError::NotFound)?;
            may_disable(tx, &of)?;
            tx.ring_all();
            if disabled {
                disable(tx, of.user, of.now).map(drop)
            } else {
                enable(tx, of.user).map(drop)
            }
        })
        .await
    }
}

/// Checks and trims the name of a team.
pub(super) fn team_name(text: &str) -> Result<String> {
    let name = text.trim().to_owned();
    let is_odd = name.chars().any(char::is_control);
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || is_odd {
        return Err(StoreError::Invalid {
            field: "name",
            message: format!("must have 1 to {NAME_CHARS_MAX} characters, without line breaks"),
        });
    }
    Ok(name)
}

pub(super) fn refuse_taken(conn: &Connection, team: TeamId, name: &str) -> Result<()> {
    let taken = conn
        .prepare_cached("SELECT 1 FROM teams WHERE name = ?1 AND id <> ?2")?
        .exists(params![name, Blob(team.as_uuid())])?;
    if taken {
        return Err(StoreError::Conflict(format!(
            "another team is already named {name:?}; use another name"
        )));
    }
    Ok(())
}

fn may_disable(conn: &Connection, of: &OfMember) -> Result<()> {
    if !of.by_role.may(Permission::ManageOwners) {
        return Err(StoreError::Forbidden(
            "only an owner can disable people; ask one".to_owned(),
        ));
    }
    if of.user == of.by {
        return Err(StoreError::Forbidden(
            "you cannot disable yourself; ask another owner".to_owned(),
        ));
    }
    let elsewhere = conn
        .prepare_cached(
            "SELECT 1 FROM memberships m WHERE m.user_id = ?1 AND NOT EXISTS (
                 SELECT 1 FROM memberships o JOIN users u ON u.id = o.user_id AND u.disabled_at IS NULL
                 WHERE o.team_id = m.team_id AND o.user_id = ?2 AND o.role = 'owner')",
        )?
        .exists(params![Blob(of.user.as_uuid()), Blob(of.by.as_uuid())])?;
    if elsewhere {
        return Err(StoreError::Forbidden(
            "this person is of another team too, which you do not own: remove them from this team instead, or ask the \
             operator of the server"
                .to_owned(),
        ));
    }
    Ok(())
}

fn disable(tx: &Connection, user: UserId, now: Timestamp) -> Result<Access> {
    select_user(tx, user)?.ok_or(StoreError::NotFound)?;
    let id = Blob(user.as_uuid());
    let alone: Vec<String> = tx
        .prepare_cached(
            "SELECT t.name FROM memberships m JOIN teams t ON t.id = m.team_id
             WHERE m.user_id = ?1 AND m.role = 'owner' AND NOT EXISTS (
                 SELECT 1 FROM memberships o JOIN users u ON u.id = o.user_id AND u.disabled_at IS NULL
                 WHERE o.team_id = m.team_id AND o.user_id <> ?1 AND o.role = 'owner')
             ORDER BY t.created_at, t.id",
        )?
        .query_map(params![id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if !alone.is_empty() {
        let named: Vec<String> = alone.iter().map(|name| format!("{name:?}")).collect();
        return Err(StoreError::Refused(format!(
            "this user is the last owner of {}; make another member an owner there first",
            named.join(", ")
        )));
    }
    tx.prepare_cached("UPDATE users SET disabled_at = coalesce(disabled_at, ?2) WHERE id = ?1")?
        .execute(params![id, Ms(now)])?;
    void_links(tx, user)?;
    tx.prepare_cached("DELETE FROM invitations WHERE created_by = ?1 AND used_at IS NULL")?
        .execute(params![id])?;
    Ok(Access {
        sessions: end_sessions(tx, user)?,
        api_keys: keys_of(tx, user)?,
    })
}

fn enable(tx: &Connection, user: UserId) -> Result<bool> {
    let found = select_user(tx, user)?.ok_or(StoreError::NotFound)?;
    tx.prepare_cached("UPDATE users SET disabled_at = NULL WHERE id = ?1")?
        .execute(params![Blob(user.as_uuid())])?;
    Ok(found.disabled)
}

fn keys_of(conn: &Connection, user: UserId) -> Result<u64> {
    let keys = conn
        .prepare_cached("SELECT count(*) FROM api_keys WHERE created_by = ?1")?
        .query_row(params![Blob(user.as_uuid())], |row| row.get(0))?;
    Ok(count(keys))
}

fn person(conn: &Connection, user: User) -> Result<Person> {
    let teams = conn
        .prepare_cached(
            "SELECT t.id, t.name, t.created_at, m.role FROM memberships m JOIN teams t ON t.id = m.team_id
             WHERE m.user_id = ?1 ORDER BY m.created_at, t.id",
        )?
        .query_and_then(params![Blob(user.id.as_uuid())], |row| {
            let role: String = row.get(3)?;
            Ok((team_row(row)?, word("memberships", "role", &role, Role::parse)?))
        })?
        .collect::<Result<_>>()?;
    let api_keys = keys_of(conn, user.id)?;
    Ok(Person {
        user,
        teams,
        api_keys,
    })
}

fn select_people(
    conn: &Connection,
    team: Option<TeamId>,
    offset: u64,
    limit: u32,
) -> Result<Vec<Person>> {
    let users: Vec<User> = conn
        .prepare_cached(
            "SELECT id, email, created_at, disabled_at FROM users
             WHERE ?1 IS NULL OR id IN (SELECT user_id FROM memberships WHERE team_id = ?1)
             ORDER BY created_at, id LIMIT ?2 OFFSET ?3",
        )?
        .query_map(
            params![team.map(|team| Blob(team.as_uuid())), limit, int(offset)],
            user_row,
        )?
        .collect::<rusqlite::Result<_>>()?;
    users.into_iter().map(|user| person(conn, user)).collect()
}

fn select_team_facts(conn: &Connection) -> Result<Vec<TeamFacts>> {
    let teams: Vec<Team> = conn
        .prepare_cached("SELECT id, name, created_at FROM teams ORDER BY created_at, id")?
        .query_map([], team_row)?
        .collect::<rusqlite::Result<_>>()?;
    teams
        .into_iter()
        .map(|team| {
            let id = Blob(team.id.as_uuid());
            let members = conn
                .prepare_cached("SELECT count(*) FROM memberships WHERE team_id = ?1")?
                .query_row(params![id], |row| row.get(0))?;
            let owners = conn
                .prepare_cached(
                    "SELECT u.email FROM memberships m JOIN users u ON u.id = m.user_id AND u.disabled_at IS NULL
                     WHERE m.team_id = ?1 AND m.role = 'owner' ORDER BY m.created_at, u.id",
                )?
                .query_map(params![id], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            Ok(TeamFacts {
                team,
                members: count(members),
                owners,
            })
        })
        .collect()
}
