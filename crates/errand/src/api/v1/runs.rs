//! Endpoints for runs: start, read, list, stop, retry.

use std::str::FromStr;

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::{AgentId, RunId, SandboxId, TeamId, UserId};
use errand_core::limits::LIST_PAGE_MAX;
use errand_core::run::{RunSource, Status};
use errand_core::wire::{PendingRequestBody, RunBody};
use errand_store::model::{ListedRun, PageQuery, RunFilter, RunView};
use errand_store::{StoredAnswer, UNKNOWN_SANDBOX};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody};
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::{Given, Query, QueryParams, word};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;
use crate::usecase::start_run::{self, NewRun, checked_message};
use crate::usecase::webhook_url::webhook_url;

/// The sources of runs, as named in the API.
pub(crate) const SOURCES: [(&str, RunSource); 5] = [
    ("api", RunSource::Api),
    ("web", RunSource::Web),
    ("schedule", RunSource::Schedule),
    ("mcp", RunSource::Mcp),
    ("cli", RunSource::Cli),
];

/// The request to start a run.
#[derive(Deserialize, ToSchema)]
pub(crate) struct StartRunRequest {
    /// The agent whose live build is run.
    #[schema(value_type = Uuid)]
    agent_id: AgentId,
    /// A sandbox with files for the run. Without it, the run gets its own sandbox when it needs one.
    sandbox_id: Option<String>,
    /// Receives all webhooks of the run.
    #[schema(example = "https://example.com/hook")]
    webhook_url: Option<String>,
    /// Receives only `human_request` webhooks.
    human_request_webhook_url: Option<String>,
    /// The first message.
    #[schema(min_length = 1)]
    message: Option<String>,
    /// Whether strangers may have written the first message, for example an email or a ticket that a program forwards.
    /// It then counts as untrusted, and tools with the policy `guard` ask a person. Default: false.
    untrusted: Option<bool>,
}

impl RequestBody for StartRunRequest {}

/// A run.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunResponse {
    run: RunBody,
}

/// A run with its pending human request.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunDetailResponse {
    run: RunBody,
    /// The request that waits for an answer. Null if there is none.
    #[schema(required)]
    pending_human_request: Option<PendingRequestBody>,
}

/// A run in a list.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct RunListItem {
    #[serde(flatten)]
    run: RunBody,
    /// The current name of the agent.
    agent_name: String,
    /// Counted from 1 for each agent.
    run_number: u64,
    /// The user who started the run, in the web interface or with an API key. Null if another run started it.
    #[schema(required)]
    user_id: Option<Uuid>,
}

impl From<ListedRun> for RunListItem {
    fn from(listed: ListedRun) -> Self {
        Self {
            run: listed.run,
            agent_name: listed.agent_name,
            run_number: listed.number,
            user_id: listed.user.map(UserId::as_uuid),
        }
    }
}

/// A page of runs.
#[derive(Serialize, ToSchema)]
pub(crate) struct RunListResponse {
    /// Same as `runs`, for compatibility with clients of the hosted product.
    data: Vec<RunListItem>,
    runs: Vec<RunListItem>,
    /// The total number of runs.
    total: u64,
    limit: u32,
    offset: u64,
}

/// The result of stopping a run.
#[derive(Serialize, ToSchema)]
pub(crate) struct StopResponse {
    /// Always true.
    success: bool,
    /// Present if the run had already ended and was not changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Starts a run of the agent's live build.
///
/// The response comes immediately. The run works in the background.
#[utoipa::path(post, path = "/v1/runs", tag = "Runs", request_body = StartRunRequest,
    responses((status = 201, description = "The queued run.", body = RunResponse)))]
pub(crate) async fn start_run(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<StartRunRequest>,
) -> Result<Response, ApiError> {
    let new = checked(&app, &caller, body.value)?;
    let once = key.once(&caller, body.sha256, render_started);
    let answer = start_run::start_run(&app, new, once).await?;
    Ok(response(answer, render_started))
}

fn checked(app: &AppState, caller: &Caller, request: StartRunRequest) -> Result<NewRun, ApiError> {
    let private = app.settings.allow_private_networks;
    let sandbox = request.sandbox_id.map(|text| {
        SandboxId::parse(&text).ok_or_else(|| ApiError::invalid("sandbox_id", UNKNOWN_SANDBOX))
    });
    Ok(NewRun {
        team: caller.team(),
        agent: request.agent_id,
        source: RunSource::Api,
        message: checked_message(request.message, request.untrusted.unwrap_or(false))?,
        sandbox: sandbox.transpose()?,
        sandbox_ttl_ms: app.settings.sandbox_ttl_ms,
        webhook_url: webhook_url("webhook_url", request.webhook_url, private)?,
        human_request_webhook_url: webhook_url(
            "human_request_webhook_url",
            request.human_request_webhook_url,
            private,
        )?,
        by: caller.by(),
        api_key: Some(caller.api_key()),
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

pub(crate) const GET_QUERY: &[&str] = &["wait_s"];

/// Maximum wait for a run, in seconds. Proxies usually keep a silent connection open longer than this.
const WAIT_S_MAX: u32 = 60;

/// Query parameters of `GET /v1/runs/{run_id}`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what WaitS reads")]
pub(crate) struct GetRunParams {
    /// The number of seconds to wait for the run to end or to need a person. If it already has, the response comes
    /// immediately; otherwise as soon as it does, and after this time at the latest.
    #[param(minimum = 0, maximum = 60, default = 0)]
    wait_s: Option<u32>,
}

pub(crate) struct WaitS(u32);

impl QueryParams for WaitS {
    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self(given.whole("wait_s", 0..=WAIT_S_MAX)?.unwrap_or(0)))
    }
}

/// Returns a run with its pending human request, optionally after waiting for the run to end or to need a person.
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
    let mut run = view.run;
    if let Some(waiting) = &mut run.waiting_on {
        waiting.say_clock_back(app.clock.now());
    }
    Ok(Answered(RunDetailResponse {
        run,
        pending_human_request,
    }))
}

/// Waits until the run has ended or waits for a person, the time is over, or the server stops. The store is read at the
/// start, when the run is known to have come to rest, and at the end. Intermediate changes of the run cost nothing
/// here.
async fn at_rest(
    app: &AppState,
    team: TeamId,
    run: RunId,
    seconds: u32,
) -> Result<RunView, ApiError> {
    let end = app.clock.now().plus_ms(u64::from(seconds) * 1000);
    // Subscribe before reading, so that no change in between is missed.
    let mut watch = app.store.bell().watch(run);
    loop {
        let view = app.store.run(team, run).await?;
        // The run may wait for a child run that has asked a person. A person is needed in that case too.
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

pub(crate) const LIST_QUERY: &[&str] = &[
    "limit",
    "offset",
    "status",
    "agent_id",
    "source",
    "since",
    "until",
    "q",
    "search",
    "sort_by",
    "sort_order",
    "user_id",
    "case_queue_id",
    "has_issues",
    "issue_severity",
    "digest_id",
];

/// Names of statuses that clients of the hosted product send.
pub(crate) const STATUS_ALIASES: [(&str, Status); 3] = [
    ("stopped", Status::Interrupted),
    ("not_started", Status::Pending),
    ("needs_attention", Status::Waiting),
];

/// Maximum length of a search text.
const Q_CHARS_MAX: usize = 200;

/// Query parameters of `GET /v1/runs`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what ListRuns reads")]
pub(crate) struct ListRunsParams {
    /// The maximum number of runs.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u32>,
    /// The number of runs to skip.
    #[param(minimum = 0, default = 0)]
    offset: Option<u64>,
    /// Only runs with one of these statuses; can be repeated. `stopped` means `interrupted`, `not_started` means
    /// `pending`, and `needs_attention` means `waiting`.
    #[param(explode = true)]
    status: Option<Vec<String>>,
    /// Only runs of this agent.
    agent_id: Option<Uuid>,
    /// Only runs from this source: `api`, `web`, `schedule`, `mcp` or `cli`.
    source: Option<String>,
    /// Only runs created at or after this time.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<String>,
    /// Only runs created before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<String>,
    /// Only runs whose title contains this text, ignoring case, or whose id contains at least 4 digits of it. At most
    /// the newest 10,000 matches are found.
    #[param(min_length = 1, max_length = 200)]
    q: Option<String>,
    /// Another name for `q`. If both are given, they must be equal.
    #[param(min_length = 1, max_length = 200)]
    search: Option<String>,
    /// The sort key.
    #[param(pattern = "^created_at$", default = "created_at")]
    sort_by: Option<String>,
    /// `desc` (newest first) or `asc`.
    #[param(default = "desc")]
    sort_order: Option<String>,
    /// Only runs that this user started, in the web interface or with an API key.
    user_id: Option<Uuid>,
    /// This server has no queues. With this parameter, no run matches.
    case_queue_id: Option<Uuid>,
    /// If true, only failed runs. If false, only other runs.
    has_issues: Option<bool>,
    /// Runs have no severity on this server. With this parameter, no run matches.
    issue_severity: Option<String>,
    /// This server has no digests. With this parameter, no run matches.
    digest_id: Option<String>,
}

pub(crate) struct ListRuns {
    filter: RunFilter,
    page: PageQuery,
}

fn search(given: &Given) -> Result<Option<String>, ApiError> {
    let (name, text) = match (given.one("q")?, given.one("search")?) {
        (Some(q), Some(search)) if q != search => {
            return Err(ApiError::invalid(
                "search",
                "it is another name for `q`, which is also given; send only one of them",
            ));
        }
        (Some(q), _) => ("q", q),
        (None, Some(search)) => ("search", search),
        (None, None) => return Ok(None),
    };
    let text = text.trim();
    if text.is_empty() || text.chars().count() > Q_CHARS_MAX {
        return Err(ApiError::invalid(
            name,
            format!("must have 1 to {Q_CHARS_MAX} characters"),
        ));
    }
    if text.contains('\0') {
        return Err(ApiError::invalid(name, "must not contain a NUL character"));
    }
    Ok(Some(text.to_owned()))
}

/// The selected statuses, and whether any run can match.
fn statuses(given: &Given) -> Result<(Vec<Status>, bool), ApiError> {
    let mut words: Vec<_> = Status::ALL
        .iter()
        .map(|status| (status.as_str(), *status))
        .collect();
    words.extend(STATUS_ALIASES);
    let asked: Vec<Status> = given
        .many("status")
        .map(|text| word("status", text, &words))
        .collect::<Result<_, _>>()?;
    let Some(failed) = given.boolean("has_issues")? else {
        return Ok((asked, true));
    };
    let has_issues = |status: &Status| *status == Status::Failed;
    let of: Vec<Status> = if asked.is_empty() {
        Status::ALL.to_vec()
    } else {
        asked
    };
    let left: Vec<Status> = of
        .into_iter()
        .filter(|status| has_issues(status) == failed)
        .collect();
    let can_match = !left.is_empty();
    Ok((left, can_match))
}

/// Whether a parameter of the hosted product is given with which no run can match.
fn matches_nothing(given: &Given) -> Result<bool, ApiError> {
    let queue: Option<CaseQueueId> = given.parsed("case_queue_id")?;
    let is_given = |name: &str| given.one(name).map(|value| value.is_some());
    Ok(queue.is_some() || is_given("issue_severity")? || is_given("digest_id")?)
}

/// The id of a queue, which this server does not have. It is only validated.
struct CaseQueueId;

impl FromStr for CaseQueueId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text)
            .map(|_| Self)
            .map_err(|_| "must be a UUID")
    }
}

impl QueryParams for ListRuns {
    fn read(given: &Given) -> Result<Self, ApiError> {
        let (statuses, can_match) = statuses(given)?;
        let sort_by = [("created_at", ())];
        given
            .one("sort_by")?
            .map(|text| word("sort_by", text, &sort_by))
            .transpose()?;
        let filter = RunFilter {
            statuses,
            user: given.parsed("user_id")?,
            none: !can_match || matches_nothing(given)?,
            agent: given.parsed("agent_id")?,
            source: given
                .one("source")?
                .map(|text| word("source", text, &SOURCES))
                .transpose()?,
            since: given.parsed("since")?,
            until: given.parsed("until")?,
            q: search(given)?,
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

/// Lists the team's runs, newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "Runs", params(ListRunsParams),
    responses((status = 200, description = "A page of runs.", body = RunListResponse)))]
pub(crate) async fn list_runs(
    caller: Caller,
    State(app): State<AppState>,
    Query(list): Query<ListRuns>,
) -> Result<Answered<RunListResponse>, ApiError> {
    let page = app
        .store
        .list_run_rows(caller.team(), list.filter, list.page)
        .await?;
    let PageQuery { limit, offset } = list.page;
    let runs: Vec<RunListItem> = page.items.into_iter().map(RunListItem::from).collect();
    Ok(Answered(RunListResponse {
        data: runs.clone(),
        runs,
        total: page.total,
        limit,
        offset,
    }))
}

/// Stops a run.
///
/// A run that has ended is not changed.
#[utoipa::path(post, path = "/v1/runs/{run_id}/stop", tag = "Runs", params(("run_id" = Uuid, Path, description = "The run.")),
    responses((status = 200, description = "The run is stopped, or had already ended.", body = StopResponse)))]
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
        .stop(caller.team(), run, caller.by(), app.clock.now(), once)
        .await?;
    Ok(response(answer, render_stopped))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the store's signature")]
fn render_stopped(had_ended: &bool) -> StoredAnswer {
    let message = had_ended.then(|| "the run had already ended and was not changed".to_owned());
    rendered(
        StatusCode::OK,
        &StopResponse {
            success: true,
            message,
        },
    )
}

/// Queues a failed run again.
///
/// It continues from the step that failed.
#[utoipa::path(post, path = "/v1/runs/{run_id}/retry", tag = "Runs", params(("run_id" = Uuid, Path, description = "The run.")),
    responses((status = 200, description = "The queued run.", body = RunResponse)))]
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
        .retry(caller.team(), run, caller.by(), app.clock.now(), once)
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
