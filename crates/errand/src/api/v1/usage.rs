//! What models use up: sums, the calls of a run, and what a team may spend.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::budget::TeamMonth;
use errand_core::id::RunId;
use errand_core::time::Timestamp;
use errand_core::transcript::Purpose;
use errand_store::StoredAnswer;
use errand_store::model::{ModelCallRow, UsageBy, UsageRow, UsageSpan};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody};
use crate::api::error::ApiError;
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::path::Path;
use crate::api::query::{Given, Query, QueryParams, word};

/// What `GET /v1/usage` takes.
pub(crate) const QUERY: &[&str] = &["by", "since", "until"];

const BY: [(&str, UsageBy); 5] = [
    ("total", UsageBy::Total),
    ("agent", UsageBy::Agent),
    ("model", UsageBy::Model),
    ("key", UsageBy::Key),
    ("day", UsageBy::Day),
];

/// Which sums.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what Which reads")]
pub(crate) struct UsageParams {
    /// What the sums are made by: `total` (one sum), `agent`, `model`, `key` (the API key with which runs were started)
    /// or `day` (UTC).
    #[param(default = "total")]
    by: Option<String>,
    /// From the day of this moment on.
    #[param(format = DateTime)]
    since: Option<String>,
    /// To the day of this moment, which belongs to it.
    #[param(format = DateTime)]
    until: Option<String>,
}

pub(crate) struct Which {
    by: UsageBy,
    span: UsageSpan,
}

impl QueryParams for Which {
    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self {
            by: match given.one("by")? {
                Some(text) => word("by", text, &BY)?,
                None => UsageBy::Total,
            },
            span: UsageSpan {
                since: given.parsed("since")?,
                until: given.parsed("until")?,
            },
        })
    }
}

/// A sum.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageSum {
    /// Of what: an agent's or key's id, `provider/name`, or a date. Null for the total, and for runs started without a key.
    #[schema(required)]
    key: Option<String>,
    /// Its name, where it has one and is there still.
    #[schema(required)]
    name: Option<String>,
    /// Runs started.
    runs: u64,
    /// Calls of network models.
    model_calls: u64,
    /// Tokens that were sent.
    input_tokens: u64,
    /// Of these, from the provider's cache.
    cached_tokens: u64,
    /// Tokens that came back.
    output_tokens: u64,
    /// US dollars, by the price table of when they were used.
    cost_usd: f64,
    /// Time spent waiting for models' answers.
    model_seconds: f64,
}

impl From<UsageRow> for UsageSum {
    fn from(row: UsageRow) -> Self {
        Self {
            key: row.key,
            name: row.label,
            runs: row.runs,
            model_calls: row.model_calls,
            input_tokens: row.input_tokens,
            cached_tokens: row.cached_tokens,
            output_tokens: row.output_tokens,
            cost_usd: row.cost_usd,
            model_seconds: seconds(row.model_ms),
        }
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

/// Sums.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageResponse {
    /// The most expensive first; days in their order. At most 1,000.
    usage: Vec<UsageSum>,
}

/// What the team may spend.
#[derive(Serialize, ToSchema)]
pub(crate) struct LimitsResponse {
    /// US dollars in a calendar month (UTC). Null: no limit.
    #[schema(required)]
    cost_usd_month: Option<f64>,
    /// US dollars spent in this month.
    spent_usd_month: f64,
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
    /// US dollars.
    cost_usd: f64,
    /// How long the answer took.
    seconds: f64,
    /// Which attempt gave it, from 1.
    attempt: u32,
}

impl From<ModelCallRow> for ModelCallBody {
    fn from(row: ModelCallRow) -> Self {
        let purpose = match row.call.purpose {
            Purpose::Turn => "turn",
            Purpose::Summary => "summary",
        };
        Self {
            created_at: row.at,
            model: row.call.model,
            purpose: purpose.to_owned(),
            input_tokens: row.call.input_tokens,
            cached_tokens: row.call.cached_tokens,
            output_tokens: row.call.output_tokens,
            cost_usd: row.call.cost_usd,
            seconds: seconds(row.call.ms),
            attempt: row.call.attempt,
        }
    }
}

/// A run's calls of network models.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelCallListResponse {
    /// In their order.
    model_calls: Vec<ModelCallBody>,
}

/// What the team's runs used up.
#[utoipa::path(get, path = "/v1/usage", tag = "Models", params(UsageParams),
    responses((status = 200, description = "The sums.", body = UsageResponse)))]
pub(crate) async fn get_usage(
    caller: Caller,
    State(app): State<AppState>,
    Query(which): Query<Which>,
) -> Result<Answered<UsageResponse>, ApiError> {
    let rows = app.store.usage(caller.team(), which.span, which.by).await?;
    Ok(Answered(UsageResponse {
        usage: rows.into_iter().map(UsageSum::from).collect(),
    }))
}

/// What the team may spend in a month, and has.
#[utoipa::path(get, path = "/v1/usage/limits", tag = "Models",
    responses((status = 200, description = "The limit.", body = LimitsResponse)))]
pub(crate) async fn get_limits(
    caller: Caller,
    State(app): State<AppState>,
) -> Result<Answered<LimitsResponse>, ApiError> {
    let month = app.store.team_month(caller.team(), app.clock.now()).await?;
    Ok(Answered(limits_body(month)))
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
