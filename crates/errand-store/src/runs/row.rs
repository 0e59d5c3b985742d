//! The row of a run: its columns, how it is read, inserted and updated.

use errand_core::id::{
    AgentId, ApiKeyId, BootId, BuildId, ClaimToken, HumanRequestId, RunId, SandboxId, TeamId,
    UserId,
};
use errand_core::run::{RunError, Status};
use errand_core::time::Timestamp;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use crate::db::types::{Blob, Ms, count, int, word};
use crate::error::{Result, StoreError};
use crate::runs::claim_order::Principal;

/// All columns of a run.
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
    /// The person who started it, directly or with an API key. `None` if another run did, or if the run is older than
    /// this column.
    pub(crate) started_by: Option<UserId>,
    pub(crate) principal: Principal,
}

/// The columns that [`read_row`] reads, in this order.
pub(crate) const COLUMNS: &str = "id, team_id, agent_id, build_id, status, source, title, sandbox_id, sandbox_ttl_ms, webhook_url, \
    human_webhook_url, people, error_code, error_message, created_at, updated_at, started_at, completed_at, position, shown, sequence, \
    newest_user, turn, step, claim_token, claim_boot, claimed_at, wake_at, deadline_at, seconds_limit_ms, worked_ms, waiting_kind, \
    waiting_who, waiting_since, waiting_deadline, request_id, steps, model_calls, tool_calls, input_tokens, cached_tokens, output_tokens, \
    cost_usd, api_key_id, model_ms, unpriced_tokens, estimated_tokens, started_by, principal";

/// Writes the columns that can change. The parameters have the numbers of [`COLUMNS`]; columns that never change
/// (agent, build, the starter's input) are not mentioned.
const UPDATE: &str = "UPDATE runs SET status = ?5, sandbox_id = ?8, error_code = ?13, error_message = ?14, updated_at = ?16, \
    started_at = ?17, completed_at = ?18, position = ?19, shown = ?20, sequence = ?21, newest_user = ?22, turn = ?23, step = ?24, \
    claim_token = ?25, claim_boot = ?26, claimed_at = ?27, wake_at = ?28, deadline_at = ?29, worked_ms = ?31, waiting_kind = ?32, \
    waiting_who = ?33, waiting_since = ?34, waiting_deadline = ?35, request_id = ?36, steps = ?37, model_calls = ?38, tool_calls = ?39, \
    input_tokens = ?40, cached_tokens = ?41, output_tokens = ?42, cost_usd = ?43, model_ms = ?45, unpriced_tokens = ?46, estimated_tokens = ?47, started_by = ?48 \
    WHERE id = ?1 AND team_id = ?2";

/// Like [`UPDATE`], for steps that change only the progress. Leaving the indexed columns alone avoids most of what a
/// step would write, because the indexes by status, queue and sandbox are not touched.
const UPDATE_PROGRESS: &str = "UPDATE runs SET error_code = ?13, error_message = ?14, updated_at = ?16, \
    started_at = ?17, completed_at = ?18, position = ?19, shown = ?20, sequence = ?21, newest_user = ?22, turn = ?23, step = ?24, \
    deadline_at = ?29, worked_ms = ?31, waiting_kind = ?32, \
    waiting_who = ?33, waiting_since = ?34, waiting_deadline = ?35, request_id = ?36, steps = ?37, model_calls = ?38, tool_calls = ?39, \
    input_tokens = ?40, cached_tokens = ?41, output_tokens = ?42, cost_usd = ?43, model_ms = ?45, unpriced_tokens = ?46, estimated_tokens = ?47, started_by = ?48 \
    WHERE id = ?1 AND team_id = ?2";

/// The indexed columns that only [`UPDATE`] writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    status: Status,
    sandbox: Option<SandboxId>,
    claim: Option<ClaimToken>,
    claim_boot: Option<BootId>,
    claimed_at: Option<Timestamp>,
    wake_at: Option<Timestamp>,
}

/// Reads a row of [`COLUMNS`]. The outer error is SQLite's, the inner one means that the row cannot be parsed.
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
    /// When the active time ends if the driver keeps working. `None` if no driver has the run.
    pub(crate) fn working_time_ends(&self) -> Option<Timestamp> {
        let left_ms = self.limit_ms.saturating_sub(self.worked_ms);
        self.claimed_at.map(|at| at.plus_ms(left_ms))
    }

    /// Sets the deadline at which the run is taken from its driver: the step's deadline or the end of the active
    /// time, whichever comes first.
    pub(crate) fn step_ends_by(&mut self, step_deadline: Timestamp) {
        self.deadline = self
            .working_time_ends()
            .map(|working| working.min(step_deadline));
    }

    /// Inserts the row.
    pub(crate) fn insert(&self, conn: &Connection) -> Result<()> {
        let holes: Vec<String> = (1..=49).map(|n| format!("?{n}")).collect();
        conn.prepare_cached(&format!(
            "INSERT INTO runs ({COLUMNS}) VALUES ({})",
            holes.join(", ")
        ))?
        .execute(params_from_iter(self.values()))?;
        Ok(())
    }

    /// The indexed columns.
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

    /// Writes the columns that can change. `stored`: the indexed columns as they are stored.
    pub(crate) fn update(&self, conn: &Connection, stored: &Place) -> Result<()> {
        let moved = *stored != self.place();
        let sql = if moved { UPDATE } else { UPDATE_PROGRESS };
        let mut statement = conn.prepare_cached(sql)?;
        // A statement has as many parameters as its highest number, whether or not it mentions them all. The columns
        // beyond that never change.
        let count = statement.parameter_count();
        statement.execute(params_from_iter(self.values().into_iter().take(count)))?;
        Ok(())
    }

    /// Values for [`COLUMNS`], in the same order.
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

/// A run of a team.
pub(crate) fn row_of(conn: &Connection, team: TeamId, run: RunId) -> Result<RunRow> {
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM runs WHERE id = ?1 AND team_id = ?2"
    ))?
    .query_row(params![Blob(run.as_uuid()), Blob(team.as_uuid())], read_row)
    .optional()?
    .ok_or(StoreError::NotFound)?
}
