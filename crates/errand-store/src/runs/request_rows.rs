//! Writes the row of a human request outside of the normal course: in copies of a transcript, and in repairs.

use errand_core::author::By;
use errand_core::human::{HumanRequest, Resolution};
use errand_core::time::Timestamp;
use rusqlite::params;

use crate::db::types::{Blob, Ms, to_json};
use crate::error::Result;
use crate::runs::change::Change;

/// When, how and by whom a request was closed.
pub(crate) type Closed = (Timestamp, Resolution, Option<By>);

/// Inserts or corrects the row of a request.
pub(crate) fn put_request(
    change: &Change<'_>,
    request: &HumanRequest,
    closed: Option<Closed>,
) -> Result<()> {
    let resolution = closed
        .as_ref()
        .map(|(_, resolution, _)| to_json("human_requests", "resolution", resolution))
        .transpose()?;
    let by = closed.as_ref().and_then(|(_, _, by)| by.as_ref());
    change
        .tx
        .prepare_cached(
            "INSERT INTO human_requests (id, run_id, team_id, request, created_at, expires_at, closed_at, resolution, responded_by,
                 responded_key)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (id) DO UPDATE SET request = ?4, expires_at = ?6, resolution = ?8, responded_by = ?9, responded_key = ?10,
                 closed_at = CASE WHEN ?7 IS NULL THEN NULL ELSE coalesce(closed_at, ?7) END
             WHERE run_id = ?2",
        )?
        .execute(params![
            Blob(request.id.as_uuid()),
            Blob(change.row.id.as_uuid()),
            Blob(change.row.team.as_uuid()),
            to_json("human_requests", "request", request)?,
            Ms(request.created_at),
            request.expires_at.map(Ms),
            closed.as_ref().map(|(at, ..)| Ms(*at)),
            resolution,
            by.map(|by| Blob(by.user.as_uuid())),
            by.and_then(By::key_id).map(|key| Blob(key.as_uuid()))
        ])?;
    Ok(())
}
