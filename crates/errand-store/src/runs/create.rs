//! Creates runs: the one way that the API, child runs, forks and repairs share.

use errand_core::config::BuildConfig;
use errand_core::id::{AgentId, ApiKeyId, BuildId, RunId, SandboxId, TeamId, UserId};
use errand_core::run::{RunSource, Status};
use errand_core::time::Timestamp;
use errand_core::wire::RunBody;

use crate::db::sqlite::Tx;
use crate::error::Result;
use crate::model::Principal;
use crate::runs::change::Change;
use crate::runs::queries::run_body;
use crate::runs::row::RunRow;
use crate::runs::settle::settle;
use crate::stats::counters;

/// Maximum number of characters in a run's title.
const TITLE_CHARS_MAX: usize = 80;

/// A run to create. All other columns begin at zero or without a value.
pub(crate) struct NewRun<'a> {
    pub(crate) team: TeamId,
    pub(crate) id: RunId,
    pub(crate) agent: AgentId,
    pub(crate) build: BuildId,
    /// The build's configuration, limited to what a caller allows.
    pub(crate) config: &'a BuildConfig,
    /// `None`: another run starts it.
    pub(crate) source: Option<RunSource>,
    /// The person who starts it, directly or with an API key.
    pub(crate) started_by: Option<UserId>,
    pub(crate) api_key: Option<ApiKeyId>,
    pub(crate) principal: Principal,
    pub(crate) title: Option<String>,
    /// A sandbox that has a row already.
    pub(crate) sandbox: Option<SandboxId>,
    pub(crate) sandbox_ttl_ms: u64,
    pub(crate) webhook_url: Option<String>,
    pub(crate) human_webhook_url: Option<String>,
    /// Whether people may be asked.
    pub(crate) human_in_the_loop: bool,
    pub(crate) now: Timestamp,
}

/// Creates a run: its row, the entries that `begin` appends, its place in the queue, its event and its statistics.
pub(crate) fn create_run(
    tx: &Tx<'_>,
    new: NewRun<'_>,
    begin: impl FnOnce(&mut Change<'_>) -> Result<()>,
) -> Result<RunBody> {
    let now = new.now;
    let model = new.config.model.to_string();
    let row = row_of(new);
    row.insert(tx)?;
    counters::started(tx, &row, &model)?;
    let mut change = Change::new(tx, row, now);
    change.mark_updated();
    change.count_today()?;
    begin(&mut change)?;
    change.queue()?;
    let body = run_body(tx, &change.row)?;
    settle(change)?;
    Ok(body)
}

/// The title of a run: the first line of its first message that is not empty, cut off.
pub(crate) fn title_of(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(TITLE_CHARS_MAX).collect())
}

fn row_of(new: NewRun<'_>) -> RunRow {
    RunRow {
        id: new.id,
        team: new.team,
        agent: new.agent,
        build: new.build,
        status: Status::Pending,
        source: new.source,
        title: new.title,
        sandbox: new.sandbox,
        sandbox_ttl_ms: new.sandbox_ttl_ms,
        webhook_url: new.webhook_url,
        human_webhook_url: new.human_webhook_url,
        human_in_the_loop: new.human_in_the_loop,
        error: None,
        created_at: new.now,
        updated_at: new.now,
        started_at: None,
        completed_at: None,
        position: 0,
        shown: 0,
        sequence: 0,
        newest_user: 0,
        turn: 0,
        step: 0,
        claim: None,
        claim_boot: None,
        claimed_at: None,
        wake_at: None,
        deadline: None,
        limit_ms: new.config.limits.seconds.saturating_mul(1000),
        active_ms: 0,
        waiting_kind: None,
        waiting_who: None,
        waiting_since: None,
        waiting_deadline: None,
        request: None,
        steps: 0,
        model_calls: 0,
        tool_calls: 0,
        input_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        cost_usd: 0.0,
        api_key: new.api_key,
        model_ms: 0,
        unpriced_tokens: 0,
        estimated_tokens: 0,
        started_by: new.started_by,
        principal: new.principal,
    }
}
