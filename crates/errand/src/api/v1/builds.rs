//! Builds (revisions) of agents.

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
use crate::api::error::ApiError;
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::path::Path;
use crate::api::query::{ListPage, PageParams, Query};

/// An immutable, numbered snapshot of an agent's setup.
#[derive(Clone, Serialize, ToSchema)]
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
    /// The same as `agent_id`.
    copilot_id: Uuid,
    /// The same as `number`.
    revision_number: u64,
    /// The same as `name`.
    revision_name: String,
    /// The same as `description`.
    #[schema(required)]
    revision_description: Option<String>,
    /// The build that it was made of by a change of its `config`.
    #[schema(required)]
    parent_build_id: Option<Uuid>,
    /// `live`: new runs use it. `historic`: it was live. `draft`: it was never live, and becomes so when it is promoted.
    #[schema(pattern = "^(live|historic|draft)$")]
    status: &'static str,
    /// When its name, its description or its state by a promotion last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// The e-mail address of the user who made it.
    #[schema(required)]
    created_by_name: Option<String>,
    /// The tools that its runs have now, by the last probe of its connections and the floors of now. Only where one build
    /// is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    effective_tools: Option<Vec<EffectiveToolBody>>,
}

impl BuildBody {
    /// With the tools that its runs have now.
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

/// A build.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct BuildResponse {
    build: BuildBody,
    /// Present if a change of `config` created the build: settings that are accepted, and may not do what is expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<Vec<Warning>>,
}

/// A page of builds.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct BuildListResponse {
    builds: Vec<BuildBody>,
    /// How many there are in all.
    total: u64,
    limit: u32,
    offset: u64,
}

/// A build that was created.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct CreatedBuildResponse {
    build: BuildBody,
    agent: AgentRef,
    /// Settings that are accepted, and may not do what is expected.
    warnings: Vec<Warning>,
}

/// An agent, by its id.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct AgentRef {
    id: Uuid,
}

/// What promoting a build answers.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct PromoteResponse {
    /// Always true.
    success: bool,
}

/// A build to make, of a `config` or of another build's.
#[derive(Deserialize, ToSchema)]
pub(crate) struct BuildDraft {
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    description: Option<String>,
    /// `{"version": "v2", "data": {…}}`. Keys that are not known in it are kept and given back. Required unless
    /// `source_build_id` is given.
    #[schema(value_type = Option<Object>)]
    config: Option<Value>,
    /// A build of the team whose `config` is copied. Takes the place of `config`.
    #[schema(value_type = Option<Uuid>)]
    source_build_id: Option<BuildId>,
    /// True: new runs do not use the build until it is promoted.
    draft: Option<bool>,
}

impl RequestBody for BuildDraft {
    const REFUSED: &'static [&'static str] = REFUSED;
}

/// What the hosted product takes for a build, and what this server does not have.
const REFUSED: &[&str] = &["handover_target_ids", "handoverTargetIds"];

/// A build to make, with its agent.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateBuildRequest {
    #[schema(value_type = Uuid)]
    agent_id: AgentId,
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    description: Option<String>,
    /// `{"version": "v2", "data": {…}}`. Keys that are not known in it are kept and given back. Required unless
    /// `source_build_id` is given.
    #[schema(value_type = Option<Object>)]
    config: Option<Value>,
    /// A build of the team whose `config` is copied. Takes the place of `config`.
    #[schema(value_type = Option<Uuid>)]
    source_build_id: Option<BuildId>,
    /// True: new runs do not use the build until it is promoted.
    draft: Option<bool>,
}

impl RequestBody for CreateBuildRequest {
    const REFUSED: &'static [&'static str] = REFUSED;
}

/// What of a build can change. With `config`, a new build is made of it.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeBuildRequest {
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    name: Option<Name>,
    /// Null takes it away.
    #[serde(default, deserialize_with = "absent_or_null")]
    #[schema(value_type = Option<String>)]
    description: Option<Option<String>>,
    /// The same as `name`.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    revision_name: Option<Name>,
    /// The same as `description`.
    #[serde(default, deserialize_with = "absent_or_null")]
    #[schema(value_type = Option<String>)]
    revision_description: Option<Option<String>>,
    /// Makes a new build whose parent is this one: live if this one is live, a draft if this one is a draft.
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

/// What a promotion may change of the build.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct PromoteRequest {
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    revision_name: Option<Name>,
    /// Null takes it away.
    #[serde(default, deserialize_with = "absent_or_null")]
    #[schema(value_type = Option<String>)]
    revision_description: Option<Option<String>>,
}

impl RequestBody for PromoteRequest {}

/// One of two names of the same field.
fn one_of<T>(name: &str, a: Option<T>, b: Option<T>) -> Result<Option<T>, ApiError> {
    match (a, b) {
        (Some(_), Some(_)) => Err(ApiError::invalid(
            &format!("revision_{name}"),
            format!("it is another name of `{name}`, which is given, too; give one of them"),
        )),
        (a, b) => Ok(a.or(b)),
    }
}

/// A build that can be stored. `within`: where it stands in the body, such as `build.`.
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
                "it is missing: give `config`, or `source_build_id` to copy another build's",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                &format!("{within}source_build_id"),
                "it takes the place of `config`, which is given, too; give one of them",
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

/// The config of another build of the team.
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
            "there is no such build",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Refuses a config that cannot be run here. Gives what its author should know.
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
            format!("it takes at most {CONFIG_BYTES_MAX} bytes"),
        ));
    }
    Ok(warnings)
}

/// Holds what a build reaches for against what the team has. Gives what its author should know.
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
                "{within}config: there is no secret {absent}; an admin or owner sets it with POST /v1/secrets"
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
            "{within}config.data.connections: there is no connection {absent}"
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
                "{within}config.data.{path}.tool: this build does not have the tool {tool:?}; name it in data.tools, or all of its connection with <connection>__*"
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
    // In the order of the build, which is that of the rows.
    let names: Vec<&str> = there
        .iter()
        .map(|connection| connection.name.as_str())
        .collect();
    Ok(config::warnings(config, &names, within))
}

/// The assignments that a build may start are the team's.
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
            "{within}config.data.assignments[{place}]: the team has no such assignment; GET /v1/agents lists those it has"
        ))),
    }
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

/// Adds a build to an agent. Runs that are started from now on have it, unless it is a draft.
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

/// Adds a build to the agent that the body names.
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
        build: BuildBody::with_tools(&app, caller.team(), &build).await?,
        warnings: None,
    }))
}

/// Changes a build's name and description. A change of its `config` makes a new build, whose parent it is.
#[utoipa::path(patch, path = "/v1/revisions/{build_id}", tag = "Builds", params(("build_id" = Uuid, Path, description = "The build.")),
    request_body = ChangeBuildRequest,
    responses((status = 200, description = "The build: with `config`, the new one.", body = BuildResponse)))]
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
                "nothing of this can be changed here: it takes name, description or config",
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
    // Not found comes before what is wrong with the config.
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

/// Makes a build the live one: runs that are started from now on have it, until another one is promoted or created live.
#[utoipa::path(post, path = "/v1/revisions/{build_id}/promote", tag = "Builds",
    params(("build_id" = Uuid, Path, description = "The build.")), request_body = Option<PromoteRequest>,
    responses((status = 200, description = "It is live.", body = PromoteResponse)))]
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
