//! Runs as they are read: rows, pages, messages, events.

mod listed;

use std::collections::BTreeSet;

use errand_core::author::AuthorBody;
use errand_core::human::HumanRequest;
use errand_core::id::{
    AgentId, ApiKeyId, BootId, BuildId, ClaimToken, HumanRequestId, MessageId, RunId, SandboxId,
    TeamId, UserId,
};
use errand_core::run::{RunError, Status};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry};
use errand_core::wire::{MessageBody, RunBody, UsageBody, WaitingOn};
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use crate::error::{Result, StoreError};
use crate::model::{Page, PageQuery, Principal, RunFilter, RunView};
use crate::paging::{Fits, PageBounds};
use crate::rows::{Blob, Ms, count, int, json, word};
use crate::sqlite::Store;

/// A run's row, whole.
#[derive(Clone, Debug)]
pub(crate) struct RunRow {
    pub(crate) id: RunId,
    pub(crate) team: TeamId,
    pub(crate) agent: AgentId,
    pub(crate) build: BuildId,
    pub(crate) status: Status,
    pub(crate) source: Option<String>,
    pub(crate) title: Option<String>,
    pub(crate) sandbox: Option<SandboxId>,
    pub(crate) sandbox_ttl_ms: u64,
    pub(crate) webhook_url: Option<String>,
    pub(crate) human_webhook_url: Option<String>,
    pub(crate) people: bool,
    pub(crate) error: Option<RunError>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) completed_at: Option<Timestamp>,
    pub(crate) position: u64,
    pub(crate) shown: u64,
    pub(crate) sequence: u64,
    pub(crate) newest_user: u64,
    pub(crate) turn: u64,
    pub(crate) step: u64,
    pub(crate) claim: Option<ClaimToken>,
    pub(crate) claim_boot: Option<BootId>,
    pub(crate) claimed_at: Option<Timestamp>,
    pub(crate) wake_at: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) limit_ms: u64,
    pub(crate) worked_ms: u64,
    pub(crate) waiting_kind: Option<String>,
    pub(crate) waiting_who: Option<String>,
    pub(crate) waiting_since: Option<Timestamp>,
    pub(crate) waiting_deadline: Option<Timestamp>,
    pub(crate) request: Option<HumanRequestId>,
    pub(crate) steps: u64,
    pub(crate) model_calls: u64,
    pub(crate) tool_calls: u64,
    pub(crate) input_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) cost_usd: f64,
    pub(crate) api_key: Option<ApiKeyId>,
    pub(crate) model_ms: u64,
    pub(crate) unpriced_tokens: u64,
    pub(crate) estimated_tokens: u64,
    /// The person who started it, by hand or with a key of theirs. None: another run did, or it is older than this column.
    pub(crate) started_by: Option<UserId>,
    pub(crate) principal: Principal,
}

/// The columns that [`read_row`] reads, in its order.
pub(crate) const COLUMNS: &str = "id, team_id, agent_id, build_id, status, source, title, sandbox_id, sandbox_ttl_ms, webhook_url, \
    human_webhook_url, people, error_code, error_message, created_at, updated_at, started_at, completed_at, position, shown, sequence, \
    newest_user, turn, step, claim_token, claim_boot, claimed_at, wake_at, deadline_at, seconds_limit_ms, worked_ms, waiting_kind, \
    waiting_who, waiting_since, waiting_deadline, request_id, steps, model_calls, tool_calls, input_tokens, cached_tokens, output_tokens, \
    cost_usd, api_key_id, model_ms, unpriced_tokens, estimated_tokens, started_by, principal";

/// Writes back what may change. Its parameters are those of [`COLUMNS`], by number; those that never change (agent,
/// build, what the starter gave) do not occur, but for the last one, since a statement takes as many values as its highest
/// number.
const UPDATE: &str = "UPDATE runs SET status = ?5, sandbox_id = ?8, error_code = ?13, error_message = ?14, updated_at = ?16, \
    started_at = ?17, completed_at = ?18, position = ?19, shown = ?20, sequence = ?21, newest_user = ?22, turn = ?23, step = ?24, \
    claim_token = ?25, claim_boot = ?26, claimed_at = ?27, wake_at = ?28, deadline_at = ?29, worked_ms = ?31, waiting_kind = ?32, \
    waiting_who = ?33, waiting_since = ?34, waiting_deadline = ?35, request_id = ?36, steps = ?37, model_calls = ?38, tool_calls = ?39, \
    input_tokens = ?40, cached_tokens = ?41, output_tokens = ?42, cost_usd = ?43, model_ms = ?45, unpriced_tokens = ?46, estimated_tokens = ?47, started_by = ?48 \
    WHERE id = ?1 AND team_id = ?2";

/// The same where nothing changed but how far the run has come: the indexes by status, place and sandbox are left alone,
/// which is most of what a step would write.
const UPDATE_PROGRESS: &str = "UPDATE runs SET error_code = ?13, error_message = ?14, updated_at = ?16, \
    started_at = ?17, completed_at = ?18, position = ?19, shown = ?20, sequence = ?21, newest_user = ?22, turn = ?23, step = ?24, \
    deadline_at = ?29, worked_ms = ?31, waiting_kind = ?32, \
    waiting_who = ?33, waiting_since = ?34, waiting_deadline = ?35, request_id = ?36, steps = ?37, model_calls = ?38, tool_calls = ?39, \
    input_tokens = ?40, cached_tokens = ?41, output_tokens = ?42, cost_usd = ?43, model_ms = ?45, unpriced_tokens = ?46, estimated_tokens = ?47, started_by = ?48 \
    WHERE id = ?1 AND team_id = ?2";

/// What of a row only [`UPDATE`] writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    status: Status,
    sandbox: Option<SandboxId>,
    claim: Option<ClaimToken>,
    claim_boot: Option<BootId>,
    claimed_at: Option<Timestamp>,
    wake_at: Option<Timestamp>,
}

/// Reads a row of [`COLUMNS`]. The outer error is SQLite's, the inner one a row that does not parse.
pub(crate) fn read_row(row: &Row<'_>) -> rusqlite::Result<Result<RunRow>> {
    let id = |index: usize| row.get::<_, Blob>(index).map(|b| b.0);
    let maybe_id = |index: usize| row.get::<_, Option<Blob>>(index).map(|b| b.map(|b| b.0));
    let at = |index: usize| row.get::<_, Ms>(index).map(|ms| ms.0);
    let maybe_at = |index: usize| row.get::<_, Option<Ms>>(index).map(|ms| ms.map(|ms| ms.0));
    let n = |index: usize| row.get::<_, i64>(index).map(count);
    let status: String = row.get(4)?;
    let sandbox: Option<String> = row.get(7)?;
    let error = match (
        row.get::<_, Option<String>>(12)?,
        row.get::<_, Option<String>>(13)?,
    ) {
        (Some(code), message) => Some(RunError {
            code,
            message: message.unwrap_or_default(),
        }),
        (None, _) => None,
    };
    let parsed = || -> Result<(Status, Option<SandboxId>)> {
        let status = word("runs", "status", &status, Status::parse)?;
        let sandbox = sandbox
            .as_deref()
            .map(|text| word("runs", "sandbox_id", text, SandboxId::parse))
            .transpose()?;
        Ok((status, sandbox))
    };
    let (status, sandbox) = match parsed() {
        Ok(parsed) => parsed,
        Err(error) => return Ok(Err(error)),
    };
    Ok(Ok(RunRow {
        id: RunId::from_stored(id(0)?),
        team: TeamId::from_stored(id(1)?),
        agent: AgentId::from_stored(id(2)?),
        build: BuildId::from_stored(id(3)?),
        status,
        source: row.get(5)?,
        title: row.get(6)?,
        sandbox,
        sandbox_ttl_ms: n(8)?,
        webhook_url: row.get(9)?,
        human_webhook_url: row.get(10)?,
        people: row.get(11)?,
        error,
        created_at: at(14)?,
        updated_at: at(15)?,
        started_at: maybe_at(16)?,
        completed_at: maybe_at(17)?,
        position: n(18)?,
        shown: n(19)?,
        sequence: n(20)?,
        newest_user: n(21)?,
        turn: n(22)?,
        step: n(23)?,
        claim: maybe_id(24)?.map(ClaimToken::from_stored),
        claim_boot: maybe_id(25)?.map(BootId::from_stored),
        claimed_at: maybe_at(26)?,
        wake_at: maybe_at(27)?,
        deadline: maybe_at(28)?,
        limit_ms: n(29)?,
        worked_ms: n(30)?,
        waiting_kind: row.get(31)?,
        waiting_who: row.get(32)?,
        waiting_since: maybe_at(33)?,
        waiting_deadline: maybe_at(34)?,
        request: maybe_id(35)?.map(HumanRequestId::from_stored),
        steps: n(36)?,
        model_calls: n(37)?,
        tool_calls: n(38)?,
        input_tokens: n(39)?,
        cached_tokens: n(40)?,
        output_tokens: n(41)?,
        cost_usd: row.get(42)?,
        api_key: maybe_id(43)?.map(ApiKeyId::from_stored),
        model_ms: n(44)?,
        unpriced_tokens: n(45)?,
        estimated_tokens: n(46)?,
        started_by: maybe_id(47)?.map(UserId::from_stored),
        principal: Principal::from_stored(id(48)?),
    }))
}

impl RunRow {
    /// When its working time is over, if its driver goes on from the claim on. None: it has no driver.
    pub(crate) fn working_time_ends(&self) -> Option<Timestamp> {
        let left_ms = self.limit_ms.saturating_sub(self.worked_ms);
        self.claimed_at.map(|at| at.plus_ms(left_ms))
    }

    /// Sets when the run is taken from its driver: at the end of a step that takes too long, and no later than at the
    /// end of its working time.
    pub(crate) fn step_ends_by(&mut self, step_deadline: Timestamp) {
        self.deadline = self
            .working_time_ends()
            .map(|working| working.min(step_deadline));
    }

    /// Writes a new row.
    pub(crate) fn insert(&self, conn: &Connection) -> Result<()> {
        let holes: Vec<String> = (1..=49).map(|n| format!("?{n}")).collect();
        conn.prepare_cached(&format!(
            "INSERT INTO runs ({COLUMNS}) VALUES ({})",
            holes.join(", ")
        ))?
        .execute(params_from_iter(self.values()))?;
        Ok(())
    }

    /// What only a whole update writes.
    pub(crate) fn place(&self) -> Place {
        Place {
            status: self.status,
            sandbox: self.sandbox.clone(),
            claim: self.claim,
            claim_boot: self.claim_boot,
            claimed_at: self.claimed_at,
            wake_at: self.wake_at,
        }
    }

    /// Writes what may change back. `stored`: what of it is stored.
    pub(crate) fn update(&self, conn: &Connection, stored: &Place) -> Result<()> {
        let moved = *stored != self.place();
        let sql = if moved { UPDATE } else { UPDATE_PROGRESS };
        let mut statement = conn.prepare_cached(sql)?;
        // A statement takes as many values as its highest number, whether it names them all or not. What is beyond never
        // changes.
        let count = statement.parameter_count();
        statement.execute(params_from_iter(self.values().into_iter().take(count)))?;
        Ok(())
    }

    /// The values of [`COLUMNS`], in its order.
    fn values(&self) -> Vec<SqlValue> {
        let blob = |uuid: uuid::Uuid| SqlValue::Blob(uuid.as_bytes().to_vec());
        let text = |text: &Option<String>| text.clone().map_or(SqlValue::Null, SqlValue::Text);
        let at = |at: Timestamp| SqlValue::Integer(at.as_millis());
        let maybe_at = |moment: Option<Timestamp>| moment.map_or(SqlValue::Null, at);
        let n = |n: u64| SqlValue::Integer(int(n));
        vec![
            blob(self.id.as_uuid()),
            blob(self.team.as_uuid()),
            blob(self.agent.as_uuid()),
            blob(self.build.as_uuid()),
            SqlValue::Text(self.status.as_str().to_owned()),
            text(&self.source),
            text(&self.title),
            text(&self.sandbox.as_ref().map(ToString::to_string)),
            n(self.sandbox_ttl_ms),
            text(&self.webhook_url),
            text(&self.human_webhook_url),
            SqlValue::Integer(i64::from(self.people)),
            text(&self.error.as_ref().map(|e| e.code.clone())),
            text(&self.error.as_ref().map(|e| e.message.clone())),
            at(self.created_at),
            at(self.updated_at),
            maybe_at(self.started_at),
            maybe_at(self.completed_at),
            n(self.position),
            n(self.shown),
            n(self.sequence),
            n(self.newest_user),
            n(self.turn),
            n(self.step),
            self.claim.map_or(SqlValue::Null, |c| blob(c.as_uuid())),
            self.claim_boot
                .map_or(SqlValue::Null, |b| blob(b.as_uuid())),
            maybe_at(self.claimed_at),
            maybe_at(self.wake_at),
            maybe_at(self.deadline),
            n(self.limit_ms),
            n(self.worked_ms),
            text(&self.waiting_kind),
            text(&self.waiting_who),
            maybe_at(self.waiting_since),
            maybe_at(self.waiting_deadline),
            self.request.map_or(SqlValue::Null, |r| blob(r.as_uuid())),
            n(self.steps),
            n(self.model_calls),
            n(self.tool_calls),
            n(self.input_tokens),
            n(self.cached_tokens),
            n(self.output_tokens),
            SqlValue::Real(self.cost_usd),
            self.api_key
                .map_or(SqlValue::Null, |key| blob(key.as_uuid())),
            n(self.model_ms),
            n(self.unpriced_tokens),
            n(self.estimated_tokens),
            self.started_by
                .map_or(SqlValue::Null, |user| blob(user.as_uuid())),
            blob(self.principal.as_uuid()),
        ]
    }
}

/// A run as the API gives it.
pub(crate) fn run_body(conn: &Connection, row: &RunRow) -> Result<RunBody> {
    Ok(RunBody {
        id: row.id.as_uuid(),
        agent_id: row.agent.as_uuid(),
        build_id: row.build.as_uuid(),
        status: row.status,
        source: row.source.clone(),
        sandbox_id: row.sandbox.as_ref().map(ToString::to_string),
        started_at: row.started_at,
        completed_at: row.completed_at,
        created_at: row.created_at,
        updated_at: row.updated_at,
        human_in_the_loop_enabled: row.people,
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
            seconds: seconds_of(row.worked_ms),
            model_seconds: seconds_of(row.model_ms),
        },
        waiting_on: waiting_on(row),
        author: Some(author(conn, row)?),
    })
}

/// Who started a run.
fn author(conn: &Connection, row: &RunRow) -> Result<AuthorBody> {
    // A run that another run started has the key of that one for its usage, and was started by neither key nor person; the
    // same holds for a fork by the server's operator.
    match (row.source.as_deref(), row.api_key) {
        (None, _) => Ok(AuthorBody::system()),
        (Some("cli"), _) if row.started_by.is_none() => Ok(AuthorBody::system()),
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
    let kind = row.waiting_kind.as_deref()?;
    let who = row.waiting_who.clone();
    let next = match kind {
        "human" => "A person answers the pending request; a message closes it, too.".to_owned(),
        "timer" => "It goes on by itself when the time has come.".to_owned(),
        "retry" => {
            "The model gave no answer that can be read, or its provider has no room for another call now; it is asked when the time has come, or as soon as there is room."
                .to_owned()
        }
        "place" => "It starts as soon as a place among the runs at work is free.".to_owned(),
        "sandbox" => "It starts when the run that uses the sandbox has ended.".to_owned(),
        "child_run" => {
            "It goes on when the run that it started has ended; what that run asks people is shown here, too."
                .to_owned()
        }
        "start" => "Its first step is being prepared.".to_owned(),
        "model" => "The model decides what comes next.".to_owned(),
        "tool" => "The result of the tool call is recorded; then the model decides.".to_owned(),
        other => format!("It waits for {other}."),
    };
    Some(WaitingOn {
        kind: kind.to_owned(),
        who,
        since: row.waiting_since.unwrap_or(row.updated_at),
        deadline: row.waiting_deadline,
        next,
    })
}

/// The entries of a run from a position on.
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

/// The position from which the messages stand that come after the first so many.
fn position_after(conn: &Connection, row: &RunRow, messages: u64) -> Result<u64> {
    if messages == 0 {
        return Ok(1);
    }
    // Positions and the numbers of messages rise together, and a position is never the lesser of the two.
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

/// A run of a team.
pub(crate) fn row_of(conn: &Connection, team: TeamId, run: RunId) -> Result<RunRow> {
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM runs WHERE id = ?1 AND team_id = ?2"
    ))?
    .query_row(params![Blob(run.as_uuid()), Blob(team.as_uuid())], read_row)
    .optional()?
    .ok_or(StoreError::NotFound)?
}

/// A run of a team and its pending request.
pub(crate) fn view_of(conn: &Connection, team: TeamId, run: RunId) -> Result<RunView> {
    let row = row_of(conn, team, run)?;
    let pending = match row.request {
        // What it waits for may ask a person.
        None => crate::children::request_below(conn, &row)?,
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

impl Store {
    /// A run and its pending request.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn run(&self, team: TeamId, run: RunId) -> Result<RunView> {
        self.peek(move |conn| view_of(conn, team, run)).await
    }

    /// A page of a team's runs, newest first unless the filter says otherwise.
    ///
    /// # Errors
    /// Of the store only.
    pub async fn list_runs(
        &self,
        team: TeamId,
        filter: RunFilter,
        page: PageQuery,
    ) -> Result<Page<RunBody>> {
        self.read(move |conn| list(conn, team, &filter, page)).await
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
        self.read(move |conn| {
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

/// Runs that a search finds, from an index that holds all that it looks at. Of those that match, the newest so many: more
/// are of no use to people, and each costs a look at its row.
const FOUND: &str = "id IN (SELECT id FROM (
    SELECT id FROM runs INDEXED BY runs_by_title
    WHERE team_id = ? AND created_at >= coalesce(?, 0) AND created_at < coalesce(?, 9223372036854775807)
      AND (title LIKE ? ESCAPE '!' OR instr(hex(id), ?) > 0)
    ORDER BY created_at DESC LIMIT 10000))";

/// Runs that a person started, by hand or with a key of theirs: among the newest so many, since no index has it.
const OF_USER: &str = "id IN (SELECT id FROM (
    SELECT id, source, started_by, api_key_id FROM runs INDEXED BY runs_by_team
    WHERE team_id = ? AND created_at >= coalesce(?, 0) AND created_at < coalesce(?, 9223372036854775807)
    ORDER BY created_at DESC LIMIT 10000)
    WHERE source IS NOT NULL AND coalesce(started_by, (SELECT created_by FROM named_api_keys WHERE id = api_key_id)) = ?)";

/// Fewest digits by which an id is looked for: fewer are in most of them.
const ID_DIGITS_MIN: usize = 4;

/// What a title is held against.
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

/// What an id is held against, where it may be a part of one.
fn id_part(q: &str) -> Option<String> {
    let digits: String = q.chars().filter(|c| *c != '-').collect();
    let is_hex = digits.chars().all(|c| c.is_ascii_hexdigit());
    (is_hex && digits.len() >= ID_DIGITS_MIN).then(|| digits.to_uppercase())
}

/// The filter as conditions of which each is found on one index: one for each status, which exclude each other. What a
/// search finds is looked up by id, and not among all runs of an index: the plus keeps the others away.
fn conditions(team: TeamId, filter: &RunFilter) -> Vec<Condition> {
    let blob = |id: uuid::Uuid| SqlValue::Blob(id.as_bytes().to_vec());
    let at = |at: Timestamp| SqlValue::Integer(at.as_millis());
    let mut wheres = Vec::new();
    let mut values = Vec::new();
    // A pattern ends at a NUL for SQLite, and would match every title; no title has one.
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
    // What is looked up by id is not looked for on another index.
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
    if let Some(source) = &filter.source {
        holds("source = ?", SqlValue::Text(source.clone()));
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
    // The page is found on indexes alone; only its rows are read. Of several conditions, each gives what the page could
    // hold of it.
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
