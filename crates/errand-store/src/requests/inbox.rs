//! What a team's people are asked: the open human requests of all its runs, and what a person needs to judge one.
//!
//! Guarantee: each read is bounded, however long a transcript is: see [`ASKED_BYTES_MAX`].

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use errand_core::connection::{ProbedTool, connection_of};
use errand_core::human::HumanRequest;
use errand_core::id::{AgentId, HumanRequestId, RunId, TeamId};
use errand_core::time::Timestamp;
use errand_core::transcript::Body;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, json};
use crate::error::Result;
use crate::model::{Page, PageQuery};
use crate::stats::dashboard::ClosedRequest;

/// How many bytes of a transcript are looked through, backwards, for its newest user's message.
const ASKED_BYTES_MAX: usize = 1024 * 1024;
/// How many entries are looked through for it.
const ASKED_ENTRIES_MAX: u32 = 500;
/// How the stored form of a user's message begins.
const USER_BODY: &[u8] = br#"{"kind":"user""#;

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

/// A request, waiting or closed.
#[derive(Clone, Debug, PartialEq)]
pub enum FoundRequest {
    /// It waits for an answer.
    Open(OpenRequest),
    /// It was closed.
    Closed(ClosedRequest),
}

impl FoundRequest {
    /// The request and where it comes from.
    #[must_use]
    pub fn asked(&self) -> &OpenRequest {
        match self {
            Self::Open(open) => open,
            Self::Closed(closed) => &closed.asked,
        }
    }
}

/// What the user of a run asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedFor {
    /// The body of the newest user's message.
    pub body: Body,
    /// Its place in the transcript.
    pub position: u64,
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
        self.read_for(team, move |conn| select_open(conn, team, page))
            .await
    }

    /// The team's open human requests that were made after a moment, oldest first.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] where one cannot be read.
    pub async fn open_requests_since(
        &self,
        team: TeamId,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<OpenRequest>> {
        self.read_for(team, move |conn| {
            conn.prepare_cached(concat!(
                "SELECT h.request, r.id, r.title, r.agent_id, a.name ",
                waiting!(),
                " AND h.created_at > ?2 ORDER BY h.created_at, h.id LIMIT ?3"
            ))?
            .query_and_then(
                params![Blob(team.as_uuid()), Ms(since), limit],
                open_request,
            )?
            .collect()
        })
        .await
    }

    /// Requests by their ids, waiting or closed, in the order in which they were made. Those that the team does not have
    /// are left out.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] where one cannot be read.
    pub async fn requests(
        &self,
        team: TeamId,
        ids: Vec<HumanRequestId>,
    ) -> Result<Vec<FoundRequest>> {
        self.read_for(team, move |conn| select_requests(conn, team, &ids))
            .await
    }

    /// The newest user's message of each run; none where it has none, or where it is too far back to be looked for.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] where one cannot be read.
    pub async fn asked_for(
        &self,
        team: TeamId,
        runs: Vec<RunId>,
    ) -> Result<HashMap<RunId, AskedFor>> {
        self.read_for(team, move |conn| {
            let mut all = HashMap::new();
            for run in runs {
                if let Some(asked) = select_asked_for(conn, team, run)? {
                    all.insert(run, asked);
                }
            }
            Ok(all)
        })
        .await
    }

    /// The pending requests of runs.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] where one cannot be read.
    pub async fn pending_of(
        &self,
        team: TeamId,
        runs: Vec<RunId>,
    ) -> Result<HashMap<RunId, HumanRequest>> {
        self.read_for(team, move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT request FROM human_requests WHERE run_id = ?1 AND team_id = ?2 AND closed_at IS NULL",
            )?;
            let mut all = HashMap::new();
            for run in runs {
                let ids = params![Blob(run.as_uuid()), Blob(team.as_uuid())];
                let request: Option<String> =
                    statement.query_row(ids, |row| row.get(0)).optional()?;
                if let Some(request) = request {
                    all.insert(run, json("human_requests", "request", &request)?);
                }
            }
            Ok(all)
        })
        .await
    }

    /// What the servers of connections say of their tools, by the names under which the tools are offered.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] where a connection's tools cannot be read.
    pub async fn tool_descriptions(
        &self,
        team: TeamId,
        tools: Vec<String>,
    ) -> Result<HashMap<String, String>> {
        self.read_for(team, move |conn| select_descriptions(conn, team, tools))
            .await
    }
}

fn select_requests(
    conn: &Connection,
    team: TeamId,
    ids: &[HumanRequestId],
) -> Result<Vec<FoundRequest>> {
    let mut statement = conn.prepare_cached(
        "SELECT h.request, r.id, r.title, a.id, a.name, h.closed_at, h.resolution,
             coalesce('API key ' || (SELECT name FROM named_api_keys WHERE id = h.responded_key), u.email)
         FROM human_requests h JOIN runs r ON r.id = h.run_id JOIN agents a ON a.id = r.agent_id
         LEFT JOIN users u ON u.id = h.responded_by
         WHERE h.id = ?1 AND h.team_id = ?2",
    )?;
    let mut all = Vec::new();
    for id in ids {
        let mut rows = statement.query(params![Blob(id.as_uuid()), Blob(team.as_uuid())])?;
        if let Some(row) = rows.next()? {
            all.push(found_request(row)?);
        }
    }
    all.sort_by_key(|found| {
        let request = &found.asked().request;
        (request.created_at, request.id)
    });
    Ok(all)
}

fn found_request(row: &Row<'_>) -> Result<FoundRequest> {
    let asked = open_request(row)?;
    let Some(Ms(closed_at)) = row.get::<_, Option<Ms>>(5)? else {
        return Ok(FoundRequest::Open(asked));
    };
    let resolution: Option<String> = row.get(6)?;
    Ok(FoundRequest::Closed(ClosedRequest {
        asked,
        closed_at,
        resolution: json(
            "human_requests",
            "resolution",
            resolution.as_deref().unwrap_or_default(),
        )?,
        by: row.get(7)?,
    }))
}

fn select_asked_for(conn: &Connection, team: TeamId, run: RunId) -> Result<Option<AskedFor>> {
    let mut statement = conn.prepare_cached(
        "SELECT m.body, m.position FROM messages m JOIN runs r ON r.id = m.run_id
         WHERE m.run_id = ?1 AND r.team_id = ?2 ORDER BY m.position DESC LIMIT ?3",
    )?;
    let mut rows = statement.query(params![
        Blob(run.as_uuid()),
        Blob(team.as_uuid()),
        ASKED_ENTRIES_MAX
    ])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let body = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        if body.as_bytes().starts_with(USER_BODY) {
            return Ok(Some(AskedFor {
                body: json("messages", "body", body)?,
                position: count(row.get(1)?),
            }));
        }
        bytes += body.len();
        if bytes > ASKED_BYTES_MAX {
            break;
        }
    }
    Ok(None)
}

fn select_descriptions(
    conn: &Connection,
    team: TeamId,
    tools: Vec<String>,
) -> Result<HashMap<String, String>> {
    let mut statement = conn.prepare_cached(
        "SELECT tools FROM connections WHERE team_id = ?1 AND name = ?2 AND deleted_at IS NULL",
    )?;
    let mut probed: HashMap<String, Vec<ProbedTool>> = HashMap::new();
    let mut all = HashMap::new();
    for tool in tools {
        let Some(connection) = connection_of(&tool) else {
            continue;
        };
        if !probed.contains_key(connection) {
            let stored: Option<Option<String>> = statement
                .query_row(params![Blob(team.as_uuid()), connection], |row| row.get(0))
                .optional()?;
            let stored = match stored.flatten() {
                Some(stored) => json("connections", "tools", &stored)?,
                None => Vec::new(),
            };
            probed.insert(connection.to_owned(), stored);
        }
        let found = probed
            .get(connection)
            .and_then(|tools| tools.iter().find(|one| one.name == tool));
        if let Some(found) = found.filter(|found| !found.description.trim().is_empty()) {
            all.insert(tool, found.description.clone());
        }
    }
    Ok(all)
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
