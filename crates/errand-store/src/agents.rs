//! Agents and their builds.
//!
//! # Guarantees
//!
//! The builds of an agent are numbered from 1 without gaps; the INSERT assigns the number. The `config` of a build
//! never changes. A deleted agent is not found, but its builds can still be read by id, for the runs that use them.
//! [`live`] decides which build new runs use.
//!
//! # Non-goals
//!
//! Validating a `config` (`errand_core::config` does that before), and limits on names.

pub(crate) mod builds;
pub(crate) mod live;
#[cfg(test)]
mod tests;

use errand_core::id::{AgentId, BuildId, TeamId, UserId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, json, to_json};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{
    Agent, AgentRow, Build, BuildState, NewAgent, NewBuild, Page, PageQuery, Person,
};

/// A change of a build: its texts, and whether it becomes live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildChange {
    /// A new name.
    pub name: Option<String>,
    /// A new description; `Some(None)` removes it.
    pub description: Option<Option<String>>,
    /// Whether it becomes the live build, if it is not.
    pub promote: bool,
}

/// The id of the live build of `agents a`: the build that was last made live, or, for agents older than drafts, the
/// newest one.
macro_rules! live_build {
    () => {
        "coalesce(a.live_build, (SELECT n.id FROM builds n WHERE n.agent_id = a.id AND n.draft = 0 ORDER BY n.number DESC LIMIT 1))"
    };
}
pub(crate) use live_build;

/// The columns that [`build_at`] reads, from `builds b` with its `agents a`.
macro_rules! build_columns {
    () => {
        concat!(
            "b.id, b.agent_id, b.number, b.name, b.description, b.config, b.created_by, b.created_at,
             (SELECT email FROM users WHERE id = b.created_by), b.draft, b.id = ",
            live_build!(),
            ", b.parent_id, coalesce(b.updated_at, b.created_at)"
        )
    };
}

/// The columns that [`agent_at`] reads, from `agents a`.
macro_rules! agent_columns {
    () => {
        "a.id, a.name, a.created_at, a.updated_at, a.team_id, a.created_by, (SELECT email FROM users WHERE id = a.created_by),
         coalesce(a.updated_by, a.created_by), (SELECT email FROM users WHERE id = coalesce(a.updated_by, a.created_by))"
    };
}

/// Number of columns in [`agent_columns`].
const AGENT_COLUMNS: usize = 9;

/// Agents that are not deleted, each with its live build.
macro_rules! agents_with_builds {
    ($rest:literal) => {
        concat!(
            "SELECT ",
            agent_columns!(),
            ", ",
            build_columns!(),
            " FROM agents a LEFT JOIN builds b ON b.id = ",
            live_build!(),
            " WHERE a.team_id = ?1 AND a.deleted_at IS NULL ",
            $rest
        )
    };
}

impl Store {
    /// A page of the team's agents, newest first, each with its live build.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a build's config cannot be read.
    pub async fn list_agents(
        &self,
        team: TeamId,
        page: PageQuery,
    ) -> Result<Page<(Agent, Option<Build>)>> {
        self.read_for(team, move |conn| select_agents(conn, team, page))
            .await
    }

    /// A page of the team's agents, newest first, each with its newest build and the time of its newest run.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a build's config cannot be read.
    pub async fn list_agent_rows(&self, team: TeamId, page: PageQuery) -> Result<Page<AgentRow>> {
        self.read_for(team, move |conn| select_agent_rows(conn, team, page))
            .await
    }

    /// An agent and its live build.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if it is deleted; [`StoreError::Corrupt`].
    pub async fn agent(&self, team: TeamId, agent: AgentId) -> Result<(Agent, Option<Build>)> {
        self.read_for(team, move |conn| select_agent(conn, team, agent))
            .await
    }

    /// Creates an agent, with its first build if one is given.
    pub async fn create_agent(
        &self,
        new: NewAgent,
        recorded: Idempotent<(Agent, Option<Build>)>,
    ) -> Result<Outcome<(Agent, Option<Build>)>> {
        self.write(move |tx| idempotent(tx, &recorded, new.now, || insert_agent(tx, &new)))
            .await
    }

    /// Renames an agent.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn rename_agent(
        &self,
        team: TeamId,
        agent: AgentId,
        name: String,
        (by, now): (UserId, Timestamp),
        recorded: Idempotent<(Agent, Option<Build>)>,
    ) -> Result<Outcome<(Agent, Option<Build>)>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                update_name(tx, team, agent, &name)?;
                move_updated_at(tx, agent, by, now)?;
                select_agent(tx, team, agent)
            })
        })
        .await
    }

    /// Deletes an agent, which is then not found any more. Its runs continue, with their builds.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_agent(
        &self,
        team: TeamId,
        agent: AgentId,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || update_deleted(tx, team, agent, now))
        })
        .await
    }

    /// A page of an agent's builds, newest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown agent; [`StoreError::Corrupt`].
    pub async fn list_builds(
        &self,
        team: TeamId,
        agent: AgentId,
        page: PageQuery,
    ) -> Result<Page<Build>> {
        self.read_for(team, move |conn| select_builds(conn, team, agent, page))
            .await
    }

    /// A build, even if its agent is deleted.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`].
    pub async fn build(&self, team: TeamId, build: BuildId) -> Result<Build> {
        self.read_for(team, move |conn| select_build(conn, team, build))
            .await
    }

    /// Adds a build to an agent, with the next number. New runs use it, unless it is a draft.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown agent.
    pub async fn create_build(
        &self,
        team: TeamId,
        agent: AgentId,
        new: NewBuild,
        now: Timestamp,
        recorded: Idempotent<Build>,
    ) -> Result<Outcome<Build>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                let build = insert_build(tx, team, agent, &new, None, now)?;
                move_updated_at(tx, agent, new.created_by, now)?;
                Ok(build)
            })
        })
        .await
    }

    /// The agents among these ids that the team has. Deleted agents do not count.
    pub async fn agents_among(&self, team: TeamId, ids: Vec<AgentId>) -> Result<Vec<AgentId>> {
        self.peek(move |conn| {
            let mut there = Vec::new();
            let mut select = conn.prepare_cached(
                "SELECT 1 FROM agents WHERE id = ?1 AND team_id = ?2 AND deleted_at IS NULL",
            )?;
            for id in &ids {
                if select.exists(params![Blob(id.as_uuid()), Blob(team.as_uuid())])? {
                    there.push(*id);
                }
            }
            Ok(there)
        })
        .await
    }

    /// Changes a build's name and description, and makes it the live one if `change` promotes it. Writes nothing if
    /// nothing changes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also if its agent is deleted; `Conflict` if a draft that was replaced is promoted;
    /// [`StoreError::Corrupt`].
    pub async fn update_build(
        &self,
        team: TeamId,
        build: BuildId,
        change: BuildChange,
        (by, now): (UserId, Timestamp),
        recorded: Idempotent<Build>,
    ) -> Result<Outcome<Build>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                change_build(tx, team, build, &change, (by, now))
            })
        })
        .await
    }
}

fn count_agents(conn: &Connection, team: TeamId) -> Result<u64> {
    let total = conn
        .prepare_cached("SELECT count(*) FROM agents WHERE team_id = ?1 AND deleted_at IS NULL")?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))?;
    Ok(count(total))
}

fn select_agents(
    conn: &Connection,
    team: TeamId,
    page: PageQuery,
) -> Result<Page<(Agent, Option<Build>)>> {
    let items = conn
        .prepare_cached(agents_with_builds!(
            "ORDER BY a.created_at DESC, a.id DESC LIMIT ?2 OFFSET ?3"
        ))?
        .query_and_then(
            params![Blob(team.as_uuid()), page.limit, int(page.offset)],
            agent_row,
        )?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: count_agents(conn, team)?,
    })
}

fn select_agent_rows(conn: &Connection, team: TeamId, page: PageQuery) -> Result<Page<AgentRow>> {
    let items = conn
        .prepare_cached(concat!(
            "SELECT ",
            agent_columns!(),
            ", ",
            build_columns!(),
            ", (SELECT max(created_at) FROM runs r WHERE r.team_id = a.team_id AND r.agent_id = a.id)
              FROM agents a LEFT JOIN builds b
                  ON b.agent_id = a.id AND b.number = (SELECT max(number) FROM builds WHERE agent_id = a.id)
              WHERE a.team_id = ?1 AND a.deleted_at IS NULL ORDER BY a.created_at DESC, a.id DESC LIMIT ?2 OFFSET ?3"
        ))?
        .query_and_then(
            params![Blob(team.as_uuid()), page.limit, int(page.offset)],
            |row| {
                let (agent, latest) = agent_row(row)?;
                let last_run_at = row
                    .get::<_, Option<Ms>>(AGENT_COLUMNS + BUILD_COLUMNS)?
                    .map(|ms| ms.0);
                Ok(AgentRow {
                    agent,
                    latest,
                    last_run_at,
                })
            },
        )?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: count_agents(conn, team)?,
    })
}

fn select_agent(conn: &Connection, team: TeamId, agent: AgentId) -> Result<(Agent, Option<Build>)> {
    conn.prepare_cached(agents_with_builds!("AND a.id = ?2"))?
        .query_and_then(
            params![Blob(team.as_uuid()), Blob(agent.as_uuid())],
            agent_row,
        )?
        .next()
        .unwrap_or(Err(StoreError::NotFound))
}

fn agent_row(row: &Row<'_>) -> Result<(Agent, Option<Build>)> {
    let person = |at: usize| -> Result<Option<Person>> {
        let id = row.get::<_, Option<Blob>>(at)?;
        let email = row.get(at + 1)?;
        Ok(id.map(|id| Person {
            id: UserId::from_stored(id.0),
            email,
        }))
    };
    let agent = Agent {
        id: AgentId::from_stored(row.get::<_, Blob>(0)?.0),
        name: row.get(1)?,
        created_at: row.get::<_, Ms>(2)?.0,
        updated_at: row.get::<_, Ms>(3)?.0,
        team_id: TeamId::from_stored(row.get::<_, Blob>(4)?.0),
        created_by: person(5)?,
        updated_by: person(7)?,
    };
    let has_build = row.get::<_, Option<Blob>>(AGENT_COLUMNS)?.is_some();
    Ok((
        agent,
        has_build
            .then(|| build_at(row, AGENT_COLUMNS))
            .transpose()?,
    ))
}

/// Number of columns in [`build_columns`].
const BUILD_COLUMNS: usize = 13;

/// Reads the build whose columns begin at index `at`.
fn build_at(row: &Row<'_>, at: usize) -> Result<Build> {
    let config = row
        .get_ref(at + 5)?
        .as_str()
        .map_err(rusqlite::Error::from)?;
    let state = match (row.get(at + 9)?, row.get::<_, Option<bool>>(at + 10)?) {
        (true, _) => BuildState::Draft,
        (false, Some(true)) => BuildState::Live,
        (false, _) => BuildState::Historic,
    };
    Ok(Build {
        id: BuildId::from_stored(row.get::<_, Blob>(at)?.0),
        agent_id: AgentId::from_stored(row.get::<_, Blob>(at + 1)?.0),
        number: count(row.get(at + 2)?),
        name: row.get(at + 3)?,
        description: row.get(at + 4)?,
        config: json("builds", "config", config)?,
        created_by: row
            .get::<_, Option<Blob>>(at + 6)?
            .map(|id| UserId::from_stored(id.0)),
        created_at: row.get::<_, Ms>(at + 7)?.0,
        created_by_name: row.get(at + 8)?,
        state,
        parent: row
            .get::<_, Option<Blob>>(at + 11)?
            .map(|id| BuildId::from_stored(id.0)),
        updated_at: row.get::<_, Ms>(at + 12)?.0,
        warnings: Vec::new(),
    })
}

fn insert_agent(tx: &Connection, new: &NewAgent) -> Result<(Agent, Option<Build>)> {
    tx.prepare_cached(
        "INSERT INTO agents (id, team_id, name, created_at, updated_at, created_by) VALUES (?1, ?2, ?3, ?4, ?4, ?5)",
    )?
    .execute(params![
        Blob(new.id.as_uuid()),
        Blob(new.team.as_uuid()),
        new.name,
        Ms(new.now),
        Blob(new.created_by.as_uuid())
    ])?;
    let build = new
        .build
        .as_ref()
        .map(|build| insert_build(tx, new.team, new.id, build, None, new.now))
        .transpose()?;
    let (agent, _) = select_agent(tx, new.team, new.id)?;
    Ok((agent, build))
}

/// Inserts a build, and makes it live unless it is a draft.
fn insert_build(
    tx: &Connection,
    team: TeamId,
    agent: AgentId,
    new: &NewBuild,
    parent: Option<BuildId>,
    now: Timestamp,
) -> Result<Build> {
    let inserted = tx
        .prepare_cached(
            "INSERT INTO builds (id, team_id, agent_id, number, name, description, config, created_by, created_at, draft, parent_id)
             SELECT ?1, a.team_id, a.id, (SELECT coalesce(max(number), 0) + 1 FROM builds WHERE agent_id = a.id),
                    ?4, ?5, ?6, ?7, ?8, ?9, ?10
             FROM agents a WHERE a.id = ?2 AND a.team_id = ?3 AND a.deleted_at IS NULL",
        )?
        .execute(params![
            Blob(new.id.as_uuid()),
            Blob(agent.as_uuid()),
            Blob(team.as_uuid()),
            new.name,
            new.description,
            to_json("builds", "config", &new.config)?,
            Blob(new.created_by.as_uuid()),
            Ms(now),
            new.draft,
            parent.map(|parent| Blob(parent.as_uuid())),
        ])?;
    if inserted == 0 {
        return Err(StoreError::NotFound);
    }
    if !new.draft {
        live::point_to(tx, agent, new.id)?;
    }
    let build = select_build(tx, team, new.id)?;
    Ok(Build {
        warnings: new.warnings.clone(),
        ..build
    })
}

/// Records a change of an agent. The transaction has already checked that it belongs to the team.
fn move_updated_at(tx: &Connection, agent: AgentId, by: UserId, now: Timestamp) -> Result<()> {
    tx.prepare_cached("UPDATE agents SET updated_at = ?2, updated_by = ?3 WHERE id = ?1")?
        .execute(params![Blob(agent.as_uuid()), Ms(now), Blob(by.as_uuid())])?;
    Ok(())
}

fn update_name(tx: &Connection, team: TeamId, agent: AgentId, name: &str) -> Result<()> {
    let changed = tx
        .prepare_cached(
            "UPDATE agents SET name = ?3 WHERE id = ?2 AND team_id = ?1 AND deleted_at IS NULL",
        )?
        .execute(params![Blob(team.as_uuid()), Blob(agent.as_uuid()), name])?;
    if changed == 0 {
        Err(StoreError::NotFound)
    } else {
        Ok(())
    }
}

fn update_deleted(tx: &Connection, team: TeamId, agent: AgentId, now: Timestamp) -> Result<()> {
    let changed = tx
        .prepare_cached("UPDATE agents SET deleted_at = ?3 WHERE id = ?2 AND team_id = ?1 AND deleted_at IS NULL")?
        .execute(params![Blob(team.as_uuid()), Blob(agent.as_uuid()), Ms(now)])?;
    if changed == 0 {
        Err(StoreError::NotFound)
    } else {
        Ok(())
    }
}

fn select_builds(
    conn: &Connection,
    team: TeamId,
    agent: AgentId,
    page: PageQuery,
) -> Result<Page<Build>> {
    let total = conn
        .prepare_cached(
            "SELECT (SELECT count(*) FROM builds WHERE agent_id = a.id) FROM agents a
             WHERE a.id = ?2 AND a.team_id = ?1 AND a.deleted_at IS NULL",
        )?
        .query_row(
            params![Blob(team.as_uuid()), Blob(agent.as_uuid())],
            |row| row.get(0),
        )
        .optional()?
        .ok_or(StoreError::NotFound)?;
    let items = conn
        .prepare_cached(concat!(
            "SELECT ",
            build_columns!(),
            " FROM builds b JOIN agents a ON a.id = b.agent_id
              WHERE b.agent_id = ?2 AND b.team_id = ?1 ORDER BY b.number DESC LIMIT ?3 OFFSET ?4"
        ))?
        .query_and_then(
            params![
                Blob(team.as_uuid()),
                Blob(agent.as_uuid()),
                page.limit,
                int(page.offset)
            ],
            |row| build_at(row, 0),
        )?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: count(total),
    })
}

fn select_build(conn: &Connection, team: TeamId, build: BuildId) -> Result<Build> {
    conn.prepare_cached(concat!(
        "SELECT ",
        build_columns!(),
        " FROM builds b JOIN agents a ON a.id = b.agent_id WHERE b.id = ?2 AND b.team_id = ?1"
    ))?
    .query_and_then(
        params![Blob(team.as_uuid()), Blob(build.as_uuid())],
        |row| build_at(row, 0),
    )?
    .next()
    .unwrap_or(Err(StoreError::NotFound))
}

/// A build whose agent is not deleted.
fn changeable_build(tx: &Connection, team: TeamId, build: BuildId) -> Result<Build> {
    let there = tx
        .prepare_cached(
            "SELECT 1 FROM builds b JOIN agents a ON a.id = b.agent_id AND a.deleted_at IS NULL
             WHERE b.id = ?2 AND b.team_id = ?1",
        )?
        .exists(params![Blob(team.as_uuid()), Blob(build.as_uuid())])?;
    if there {
        select_build(tx, team, build)
    } else {
        Err(StoreError::NotFound)
    }
}

fn change_build(
    tx: &Connection,
    team: TeamId,
    build: BuildId,
    change: &BuildChange,
    (by, now): (UserId, Timestamp),
) -> Result<Build> {
    let old = changeable_build(tx, team, build)?;
    let becomes_live = change.promote && old.state != BuildState::Live;
    if change.promote && old.state == BuildState::Draft {
        live::check_not_replaced(tx, build)?;
    }
    if !becomes_live && change.name.is_none() && change.description.is_none() {
        return Ok(old);
    }
    update_texts(tx, team, build, change, now)?;
    if becomes_live {
        live::make_live(tx, old.agent_id, build)?;
    }
    // An agent includes its live build, so a change of that build is a change of the agent.
    if becomes_live || old.state == BuildState::Live {
        move_updated_at(tx, old.agent_id, by, now)?;
    }
    select_build(tx, team, build)
}

fn update_texts(
    tx: &Connection,
    team: TeamId,
    build: BuildId,
    change: &BuildChange,
    now: Timestamp,
) -> Result<()> {
    tx.prepare_cached(
        "UPDATE builds SET name = coalesce(?3, name), description = CASE WHEN ?4 THEN ?5 ELSE description END, updated_at = ?6
         WHERE id = ?2 AND team_id = ?1",
    )?
    .execute(params![
        Blob(team.as_uuid()),
        Blob(build.as_uuid()),
        change.name,
        change.description.is_some(),
        change.description.as_ref().and_then(Option::as_ref),
        Ms(now),
    ])?;
    Ok(())
}
