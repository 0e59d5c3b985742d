//! Runs: start, read, list, stop, retry.

use std::sync::Arc;

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::{AgentId, RunId, SandboxId, TeamId};
use errand_core::limits::LIST_PAGE_MAX;
use errand_core::run::Status;
use errand_core::wire::{PendingRequestBody, RunBody};
use errand_store::StoredAnswer;
use errand_store::model::{PageQuery, RunFilter, RunView, Runnable, StartRun};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::name::webhook_url;
use super::providers::own_providers;
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::error::ApiError;
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::path::Path;
use crate::api::query::{Given, Query, QueryParams, word};

/// Where a run may come from.
pub(super) const SOURCES: [(&str, &str); 5] = [
    ("api", "api"),
    ("web", "web"),
    ("schedule", "schedule"),
    ("mcp", "mcp"),
    ("cli", "cli"),
];

/// A run to start.
#[derive(Deserialize, ToSchema)]
pub(crate) struct StartRunRequest {
    /// The agent whose latest build is run.
    #[schema(value_type = Uuid)]
    agent_id: AgentId,
    /// A sandbox with files for the run. Without it the run gets one of its own when it needs it.
    sandbox_id: Option<String>,
    /// Gets all webhooks of the run.
    #[schema(example = "https://example.com/hook")]
    webhook_url: Option<String>,
    /// Gets `human_request` only.
    human_request_webhook_url: Option<String>,
    /// A first message.
    #[schema(min_length = 1)]
    message: Option<String>,
}

impl RequestBody for StartRunRequest {}

/// A run that was started, or put in line again.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunResponse {
    run: RunBody,
}

/// A run, and what it asks of people.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunDetailResponse {
    run: RunBody,
    /// The request that waits for an answer.
    #[schema(required)]
    pending_human_request: Option<PendingRequestBody>,
}

/// A page of runs.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunListResponse {
    runs: Vec<RunBody>,
    /// How many there are in all.
    total: u64,
    limit: u32,
    offset: u64,
}

/// What stopping did.
#[derive(Serialize, ToSchema)]
pub(crate) struct StopResponse {
    /// Always true.
    success: bool,
    /// Says so, where the run had ended already and was left as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Starts a run of the agent's latest build. Answers at once; the run does its work in the background.
#[utoipa::path(post, path = "/v1/runs", tag = "Runs", request_body = StartRunRequest,
    responses((status = 201, description = "It is in line.", body = RunResponse)))]
pub(crate) async fn start_run(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<StartRunRequest>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let wanted = checked(&app, body.value)?;
    let models = app.models.clone();
    let own = own_providers(&app.store, caller.team()).await?;
    let start = StartRun {
        team: caller.team(),
        id: app.ids.run(now),
        agent: wanted.agent_id,
        source: "api",
        sandbox: wanted.sandbox,
        webhook_url: wanted.webhook_url,
        human_request_webhook_url: wanted.human_request_webhook_url,
        message: wanted.message.map(|text| (app.ids.message(now), text)),
        by: caller.user(),
        api_key: Some(caller.api_key()),
        sandbox_ttl_ms: app.settings.sandbox_ttl_ms,
        runnable: Runnable(Arc::new(move |build| models.check(build, &own))),
        now,
    };
    let answer = app
        .store
        .start_run(start, key.once(&caller, body.sha256, render_started))
        .await?;
    Ok(response(answer, render_started))
}

/// A request to start a run, checked as far as that goes without the store.
struct Wanted {
    agent_id: AgentId,
    sandbox: Option<SandboxId>,
    webhook_url: Option<String>,
    human_request_webhook_url: Option<String>,
    message: Option<String>,
}

fn checked(app: &AppState, request: StartRunRequest) -> Result<Wanted, ApiError> {
    let private = app.settings.allow_private_networks;
    let sandbox = request.sandbox_id.map(|text| {
        SandboxId::parse(&text).ok_or_else(|| {
            ApiError::invalid(
                "sandbox_id",
                "there is no such sandbox; create one with POST /v1/sandboxes",
            )
        })
    });
    if request.message.as_ref().is_some_and(String::is_empty) {
        return Err(ApiError::invalid(
            "message",
            "it takes at least 1 character",
        ));
    }
    Ok(Wanted {
        agent_id: request.agent_id,
        sandbox: sandbox.transpose()?,
        webhook_url: webhook_url("webhook_url", request.webhook_url, private)?,
        human_request_webhook_url: webhook_url(
            "human_request_webhook_url",
            request.human_request_webhook_url,
            private,
        )?,
        message: request.message,
    })
}

pub(super) fn render_started(view: &RunView) -> StoredAnswer {
    rendered(
        StatusCode::CREATED,
        &RunResponse {
            run: view.run.clone(),
        },
    )
}

/// What `GET /v1/runs/{run_id}` takes.
pub(crate) const GET_QUERY: &[&str] = &["wait_s"];

/// Most seconds that a call waits for a run: below what proxies let a silent connection live.
const WAIT_S_MAX: u32 = 60;

/// Whether the answer waits.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what WaitS reads")]
pub(crate) struct GetRunParams {
    /// Seconds to wait for the run to end or to ask a person. Where it has, the answer comes at once; else as soon as it
    /// does, and after that time with the run as it is then.
    #[param(minimum = 0, maximum = 60, default = 0)]
    wait_s: Option<u32>,
}

pub(crate) struct WaitS(u32);

impl QueryParams for WaitS {
    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self(given.whole("wait_s", 0..=WAIT_S_MAX)?.unwrap_or(0)))
    }
}

/// A run and its pending human request, at once, or when the run has come to rest.
#[utoipa::path(get, path = "/v1/runs/{run_id}", tag = "Runs",
    params(("run_id" = Uuid, Path, description = "The run."), GetRunParams),
    responses((status = 200, description = "The run.", body = RunDetailResponse)))]
pub(crate) async fn get_run(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
    Query(WaitS(wait_s)): Query<WaitS>,
) -> Result<Answered<RunDetailResponse>, ApiError> {
    let view = match wait_s {
        0 => app.store.run(caller.team(), run).await?,
        seconds => at_rest(&app, caller.team(), run, seconds).await?,
    };
    let pending_human_request = view.pending.as_ref().map(PendingRequestBody::from);
    Ok(Answered(RunDetailResponse {
        run: view.run,
        pending_human_request,
    }))
}

/// The run when it has ended or waits for a person; as it is, where that takes longer than so many seconds, or the server
/// stops. The store is read once at first, once for each rest that is rung, and once at the end of the time: what the run
/// does on its way costs nothing here.
async fn at_rest(
    app: &AppState,
    team: TeamId,
    run: RunId,
    seconds: u32,
) -> Result<RunView, ApiError> {
    let end = app.clock.now().plus_ms(u64::from(seconds) * 1000);
    // Watched before it is read: what happens in between rings.
    let mut watch = app.store.bell().watch(run);
    loop {
        let view = app.store.run(team, run).await?;
        // What it waits for may ask: a person is needed all the same.
        if view.run.status.is_at_rest() || view.pending.is_some() {
            return Ok(view);
        }
        tokio::select! {
            () = watch.came_to_rest() => {}
            () = app.clock.sleep_until(end) => break,
            () = app.draining.cancelled() => break,
        }
    }
    Ok(app.store.run(team, run).await?)
}

/// What `GET /v1/runs` takes.
pub(crate) const LIST_QUERY: &[&str] = &[
    "limit",
    "offset",
    "status",
    "agent_id",
    "source",
    "since",
    "until",
    "q",
    "sort_order",
];

/// Most characters of a search.
const Q_CHARS_MAX: usize = 200;

/// Which runs.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what ListRuns reads")]
pub(crate) struct ListRunsParams {
    /// Most entries.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u32>,
    /// Entries that are skipped.
    #[param(minimum = 0, default = 0)]
    offset: Option<u64>,
    /// Only runs with one of these statuses; may be repeated.
    #[param(explode = true)]
    status: Option<Vec<String>>,
    /// Only runs of this agent.
    agent_id: Option<Uuid>,
    /// Only runs from here: `api`, `web`, `schedule`, `mcp` or `cli`.
    source: Option<String>,
    /// Only runs made at this moment or later.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<String>,
    /// Only runs made before this moment.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<String>,
    /// Only runs with this in their title, in large or small letters, or in their id; at least 4 digits of that. Of those
    /// that match, the newest 10,000.
    #[param(min_length = 1, max_length = 200)]
    q: Option<String>,
    /// By `created_at`: `desc` (newest first) or `asc`.
    #[param(default = "desc")]
    sort_order: Option<String>,
}

pub(crate) struct ListRuns {
    filter: RunFilter,
    page: PageQuery,
}

fn search(text: &str) -> Result<String, ApiError> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > Q_CHARS_MAX {
        return Err(ApiError::invalid(
            "q",
            format!("it takes 1 to {Q_CHARS_MAX} characters"),
        ));
    }
    Ok(text.to_owned())
}

impl QueryParams for ListRuns {
    fn read(given: &Given) -> Result<Self, ApiError> {
        let statuses = Status::ALL.map(|status| (status.as_str(), status));
        let filter = RunFilter {
            statuses: given
                .many("status")
                .map(|text| word("status", text, &statuses))
                .collect::<Result<_, _>>()?,
            agent: given.parsed("agent_id")?,
            source: given
                .one("source")?
                .map(|text| word("source", text, &SOURCES))
                .transpose()?
                .map(str::to_owned),
            since: given.parsed("since")?,
            until: given.parsed("until")?,
            q: given.one("q")?.map(search).transpose()?,
            ascending: match given.one("sort_order")? {
                Some(text) => word("sort_order", text, &[("desc", false), ("asc", true)])?,
                None => false,
            },
        };
        Ok(Self {
            filter,
            page: given.page(LIST_PAGE_MAX)?,
        })
    }
}

/// The team's runs, newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "Runs", params(ListRunsParams),
    responses((status = 200, description = "A page of runs.", body = RunListResponse)))]
pub(crate) async fn list_runs(
    caller: Caller,
    State(app): State<AppState>,
    Query(list): Query<ListRuns>,
) -> Result<Answered<RunListResponse>, ApiError> {
    let page = app
        .store
        .list_runs(caller.team(), list.filter, list.page)
        .await?;
    let PageQuery { limit, offset } = list.page;
    Ok(Answered(RunListResponse {
        runs: page.items,
        total: page.total,
        limit,
        offset,
    }))
}

/// Stops a run. One that has ended is left as it is.
#[utoipa::path(post, path = "/v1/runs/{run_id}/stop", tag = "Runs", params(("run_id" = Uuid, Path, description = "The run.")),
    responses((status = 200, description = "It is stopped, or had ended.", body = StopResponse)))]
pub(crate) async fn stop_run(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, render_stopped);
    let answer = app
        .store
        .stop(caller.team(), run, caller.user(), app.clock.now(), once)
        .await?;
    Ok(response(answer, render_stopped))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the store's signature")]
fn render_stopped(had_ended: &bool) -> StoredAnswer {
    let message = had_ended.then(|| "the run had ended already and was left as it is".to_owned());
    rendered(
        StatusCode::OK,
        &StopResponse {
            success: true,
            message,
        },
    )
}

/// Puts a failed run in line again: it goes on from the step that failed.
#[utoipa::path(post, path = "/v1/runs/{run_id}/retry", tag = "Runs", params(("run_id" = Uuid, Path, description = "The run.")),
    responses((status = 200, description = "It is in line.", body = RunResponse)))]
pub(crate) async fn retry_run(
    caller: Caller,
    State(app): State<AppState>,
    Path(run): Path<RunId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, render_retried);
    let answer = app
        .store
        .retry(caller.team(), run, caller.user(), app.clock.now(), once)
        .await?;
    Ok(response(answer, render_retried))
}

fn render_retried(view: &RunView) -> StoredAnswer {
    rendered(
        StatusCode::OK,
        &RunResponse {
            run: view.run.clone(),
        },
    )
}
