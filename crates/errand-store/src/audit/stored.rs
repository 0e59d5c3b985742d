//! Everything stored about one run, read at once for the audit.

use std::collections::BTreeMap;

use errand_core::human::{HumanRequest, Resolution};
use errand_core::id::{ApiKeyId, BootId, HumanRequestId, MessageId, RunId, SandboxId, UserId};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::db::types::{Blob, Ms, count, json};
use crate::error::{Result, StoreError};
use crate::runs::row::{COLUMNS, RunRow, read_row};

/// A run with all its rows.
pub(super) struct Stored {
    pub(super) row: RunRow,
    pub(super) boot: BootId,
    pub(super) now: Timestamp,
    pub(super) lines: Vec<Line>,
    pub(super) events: Vec<EventLine>,
    /// Rows of the requests that the transcript or the run's row mentions, or that are open.
    pub(super) requests: BTreeMap<HumanRequestId, RequestLine>,
    pub(super) deliveries: Vec<DeliveryLine>,
    pub(super) sandbox: Option<SandboxLine>,
    /// Whether agent and build belong to the run's team, and the build to the agent.
    pub(super) is_of_one_team: bool,
}

/// A row of `messages`.
pub(super) struct Line {
    pub(super) position: u64,
    pub(super) shown: Option<u64>,
    pub(super) id: MessageId,
    pub(super) at: Timestamp,
    /// The error is a sentence that says why it cannot be read.
    pub(super) body: std::result::Result<Body, String>,
}

/// A row of `events`.
pub(super) struct EventLine {
    pub(super) sequence: u64,
    pub(super) kind: String,
    pub(super) position: Option<u64>,
    /// The status in a `run.updated` event.
    pub(super) status: Option<String>,
    pub(super) is_of_team: bool,
}

/// A row of `human_requests`.
pub(super) struct RequestLine {
    pub(super) is_of_run: bool,
    /// The error is a sentence that says why it cannot be read.
    pub(super) request: std::result::Result<HumanRequest, String>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) is_open: bool,
    pub(super) resolution: Option<std::result::Result<Resolution, String>>,
    pub(super) by: Option<UserId>,
    pub(super) key: Option<ApiKeyId>,
}

/// A row of `deliveries`, and the numbers of its attempts.
pub(super) struct DeliveryLine {
    pub(super) event: String,
    pub(super) sequence: u64,
    pub(super) url: String,
    pub(super) state: String,
    pub(super) attempts: u64,
    pub(super) is_due: bool,
    pub(super) recorded: Vec<u64>,
    /// The webhook that it goes to. `None`: it goes to the run's own address.
    pub(super) webhook: Option<uuid::Uuid>,
    /// Whether it and its webhook belong to the run's team.
    pub(super) is_of_team: bool,
}

/// The run's row of `sandboxes`.
pub(super) struct SandboxLine {
    pub(super) owner: Option<RunId>,
    pub(super) is_deleted: bool,
    pub(super) expires_at: Timestamp,
    pub(super) is_of_team: bool,
}

impl Stored {
    /// Reads a run with all its rows.
    ///
    /// # Errors
    /// `NotFound`; errors for which [`is_of_a_row`] is true, if a row cannot be read.
    pub(super) fn read(
        conn: &Connection,
        run: RunId,
        boot: BootId,
        now: Timestamp,
    ) -> Result<Self> {
        let row = conn
            .prepare_cached(&format!("SELECT {COLUMNS} FROM runs WHERE id = ?1"))?
            .query_row(params![Blob(run.as_uuid())], read_row)
            .optional()?
            .ok_or(StoreError::NotFound)??;
        let lines = lines(conn, run)?;
        let requests = requests(conn, &row, &lines)?;
        let sandbox = match &row.sandbox {
            Some(id) => sandbox(conn, &row, id)?,
            None => None,
        };
        Ok(Self {
            events: events(conn, &row)?,
            deliveries: deliveries(conn, &row)?,
            is_of_one_team: is_of_one_team(conn, &row)?,
            requests,
            sandbox,
            lines,
            row,
            boot,
            now,
        })
    }

    /// The transcript. `None` if an entry cannot be read.
    pub(super) fn entries(&self) -> Option<Vec<Entry>> {
        let entry = |line: &Line| {
            Some(Entry {
                position: line.position,
                id: line.id,
                at: line.at,
                body: line.body.clone().ok()?,
            })
        };
        self.lines.iter().map(entry).collect()
    }

    /// Ids of the open requests.
    pub(super) fn open_requests(&self) -> Vec<HumanRequestId> {
        let open = self
            .requests
            .iter()
            .filter(|(_, line)| line.is_open && line.is_of_run);
        open.map(|(id, _)| *id).collect()
    }
}

/// Whether the error concerns a single row and not the database.
pub(super) fn is_of_a_row(error: &StoreError) -> bool {
    use rusqlite::Error;
    match error {
        StoreError::Corrupt { .. } => true,
        StoreError::Sql(error) => matches!(
            error,
            Error::FromSqlConversionFailure(..)
                | Error::InvalidColumnType(..)
                | Error::IntegralValueOutOfRange(..)
                | Error::Utf8Error(..)
        ),
        _ => false,
    }
}

fn told<T>(read: Result<T>) -> std::result::Result<T, String> {
    read.map_err(|error: StoreError| error.to_string())
}

fn lines(conn: &Connection, run: RunId) -> Result<Vec<Line>> {
    let lines = conn
        .prepare_cached(
            "SELECT position, shown, id, created_at, body FROM messages WHERE run_id = ?1 ORDER BY position",
        )?
        .query_map(params![Blob(run.as_uuid())], |row| {
            let body: String = row.get(4)?;
            Ok(Line {
                position: count(row.get(0)?),
                shown: row.get::<_, Option<i64>>(1)?.map(count),
                id: MessageId::from_stored(row.get::<_, Blob>(2)?.0),
                at: row.get::<_, Ms>(3)?.0,
                body: told(json("messages", "body", &body)),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(lines)
}

fn events(conn: &Connection, run: &RunRow) -> Result<Vec<EventLine>> {
    let events = conn
        .prepare_cached(
            "SELECT sequence, kind, position,
                 CASE WHEN kind = 'run.updated' AND json_valid(data) THEN json_extract(data, '$.status') END, team_id
             FROM events WHERE run_id = ?1 ORDER BY sequence",
        )?
        .query_map(params![Blob(run.id.as_uuid())], |row| {
            Ok(EventLine {
                sequence: count(row.get(0)?),
                kind: row.get(1)?,
                position: row.get::<_, Option<i64>>(2)?.map(count),
                status: row.get(3)?,
                is_of_team: row.get::<_, Blob>(4)?.0 == run.team.as_uuid(),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(events)
}

fn requests(
    conn: &Connection,
    run: &RunRow,
    lines: &[Line],
) -> Result<BTreeMap<HumanRequestId, RequestLine>> {
    let mut ids: Vec<HumanRequestId> = run.request.into_iter().collect();
    ids.extend(lines.iter().filter_map(|line| match &line.body {
        Ok(Body::HumanRequest { request, .. }) => Some(request.id),
        _ => None,
    }));
    let open = conn
        .prepare_cached("SELECT id FROM human_requests WHERE run_id = ?1 AND closed_at IS NULL")?
        .query_map(params![Blob(run.id.as_uuid())], |row| row.get::<_, Blob>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    ids.extend(open.iter().map(|id| HumanRequestId::from_stored(id.0)));
    let mut statement = conn.prepare_cached(
        "SELECT run_id, request, expires_at, closed_at IS NULL, resolution, responded_by, responded_key FROM human_requests WHERE id = ?1",
    )?;
    let mut found = BTreeMap::new();
    for id in ids {
        let line = statement
            .query_row(params![Blob(id.as_uuid())], |row| {
                let request: String = row.get(1)?;
                let resolution: Option<String> = row.get(4)?;
                Ok(RequestLine {
                    is_of_run: row.get::<_, Blob>(0)?.0 == run.id.as_uuid(),
                    request: told(json("human_requests", "request", &request)),
                    expires_at: row.get::<_, Option<Ms>>(2)?.map(|ms| ms.0),
                    is_open: row.get(3)?,
                    resolution: resolution
                        .map(|text| told(json("human_requests", "resolution", &text))),
                    by: row
                        .get::<_, Option<Blob>>(5)?
                        .map(|by| UserId::from_stored(by.0)),
                    key: row
                        .get::<_, Option<Blob>>(6)?
                        .map(|key| ApiKeyId::from_stored(key.0)),
                })
            })
            .optional()?;
        found.extend(line.map(|line| (id, line)));
    }
    Ok(found)
}

fn deliveries(conn: &Connection, run: &RunRow) -> Result<Vec<DeliveryLine>> {
    let mut recorded = conn.prepare_cached(
        "SELECT attempt FROM delivery_attempts WHERE delivery = ?1 ORDER BY attempt",
    )?;
    let mut deliveries = conn
        .prepare_cached(
            "SELECT d.number, d.event, d.sequence, d.url, d.state, d.attempts, d.due_at IS NOT NULL, d.team_id, d.webhook_id,
                 d.webhook_id IS NULL OR w.team_id IS d.team_id
             FROM deliveries d LEFT JOIN webhooks w ON w.id = d.webhook_id
             WHERE d.run_id = ?1 ORDER BY d.sequence, d.number",
        )?
        .query_map(params![Blob(run.id.as_uuid())], |row| {
            let number: i64 = row.get(0)?;
            let line = DeliveryLine {
                event: row.get(1)?,
                sequence: count(row.get(2)?),
                url: row.get(3)?,
                state: row.get(4)?,
                attempts: count(row.get(5)?),
                is_due: row.get(6)?,
                recorded: Vec::new(),
                webhook: row.get::<_, Option<Blob>>(8)?.map(|webhook| webhook.0),
                is_of_team: row.get::<_, Blob>(7)?.0 == run.team.as_uuid() && row.get(9)?,
            };
            Ok((number, line))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for (number, line) in &mut deliveries {
        line.recorded = recorded
            .query_map(params![*number], |row| row.get(0).map(count))?
            .collect::<rusqlite::Result<_>>()?;
    }
    Ok(deliveries.into_iter().map(|(_, line)| line).collect())
}

fn sandbox(conn: &Connection, run: &RunRow, id: &SandboxId) -> Result<Option<SandboxLine>> {
    let line = conn
        .prepare_cached(
            "SELECT owner_run, deleted_at IS NOT NULL, expires_at, team_id FROM sandboxes WHERE id = ?1",
        )?
        .query_row(params![id.as_str()], |row| {
            Ok(SandboxLine {
                owner: row
                    .get::<_, Option<Blob>>(0)?
                    .map(|owner| RunId::from_stored(owner.0)),
                is_deleted: row.get(1)?,
                expires_at: row.get::<_, Ms>(2)?.0,
                is_of_team: row.get::<_, Blob>(3)?.0 == run.team.as_uuid(),
            })
        })
        .optional()?;
    Ok(line)
}

fn is_of_one_team(conn: &Connection, run: &RunRow) -> Result<bool> {
    let found = conn
        .prepare_cached(
            "SELECT 1 FROM builds b JOIN agents a ON a.id = b.agent_id
             WHERE b.id = ?1 AND b.agent_id = ?2 AND a.team_id = ?3 AND b.team_id = ?3",
        )?
        .exists(params![
            Blob(run.build.as_uuid()),
            Blob(run.agent.as_uuid()),
            Blob(run.team.as_uuid())
        ])?;
    Ok(found)
}
