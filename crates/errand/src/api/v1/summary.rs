//! How the team's runs went, by day and by agent: for an overview.

use axum::Json as Answered;
use axum::extract::State;
use errand_core::run::Status;
use errand_core::time::Day;
use errand_core::wire::RunBody;
use errand_store::{AgentSummary, RunSums};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::query::{Given, Query, QueryParams};

/// What `GET /v1/runs/summary` takes.
pub(crate) const SUMMARY_QUERY: &[&str] = &["since", "until"];

/// Days that are summed where the caller names none.
const DAYS_DEFAULT: i64 = 30;
/// Most days of one answer: five years.
const DAYS_MAX: i64 = 1_830;

/// Which days.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what Days reads")]
pub(crate) struct SummaryQueryParams {
    /// From this day (UTC) on, such as `2026-11-01`, or the day of a time; 30 days ago, unless it is given.
    since: Option<String>,
    /// Before this day; through today, unless it is given.
    until: Option<String>,
}

/// Days as they were asked for.
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
    /// The first day, and the one after the last.
    pub(super) fn span(&self, app: &AppState) -> Result<(Day, Day), ApiError> {
        let until = self.until.unwrap_or_else(|| app.clock.now().day().plus(1));
        let since = self.since.unwrap_or_else(|| until.plus(-DAYS_DEFAULT));
        if since >= until {
            return Err(ApiError::invalid(
                "until",
                format!(
                    "no day is before {until} and not before {since}: it takes a day after since"
                ),
            ));
        }
        if until.number() - since.number() > DAYS_MAX {
            return Err(ApiError::invalid(
                "since",
                format!("it takes a day at most {DAYS_MAX} days before until"),
            ));
        }
        Ok((since, until))
    }
}

/// How runs went.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunSumsBody {
    /// Runs that were started.
    started: u64,
    /// Ends as completed. A run that is resumed ends again.
    completed: u64,
    /// Ends as failed.
    failed: u64,
    /// Ends by a stop.
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

/// How the runs of a day went.
#[derive(Serialize, ToSchema)]
pub(crate) struct DaySummaryBody {
    #[schema(value_type = String, example = "2026-11-23")]
    day: Day,
    #[serde(flatten)]
    sums: RunSumsBody,
}

/// How an agent's runs went.
#[derive(Serialize, ToSchema)]
pub(crate) struct AgentSummaryBody {
    agent_id: Uuid,
    agent_name: String,
    #[serde(flatten)]
    sums: RunSumsBody,
    /// Of the ends as completed or failed, the part that is completed: 0 to 1; null where there are none.
    #[schema(required)]
    success_rate: Option<f64>,
    /// Its newest run, whenever that was.
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

/// How many runs are under way.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct UnderWayBody {
    pending: u64,
    starting: u64,
    running: u64,
    /// For an answer: so many human requests are open.
    waiting: u64,
}

/// How the team's runs went, and what is under way.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunsSummaryResponse {
    /// The first day (UTC).
    #[schema(value_type = String, example = "2026-11-01")]
    since: Day,
    /// The day after the last.
    #[schema(value_type = String, example = "2026-12-01")]
    until: Day,
    /// Each day, the first first.
    days: Vec<DaySummaryBody>,
    /// The agents that are there, newest first.
    agents: Vec<AgentSummaryBody>,
    /// What is under way now, whenever it was started.
    now: UnderWayBody,
}

/// How the team's runs went by day and by agent, and what is under way: for an overview. It reads sums, not runs.
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
