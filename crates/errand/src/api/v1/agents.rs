//! Endpoints for agents (called assignments in the web interface).

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::AgentId;
use errand_core::limits::LIST_PAGE_MAX;
use errand_core::time::Timestamp;
use errand_core::warning::Warning;
use errand_store::StoredAnswer;
use errand_store::model::{Agent, AgentRow, Build, NewAgent, PageQuery, Person};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::builds::{BuildBody, BuildDraft, checked_build};
use super::name::Name;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody, fields_of};
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, response};
use crate::api::query::{Given, Query, QueryParams};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;

/// An agent: a name with numbered builds.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct AgentBody {
    id: Uuid,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The time of the last change of the agent or its live build.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    team_id: Uuid,
    /// Always false. Present for compatibility with clients of the hosted product.
    slack_enabled: bool,
    /// Always false. Present for compatibility with clients of the hosted product.
    microsoft_teams_enabled: bool,
    /// Always false. Present for compatibility with clients of the hosted product.
    agentic_memory_enabled: bool,
    /// Always null. Present for compatibility with clients of the hosted product.
    #[schema(required)]
    thread_id: Option<Uuid>,
}

impl From<&Agent> for AgentBody {
    fn from(agent: &Agent) -> Self {
        Self {
            id: agent.id.as_uuid(),
            name: agent.name.clone(),
            created_at: agent.created_at,
            updated_at: agent.updated_at,
            team_id: agent.team_id.as_uuid(),
            slack_enabled: false,
            microsoft_teams_enabled: false,
            agentic_memory_enabled: false,
            thread_id: None,
        }
    }
}

/// A user who created or changed something.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct PersonBody {
    id: Uuid,
    /// The email address, or `operator` for an operator without one.
    name: String,
    #[schema(required)]
    email: Option<String>,
}

impl From<&Person> for PersonBody {
    fn from(person: &Person) -> Self {
        Self {
            id: person.id.as_uuid(),
            name: person
                .email
                .clone()
                .unwrap_or_else(|| "operator".to_owned()),
            email: person.email.clone(),
        }
    }
}

/// An agent in a list.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct AgentListItem {
    #[serde(flatten)]
    agent: AgentBody,
    /// The newest build, which may be a draft.
    #[schema(required)]
    latest_build: Option<BuildBody>,
    /// The time when the newest run was created.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    last_run_at: Option<Timestamp>,
    /// Always null. Present for compatibility with clients of the hosted product.
    #[schema(value_type = Option<String>, required)]
    pinned_at: Option<Timestamp>,
    /// Always empty. Present for compatibility with clients of the hosted product.
    #[schema(value_type = Vec<Object>)]
    integration_configs: [(); 0],
    /// Always null. Present for compatibility with clients of the hosted product.
    #[schema(required)]
    folder_id: Option<Uuid>,
    /// Null if the agent was created before this was recorded.
    #[schema(required)]
    created_by: Option<PersonBody>,
    /// The user who last changed the agent or one of its builds.
    #[schema(required)]
    updated_by: Option<PersonBody>,
}

impl From<&AgentRow> for AgentListItem {
    fn from(row: &AgentRow) -> Self {
        Self {
            agent: (&row.agent).into(),
            latest_build: row.latest.as_ref().map(BuildBody::from),
            last_run_at: row.last_run_at,
            pinned_at: None,
            integration_configs: [],
            folder_id: None,
            created_by: row.agent.created_by.as_ref().map(PersonBody::from),
            updated_by: row.agent.updated_by.as_ref().map(PersonBody::from),
        }
    }
}

/// An agent with its live build.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct AgentResponse {
    agent: AgentBody,
    /// The build that new runs use. Null if the agent has no build, or only drafts.
    #[schema(required)]
    build: Option<BuildBody>,
}

impl From<&(Agent, Option<Build>)> for AgentResponse {
    fn from((agent, build): &(Agent, Option<Build>)) -> Self {
        Self {
            agent: agent.into(),
            build: build.as_ref().map(BuildBody::from),
        }
    }
}

/// A new agent with its first build.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct CreatedAgentResponse {
    agent: AgentBody,
    /// Absent if the request had no build.
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<BuildBody>,
    /// Settings that are accepted but may not do what is expected. Absent if the request had no build.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<Warning>>,
}

/// A page of agents.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct AgentListResponse {
    agents: Vec<AgentListItem>,
    /// The total number of agents.
    total: u64,
    limit: u32,
    offset: u64,
}

/// The request to create an agent.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateAgentRequest {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    /// The agent's first build.
    build: Option<BuildDraft>,
}

impl RequestBody for CreateAgentRequest {
    fn fields_within(field: &str) -> &'static [&'static str] {
        if field == "build" {
            fields_of::<BuildDraft>()
        } else {
            &[]
        }
    }
}

/// The request to rename an agent.
#[derive(Deserialize, ToSchema)]
pub(crate) struct RenameAgentRequest {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
}

impl RequestBody for RenameAgentRequest {
    const REFUSED: &'static [&'static str] = &[
        "slack_enabled",
        "microsoft_teams_enabled",
        "agentic_memory_enabled",
        "thread_id",
        "pinned",
    ];
}

pub(crate) const LIST_QUERY: &[&str] = &["limit", "offset", "include_schedules"];

/// Query parameters of `GET /v1/agents`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what AgentsPage reads")]
pub(crate) struct ListAgentsParams {
    /// The maximum number of entries.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u32>,
    /// The number of entries to skip.
    #[param(minimum = 0, default = 0)]
    offset: Option<u64>,
    /// Ignored. Accepted for compatibility with clients of the hosted product.
    include_schedules: Option<bool>,
}

pub(crate) struct AgentsPage(PageQuery);

impl QueryParams for AgentsPage {
    fn read(given: &Given) -> Result<Self, ApiError> {
        given.boolean("include_schedules")?;
        given.page(LIST_PAGE_MAX).map(Self)
    }
}

/// Lists the team's agents, newest first.
#[utoipa::path(get, path = "/v1/agents", tag = "Agents", params(ListAgentsParams),
    responses((status = 200, description = "A page of agents.", body = AgentListResponse)))]
pub(crate) async fn list_agents(
    caller: Caller,
    State(app): State<AppState>,
    Query(AgentsPage(query)): Query<AgentsPage>,
) -> Result<Answered<AgentListResponse>, ApiError> {
    let page = app.store.list_agent_rows(caller.team(), query).await?;
    let agents = page.items.iter().map(AgentListItem::from).collect();
    let PageQuery { limit, offset } = query;
    Ok(Answered(AgentListResponse {
        agents,
        total: page.total,
        limit,
        offset,
    }))
}

/// Creates an agent, optionally with its first build.
#[utoipa::path(post, path = "/v1/agents", tag = "Agents", request_body = CreateAgentRequest,
    responses((status = 201, description = "The agent.", body = CreatedAgentResponse)))]
pub(crate) async fn create_agent(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<CreateAgentRequest>,
) -> Result<Response, ApiError> {
    let now = app.clock.now();
    let build = match body.value.build {
        Some(draft) => Some(checked_build(&app, &caller, draft, "build.").await?),
        None => None,
    };
    let agent = NewAgent {
        team: caller.team(),
        id: app.ids.agent(now),
        name: body.value.name.0,
        build,
        created_by: caller.user(),
        now,
    };
    let answer = app
        .store
        .create_agent(agent, key.once(&caller, body.sha256, render_created))
        .await?;
    Ok(response(answer, render_created))
}

fn render_created((agent, build): &(Agent, Option<Build>)) -> StoredAnswer {
    rendered(
        StatusCode::CREATED,
        &CreatedAgentResponse {
            agent: agent.into(),
            build: build.as_ref().map(BuildBody::from),
            warnings: build.as_ref().map(|build| build.warnings.clone()),
        },
    )
}

/// Returns an agent with its live build.
#[utoipa::path(get, path = "/v1/agents/{agent_id}", tag = "Agents", params(("agent_id" = Uuid, Path, description = "The agent.")),
    responses((status = 200, description = "The agent.", body = AgentResponse)))]
pub(crate) async fn get_agent(
    caller: Caller,
    State(app): State<AppState>,
    Path(agent): Path<AgentId>,
) -> Result<Answered<AgentResponse>, ApiError> {
    let team = caller.team();
    let (agent, build) = app.store.agent(team, agent).await?;
    let build = match &build {
        Some(build) => Some(BuildBody::with_tools(&app, team, build).await?),
        None => None,
    };
    Ok(Answered(AgentResponse {
        agent: (&agent).into(),
        build,
    }))
}

/// Renames an agent.
#[utoipa::path(patch, path = "/v1/agents/{agent_id}", tag = "Agents", params(("agent_id" = Uuid, Path, description = "The agent.")),
    request_body = RenameAgentRequest,
    responses((status = 200, description = "The agent.", body = AgentResponse)))]
pub(crate) async fn rename_agent(
    caller: Caller,
    State(app): State<AppState>,
    Path(agent): Path<AgentId>,
    key: IdempotencyKey,
    body: Json<RenameAgentRequest>,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, render);
    let answer = app
        .store
        .rename_agent(
            caller.team(),
            agent,
            body.value.name.0,
            (caller.user(), app.clock.now()),
            once,
        )
        .await?;
    Ok(response(answer, render))
}

fn render(agent: &(Agent, Option<Build>)) -> StoredAnswer {
    rendered(StatusCode::OK, &AgentResponse::from(agent))
}

/// Deletes an agent.
///
/// Its runs continue and stay readable. No new run can be started.
#[utoipa::path(delete, path = "/v1/agents/{agent_id}", tag = "Agents", params(("agent_id" = Uuid, Path, description = "The agent.")),
    responses((status = 204, description = "Deleted.")))]
pub(crate) async fn delete_agent(
    caller: Caller,
    State(app): State<AppState>,
    Path(agent): Path<AgentId>,
    key: IdempotencyKey,
    body: NoBody,
) -> Result<Response, ApiError> {
    let once = key.once(&caller, body.sha256, no_content);
    let answer = app
        .store
        .delete_agent(caller.team(), agent, app.clock.now(), once)
        .await?;
    Ok(response(answer, no_content))
}
