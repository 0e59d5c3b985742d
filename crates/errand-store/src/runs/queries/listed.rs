//! Runs in lists: with the agent's name, the run's number among the agent's runs, and the person who started it.

use std::collections::HashMap;

use errand_core::author::AuthorKind;
use errand_core::id::{AgentId, RunId, TeamId, UserId};
use errand_core::wire::RunBody;
use rusqlite::{Connection, params};

use super::list;
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count};
use crate::error::Result;
use crate::model::{ListedRun, Page, PageQuery, RunFilter};

impl Store {
    /// A page of a team's runs with the additional columns of lists, newest first unless the filter says otherwise.
    pub async fn list_run_rows(
        &self,
        team: TeamId,
        filter: RunFilter,
        page: PageQuery,
    ) -> Result<Page<ListedRun>> {
        self.read_for(team, move |conn| {
            let Page { items, total } = list(conn, team, &filter, page)?;
            let items = listed(conn, team, items)?;
            Ok(Page { items, total })
        })
        .await
    }
}

fn listed(conn: &Connection, team: TeamId, runs: Vec<RunBody>) -> Result<Vec<ListedRun>> {
    let mut names: HashMap<AgentId, String> = HashMap::new();
    let numbers = numbers(conn, team, &runs)?;
    runs.into_iter()
        .map(|run| {
            let agent = AgentId::from_stored(run.agent_id);
            let agent_name = match names.get(&agent) {
                Some(name) => name.clone(),
                None => {
                    let name: String = conn
                        .prepare_cached("SELECT name FROM agents WHERE id = ?1")?
                        .query_row(params![Blob(agent.as_uuid())], |row| row.get(0))?;
                    names.insert(agent, name.clone());
                    name
                }
            };
            Ok(ListedRun {
                number: numbers
                    .get(&RunId::from_stored(run.id))
                    .copied()
                    .unwrap_or_default(),
                user: user_of(&run),
                agent_name,
                run,
            })
        })
        .collect()
}

/// The person who is accountable for starting a run.
fn user_of(run: &RunBody) -> Option<UserId> {
    let author = run.author.as_ref()?;
    let user = match author.kind {
        AuthorKind::User => author.id,
        AuthorKind::ApiKey => author.created_by,
        AuthorKind::System => None,
    };
    user.map(UserId::from_stored)
}

/// The number of each run among the runs of its agent, from 1 in order of creation. Counted from a covering index,
/// once per agent, so that starting a run writes nothing extra for this.
fn numbers(conn: &Connection, team: TeamId, runs: &[RunBody]) -> Result<HashMap<RunId, u64>> {
    let mut ordered: Vec<&RunBody> = runs.iter().collect();
    ordered.sort_unstable_by_key(|run| (run.agent_id, run.created_at, run.id));
    let mut statement = conn.prepare_cached(
        "SELECT count(*) FROM runs INDEXED BY runs_by_agent
         WHERE team_id = ?1 AND agent_id = ?2 AND (created_at, id) > (?3, ?4) AND (created_at, id) <= (?5, ?6)",
    )?;
    let mut numbers = HashMap::with_capacity(runs.len());
    // The previous run of the same agent, and its number.
    let mut last: Option<(&RunBody, u64)> = None;
    for run in ordered {
        let before = last.filter(|(before, _)| before.agent_id == run.agent_id);
        let (from_at, from_id, number) = match before {
            Some((before, number)) => (
                before.created_at.as_millis(),
                before.id.as_bytes().to_vec(),
                number,
            ),
            None => (i64::MIN, Vec::new(), 0),
        };
        let more: i64 = statement.query_row(
            params![
                Blob(team.as_uuid()),
                Blob(run.agent_id),
                from_at,
                from_id,
                Ms(run.created_at),
                Blob(run.id)
            ],
            |row| row.get(0),
        )?;
        let number = number + count(more);
        numbers.insert(RunId::from_stored(run.id), number);
        last = Some((run, number));
    }
    Ok(numbers)
}
