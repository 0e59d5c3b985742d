//! Reads runs: single runs, pages of runs, messages.

mod listed;

use std::collections::BTreeSet;

use errand_core::author::AuthorBody;
use errand_core::human::{HumanRequest, TITLE_CHARS_MAX};
use errand_core::id::{MessageId, RunId, TeamId, UserId};
use errand_core::run::{RunSource, Status, WaitReason};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry};
use errand_core::wire::{MessageBody, RunBody, UsageBody, WaitingOn};
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use crate::db::paging::{Fits, PageBounds};
use crate::db::sqlite::Store;
use crate::db::types::{Blob, Ms, count, int, json};
use crate::error::{Result, StoreError};
use crate::model::{Page, PageQuery, RunFilter, RunView};
use crate::runs::lineage;
use crate::runs::row::{COLUMNS, RunRow, read_row, row_of};

/// A run in the form that the API returns.
pub(crate) fn run_body(conn: &Connection, row: &RunRow) -> Result<RunBody> {
    Ok(RunBody {
        author: Some(author(conn, row)?),
        ..event_body(row)
    })
}

/// A run in the form in which its events store it: like [`run_body`], without the author. A run has the same author in
/// all its events, so [`Store::event_page`] adds it.
pub(crate) fn event_body(row: &RunRow) -> RunBody {
    RunBody {
        id: row.id.as_uuid(),
        agent_id: row.agent.as_uuid(),
        build_id: row.build.as_uuid(),
        status: row.status,
        source: row.source.map(|source| source.as_str().to_owned()),
        sandbox_id: row.sandbox.as_ref().map(ToString::to_string),
        started_at: row.started_at,
        completed_at: row.completed_at,
        created_at: row.created_at,
        updated_at: row.updated_at,
        human_in_the_loop_enabled: row.human_in_the_loop,
        title: row.title.clone(),
        error: row.error.clone(),
        usage: UsageBody {
            steps: row.steps,
            model_calls: row.model_calls,
            tool_calls: row.tool_calls,
            input_tokens: row.input_tokens,
            cached_tokens: row.cached_tokens,
            output_tokens: row.output_tokens,
            cost_usd: (row.unpriced_tokens == 0).then_some(row.cost_usd),
            cost_known_usd: (row.unpriced_tokens > 0).then_some(row.cost_usd),
            cost_unknown_tokens: row.unpriced_tokens,
            estimated: row.estimated_tokens > 0,
            seconds: seconds_of(row.active_ms),
            model_seconds: seconds_of(row.model_ms),
        },
        waiting_on: waiting_on(row),
        author: None,
    }
}

/// The person, key or system that started a run.
pub(crate) fn author(conn: &Connection, row: &RunRow) -> Result<AuthorBody> {
    // A child run has its parent's key for the usage statistics, but no person or key started it. The same holds for
    // a fork by the server's operator.
    match (row.source, row.api_key) {
        (None, _) => Ok(AuthorBody::system()),
        (Some(RunSource::Cli), _) if row.started_by.is_none() => Ok(AuthorBody::system()),
        (Some(_), None) => Ok(AuthorBody::user(row.started_by)),
        (Some(_), Some(key)) => {
            let named = conn
                .prepare_cached("SELECT name, created_by FROM named_api_keys WHERE id = ?1")?
                .query_row(params![Blob(key.as_uuid())], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, Blob>(1)?.0))
                })
                .optional()?;
            let (name, creator) = named.unzip();
            let creator = creator.map(UserId::from_stored).or(row.started_by);
            Ok(AuthorBody::api_key(key, name, creator))
        }
    }
}

pub(crate) fn seconds_of(ms: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliseconds of work stay far below 2^52"
    )]
    let ms = ms as f64;
    ms / 1000.0
}

fn waiting_on(row: &RunRow) -> Option<WaitingOn> {
    if row.status.has_ended() {
        return None;
    }
    let kind = row.waiting_kind?;
    // Requests of older versions may have longer titles.
    let who = row
        .waiting_who
        .as_ref()
        .map(|who| who.chars().take(TITLE_CHARS_MAX).collect());
    let next = match kind {
        WaitReason::Human => {
            "A person must respond to the pending request; a message closes it too."
        }
        WaitReason::Timer => "It continues by itself at the deadline.",
        WaitReason::Retry => {
            "The model gave no usable answer, or its provider cannot take another call now. The model is asked again at the deadline, or earlier if its provider can take a call."
        }
        WaitReason::Slot => "It starts as soon as a slot for active runs is free.",
        WaitReason::Sandbox => "It starts when the run that uses the sandbox has ended.",
        WaitReason::ChildRun => {
            "It continues when the run that it started has ended. Requests of that run are shown here too."
        }
        WaitReason::Start => "Its first step is being prepared.",
        WaitReason::Model => "The model decides what comes next.",
        WaitReason::Tool => {
            "The result of the tool call is recorded. Then the model decides what comes next."
        }
    };
    Some(WaitingOn {
        kind: kind.as_str().to_owned(),
        who,
        since: row.waiting_since.unwrap_or(row.updated_at),
        deadline: row.waiting_deadline,
        next: next.to_owned(),
    })
}

/// The entries of a run from this position on.
pub(crate) fn entries_from(conn: &Connection, run: RunId, from: u64) -> Result<Vec<Entry>> {
    conn.prepare_cached("SELECT position, id, created_at, body FROM messages WHERE run_id = ?1 AND position >= ?2 ORDER BY position")?
        .query_map(params![Blob(run.as_uuid()), int(from)], read_entry)?
        .collect::<rusqlite::Result<Vec<_>>>()?
        .into_iter()
        .map(to_entry)
        .collect()
}

pub(crate) type RawEntry = (u64, uuid::Uuid, Timestamp, String);

pub(crate) fn read_entry(row: &Row<'_>) -> rusqlite::Result<RawEntry> {
    Ok((
        count(row.get(0)?),
        row.get::<_, Blob>(1)?.0,
        row.get::<_, Ms>(2)?.0,
        row.get(3)?,
    ))
}

pub(crate) fn to_entry((position, id, at, body): RawEntry) -> Result<Entry> {
    let body: Body = json("messages", "body", &body)?;
    Ok(Entry {
        position,
        id: MessageId::from_stored(id),
        at,
        body,
    })
}

/// The position of the message after the first `messages` messages.
fn position_after(conn: &Connection, row: &RunRow, messages: u64) -> Result<u64> {
    if messages == 0 {
        return Ok(1);
    }
    // Binary search: positions and message numbers rise together, and a message's position is at least its number.
    let (mut low, mut high) = (messages.saturating_add(1), row.position.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        let next: Option<i64> = conn
            .prepare_cached(
                "SELECT shown FROM messages WHERE run_id = ?1 AND position >= ?2 AND shown IS NOT NULL ORDER BY position LIMIT 1",
            )?
            .query_row(params![Blob(row.id.as_uuid()), int(middle)], |row| row.get(0))
            .optional()?;
        if next.is_none_or(|next| next > int(messages)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}

pub(crate) fn to_message(raw: RawEntry) -> Result<MessageBody> {
    let entry = to_entry(raw)?;
    MessageBody::of(&entry).ok_or_else(|| StoreError::Corrupt {
        table: "messages",
        column: "shown",
        message: format!(
            "entry {} is a note and stands among the messages",
            entry.position
        ),
    })
}

/// A run of a team and its pending request.
pub(crate) fn view_of(conn: &Connection, team: TeamId, run: RunId) -> Result<RunView> {
    let row = row_of(conn, team, run)?;
    let pending = match row.request {
        // A child run may be asking a person.
        None => request_below(conn, &row)?,
        Some(id) => {
            let text: String = conn
                .prepare_cached("SELECT request FROM human_requests WHERE id = ?1")?
                .query_row(params![Blob(id.as_uuid())], |row| row.get(0))?;
            Some(json::<HumanRequest>("human_requests", "request", &text)?)
        }
    };
    Ok(RunView {
        run: run_body(conn, &row)?,
        pending,
    })
}

/// The pending human request of the child run that this run waits for, at any depth.
pub(crate) fn request_below(conn: &Connection, row: &RunRow) -> Result<Option<HumanRequest>> {
    match lineage::awaited(row) {
        None => Ok(None),
        Some(child) => match view_of(conn, row.team, child) {
            Ok(view) => Ok(view.pending),
            Err(StoreError::NotFound) => Ok(None),
            Err(error) => Err(error),
        },
    }
}

impl Store {
    /// A run and its pending request.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn run(&self, team: TeamId, run: RunId) -> Result<RunView> {
        self.peek(move |conn| view_of(conn, team, run)).await
    }

    /// A page of a team's runs, newest first unless the filter says otherwise.
    pub async fn list_runs(
        &self,
        team: TeamId,
        filter: RunFilter,
        page: PageQuery,
    ) -> Result<Page<RunBody>> {
        self.read_for(team, move |conn| list(conn, team, &filter, page))
            .await
    }

    /// A page of a run's messages, oldest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn messages(
        &self,
        team: TeamId,
        run: RunId,
        page: PageQuery,
    ) -> Result<Page<MessageBody>> {
        self.read_for(team, move |conn| {
            let row = row_of(conn, team, run)?;
            let from = position_after(conn, &row, page.offset)?;
            let mut select = conn.prepare_cached(
                "SELECT position, id, created_at, body, octet_length(body) FROM messages
                 WHERE run_id = ?1 AND position >= ?2 AND shown IS NOT NULL ORDER BY position LIMIT ?3",
            )?;
            let mut rows = select.query(params![Blob(run.as_uuid()), int(from), page.limit])?;
            let mut filling = PageBounds::messages(page.limit).filling();
            let mut items = Vec::new();
            while let Some(row) = rows.next()?
                && filling.add(count(row.get(4)?)) == Fits::Yes
            {
                items.push(to_message(read_entry(row)?)?);
            }
            Ok(Page { items, total: row.shown })
        })
        .await
    }
}

/// A condition and its parameters.
type Condition = (String, Vec<SqlValue>);

/// Search by title or id, answered from a covering index. Only the newest 10,000 matches are returned, because each
/// match costs one row read and nobody pages that far.
const FOUND: &str = "id IN (SELECT id FROM (
    SELECT id FROM runs INDEXED BY runs_by_title
    WHERE team_id = ? AND created_at >= coalesce(?, 0) AND created_at < coalesce(?, 9223372036854775807)
      AND (title LIKE ? ESCAPE '!' OR instr(hex(id), ?) > 0)
    ORDER BY created_at DESC LIMIT 10000))";

/// Runs that a person started, directly or with an API key. Limited to the team's newest 10,000 runs, because there
/// is no index for this.
const OF_USER: &str = "id IN (SELECT id FROM (
    SELECT id, source, started_by, api_key_id FROM runs INDEXED BY runs_by_team
    WHERE team_id = ? AND created_at >= coalesce(?, 0) AND created_at < coalesce(?, 9223372036854775807)
    ORDER BY created_at DESC LIMIT 10000)
    WHERE source IS NOT NULL AND coalesce(started_by, (SELECT created_by FROM named_api_keys WHERE id = api_key_id)) = ?)";

/// Minimum number of hexadecimal digits in a search by id. Shorter strings occur in most ids.
const ID_DIGITS_MIN: usize = 4;

/// Pattern for `LIKE`, with its special characters escaped.
fn pattern(q: &str) -> String {
    let mut pattern = String::from("%");
    for c in q.chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

/// The search text as a part of an id, if it can be one.
fn id_part(q: &str) -> Option<String> {
    let digits: String = q.chars().filter(|c| *c != '-').collect();
    let is_hex = digits.chars().all(|c| c.is_ascii_hexdigit());
    (is_hex && digits.len() >= ID_DIGITS_MIN).then(|| digits.to_uppercase())
}

/// The filter as a list of conditions, one for each status, which exclude each other. Each can be answered with a
/// single index. The result of a search is looked up by id; a unary plus keeps SQLite from choosing another index.
fn conditions(team: TeamId, filter: &RunFilter) -> Vec<Condition> {
    let blob = |id: uuid::Uuid| SqlValue::Blob(id.as_bytes().to_vec());
    let at = |at: Timestamp| SqlValue::Integer(at.as_millis());
    let mut wheres = Vec::new();
    let mut values = Vec::new();
    // For SQLite, a pattern ends at NUL, and would match every title. No title contains NUL.
    if filter.none || filter.q.as_ref().is_some_and(|q| q.contains('\0')) {
        wheres.push("0".to_owned());
    }
    if let Some(user) = filter.user {
        wheres.push(OF_USER.to_owned());
        values.push(blob(team.as_uuid()));
        values.push(filter.since.map_or(SqlValue::Null, at));
        values.push(filter.until.map_or(SqlValue::Null, at));
        values.push(blob(user.as_uuid()));
    }
    // Keeps SQLite from using another index where rows are looked up by id.
    let plus = if filter.user.is_some() || filter.q.is_some() {
        "+"
    } else {
        ""
    };
    if let Some(q) = &filter.q {
        wheres.push(FOUND.to_owned());
        values.push(blob(team.as_uuid()));
        values.push(filter.since.map_or(SqlValue::Null, at));
        values.push(filter.until.map_or(SqlValue::Null, at));
        values.push(SqlValue::Text(pattern(q)));
        values.push(id_part(q).map_or(SqlValue::Null, SqlValue::Text));
    }
    let mut holds = |condition: &str, value: SqlValue| {
        wheres.push(format!("{plus}{condition}"));
        values.push(value);
    };
    holds("team_id = ?", blob(team.as_uuid()));
    if let Some(agent) = filter.agent {
        holds("agent_id = ?", blob(agent.as_uuid()));
    }
    if let Some(source) = filter.source {
        holds("source = ?", SqlValue::Text(source.as_str().to_owned()));
    }
    if let Some(since) = filter.since {
        holds("created_at >= ?", at(since));
    }
    if let Some(until) = filter.until {
        holds("created_at < ?", at(until));
    }
    let rest = wheres.join(" AND ");
    let statuses: BTreeSet<Status> = filter.statuses.iter().copied().collect();
    if statuses.is_empty() {
        return vec![(rest, values)];
    }
    let with = |status: Status| {
        let mut values = values.clone();
        values.push(SqlValue::Text(status.as_str().to_owned()));
        (format!("{rest} AND {plus}status = ?"), values)
    };
    statuses.into_iter().map(with).collect()
}

fn list(
    conn: &Connection,
    team: TeamId,
    filter: &RunFilter,
    page: PageQuery,
) -> Result<Page<RunBody>> {
    let conditions = conditions(team, filter);
    let mut total = 0;
    for (condition, values) in &conditions {
        total += conn
            .prepare_cached(&format!("SELECT count(*) FROM runs WHERE {condition}"))?
            .query_row(params_from_iter(values), |row| row.get::<_, i64>(0))?;
    }
    let order = if filter.ascending { "ASC" } else { "DESC" };
    let by = format!("ORDER BY created_at {order}, id {order}");
    let (limit, offset) = (i64::from(page.limit), int(page.offset));
    let mut values = Vec::new();
    // The page is determined from indexes alone, and only its rows are read. With several conditions, each
    // contributes as many rows as the page could contain.
    let ids = match conditions.as_slice() {
        [(condition, of)] => {
            values.extend(of.iter().cloned());
            format!("SELECT id FROM runs WHERE {condition} {by}")
        }
        several => {
            let mut parts = Vec::new();
            for (condition, of) in several {
                values.extend(of.iter().cloned());
                values.push(SqlValue::Integer(limit.saturating_add(offset)));
                parts.push(format!(
                    "SELECT * FROM (SELECT id, created_at FROM runs WHERE {condition} {by} LIMIT ?)"
                ));
            }
            format!("SELECT id FROM ({}) {by}", parts.join(" UNION ALL "))
        }
    };
    values.push(SqlValue::Integer(limit));
    values.push(SqlValue::Integer(offset));
    let rows = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM runs WHERE id IN ({ids} LIMIT ? OFFSET ?) {by}"
        ))?
        .query_map(params_from_iter(values), read_row)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let items = rows
        .into_iter()
        .map(|row| run_body(conn, &row?))
        .collect::<Result<Vec<_>>>()?;
    Ok(Page {
        items,
        total: count(total),
    })
}
