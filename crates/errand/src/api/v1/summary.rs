//! The endpoint for statistics of the team's runs, by day and by agent.

use axum::Json as Answered;
use axum::extract::State;
use errand_core::run::Status;
use errand_core::time::Day;
use errand_core::wire::RunBody;
use errand_store::{AgentSummary, RunSums};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::query::{Given, Query, QueryParams};
use crate::http::error::ApiError;
use crate::state::AppState;

pub(crate) const SUMMARY_QUERY: &[&str] = &["since", "until"];

/// Number of days if the caller gives none.
const DAYS_DEFAULT: i64 = 30;
/// Maximum number of days in one response: five years.
const DAYS_MAX: i64 = 1_830;

/// Query parameters of the summary.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what Days reads")]
pub(crate) struct SummaryQueryParams {
    /// The first day (UTC), such as `2026-11-01`, or a time on that day. Default: 30 days ago.
    since: Option<String>,
    /// The day after the last one. Default: tomorrow, so that today is included.
    until: Option<String>,
}

/// A range of days from a query.
pub(crate) struct Days {
    since: Option<Day>,
    until: Option<Day>,
}

impl QueryParams for Days {
    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self {
            since: given.parsed("since")?,
            until: given.parsed("until")?,
        })
    }
}

impl Days {
    /// The first day, and the day after the last one.
    pub(super) fn span(&self, app: &AppState) -> Result<(Day, Day), ApiError> {
        let until = self.until.unwrap_or_else(|| app.clock.now().day().plus(1));
        let since = self.since.unwrap_or_else(|| until.plus(-DAYS_DEFAULT));
        if since >= until {
            return Err(ApiError::invalid(
                "until",
                format!("no day is between {since} and {until}: it must be later than since"),
            ));
        }
        if until.number() - since.number() > DAYS_MAX {
            return Err(ApiError::invalid(
                "since",
                format!("must be at most {DAYS_MAX} days before until"),
            ));
        }
        Ok((since, until))
    }
}

/// Counts of runs by outcome.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunSumsBody {
    /// The number of started runs.
    started: u64,
    /// The number of times a run completed. A resumed run ends again.
    completed: u64,
    /// The number of times a run failed.
    failed: u64,
    /// The number of times a run was stopped.
    interrupted: u64,
}

impl From<&RunSums> for RunSumsBody {
    fn from(sums: &RunSums) -> Self {
        Self {
            started: sums.started,
            completed: sums.completed,
            failed: sums.failed,
            interrupted: sums.interrupted,
        }
    }
}

/// Statistics of one day.
#[derive(Serialize, ToSchema)]
pub(crate) struct DaySummaryBody {
    #[schema(value_type = String, example = "2026-11-23")]
    day: Day,
    #[serde(flatten)]
    sums: RunSumsBody,
}

/// Statistics of one agent.
#[derive(Serialize, ToSchema)]
pub(crate) struct AgentSummaryBody {
    agent_id: Uuid,
    agent_name: String,
    #[serde(flatten)]
    sums: RunSumsBody,
    /// The share of completed runs among completed and failed ones, from 0 to 1. Null if there are none.
    #[schema(required)]
    success_rate: Option<f64>,
    /// The agent's newest run, at any time.
    #[schema(required)]
    last_run: Option<RunBody>,
}

impl From<&AgentSummary> for AgentSummaryBody {
    fn from(of: &AgentSummary) -> Self {
        Self {
            agent_id: of.agent.as_uuid(),
            agent_name: of.name.clone(),
            sums: (&of.sums).into(),
            success_rate: success_rate(&of.sums),
            last_run: of.last_run.clone(),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of runs stay far below 2^52"
)]
fn success_rate(sums: &RunSums) -> Option<f64> {
    let ended = sums.completed + sums.failed;
    (ended > 0).then(|| sums.completed as f64 / ended as f64)
}

/// Numbers of unfinished runs by status.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct UnderWayBody {
    pending: u64,
    starting: u64,
    running: u64,
    /// The number of runs that wait for an answer, equal to the number of open human requests.
    waiting: u64,
}

/// Statistics of the team's runs.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunsSummaryResponse {
    /// The first day (UTC).
    #[schema(value_type = String, example = "2026-11-01")]
    since: Day,
    /// The day after the last one.
    #[schema(value_type = String, example = "2026-12-01")]
    until: Day,
    /// Every day, oldest first.
    days: Vec<DaySummaryBody>,
    /// All existing agents, newest first.
    agents: Vec<AgentSummaryBody>,
    /// Unfinished runs, at the time of the request.
    now: UnderWayBody,
}

/// Returns statistics of the team's runs by day and by agent, and the number of unfinished runs.
///
/// It reads stored sums, so its cost does not depend on the number of runs.
#[utoipa::path(get, path = "/v1/runs/summary", tag = "Runs", params(SummaryQueryParams),
    responses((status = 200, description = "The summary.", body = RunsSummaryResponse)))]
pub(crate) async fn get_runs_summary(
    caller: Caller,
    State(app): State<AppState>,
    Query(days): Query<Days>,
) -> Result<Answered<RunsSummaryResponse>, ApiError> {
    let (since, until) = days.span(&app)?;
    let summary = app.store.runs_summary(caller.team(), since, until).await?;
    let day = |(day, sums): &(Day, RunSums)| DaySummaryBody {
        day: *day,
        sums: sums.into(),
    };
    let mut now = UnderWayBody::default();
    for (status, count) in &summary.now {
        match status {
            Status::Pending => now.pending = *count,
            Status::Starting => now.starting = *count,
            Status::Running => now.running = *count,
            Status::Waiting => now.waiting = *count,
            Status::Completed | Status::Failed | Status::Interrupted => {}
        }
    }
    Ok(Answered(RunsSummaryResponse {
        since,
        until,
        days: summary.days.iter().map(day).collect(),
        agents: summary.agents.iter().map(AgentSummaryBody::from).collect(),
        now,
    }))
}
