//! Many runs at once: stop, retry.

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
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody, whole};
use crate::api::error::ApiError;
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::word;

/// Most runs of one call: it is one transaction, and others wait for it.
const MANY_RUNS_MAX: u32 = 1000;

/// Which runs: those that meet all that is given.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ManyRunsRequest {
    /// Only runs with one of these statuses. A stop takes `pending`, `starting`, `running` and `waiting`, a retry `failed`;
    /// without it, all of these.
    #[schema(min_items = 1, example = json!(["failed"]))]
    status: Option<Vec<String>>,
    /// Only runs of this agent.
    #[schema(value_type = Option<Uuid>)]
    agent_id: Option<AgentId>,
    /// Only runs from here: `api`, `web`, `schedule`, `mcp` or `cli`.
    source: Option<String>,
    /// Only runs made at this moment or later.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only runs made before this moment.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// True: no criterion is needed. Beside criteria it changes nothing.
    all: Option<bool>,
    /// Only the oldest so many.
    #[schema(minimum = 1, maximum = 1000, default = 1000)]
    #[serde(default, deserialize_with = "whole")]
    limit: Option<u32>,
    /// True: nothing is changed; `runs` are those that would be.
    dry_run: Option<bool>,
}

impl RequestBody for ManyRunsRequest {}

/// What became of many runs.
#[derive(Serialize, ToSchema)]
pub(crate) struct ManyRunsResponse {
    /// How many matched, at most `limit`.
    matched: u64,
    /// How many were changed.
    changed: u64,
    /// Whether more match than `limit`: a further call takes them.
    more: bool,
    /// Those that were changed, or, with `dry_run`, would be; the oldest first.
    #[schema(value_type = Vec<Uuid>)]
    runs: Vec<RunId>,
}

impl ManyRunsRequest {
    /// Checks what is wanted against what such a call can concern.
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
                return Err(ApiError::invalid("status", "it takes at least one status"));
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
            .transpose()?
            .map(str::to_owned);
        let limit = self.limit.unwrap_or(MANY_RUNS_MAX);
        if !(1..=MANY_RUNS_MAX).contains(&limit) {
            return Err(ApiError::invalid(
                "limit",
                format!("{limit} does not fit: it takes a whole number from 1 to {MANY_RUNS_MAX}"),
            ));
        }
        if let (Some(since), Some(until)) = (self.since, self.until)
            && until <= since
        {
            return Err(ApiError::invalid(
                "until",
                format!(
                    "no run is made before {until} and not before {since}: it takes a moment after since"
                ),
            ));
        }
        let has_criterion = !statuses.is_empty()
            || self.agent_id.is_some()
            || source.is_some()
            || self.since.is_some()
            || self.until.is_some();
        if !has_criterion && self.all != Some(true) {
            return Err(ApiError::bad_request(
                "it is not said which runs: give status, agent_id, source, since or until, or \"all\": true for every run",
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

/// Stops the runs that match and have not ended, the oldest first; each as `POST /v1/runs/{run_id}/stop` does.
#[utoipa::path(post, path = "/v1/runs/stop", tag = "Runs", request_body = ManyRunsRequest,
    responses((status = 200, description = "They are stopped.", body = ManyRunsResponse)))]
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

/// Puts the failed runs that match in line again, the oldest first; each as `POST /v1/runs/{run_id}/retry` does.
#[utoipa::path(post, path = "/v1/runs/retry", tag = "Runs", request_body = ManyRunsRequest,
    responses((status = 200, description = "They are in line.", body = ManyRunsResponse)))]
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
