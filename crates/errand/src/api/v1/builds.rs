//! Endpoints for builds, which are also called revisions.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::config::{self, BuildConfig};
use errand_core::connection::connection_of;
use errand_core::id::{AgentId, BuildId, TeamId};
use errand_core::limits::CONFIG_BYTES_MAX;
use errand_core::policy::Policy;
use errand_core::time::Timestamp;
use errand_core::warning::Warning;
use errand_store::model::{Build, BuildChange, NewBuild, PageQuery};
use errand_store::{Connection, StoreError, StoredAnswer};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::effective::{EffectiveToolBody, tools_of_config};
use super::name::Name;
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::body::{Json, MaybeJson, RequestBody, absent_or_null};
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::{ListPage, PageParams, Query};
use crate::http::error::ApiError;
use crate::http::path::Path;

/// An immutable, numbered snapshot of an agent's configuration.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct BuildBody {
    id: Uuid,
    agent_id: Uuid,
    /// Counted from 1 for each agent.
    number: u64,
    name: String,
    #[schema(required)]
    description: Option<String>,
    /// The configuration exactly as it was sent.
    #[schema(value_type = Object)]
    config: Value,
    /// The user who created the build.
    #[schema(required)]
    created_by: Option<Uuid>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Same as `agent_id`.
    copilot_id: Uuid,
    /// Same as `number`.
    revision_number: u64,
    /// Same as `name`.
    revision_name: String,
    /// Same as `description`.
    #[schema(required)]
    revision_description: Option<String>,
    /// The build whose `config` was changed to create this one.
    #[schema(required)]
    parent_build_id: Option<Uuid>,
    /// `live`: new runs use it. `historic`: it was live before. `draft`: it was never live, and becomes live when it is
    /// promoted.
    #[schema(pattern = "^(live|historic|draft)$")]
    status: &'static str,
    /// The time of the last change of the name, description or status.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// The email address of the user who created the build.
    #[schema(required)]
    created_by_name: Option<String>,
    /// The tools that its runs have now, according to the last probe of its connections and the current floors. Present
    /// only in responses for a single build.
    #[serde(skip_serializing_if = "Option::is_none")]
    effective_tools: Option<Vec<EffectiveToolBody>>,
}

impl BuildBody {
    /// Adds the tools that the build's runs have now.
    pub(crate) async fn with_tools(
        app: &AppState,
        team: TeamId,
        build: &Build,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            effective_tools: Some(tools_of_config(app, team, &build.config).await?),
            ..Self::from(build)
        })
    }
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
            copilot_id: build.agent_id.as_uuid(),
            revision_number: build.number,
            revision_name: build.name.clone(),
            revision_description: build.description.clone(),
            parent_build_id: build.parent.map(BuildId::as_uuid),
            status: build.state.as_str(),
            updated_at: build.updated_at,
            created_by_name: build.created_by_name.clone(),
            effective_tools: None,
        }
    }
}

/// A build, with warnings if it is new.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct BuildResponse {
    build: BuildBody,
    /// Settings that are accepted but may not do what is expected. Present if a change of `config` created the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<Warning>>,
}

/// A page of builds.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct BuildListResponse {
    builds: Vec<BuildBody>,
    /// The total number of builds.
    total: u64,
    limit: u32,
    offset: u64,
}

/// A new build.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct CreatedBuildResponse {
    build: BuildBody,
    agent: AgentRef,
    /// Settings that are accepted but may not do what is expected.
    warnings: Vec<Warning>,
}

/// A reference to an agent.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct AgentRef {
    id: Uuid,
}

/// The response to a promotion.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct PromoteResponse {
    /// Always true.
    success: bool,
}

/// The request to create a build from a `config` or from another build.
#[derive(Deserialize, ToSchema)]
pub(crate) struct BuildDraft {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    description: Option<String>,
    /// `{"version": "v2", "data": {…}}`. Unknown keys in it are stored and returned. Required unless `source_build_id`
    /// is given.
    #[schema(value_type = Option<Object>)]
    config: Option<Value>,
    /// A build of the team whose `config` is copied. Cannot be combined with `config`.
    #[schema(value_type = Option<Uuid>)]
    source_build_id: Option<BuildId>,
    /// If true, new runs do not use the build until it is promoted.
    draft: Option<bool>,
}

impl RequestBody for BuildDraft {
    const REFUSED: &'static [&'static str] = REFUSED;
}

/// Fields of the hosted product that this server does not support.
const REFUSED: &[&str] = &["handover_target_ids", "handoverTargetIds"];

/// The request to create a build of an agent.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateBuildRequest {
    #[schema(value_type = Uuid)]
    agent_id: AgentId,
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    description: Option<String>,
    /// `{"version": "v2", "data": {…}}`. Unknown keys in it are stored and returned. Required unless `source_build_id`
    /// is given.
    #[schema(value_type = Option<Object>)]
    config: Option<Value>,
    /// A build of the team whose `config` is copied. Cannot be combined with `config`.
    #[schema(value_type = Option<Uuid>)]
    source_build_id: Option<BuildId>,
    /// If true, new runs do not use the build until it is promoted.
    draft: Option<bool>,
}

impl RequestBody for CreateBuildRequest {
    const REFUSED: &'static [&'static str] = REFUSED;
}

/// The request to change a build. A change of `config` creates a new build.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeBuildRequest {
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    name: Option<Name>,
    /// Null removes the description.
    #[serde(default, deserialize_with = "absent_or_null")]
    #[schema(value_type = Option<String>)]
    description: Option<Option<String>>,
    /// Same as `name`.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    revision_name: Option<Name>,
    /// Same as `description`.
    #[serde(default, deserialize_with = "absent_or_null")]
    #[schema(value_type = Option<String>)]
    revision_description: Option<Option<String>>,
    /// Creates a new build whose parent is this one. It is a draft if this build is a draft, and live if this build is
    /// live.
    #[schema(value_type = Option<Object>)]
    config: Option<Value>,
}

impl RequestBody for ChangeBuildRequest {
    const REFUSED: &'static [&'static str] = &[
        "handover_target_ids",
        "handoverTargetIds",
        "source_build_id",
        "status",
        "draft",
    ];
}

/// The request to promote a build, with optional changes.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct PromoteRequest {
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    revision_name: Option<Name>,
    /// Null removes the description.
    #[serde(default, deserialize_with = "absent_or_null")]
    #[schema(value_type = Option<String>)]
    revision_description: Option<Option<String>>,
}

impl RequestBody for PromoteRequest {}

/// The value of a field that has two names, at most one of which may be given.
fn one_of<T>(name: &str, a: Option<T>, b: Option<T>) -> Result<Option<T>, ApiError> {
    match (a, b) {
        (Some(_), Some(_)) => Err(ApiError::invalid(
            &format!("revision_{name}"),
            format!("it is another name of `{name}`, which is also given; send only one of them"),
        )),
        (a, b) => Ok(a.or(b)),
    }
}

/// Validates a build before it is stored. `within`: the field of the body that holds it, such as `build.`.
pub(crate) async fn checked_build(
    app: &AppState,
    caller: &Caller,
    draft: BuildDraft,
    within: &str,
) -> Result<NewBuild, ApiError> {
    let config = match (draft.config, draft.source_build_id) {
        (Some(config), None) => config,
        (None, Some(source)) => copied_config(app, caller.team(), source, within).await?,
        (None, None) => {
            return Err(ApiError::invalid(
                &format!("{within}config"),
                "it is missing: send `config`, or `source_build_id` to copy another build",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                &format!("{within}source_build_id"),
                "it cannot be combined with `config`; send only one of them",
            ));
        }
    };
    let warnings = check_config(app, caller.team(), &config, within).await?;
    Ok(NewBuild {
        id: app.ids.build(app.clock.now()),
        name: draft.name.0,
        description: draft.description,
        config,
        created_by: caller.user(),
        draft: draft.draft.unwrap_or(false),
        warnings,
    })
}

/// Reads the config of another build of the team.
async fn copied_config(
    app: &AppState,
    team: TeamId,
    source: BuildId,
    within: &str,
) -> Result<Value, ApiError> {
    match app.store.build(team, source).await {
        Ok(build) => Ok(build.config),
        Err(StoreError::NotFound) => Err(ApiError::invalid(
            &format!("{within}source_build_id"),
            "this build does not exist",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Validates a config, and returns warnings for its author.
async fn check_config(
    app: &AppState,
    team: TeamId,
    config: &Value,
    within: &str,
) -> Result<Vec<Warning>, ApiError> {
    let parsed = app
        .store
        .parse_config(config)
        .map_err(|error| ApiError::bad_request(format!("{within}{error}")))?;
    let mut warnings = check_reach(app, team, &parsed, within).await?;
    warnings.extend(config::ignored(config, within));
    if config.to_string().len() > CONFIG_BYTES_MAX {
        return Err(ApiError::invalid(
            &format!("{within}config"),
            format!("must be at most {CONFIG_BYTES_MAX} bytes long"),
        ));
    }
    Ok(warnings)
}

/// Checks the secrets, connections, tools and agents to which a build refers, and returns warnings for its author.
pub(crate) async fn check_reach(
    app: &AppState,
    team: TeamId,
    config: &BuildConfig,
    within: &str,
) -> Result<Vec<Warning>, ApiError> {
    check_assignments(app, team, config, within).await?;
    if !config.reach.secrets.is_empty() {
        let there = app.store.secret_names(team).await?;
        if let Some(absent) = config
            .reach
            .secrets
            .iter()
            .find(|name| !there.contains(name))
        {
            return Err(ApiError::bad_request(format!(
                "{within}config: the secret {absent} does not exist; an admin or owner can set it with POST /v1/secrets"
            )));
        }
    }
    let ids = config.reach.connections.clone();
    let there = app.store.connections_of(team, ids.clone()).await?;
    if let Some(absent) = ids
        .iter()
        .find(|id| !there.iter().any(|connection| connection.id == **id))
    {
        return Err(ApiError::bad_request(format!(
            "{within}config.data.connections: the connection {absent} does not exist"
        )));
    }
    let mut named: Vec<(String, &str, Option<Policy>)> = Vec::new();
    for (tool, policy) in &config.tools {
        named.push((format!("data.tools.{tool}"), tool, Some(*policy)));
    }
    for name in config.all_of.keys() {
        if !there.iter().any(|connection| connection.name == *name) {
            return Err(ApiError::bad_request(format!(
                "{within}config.data.tools.{name}__*: none of the connections in data.connections is named {name:?}"
            )));
        }
    }
    for (path, tool) in config.playbook.iter().flat_map(|p| p.tools()) {
        if connection_of(tool).is_some() && !config.names(tool) {
            return Err(ApiError::bad_request(format!(
                "{within}config.data.{path}.tool: this build does not have the tool {tool:?}; add it to data.tools, or add all tools of its connection with <connection>__*"
            )));
        }
        named.push((format!("data.{path}.tool"), tool, None));
    }
    for (path, tool, policy) in named {
        if let Some(connection) = connection_of(tool) {
            check_tool(&there, connection, tool, policy)
                .map_err(|why| ApiError::bad_request(format!("{within}config.{path}: {why}")))?;
        }
    }
    // `connections_of` returns the rows in the order of the build's ids.
    let names: Vec<&str> = there
        .iter()
        .map(|connection| connection.name.as_str())
        .collect();
    Ok(config::warnings(config, &names, within))
}

/// Checks that the agents that a build may start belong to the team.
async fn check_assignments(
    app: &AppState,
    team: TeamId,
    config: &BuildConfig,
    within: &str,
) -> Result<(), ApiError> {
    let ids = &config.reach.assignments;
    if ids.is_empty() {
        return Ok(());
    }
    let there = app.store.agents_among(team, ids.clone()).await?;
    match ids.iter().position(|id| !there.contains(id)) {
        None => Ok(()),
        Some(place) => Err(ApiError::bad_request(format!(
            "{within}config.data.assignments[{place}]: the team does not have this assignment; GET /v1/agents lists the existing ones"
        ))),
    }
}

/// Checks a tool against the connection's last probe, if there was one, and its policy against the floor.
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
            "the connection {name} had no tool {tool:?} at its last probe; GET /v1/connections/{} lists its tools",
            connection.id
        ));
    }
    let floor = connection.floor(tool);
    match policy {
        Some(policy) if policy.or_stricter(floor) != policy => Err(format!(
            "it cannot be {:?}: an admin of the team requires at least {:?} for this tool",
            policy.as_str(),
            floor.as_str()
        )),
        _ => Ok(()),
    }
}

/// Lists an agent's builds, newest first.
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

/// Adds a build to an agent.
///
/// Runs that start from now on use it, unless it is a draft.
#[utoipa::path(post, path = "/v1/agents/{agent_id}/revisions", tag = "Builds",
    params(("agent_id" = Uuid, Path, description = "The agent.")), request_body = BuildDraft,
    responses((status = 201, description = "The build.", body = CreatedBuildResponse)))]
pub(crate) async fn create_build(
    caller: Caller,
    State(app): State<AppState>,
    Path(agent): Path<AgentId>,
    key: IdempotencyKey,
    body: Json<BuildDraft>,
) -> Result<Response, ApiError> {
    create(&app, &caller, agent, &key, body.value, body.sha256).await
}

/// Adds a build to the agent in the body.
#[utoipa::path(post, path = "/v1/builds", tag = "Builds", request_body = CreateBuildRequest,
    responses((status = 201, description = "The build.", body = CreatedBuildResponse)))]
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
        source_build_id,
        draft,
    } = body.value;
    let draft = BuildDraft {
        name,
        description,
        config,
        source_build_id,
        draft,
    };
    create(&app, &caller, agent_id, &key, draft, body.sha256).await
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
        &CreatedBuildResponse {
            build: build.into(),
            agent: AgentRef {
                id: build.agent_id.as_uuid(),
            },
            warnings: build.warnings.clone(),
        },
    )
}

/// Returns a build, even if its agent is deleted.
#[utoipa::path(get, path = "/v1/revisions/{build_id}", tag = "Builds", params(("build_id" = Uuid, Path, description = "The build.")),
    responses((status = 200, description = "The build.", body = BuildResponse)))]
pub(crate) async fn get_build(
    caller: Caller,
    State(app): State<AppState>,
    Path(build): Path<BuildId>,
) -> Result<Answered<BuildResponse>, ApiError> {
    let build = app.store.build(caller.team(), build).await?;
    Ok(Answered(BuildResponse {
        build: BuildBody::with_tools(&app, caller.team(), &build).await?,
        warnings: None,
    }))
}

/// Changes a build's name and description.
///
/// A change of `config` creates a new build, whose parent is this one.
#[utoipa::path(patch, path = "/v1/revisions/{build_id}", tag = "Builds", params(("build_id" = Uuid, Path, description = "The build.")),
    request_body = ChangeBuildRequest,
    responses((status = 200, description = "The build; after a change of `config`, the new one.", body = BuildResponse)))]
pub(crate) async fn change_build(
    caller: Caller,
    State(app): State<AppState>,
    Path(build): Path<BuildId>,
    key: IdempotencyKey,
    body: Json<ChangeBuildRequest>,
) -> Result<Response, ApiError> {
    let given = body.value;
    let name = one_of("name", given.name, given.revision_name)?;
    let description = one_of("description", given.description, given.revision_description)?;
    let change = BuildChange {
        name: name.map(|name| name.0),
        description,
        promote: false,
    };
    let now = app.clock.now();
    let Some(config) = given.config else {
        if change == BuildChange::default() && body.is_lossy {
            return Err(ApiError::bad_request(
                "the body changes nothing: send name, description or config",
            ));
        }
        let once = key.once(&caller, body.sha256, render);
        let by = (caller.user(), now);
        let answer = app
            .store
            .update_build(caller.team(), build, change, by, once)
            .await?;
        return Ok(response(answer, render));
    };
    // A missing build is reported before problems of the config.
    app.store.build(caller.team(), build).await?;
    let warnings = check_config(&app, caller.team(), &config, "").await?;
    let new = NewBuild {
        id: app.ids.build(now),
        name: String::new(),
        description: None,
        config,
        created_by: caller.user(),
        draft: false,
        warnings,
    };
    let once = key.once(&caller, body.sha256, render_revised);
    let answer = app
        .store
        .revise_build(caller.team(), build, change, new, now, once)
        .await?;
    Ok(response(answer, render_revised))
}
fn render(build: &Build) -> StoredAnswer {
    rendered(
        StatusCode::OK,
        &BuildResponse {
            build: build.into(),
            warnings: None,
        },
    )
}

fn render_revised(build: &Build) -> StoredAnswer {
    rendered(
        StatusCode::OK,
        &BuildResponse {
            build: build.into(),
            warnings: Some(build.warnings.clone()),
        },
    )
}

/// Makes a build live.
///
/// Runs that start from now on use it, until another build is promoted or created as live.
#[utoipa::path(post, path = "/v1/revisions/{build_id}/promote", tag = "Builds",
    params(("build_id" = Uuid, Path, description = "The build.")), request_body = Option<PromoteRequest>,
    responses((status = 200, description = "The build is live.", body = PromoteResponse)))]
pub(crate) async fn promote_build(
    caller: Caller,
    State(app): State<AppState>,
    Path(build): Path<BuildId>,
    key: IdempotencyKey,
    body: MaybeJson<PromoteRequest>,
) -> Result<Response, ApiError> {
    let change = BuildChange {
        name: body.value.revision_name.map(|name| name.0),
        description: body.value.revision_description,
        promote: true,
    };
    let by = (caller.user(), app.clock.now());
    let once = key.once(&caller, body.sha256, render_promoted);
    let answer = app
        .store
        .update_build(caller.team(), build, change, by, once)
        .await?;
    Ok(response(answer, render_promoted))
}

fn render_promoted(_: &Build) -> StoredAnswer {
    rendered(StatusCode::OK, &PromoteResponse { success: true })
}
