//! The build that a caller has checked. Only the caller can tell whether a build's model can be used, so it reads the
//! build, checks it, and names it in the operation. If another build is live by then, the operation changes nothing,
//! and the caller checks again.

use std::sync::Arc;

use errand_core::config::{BuildConfig, Left};
use errand_core::id::{AgentId, BuildId, RunId, TeamId};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::agents::live::live_build_of;
use crate::db::sqlite::Store;
use crate::db::types::Blob;
use crate::error::{Result, StoreError};
use crate::model::{BuildToCheck, CheckedBuild};
use crate::runs::row::row_of;

impl Store {
    /// The build that a new run of an agent would use.
    ///
    /// # Errors
    /// As for [`Store::start_run`].
    pub async fn live_build(&self, team: TeamId, agent: AgentId) -> Result<BuildToCheck> {
        let builds = self.builds();
        self.peek(move |conn| {
            let id = live_build_of(conn, team, agent)?;
            let config = builds
                .get(conn, id)?
                .map_err(|error| StoreError::Refused(error.to_string()))?;
            Ok(BuildToCheck { id, config })
        })
        .await
    }

    /// The build that a fork of a run would use: the given one, or that of the run.
    ///
    /// # Errors
    /// As for [`Store::fork`].
    pub async fn build_of_fork(
        &self,
        team: TeamId,
        run: RunId,
        build: Option<BuildId>,
    ) -> Result<BuildToCheck> {
        let builds = self.builds();
        self.peek(move |conn| {
            let row = row_of(conn, team, run)?;
            let id = build.unwrap_or(row.build);
            conn.prepare_cached("SELECT 1 FROM builds WHERE id = ?1 AND agent_id = ?2")?
                .exists(params![Blob(id.as_uuid()), Blob(row.agent.as_uuid())])?
                .then_some(())
                .ok_or(StoreError::NotFound)?;
            let config = builds
                .get(conn, id)?
                .map_err(|error| StoreError::Refused(error.to_string()))?;
            Ok(BuildToCheck { id, config })
        })
        .await
    }

    /// The build that a child run would use, limited to what remains of its caller's limits.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is no such assignment among the allowed ones; otherwise as for
    /// [`Store::start_run`].
    pub async fn build_of_child(
        &self,
        team: TeamId,
        assignment: String,
        allowed: Vec<AgentId>,
        left: Left,
    ) -> Result<BuildToCheck> {
        let builds = self.builds();
        self.peek(move |conn| {
            let agent = agent_named(conn, team, &assignment)?
                .filter(|agent| allowed.contains(agent))
                .ok_or(StoreError::NotFound)?;
            let id = live_build_of(conn, team, agent)?;
            let config = builds
                .get(conn, id)?
                .map_err(|error| StoreError::Refused(error.to_string()))?;
            Ok(BuildToCheck {
                id,
                config: limited(config, left),
            })
        })
        .await
    }
}

/// Compares the build that a new run will use with the one that the caller has checked. The inner error is the
/// problem that the caller found.
///
/// # Errors
/// [`StoreError::BuildChanged`] if the caller has checked another build, or none.
pub(crate) fn check_expected(
    expected: Option<&CheckedBuild>,
    build: BuildId,
) -> Result<std::result::Result<(), String>> {
    match expected {
        Some(checked) if checked.id == build => Ok(match &checked.problem {
            Some(problem) => Err(problem.clone()),
            None => Ok(()),
        }),
        _ => Err(StoreError::BuildChanged { build }),
    }
}

/// Restricts a build to what remains of its caller's limits.
pub(crate) fn limited(config: Arc<BuildConfig>, left: Left) -> Arc<BuildConfig> {
    if left == Left::default() {
        return config;
    }
    Arc::new(BuildConfig {
        limits: config.limits.clone().within(left),
        ..BuildConfig::clone(&config)
    })
}

/// The team's agent with this id or name. If several have the name, the oldest one.
pub(crate) fn agent_named(conn: &Connection, team: TeamId, text: &str) -> Result<Option<AgentId>> {
    let id = text.parse::<AgentId>().ok().map(|id| Blob(id.as_uuid()));
    let found = conn
        .prepare_cached(
            "SELECT id FROM agents WHERE team_id = ?1 AND deleted_at IS NULL AND (id = ?2 OR (?2 IS NULL AND name = ?3))
             ORDER BY created_at, id LIMIT 1",
        )?
        .query_row(params![Blob(team.as_uuid()), id, text], |row| {
            row.get::<_, Blob>(0)
        })
        .optional()?;
    Ok(found.map(|id| AgentId::from_stored(id.0)))
}

#[cfg(test)]
mod tests;
