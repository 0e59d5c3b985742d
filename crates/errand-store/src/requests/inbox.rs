//! The inbox of a team: the open human requests of all its runs, and the context needed to judge them.
//!
//! # Guarantees
//!
//! Each read is bounded, no matter how long a transcript is; see [`ASKED_BYTES_MAX`].

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

/// Maximum bytes of a transcript that are searched, backwards, for the newest user message.
const ASKED_BYTES_MAX: usize = 1024 * 1024;
/// Maximum number of entries that are searched for it.
const ASKED_ENTRIES_MAX: u32 = 500;
/// Prefix of the stored form of a user message.
const USER_BODY: &[u8] = br#"{"kind":"user""#;

/// An open human request with its run and agent.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenRequest {
    pub request: HumanRequest,
    pub run: RunId,
    pub run_title: Option<String>,
    pub agent: AgentId,
    pub agent_name: String,
}

/// An open or closed human request.
#[derive(Clone, Debug, PartialEq)]
pub enum FoundRequest {
    Open(OpenRequest),
    Closed(ClosedRequest),
}

impl FoundRequest {
    /// The request, open or closed.
    #[must_use]
    pub fn asked(&self) -> &OpenRequest {
        match self {
            Self::Open(open) => open,
            Self::Closed(closed) => &closed.asked,
        }
    }
}

/// The newest message of a run's user.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedFor {
    /// Body of the newest user message.
    pub body: Body,
    /// Position in the transcript.
    pub position: u64,
}

/// Query for open requests, answered from their partial index.
macro_rules! waiting {
    () => {
        "FROM runs r INDEXED BY runs_by_status JOIN human_requests h ON h.id = r.request_id JOIN agents a ON a.id = r.agent_id
         WHERE r.team_id = ?1 AND r.status = 'waiting'"
    };
}

impl Store {
    /// A page of the team's open human requests, oldest first.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] if a request cannot be read.
    pub async fn open_requests(&self, team: TeamId, page: PageQuery) -> Result<Page<OpenRequest>> {
        self.read_for(team, move |conn| select_open(conn, team, page))
            .await
    }

    /// The team's open human requests that were created after a time, oldest first.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] if a request cannot be read.
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

    /// Open and closed requests by id, in order of creation. Ids that the team does not have are left out.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] if a request cannot be read.
    pub async fn requests(
        &self,
        team: TeamId,
        ids: Vec<HumanRequestId>,
    ) -> Result<Vec<FoundRequest>> {
        self.read_for(team, move |conn| select_requests(conn, team, &ids))
            .await
    }

    /// The newest user message of each run. A run without one, or whose newest one is too far back, is left out.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] if an entry cannot be read.
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

    /// The pending requests of several runs.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] if a request cannot be read.
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

    /// Descriptions that MCP servers give of their tools, by the names under which the tools are offered.
    ///
    /// # Errors
    /// [`crate::StoreError::Corrupt`] if a connection's tools cannot be read.
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
