//! What a team's people are asked: the open human requests of all its runs.

use errand_core::human::HumanRequest;
use errand_core::id::{AgentId, RunId, TeamId};
use rusqlite::{Connection, Row, params};

use crate::error::Result;
use crate::model::{Page, PageQuery};
use crate::rows::{Blob, count, int, json};
use crate::sqlite::Store;

/// A request that waits for an answer, and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenRequest {
    /// The request.
    pub request: HumanRequest,
    /// Of which run.
    pub run: RunId,
    /// The run's title.
    pub run_title: Option<String>,
    /// Of which agent.
    pub agent: AgentId,
    /// The agent's name.
    pub agent_name: String,
}

/// What waits, found on the index of those that do.
macro_rules! waiting {
    () => {
        "FROM runs r INDEXED BY runs_by_status JOIN human_requests h ON h.id = r.request_id JOIN agents a ON a.id = r.agent_id
         WHERE r.team_id = ?1 AND r.status = 'waiting'"
    };
}

impl Store {
    /// A page of the team's open human requests, those that wait longest first.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] where one cannot be read.
    pub async fn open_requests(&self, team: TeamId, page: PageQuery) -> Result<Page<OpenRequest>> {
        self.read(move |conn| select_open(conn, team, page)).await
    }

    /// How many human requests of the team are open.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn count_open_requests(&self, team: TeamId) -> Result<u64> {
        self.peek(move |conn| how_many(conn, team)).await
    }
}

fn how_many(conn: &Connection, team: TeamId) -> Result<u64> {
    let open = conn
        .prepare_cached(concat!("SELECT count(*) ", waiting!()))?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))?;
    Ok(count(open))
}

fn select_open(conn: &Connection, team: TeamId, page: PageQuery) -> Result<Page<OpenRequest>> {
    let items = conn
        .prepare_cached(concat!(
            "SELECT h.request, r.id, r.title, r.agent_id, a.name ",
            waiting!(),
            " ORDER BY h.created_at, h.id LIMIT ?2 OFFSET ?3"
        ))?
        .query_and_then(
            params![Blob(team.as_uuid()), page.limit, int(page.offset)],
            open_request,
        )?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: how_many(conn, team)?,
    })
}

fn open_request(row: &Row<'_>) -> Result<OpenRequest> {
    let request: String = row.get(0)?;
    Ok(OpenRequest {
        request: json("human_requests", "request", &request)?,
        run: RunId::from_stored(row.get::<_, Blob>(1)?.0),
        run_title: row.get(2)?,
        agent: AgentId::from_stored(row.get::<_, Blob>(3)?.0),
        agent_name: row.get(4)?,
    })
}
