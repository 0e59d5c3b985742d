//! Agents.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::AgentId;
use errand_core::time::Timestamp;
use errand_store::StoredAnswer;
use errand_store::model::{Agent, Build, NewAgent, PageQuery};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::builds::{BuildBody, BuildDraft, checked_build};
use super::name::Name;
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, NoBody, RequestBody, fields_of};
use crate::api::error::ApiError;
use crate::api::idempotency::{IdempotencyKey, no_content, rendered, response};
use crate::api::path::Path;
use crate::api::query::{ListPage, PageParams, Query};

/// An agent.
#[derive(Serialize, ToSchema)]
pub(crate) struct AgentBody {
    id: Uuid,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it, or its latest build, last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<&Agent> for AgentBody {
    fn from(agent: &Agent) -> Self {
        Self {
            id: agent.id.as_uuid(),
            name: agent.name.clone(),
            created_at: agent.created_at,
            updated_at: agent.updated_at,
        }
    }
}

/// An agent and its latest build.
#[derive(Serialize, ToSchema)]
pub(crate) struct AgentResponse {
    agent: AgentBody,
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

/// A page of agents.
#[derive(Serialize, ToSchema)]
pub(crate) struct AgentListResponse {
    agents: Vec<AgentBody>,
    /// How many there are in all.
    total: u64,
    limit: u32,
    offset: u64,
}

/// An agent to make.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateAgentRequest {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    /// Its first build.
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

/// What of an agent can change.
#[derive(Deserialize, ToSchema)]
pub(crate) struct RenameAgentRequest {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
}

impl RequestBody for RenameAgentRequest {}

/// The team's agents, newest first.
#[utoipa::path(get, path = "/v1/agents", tag = "Agents", params(PageParams),
    responses((status = 200, description = "A page of agents.", body = AgentListResponse)))]
pub(crate) async fn list_agents(
    caller: Caller,
    State(app): State<AppState>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<AgentListResponse>, ApiError> {
    let page = app.store.list_agents(caller.team(), query).await?;
    let agents = page.items.iter().map(|(agent, _)| agent.into()).collect();
    let PageQuery { limit, offset } = query;
    Ok(Answered(AgentListResponse {
        agents,
        total: page.total,
        limit,
        offset,
    }))
}

/// Makes an agent, with its first build where one is given.
#[utoipa::path(post, path = "/v1/agents", tag = "Agents", request_body = CreateAgentRequest,
    responses((status = 201, description = "The agent.", body = AgentResponse)))]
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
        now,
    };
    let answer = app
        .store
        .create_agent(agent, key.once(&caller, body.sha256, render_created))
        .await?;
    Ok(response(answer, render_created))
}

fn render_created(agent: &(Agent, Option<Build>)) -> StoredAnswer {
    rendered(StatusCode::CREATED, &AgentResponse::from(agent))
}

/// An agent and its latest build.
#[utoipa::path(get, path = "/v1/agents/{agent_id}", tag = "Agents", params(("agent_id" = Uuid, Path, description = "The agent.")),
    responses((status = 200, description = "The agent.", body = AgentResponse)))]
pub(crate) async fn get_agent(
    caller: Caller,
    State(app): State<AppState>,
    Path(agent): Path<AgentId>,
) -> Result<Answered<AgentResponse>, ApiError> {
    let agent = app.store.agent(caller.team(), agent).await?;
    Ok(Answered(AgentResponse::from(&agent)))
}

/// Gives an agent another name.
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
            app.clock.now(),
            once,
        )
        .await?;
    Ok(response(answer, render))
}

fn render(agent: &(Agent, Option<Build>)) -> StoredAnswer {
    rendered(StatusCode::OK, &AgentResponse::from(agent))
}

/// Deletes an agent. Its runs stay readable and go on; no new one can be started.
#[utoipa::path(delete, path = "/v1/agents/{agent_id}", tag = "Agents", params(("agent_id" = Uuid, Path, description = "The agent.")),
    responses((status = 204, description = "It is gone.")))]
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
