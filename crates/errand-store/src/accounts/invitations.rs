//! Invitations: links with which people join a team.
//!
//! # Guarantees
//!
//! A link works once, until it expires, and only while its creator is *still* allowed to create it: the links of a
//! user who was removed, disabled or demoted stop working. A link is used up in the transaction in which somebody
//! joins; a refusal does not use it up. The store knows only a hash of the link's token.
//!
//! # Non-goals
//!
//! Generating tokens, hashing passwords, and the page that the link leads to.

use errand_core::id::{InvitationId, TeamId, UserId};
use errand_core::limits::{INVITATION_MS_MAX, INVITATIONS_MAX};
use errand_core::role::{Permission, Role};
use errand_core::time::Timestamp;
use rusqlite::{Connection, Row, params};

use super::members::select_team;
use super::people::{
    User, email_taken, insert_user, normal_email, select_by_email, select_user, update_password,
};
use super::teams::{Team, insert_member, only_owners, role_in};
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, word};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{Page, PageQuery};

/// SQL condition for `invitations i` that work at the time `?2`: neither used nor expired, and created by somebody
/// who is still allowed to.
macro_rules! works {
    () => {
        "i.used_at IS NULL AND i.expires_at > ?2 AND EXISTS (
            SELECT 1 FROM memberships m JOIN users u ON u.id = m.user_id AND u.disabled_at IS NULL
            WHERE m.team_id = i.team_id AND m.user_id = i.created_by
              AND (m.role = 'owner' OR (m.role = 'admin' AND i.role <> 'owner')))"
    };
}

/// An invitation that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    pub id: InvitationId,
    pub team: TeamId,
    /// Role of the person who joins.
    pub role: Role,
    /// The person it is for, in lower case. `None`: anyone with the link.
    pub email: Option<String>,
    pub created_by: UserId,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// An invitation to create.
#[derive(Clone, Debug)]
pub struct NewInvitation {
    pub id: InvitationId,
    pub team: TeamId,
    /// SHA-256 of the token.
    pub token_hash: [u8; 32],
    /// Role of the person who joins.
    pub role: Role,
    /// The person it is for, as entered. `None`: anyone with the link.
    pub email: Option<String>,
    /// The acting user.
    pub by: UserId,
    /// The acting user's current role.
    pub by_role: Role,
    pub expires_at: Timestamp,
    pub now: Timestamp,
}

/// The person who joins.
#[derive(Clone)]
pub enum Joining {
    /// An existing user who has logged in.
    User(UserId),
    /// A new user. Deliberately without `Debug`, because it contains a password hash.
    New {
        id: UserId,
        /// Email address, as entered. `None`: that of the invitation.
        email: Option<String>,
        /// Password hash: argon2id as a PHC string.
        phc_hash: String,
    },
}

impl Store {
    /// Creates an invitation.
    ///
    /// # Errors
    /// `Forbidden` (the role member cannot invite; only owners can invite owners); `Invalid` (`email`, `expires_at`);
    /// `Conflict` if the person is already a member, or the team has the maximum number of open invitations.
    pub async fn create_invitation(
        &self,
        new: NewInvitation,
        recorded: Idempotent<Invitation>,
    ) -> Result<Outcome<Invitation>> {
        self.write(move |tx| idempotent(tx, &recorded, new.now, || insert(tx, &new)))
            .await
    }

    /// A page of the team's working invitations, newest first.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a role cannot be read.
    pub async fn invitations(
        &self,
        team: TeamId,
        page: PageQuery,
        now: Timestamp,
    ) -> Result<Page<Invitation>> {
        self.read_for(team, move |conn| select_page(conn, team, page, now))
            .await
    }

    /// Deletes an invitation, so that its link stops working.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if the invitation was used.
    pub async fn delete_invitation(
        &self,
        team: TeamId,
        invitation: InvitationId,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                let deleted = tx
                    .prepare_cached("DELETE FROM invitations WHERE id = ?1 AND team_id = ?2 AND used_at IS NULL")?
                    .execute(params![
                        Blob(invitation.as_uuid()),
                        Blob(team.as_uuid())
                    ])?;
                if deleted == 0 {
                    return Err(StoreError::NotFound);
                }
                Ok(())
            })
        })
        .await
    }

    /// The team and the invitation that a link belongs to. `None` if the link does not work. Does not use it up.
    pub async fn invited(
        &self,
        token_hash: [u8; 32],
        now: Timestamp,
    ) -> Result<Option<(Team, Invitation)>> {
        self.read(move |conn| {
            let Some(invitation) = select_by_token(conn, token_hash, now)? else {
                return Ok(None);
            };
            let team = select_team(conn, invitation.team)?;
            Ok(Some((team, invitation)))
        })
        .await
    }

    /// Uses a link to join its team. A new user is created with the given password.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if [`Store::invited`] returns `None`; `Refused` if the invitation is for another
    /// person, or the user is disabled; `Invalid` (`email`); `Conflict` if the person is already a member, or a new
    /// user gives the address of an existing one, who must log in first. A refused link is not used up.
    pub async fn join(
        &self,
        token_hash: [u8; 32],
        who: Joining,
        now: Timestamp,
    ) -> Result<(Team, User)> {
        self.write(move |tx| join(tx, token_hash, &who, now)).await
    }
}

const COLUMNS: &str = "i.id, i.team_id, i.role, i.email, i.created_by, i.created_at, i.expires_at";

fn invitation_row(row: &Row<'_>) -> Result<Invitation> {
    let role: String = row.get(2)?;
    Ok(Invitation {
        id: InvitationId::from_stored(row.get::<_, Blob>(0)?.0),
        team: TeamId::from_stored(row.get::<_, Blob>(1)?.0),
        role: word("invitations", "role", &role, Role::parse)?,
        email: row.get(3)?,
        created_by: UserId::from_stored(row.get::<_, Blob>(4)?.0),
        created_at: row.get::<_, Ms>(5)?.0,
        expires_at: row.get::<_, Ms>(6)?.0,
    })
}

fn select_by_token(
    conn: &Connection,
    token_hash: [u8; 32],
    now: Timestamp,
) -> Result<Option<Invitation>> {
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM invitations i WHERE i.token_hash = ?1 AND {}",
        works!()
    ))?
    .query_and_then(params![token_hash, Ms(now)], invitation_row)?
    .next()
    .transpose()
}

fn how_many(conn: &Connection, team: TeamId, now: Timestamp) -> Result<u64> {
    let open = conn
        .prepare_cached(concat!(
            "SELECT count(*) FROM invitations i WHERE i.team_id = ?1 AND ",
            works!()
        ))?
        .query_row(params![Blob(team.as_uuid()), Ms(now)], |row| row.get(0))?;
    Ok(count(open))
}

fn select_page(
    conn: &Connection,
    team: TeamId,
    page: PageQuery,
    now: Timestamp,
) -> Result<Page<Invitation>> {
    let items = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM invitations i WHERE i.team_id = ?1 AND {} ORDER BY i.created_at DESC, i.id DESC LIMIT ?3 OFFSET ?4",
            works!()
        ))?
        .query_and_then(
            params![Blob(team.as_uuid()), Ms(now), page.limit, int(page.offset)],
            invitation_row,
        )?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: how_many(conn, team, now)?,
    })
}

fn insert(tx: &Connection, new: &NewInvitation) -> Result<Invitation> {
    if !new.by_role.may(Permission::ManageMembers) {
        return Err(StoreError::Forbidden(
            "the role member does not allow this; ask an admin or owner of the team".to_owned(),
        ));
    }
    only_owners(new.role == Role::Owner, new.by_role)?;
    let latest = new.now.plus_ms(INVITATION_MS_MAX);
    if new.expires_at <= new.now || new.expires_at > latest {
        return Err(StoreError::Invalid {
            field: "expires_at",
            message: format!("must be in the future, no later than {latest}"),
        });
    }
    let email = new.email.as_deref().map(normal_email).transpose()?;
    if let Some(email) = &email
        && let Some(user) = select_by_email(tx, email)?
        && role_in(tx, new.team, user.id)?.is_some()
    {
        return Err(StoreError::Conflict(
            "this person is already a member of the team".to_owned(),
        ));
    }
    if how_many(tx, new.team, new.now)? >= INVITATIONS_MAX {
        return Err(StoreError::Conflict(format!(
            "a team has at most {INVITATIONS_MAX} open invitations; delete one first"
        )));
    }
    // Expired invitations are useless.
    tx.prepare_cached(
        "DELETE FROM invitations WHERE team_id = ?1 AND used_at IS NULL AND expires_at <= ?2",
    )?
    .execute(params![Blob(new.team.as_uuid()), Ms(new.now)])?;
    tx.prepare_cached(
        "INSERT INTO invitations (id, team_id, token_hash, role, email, created_by, created_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        Blob(new.id.as_uuid()),
        Blob(new.team.as_uuid()),
        new.token_hash,
        new.role.as_str(),
        email,
        Blob(new.by.as_uuid()),
        Ms(new.now),
        Ms(new.expires_at)
    ])?;
    Ok(Invitation {
        id: new.id,
        team: new.team,
        role: new.role,
        email,
        created_by: new.by,
        created_at: new.now,
        expires_at: new.expires_at,
    })
}

fn join(
    tx: &Connection,
    token_hash: [u8; 32],
    who: &Joining,
    now: Timestamp,
) -> Result<(Team, User)> {
    let invitation = select_by_token(tx, token_hash, now)?.ok_or(StoreError::NotFound)?;
    let team = select_team(tx, invitation.team)?;
    let user = match who {
        Joining::User(user) => known(tx, &invitation, *user)?,
        Joining::New {
            id,
            email,
            phc_hash,
        } => {
            let user = make_user(tx, &invitation, *id, email.as_deref(), now)?;
            update_password(tx, user.id, phc_hash)?;
            user
        }
    };
    insert_member(tx, team.id, user.id, invitation.role, now)?;
    tx.prepare_cached(
        "UPDATE invitations SET used_at = ?2, used_by = ?3 WHERE id = ?1 AND used_at IS NULL",
    )?
    .execute(params![
        Blob(invitation.id.as_uuid()),
        Ms(now),
        Blob(user.id.as_uuid())
    ])?;
    Ok((team, user))
}

fn for_somebody_else() -> StoreError {
    StoreError::Refused("this invitation is for another person; ask for your own".to_owned())
}

fn known(tx: &Connection, invitation: &Invitation, user: UserId) -> Result<User> {
    let found = select_user(tx, user)?
        .filter(|user| !user.disabled)
        .ok_or_else(|| StoreError::Refused("this user is disabled".to_owned()))?;
    if invitation.email.is_some() && invitation.email != found.email {
        return Err(for_somebody_else());
    }
    if role_in(tx, invitation.team, user)?.is_some() {
        return Err(StoreError::Conflict(
            "you are already a member of this team".to_owned(),
        ));
    }
    Ok(found)
}

fn make_user(
    tx: &Connection,
    invitation: &Invitation,
    id: UserId,
    email: Option<&str>,
    now: Timestamp,
) -> Result<User> {
    let given = email.map(normal_email).transpose()?;
    let email = match (&invitation.email, given) {
        (Some(theirs), Some(given)) if *theirs != given => return Err(for_somebody_else()),
        (Some(theirs), _) => theirs.clone(),
        (None, Some(given)) => given,
        (None, None) => {
            return Err(StoreError::Invalid {
                field: "email",
                message: "must be an email address, such as ann@example.com".to_owned(),
            });
        }
    };
    if select_by_email(tx, &email)?.is_some() {
        return Err(email_taken());
    }
    insert_user(tx, id, &email, now)
}
