//! Endpoints for model usage: sums, the calls of a run, and the team's spending limit.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use errand_core::budget::TeamMonth;
use errand_core::id::RunId;
use errand_core::role::Permission;
use errand_core::time::{Day, Timestamp};
use errand_core::transcript::{AnswerKind, AttemptOutcome, Purpose};
use errand_store::model::ModelCallRow;
use errand_store::{StoredAnswer, UsageKey, UsageLine, UsageQuery as StoreQuery, UsageSums};
use http::header;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::summary::Days;
use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody};
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::{Given, Query, QueryParams, word};
use crate::http::error::{ApiError, ErrorCode};
use crate::http::file_response;
use crate::http::path::Path;
use crate::http::vary;
use crate::state::AppState;
use crate::usecase::usage_csv::{seconds, usage_csv};

pub(crate) const QUERY: &[&str] = &["group_by", "since", "until", "format"];

const KEYS: [(&str, UsageKey); 4] = [
    ("day", UsageKey::Day),
    ("agent", UsageKey::Agent),
    ("model", UsageKey::Model),
    ("key", UsageKey::ApiKey),
];

/// Query parameters of the usage report.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what UsageParams reads")]
pub(crate) struct UsageQueryParams {
    /// The grouping: `day` (UTC), `agent`, `model` or `key` (the API key that started the run; only for admins and
    /// owners). Repeat it to group by combinations.
    #[param(explode = true, default = json!(["day"]))]
    group_by: Option<Vec<String>>,
    /// The first day, such as `2026-11-01`, or a time on that day. Default: 30 days ago.
    since: Option<String>,
    /// The day after the last one. Default: tomorrow, so that today is included.
    until: Option<String>,
    /// `json` or `csv`. Default: CSV if the request accepts only `text/csv`, otherwise JSON.
    format: Option<String>,
}

pub(crate) struct UsageParams {
    by: Vec<UsageKey>,
    days: Days,
    csv: Option<bool>,
}

impl QueryParams for UsageParams {
    fn read(given: &Given) -> Result<Self, ApiError> {
        let mut by = given
            .many("group_by")
            .map(|text| word("group_by", text, &KEYS))
            .collect::<Result<Vec<_>, _>>()?;
        if by.is_empty() {
            by.push(UsageKey::Day);
        }
        Ok(Self {
            by,
            days: Days::read(given)?,
            csv: given
                .one("format")?
                .map(|text| word("format", text, &[("json", false), ("csv", true)]))
                .transpose()?,
        })
    }
}

/// The team's spending limit.
#[derive(Serialize, ToSchema)]
pub(crate) struct LimitsResponse {
    /// The limit in US dollars per calendar month (UTC). Null if there is no limit.
    #[schema(required)]
    cost_usd_month: Option<f64>,
    /// US dollars spent this month, as far as prices are known.
    spent_usd_month: f64,
    /// Tokens of this month without a known price. They do not count toward the limit.
    unknown_tokens_month: u64,
}

/// The team's limits on spending and disk space.
#[derive(Serialize, ToSchema)]
pub(crate) struct TeamLimitsResponse {
    /// The limit in US dollars per calendar month (UTC). Null if there is no limit.
    #[schema(required)]
    cost_usd_month: Option<f64>,
    /// US dollars spent this month, as far as prices are known.
    spent_usd_month: f64,
    /// Tokens of this month without a known price. They do not count toward the limit.
    unknown_tokens_month: u64,
    /// The size of all sandboxes of the team on the server's disk, in bytes.
    sandbox_bytes: u64,
    /// The operator's limit on that size. Null if there is no limit.
    #[schema(required)]
    sandbox_bytes_max: Option<u64>,
}

/// The request to change the team's spending limit.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeLimitsRequest {
    /// US dollars per calendar month (UTC), or null for no limit. A run that reaches it asks a person whether to
    /// continue, or fails with `limit_exceeded` if it may not ask.
    #[schema(required)]
    #[serde(deserialize_with = "given")]
    cost_usd_month: Option<f64>,
}

/// Deserializes a field that may be null but must be present.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Option::deserialize(deserializer)
}

impl RequestBody for ChangeLimitsRequest {}

/// A call of a network model.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelCallBody {
    /// The time when the answer was recorded.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// `provider/name`.
    model: String,
    /// `turn`, or `summary` if older turns were summarized.
    purpose: String,
    /// The number of input tokens.
    input_tokens: u64,
    /// The number of input tokens from the provider's cache.
    cached_tokens: u64,
    /// The number of output tokens.
    output_tokens: u64,
    /// The cost in US dollars. Null if the price of the model is unknown.
    #[schema(required)]
    cost_usd: Option<f64>,
    /// Whether some of the token counts are estimates, because the provider did not report them.
    estimated: bool,
    /// The duration of the call.
    seconds: f64,
    /// The number of the attempt, starting at 1.
    attempt: u32,
    /// `answered`; `cut_off` at the maximum length; `empty`; `refused` by the provider or the model; `failed` in
    /// transit, which is retried; or `canceled`, because the run or the server was stopped.
    outcome: String,
    /// The reason for a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<ModelCallRow> for ModelCallBody {
    fn from(row: ModelCallRow) -> Self {
        let purpose = match row.call.purpose {
            Purpose::Turn => "turn",
            Purpose::Summary => "summary",
        };
        let outcome = match (&row.failed, row.call.answer) {
            (Some((AttemptOutcome::Failed, _)), _) => "failed",
            (Some((AttemptOutcome::Canceled, _)), _) => "canceled",
            (None, AnswerKind::Whole) => "answered",
            (None, AnswerKind::Cut) => "cut_off",
            (None, AnswerKind::Empty) => "empty",
            (None, AnswerKind::Refused) => "refused",
        };
        let error = row.failed.map(|(_, error)| error);
        Self {
            created_at: row.at,
            model: row.call.model,
            purpose: purpose.to_owned(),
            input_tokens: row.call.input_tokens,
            cached_tokens: row.call.cached_tokens,
            output_tokens: row.call.output_tokens,
            cost_usd: (!row.call.unpriced).then_some(row.call.cost_usd),
            estimated: row.call.estimated,
            seconds: seconds(row.call.ms),
            attempt: row.call.attempt,
            outcome: outcome.to_owned(),
            error: error.filter(|error| !error.is_empty()),
        }
    }
}

/// A run's calls of network models.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelCallListResponse {
    /// Oldest first.
    model_calls: Vec<ModelCallBody>,
}

/// Usage sums.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageSumsBody {
    /// The number of started runs.
    runs: u64,
    /// The number of calls of network models.
    model_calls: u64,
    /// The number of input tokens.
    input_tokens: u64,
    /// The number of input tokens from the provider's cache.
    cached_tokens: u64,
    /// The number of output tokens.
    output_tokens: u64,
    /// The cost in US dollars, with the prices at the time of use. Null if the price of some tokens is unknown;
    /// `cost_known_usd` has the rest.
    #[schema(required)]
    cost_usd: Option<f64>,
    /// The cost of the tokens with a known price, if the price of others is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_known_usd: Option<f64>,
    /// The number of tokens without a known price. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_unknown_tokens: Option<u64>,
    /// The number of estimated tokens, which the provider did not report. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimated_tokens: Option<u64>,
    /// The time spent waiting for models.
    model_seconds: f64,
}

impl From<&UsageSums> for UsageSumsBody {
    fn from(sums: &UsageSums) -> Self {
        Self {
            runs: sums.runs,
            model_calls: sums.model_calls,
            input_tokens: sums.input_tokens,
            cached_tokens: sums.cached_tokens,
            output_tokens: sums.output_tokens,
            cost_usd: (sums.unpriced_tokens == 0).then_some(sums.cost_usd),
            cost_known_usd: (sums.unpriced_tokens > 0).then_some(sums.cost_usd),
            cost_unknown_tokens: Some(sums.unpriced_tokens).filter(|n| *n > 0),
            estimated_tokens: Some(sums.estimated_tokens).filter(|n| *n > 0),
            model_seconds: seconds(sums.model_ms),
        }
    }
}

/// Usage of one group. Only the fields by which it is grouped are present.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageLineBody {
    /// The day (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "2026-11-23")]
    day: Option<Day>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_name: Option<String>,
    /// `provider/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The API key that started the runs. Null for runs without a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    api_key_id: Option<Option<Uuid>>,
    /// The name of the key. Null if there is none, or if the key was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    api_key_name: Option<Option<String>>,
    #[serde(flatten)]
    sums: UsageSumsBody,
}

impl From<&UsageLine> for UsageLineBody {
    fn from(line: &UsageLine) -> Self {
        let (agent, key) = (line.agent.as_ref(), line.api_key.as_ref());
        Self {
            day: line.day,
            agent_id: agent.map(|agent| agent.id.as_uuid()),
            agent_name: agent.and_then(|agent| agent.name.clone()),
            model: line.model.clone(),
            api_key_id: key.map(|key| key.as_ref().map(|key| key.id.as_uuid())),
            api_key_name: key.map(|key| key.as_ref().and_then(|key| key.name.clone())),
            sums: (&line.sums).into(),
        }
    }
}

/// The usage report.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageResponse {
    /// The first day (UTC).
    #[schema(value_type = String, example = "2026-11-01")]
    since: Day,
    /// The day after the last one.
    #[schema(value_type = String, example = "2026-12-01")]
    until: Day,
    /// Sorted by day, then by cost, highest first.
    usage: Vec<UsageLineBody>,
    /// The sum of all groups.
    sum: UsageSumsBody,
}

/// Reports the usage of the team's runs: runs, tokens and cost by day (UTC), agent, model and key.
///
/// The format is JSON, or CSV with the same columns.
#[utoipa::path(get, path = "/v1/usage", tag = "Models", params(UsageQueryParams),
    responses((status = 200, description = "The sums.", content((UsageResponse = "application/json"), (String = "text/csv")))))]
pub(crate) async fn get_usage(
    caller: Caller,
    State(app): State<AppState>,
    headers: HeaderMap,
    Query(params): Query<UsageParams>,
) -> Result<Response, ApiError> {
    if params.by.contains(&UsageKey::ApiKey) && !caller.may(Permission::ManageKeys) {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            "the role member does not permit reading API keys: ask an admin or owner of the team",
        ));
    }
    let (since, until) = params.days.span(&app)?;
    let query = StoreQuery {
        team: caller.team(),
        by: params.by,
        since,
        until,
    };
    let (lines, sum) = app.store.usage_by(query.clone()).await?;
    let mut response = if params.csv.unwrap_or_else(|| wants_csv(&headers)) {
        let text = usage_csv(&query.by, &lines);
        file_response::csv(&format!("usage-{since}-{until}.csv"), text)?
    } else {
        Answered(UsageResponse {
            since,
            until,
            usage: lines.iter().map(UsageLineBody::from).collect(),
            sum: (&sum).into(),
        })
        .into_response()
    };
    if params.csv.is_none() {
        vary::depends_on(&mut response, "accept");
    }
    Ok(response)
}

fn wants_csv(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    accept.is_some_and(|accept| accept.trim().eq_ignore_ascii_case("text/csv"))
}

/// Returns the team's monthly spending and limit, and the disk space of its sandboxes and its limit.
#[utoipa::path(get, path = "/v1/usage/limits", tag = "Models",
    responses((status = 200, description = "The limits.", body = TeamLimitsResponse)))]
pub(crate) async fn get_limits(
    caller: Caller,
    State(app): State<AppState>,
) -> Result<Answered<TeamLimitsResponse>, ApiError> {
    let month = app.store.team_month(caller.team(), app.clock.now()).await?;
    Ok(Answered(TeamLimitsResponse {
        cost_usd_month: month.limit_usd,
        spent_usd_month: month.spent_usd,
        unknown_tokens_month: month.unpriced_tokens,
        sandbox_bytes: app.sandboxes.team_bytes(caller.team()),
        sandbox_bytes_max: app.sandboxes.team_bytes_max(),
    }))
}

/// Sets the team's monthly spending limit.
#[utoipa::path(patch, path = "/v1/usage/limits", tag = "Models", request_body = ChangeLimitsRequest,
    responses((status = 200, description = "The new limit, which applies from the next model call.", body = LimitsResponse)))]
pub(crate) async fn change_limits(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<ChangeLimitsRequest>,
) -> Result<Response, ApiError> {
    let limit = body.value.cost_usd_month;
    if limit.is_some_and(|usd| !usd.is_finite() || usd <= 0.0) {
        return Err(ApiError::invalid(
            "cost_usd_month",
            "must be a number greater than 0, or null",
        ));
    }
    let once = key.once(&caller, body.sha256, render_limits);
    let answer = app
        .store
        .set_team_limit(caller.team(), limit, app.clock.now(), once)
        .await?;
    Ok(response(answer, render_limits))
}

fn render_limits(month: &TeamMonth) -> StoredAnswer {
    rendered(StatusCode::OK, &limits_body(*month))
}

fn limits_body(month: TeamMonth) -> LimitsResponse {
    LimitsResponse {
        cost_usd_month: month.limit_usd,
        spent_usd_month: month.spent_usd,
        unknown_tokens_month: month.unpriced_tokens,
    }
}

/// Lists a run's calls of network models, with the usage of each.
#[utoipa::path(get, path = "/v1/runs/{run_id}/model-calls", tag = "Models",
    params(("run_id" = Uuid, Path, description = "The run.")),
    responses((status = 200, description = "The calls.", body = ModelCallListResponse)))]
pub(crate) async fn list_model_calls(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
) -> Result<Answered<ModelCallListResponse>, ApiError> {
    let rows = app.store.model_calls(caller.team(), run).await?;
    Ok(Answered(ModelCallListResponse {
        model_calls: rows.into_iter().map(ModelCallBody::from).collect(),
    }))
}
