//! Builds (revisions) of agents.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::config::BuildConfig;
use errand_core::connection::connection_of;
use errand_core::id::{AgentId, BuildId};
use errand_core::limits::CONFIG_BYTES_MAX;
use errand_core::policy::Policy;
use errand_core::time::Timestamp;
use errand_store::model::{Build, BuildChange, NewBuild, PageQuery};
use errand_store::{Connection, StoredAnswer};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::name::Name;
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, RequestBody, absent_or_null};
use crate::api::error::ApiError;
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::path::Path;
use crate::api::query::{ListPage, PageParams, Query};

/// An immutable, numbered snapshot of an agent's setup.
#[derive(Serialize, ToSchema)]
pub(crate) struct BuildBody {
    id: Uuid,
    agent_id: Uuid,
    /// 1 for the agent's first.
    number: u64,
    name: String,
    #[schema(required)]
    description: Option<String>,
    /// As it was given.
    #[schema(value_type = Object)]
    config: Value,
    /// The user who made it.
    #[schema(required)]
    created_by: Option<Uuid>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<&Build> for BuildBody {
    fn from(build: &Build) -> Self {
        Self {
            id: build.id.as_uuid(),
            agent_id: build.agent_id.as_uuid(),
            number: build.number,
            name: build.name.clone(),
            description: build.description.clone(),
            config: build.config.clone(),
            created_by: build.created_by.map(|user| user.as_uuid()),
            created_at: build.created_at,
        }
    }
}

/// A build.
#[derive(Serialize, ToSchema)]
pub(crate) struct BuildResponse {
    build: BuildBody,
}

/// A page of builds.
#[derive(Serialize, ToSchema)]
pub(crate) struct BuildListResponse {
    builds: Vec<BuildBody>,
    /// How many there are in all.
    total: u64,
    limit: u32,
    offset: u64,
}

/// A build to make.
#[derive(Deserialize, ToSchema)]
pub(crate) struct BuildDraft {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    description: Option<String>,
    /// `{"version": "v2", "data": {…}}`. Keys that are not known in it are kept and given back.
    #[schema(value_type = Object)]
    config: Value,
}

impl RequestBody for BuildDraft {}

/// A build to make, with its agent.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateBuildRequest {
    #[schema(value_type = Uuid)]
    agent_id: AgentId,
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    description: Option<String>,
    /// `{"version": "v2", "data": {…}}`. Keys that are not known in it are kept and given back.
    #[schema(value_type = Object)]
    config: Value,
}

impl RequestBody for CreateBuildRequest {}

/// What of a build can change.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeBuildRequest {
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    name: Option<Name>,
    /// Null takes it away.
    #[serde(default, deserialize_with = "absent_or_null")]
    #[schema(value_type = Option<String>)]
    description: Option<Option<String>>,
}

impl RequestBody for ChangeBuildRequest {}

/// A build that can be stored. `within`: where it stands in the body, such as `build.`.
pub(crate) async fn checked_build(
    app: &AppState,
    caller: &Caller,
    draft: BuildDraft,
    within: &str,
) -> Result<NewBuild, ApiError> {
    let config = BuildConfig::parse(&draft.config)
        .map_err(|error| ApiError::bad_request(format!("{within}{error}")))?;
    check_reach(app, caller, &config, within).await?;
    if draft.config.to_string().len() > CONFIG_BYTES_MAX {
        return Err(ApiError::invalid(
            &format!("{within}config"),
            format!("it takes at most {CONFIG_BYTES_MAX} bytes"),
        ));
    }
    Ok(NewBuild {
        id: app.ids.build(app.clock.now()),
        name: draft.name.0,
        description: draft.description,
        config: draft.config,
        created_by: caller.user(),
    })
}

/// Holds what a build reaches for against what the team has.
async fn check_reach(
    app: &AppState,
    caller: &Caller,
    config: &BuildConfig,
    within: &str,
) -> Result<(), ApiError> {
    if !config.reach.secrets.is_empty() {
        let there = app.store.secret_names(caller.team()).await?;
        if let Some(absent) = config
            .reach
            .secrets
            .iter()
            .find(|name| !there.contains(name))
        {
            return Err(ApiError::bad_request(format!(
                "{within}config: there is no secret {absent}; an admin or owner sets it with POST /v1/secrets"
            )));
        }
    }
    let ids = config.reach.connections.clone();
    let there = app.store.connections_of(caller.team(), ids.clone()).await?;
    if let Some(absent) = ids
        .iter()
        .find(|id| !there.iter().any(|connection| connection.id == **id))
    {
        return Err(ApiError::bad_request(format!(
            "{within}config.data.connections: there is no connection {absent}"
        )));
    }
    let mut named: Vec<(String, &str, Option<Policy>)> = Vec::new();
    for (tool, policy) in &config.tools {
        named.push((format!("data.tools.{tool}"), tool, Some(*policy)));
    }
    for (path, tool) in config.playbook.iter().flat_map(|p| p.tools()) {
        named.push((format!("data.{path}.tool"), tool, None));
    }
    for (path, tool, policy) in named {
        if let Some(connection) = connection_of(tool) {
            check_tool(&there, connection, tool, policy)
                .map_err(|why| ApiError::bad_request(format!("{within}config.{path}: {why}")))?;
        }
    }
    Ok(())
}

/// Holds a connection's tool against the last probe, where there was one, and its policy against the floor.
fn check_tool(
    there: &[Connection],
    name: &str,
    tool: &str,
    policy: Option<Policy>,
) -> Result<(), String> {
    let connection = there
        .iter()
        .find(|connection| connection.name == name)
        .ok_or_else(|| format!("none of the connections in data.connections is named {name:?}"))?;
    if connection.tools.is_some() && connection.tool(tool).is_none() {
        return Err(format!(
            "the connection {name} has no tool {tool:?} by its last probe; GET /v1/connections/{} lists them",
            connection.id
        ));
    }
    let floor = connection.floor(tool);
    match policy {
        Some(policy) if policy.or_stricter(floor) != policy => Err(format!(
            "it cannot be {:?}: an admin of the team has set at least {:?} for it",
            policy.as_str(),
            floor.as_str()
        )),
        _ => Ok(()),
    }
}

/// An agent's builds, newest first.
#[utoipa::path(get, path = "/v1/agents/{agent_id}/revisions", tag = "Builds",
    params(("agent_id" = Uuid, Path, description = "The agent."), PageParams),
    responses((status = 200, description = "A page of builds.", body = BuildListResponse)))]
pub(crate) async fn list_builds(
    caller: Caller,
    State(app): State<AppState>,
    Path(agent): Path<AgentId>,
    Query(ListPage(query)): Query<ListPage>,
) -> Result<Answered<BuildListResponse>, ApiError> {
    let page = app.store.list_builds(caller.team(), agent, query).await?;
    let builds = page.items.iter().map(BuildBody::from).collect();
    let PageQuery { limit, offset } = query;
    Ok(Answered(BuildListResponse {
        builds,
        total: page.total,
        limit,
        offset,
    }))
}

/// Adds a build to an agent. Runs that are started from now on have it.
#[utoipa::path(post, path = "/v1/agents/{agent_id}/revisions", tag = "Builds",
    params(("agent_id" = Uuid, Path, description = "The agent.")), request_body = BuildDraft,
    responses((status = 201, description = "The build.", body = BuildResponse)))]
pub(crate) async fn create_build(
    caller: Caller,
    State(app): State<AppState>,
    Path(agent): Path<AgentId>,
    key: IdempotencyKey,
    body: Json<BuildDraft>,
) -> Result<Response, ApiError> {
    create(&app, &caller, agent, &key, body.value, body.sha256).await
}

/// Adds a build to the agent that the body names.
#[utoipa::path(post, path = "/v1/builds", tag = "Builds", request_body = CreateBuildRequest,
    responses((status = 201, description = "The build.", body = BuildResponse)))]
pub(crate) async fn create_build_of(
    caller: Caller,
    State(app): State<AppState>,
    key: IdempotencyKey,
    body: Json<CreateBuildRequest>,
) -> Result<Response, ApiError> {
    let CreateBuildRequest {
        agent_id,
        name,
        description,
        config,
    } = body.value;
    create(
        &app,
        &caller,
        agent_id,
        &key,
        BuildDraft {
            name,
            description,
            config,
        },
        body.sha256,
    )
    .await
}

async fn create(
    app: &AppState,
    caller: &Caller,
    agent: AgentId,
    key: &IdempotencyKey,
    draft: BuildDraft,
    sha256: [u8; 32],
) -> Result<Response, ApiError> {
    let build = checked_build(app, caller, draft, "").await?;
    let once = key.once(caller, sha256, render_created);
    let answer = app
        .store
        .create_build(caller.team(), agent, build, app.clock.now(), once)
        .await?;
    Ok(response(answer, render_created))
}

fn render_created(build: &Build) -> StoredAnswer {
    rendered(
        StatusCode::CREATED,
        &BuildResponse {
            build: build.into(),
        },
    )
}

/// A build, also of an agent that is deleted.
#[utoipa::path(get, path = "/v1/revisions/{build_id}", tag = "Builds", params(("build_id" = Uuid, Path, description = "The build.")),
    responses((status = 200, description = "The build.", body = BuildResponse)))]
pub(crate) async fn get_build(
    caller: Caller,
    State(app): State<AppState>,
    Path(build): Path<BuildId>,
) -> Result<Answered<BuildResponse>, ApiError> {
    let build = app.store.build(caller.team(), build).await?;
    Ok(Answered(BuildResponse {
        build: BuildBody::from(&build),
    }))
}

/// Changes a build's name and description; its config never changes.
#[utoipa::path(patch, path = "/v1/revisions/{build_id}", tag = "Builds", params(("build_id" = Uuid, Path, description = "The build.")),
    request_body = ChangeBuildRequest,
    responses((status = 200, description = "The build.", body = BuildResponse)))]
pub(crate) async fn change_build(
    caller: Caller,
    State(app): State<AppState>,
    Path(build): Path<BuildId>,
    key: IdempotencyKey,
    body: Json<ChangeBuildRequest>,
) -> Result<Response, ApiError> {
    let change = BuildChange {
        name: body.value.name.map(|name| name.0),
        description: body.value.description,
    };
    let once = key.once(&caller, body.sha256, render);
    let answer = app
        .store
        .update_build(caller.team(), build, change, app.clock.now(), once)
        .await?;
    Ok(response(answer, render))
}

fn render(build: &Build) -> StoredAnswer {
    rendered(
        StatusCode::OK,
        &BuildResponse {
            build: build.into(),
        },
    )
}
