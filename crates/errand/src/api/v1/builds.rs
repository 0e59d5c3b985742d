//! Endpoints for builds, which are also called revisions.

use axum::Json as Answered;
use axum::extract::State;
use axum::response::Response;
use errand_core::id::{AgentId, BuildId, TeamId};
use errand_core::time::Timestamp;
use errand_core::warning::Warning;
use errand_store::model::{Build, BuildChange, NewBuild, PageQuery};
use errand_store::{StoreError, StoredAnswer};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::name::Name;
use crate::api::auth::Caller;
use crate::api::body::{Json, MaybeJson, RequestBody, absent_or_null};
use crate::api::idempotency::{IdempotencyKey, rendered, response};
use crate::api::query::{ListPage, PageParams, Query};
use crate::http::error::ApiError;
use crate::http::path::Path;
use crate::state::AppState;
use crate::usecase::build_checks::check_config;
use crate::usecase::effective_tools::{EffectiveTool, tools_of_config};

/// A tool that a build has now.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct EffectiveToolBody {
    /// The name that the model sees.
    #[schema(example = "mail__search")]
    name: String,
    /// `allow`, `ask`, `guard` or `deny`. A denied tool is not offered to the model.
    #[schema(example = "guard")]
    policy: &'static str,
    /// The source of the policy: `default` (the build lists no tools), `build` (the build lists this tool),
    /// `connection` (the build sets one policy for all tools of the connection), `hints` (the build uses all tools of
    /// the connection, each with the policy that follows from its hints), or `floor` (an admin's minimum).
    #[schema(example = "hints")]
    from: &'static str,
}

impl From<EffectiveTool> for EffectiveToolBody {
    fn from(tool: EffectiveTool) -> Self {
        Self {
            name: tool.name,
            policy: tool.policy,
            from: tool.from,
        }
    }
}

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
        let tools = tools_of_config(app, team, &build.config).await?;
        Ok(Self {
            effective_tools: Some(tools.into_iter().map(EffectiveToolBody::from).collect()),
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
