//! Queries for the web pages: open requests, results by day and by agent, and transcripts with the engine's notes.
//!
//! # Guarantees
//!
//! Each operation is one read that uses an index; counts and totals of ended runs come from a single index. Runs that
//! have not ended are counted with their current state.
//!
//! # Non-goals
//!
//! Queries that the API needs too (runs, agents, deliveries): see the files of these aggregates.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use errand_core::human::Resolution;
use errand_core::id::{AgentId, RunId, TeamId, UserId};
use errand_core::run::Status;
use errand_core::time::Timestamp;
use errand_core::transcript::Entry;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::db::paging::{Fits, PageBounds};
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, json, word};
use crate::error::Result;
use crate::requests::inbox::OpenRequest;
use crate::runs::queries::{read_entry, to_entry};
use crate::runs::row::row_of;

/// Maximum bytes of stored text in one part of a transcript on a page.
const PART_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A day in milliseconds.
const DAY_MS: i64 = 86_400_000;

/// A human request that was closed.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedRequest {
    pub asked: OpenRequest,
    pub closed_at: Timestamp,
    pub resolution: Resolution,
    /// The person who closed it: an email address, or `API key` and the key's name.
    pub by: Option<String>,
}

/// Runs started on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DayFigures {
    /// Begin of the day in UTC.
    pub day: Timestamp,
    /// Now completed.
    pub completed: u64,
    /// Now failed.
    pub failed: u64,
    /// Now stopped.
    pub interrupted: u64,
    /// Not ended yet.
    pub open: u64,
    /// Cost of those that have ended, in US dollars.
    pub cost_usd: f64,
}

/// Runs of one agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentFigures {
    pub completed: u64,
    pub failed: u64,
    /// Stopped.
    pub interrupted: u64,
    /// Cost of those that have ended, in US dollars.
    pub cost_usd: f64,
    /// The newest run, regardless of its age.
    pub last: Option<LastRun>,
}

/// The newest run of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRun {
    pub run: RunId,
    pub status: Status,
    pub created_at: Timestamp,
}

/// A part of a transcript, including the engine's notes.
#[derive(Clone, Debug, PartialEq)]
pub struct TranscriptPart {
    /// In ascending order.
    pub entries: Vec<Entry>,
    /// Number of entries before this part.
    pub before: u64,
    /// Position of the run's last entry.
    pub last: u64,
    /// The part is empty because its first entry alone exceeds the limits.
    pub large: bool,
}

/// Selects a part of a transcript.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The newest entries.
    Newest,
    /// The entries right before a position.
    Before(u64),
    /// The entries after a position.
    After(u64),
}

impl Store {
    /// Number of the team's open human requests.
    pub async fn open_requests_count(&self, team: TeamId) -> Result<u64> {
        self.peek(move |conn| count_open(conn, team)).await
    }

    /// The team's most recently closed human requests, newest first.
    ///
    /// # Errors
    /// `Corrupt` if a request cannot be read.
    pub async fn closed_requests(&self, team: TeamId, limit: u32) -> Result<Vec<ClosedRequest>> {
        self.read_for(team, move |conn| select_closed(conn, team, limit))
            .await
    }

    /// Number of the team's runs by status.
    pub async fn runs_by_status(&self, team: TeamId) -> Result<HashMap<Status, u64>> {
        self.read_for(team, move |conn| {
            conn.prepare_cached(
                "SELECT status, count(*) FROM runs WHERE team_id = ?1 GROUP BY status",
            )?
            .query_and_then(params![Blob(team.as_uuid())], |row| {
                let status: String = row.get(0)?;
                Ok((
                    word("runs", "status", &status, Status::parse)?,
                    count(row.get(1)?),
                ))
            })?
            .collect()
        })
        .await
    }

    /// The team's runs from `since` on, by the day on which they were created, in order. Days without runs are left
    /// out.
    pub async fn figures_by_day(&self, team: TeamId, since: Timestamp) -> Result<Vec<DayFigures>> {
        self.read_for(team, move |conn| select_days(conn, team, since))
            .await
    }

    /// The runs of each of the team's agents from `since` on, and each agent's newest run.
    pub async fn figures_by_agent(
        &self,
        team: TeamId,
        since: Timestamp,
    ) -> Result<HashMap<AgentId, AgentFigures>> {
        self.read_for(team, move |conn| select_by_agent(conn, team, since))
            .await
    }

    /// Names of the team's agents, including deleted ones.
    pub async fn agent_names(
        &self,
        team: TeamId,
        agents: Vec<AgentId>,
    ) -> Result<HashMap<AgentId, String>> {
        self.read_for(team, move |conn| {
            let mut statement =
                conn.prepare_cached("SELECT name FROM agents WHERE id = ?1 AND team_id = ?2")?;
            let mut names = HashMap::new();
            for agent in agents {
                let ids = params![Blob(agent.as_uuid()), Blob(team.as_uuid())];
                if let Some(name) = statement.query_row(ids, |row| row.get(0)).optional()? {
                    names.insert(agent, name);
                }
            }
            Ok(names)
        })
        .await
    }

    /// Email addresses of users, including former members.
    pub async fn emails_of(&self, users: Vec<UserId>) -> Result<HashMap<UserId, String>> {
        self.read(move |conn| {
            let mut statement =
                conn.prepare_cached("SELECT email FROM users WHERE id = ?1 AND email IS NOT NULL")?;
            let mut emails = HashMap::new();
            for user in users {
                let id = params![Blob(user.as_uuid())];
                if let Some(email) = statement.query_row(id, |row| row.get(0)).optional()? {
                    emails.insert(user, email);
                }
            }
            Ok(emails)
        })
        .await
    }

    /// A part of a run's transcript: at most `limit` entries, and no more text than a page should hold.
    ///
    /// # Errors
    /// `NotFound`; [`StoreError::Corrupt`] if an entry cannot be read.
    pub async fn transcript(
        &self,
        team: TeamId,
        run: RunId,
        reach: Reach,
        limit: u32,
    ) -> Result<TranscriptPart> {
        let bounds = PageBounds {
            entries: limit,
            bytes: PART_BYTES_MAX,
            whole: true,
        };
        self.transcript_page(team, run, reach, bounds).await
    }

    /// A part of a run's transcript, within limits. It begins at the end that `reach` names.
    ///
    /// # Errors
    /// `NotFound`; [`StoreError::Corrupt`] if an entry cannot be read.
    pub async fn transcript_page(
        &self,
        team: TeamId,
        run: RunId,
        reach: Reach,
        bounds: PageBounds,
    ) -> Result<TranscriptPart> {
        self.read_for(team, move |conn| {
            select_part(conn, team, run, reach, bounds)
        })
        .await
    }
}

fn count_open(conn: &Connection, team: TeamId) -> Result<u64> {
    let open = conn
        .prepare_cached(
            "SELECT count(*) FROM human_requests WHERE team_id = ?1 AND closed_at IS NULL",
        )?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))?;
    Ok(count(open))
}

fn open_request(row: &Row<'_>) -> Result<OpenRequest> {
    let request: String = row.get(0)?;
    Ok(OpenRequest {
        run: RunId::from_stored(row.get::<_, Blob>(1)?.0),
        run_title: row.get(2)?,
        agent: AgentId::from_stored(row.get::<_, Blob>(3)?.0),
        agent_name: row.get(4)?,
        request: json("human_requests", "request", &request)?,
    })
}

fn select_closed(conn: &Connection, team: TeamId, limit: u32) -> Result<Vec<ClosedRequest>> {
    conn.prepare_cached(
        "SELECT h.request, r.id, r.title, a.id, a.name, h.closed_at, h.resolution,
             coalesce('API key ' || (SELECT name FROM named_api_keys WHERE id = h.responded_key), u.email)
         FROM human_requests h JOIN runs r ON r.id = h.run_id JOIN agents a ON a.id = r.agent_id
         LEFT JOIN users u ON u.id = h.responded_by
         WHERE h.team_id = ?1 AND h.closed_at IS NOT NULL
         ORDER BY h.closed_at DESC LIMIT ?2",
    )?
    .query_and_then(params![Blob(team.as_uuid()), limit], |row| {
        let resolution: Option<String> = row.get(6)?;
        Ok(ClosedRequest {
            asked: open_request(row)?,
            closed_at: row.get::<_, Ms>(5)?.0,
            resolution: json(
                "human_requests",
                "resolution",
                resolution.as_deref().unwrap_or_default(),
            )?,
            by: row.get(7)?,
        })
    })?
    .collect()
}

fn select_days(conn: &Connection, team: TeamId, since: Timestamp) -> Result<Vec<DayFigures>> {
    let mut days = std::collections::BTreeMap::<i64, DayFigures>::new();
    let mut add = |day: i64, status: &str, runs: u64, cost_usd: f64| {
        let of_day = days.entry(day).or_insert_with(|| DayFigures {
            day: Timestamp::from_millis(day.saturating_mul(DAY_MS)),
            ..DayFigures::default()
        });
        match status {
            "completed" => of_day.completed += runs,
            "failed" => of_day.failed += runs,
            "interrupted" => of_day.interrupted += runs,
            _ => of_day.open += runs,
        }
        of_day.cost_usd += cost_usd;
    };
    let mut ended = conn.prepare_cached(
        "SELECT created_at / ?3, status, count(*), sum(cost_usd) FROM runs
         WHERE team_id = ?1 AND created_at >= ?2 AND status IN ('completed', 'failed', 'interrupted')
         GROUP BY 1, 2",
    )?;
    let mut rows = ended.query(params![Blob(team.as_uuid()), Ms(since), DAY_MS])?;
    while let Some(row) = rows.next()? {
        let status: String = row.get(1)?;
        add(row.get(0)?, &status, count(row.get(2)?), row.get(3)?);
    }
    for status in ["pending", "starting", "running", "waiting"] {
        let mut open = conn.prepare_cached(
            "SELECT created_at / ?4, count(*) FROM runs
             WHERE team_id = ?1 AND status = ?2 AND created_at >= ?3 GROUP BY 1",
        )?;
        let mut rows = open.query(params![Blob(team.as_uuid()), status, Ms(since), DAY_MS])?;
        while let Some(row) = rows.next()? {
            add(row.get(0)?, status, count(row.get(1)?), 0.0);
        }
    }
    Ok(days.into_values().collect())
}

fn select_by_agent(
    conn: &Connection,
    team: TeamId,
    since: Timestamp,
) -> Result<HashMap<AgentId, AgentFigures>> {
    let mut figures = HashMap::<AgentId, AgentFigures>::new();
    let mut ended = conn.prepare_cached(
        "SELECT agent_id, status, count(*), sum(cost_usd) FROM runs
         WHERE team_id = ?1 AND created_at >= ?2 AND status IN ('completed', 'failed', 'interrupted')
         GROUP BY 1, 2",
    )?;
    let mut rows = ended.query(params![Blob(team.as_uuid()), Ms(since)])?;
    while let Some(row) = rows.next()? {
        let agent = AgentId::from_stored(row.get::<_, Blob>(0)?.0);
        let of_agent = figures.entry(agent).or_default();
        let runs = count(row.get(2)?);
        match row.get::<_, String>(1)?.as_str() {
            "completed" => of_agent.completed = runs,
            "failed" => of_agent.failed = runs,
            _ => of_agent.interrupted = runs,
        }
        of_agent.cost_usd += row.get::<_, f64>(3)?;
    }
    let mut newest = conn.prepare_cached(
        "SELECT a.id, r.id, r.status, r.created_at FROM agents a JOIN runs r ON r.id = (
             SELECT id FROM runs WHERE team_id = ?1 AND agent_id = a.id ORDER BY created_at DESC, id DESC LIMIT 1)
         WHERE a.team_id = ?1 AND a.deleted_at IS NULL",
    )?;
    let mut rows = newest.query(params![Blob(team.as_uuid())])?;
    while let Some(row) = rows.next()? {
        let agent = AgentId::from_stored(row.get::<_, Blob>(0)?.0);
        let status: String = row.get(2)?;
        figures.entry(agent).or_default().last = Some(LastRun {
            run: RunId::from_stored(row.get::<_, Blob>(1)?.0),
            status: word("runs", "status", &status, Status::parse)?,
            created_at: row.get::<_, Ms>(3)?.0,
        });
    }
    Ok(figures)
}

fn select_part(
    conn: &Connection,
    team: TeamId,
    run: RunId,
    reach: Reach,
    bounds: PageBounds,
) -> Result<TranscriptPart> {
    let limit = bounds.entries;
    let last = row_of(conn, team, run)?.position;
    let run = Blob(run.as_uuid());
    // Positions have no gaps, so a range of positions is a number of entries.
    let (first, end) = match reach {
        Reach::Newest => (last.saturating_sub(u64::from(limit)) + 1, last),
        Reach::Before(position) => {
            let end = position.saturating_sub(1).min(last);
            (end.saturating_sub(u64::from(limit)) + 1, end)
        }
        Reach::After(position) => (
            position.saturating_add(1),
            position.saturating_add(u64::from(limit)).min(last),
        ),
    };
    // Read from the end that the reader asked for, so that the other end is cut off when the bytes are used up.
    let newest_first = !matches!(reach, Reach::After(_));
    let mut select = conn.prepare_cached(if newest_first {
        "SELECT position, id, created_at, body, octet_length(body) FROM messages
         WHERE run_id = ?1 AND position BETWEEN ?2 AND ?3 ORDER BY position DESC"
    } else {
        "SELECT position, id, created_at, body, octet_length(body) FROM messages
         WHERE run_id = ?1 AND position BETWEEN ?2 AND ?3 ORDER BY position"
    })?;
    let mut rows = select.query(params![run, int(first), int(end)])?;
    let mut filling = bounds.filling();
    let mut entries = Vec::new();
    let mut large = false;
    while let Some(row) = rows.next()? {
        match filling.add(count(row.get(4)?)) {
            Fits::Yes => entries.push(to_entry(read_entry(row)?)?),
            Fits::No => break,
            Fits::Never => {
                large = true;
                break;
            }
        }
    }
    if newest_first {
        entries.reverse();
    }
    let first = entries.first().map_or(first, |entry| entry.position);
    Ok(TranscriptPart {
        entries,
        before: first.saturating_sub(1).min(last),
        last,
        large,
    })
}
