//! Invitations: links by which somebody joins a team.
//!
//! Promised: a link works once, until it expires, and as long as whoever made it may make it *still*: one who is removed,
//! disabled or demoted lets nobody in any more. It is used in the transaction in which somebody joins; a refusal uses
//! nothing up. Of the link itself the store knows a hash alone.
//!
//! Left out: drawing tokens and hashing passwords, and the page that the link leads to.

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
use crate::idempotency::{Answer, Once, once};
use crate::model::{Page, PageQuery};

/// True of `invitations i` that work at the moment `?2`: neither used nor expired, and made by somebody who may do that
/// still.
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
    /// Its id.
    pub id: InvitationId,
    /// Into which team.
    pub team: TeamId,
    /// The role of whoever comes.
    pub role: Role,
    /// Whom it is for, in small letters. None: whoever has the link.
    pub email: Option<String>,
    /// By whom.
    pub created_by: UserId,
    /// When.
    pub created_at: Timestamp,
    /// Until when it works.
    pub expires_at: Timestamp,
}

/// An invitation to make.
#[derive(Clone, Debug)]
pub struct NewInvitation {
    /// Its id.
    pub id: InvitationId,
    /// Into which team.
    pub team: TeamId,
    /// SHA-256 of its token.
    pub token_hash: [u8; 32],
    /// The role of whoever comes.
    pub role: Role,
    /// Whom it is for, as it was typed. None: whoever has the link.
    pub email: Option<String>,
    /// By whom.
    pub by: UserId,
    /// The present role of who does it.
    pub by_role: Role,
    /// Until when it works.
    pub expires_at: Timestamp,
    /// Now.
    pub now: Timestamp,
}

/// Who joins.
#[derive(Clone)]
pub enum Joining {
    /// Somebody who has signed in.
    User(UserId),
    /// Somebody new. Without `Debug`: the hash of a password is nobody's business.
    New {
        /// Their id.
        id: UserId,
        /// Their e-mail address, as it was typed. None: the invitation's.
        email: Option<String>,
        /// Their password: argon2id, as a PHC string.
        phc_hash: String,
    },
}

impl Store {
    /// Makes an invitation.
    ///
    /// # Errors
    /// `Forbidden` (members invite nobody, only owners invite owners); `Invalid` (`email`, `expires_at`); `Conflict` where
    /// the person is of the team already, or as many invitations are open as a team may have.
    pub async fn create_invitation(
        &self,
        new: NewInvitation,
        recorded: Once<Invitation>,
    ) -> Result<Answer<Invitation>> {
        self.write(move |tx| once(tx, &recorded, new.now, || insert(tx, &new)))
            .await
    }

    /// A page of the team's invitations that work, newest first.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where a role cannot be read.
    pub async fn invitations(
        &self,
        team: TeamId,
        page: PageQuery,
        now: Timestamp,
    ) -> Result<Page<Invitation>> {
        self.read_for(team, move |conn| select_page(conn, team, page, now))
            .await
    }

    /// Takes an invitation back: its link works no more.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also for one that was used.
    pub async fn delete_invitation(
        &self,
        team: TeamId,
        invitation: InvitationId,
        now: Timestamp,
        recorded: Once<()>,
    ) -> Result<Answer<()>> {
        self.write(move |tx| {
            once(tx, &recorded, now, || {
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

    /// What a link leads to: its team and the invitation. None where it does not work (any more). Uses nothing up.
    ///
    /// # Errors
    /// Those of any read.
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

    /// Uses a link: whoever has it joins the team. Somebody new is made with it, with their password.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where [`Store::invited`] gives none; `Refused` where the invitation is for another person,
    /// or the user is disabled; `Invalid` (`email`); `Conflict` where the person is of the team already, or somebody new
    /// gives an address that a user has: they sign in first. A refused link stays as it was.
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
            "the role member does not allow this: an admin or owner of the team can".to_owned(),
        ));
    }
    only_owners(new.role == Role::Owner, new.by_role)?;
    let latest = new.now.plus_ms(INVITATION_MS_MAX);
    if new.expires_at <= new.now || new.expires_at > latest {
        return Err(StoreError::Invalid {
            field: "expires_at",
            message: format!("it takes a moment to come, no later than {latest}"),
        });
    }
    let email = new.email.as_deref().map(normal_email).transpose()?;
    if let Some(email) = &email
        && let Some(user) = select_by_email(tx, email)?
        && role_in(tx, new.team, user.id)?.is_some()
    {
        return Err(StoreError::Conflict(
            "this person is of the team already".to_owned(),
        ));
    }
    if how_many(tx, new.team, new.now)? >= INVITATIONS_MAX {
        return Err(StoreError::Conflict(format!(
            "a team has at most {INVITATIONS_MAX} open invitations; delete one first"
        )));
    }
    // Those that have ended are of no use.
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
    StoreError::Refused("this invitation is for another person; ask for one of your own".to_owned())
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
            "you are of this team already".to_owned(),
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
                message: "it takes an e-mail address, such as ann@example.com".to_owned(),
            });
        }
    };
    if select_by_email(tx, &email)?.is_some() {
        return Err(email_taken());
    }
    insert_user(tx, id, &email, now)
}
