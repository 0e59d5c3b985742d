//! Endpoints that stop or retry several runs at once.

use axum::extract::State;
use axum::response::Response;
use errand_core::id::{AgentId, RunId};
use errand_core::run::Status;
use errand_core::time::Timestamp;
use errand_store::model::{ManyRuns, ManyRunsDone};
use errand_store::{RETRIABLE, STOPPABLE, StoredAnswer};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::runs::SOURCES;
use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody, whole};
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::word;
use crate::http::error::ApiError;
use crate::state::AppState;

/// Maximum number of runs in one call. A call is one transaction, for which other writes wait.
const MANY_RUNS_MAX: u32 = 1000;

/// A selection of runs. A run must match all given criteria.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ManyRunsRequest {
    /// Only runs with one of these statuses. Stopping accepts `pending`, `starting`, `running` and `waiting`, retrying
    /// accepts `failed`. Default: all of these.
    #[schema(min_items = 1, example = json!(["failed"]))]
    status: Option<Vec<String>>,
    /// Only runs of this agent.
    #[schema(value_type = Option<Uuid>)]
    agent_id: Option<AgentId>,
    /// Only runs from this source: `api`, `web`, `schedule`, `mcp` or `cli`.
    source: Option<String>,
    /// Only runs created at or after this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only runs created before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// If true, no criterion is required. If there are criteria, it has no effect.
    all: Option<bool>,
    /// The maximum number of runs, oldest first.
    #[schema(minimum = 1, maximum = 1000, default = 1000)]
    #[serde(default, deserialize_with = "whole")]
    limit: Option<u32>,
    /// If true, nothing is changed, and `runs` lists the runs that would be changed.
    dry_run: Option<bool>,
}

impl RequestBody for ManyRunsRequest {}

/// The result of a bulk operation.
#[derive(Serialize, ToSchema)]
pub(crate) struct ManyRunsResponse {
    /// The number of matching runs, at most `limit`.
    matched: u64,
    /// The number of changed runs.
    changed: u64,
    /// Whether more than `limit` runs match. Another call changes the next ones.
    more: bool,
    /// The changed runs, or with `dry_run` the runs that would be changed, oldest first.
    #[schema(value_type = Vec<Uuid>)]
    runs: Vec<RunId>,
}

impl ManyRunsRequest {
    /// Validates the selection. `possible`: the statuses to which the operation applies.
    fn checked(
        self,
        caller: &Caller,
        possible: &[Status],
        now: Timestamp,
    ) -> Result<ManyRuns, ApiError> {
        let words: Vec<_> = possible
            .iter()
            .map(|status| (status.as_str(), *status))
            .collect();
        let statuses = match &self.status {
            Some(none) if none.is_empty() => {
                return Err(ApiError::invalid("status", "must have at least one status"));
            }
            Some(texts) => texts
                .iter()
                .map(|text| word("status", text, &words))
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let source = self
            .source
            .as_deref()
            .map(|text| word("source", text, &SOURCES))
            .transpose()?;
        let limit = self.limit.unwrap_or(MANY_RUNS_MAX);
        if !(1..=MANY_RUNS_MAX).contains(&limit) {
            return Err(ApiError::invalid(
                "limit",
                format!("{limit} is out of range; it must be an integer from 1 to {MANY_RUNS_MAX}"),
            ));
        }
        if let (Some(since), Some(until)) = (self.since, self.until)
            && until <= since
        {
            return Err(ApiError::invalid(
                "until",
                format!("no time is between {since} and {until}: it must be later than since"),
            ));
        }
        let has_criterion = !statuses.is_empty()
            || self.agent_id.is_some()
            || source.is_some()
            || self.since.is_some()
            || self.until.is_some();
        if !has_criterion && self.all != Some(true) {
            return Err(ApiError::bad_request(
                "no runs are selected: send status, agent_id, source, since or until, or \"all\": true for all runs",
            ));
        }
        Ok(ManyRuns {
            team: caller.team(),
            statuses,
            agent: self.agent_id,
            source,
            since: self.since,
            until: self.until,
            limit,
            dry_run: self.dry_run.unwrap_or(false),
            by: caller.by(),
            now,
        })
    }
}

fn render(done: &ManyRunsDone) -> StoredAnswer {
    rendered(
        StatusCode::OK,
        &ManyRunsResponse {
            matched: done.matched,
            changed: done.changed,
            more: done.more,
            runs: done.runs.clone(),
        },
    )
}

/// Stops the matching runs that have not ended, oldest first.
///
/// Each run is stopped as by `POST /v1/runs/{run_id}/stop`.
#[utoipa::path(post, path = "/v1/runs/stop", tag = "Runs", request_body = ManyRunsRequest,
    responses((status = 200, description = "The stopped runs.", body = ManyRunsResponse)))]
pub(crate) async fn stop_runs(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<ManyRunsRequest>,
) -> Result<Response, ApiError> {
    let many = body.value.checked(&caller, &STOPPABLE, app.clock.now())?;
    let once = key.once(&caller, body.sha256, render);
    Ok(response(app.store.stop_many(many, once).await?, render))
}

/// Queues the matching failed runs again, oldest first.
///
/// Each run is retried as by `POST /v1/runs/{run_id}/retry`.
#[utoipa::path(post, path = "/v1/runs/retry", tag = "Runs", request_body = ManyRunsRequest,
    responses((status = 200, description = "The queued runs.", body = ManyRunsResponse)))]
pub(crate) async fn retry_runs(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<ManyRunsRequest>,
) -> Result<Response, ApiError> {
    let many = body.value.checked(&caller, &RETRIABLE, app.clock.now())?;
    let once = key.once(&caller, body.sha256, render);
    Ok(response(app.store.retry_many(many, once).await?, render))
}
