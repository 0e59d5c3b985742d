//! Reads the events of a run, for event streams.

use errand_core::event::EventKind;
use errand_core::id::{RunId, TeamId};
use errand_core::time::Timestamp;
use rusqlite::{Connection, Row, params};
use serde_json::Value;

use crate::db::paging::{Fits, PageBounds};
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, json, word};
use crate::error::{Result, StoreError};
use crate::model::{EventPage, EventRow};
use crate::runs::queries::{self, RawEntry, to_message};
use crate::runs::row::{RunRow, row_of};

impl Store {
    /// All events of a run after a sequence number, in order, regardless of their size.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn events_after(
        &self,
        team: TeamId,
        run: RunId,
        after: u64,
        limit: u32,
    ) -> Result<EventPage> {
        let bounds = PageBounds {
            entries: limit,
            bytes: u64::MAX,
            whole: true,
        };
        self.event_page(team, run, after, bounds).await
    }

    /// A page of a run's events after a sequence number, in order, within limits.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn event_page(
        &self,
        team: TeamId,
        run: RunId,
        after: u64,
        bounds: PageBounds,
    ) -> Result<EventPage> {
        self.read_for(team, move |conn| {
            select_events(conn, team, run, after, bounds)
        })
        .await
    }
}

fn select_events(
    conn: &Connection,
    team: TeamId,
    run: RunId,
    after: u64,
    bounds: PageBounds,
) -> Result<EventPage> {
    let run_row = row_of(conn, team, run)?;
    // Read for the first event that needs it.
    let mut author = None;
    let mut page = EventPage {
        events: Vec::new(),
        last: run_row.sequence,
        ended: run_row.status.has_ended(),
        large: false,
    };
    // A row that does not fit is not copied: at most one such row is in SQLite's memory, until the statement ends.
    let mut select = conn.prepare_cached(
        "SELECT e.sequence, e.kind, e.created_at, e.data, m.position, m.id, m.created_at, m.body,
             coalesce(octet_length(e.data), 0) + coalesce(octet_length(m.body), 0)
         FROM events e LEFT JOIN messages m ON m.run_id = e.run_id AND m.position = e.position
         WHERE e.run_id = ?1 AND e.sequence > ?2 ORDER BY e.sequence LIMIT ?3",
    )?;
    let mut rows = select.query(params![Blob(run.as_uuid()), int(after), bounds.entries])?;
    let mut filling = bounds.filling();
    while let Some(row) = rows.next()? {
        match filling.add(count(row.get(8)?)) {
            Fits::Yes => {
                let mut event = to_event(read_event(row)?)?;
                if event.kind == EventKind::RunUpdated {
                    add_author(&mut event.data, &mut author, conn, &run_row)?;
                }
                page.events.push(event);
            }
            Fits::No => break,
            Fits::Never => {
                page.large = true;
                break;
            }
        }
    }
    Ok(page)
}

/// Adds the author to a run that was stored without one. `known`: the author, once it has been read.
fn add_author(
    run: &mut Value,
    known: &mut Option<Value>,
    conn: &Connection,
    row: &RunRow,
) -> Result<()> {
    let Some(fields) = run.as_object_mut() else {
        return Ok(());
    };
    if fields.contains_key("author") {
        return Ok(());
    }
    let value = match known.take() {
        Some(value) => value,
        None => serde_json::to_value(queries::author(conn, row)?).map_err(|error| {
            StoreError::Corrupt {
                table: "runs",
                column: "started_by",
                message: error.to_string(),
            }
        })?,
    };
    *known = Some(value.clone());
    fields.insert("author".to_owned(), value);
    Ok(())
}

type RawEvent = (u64, String, Timestamp, Option<String>, Option<RawEntry>);

fn read_event(row: &Row<'_>) -> rusqlite::Result<RawEvent> {
    let entry = match row.get::<_, Option<i64>>(4)? {
        None => None,
        Some(position) => Some((
            count(position),
            row.get::<_, Blob>(5)?.0,
            row.get::<_, Ms>(6)?.0,
            row.get(7)?,
        )),
    };
    Ok((
        count(row.get(0)?),
        row.get(1)?,
        row.get::<_, Ms>(2)?.0,
        row.get(3)?,
        entry,
    ))
}

fn to_event((seq, kind, created_at, data, entry): RawEvent) -> Result<EventRow> {
    let corrupt = |message: String| StoreError::Corrupt {
        table: "events",
        column: "data",
        message,
    };
    let data: Value = match (data, entry) {
        (Some(data), _) => json("events", "data", &data)?,
        (None, Some(entry)) => {
            serde_json::to_value(to_message(entry)?).map_err(|e| corrupt(e.to_string()))?
        }
        (None, None) => {
            return Err(corrupt(format!(
                "event {seq} has neither data nor a message"
            )));
        }
    };
    Ok(EventRow {
        seq,
        kind: word("events", "kind", &kind, EventKind::parse)?,
        created_at,
        data,
    })
}
