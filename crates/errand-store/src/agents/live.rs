//! Decides which build of an agent new runs use: the one that was last created as live, or promoted.
//!
//! # Guarantees
//!
//! An agent with at least one build that is not a draft has exactly one live build. A draft that was revised is
//! replaced by its child and can no longer be promoted, because promoting it would undo the revision.

use errand_core::id::{AgentId, BuildId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{BuildChange, changeable_build, insert_build, live_build, move_updated_at};
use crate::db::sqlite::Store;
use crate::db::types::Blob;
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{Build, BuildState, NewBuild};

/// Maximum number of successive drafts that are followed to find the successor of a replaced one.
const SUCCESSORS_MAX: usize = 1000;

impl Store {
    /// Creates a build with a different config from an existing one. The child of a live build is live, the child of
    /// a draft is a draft. The name, description and draft flag of `new` are ignored: what `change` leaves out is
    /// taken from the parent.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if its agent is deleted; `Invalid` for a build that is neither live nor a
    /// draft; `Conflict` for a draft that was replaced.
    pub async fn revise_build(
        &self,
        team: TeamId,
        build: BuildId,
        change: BuildChange,
        new: NewBuild,
        now: Timestamp,
        recorded: Idempotent<Build>,
    ) -> Result<Outcome<Build>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                revise(tx, team, build, &change, &new, now)
            })
        })
        .await
    }
}

/// The build for a run that starts now.
///
/// # Errors
/// [`StoreError::NotFound`] for an unknown agent; `Invalid` for an agent without a live build.
pub(crate) fn live_build_of(conn: &Connection, team: TeamId, agent: AgentId) -> Result<BuildId> {
    let live: Option<Blob> = conn
        .prepare_cached(concat!(
            "SELECT ",
            live_build!(),
            " FROM agents a WHERE a.id = ?1 AND a.team_id = ?2 AND a.deleted_at IS NULL"
        ))?
        .query_row(
            params![Blob(agent.as_uuid()), Blob(team.as_uuid())],
            |row| row.get(0),
        )
        .optional()?
        .ok_or(StoreError::NotFound)?;
    live.map(|live| BuildId::from_stored(live.0))
        .ok_or_else(|| {
            let has_draft = conn
                .prepare_cached("SELECT 1 FROM builds WHERE agent_id = ?1")
                .and_then(|mut statement| statement.exists(params![Blob(agent.as_uuid())]))
                .unwrap_or_default();
            let message = if has_draft {
                "the agent has only drafts; promote one with POST /v1/revisions/{build_id}/promote"
            } else {
                "the agent has no build yet; create one with POST /v1/agents/{agent_id}/revisions"
            };
            StoreError::Invalid {
                field: "agent_id",
                message: message.to_owned(),
            }
        })
}

/// Makes a build the live one, for a build that the transaction has found to be the agent's.
pub(super) fn make_live(tx: &Connection, agent: AgentId, build: BuildId) -> Result<()> {
    tx.prepare_cached("UPDATE builds SET draft = 0 WHERE id = ?1")?
        .execute(params![Blob(build.as_uuid())])?;
    point_to(tx, agent, build)
}

/// Makes a build that is no draft the live one.
pub(super) fn point_to(tx: &Connection, agent: AgentId, build: BuildId) -> Result<()> {
    tx.prepare_cached("UPDATE agents SET live_build = ?2 WHERE id = ?1")?
        .execute(params![Blob(agent.as_uuid()), Blob(build.as_uuid())])?;
    Ok(())
}

fn revise(
    tx: &Connection,
    team: TeamId,
    build: BuildId,
    change: &BuildChange,
    new: &NewBuild,
    now: Timestamp,
) -> Result<Build> {
    let parent = changeable_build(tx, team, build)?;
    match parent.state {
        BuildState::Live => {}
        BuildState::Draft => check_not_replaced(tx, build)?,
        BuildState::Historic => {
            return Err(StoreError::Invalid {
                field: "config",
                message: format!(
                    "build {} is historic, and its config cannot be changed; change the live build, or create a build with \
                     POST /v1/agents/{}/revisions",
                    parent.number, parent.agent_id
                ),
            });
        }
    }
    let child = NewBuild {
        name: change.name.clone().unwrap_or(parent.name),
        description: change.description.clone().unwrap_or(parent.description),
        draft: parent.state == BuildState::Draft,
        ..new.clone()
    };
    let child = insert_build(tx, team, parent.agent_id, &child, Some(build), now)?;
    move_updated_at(tx, parent.agent_id, new.created_by, now)?;
    Ok(child)
}

/// Refuses a draft that has a child, and names the last draft of the chain.
pub(super) fn check_not_replaced(tx: &Connection, draft: BuildId) -> Result<()> {
    let mut last = None;
    let mut of = Blob(draft.as_uuid());
    for _ in 0..SUCCESSORS_MAX {
        let child = tx
            .prepare_cached(
                "SELECT id, number FROM builds WHERE parent_id = ?1 ORDER BY number DESC LIMIT 1",
            )?
            .query_row(params![of], |row| {
                Ok((row.get::<_, Blob>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()?;
        let Some((id, number)) = child else { break };
        of = id;
        last = Some((id, number));
    }
    match last {
        None => Ok(()),
        Some((id, number)) => Err(StoreError::Conflict(format!(
            "this draft was replaced by build {number}, {}; use that one",
            id.0
        ))),
    }
}
