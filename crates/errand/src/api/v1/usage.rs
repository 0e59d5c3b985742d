//! What models use up: sums, the calls of a run, and what a team may spend.

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
use http::header::{self, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::csv::Csv;
use super::summary::Days;
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::path::Path;
use crate::api::query::{Given, Query, QueryParams, word};

/// What `GET /v1/usage` takes.
pub(crate) const QUERY: &[&str] = &["group_by", "since", "until", "format"];

const KEYS: [(&str, UsageKey); 4] = [
    ("day", UsageKey::Day),
    ("agent", UsageKey::Agent),
    ("model", UsageKey::Model),
    ("key", UsageKey::ApiKey),
];

/// Which sums.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what UsageParams reads")]
pub(crate) struct UsageQueryParams {
    /// What sums are made by: `day` (UTC), `agent`, `model` or `key` (the API key with which runs were started, for admins
    /// and owners); may be repeated, for sums by each combination.
    #[param(explode = true, default = json!(["day"]))]
    group_by: Option<Vec<String>>,
    /// From this day on, such as `2026-11-01`, or the day of a time; 30 days ago, unless it is given.
    since: Option<String>,
    /// Before this day; through today, unless it is given.
    until: Option<String>,
    /// `json` or `csv`. Without it, CSV is given to who accepts `text/csv` alone.
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

fn seconds(ms: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliseconds stay far below 2^52"
    )]
    let ms = ms as f64;
    ms / 1000.0
}

/// What the team may spend.
#[derive(Serialize, ToSchema)]
pub(crate) struct LimitsResponse {
    /// US dollars in a calendar month (UTC). Null: no limit.
    #[schema(required)]
    cost_usd_month: Option<f64>,
    /// US dollars spent in this month, as far as prices are known.
    spent_usd_month: f64,
    /// Tokens of this month whose price is not known: the limit does not count them.
    unknown_tokens_month: u64,
}

/// What the team may spend, and how much of the server's disk its sandboxes may hold.
#[derive(Serialize, ToSchema)]
pub(crate) struct TeamLimitsResponse {
    /// US dollars in a calendar month (UTC). Null: no limit.
    #[schema(required)]
    cost_usd_month: Option<f64>,
    /// US dollars spent in this month, as far as prices are known.
    spent_usd_month: f64,
    /// Tokens of this month whose price is not known: the limit does not count them.
    unknown_tokens_month: u64,
    /// Bytes that the team's sandboxes hold on the server's disk now.
    sandbox_bytes: u64,
    /// The most that they may hold together; the operator sets it. Null: no limit.
    #[schema(required)]
    sandbox_bytes_max: Option<u64>,
}

/// What the team may spend.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeLimitsRequest {
    /// US dollars in a calendar month (UTC); null for no limit. A run that reaches it asks a person whether to go on, or
    /// fails with `limit_exceeded` where it may ask nobody.
    #[schema(required)]
    #[serde(deserialize_with = "given")]
    cost_usd_month: Option<f64>,
}

/// A field that may be null and has to be there.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Option::deserialize(deserializer)
}

impl RequestBody for ChangeLimitsRequest {}

/// A call of a network model.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelCallBody {
    /// When its answer was recorded.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// `provider/name`.
    model: String,
    /// `turn`, or `summary` where older turns were summarised.
    purpose: String,
    /// Tokens that were sent.
    input_tokens: u64,
    /// Of these, from the provider's cache.
    cached_tokens: u64,
    /// Tokens that came back.
    output_tokens: u64,
    /// US dollars; null where the model's price is not known.
    #[schema(required)]
    cost_usd: Option<f64>,
    /// Whether the provider did not count the tokens, or not all, so that these are an estimate.
    estimated: bool,
    /// How long the answer took.
    seconds: f64,
    /// Which attempt it was, from 1.
    attempt: u32,
    /// `answered`; `cut_off` at its greatest length; `empty`; `refused` by the provider or the model; `failed` on the
    /// way; `canceled`, because the run was stopped or the server stops. A failed attempt is made again.
    outcome: String,
    /// Why it failed.
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
    /// In their order.
    model_calls: Vec<ModelCallBody>,
}

/// What was used up.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageSumsBody {
    /// Runs that were started.
    runs: u64,
    /// Calls of network models.
    model_calls: u64,
    /// Tokens that were sent.
    input_tokens: u64,
    /// Of these, from the provider's cache.
    cached_tokens: u64,
    /// Tokens that came back.
    output_tokens: u64,
    /// US dollars, by the prices of when they were used. Null where it is not known: the price of some of these tokens is
    /// not. `cost_known_usd` has the rest.
    #[schema(required)]
    cost_usd: Option<f64>,
    /// US dollars of the tokens whose price is known, where it is not known for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_known_usd: Option<f64>,
    /// Tokens whose price is not known. Absent: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_unknown_tokens: Option<u64>,
    /// Tokens of calls that the provider did not count, or not whole: an estimate. Absent: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimated_tokens: Option<u64>,
    /// Time spent waiting for models' answers.
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

/// A sum. Of what it is made by, the fields are there; of the rest they are not.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageLineBody {
    /// Of which day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "2026-11-23")]
    day: Option<Day>,
    /// Of which agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<Uuid>,
    /// The agent's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_name: Option<String>,
    /// Of which model: `provider/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// With which API key the runs were started; null: with none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    api_key_id: Option<Option<Uuid>>,
    /// The key's name; null where there is none, or the key is deleted.
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

/// What was used up.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageResponse {
    /// The first day (UTC).
    #[schema(value_type = String, example = "2026-11-01")]
    since: Day,
    /// The day after the last.
    #[schema(value_type = String, example = "2026-12-01")]
    until: Day,
    /// By day in order; then what cost most first.
    usage: Vec<UsageLineBody>,
    /// All of it together.
    sum: UsageSumsBody,
}

/// What the team's runs used up: runs, tokens and cost by day (UTC), agent, model and key. As JSON, or with `format=csv` as
/// CSV, with the same columns.
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
            "the role member does not show API keys: an admin or owner of the team sees them",
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
    if params.csv.unwrap_or_else(|| wants_csv(&headers)) {
        return csv_file(&query, &lines);
    }
    Ok(Answered(UsageResponse {
        since,
        until,
        usage: lines.iter().map(UsageLineBody::from).collect(),
        sum: (&sum).into(),
    })
    .into_response())
}

fn wants_csv(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    accept.is_some_and(|accept| accept.trim().eq_ignore_ascii_case("text/csv"))
}

/// Sums as a file for a spreadsheet.
pub(crate) fn csv_file(query: &StoreQuery, lines: &[UsageLine]) -> Result<Response, ApiError> {
    let (since, until) = (query.since, query.until);
    let name = format!("attachment; filename=\"usage-{since}-{until}.csv\"");
    let disposition = HeaderValue::try_from(name).map_err(ApiError::internal)?;
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/csv; charset=utf-8"),
        ),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, csv_of(&query.by, lines)).into_response())
}

fn csv_of(by: &[UsageKey], lines: &[UsageLine]) -> String {
    let is = |key: UsageKey| by.contains(&key);
    let mut head = Vec::new();
    for (key, columns) in [
        (UsageKey::Day, &["day"][..]),
        (UsageKey::Agent, &["agent_id", "agent_name"]),
        (UsageKey::Model, &["model"]),
        (UsageKey::ApiKey, &["api_key_id", "api_key_name"]),
    ] {
        if is(key) {
            head.extend_from_slice(columns);
        }
    }
    head.extend_from_slice(&[
        "runs",
        "model_calls",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "cost_usd",
        "model_seconds",
    ]);
    let mut csv = Csv::new(&head);
    for line in lines.iter().map(UsageLineBody::from) {
        let id = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
        if let Some(day) = line.day {
            csv.value(day);
        }
        if is(UsageKey::Agent) {
            csv.value(id(line.agent_id));
            csv.text(&line.agent_name.unwrap_or_default());
        }
        if let Some(model) = &line.model {
            csv.text(model);
        }
        if let Some(key) = line.api_key_id {
            csv.value(id(key));
            csv.text(&line.api_key_name.flatten().unwrap_or_default());
        }
        let sums = line.sums;
        for number in [
            sums.runs,
            sums.model_calls,
            sums.input_tokens,
            sums.cached_tokens,
            sums.output_tokens,
        ] {
            csv.value(number);
        }
        match sums.cost_usd {
            Some(usd) => csv.value(usd),
            // Not known.
            None => csv.text(""),
        }
        csv.value(sums.model_seconds);
        csv.end_line();
    }
    csv.finish()
}

/// What the team may spend in a month, and has; and what its sandboxes hold, and may hold.
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

/// Sets what the team may spend in a month.
#[utoipa::path(patch, path = "/v1/usage/limits", tag = "Models", request_body = ChangeLimitsRequest,
    responses((status = 200, description = "It holds from the next model call on.", body = LimitsResponse)))]
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
            "it takes a number above 0, or null",
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

/// The calls of network models that a run has made, with what each used up.
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
